"""What Inductor makes of a graph for a processor, kept as a program that needs no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.graphs import from_json, to_json
from specc.compiler.imports import IS_FOR_GPUS
from specc.runtime import standalone

PROGRAM = """
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.select_algorithm import extern_kernels
from torch._inductor.runtime.runtime_utils import assert_tensor_metadata
async_compile = AsyncCompile()
cpp_fused_add_0 = async_compile.cpp_pybinding(['float*'], 'void kernel(float* x) {}')
async_compile.wait(globals())
del async_compile
def call(args):
    x, = args
    args.clear()
    extern_kernels.mm(x, x, out=x)
    cpp_fused_add_0(x)
    return (x,)
def get_args():
    from torch._dynamo.testing import rand_strided
if __name__ == "__main__":
    from torch._inductor.wrapper_benchmark import compiled_module_main
"""


def test_a_program_loses_the_compiler() -> None:
    found = standalone.program_of(PROGRAM)
    assert found is not None
    text, ((library, made),) = found[0], found[1].items()
    assert made == (["float*"], "void kernel(float* x) {}")
    assert f"cpp_fused_add_0 = kernel_of(__file__, '{library}')" in text
    assert "_inductor" not in text
    assert "get_args" not in text


@pytest.mark.parametrize(("size", "stride", "dtype"), [
    ((2, 4), (4, 1), torch.float32), ((2, 3), (1, 2), torch.float32), ((2, 3), (3, 1), torch.float64),
])  # fmt: skip
def test_results_that_are_not_as_told_are_found_out(
    size: tuple[int, int], stride: tuple[int, int], dtype: torch.dtype
) -> None:
    x = torch.ones(2, 3)
    standalone.assert_tensor_metadata(x, (2, 3), (3, 1), torch.float32, "an op")
    with pytest.raises((AssertionError, RuntimeError), match="an op"):
        standalone.assert_tensor_metadata(x, size, stride, dtype, "an op")


@pytest.mark.parametrize(("old", "new"), [
    ("extern_kernels.mm", "extern_kernels.bias_addmm"),  # a product that is none of torch's
    # What the compiler puts in from outside.
    ("def call(args):\n    x, = args", "constant0 = None  # 1f\ndef call(args):\n    x = args[0] + constant0"),
    ("    x, = args\n", "    x, = args\n    x = x + constant1\n"),
    ("def call(", "def run("),
    ("import AsyncCompile", "import AsyncCompile, CompiledTriton"),
    ("async_compile.wait(globals())", "async_compile.triton('x')"),
    ("(['float*'], '", "(['float*'], num_threads=2, text='"),
    ("    x, = args\n", "    from torch._inductor import config\n    x, = args\n"),
])  # fmt: skip
def test_one_that_uses_more_is_not_kept(old: str, new: str) -> None:
    assert old in PROGRAM
    assert standalone.program_of(PROGRAM.replace(old, new)) is None


def test_what_is_damaged_or_has_no_place_is_not_there(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / standalone.PROGRAM).write_text("def call(args): return args[:]\n")
    (whole / standalone.TABLES).write_text("null")
    found = standalone.load(whole)
    assert found is not None
    assert found([torch.ones(1)])[0] == 1.0
    for name, text in [("program.py", ""), ("program.py", "def call("), ("tables.json", "["), ("tables.json", "")]:
        damaged = tmp_path / "damaged"
        shutil.copytree(whole, damaged)
        (damaged / name).write_text(text)
        assert standalone.load(damaged) is None
        shutil.rmtree(damaged)
    (whole / standalone.TABLES).unlink()
    assert standalone.load(whole) is None
    plain = "import math\ndef call(args):\n    return args[:]\n"
    (tmp_path / "file").write_text("")
    assert standalone.keep(tmp_path / "file" / "key", plain, None) is None
    assert standalone.keep(whole, plain, None) is not None  # in the place of what is damaged
    stale = tmp_path / "tmp_of_one_that_was_killed"
    stale.mkdir()
    os.utime(stale, (0, 0))
    assert standalone.keep(tmp_path / "other", plain, None) is not None
    assert not stale.exists()
    assert (whole / standalone.PROGRAM).is_file()


def turned(x: Tensor, w: Tensor, at: Tensor) -> list[Tensor]:
    """x [8 heads 64 16] turned by angles, products, a sum over rows."""
    angle = at[:, None] * torch.arange(16.0)
    y = x * angle.cos() + (x @ w) * angle.sin()
    return [y, y.reshape(-1, 16).sum(0), torch.nn.functional.gelu(y).amax(-1)]


LOAD = """
import sys
from pathlib import Path
import torch
from specc.compiler.graphs import from_json
from specc.runtime.compile import callable_of
torch.set_num_threads(1)
xs = [torch.randn(8, 4, 64, 16, generator=torch.Generator().manual_seed(0)), torch.ones(16, 16), torch.arange(64.0)]
for y in callable_of(from_json(Path(sys.argv[1]).read_text()), True)(xs):
    print(y.contiguous().numpy().tobytes().hex())
print(*(m in sys.modules for m in ("torch._inductor", "torch._dynamo", "triton")))
"""


@pytest.mark.slow
def test_a_process_without_the_compiler_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    x = torch.randn(8, 4, 64, 16, generator=torch.Generator().manual_seed(0))
    xs = x, torch.ones(16, 16), torch.arange(64.0)
    (tmp_path / "graph.json").write_text(to_json(make_fx(turned, tracing_mode="fake")(*xs)), encoding="utf-8")
    kept = tmp_path / "cache" / "specc"

    def elsewhere() -> tuple[list[str], str]:
        command = [sys.executable, "-P", "-c", LOAD, str(tmp_path / "graph.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        *results, modules = done.stdout.splitlines()
        return results, modules

    first, modules = elsewhere()
    assert modules.startswith("True")
    (folder,) = kept.iterdir()
    for found, wanted in zip(first, turned(*xs), strict=True):
        got = torch.frombuffer(bytearray.fromhex(found), dtype=torch.float32).view(wanted.shape)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert elsewhere() == (first, f"False False {IS_FOR_GPUS}")
    next(folder.glob("*.so")).unlink()  # a part of it is lost: it is made again
    again, modules = elsewhere()
    assert again == first
    assert modules.startswith("True")
    assert [*kept.iterdir()] == [folder]


def test_a_graph_says_the_same_after_it_was_read() -> None:
    text = to_json(
        make_fx(turned, tracing_mode="fake")(torch.randn(8, 4, 64, 16), torch.randn(16, 16), torch.arange(64.0))
    )
    assert to_json(from_json(text)) == text
