"""The generated kernels on a device: whether they are right at odd sizes, and how fast they are at a model's sizes.

Times are medians of runs behind a cleared cache, in seconds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.attention import TILES, attentions, make_attention
from specc.compiler.kernels.cross_entropy import SETTINGS, Head, make_cross_entropy, part_of
from specc.compiler.kernels.cut import cut
from specc.compiler.lower.loss import chunk_loss, label_count
from specc.compiler.lower.placed_loss import ATEN, Part
from specc.compiler.lower.run import run_body
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.program import Body
from specc.runtime.rates import clocked, measured
from tests.grid.models import Tracer
from tests.kernels.interpret import called, compared
from tests.kernels.losses import WAYS, computed, errors, made_for
from tests.kernels.losses import drawn as drawn_loss
from tests.kernels.parts import ring_file, ring_of_one
from tests.kernels.regions import Case, attention_case, broadcasts, cases, loaded, operands

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # a GPU sums in another order than fp64 does
RUNS = 20
FLUSH = 1 << 28  # bytes that are written before each run, more than caches hold
Call = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """A decoder's, and the tokens of a step."""

    dims: dict[str, int]
    batch: int
    length: int

    def model(self) -> Tracer:
        return Tracer("llama", self.dims, {"B": self.batch, "S": self.length}, "causal_lm")


LARGE = Sizes({"D": 4096, "L": 1, "H": 32, "K": 8, "F": 14336, "V": 128256}, 2, 4096)  # Llama-3.1-8B's
SMALL = Sizes({"D": 64, "L": 1, "H": 4, "K": 2, "F": 96, "V": 128}, 1, 32)


@dataclass(frozen=True)
class Row:
    """What a kernel's work takes by each who can do it; `bound` is what the device's memory or products would take."""

    name: str
    work: str
    backward: bool
    bound: float
    seconds: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        best = min(self.seconds, key=lambda n: self.seconds[n])
        each = "  ".join(f"{n} {1e6 * s:.0f}" for n, s in self.seconds.items())
        passes = "both passes" if self.backward else "forward"
        return f"{self.name:34} {passes:11} us: {each}; {best} wins, triton at {self.share():.2f} of {self.work}"

    def share(self) -> float:
        """Of the bound, that the best setting of ours reaches."""
        return self.bound / min((s for n, s in self.seconds.items() if n.startswith("triton")), default=float("inf"))


def right(device: torch.device) -> Iterator[dict[str, Any]]:
    """The errors of every region, attention and loss under each of its settings, against fp64 on the CPU."""
    folder = Path(tempfile.mkdtemp())
    for case in [*cases(torch.float32), *broadcasts(torch.float32), *cases(torch.bfloat16)]:
        module = loaded(case.made, folder)
        for i in range(max(len(c) for c in module.CONFIGS.values())):
            choose(module, i)
            forward, backward = compared(case, [x.to(device) for x in operands(case)])
            yield {
                "name": case.made.name, "model": case.model, "dtype": str(case.dtype), "setting": i,
                "forward": forward, "backward": backward, "met": max(forward, backward) <= TOLERANCE[case.dtype],
            }  # fmt: skip
    yield from right_losses(device, folder)
    yield from right_rings(device, folder)


def right_losses(device: torch.device, folder: Path) -> Iterator[dict[str, Any]]:
    for dtype, n_parts in WAYS:
        made, (logits, labels) = made_for(n_parts, dtype), drawn_loss(dtype)
        module = loaded(made, folder)
        parts = [x.contiguous().to(device) for x in logits.chunk(n_parts, 1)]
        for i in range(len(SETTINGS)):
            choose(module, i)
            loss, gradient = errors(computed(made.name, parts, labels.to(device)), logits, labels)
            yield {
                "name": made.name, "model": "losses", "dtype": str(dtype), "setting": i, "forward": loss,
                "backward": gradient, "met": max(loss, gradient) <= TOLERANCE[dtype],
            }  # fmt: skip


def right_rings(device: torch.device, folder: Path) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32, torch.bfloat16):
        made = ring_file(dtype)
        module = loaded(made, folder)
        for i in range(max(map(len, TILES.values()))):
            choose(module, i)
            found = ring_of_one(made.name, dtype, device)
            met = max(found.values()) <= TOLERANCE[dtype]
            yield {"name": made.name, "model": "ring", "dtype": str(dtype), "setting": i, **found, "met": met}


