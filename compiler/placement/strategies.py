"""What an equation can do along one mesh axis: all strategies, from its op's rule or its family's own derivation.

Two of them ask the lowering for arithmetic: under `sum:DIM` an operand that is added to the sum (a bias) is V, and the
ranks together add it once; `mean` over a split dim gives the parts of the mean, so each rank scales by 1/n."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from specc.compiler.ops import OPS
from specc.compiler.ops.declare import mixed_letters
from specc.compiler.ops.row import Op
from specc.compiler.ops.shape import groups, joined, solve_letters
from specc.compiler.placement.case import Case
from specc.compiler.placement.linearity import is_linear
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.spans import spans
from specc.compiler.placement.types import Axis
from specc.compiler.program import Eqn
from specc.compiler.rules import parse_rule
from specc.compiler.types import TensorType, places, size_of

Family = Callable[[Case], Iterator[Strategy | None]]


def strategies(
    eqn: Eqn, ins: Sequence[TensorType | None], axis: Axis, sizes: Mapping[str, int],
    own: Mapping[str, Op] | None = None,
) -> list[Strategy]:  # fmt: skip
    """All strategies along the axis; `rep` first. `own` are the rows of the user's own ops."""
    case = Case(eqn, tuple(ins), axis, sizes)
    found = [*case.replicated()]
    row = (own or {}).get(eqn.op)
    family = _own(row) if row else FAMILIES[eqn.op]
    found += [s for s in family(case) if s is not None]
    once = {(s.ins, s.outs, s.name == "experts"): s for s in reversed(found)}
    return list(reversed(once.values()))


def _own(row: Op) -> Family:
    """Letters along which an op of the user's is independent."""
    return lambda c: _letters(c, row.rule, mixed_letters(row), sums=False)


def _letters(c: Case, rule: str, fixed: set[str], sums: bool) -> Iterator[Strategy | None]:
    """Every dim of every letter: split where results have it, a sum where they have not."""
    parsed = parse_rule(rule)
    at = spans(parsed, [len(t.dims) if t else None for t in c.ins], [len(t.dims) for t in c.eqn.types])
    fixed = fixed | {t.letter for p in (*parsed.ins, *parsed.outs) for t in p if t.fixed}
    n_ins = len(parsed.ins)
    for letter in dict.fromkeys(t.letter for p in (*parsed.ins, *parsed.outs) for t in p):
        found = [s.get(letter) for s in at]
        length = max(s.stop - s.start for s in found if s is not None)
        for k in range(0 if letter in fixed else length):
            cut = {i: s.start + k for i, s in enumerate(found) if s is not None}
            to = {i - n_ins: p for i, p in cut.items() if i >= n_ins}
            if to or sums:
                yield c.cut({i: p for i, p in cut.items() if i < n_ins}, to)


def _linear(c: Case) -> Iterator[Strategy | None]:
    """A product; linear in each of its operands where nothing is added."""
    yield from _letters(c, OPS[c.eqn.op].rule, set(), sums=True)
    if c.type(len(OPS[c.eqn.op].parsed.ins) - 1) is None or c.eqn.op == "grouped_linear":
        yield from (c.linear(i) for i in c.floats())


def _routed(c: Case) -> Iterator[Strategy | None]:
    """As `linear`, but the index may lack leading dims of the tokens."""
    x, index, weight, out = c.at(0), c.at(1), c.at(2), c.eqn.types[0]
    n_in = (len(x.dims) - len(out.dims) + len(weight.dims) - 1) // 2
    tokens = len(x.dims) - n_in
    for p in range(tokens):
        behind = p - (tokens - len(index.dims))
        yield c.cut({0: p} | ({1: behind} if behind >= 0 else {}), {0: p})
    bias = c.type(3) is not None
    for k in range(len(out.dims) - tokens):
        yield c.cut({2: 1 + n_in + k} | ({3: 1 + k} if bias else {}), {0: tokens + k})
    for k in range(n_in):
        yield c.cut({0: tokens + k, 2: 1 + k}, {})
    if not bias:
        yield from (c.linear(i) for i in (0, 2))


def _embedding(c: Case) -> Iterator[Strategy | None]:
    n = len(c.at(0).dims)
    yield from (c.cut({0: p}, {0: p}) for p in range(n))
    yield from (c.cut({1: 1 + k}, {0: n + k}) for k in range(len(c.at(1).dims) - 1))
    yield c.cut({1: 0}, {}, name="rows")


