"""Plans in words: a table of the best, the parts of the first, why others lose, and how a spec says it."""

from __future__ import annotations

from collections.abc import Iterator

from specc.compiler.foresight.flops import step_flops
from specc.compiler.foresight.reasons import Reason, mesh_text, offload_text
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.search import Asked, Plan
from specc.compiler.units import size

HEAD = (
    "", "mesh", "zero", "microbatch", "schedule", "recompute", "on host", "step", "work", "sent", "bubble", "memory",
    "MFU causal", "full",
)  # fmt: skip


def table(plans: list[Plan], own: Plan | None, asked: Asked) -> Iterator[str]:
    """A line a plan, under a head; the last one is the spec's own."""
    rows = [HEAD, *(_row(str(i), p, asked) for i, p in enumerate(plans, 1))]
    rows += [_row("own", own, asked)] if own else []
    wide = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        yield "  ".join(word.ljust(n) for word, n in zip(row, wide, strict=True)).rstrip()


def _row(name: str, plan: Plan, asked: Asked) -> tuple[str, ...]:
    r, f = plan.recipe, plan.forecast
    schedule = f"{r.schedule} x{r.chunks}" if r.chunks > 1 else r.schedule if r.pp > 1 else "-"
    shares = (f"{part / f.seconds:.0%}" for part in (f.work + f.optimizer, f.sent + f.host, f.bubble))
    return (
        name, mesh_text(r), str(r.zero), f"{r.microbatch} x{r.microbatches}", schedule, r.recompute, host_text(r),
        f"{f.seconds:.3g} s", *shares, size(f.nbytes), *(f"{share:.1%}" for share in mfu(plan, asked)),
    )  # fmt: skip


def host_text(r: Recipe) -> str:
    """What waits in the host's memory, in a word or two."""
    words = [f"{r.on_host:.0%} of saved"] if r.on_host else []
    return ", ".join([*words, "moments"] if r.moments_on_host else words) or "-"


def mfu(plan: Plan, asked: Asked) -> tuple[float, float]:
    """Model FLOPs over the peak of the format in compute, with causal and with full attention."""
    each = step_flops(asked.model.program, asked.model.sizes(1))
    rate = asked.sequences / plan.forecast.seconds / asked.devices
    peak = asked.cluster.device.peak[asked.form] * 1e12
    return each.causal * rate / peak, each.full * rate / peak


def details(plan: Plan, asked: Asked) -> Iterator[str]:
    """Seconds and memory of the best plan, in parts."""
    f = plan.forecast
    parts = {"work": f.work, "sent and not hidden": f.sent, "bubble": f.bubble, "optimizer": f.optimizer}
    if f.host:
        parts["waits for the host's memory"] = f.host
    yield "1: " + ", ".join(f"{name} {seconds:.2g} s" for name, seconds in parts.items())
    yield "   memory of the fullest device: " + ", ".join(f"{name} {size(n)}" for name, n in f.memory.items())
    if f.on_host:
        device = asked.cluster.device
        room = f" of {size(device.host_memory * 2**30)} for each device" if device.host_memory else ""
        yield f"   in the host's memory: {size(f.on_host)}{room}"


def told(reason: Reason) -> str:
    """`tp 1`: +4.0% at best; or what it lacks."""
    if reason.over:
        return f"  {reason.choice}: out of memory by {size(reason.over)} ({mesh_text(reason.plan.recipe)})"
    return f"  {reason.choice}: {reason.slower:+.1%} ({mesh_text(reason.plan.recipe)})"


def plan_text(plan: Plan, asked: Asked, device: str, stage: str) -> Iterator[str]:
    """The plan as a spec says it."""
    r = plan.recipe
    yield "plan:"
    yield f"  cluster: {{devices: {asked.devices}, device: {device}}}"
    yield f"  mesh: {{{mesh_text(r)}}}"
    yield f"  zero: {r.zero}"
    yield f"  recompute: {r.recompute}"
    if r.on_host or r.moments_on_host:
        yield f"  offload: {{{offload_text(r)}}}"
    if r.pp > 1:
        yield f"  schedule: {{kind: {r.schedule}" + (f", chunks: {r.chunks}}}" if r.chunks > 1 else "}")
    yield f"# with stages.{stage}.batch: {{sequences: {asked.sequences}, microbatch: {r.microbatch * r.dp}}}"
