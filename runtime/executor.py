"""Executes the schedule's actions over a program's calls, without autograd: the backward is in the graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action

Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Compiled:
    """A body's callables and how their operands and results are laid out (see compiler.graphs.Graphs)."""

    fwd: Function
    bwd: Function | None
    bwd_input: Function | None
    bwd_weight: Function | None
    n_outs: int
    in_grads: tuple[bool, ...]
    param_grads: tuple[bool, ...]
    out_grads: tuple[bool, ...]


@dataclass(frozen=True)
class StepResult:
    """Losses by microbatch, gradients by parameter path, and the named outputs of the last microbatch."""

    losses: list[Tensor]
    grads: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass
class _State:
    """What is alive while a schedule runs; keys carry the microbatch."""

    params: dict[str, Tensor]
    values: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    d_values: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    saved: dict[tuple[int, int], Sequence[Tensor]] = field(default_factory=dict)
    live: dict[tuple[int, int], Sequence[Tensor]] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)


class Executor:
    """Runs one step of a schedule. Values go at their last use, which the schedule tells."""

    def __init__(
        self, calls: Sequence[Call], bodies: Mapping[str, Compiled], actions: Sequence[Action], loss: str | None,
        outputs: Mapping[str, str], trainable: frozenset[str], compute: torch.dtype,
        reduce: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.calls, self.bodies, self.actions = calls, bodies, actions
        self.loss, self.outputs, self.trainable = loss, dict(outputs), trainable
        self.compute, self.reduce = compute, reduce
        self.kept = set(outputs.values()) | ({loss} if loss else set())
        self.idle = self._idle_outs()
        self.last_use = self._last_uses()

    def _idle_outs(self) -> set[str]:
        """Values with a gradient that no later call gives: outputs beside the loss, say."""
        bodies = [(c, self.bodies[c.body]) for c in self.calls]
        fed = {v for c, b in bodies for v, flows in zip(c.ins, b.in_grads, strict=True) if flows}
        outs = {v for c, b in bodies for v, flows in zip(c.outs, b.out_grads, strict=True) if flows}
        return outs - fed - {self.loss or ""}

    def _last_uses(self) -> list[list[tuple[int, str]]]:
        """For each action the values that no later action reads: those that forward passes take."""
        last: dict[tuple[int, str], int] = {}
        for i, a in enumerate(self.actions):
            if a.kind == "F":
                call = self.calls[a.call]
                last |= {(a.microbatch, v): i for v in (*call.ins, *call.outs) if v not in self.kept}
        dead: list[list[tuple[int, str]]] = [[] for _ in self.actions]
        for key, i in last.items():
            dead[i].append(key)
        return dead

    def unshard(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters in the dtype that the graphs compute in."""
        return {n: p if p.dtype == self.compute else p.to(self.compute) for n, p in params.items()}

    @torch.no_grad()
    def step(
        self, params: Mapping[str, Tensor], microbatches: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> StepResult:
        """Losses and gradients of one step; microbatch m's loss counts `weights[m]`."""
        state = _State({})
        state.values = {(m, n): t for m, batch in enumerate(microbatches) for n, t in batch.items()}
        for action, dead in zip(self.actions, self.last_use, strict=True):
            self._run(action, state, params, weights)
            for key in dead:
                state.values.pop(key, None)
        last = len(microbatches) - 1
        outputs = {n: state.values[last, v] for n, v in self.outputs.items()}
        return StepResult(state.losses, state.grads, outputs)

    def _run(self, a: Action, state: _State, params: Mapping[str, Tensor], weights: Sequence[float]) -> None:
        match a.kind:
            case "UNSHARD":
                state.params = self.unshard(params)
            case "F":
                self._forward(a, state, weights)
            case "B":
                self._backward(a, state)
            case "I":
                self._backward_input(a, state)
            case "W":
                self._backward_weight(a, state)
            case "REDUCE" | "STEP":
                pass  # one rank: gradients are complete; the trainer steps the optimizer

    def _forward(self, a: Action, state: _State, weights: Sequence[float]) -> None:
        call, m = self.calls[a.call], a.microbatch
        body = self.bodies[call.body]
        results = body.fwd(*(state.values[m, v] for v in call.ins), *(state.params[p] for p in call.params))
        for name, t in zip(call.outs, results, strict=False):
            state.values[m, name] = t
            if name == self.loss:
                state.losses.append(t)
                state.d_values[m, name] = torch.full_like(t, weights[m])
            elif name in self.idle:
                state.d_values[m, name] = torch.zeros_like(t)
        if body.bwd is not None:
            state.saved[a.call, m] = results[body.n_outs :]

    def _cotangents(self, a: Action, state: _State) -> list[Tensor]:
        """Gradients of the call's outs; an out that nothing used has a gradient of zeros."""
        call, m = self.calls[a.call], a.microbatch
        body = self.bodies[call.body]
        found: list[Tensor] = []
        for name, flows in zip(call.outs, body.out_grads, strict=True):
            if not flows:
                continue
            d = state.d_values.pop((m, name), None)
            assert d is not None, f"the value {name} has no gradient"
            found.append(d)
        return found

    def _backward(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd is not None
        results = body.bwd(*state.saved.pop((a.call, a.microbatch)), *self._cotangents(a, state))
        n = sum(body.in_grads)
        self._add_values(a, state, results[:n])
        self._add_params(a, state, results[n:], results[:n])

    def _backward_input(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd_input is not None
        results = body.bwd_input(*state.saved.pop((a.call, a.microbatch)), *self._cotangents(a, state))
        n = sum(body.in_grads)
        self._add_values(a, state, results[:n])
        state.live[a.call, a.microbatch] = results[n:]

    def _backward_weight(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd_weight is not None
        self._add_params(a, state, body.bwd_weight(*state.live.pop((a.call, a.microbatch))))

    def _add_values(self, a: Action, state: _State, grads: Sequence[Tensor]) -> None:
        call = self.calls[a.call]
        names = [v for v, flows in zip(call.ins, self.bodies[call.body].in_grads, strict=True) if flows]
        for name, d in zip(names, grads, strict=True):
            key = (a.microbatch, name)
            known = state.d_values.get(key)
            state.d_values[key] = d if known is None else known + d

    def _add_params(self, a: Action, state: _State, grads: Sequence[Tensor], beside: Sequence[Tensor] = ()) -> None:
        """Sums grow in place, so a gradient that stands twice among the results is copied (x + a + b has such)."""
        call = self.calls[a.call]
        seen = {d.untyped_storage().data_ptr() for d in beside}
        names = [p for p, flows in zip(call.params, self.bodies[call.body].param_grads, strict=True) if flows]
        for path, d in zip(names, grads, strict=True):
            if path not in self.trainable:
                continue
            known = state.grads.get(path)
            memory = d.untyped_storage().data_ptr()
            if known is None:
                state.grads[path] = d.to(torch.promote_types(d.dtype, self.reduce), copy=memory in seen)
            else:
                state.grads[path] = known.add_(d) if known is not d else known + d
            seen.add(memory)

    @torch.no_grad()
    def forward(self, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, and the loss as `loss`, of one microbatch; nothing is kept for a backward pass."""
        cast = self.unshard(params)
        uses: dict[str, int] = {}
        for i, call in enumerate(self.calls):
            uses |= dict.fromkeys(call.ins, i)
        values = dict(inputs)
        for i, call in enumerate(self.calls):
            body = self.bodies[call.body]
            results = body.fwd(*(values[v] for v in call.ins), *(cast[p] for p in call.params))
            values |= zip(call.outs, results[: body.n_outs], strict=True)
            for v in [v for v, last in uses.items() if last == i and v not in self.kept]:
                values.pop(v, None)
        named = {n: values[v] for n, v in self.outputs.items()}
        return named | ({"loss": values[self.loss]} if self.loss else {})
