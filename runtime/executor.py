"""Executes the schedule's actions over a program's calls, without autograd: the backward is in the graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specc.compiler.program import Call
from specc.compiler.schedule.actions import GRADIENT, Action, Kind
from specc.compiler.schedule.lifetimes import frees, idle_outs, last_uses, recomputed_later
from specc.runtime.device import CPU
from specc.runtime.host import Away, Coming, Host
from specc.runtime.weights import Carried, Compiled, Weights, Whole, Wiring
from specc.runtime.wire import Arrival, Wire

FORWARD = ("F", "SEND", "RECV")


@dataclass(frozen=True)
class StepResult:
    """Losses by microbatch (none on ranks that do not make it), gradients by parameter path, and the named outputs of
    the last microbatch; of those that are single numbers all microbatches."""

    losses: list[Tensor]
    grads: dict[str, Tensor]
    outputs: dict[str, Tensor]
    metrics: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass
class _State:
    """What is alive while a schedule runs; keys carry the microbatch."""

    weights: Weights
    values: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    d_values: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    saved: dict[tuple[int, int], Sequence[Tensor | None]] = field(default_factory=dict)
    live: dict[tuple[int, int], Sequence[Tensor]] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    coming: dict[tuple[int, str], list[Arrival]] = field(default_factory=dict)  # of a value, or of parts of a gradient
    stay: dict[tuple[int, int], set[int]] = field(default_factory=dict)  # memories that saved values share with weights
    away: dict[tuple[int, int], Away] = field(default_factory=dict)
    back: dict[tuple[int, int], Coming] = field(default_factory=dict)


class Executor:
    """Runs one step of a schedule. Values go at their last use, which the schedule tells.

    With the rank's `coordinates` on a mesh, parameters, inputs, values and gradients are the rank's parts. In a
    pipeline the actions are those of this rank's stages, and `wire` is its end of the lines to the others."""

    def __init__(
        self, calls: Sequence[Call], bodies: Mapping[str, Compiled], actions: Sequence[Action], loss: str | None,
        outputs: Mapping[str, str], trainable: frozenset[str], compute: torch.dtype,
        reduce: torch.dtype = torch.float32, coordinates: Sequence[Tensor] = (), wire: Wire | None = None,
        device: torch.device = CPU,
    ) -> None:  # fmt: skip
        self.calls, self.bodies, self.actions = calls, bodies, actions
        self.loss, self.outputs, self.trainable = loss, dict(outputs), trainable
        self.compute, self.wire = compute, wire
        self.tell: Callable[[int], None] = lambda action: None  # hears of each action of a step before it is run
        self.wiring = Wiring(calls, bodies, trainable, compute, reduce, coordinates)
        self.kept = set(outputs.values()) | ({loss} if loss else set())
        self.idle = idle_outs(calls, bodies, loss)
        self.last_use = last_uses(actions, calls, self.kept)
        self.frees = frees(actions)
        self.later = recomputed_later(actions)
        self.leaving = {(a.call, a.microbatch) for a in actions if a.kind == "OFFLOAD"}
        self.host = Host(device)

    def weights_of(self, params: Mapping[str, Tensor]) -> Weights:
        return Carried(self.wiring, params) if self.wiring.coordinates else Whole(self.wiring, params)

    @torch.no_grad()
    def step(
        self, params: Mapping[str, Tensor], microbatches: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> StepResult:
        """Losses and gradients of one step; microbatch m's loss counts `weights[m]`."""
        state = _State(self.weights_of(params))
        state.values = {(m, n): t for m, batch in enumerate(microbatches) for n, t in batch.items()}
        for i, (action, dead, done) in enumerate(zip(self.actions, self.last_use, self.frees, strict=True)):
            self.tell(i)
            self._run(action, state, weights)
            for key in dead:
                state.values.pop(key, None)
            if done >= 0:
                state.weights.free(done)
        if self.wire:
            self.wire.settle()
        last = len(microbatches) - 1
        outputs = {n: state.values[last, v] for n, v in self.outputs.items() if (last, v) in state.values}
        single = [n for n, x in outputs.items() if x.ndim == 0]
        metrics = {n: [state.values[m, self.outputs[n]] for m in range(last + 1)] for n in single}
        return StepResult(state.losses, state.weights.grads, outputs, metrics)

    def _run(self, a: Action, state: _State, weights: Sequence[float]) -> None:
        if a.kind == "F":
            self._forward(a, state, weights)
        else:
            STEPS[a.kind](self, a, state)

    def _unshard(self, a: Action, state: _State) -> None:
        state.weights.unshard(a.call)

    def _recompute(self, a: Action, state: _State) -> None:
        self._save(a, self._run_forward(a, state), state)

    def _reduce(self, a: Action, state: _State) -> None:
        state.weights.reduce(a.call)

    def _offload(self, a: Action, state: _State) -> None:
        key = a.call, a.microbatch
        state.away[key] = self.host.away(state.saved.pop(key), state.stay.pop(key))

    def _fetch(self, a: Action, state: _State) -> None:
        key = a.call, a.microbatch
        state.back[key] = self.host.back(state.away.pop(key))
        state.saved[key] = state.back[key].saved

    def _share(self, a: Action, state: _State) -> None:
        assert self.wire is not None
        state.weights.arrive()
        state.weights.grads[a.value] = self.wire.share(a.value, state.weights.grads[a.value])

    def _arrive(self, a: Action, state: _State) -> None:
        """The trainer steps the optimizer."""
        state.weights.arrive()

    def _send(self, a: Action, state: _State) -> None:
        assert self.wire is not None
        key = (a.microbatch, a.name)
        x = state.d_values.pop(key) if a.is_gradient else state.values[key]
        self.wire.send(a.name, a.is_gradient, a.microbatch, a.peer, x)

    def _receive(self, a: Action, state: _State) -> None:
        assert self.wire is not None
        made = self.wire.receive(a.name, a.is_gradient, a.microbatch, a.peer)
        state.coming.setdefault((a.microbatch, a.value), []).append(made)

    def _forward(self, a: Action, state: _State, weights: Sequence[float]) -> None:
        call, m = self.calls[a.call], a.microbatch
        body = self.bodies[call.body]
        self._arrived(call, m, state)
        results = self._run_forward(a, state)
        for name, t in zip(call.outs, results, strict=False):
            state.values[m, name] = t
            if name == self.loss:
                state.losses.append(t)
                state.d_values[m, name] = torch.full_like(t, weights[m])
            elif name in self.idle:
                state.d_values[m, name] = torch.zeros_like(t)
        if (body.bwd is not None or body.bwd_input is not None) and (a.call, m) not in self.later:
            self._save(a, results, state)

    def _run_forward(self, a: Action, state: _State) -> Sequence[Tensor]:
        call = self.calls[a.call]
        ins = [state.values[a.microbatch, v] for v in call.ins]
        return self.bodies[call.body].fwd([*ins, *state.weights.operands(a.call)])

    def _save(self, a: Action, results: Sequence[Tensor], state: _State) -> None:
        """Keep what the backward reads."""
        body, key = self.bodies[self.calls[a.call].body], (a.call, a.microbatch)
        state.saved[key] = self._without(results[body.n_outs :], body)
        if key in self.leaving:
            state.stay[key] = {x.untyped_storage().data_ptr() for x in state.weights.operands(a.call)}

    def _arrived(self, call: Call, m: int, state: _State) -> None:
        """Wait for what the call takes from other ranks."""
        for v in call.ins:
            for arrival in state.coming.pop((m, f"%{v}"), []):
                state.values[m, v] = arrival.take()

    def _without(self, saved: Sequence[Tensor], body: Compiled) -> Sequence[Tensor | None]:
        """The saved values without the parameters that come again, so that these can go."""
        return [None if j in body.again else x for j, x in enumerate(saved)] if body.again else saved

    def _operands(self, a: Action, state: _State) -> list[Tensor]:
        """Those of the call's backward, which are nobody else's once this list is empty: what its forward kept, with
        the parameters that come again, and gradients of its outs."""
        saved, again = self._saved(a, state), self.bodies[self.calls[a.call].body].again
        params = state.weights.operands(a.call) if again else []
        operands = [params[again[j]] if j in again else x for j, x in enumerate(saved)]
        return [*operands, *self._cotangents(a, state)]  # type: ignore[list-item]

    def _saved(self, a: Action, state: _State) -> Sequence[Tensor | None]:
        """What the forward kept, here."""
        key = a.call, a.microbatch
        saved = state.saved.pop(key)
        if key in state.back:
            self.host.settle(state.back.pop(key))
        return saved

    def _cotangents(self, a: Action, state: _State) -> list[Tensor]:
        """Gradients of the call's outs; an out that nothing used has a gradient of zeros."""
        call, m = self.calls[a.call], a.microbatch
        body = self.bodies[call.body]
        found: list[Tensor] = []
        for name, flows in zip(call.outs, body.out_grads, strict=True):
            if not flows:
                continue
            for arrival in state.coming.pop((m, f"{GRADIENT}{name}"), []):
                self._add(state, (m, name), arrival.take())
                assert self.wire is not None
                self.wire.received(name, m, arrival.peer)
            d = state.d_values.pop((m, name), None)
            assert d is not None, f"the value {name} has no gradient"
            found.append(d)
        return found

    def _backward(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd is not None
        results = body.bwd(self._operands(a, state))
        n = sum(body.in_grads)
        self._add_values(a, state, results[:n])
        state.weights.add(a.call, results[n:], results[:n])

    def _backward_input(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd_input is not None
        results = body.bwd_input(self._operands(a, state))
        n = sum(body.in_grads)
        self._add_values(a, state, results[:n])
        state.live[a.call, a.microbatch] = results[n:]

    def _backward_weight(self, a: Action, state: _State) -> None:
        body = self.bodies[self.calls[a.call].body]
        assert body.bwd_weight is not None
        live = state.live.pop((a.call, a.microbatch))
        state.weights.add(a.call, body.bwd_weight([*live]), live)

    def _add_values(self, a: Action, state: _State, grads: Sequence[Tensor]) -> None:
        call = self.calls[a.call]
        names = [v for v, flows in zip(call.ins, self.bodies[call.body].in_grads, strict=True) if flows]
        for name, d in zip(names, grads, strict=True):
            self._add(state, (a.microbatch, name), d)

    def _add(self, state: _State, key: tuple[int, str], d: Tensor) -> None:
        known = state.d_values.get(key)
        state.d_values[key] = d if known is None else known + d

    @torch.no_grad()
    def forward(self, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, and the loss as `loss`, of one microbatch; nothing is kept for a backward pass.

        A rank of a pipeline has those that its stages make."""
        found = dict(inputs)
        for call, outs in self.walk(params, inputs):
            found |= {n: t for n, t in zip(call.outs, outs, strict=True) if n in self.kept}
        named = {n: found[v] for n, v in self.outputs.items() if v in found}
        return named | ({"loss": found[self.loss]} if self.loss in found else {})

    @torch.no_grad()
    def walk(
        self, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> Iterator[tuple[Call, Sequence[Tensor]]]:  # fmt: skip
        """Each call of a forward pass with its outs; the next call's parameters come while one runs."""
        actions = [a for a in self.actions if a.microbatch == 0 and a.kind in FORWARD and not a.is_gradient]
        calls = [a.call for a in actions if a.kind == "F"]
        state = _State(self.weights_of(params), {(0, n): t for n, t in inputs.items()})
        last = {v: a for a in actions for v in ((*self.calls[a.call].ins,) if a.kind == "F" else (a.name,))}
        state.weights.unshard(calls[0])
        for a in actions:
            if a.kind == "F":
                if self.wiring.coordinates and len(calls) > 1:
                    state.weights.unshard(calls[1])
                yield self.calls[a.call], self._walk_call(calls.pop(0), state)
            elif a.kind == "SEND":
                self._send(a, state)
            else:
                self._receive(a, state)
            for v in [v for v, end in last.items() if end is a]:
                state.values.pop((0, v), None)
        if self.wire:
            self.wire.settle()

    def _walk_call(self, i: int, state: _State) -> Sequence[Tensor]:
        call = self.calls[i]
        body = self.bodies[call.body]
        self._arrived(call, 0, state)
        outs = body.fwd([*(state.values[0, v] for v in call.ins), *state.weights.operands(i)])[: body.n_outs]
        state.weights.free(i)
        state.values |= {(0, v): t for v, t in zip(call.outs, outs, strict=True)}
        return outs


# What each action but F does.
STEPS: Mapping[Kind, Callable[[Executor, Action, _State], None]] = {
    "UNSHARD": Executor._unshard, "RECOMPUTE": Executor._recompute, "B": Executor._backward,
    "I": Executor._backward_input, "W": Executor._backward_weight, "REDUCE": Executor._reduce,
    "OFFLOAD": Executor._offload, "FETCH": Executor._fetch, "SEND": Executor._send, "RECV": Executor._receive,
    "SHARE": Executor._share, "STEP": Executor._arrive,
}  # fmt: skip

__all__ = ["Compiled", "Executor", "StepResult"]
