"""specc from Python: typed specs that dump to YAML and load to themselves, built, run and sampled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specc
from specc.compiler.cost import n_params
from specc.compiler.elaborate import elaborate
from specc.spec.dump import dump
from specc.spec.yaml import load_text

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MODELS = sorted((ROOT / "spec" / "models").glob("*.yaml"))


def small(name: str = "small") -> specc.Spec:
    """A decoder without attention, written in Python alone."""
    model = specc.ModelSpec(
        dims={"D": 16, "V": 300},
        inputs={"tokens": "int[B S]", "labels": "int[B S]"},
        blocks={"layer": specc.Block(in_={"x": ["B S D"]}, steps=[specc.step("softmax"), specc.step("expr", "x + _")])},
        steps=[
            specc.step("embedding", rows="V", out="D", from_="tokens", name="embed"),
            specc.step("repeat", block="layer", times=2),
            specc.step("linear", out="V", as_="logits"),
            specc.step("cross_entropy", from_=["logits", "labels"], as_="loss"),
        ],
        outputs={"logits": "logits"},
        loss="loss",
    )
    stage = specc.StageSpec(
        data=specc.DataSpec(sources=[specc.Source(path="texts")], seq_len=16, validation=0.2),
        tokenizer=specc.TokenizerSpec(vocab=300),
        optimizer=specc.Optimizer(lr=1e-5),
        batch=specc.Batch(sequences=2),
        budget=specc.Budget(steps=2),
    )
    return specc.Spec(specc=1, name=name, model=model, stages={"pretrain": stage})


def test_a_spec_of_python_is_the_spec_of_its_yaml() -> None:
    spec = small()
    assert specc.Spec.from_yaml(spec.to_yaml()) == spec
    assert specc.Spec.from_yaml(spec.to_yaml()).to_yaml() == spec.to_yaml()


@pytest.mark.parametrize("path", [*EXAMPLES, *MODELS], ids=lambda p: p.stem)
def test_every_spec_dumps_to_yaml_that_loads_to_it(path: Path) -> None:
    spec = specc.load(path)
    assert specc.Spec.from_yaml(spec.to_yaml()) == spec


def test_specs_that_differ_are_not_equal() -> None:
    assert small() != small("other")
    assert small() != small().changed("model.dims.D=32")
    assert small().changed("model.dims.D=32").model_section()[1].dims["D"] == 32


def test_a_wrong_change_is_told() -> None:
    with pytest.raises(specc.SpecError) as e:
        small().changed("model.dims.D")
    assert e.value.codes == ("S006",)


leaves = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text() | st.floats(allow_nan=False, width=32)
data = st.recursive(
    leaves.filter(lambda x: x not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=12), data, max_size=4))
def test_what_is_dumped_is_read_back(value: dict[str, object]) -> None:
    assert load_text(dump(value), "x").data == value


def test_importing_specc_imports_no_torch() -> None:
    code = "import sys, specc; specc.Spec; specc.load; specc.op; specc.step; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_frozen() -> None:
    assert all(getattr(specc, name) is not None for name in specc.__all__)
    assert set(specc.__all__) <= set(dir(specc))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        specc.trian  # noqa: B018


def test_build_run_and_sample(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(10):
        (tmp_path / "texts" / f"{i}.txt").write_text("the cat sat on the mat and ran home then " * (i + 2))
    build = specc.build(small(), tmp_path / "out", overrides=["stages.pretrain.optimizer.lr=1e-3"])
    assert build.stages["pretrain"].spec.optimizer.lr == 1e-3
    said: list[str] = []
    assert specc.run(build, say=said.append, base=tmp_path).path == build.path
    assert any("done" in line for line in said)
    (text,) = specc.sample(build, "the cat", tokens=4)
    assert isinstance(text, str)
    with pytest.raises(specc.RunError, match="no stage 'sft'"):
        specc.sample(build, stage="sft")


def test_a_model_of_another_size_is_another_run(tmp_path: Path) -> None:
    builds = [specc.build(small().changed(f"model.dims.D={d}"), tmp_path / str(d)) for d in (16, 32)]
    assert builds[0].stages["pretrain"].hash != builds[1].stages["pretrain"].hash


def test_the_sweep_of_the_examples_writes_specs_that_check(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "programmatic.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "d128.yaml: 1023 steps" in done.stdout
    sizes = [elaborate(specc.load(path)) for path in sorted(tmp_path.glob("*.yaml"))]
    assert sorted(n_params(p) for p in sizes) == [229440, 529056, 1049216]


def test_a_model_of_the_library_has_the_dims_that_are_asked_for() -> None:
    assert specc.library_model("llama", L=3).dims["L"] == 3
    with pytest.raises(specc.SpecError) as e:
        specc.library_model("llama", LL=3)
    assert e.value.codes == ("S111",)
    with pytest.raises(specc.SpecError) as e:
        specc.library_model("lama")
    assert "did you mean 'llama'" in str(e.value)
