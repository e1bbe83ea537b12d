"""The op table and the table of implementations have the same rows."""

from specc.compiler.lower.run import IMPLS
from specc.compiler.ops import OPS


def test_every_op_has_an_implementation() -> None:
    assert set(IMPLS) == set(OPS)
