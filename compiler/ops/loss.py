"""Rows: losses."""

from __future__ import annotations

from specc.compiler.ops.row import Arg, Op

IGNORE = -100  # the label of a token without a loss

ROWS = (
    Op("cross_entropy", "... !v, ... -> ", f"Mean of -log softmax(logits)[label] over labels other than {IGNORE}.",
       inputs=("logits", "labels"), takes=("float", "int"),
       args={"label_smoothing": Arg("float", 0.0, within="[0, 1]"),
             "z_loss": Arg("float", 0.0, "weight of log(Z)^2", within="[0, inf)"),
             "softmax": Arg("choice", None, "`fp32`: in fp32 even where the model computes in fp64", ("fp32",))}),
    Op("linear_cross_entropy", "... d, d v, ..., v -> ",
       "Cross-entropy of a linear head, chunk by chunk, so that the logits are never whole.",
       inputs=("x", "weight", "labels", "bias?"), takes=("float", "float", "int", "float"),
       args={"label_smoothing": Arg("float", 0.0, within="[0, 1]"), "z_loss": Arg("float", 0.0)},
       flops="contract", internal=True),
)  # fmt: skip
