"""Schedules of a rank of a mesh, and when parameters go."""

from __future__ import annotations

from specc.compiler.schedule.actions import Action, one_of_mesh, parse, parts_of


def lines(actions: list[Action]) -> str:
    return " | ".join(map(str, actions))


def test_zero_3_brings_the_next_call_while_one_runs() -> None:
    assert lines(one_of_mesh(2, 1, {0, 1}, True, True)) == (
        "UNSHARD c0 | UNSHARD c1 | F c0 m0 | F c1 m0 | "
        "UNSHARD c0 | B c1 m0 | REDUCE c1 m0 | B c0 m0 | REDUCE c0 m0 | STEP"
    )


def test_parameters_come_once_and_gradients_go_once_otherwise() -> None:
    assert lines(one_of_mesh(1, 2, {0}, False, False)) == (
        "UNSHARD c0 | F c0 m0 | B c0 m0 | F c0 m1 | B c0 m1 | REDUCE c0 m1 | STEP"
    )


def test_a_schedule_survives_its_text_and_names_its_graphs() -> None:
    actions = one_of_mesh(3, 2, {1, 2}, True, False)
    assert parse("\n".join(map(str, actions))) == actions
    assert parts_of(actions) == {"fwd", "bwd", "unshard_start", "unshard_finish", "reduce_start", "reduce_finish"}