def rows_of(device: torch.device, sizes: Sizes, compiled: bool = True) -> Iterator[Row]:
    """Every kernel of a decoder in bf16, forward alone and with its backward, beside ATen, Inductor and libraries."""
    folder, program = Path(tempfile.mkdtemp()), sink_masks(sizes.model().program())
    rates = measured(torch.bfloat16, device)
    open_sizes = {"B": sizes.batch, "S": sizes.length}
    for body in program.bodies.values():
        found = cut(body, open_sizes, torch.bfloat16)
        for name, made in found.made.items():
            region = found.regions[name].body
            case = Case("llama", region, made, torch.bfloat16, tuple(range(len(region.ins))))
            yield from rows(case, open_sizes, device, folder, compiled, rates.bytes, {})
        for out, a in attentions(body).items():
            made = make_attention(a, torch.bfloat16)
            case = attention_case("llama", body, out, made, torch.bfloat16)
            yield from rows(case, open_sizes, device, folder, compiled, rates.flops, sdpa(sizes, device), causal=sizes)
    yield from (loss_row(sizes, device, folder, compiled, rates.bytes, n_parts) for n_parts in (1, 8))
    yield from library_rows(sizes, device, rates.bytes)


def rows(
    case: Case, open_sizes: dict[str, int], device: torch.device, folder: Path, compiled: bool, rate: float,
    others: dict[str, tuple[Call, Call]], causal: Sizes | None = None,
) -> Iterator[Row]:  # fmt: skip
    """A kernel's forward pass, and both passes."""
    module = loaded(case.made, folder)
    ins = drawn(case.body, open_sizes, device)
    outs = run_body(case.body, [x.detach() for x in ins], (), open_sizes)
    forward_bytes = sum(x.nbytes for x in (*ins, *outs))
    both_bytes = forward_bytes + sum(2 * x.nbytes for x in ins if x.requires_grad) + sum(x.nbytes for x in outs)
    flops = causal_flops(causal) if causal else 0.0
    ways: dict[str, Callable[..., Sequence[Tensor]]] = {"aten": lambda *xs: run_body(case.body, xs, (), open_sizes)}
    if compiled:
        ways["inductor"] = torch.compile(ways["aten"])
    for backward in (False, True):
        work = flops * (3.5 if backward else 1.0) if causal else float(both_bytes if backward else forward_bytes)
        seconds = {n: timed(step(way, ins, backward), device) for n, way in ways.items()}
        for i in range(max(len(c) for c in module.CONFIGS.values())):
            choose(module, i)
            seconds[f"triton-{i}"] = timed(step(lambda *xs: called(case, list(xs)), ins, backward), device)
        seconds |= {n: timed(pair[backward], device) for n, pair in others.items()}
        yield Row(case.made.name, "the product rate" if causal else "the copy rate", backward, work / rate, seconds)


def step(way: Callable[..., Sequence[Tensor]], ins: Sequence[Tensor], backward: bool) -> Call:
    """A call, with gradients of all that has some if `backward`."""
    wanted = [x for x in ins if x.requires_grad]

    def run() -> object:
        if not backward:
            with torch.no_grad():
                return way(*ins)
        outs = [o for o in way(*ins) if o.requires_grad]
        return torch.autograd.grad(outs, wanted, [torch.ones_like(o) for o in outs], allow_unused=True)

    return run


def sdpa(sizes: Sizes, device: torch.device) -> dict[str, tuple[Call, Call]]:
    """torch's own causal attention of the same heads (FlashAttention where torch takes it), and FlexAttention."""
    d = sizes.dims
    each, kind = d["D"] // d["H"], {"device": device, "dtype": torch.bfloat16}
    q = torch.randn(sizes.batch, d["H"], sizes.length, each, **kind).requires_grad_()  # type: ignore[arg-type]
    k, v = (torch.randn(sizes.batch, d["K"], sizes.length, each, **kind).requires_grad_() for _ in range(2))  # type: ignore[arg-type]
    attend = torch.nn.functional.scaled_dot_product_attention

    def torch_own(*xs: Tensor) -> list[Tensor]:
        return [attend(*xs, is_causal=True, enable_gqa=True)]

    found = {"sdpa": torch_own}
    if device.type == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, sizes.length, sizes.length, device=device)
        flex: Any = torch.compile(flex_attention)
        found["flex"] = lambda *xs: [flex(*xs, block_mask=mask, enable_gqa=True)]
    return {n: (step(way, (q, k, v), False), step(way, (q, k, v), True)) for n, way in found.items()}


