"""Specs that are small and would grow without end: each is refused soon, with a code."""

from __future__ import annotations

import pytest

from specc.compiler.elaborate import elaborate
from specc.spec.errors import SpecError
from specc.spec.spec import Spec
from tests.pace import within

MODEL = """specc: 1
model:
  dims: {D: 8, H: 2, E: 4}
  inputs: {x: 'float[B S D]'}
"""
CHAIN = "".join(f"    b{i}: {{in: {{x: [B S D]}}, steps: [b{i + 1}, b{i + 1}]}}\n" for i in range(40))
TILES = "".join(
    f"    b{i}: {{in: {{x: [B S D]}}, steps: [repeat: {{block: b{i + 1}, times: 4096}}]}}\n" for i in range(8)
)
MASKS = "".join(f"    m{i}(n): m{i + 1}({' + '.join(['n'] * 20)})\n" for i in range(14))
WIDE = "".join(f"    w{i}: {' & '.join([f'w{i + 1}'] * 40)}\n" for i in range(14))
BOMBS = {
    "blocks": MODEL + f"  blocks:\n{CHAIN}    b40: {{in: {{x: [B S D]}}, steps: [rms_norm]}}\n  steps: [b0]\n",
    "repeats": MODEL + f"  blocks:\n{TILES}    b8: {{in: {{x: [B S D]}}, steps: [rms_norm]}}\n  steps: [b0]\n",
    "empty repeats": MODEL + f"  blocks:\n{TILES}    b8: {{in: {{x: [B S D]}}, steps: []}}\n  steps: [b0]\n",
    "mask arguments": MODEL + f"  masks:\n{MASKS}    m14(n): n < 3\n"
    "  steps: [attention: {heads: H, head_dim: E, mask: m0(k.index)}]\n",
    "mask names": MODEL + f"  masks:\n{WIDE}    w14: causal\n"
    "  steps: [attention: {heads: H, head_dim: E, mask: w0}]\n",
    "mask circle": MODEL + "  masks: {a: b, b: a}\n  steps: [attention: {heads: H, head_dim: E, mask: a}]\n",
    "masks": MODEL + "  masks: {" + ", ".join(f"a{i}: causal" for i in range(5000)) + "}\n  steps: [rms_norm]\n",
    "power": MODEL + "  steps: [linear: {out: 9 ** 9 ** 9}]\n",
    "powers": MODEL + "  steps: [linear: {out: (2 ** 64) ** 64}]\n",
    "products": MODEL + f"  steps: [linear: {{out: {' * '.join(['2 ** 60'] * 40)}}}]\n",
    "infinite": MODEL + "  steps: [linear: {out: 1e300 * 1e300}]\n",
    "no number": MODEL + "  steps: [linear: {out: 1e300 * 1e300 - 1e300 * 1e300}]\n",
    "complex": MODEL + "  steps: [linear: {out: (0 - 8) ** 0.5}]\n",
    "signs": MODEL + f"  steps: [linear: {{out: '{'-' * 399}1'}}]\n",
    "long": MODEL + f"  steps: [linear: {{out: '{'1+' * 1000}1'}}]\n",
    "digits": MODEL + f"  steps: [linear: {{out: '{'9' * 390}'}}]\n",
    "open sums": MODEL + "  steps:\n" + "    - concat: {over: S, from: [_, _]}\n" * 60,
    "mistakes": MODEL + "  steps:\n" + "    - nothing\n" * 4000,
    "keys": MODEL + "  steps: [rms_norm]\n" + "".join(f"  k{i}: 1\n" for i in range(6000)),
    "steps": MODEL + "  steps:\n" + "    - rms_norm: {scale: false}\n" * 5500,
    "entries": MODEL + "  blocks: {b: {args: {n: int}, in: {x: [B S D]}, steps: []}}\n"
    "  steps: [repeat: {block: b, each: {n: [" + "1, " * 19000 + "1]}}]\n",
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon(name: str) -> None:
    with within(2.0), pytest.raises(SpecError):
        elaborate(Spec.from_yaml(BOMBS[name], "m.yaml"))
