"""Memory of a rank over a step: a walk over the actions that the executor runs, with the sizes of its graphs' values.

Two values in one memory (a view and its base, a saved operand) count once. What the walk does not know: the
interpreter and its libraries, the batches that are made ahead, and buffers inside of collectives, which on gloo go
when a thread of it comes to that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.graphs import Graphs, comes_again
from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action, Kind
from specc.compiler.schedule.footprint import Feet, value_bytes
from specc.compiler.schedule.kept import Kept
from specc.compiler.schedule.ledger import HOST, Key, Ledger, on_device
from specc.compiler.schedule.lifetimes import frees, idle_outs, last_uses, recomputed_later
from specc.compiler.updating import Update

KINDS = ("weights", "gradients", "optimizer", "activations", "work space", HOST)


@dataclass(frozen=True)
class Moment:
    """An action, the bytes by kind at its fullest, and those that are alive when it is done; both beside the host's."""

    action: Action
    most: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def total(self) -> int:
        return on_device(self.most)

    @property
    def left(self) -> int:
        return on_device(self.after)


@dataclass(frozen=True)
class Memory:
    """The moments of a step, in order, and what the optimizer takes."""

    moments: tuple[Moment, ...]
    update: Update

    @property
    def fullest(self) -> Moment:
        return max(self.moments, key=lambda m: m.total)

    @property
    def on_host(self) -> int:
        """The most bytes of the rank in the host's memory."""
        return max(m.most.get(HOST, 0) for m in self.moments)

    @property
    def peak(self) -> int:
        return self.fullest.total


def memory_of(
    actions: Sequence[Action], calls: Sequence[Call], graphs: Mapping[str, Graphs], feet: Feet, kept: Kept,
    loss: str | None, inputs: Mapping[str, int],
) -> Memory:  # fmt: skip
    """The memory of a step, not the first one: the optimizer's state is there. `inputs` are bytes of a microbatch's."""
    walk = _Walk(actions, calls, graphs, feet, kept, loss)
    walk.begin(inputs, max(a.microbatch for a in actions) + 1)
    outs = frozenset([loss] if loss else [])
    moments: list[Moment] = []
    for action, dead, done in zip(actions, last_uses(actions, calls, outs), frees(actions), strict=True):
        walk.ledger.begin()
        walk.run(action)
        for m, name in dead:
            walk.ledger.drop(("value", m, name))
        if done >= 0 and kept.in_parts:
            walk.ledger.drop(("used", done))
        moments.append(Moment(action, dict(walk.ledger.most), dict(walk.ledger.alive)))
    return Memory(tuple(moments), kept.update)


@dataclass
class _Leaving:
    """Gradients on their way: memories of collectives that began, and of gradients that stay where they are."""

    action: Action
    pending: list[int]
    found: dict[int, int]  # by place of the parameter

    @property
    def key(self) -> Key:
        return ("leaving", self.action.call, self.action.microbatch)


