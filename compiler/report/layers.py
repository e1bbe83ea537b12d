"""Layered layout of a small dataflow graph: rows from the longest path, few crossings, straight long edges.

Pure geometry over node indices (Sugiyama's method); what a node looks like is the caller's affair."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

GAP_X, GAP_Y = 26.0, 34.0
LANE = 14.0  # width kept for an edge that passes a row
SWEEPS = 12
Edge = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Centres of the nodes, top of each row, the way points of every edge, and the size of the whole."""

    x: list[float]
    y: list[float]
    routes: dict[Edge, list[tuple[float, float]]]
    width: float
    height: float


def place(
    widths: Sequence[float], heights: Sequence[float], edges: Sequence[Edge], light: Collection[int] = ()
) -> Placement:
    """Edges point from a lower index to a higher one; `light` nodes give way. Coordinates start at 0."""
    rows = _rows(len(widths), edges)
    chains, wide, row_of = _with_lanes(list(widths), rows, edges)
    links = [pair for chain in chains.values() for pair in itertools.pairwise(chain)]
    order = _ordered(row_of, links)
    xs = _positions(order, wide, links, [i not in light for i in range(len(widths))])
    tops, total = _tops(rows, heights)
    mids = [top + high / 2 for top, high in tops]
    left = min((x - w / 2 for x, w in zip(xs, wide, strict=True)), default=0.0)
    xs = [x - left for x in xs]
    width = max((x + w / 2 for x, w in zip(xs, wide, strict=True)), default=0.0)
    ys = [mids[r] for r in row_of]
    routes = {e: [(xs[i], ys[i]) for i in chain] for e, chain in chains.items()}
    return Placement(xs[: len(widths)], ys[: len(widths)], routes, width, total)


def _rows(n: int, edges: Sequence[Edge]) -> list[int]:
    """Longest path from a source; a source stands just above its first user."""
    row = [0] * n
    for a, b in sorted(edges):
        row[b] = max(row[b], row[a] + 1)
    has_source = {b for _, b in edges}
    for i in reversed(range(n)):
        users = [row[b] for a, b in edges if a == i]
        if i not in has_source and users:
            row[i] = min(users) - 1
    return row


def _with_lanes(
    widths: list[float], rows: list[int], edges: Sequence[Edge]
) -> tuple[dict[Edge, list[int]], list[float], list[int]]:
    """Give every edge over several rows a narrow node in each row that it passes."""
    wide, row_of = list(widths), list(rows)
    chains: dict[Edge, list[int]] = {}
    for a, b in edges:
        lanes = range(len(wide), len(wide) + rows[b] - rows[a] - 1)
        wide += [LANE] * len(lanes)
        row_of += range(rows[a] + 1, rows[b])
        chains[a, b] = [a, *lanes, b]
    return chains, wide, row_of


def _ordered(row_of: list[int], links: list[Edge]) -> list[list[int]]:
    """Nodes of each row from left to right: repeated sorting by the mean place of the neighbours."""
    order: list[list[int]] = [[] for _ in range(max(row_of, default=-1) + 1)]
    for i, r in enumerate(row_of):
        order[r].append(i)
    above, below = _neighbours(len(row_of), links)
    best, least = [list(r) for r in order], _crossings(order, links)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in order if down else reversed(order):
            place_of = {i: k for r in order for k, i in enumerate(r)}
            near = above if down else below
            row.sort(key=lambda i: _mean([place_of[j] for j in near[i]], place_of[i]))
        now = _crossings(order, links)
        if now < least:
            best, least = [list(r) for r in order], now
    return best


def _crossings(order: list[list[int]], links: list[Edge]) -> int:
    at = {i: (r, k) for r, row in enumerate(order) for k, i in enumerate(row)}
    found = 0
    for n, (a, b) in enumerate(links):
        for c, d in links[n + 1 :]:
            if at[a][0] == at[c][0]:
                found += (at[a][1] - at[c][1]) * (at[b][1] - at[d][1]) < 0
    return found


def _positions(order: list[list[int]], wide: list[float], links: list[Edge], heavy: list[bool]) -> list[float]:
    """Horizontal centres: each row moves to the mean of its neighbours, as far as its order allows."""
    xs = [0.0] * len(wide)
    for row in order:
        at = 0.0
        for i in row:
            xs[i] = at + wide[i] / 2
            at += wide[i] + GAP_X
    above, below = _neighbours(len(wide), links)
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for row in order if down else reversed(order):
            near = above if down else below
            wanted = [_wanted(i, near[i], (below if down else above)[i], xs, heavy) for i in row]
            weights = [8.0 if i < len(heavy) and heavy[i] else 1.0 for i in row]
            for i, x in zip(row, _spread(wanted, [wide[i] for i in row], weights), strict=True):
                xs[i] = x
    return xs


def _wanted(i: int, near: list[int], far: list[int], xs: list[float], heavy: list[bool]) -> float:
    """Where a node would like to be. Boxes look at heavy boxes first and lanes at lanes, so that the main path and
    the long edges are straight lines."""
    n = len(heavy)
    seen = near or far
    first = [j for j in seen if j < n and heavy[j]] if i < n else [j for j in near + far if j >= n]
    return _mean([xs[j] for j in first or seen], xs[i])


def _spread(wanted: list[float], wide: list[float], weights: list[float]) -> list[float]:
    """The places nearest to `wanted` (least squares) that keep order and gaps: pool adjacent violators."""
    offsets = [0.0]
    for a, b in itertools.pairwise(wide):
        offsets.append(offsets[-1] + (a + b) / 2 + GAP_X)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for x, offset, w in zip(wanted, offsets, weights, strict=True):
        mean, weight, members = x - offset, w, 1
        while pools and pools[-1][0] > mean:
            other, v, k = pools.pop()
            mean, weight, members = (mean * weight + other * v) / (weight + v), weight + v, members + k
        pools.append((mean, weight, members))
    flat = [mean for mean, _, members in pools for _ in range(members)]
    return [x + offset for x, offset in zip(flat, offsets, strict=True)]


def _tops(rows: list[int], heights: Sequence[float]) -> tuple[list[tuple[float, float]], float]:
    """(top, height) of each row, and the height of all."""
    tops: list[tuple[float, float]] = []
    at = 0.0
    for r in range(max(rows, default=-1) + 1):
        high = max(h for h, row in zip(heights, rows, strict=True) if row == r)
        tops.append((at, high))
        at += high + GAP_Y
    return tops, max(at - GAP_Y, 0.0)


def _neighbours(n: int, links: list[Edge]) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(n)]
    below: list[list[int]] = [[] for _ in range(n)]
    for a, b in links:
        below[a].append(b)
        above[b].append(a)
    return above, below


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default