def loss_row(sizes: Sizes, device: torch.device, folder: Path, compiled: bool, rate: float, n_parts: int) -> Row:
    """A chunk of logits to losses and their gradient in one pass, or what one rank of several does of it in two."""
    vocab = sizes.dims["V"] // n_parts
    made = make_cross_entropy(Head(vocab, n_parts > 1, "the head"), torch.bfloat16)
    module, n = loaded(made, folder), min(sizes.batch * sizes.length, 1024)
    logits = torch.randn(n, vocab, device=device, dtype=torch.bfloat16)
    labels = torch.randint(0, sizes.dims["V"], (n,), device=device)
    count, places = label_count(labels), torch.arange(vocab, device=device)

    def alone(x: Tensor) -> object:
        return chunk_loss(x.float(), labels, count)

    def with_others(x: Tensor, part: Part = ATEN) -> object:
        log_z = part.terms(x, labels, places)[0]
        return part.gradient(x, labels, places, log_z, count)

    def ours() -> object:
        if n_parts == 1:
            return getattr(torch.ops.specc, made.name)(logits, labels, count)
        return with_others(logits, part_of(made.name))

    theirs: Callable[[Tensor], object] = alone if n_parts == 1 else lambda x: with_others(x.float())
    seconds = {"aten": timed(lambda: theirs(logits), device)}
    if compiled:
        by = torch.compile(theirs)
        seconds["inductor"] = timed(lambda: by(logits), device)
    for i in range(len(SETTINGS)):
        choose(module, i)
        seconds[f"triton-{i}"] = timed(ours, device)
    moved = (2 if n_parts == 1 else 3) * logits.nbytes
    return Row(made.name, "the copy rate", True, moved / rate, seconds)


def library_rows(sizes: Sizes, device: torch.device, rate: float) -> Iterator[Row]:
    """Liger-Kernel's norm, gated unit and loss at the same sizes, where it is installed, as shares of the copy rate."""
    try:
        from liger_kernel.transformers.functional import (
            liger_cross_entropy,
            liger_rms_norm,
            liger_swiglu,
        )
    except ImportError:
        return
    n, d = sizes.batch * sizes.length, sizes.dims
    kind: Any = {"device": device, "dtype": torch.bfloat16}
    x, w = torch.randn(n, d["D"], **kind).requires_grad_(), torch.randn(d["D"], **kind).requires_grad_()
    a, b = (torch.randn(n, d["F"], **kind).requires_grad_() for _ in range(2))
    logits = torch.randn(min(n, 1024), d["V"], **kind).requires_grad_()
    labels = torch.randint(0, d["V"], (logits.shape[0],), device=device)
    ways: list[tuple[str, Callable[..., Sequence[Tensor]], Sequence[Tensor], int]] = [
        ("liger rms_norm", lambda *xs: [liger_rms_norm(*xs, 1e-5)], (x, w), 5 * x.nbytes),
        ("liger swiglu", lambda *xs: [liger_swiglu(*xs)], (a, b), 8 * a.nbytes),
        ("liger cross_entropy", lambda z: [liger_cross_entropy(z, labels)], (logits,), 2 * logits.nbytes),
    ]
    for name, way, ins, moved in ways:
        yield Row(name, "the copy rate", True, moved / rate, {"triton (liger)": timed(step(way, ins, True), device)})


def drawn(body: Body, sizes: dict[str, int], device: torch.device) -> list[Tensor]:
    """Operands of a body; all tokens are of one document."""
    made: list[Tensor] = []
    for v in body.ins:
        shape = v.type.shape(sizes)
        if v.type.dtype == "float":
            made.append(torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_())
        else:
            made.append(torch.zeros(shape, device=device, dtype=torch.int64 if v.type.dtype == "int" else torch.bool))
    return made


def causal_flops(sizes: Sizes) -> float:
    return 2.0 * sizes.batch * sizes.length**2 * sizes.dims["D"]


def timed(run: Call, device: torch.device) -> float:
    """The median of runs behind a cleared cache."""
    on_gpu = device.type == "cuda"
    dirty = torch.empty(FLUSH if on_gpu else 1, device=device, dtype=torch.uint8)
    return statistics.median(clocked(run, device, RUNS if on_gpu else 1, dirty.zero_))


def choose(module: ModuleType, i: int) -> None:
    """The i-th setting of each kernel of a file, or its last."""
    module.CHOSEN.update({kind: min(i, len(configs) - 1) for kind, configs in module.CONFIGS.items()})
