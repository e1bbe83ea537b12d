"""Tables of learned positions and the length of a stage's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.elaborate import elaborate_model
from specc.compiler.positions import check_positions
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from tests.text_models import built


@pytest.mark.parametrize(
    ("name", "tables"), [("gpt2", ["positions"]), ("bert", ["positions"]), ("glm", ["positions", "block_positions"])]
)
def test_rows_longer_than_a_table_are_not_built(name: str, tables: list[str], tmp_path: Path) -> None:
    with pytest.raises(SpecError) as e:
        built(tmp_path, name, "stages.pretrain.data.seq_len=49")
    assert e.value.codes == ("S201",) * len(tables)
    for table in tables:
        assert f"the table '{table}.weight' has 48 positions, the stage's rows have 49 tokens" in str(e.value)


def test_a_running_index_counts_and_other_inputs_do_not() -> None:
    steps = [{"index": {"of": "S"}}, {"embedding": {"rows": 8, "out": 4, "name": "places"}, "as": "p"}]
    steps += [{"embedding": {"rows": 2, "out": 4, "name": "kinds"}, "from": "kind"}, {"expr": "p + _"}]
    program = elaborate_model(ModelSpec.model_validate({"inputs": {"kind": "int[B S]"}, "steps": steps}), "m")
    check_positions(program, {"B": 2, "S": 8}, None)
    with pytest.raises(SpecError, match=r"'places\.weight' has 8 positions, the stage's rows have 9 tokens"):
        check_positions(program, {"B": 2, "S": 9}, None)
