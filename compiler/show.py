"""A model as a tree: parameters, FLOPs a token and bytes of each part; repeated parts are drawn once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from specc.compiler.cost import body_cost, n_params, program_cost
from specc.compiler.program import Param, Program
from specc.compiler.units import count, size

TILE = re.compile(r"\.\d+(?=\.|$)")


@dataclass
class Node:
    """A part of the model: its own parameters and its children by name."""

    params: list[Param] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)
    times: int = 1
    repeated: int = 0  # numbers of all its tiles, which may differ, where it is repeated

    def numel(self) -> int:
        """Of one tile."""
        own = sum(p.type.numel({}) for p in self.params)
        return own + sum(c.whole() for c in self.children.values())

    def whole(self) -> int:
        return self.repeated or self.numel() * self.times


def tree(params: Mapping[str, Param]) -> Node:
    """Parameters by path; `layers.0.` to `layers.31.` become one child `layers` that counts 32 times."""
    root = Node()
    tiles: dict[str, set[str]] = {}
    for path, p in params.items():
        *parts, _ = path.split(".")
        node, at = root, ""
        for i, part in enumerate(parts):
            if part.isdigit() and i:
                tiles.setdefault(at, set()).add(part)
                node.times = len(tiles[at])
                if not any(before.isdigit() for before in parts[1:i]):  # tiles within tiles are drawn as one's
                    node.repeated += p.type.numel({})
                continue
            at = f"{at}.{part}".strip(".")
            node = node.children.setdefault(part, Node())
        if not _later_tile(path, tiles):
            node.params.append(p)
    return root


def _later_tile(path: str, tiles: Mapping[str, set[str]]) -> bool:
    """Whether a tile's first copy was already counted."""
    found = TILE.search(path)
    if not found:
        return False
    head = TILE.sub("", path[: found.start()])
    first = min((int(t) for t in tiles.get(head, {"0"})), default=0)
    return int(found.group()[1:]) != first


def model_tree(program: Program) -> str:
    """Lines such as `layers x32   218.1 M   layers.0.attention.q.weight  [D H E]`."""
    root = tree(program.params)
    lines = [f"{program.name}  {count(n_params(program))} parameters"]
    frozen = n_params(program) - n_params(program, trainable=True)
    if frozen:
        lines[0] += f", {count(frozen)} frozen"
    return "\n".join([*lines, *_lines(root, "")])


def _lines(node: Node, indent: str) -> Iterator[str]:
    for p in node.params:
        leaf = p.path.rsplit(".", 1)[-1]
        dims = " ".join(d.shown() for d in p.type.dims)
        state = "" if p.trainable else "  frozen"
        yield f"{indent}  {leaf} [{dims}]  {count(p.type.numel({}))}  {p.init}{state}"
    for name, child in node.children.items():
        times = f" x{child.times}" if child.times > 1 else ""
        yield f"{indent}  {name}{times}  {count(child.whole())}"
        yield from _lines(child, indent + "  ")


def work_table(program: Program, sizes: Mapping[str, int], tokens: int, itemsize: int = 4) -> str:
    """FLOPs a token (forward) and bytes touched of each body, and of the whole model."""
    calls: dict[str, int] = {}
    for call in program.calls:
        calls[call.body] = calls.get(call.body, 0) + 1
    rows = [f"{'block':<16}{'calls':>6}{'FLOPs/token':>14}{'bytes':>12}"]
    for name, n in calls.items():
        cost = body_cost(program.bodies[name], sizes, itemsize)
        rows.append(f"{name:<16}{n:>6}{count(n * cost.flops / tokens):>14}{size(n * cost.bytes):>12}")
    whole = program_cost(program, sizes, itemsize)
    rows.append(f"{'all':<16}{len(program.calls):>6}{count(whole.flops / tokens):>14}{size(whole.bytes):>12}")
    return "\n".join(rows)
