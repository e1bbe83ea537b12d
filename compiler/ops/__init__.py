"""The op table: each primitive is one row. Architectures are YAML over these."""

from specc.compiler.ops import attention, linear, loss, norm, pointwise, route, shape
from specc.compiler.ops.row import Applied, Arg, Op, OpError, Weight

FAMILIES = (linear, norm, attention, pointwise, shape, route, loss)
OPS: dict[str, Op] = {row.name: row for family in FAMILIES for row in family.ROWS}

__all__ = ["OPS", "Applied", "Arg", "Op", "OpError", "Weight"]
