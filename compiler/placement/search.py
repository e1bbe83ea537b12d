"""The search around the solver: layouts between calls, ZeRO stages, and memory.

Memory is met by a price of a byte that grows (Lagrange), and for each price by the exact knapsack of `params`: prices
choose how weights are used and what waits for the backward, the knapsack which weights stay whole, so that a plan
fills the room that is left between two prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from specc.compiler.placement.boundary import Group
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.options import Options
from specc.compiler.placement.params import Kept, Stage, Way, keep, ways
from specc.compiler.placement.problem import Price, Problem, Solved
from specc.compiler.placement.refuse import no_plan, no_room, too_wide
from specc.compiler.placement.solve import TooLarge
from specc.compiler.placement.tables import solve
from specc.compiler.placement.types import Layout, R, S, V, fits
from specc.compiler.program import Program
from specc.compiler.types import TensorType

Between = Sequence[Layout]  # of each group of values between calls
PRICES = tuple(4.0**k for k in range(-4, 6))  # over what a byte costs on average
ENOUGH = 3  # prices at which something fits
MAX_STARTS = 4  # rules for layouts between calls that are tried under a price
LIGHT = 1e-15  # seconds for a byte of a parameter where memory is no matter: of equal plans the one with smaller parts
BETTER = 1e-3  # part of the seconds that another layout between calls must save


@dataclass(frozen=True)
class Plan:
    """A solved program: what its bodies do, layouts between calls, kept parameters; seconds and bytes of a step."""

    bodies: Mapping[str, Solved]
    between: tuple[Layout, ...]
    values: Mapping[str, Layout]  # the same by the names of the program's values
    kept: Kept
    zero: int
    seconds: float
    nbytes: float


@dataclass(frozen=True)
class Task:
    """What is searched for."""

    program: Program
    machine: Machine
    sizes: Mapping[str, int]
    options: Options
    problems: Mapping[str, Problem]
    between: tuple[Group, ...]
    _memo: dict[tuple[object, ...], Solved | None] = field(default_factory=dict)
    _ways: dict[tuple[object, ...], list[Way]] = field(default_factory=dict)

    @cached_property
    def times(self) -> Counter[str]:
        return Counter(c.body for c in self.program.calls)

    @cached_property
    def inputs(self) -> dict[str, frozenset[str]]:
        """Operands of each body that are inputs of the program: they have no gradient."""
        given = {s for g in self.between if set(g.values) & set(self.program.inputs) for s in g.slots}
        return {n: frozenset(s.name for s in given if s.body == n) for n in self.problems}

    def solve(self, name: str, at: Mapping[tuple[str, str], Layout], stage: Stage, per_byte: float) -> Solved | None:
        """One body, remembered by the layouts around it."""
        p = self.problems[name]
        ins, outs = [at[name, v.name] for v in p.body.ins], [at[name, o] for o in p.body.outs]
        key = (name, tuple(ins), tuple(outs), stage, per_byte)
        if key not in self._memo:
            held = 0.0 if self.options.recompute else per_byte
            try:
                self._memo[key] = solve(p, ins, outs, self.price(stage, per_byte), self.inputs[name], held)
            except TooLarge:
                raise too_wide(name) from None
        return self._memo[key]

    def price(self, stage: Stage, per_byte: float) -> Price:
        """What a parameter in a layout of use costs, kept in the cheapest way."""

        def price(t: TensorType, use: Layout) -> float:
            key = (t, use, stage, per_byte > 0)
            if key not in self._ways:
                self._ways[key] = ways(t, [use], stage, self.machine, self.sizes, tight=per_byte > 0)
            return min(w.seconds + max(per_byte, LIGHT) * w.nbytes for w in self._ways[key])

        return price


def search(task: Task, starts: Sequence[Between]) -> Plan:
    """The fastest plan that fits; `starts` are the layouts between calls to choose from."""
    options = task.options
    capacity = options.capacity or (options.device.memory if options.zero == "auto" else None)
    found: list[Plan] = []
    least = float("inf")
    for stage in stages(options):
        free = [p for s in starts if (p := _plan(task, s, stage, 0.0, None)) is not None]
        if not free:
            raise no_plan(task.machine.mesh)
        best = _refined(task, min(free, key=lambda p: p.seconds), stage)
        if capacity is None or best.nbytes <= capacity:
            found.append(best)
            continue
        tried = list(_pressed(task, _leading(free), stage, best, capacity))
        least = min([least, *(p.nbytes for p in tried)])
        found += [p for p in tried if p.nbytes <= capacity]
    if not found:
        assert capacity is not None
        raise no_room(least, capacity, task.machine.mesh)
    return min(found, key=lambda p: (p.seconds, p.zero))


def stages(options: Options) -> list[Stage]:
    if options.zero != "auto":
        return [Stage(options.zero)]
    return [Stage(0), Stage(1), Stage(2), Stage(3, mixed=True)]


def _leading(plans: Sequence[Plan]) -> list[Between]:
    """The fastest starts, and the one that needs least."""
    ranked = sorted(plans, key=lambda p: p.seconds)[:MAX_STARTS]
    least = min(plans, key=lambda p: p.nbytes)
    return list(dict.fromkeys(p.between for p in (*ranked, least)))


def _pressed(task: Task, starts: Sequence[Between], stage: Stage, free: Plan, capacity: float) -> Iterator[Plan]:
    """Plans under growing prices of a byte, until a few fit: higher prices give slower plans."""
    average = free.seconds / free.nbytes
    fitting = 0
    for price in (0.0, *(average * k for k in PRICES)):
        plans = [p for start in starts if (p := _plan(task, start, stage, price, capacity)) is not None]
        yield from plans
        fitting += any(p.nbytes <= capacity for p in plans)
        if fitting >= ENOUGH:
            return


def _plan(task: Task, between: Between, stage: Stage, per_byte: float, capacity: float | None) -> Plan | None:
    """Each body once for the layouts between calls; None if some body has no way. It may need more than there is."""
    bodies = _bodies(task, between, stage, per_byte)
    if bodies is None:
        return None
    placed = {n: s.placed for n, s in bodies.items()}
    held = _held(task, bodies, between)
    kept = keep(task.program, placed, stage, task.machine, task.sizes, None if capacity is None else capacity - held)
    seconds = kept.seconds + sum(task.times[n] * s.seconds for n, s in bodies.items())
    values = {v: at for g, at in zip(task.between, between, strict=True) for v in g.values}
    return Plan(bodies, tuple(between), values, kept, stage.zero, seconds, held + kept.nbytes)


def _bodies(task: Task, between: Between, stage: Stage, per_byte: float) -> dict[str, Solved] | None:
    at = {(s.body, s.name): layout for g, layout in zip(task.between, between, strict=True) for s in g.slots}
    found: dict[str, Solved] = {}
    for name in task.problems:
        one = task.solve(name, at, stage, per_byte)
        if one is None:
            return None
        found[name] = one
    return found


def _held(task: Task, bodies: Mapping[str, Solved], between: Between) -> float:
    """Bytes that wait for the backward at its begin."""
    if not task.options.recompute:
        return sum(task.times[n] * s.held for n, s in bodies.items())
    pairs = zip(task.between, between, strict=True)
    each = (len(g.values) * task.machine.nbytes(g.type, at, task.sizes) for g, at in pairs if g.type.dtype != "bool")
    return sum(each) + max(s.held for s in bodies.values())


def _refined(task: Task, plan: Plan, stage: Stage) -> Plan:
    """One value between calls after another in other layouts along the free axes, while that saves seconds."""
    for k, group in enumerate(task.between):
        for other in _others(task, group, plan.between[k]):
            tried = _plan(task, (*plan.between[:k], other, *plan.between[k + 1 :]), stage, 0.0, None)
            if tried is not None and tried.seconds < plan.seconds * (1 - BETTER):
                plan = tried
    return plan


def _others(task: Task, group: Group, at: Layout) -> Iterator[Layout]:
    """What no rule names: dims that are neither batch nor sequence, and gradients in parts."""
    if group.is_index or not group.type.dims or task.program.loss in group.values:
        return
    marked = set(group.marks.values())
    for a, axis in enumerate(task.machine.mesh.axes):
        if axis.role != "free" or at[a].kind == "S":
            continue
        for place in (V, *(S(d) for d in range(len(group.type.dims)) if d not in marked)):
            other = (*at[:a], place if at[a] == R else R, *at[a + 1 :])
            if fits(group.type, other, task.machine.mesh, task.sizes):
                yield other
