"""Products by oneDNN: the same numbers as torch's own, and only where they are large and fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.graphs import from_json, to_json
from specc.runtime import products
from specc.runtime.products import LARGE, addmm, available, mm, product, with_fast_products

pytestmark = pytest.mark.skipif(not available(), reason="this torch has no oneDNN")
SLOW, FAST = ([f"{library}.{op}.default" for op in ("mm", "mm", "addmm")] for library in ("aten", "specc"))


@pytest.fixture(autouse=True)
def _wide_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def graph(m: int, k: int, n: int, dtype: torch.dtype) -> fx.GraphModule:
    """x [m k] y [k n], and x' x as it is and added to itself, as a loaded graph."""
    with FakeTensorMode():
        x, y = torch.empty(m, k, dtype=dtype), torch.empty(k, n, dtype=dtype)
    return from_json(to_json(make_fx(lambda x, y: [x @ y, z := x.t() @ x, torch.addmm(z, x.t(), x)])(x, y)))


def targets(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if "mm" in str(n.target)]


def test_large_fp32_products_are_replaced_and_agree() -> None:
    gm = with_fast_products(graph(512, 256, 192, torch.float32))
    assert targets(gm) == FAST
    x, y = torch.randn(512, 256), torch.randn(256, 192)
    squared = x.double().t() @ x.double()
    for found, exact in zip(gm(x, y), (x.double() @ y.double(), squared, 2 * squared), strict=True):
        assert found.is_contiguous()
        assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5


@pytest.mark.parametrize(("m", "k", "n", "dtype"), [(64, 64, 64, torch.float32), (512, 256, 192, torch.float64),
                                                     (512, 256, 192, torch.bfloat16)])  # fmt: skip
def test_others_are_left_alone(m: int, k: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bf16", lambda: True)
    assert targets(with_fast_products(graph(m, k, n, dtype))) == SLOW


@pytest.mark.parametrize(("op", "other"), [(mm, []), (addmm, [torch.randn(8, 6)]), (addmm, [torch.randn(6)])])
def test_the_ops_say_their_shapes(op: Callable[..., Tensor], other: list[Tensor]) -> None:
    operands = (*other, torch.randn(8, 4), torch.randn(4, 6))
    torch.library.opcheck(op, operands, test_utils=("test_schema", "test_faketensor"))


def test_strided_operands() -> None:
    x, y = torch.randn(300, 200), torch.randn(300, 400)
    assert x.numel() * 400 >= LARGE
    torch.testing.assert_close(torch.ops.specc.mm.default(x.t(), y), x.t() @ y, rtol=1e-4, atol=1e-4)


def test_bf16_products_are_made_in_fp32_and_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bf16", lambda: False)
    gm = with_fast_products(graph(512, 256, 192, torch.bfloat16))
    assert targets(gm) == FAST
    x, y = torch.randn(512, 256).bfloat16(), torch.randn(256, 192).bfloat16()
    for found, (a, b) in zip(gm(x, y)[:2], ((x, y), (x.t(), x)), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, (a.double() @ b.double()).bfloat16(), rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(product(x, y), gm(x, y)[0], rtol=0, atol=0)


def test_products_stay_where_mkl_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert targets(with_fast_products(graph(512, 256, 192, torch.float32))) == SLOW