def _conv(c: Case) -> Iterator[Strategy | None]:
    yield c.cut({0: 0}, {0: 0})
    yield c.cut({1: 0} | ({2: 0} if c.type(2) else {}), {0: 1})
    yield c.cut({0: 1, 1: 1}, {})
    if c.type(2) is None:
        yield from (c.linear(i) for i in (0, 1))


def _einsum(c: Case) -> Iterator[Strategy | None]:
    yield from _letters(c, str(c.eqn.attrs["rule"]), set(), sums=True)
    yield from (c.linear(i) for i in c.floats())


def _grouped(c: Case) -> Iterator[Strategy | None]:
    """The rows of a rank have their own ends, so these are not cut with them."""
    yield from (s for s in _linear(c) if s is None or s.ins[1] is None or s.ins[1].kind != "S")
    yield c.cut({0: 0, 1: 0, 2: 0}, {0: 0}, name="experts")


def _through(c: Case, pairs: Sequence[tuple[int, int]]) -> Iterator[Strategy | None]:
    """Dims of operand 0 that all results have too; other operands follow by name."""
    for p, to in pairs:
        name = c.at(0).dims[p].name
        others = {i: c.named(i, name) for i in range(1, len(c.ins))}
        cut = {0: p} | {i: q for i, q in others.items() if q is not None}
        yield c.cut(cut, dict.fromkeys(range(len(c.eqn.types)), to))


def _all_but_last(c: Case) -> Iterator[Strategy | None]:
    yield from _through(c, [(p, p) for p in range(len(c.at(0).dims) - 1)])


def _rope(c: Case) -> Iterator[Strategy | None]:
    yield from _all_but_last(c)
    yield c.linear(0)


def _every(c: Case) -> Iterator[Strategy | None]:
    yield from _through(c, [(p, p) for p in range(len(c.at(0).dims))])


def _rename(c: Case) -> Iterator[Strategy | None]:
    yield from _every(c)
    yield c.linear(0)


def _first(count: int) -> Family:
    return lambda c: _through(c, [(p, p) for p in range(count)])


def _over(c: Case) -> int:
    """Where operand 0 has the dim that the op works along; by default the last."""
    over = c.eqn.attrs.get("over")
    at = c.named(0, over.name) if over is not None else len(c.at(0).dims) - 1
    assert at is not None
    return at


def _beside(c: Case) -> Iterator[Strategy | None]:
    """The dims other than the one it works along, which stays."""
    at = _over(c)
    yield from _through(c, [(p, p) for p in range(len(c.at(0).dims)) if p != at])
    yield c.linear(0)


def _without(c: Case) -> Iterator[Strategy | None]:
    """The dims other than the one it works along, which goes."""
    at = _over(c)
    yield from _through(c, [(p, p - (p > at)) for p in range(len(c.at(0).dims)) if p != at])
    yield c.linear(0)


def _argmax(c: Case) -> Iterator[Strategy | None]:
    at = _over(c)
    yield from _through(c, [(p, p - (p > at)) for p in range(len(c.at(0).dims)) if p != at])


def _extreme(c: Case) -> Iterator[Strategy | None]:
    """The dims that stay; those that go are gathered first, since gradients are of ties in the whole."""
    yield from (s for s in _reduce(c) if s is not None and s.name.startswith("split:"))


def _reduce(c: Case) -> Iterator[Strategy | None]:
    over = c.eqn.attrs.get("over")
    dims = c.at(0).dims
    gone = {d.name for d in over} if over else {d.name for d in dims}
    kept = [p for p, d in enumerate(dims) if d.name not in gone]
    yield from _through(c, [(p, kept.index(p)) for p in kept])
    yield from (c.cut({0: p}, {}) for p in range(len(dims)) if p not in kept)
    yield c.linear(0)


def _rearrange(c: Case) -> Iterator[Strategy | None]:
    """A letter that stands outermost on both sides: what it is merged with stays whole within each part.

    Not one of a group whose size is given: its part has another."""
    left, _, right = str(c.eqn.attrs["pattern"]).partition("->")
    before, after = groups(left), groups(right)
    given = dict(c.eqn.attrs.get("dims") or {})
    letters = solve_letters(before, c.at(0).dims, given)
    for p, group in enumerate(before):
        to = next((q for q, g in enumerate(after) if g[:1] == group[:1]), None)
        known = len(group) > 1 and group[0] in given
        if group and to is not None and not known and size_of(letters[group[0]], c.sizes) % c.axis.size == 0:
            yield c.cut({0: p}, {0: to})
    yield c.linear(0)


