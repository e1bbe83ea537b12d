"""Parallel plans by name: a mesh for a number of ranks, and the placer's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from specc.compiler.placement.place import Options
from specc.compiler.placement.types import Axis, Mesh

MakeMesh = Callable[[int], tuple[Axis, ...]]


@dataclass(frozen=True)
class Plan:
    """`least` and `most` are the numbers of ranks that it is for; `only` the models that it says something about.

    With `sunk`, masks are made where they are used, from attributes of tokens."""

    axes: MakeMesh
    options: Options = field(default_factory=Options)
    least: int = 2
    only: tuple[str, ...] = ()
    most: int = 8
    sunk: bool = False

    def mesh(self, ranks: int) -> Mesh:
        return Mesh(self.axes(ranks))


def dp(n: int) -> Axis:
    return Axis("dp", n, "batch")


def tp(n: int) -> Axis:
    return Axis("tp", n)


def cp(n: int) -> Axis:
    return Axis("cp", n, "sequence")


TOKENS = ("q", "k", "v", "out")
BY_HEADS = {f"layers.attention.{p}": {"up": "split:S"} for p in TOKENS} | {"layers.attention.attend": {"up": "split:H"}}
TEXT = ("llama", "deepseek_v2", "t5", "cogvlm_expert")
CAUSAL = ("llama", "deepseek_v2", "cogvlm_expert")
PLANS: Mapping[str, Plan] = {
    "dp": Plan(lambda n: (dp(n),)),
    "zero1": Plan(lambda n: (dp(n),), Options(zero=1)),
    "zero2": Plan(lambda n: (dp(n),), Options(zero=2)),
    "zero3": Plan(lambda n: (dp(n),), Options(zero=3)),
    "hsdp": Plan(lambda n: (Axis("dp_replicate", 2, "batch"), dp(n // 2)), Options(zero=3), least=4),
    "tp": Plan(lambda n: (tp(n),), Options(sequence_parallel=False)),
    "tp+sp": Plan(lambda n: (tp(n),), Options(sequence_parallel=True)),
    "dp+tp": Plan(lambda n: (dp(2), tp(n // 2)), Options(zero=1, sequence_parallel=False), least=4),
    "zero3+tp+sp": Plan(lambda n: (dp(2), tp(n // 2)), Options(zero=3, sequence_parallel=True), least=4),
    "ep": Plan(lambda n: (Axis("ep", n, "experts"),), only=("deepseek_v2",)),
    "dp+ep": Plan(lambda n: (dp(2), Axis("ep", n // 2, "experts")), Options(zero=2), least=4, only=("deepseek_v2",)),
    "ulysses": Plan(lambda n: (cp(n),), Options(context="ulysses"), only=TEXT),
    "ring": Plan(lambda n: (cp(n),), Options(context="ring"), only=TEXT, sunk=True),
    "ring-dense": Plan(lambda n: (cp(n),), Options(context="ring"), only=("llama",), most=4),
    "gather-kv": Plan(lambda n: (cp(n),), Options(context="gather"), only=TEXT),
    "dp+ring": Plan(lambda n: (dp(2), cp(n // 2)), Options(context="ring", zero=3), least=4, only=TEXT, sunk=True),
    "ring+tp": Plan(lambda n: (cp(n // 2), tp(2)), Options(context="ring"), least=4, only=TEXT, sunk=True),
    "dp+cp+tp": Plan(
        lambda n: (dp(2), cp(2), tp(n // 4)), Options(context="ring", zero=2), least=8, only=TEXT, sunk=True
    ),
    "hybrid": Plan(
        lambda n: (cp(n // 2), Axis("up", 2)),
        Options(context="ring", sequence_parallel=True, split_weights=(), pins=BY_HEADS),
        least=4,
        only=("llama",),
        sunk=True,
    ),
}
