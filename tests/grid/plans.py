"""Parallel plans by name: a mesh for a number of ranks, and the placer's options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from specc.compiler.placement.place import Options
from specc.compiler.placement.types import Axis, Mesh

MakeMesh = Callable[[int], tuple[Axis, ...]]


@dataclass(frozen=True)
class Plan:
    """`least` and `most` are the numbers of ranks that it is for; `only` the models that it says something about.

    With `sunk`, masks are made where they are used, from attributes of tokens. A pipeline has a `schedule`, and a step
    so many `microbatches`. With `recompute`, calls keep nothing for their backward; `share` is
    that of the bytes that they keep otherwise, `offload` that of those that wait on the host."""

    axes: MakeMesh
    options: Options = field(default_factory=Options)
    least: int = 2
    only: tuple[str, ...] = ()
    most: int = 8
    sunk: bool = False
    schedule: str = ""
    microbatches: int = 2
    recompute: bool = False
    share: float = 1.0
    offload: float = 0.0

    def mesh(self, ranks: int) -> Mesh:
        return Mesh(self.axes(ranks))


def dp(n: int) -> Axis:
    return Axis("dp", n, "batch")


def tp(n: int) -> Axis:
    return Axis("tp", n)


def cp(n: int) -> Axis:
    return Axis("cp", n, "sequence")


def pp(n: int) -> Axis:
    return Axis("pp", n, "stages")


def staged(schedule: str, only: tuple[str, ...], microbatches: int = 4) -> Plan:
    """A pipeline alone, on 2 and 4 ranks."""
    return Plan(lambda n: (pp(n),), only=only, most=4, sunk=True, schedule=schedule, microbatches=microbatches)


def crossed(
    inner: Axis,
    options: Options,
    schedule: str = "1f1b",
    only: tuple[str, ...] = ("llama_deep", "t5"),
    microbatches: int = 4,
) -> Plan:
    """A pipeline whose ranks are meshes of their own."""
    return Plan(lambda n: (pp(n // inner.size), inner), options, 4, only, 8, True, schedule, microbatches)


TOKENS = ("q", "k", "v", "out")
BY_HEADS = {f"layers.attention.{p}": {"up": "split:S"} for p in TOKENS} | {"layers.attention.attend": {"up": "split:H"}}
TEXT = ("llama", "deepseek_v2", "t5", "cogvlm_expert")
DEEP = ("llama_deep", "gpt2_deep")
CAUSAL = ("llama", "deepseek_v2", "cogvlm_expert")
PLANS: dict[str, Plan] = {
    "alone": Plan(lambda n: (), least=1, most=1),
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
    "1f1b": staged("1f1b", (*DEEP, "t5", "deepseek_v2", "sd3")),
    "1f1b-two": Plan(lambda n: (pp(n),), only=("cogvlm_expert",), most=2, sunk=True, schedule="1f1b", microbatches=4),
    "1f1b-few": staged("1f1b", ("llama",), 2),
    "gpipe": staged("gpipe", (*DEEP, "t5")),
    "interleaved": staged("interleaved", DEEP),
    "zb-h1": staged("zb-h1", (*DEEP, "t5", "sd3")),
    "zb-v": staged("zb-v", DEEP),
    "dualpipe-v": staged("dualpipe-v", DEEP, 8),
    "pp+zero1": crossed(dp(2), Options(zero=1), "zb-v", DEEP),
    "pp+zero2": crossed(dp(2), Options(zero=2), "zb-h1"),
    "pp+zero3": crossed(dp(2), Options(zero=3)),
    "pp+zero3-zb-v": crossed(dp(2), Options(zero=3), "zb-v", DEEP),
    "pp+tp": crossed(tp(2), Options(sequence_parallel=True)),
    "pp+tp-dualpipe-v": crossed(tp(2), Options(sequence_parallel=False), "dualpipe-v", DEEP, 8),
    "pp+ring": crossed(cp(2), Options(context="ring")),
    "pp+ep": crossed(Axis("ep", 2, "experts"), Options(), only=("deepseek_v2",)),
    "pp+dp+tp": Plan(lambda n: (pp(n // 4), dp(2), tp(2)), Options(zero=3), 8, ("llama_deep",), 8, True, "1f1b", 4),
}
RECOMPUTED = ("zero3", "tp", "ring", "1f1b", "zb-h1", "pp+zero3")
PLANS |= {f"{name}-recompute": replace(PLANS[name], recompute=True) for name in RECOMPUTED}
OFFLOADED = ("alone", "zero1", "zero3", "tp", "ring", "ep", "1f1b", "zb-h1", "pp+zero3")
PLANS |= {f"{name}-offload": replace(PLANS[name], offload=0.5) for name in OFFLOADED}
PLANS |= {f"{name}-half": replace(PLANS[name], share=0.5) for name in RECOMPUTED}