def _concat(c: Case) -> Iterator[Strategy | None]:
    """Dims other than the joined one; an input that lacks a dim is repeated along it."""
    joint, found = joined([c.at(i) for i in range(len(c.ins))], c.eqn.attrs["over"])
    for p in range(len(c.eqn.types[0].dims)):
        at = {i: spots.index(p) for i, spots in enumerate(found) if p in spots}
        if p != joint:
            yield c.cut(at, {0: p})
    yield c.linear(*c.floats())


def _stack(c: Case) -> Iterator[Strategy | None]:
    every = range(len(c.ins))
    yield from (c.cut(dict.fromkeys(every, p), {0: p + 1}) for p in range(len(c.at(0).dims)))


def _expand(c: Case) -> Iterator[Strategy | None]:
    for p, d in enumerate(c.eqn.types[0].dims):
        at = c.named(0, d.name)
        yield c.cut({} if at is None else {0: at}, {0: p})
    yield c.linear(0)


def _take(c: Case) -> Iterator[Strategy | None]:
    """Dims beside the one that is picked from, and those of the index."""
    for p, d in enumerate(c.eqn.types[0].dims):
        at = {i: c.named(i, d.name) for i in (0, 1)}
        if at[0] != _over(c):
            yield c.cut({i: q for i, q in at.items() if q is not None}, {0: p})
    yield c.linear(0)


def _expr(c: Case) -> Iterator[Strategy | None]:
    """Every dim of the result; a sum passes through operands in which the formula is linear."""
    formula = c.eqn.attrs["formula"]
    wide = c.eqn.types[0].dims
    at = [places(t.dims, wide) if t else [] for t in c.ins]
    for p in range(len(wide)):
        yield c.cut({i: found.index(p) for i, found in enumerate(at) if p in found}, {0: p})
    names, floats = formula.names(), c.floats()
    for chosen in [[i] for i in floats] + ([floats] if len(floats) > 1 else []):
        if c.eqn.types[0].dtype == "float" and is_linear(formula, {names[i] for i in chosen}):
            yield c.linear(*chosen)


def _source(c: Case) -> Iterator[Strategy | None]:
    """Made from nothing: each rank makes its part (`relative_bucket`: of the queries)."""
    yield c.cut({}, {0: 0})


def _param(c: Case) -> Iterator[Strategy | None]:
    yield from _every(c)


def _mask(c: Case) -> Iterator[Strategy | None]:
    """Batch dims, and the queries: these meet all keys, so attributes of keys are whole."""
    names = [str(n) for n in c.eqn.attrs["names"]]
    *batch, query, _ = c.eqn.types[0].dims
    for p, d in enumerate(batch):
        at = {i: c.named(i, d.name) for i in range(len(c.ins))}
        yield c.cut({i: q for i, q in at.items() if q is not None}, {0: p})
    of_queries = {i: len(c.at(i).dims) - 1 for i, n in enumerate(names) if n.startswith("q.")}
    yield c.cut(of_queries, {0: len(batch)}, label=query.name)


def _attend(c: Case) -> Iterator[Strategy | None]:
    q, k = c.at(0).dims, c.at(1).dims
    at = len(q) - 3
    for p in range(at):
        yield c.cut({0: p, 1: p, 2: p} | _beside_of(c, q[p].name), {0: p})
    heads, kv_heads = size_of(q[-2], c.sizes), size_of(k[-2], c.sizes)
    bias = {} if c.type(4) is None else {4: len(c.at(4).dims) - 1}
    yield c.cut({0: at + 1, 1: at + 1, 2: at + 1} | bias, {0: at + 1})
    if kv_heads % c.axis.size and c.axis.size % kv_heads == 0 and heads % c.axis.size == 0:
        yield c.cut({0: at + 1} | bias, {0: at + 1}, name="kv_heads")
    yield c.cut({0: at} | _beside_of(c, q[-3].name), {0: at}, name="gather_kv")
    if q[-3].name == k[-3].name:
        yield c.cut({0: at, 1: at, 2: at} | _beside_of(c, q[-3].name), {0: at}, name="ring")


def _beside_of(c: Case, name: str) -> dict[int, int]:
    """Where mask and bias have a dim of the queries."""
    found = {i: c.named(i, name) for i in (3, 4) if c.type(i) is not None}
    return {i: p for i, p in found.items() if p is not None}