class _Walk:
    """What each action does to the books."""

    def __init__(
        self, actions: Sequence[Action], calls: Sequence[Call], graphs: Mapping[str, Graphs], feet: Feet, kept: Kept,
        loss: str | None,
    ) -> None:  # fmt: skip
        self.calls, self.graphs, self.feet, self.kept, self.loss = calls, graphs, feet, kept, loss
        self.idle = idle_outs(calls, graphs, loss)
        self.ledger = Ledger()
        self.nbytes = value_bytes(calls, graphs)
        self.place = self.ledger.new("work space", 0)
        self.saved: dict[tuple[int, int], Sequence[int]] = {}
        self.later = recomputed_later(actions)
        self.peers: dict[tuple[int, str], list[int]] = {}  # where a value was sent
        self.away: dict[tuple[int, int], dict[int, int]] = {}  # memories of what is on the host, by those they had
        self.leaving: _Leaving | None = None

    def begin(self, inputs: Mapping[str, int], n_microbatches: int) -> None:
        """Weights, the optimizer's state and the batch."""
        new, hold = self.ledger.new, self.ledger.hold
        for path, n in self.kept.params.items():
            copies = 1 + (self.kept.ema and path in self.kept.trainable)
            hold(("kept", path), [new("weights", n * self.kept.width(path) * copies)])
            kind = HOST if self.kept.moments_on_host else "optimizer"
            hold(("state", path), [new(kind, self.kept.update.kept.get(path, 0))])
        for m in range(n_microbatches):
            for name, nbytes in inputs.items():
                memory = new("activations", nbytes)
                hold(("batch", m, name), [memory])
                hold(("value", m, name), [memory])

    def run(self, a: Action) -> None:
        WALKS[a.kind](self, a)

    def call(
        self, a: Action, part: str, operands: Sequence[int], kinds: Mapping[int, str], rest: str,
        last: Sequence[Key] = (),
    ) -> list[int]:  # fmt: skip
        """Run a graph: the memories of its results. Its own are of the kind `rest`, or that of the result's place.

        The call is the last to read what the keys `last` hold: operands that nobody else holds go at their last use.
        Behind the operands come the rank's coordinates, which weigh nothing but may be saved."""
        foot = self.feet[self.calls[a.call].body][part]
        self.ledger.rise(foot.peak(operands, self.ledger.held_by(last)))
        for key in last:
            self.ledger.drop(key)
        own: dict[int, int] = {}
        for i, result in enumerate(foot.results):
            if result < 0 and result not in own:
                own[result] = self.ledger.new(kinds.get(i, rest), foot.own[-1 - result])
        given = [*operands, *[self.place] * len(foot.results)]
        return [given[r] if r >= 0 else own[r] for r in foot.results]

    def send(self, a: Action) -> None:
        """What leaves is held: a value until its gradient comes back, a gradient to the end."""
        kind = "d" if a.is_gradient else "value"
        self.ledger.hold(("sent", a.microbatch, a.value, a.peer), self.ledger.held[kind, a.microbatch, a.name])
        if a.is_gradient:
            self.ledger.drop(("d", a.microbatch, a.name))
        else:
            self.peers.setdefault((a.microbatch, a.name), []).append(a.peer)

    def receive(self, a: Action) -> None:
        """Room for a value of another rank, or for its gradient."""
        memory = self.ledger.new("activations", self.nbytes[a.name])
        if a.is_gradient:
            self.add_value(("d", a.microbatch, a.name), memory)
        else:
            self.ledger.hold(("value", a.microbatch, a.name), [memory])

    def graphs_of(self, a: Action) -> Graphs:
        return self.graphs[self.calls[a.call].body]

    def unshard(self, a: Action) -> None:
        """Casts, and collectives that begin; a call of -1 means the casts of all."""
        if self.kept.in_parts:
            self.start(a)
        else:
            for path, n in self.kept.cast.items():
                self.ledger.hold(("cast", path), [self.ledger.new("weights", n * self.kept.compute)])

    def start(self, a: Action) -> None:
        if ("parts", a.call) in self.ledger.held or ("used", a.call) in self.ledger.held:
            return
        parts = [self.part(path) for path in self.calls[a.call].params]
        self.ledger.hold(("parts", a.call), parts)
        carry = self.graphs_of(a).carry
        if carry and carry.unshard_start:
            moved = [parts[i] for i in carry.gathered]
            self.ledger.hold(("coming", a.call), self.call(a, "unshard_start", moved, {}, "weights"))

    def part(self, path: str) -> int:
        """The rank's part of a parameter in the dtype that the graphs compute in."""
        if path not in self.kept.cast:
            return self.ledger.held["kept", path][0]
        return self.ledger.new("weights", self.kept.params[path] * self.kept.compute)

    def finish(self, a: Action) -> None:
        """Wait for the parameters of a call."""
        used = list(self.ledger.held["parts", a.call])
        carry = self.graphs_of(a).carry
        if carry and carry.unshard_finish:
            given = self.ledger.held["coming", a.call]
            for i, memory in zip(carry.gathered, self.call(a, "unshard_finish", given, {}, "weights"), strict=True):
                used[i] = memory
        self.ledger.hold(("used", a.call), used)
        self.ledger.drop(("parts", a.call))
        self.ledger.drop(("coming", a.call))

    def params(self, a: Action) -> Sequence[int]:
        """The memories of the parameters that the call computes with."""
        if self.kept.in_parts:
            if ("used", a.call) not in self.ledger.held:
                self.finish(a)
            return self.ledger.held["used", a.call]
        cast = self.kept.cast
        return [self.ledger.held["cast" if p in cast else "kept", p][0] for p in self.calls[a.call].params]

    def forward(self, a: Action) -> None:
        call, m, g = self.calls[a.call], a.microbatch, self.graphs_of(a)
        results = self.run_forward(a)
        for name, memory in zip(call.outs, results, strict=False):
            self.ledger.hold(("value", m, name), [memory])
            if name in self.idle or name == self.loss:
                nbytes = self.ledger.sizes[memory][1] if name in self.idle else 0
                self.ledger.hold(("d", m, name), [self.ledger.new("activations", nbytes)])
        if g.bwd is not None and (a.call, m) not in self.later:
            self.save(a, results)

    def run_forward(self, a: Action) -> list[int]:
        operands = [self.ledger.held["value", a.microbatch, v][0] for v in self.calls[a.call].ins]
        return self.call(a, "fwd", [*operands, *self.params(a)], {}, "activations")

    def recompute(self, a: Action) -> None:
        results = self.run_forward(a)
        self.ledger.hold(("results",), results)
        self.save(a, results)
        self.ledger.drop(("results",))

    def save(self, a: Action, results: Sequence[int]) -> None:
        g = self.graphs_of(a)
        saved = results[g.n_outs :]
        self.ledger.hold(("saved", a.call, a.microbatch), [x for j, x in enumerate(saved) if j not in self.again(g)])
        self.saved[a.call, a.microbatch] = saved

    def offload(self, a: Action) -> None:
        """What is saved, but for parameters, has a copy on the host in its place."""
        key = a.call, a.microbatch
        held = self.ledger.held["saved", *key]
        moved = dict.fromkeys(x for x in held if self.ledger.sizes[x][0] != "weights")
        self.away[key] = {x: self.ledger.new(HOST, self.ledger.sizes[x][1]) for x in moved}
        self.ledger.hold(("host", *key), self.away[key].values())
        self.ledger.hold(("on its way",), moved)  # until the next transfer
        self.ledger.hold(("saved", *key), [x for x in held if x not in moved])

    def fetch(self, a: Action) -> None:
        """Room for it on the device."""
        key = a.call, a.microbatch
        self.ledger.drop(("on its way",))
        here = {x: self.ledger.new("activations", self.ledger.sizes[x][1]) for x in self.away.pop(key)}
        self.saved[key] = [here.get(x, x) for x in self.saved[key]]
        self.ledger.hold(("saved", *key), [*self.ledger.held["saved", *key], *here.values()])
        self.ledger.drop(("host", *key))

    def again(self, g: Graphs) -> Mapping[int, int]:
        """Which saved values are parameters that come again for the backward."""
        return comes_again(len(g.in_grads), g.carry.gathered, g.saved_from) if g.carry else {}

    def backward_input(self, a: Action) -> None:
        self.backward(a, "bwd_input")

    def backward(self, a: Action, part: str = "bwd") -> None:
        call, m, g = self.calls[a.call], a.microbatch, self.graphs_of(a)
        if self.again(g):
            self.params(a)
        names = [v for v, flows in zip(call.outs, g.out_grads, strict=True) if flows]
        cotangents = [self.ledger.held["d", m, v][0] for v in names]
        n = sum(g.in_grads)
        operands = [*self.saved.pop((a.call, m)), *cotangents]
        last: list[Key] = [("saved", a.call, m), *(("d", m, v) for v in names)]
        results = self.call(a, part, operands, dict.fromkeys(range(n), "activations"), "gradients", last)
        self.ledger.hold(("results",), results)
        for v in names:
            for peer in self.peers.pop((m, v), ()):
                self.ledger.drop(("sent", m, f"%{v}", peer))
        ins = [v for v, flows in zip(call.ins, g.in_grads, strict=True) if flows]
        for v, memory in zip(ins, results[:n], strict=True):
            self.add_value(("d", m, v), memory)
        if part == "bwd":
            self.add(a, results[n:], results[:n])
        else:
            self.ledger.hold(("live", a.call, m), results[n:])
        self.ledger.drop(("results",))

    def add_value(self, key: Key, memory: int) -> None:
        """A gradient of a value; a second one makes a sum in a memory of its own."""
        if key in self.ledger.held:
            memory = self.ledger.new(*self.ledger.sizes[memory])
        self.ledger.hold(key, [memory])

    def backward_weight(self, a: Action) -> None:
        live = self.ledger.held["live", a.call, a.microbatch]
        results = self.call(a, "bwd_weight", live, {}, "gradients")
        self.ledger.hold(("results",), results)
        self.ledger.drop(("live", a.call, a.microbatch))
        self.add(a, results, [])
        self.ledger.drop(("results",))

    def trained(self, a: Action) -> list[tuple[int, str]]:
        """Place and path of the parameters that the call's backward has gradients of."""
        pairs = enumerate(zip(self.calls[a.call].params, self.graphs_of(a).param_grads, strict=True))
        return [(i, path) for i, (path, flows) in pairs if flows]

    def add(self, a: Action, grads: Sequence[int], beside: Sequence[int]) -> None:
        seen = set(beside)
        for (i, path), memory in zip(self.trained(a), grads, strict=True):
            if path in self.kept.trainable:
                self.sum(("partial", a.call, i) if self.kept.in_parts else ("gradient", path), memory, seen)

    def sum(self, key: Key, memory: int, seen: set[int]) -> None:
        """Add to a sum, which grows in place; its first gradient is taken as it is, if it is wide and nobody's."""
        if key not in self.ledger.held:
            _, nbytes = self.ledger.sizes[memory]
            wider = max(1, self.kept.reduce // self.kept.compute)
            fresh = memory in seen or wider > 1
            self.ledger.hold(key, [self.ledger.new("gradients", nbytes * wider) if fresh else memory])
        seen.add(memory)

    def reduce(self, a: Action) -> None:
        """Begin to bring the call's gradients together, and to where their parameters are kept."""
        if not self.kept.in_parts:
            return
        carry, before, pending = self.graphs_of(a).carry, self.leaving, []
        keys = {i: key for i, _ in self.trained(a) if (key := ("partial", a.call, i)) in self.ledger.held}
        found = {i: self.ledger.held[key][0] for i, key in keys.items()}
        if carry and carry.reduce_start:
            pending = self.call(a, "reduce_start", [found.pop(i) for i in carry.reduced], {}, "gradients")
        self.leaving = _Leaving(a, pending, found)
        self.ledger.hold(self.leaving.key, [*pending, *found.values()])
        for key in keys.values():
            self.ledger.drop(key)
        self.arrive(before)

    def arrive_all(self, a: Action) -> None:
        before, self.leaving = self.leaving, None
        self.arrive(before)

    def step(self, a: Action) -> None:
        self.arrive_all(a)
        self.ledger.rise(self.kept.update.space + (self.kept.update.two if self.kept.moments_on_host else 0))

    def arrive(self, come: _Leaving | None) -> None:
        """Gradients of a call that were on their way, added to those of other calls."""
        if come is None:
            return
        a, found = come.action, come.found
        paths, carry = self.calls[a.call].params, self.graphs_of(a).carry
        if carry and carry.reduce_finish:
            found |= zip(carry.reduced, self.call(a, "reduce_finish", come.pending, {}, "gradients"), strict=True)
        self.ledger.hold(("results",), found.values())
        self.ledger.drop(come.key)
        seen: set[int] = set()
        for i, memory in sorted(found.items()):
            self.reduced(("gradient", paths[i]), memory, seen)
        self.ledger.drop(("results",))

    def reduced(self, key: Key, memory: int, seen: set[int]) -> None:
        """Sums of reduced gradients are as wide as these."""
        if key not in self.ledger.held:
            self.ledger.hold(key, [self.ledger.new(*self.ledger.sizes[memory]) if memory in seen else memory])
        seen.add(memory)


WALKS: Mapping[Kind, Callable[[_Walk, Action], None]] = {
    "UNSHARD": _Walk.unshard, "F": _Walk.forward, "RECOMPUTE": _Walk.recompute, "B": _Walk.backward,
    "I": _Walk.backward_input, "W": _Walk.backward_weight, "REDUCE": _Walk.reduce, "OFFLOAD": _Walk.offload,
    "FETCH": _Walk.fetch, "RECV": _Walk.receive, "SEND": _Walk.send, "SHARE": _Walk.arrive_all, "STEP": _Walk.step,
}  # fmt: skip
