"""Rule strings bind letters to dims and refuse what does not fit."""

import pytest

from specc.compiler.ops import OPS
from specc.compiler.rules import Binding, Mismatch, build, match, parse_rule
from specc.compiler.types import Dim, derived, same, size_of
from specc.spec.expr import parse

B, S, D, H, E = Dim("B"), Dim("S"), Dim("D", 32), Dim("H", 4), Dim("E", 8)


def test_a_group_of_letters_is_contracted() -> None:
    rule = parse_rule("... i*, i* o* -> ... o*")
    binding: Binding = {"i": (H, E), "o": (D,)}
    match(rule.ins[0], (B, S, H, E), binding)
    assert build(rule.ins[1], binding) == (H, E, D)
    assert build(rule.outs[0], binding) == (B, S, D)
    assert rule.contracted == ("i",)


def test_a_letter_keeps_its_dim() -> None:
    rule = parse_rule("... s h e, ... t k e, ... t k f -> ... s h f")
    binding: Binding = {}
    match(rule.ins[0], (B, S, H, E), binding)
    with pytest.raises(Mismatch, match="needs E=8, got D=32"):
        match(rule.ins[1], (B, S, H, D), binding)


def test_a_wrong_rank_names_the_pattern() -> None:
    with pytest.raises(Mismatch, match=r"needs dims \[\.\.\. s h e\]|needs dims"):
        match(parse_rule("... s h e -> e").ins[0], (S, E), {})


def test_names_are_nominal_and_numbers_are_not() -> None:
    assert not same(Dim("D", 8), Dim("E", 8))
    assert same(Dim("D", 8), Dim("8", 8))
    assert same(Dim("D", 8), Dim("2 * H", 8))
    assert not same(Dim("D", 8), Dim("9", 9))


def test_a_derived_dim_is_bound_with_its_base() -> None:
    half = derived(parse("S // 2 + 1"), {"S": S})
    assert half.size is None
    assert size_of(half, {"S": 10}) == 6


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_row_has_a_rule_that_reads(name: str) -> None:
    row = OPS[name]
    assert row.doc.endswith(".")
    if row.infer is None:
        letters = {t.letter for p in row.parsed.ins for t in p} | set(row.binds)
        assert {t.letter for p in row.parsed.outs for t in p} <= letters