def _cross_entropy(c: Case) -> Iterator[Strategy | None]:
    """Rows: the parts of the mean (the lowering sums the count of labels). Vocabulary: the whole mean on each rank."""
    rows = len(c.at(0).dims) - 1
    yield from (c.cut({0: p, 1: p}, {}, name=f"split:{c.at(0).dims[p].name}") for p in range(rows))
    yield c.whole(c.cut({0: rows}, {}, name="vocab"))


def _linear_cross_entropy(c: Case) -> Iterator[Strategy | None]:
    dims = c.at(0).dims
    yield from (c.cut({0: p, 2: p}, {}, name=f"split:{dims[p].name}") for p in range(len(dims) - 1))
    bias = {3: 0} if c.type(3) else {}
    yield c.whole(c.cut({1: len(c.at(1).dims) - 1} | bias, {}, name="vocab"))


def _log_prob(c: Case) -> Iterator[Strategy | None]:
    """As the losses, but each row has its own result."""
    yield from (c.cut({0: p, 1: p}, {0: p}) for p in range(len(c.at(1).dims)))
    yield c.whole(c.cut({0: len(c.at(1).dims)}, {}, name="vocab"))


def _alike(c: Case) -> Iterator[Strategy | None]:
    """Operands and result have the same dims."""
    yield from (c.cut(dict.fromkeys(range(len(c.ins)), p), {0: p}) for p in range(len(c.at(0).dims)))


def _linear_log_prob(c: Case) -> Iterator[Strategy | None]:
    yield from (c.cut({0: p, 2: p}, {0: p}) for p in range(len(c.at(2).dims)))
    bias = {3: 0} if c.type(3) else {}
    yield c.whole(c.cut({1: len(c.at(1).dims) - 1} | bias, {}, name="vocab"))


def _dispatch(c: Case) -> Iterator[Strategy | None]:
    """Tokens of a rank stay with it, or (`experts`) go to the ranks that have their experts."""
    x, index = c.at(0).dims, c.at(1).dims
    for p in range(len(index) - 1):
        yield c.cut({0: p, 1: p}, {0: 0, 1: 0})
    yield from (c.cut({0: p}, {0: p - len(index) + 2}) for p in range(len(index) - 1, len(x)))
    if size_of(c.eqn.types[2].dims[0], c.sizes) % c.axis.size == 0:
        yield c.cut({0: 0, 1: 0}, {0: 0, 1: 0, 2: 0}, name="experts")


def _row_gates(c: Case) -> Iterator[Strategy | None]:
    yield from (c.cut({0: p, 1: 0}, {0: 0}) for p in range(len(c.at(0).dims) - 1))
    yield c.linear(0)
    yield c.cut({0: 0, 1: 0}, {0: 0}, name="experts")


def _combine(c: Case) -> Iterator[Strategy | None]:
    index, rows = len(c.at(2).dims), len(c.at(0).dims)
    yield from (c.cut({0: 0, 1: 0, 2: p}, {0: p}) for p in range(index - 1))
    yield from (c.cut({0: p}, {0: index - 2 + p}) for p in range(1, rows))
    yield c.linear(0)
    yield c.cut({0: 0, 1: 0, 2: 0}, {0: 0}, name="experts")


FAMILIES: Mapping[str, Family] = {
    "linear": _linear, "routed_linear": _routed, "embedding": _embedding, "conv": _conv, "einsum": _einsum,
    "grouped_linear": _grouped, "rms_norm": _all_but_last, "layer_norm": _all_but_last, "softmax": _all_but_last,
    "group_norm": _first(1), "dropout": _every, "attend": _attend, "mask": _mask, "rope": _rope,
    "relative_bucket": _source, "index": _source, "expr": _expr, "mean": _reduce, "sum": _reduce,
    "max": _extreme, "min": _extreme, "argmax": _argmax, "one_hot": _every, "sinusoidal": _every,
    "rearrange": _rearrange, "concat": _concat, "split": _beside,
    "slice": _beside, "pick": _without, "unbind": _without, "take": _take, "rename": _rename, "expand": _expand,
    "upsample": _first(2), "param": _param, "topk": _all_but_last, "dispatch": _dispatch, "row_gates": _row_gates,
    "combine": _combine, "stack": _stack, "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy, "log_prob": _log_prob, "linear_log_prob": _linear_log_prob,
    "from_bits": _alike,
}  # fmt: skip
