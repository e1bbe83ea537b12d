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
    Op("log_prob", "... !v, ... -> ...", f"Log-probability of each label, log softmax(logits)[label]; 0 for {IGNORE}.",
       inputs=("logits", "labels"), takes=("float", "int")),
    Op("linear_log_prob", "... d, d v, ..., v -> ...",
       "Log-probability of each label by a linear head, chunk by chunk, so that the logits are never whole.",
       inputs=("x", "weight", "labels", "bias?"), takes=("float", "float", "int", "float"), flops="contract",
       internal=True),
    Op("from_bits", "..., ... -> ...", "Numbers that came as the bits of fp64, in the type of others beside them.",
       inputs=("bits", "like"), takes=("int", "float"), flops="none", internal=True),
)  # fmt: skip
