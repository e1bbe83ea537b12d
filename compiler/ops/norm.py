"""Rows: normalisation, softmax and dropout."""

from __future__ import annotations

from specc.compiler.ops.row import INIT, PER, Applied, Arg, Op, OpError, Weight
from specc.compiler.types import size_of

ONES: tuple[str, tuple[tuple[str, float], ...]] = ("ones", ())
ZEROS: tuple[str, tuple[tuple[str, float], ...]] = ("zeros", ())


def _groups(a: Applied) -> None:
    channels = a.type(0).dims[1]
    if channels.size is not None and size_of(channels, {}) % a.args["groups"]:
        raise OpError("S203", f"{channels.shown()} channels do not split into {a.args['groups']} groups")


ROWS = (
    Op("rms_norm", "... !d, d -> ... d", "x / sqrt(mean(x^2) + eps) * weight, in fp32 (arXiv:1910.07467).",
       weights=(Weight("weight", ONES, "scale"),),
       args={"eps": Arg("float", 1e-5, within="[0, 1)"), "scale": Arg("bool", True), "init": INIT, "per": PER},
       mixes="last"),
    Op("layer_norm", "... !d, d, d -> ... d", "(x - mean) / sqrt(var + eps) * weight + bias (arXiv:1607.06450).",
       weights=(Weight("weight", ONES, "scale"), Weight("bias", ZEROS, "bias")),
       args={"eps": Arg("float", 1e-5, within="[0, 1)"), "scale": Arg("bool", True), "bias": Arg("bool", True),
             "init": INIT, "per": PER}, mixes="last"),
    Op("group_norm", "b !c *, c, c -> b c *", "Normalisation over groups of channels and all of space.",
       weights=(Weight("weight", ONES), Weight("bias", ZEROS)),
       args={"groups": Arg("int", 32, within="[1, inf)"), "eps": Arg("float", 1e-6, within="[0, 1)"), "init": INIT},
       check=_groups, mixes="space"),
    Op("softmax", "... !d -> ... d", "Softmax over the last dim, in fp32.", mixes="last"),
    Op("dropout", "... , b -> ...",
       "Zeros with probability p, the rest over 1-p; counter-based on the samples' `key` (an attribute int[B]).",
       inputs=("x", "key"), takes=("float", "int"), args={"p": Arg("float", within="[0, 1)")}),
)  # fmt: skip
