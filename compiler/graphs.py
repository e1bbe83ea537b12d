"""Functional ATen graphs as data: JSON without code, readable text, and the checks that every graph passes.

Loading rebuilds a torch.fx.GraphModule from names of operators; no text of a file is ever executed."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

# What is the CPU's alone, and what stands for it on other devices (compiler.lower.flash).
ELSEWHERE = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": "specc.flash_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": "specc.flash_attention_backward.default",
}
NAMESPACES = ("aten", "prims", "specc", "_c10d_functional")
CARRIED = ("unshard_start", "unshard_finish", "reduce_start", "reduce_finish")  # the graphs of parameters
NAME = re.compile(r"[a-z]\d+")
_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool)}  # fmt: skip
_LAYOUTS = {"strided": torch.strided}
_FORMATS = {"contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format,
            "channels_last": torch.channels_last}  # fmt: skip


@dataclass(frozen=True)
class Carry:
    """How a call's parameters come from where they are kept to where they are used, and their gradients back.

    `unshard_start(*kept, *coordinates) -> (*pending)` begins collectives, `unshard_finish(*pending) -> (*used)` waits
    for them; `reduce_start(*gradients, *coordinates) -> (*pending)`, `reduce_finish(*pending) -> (*kept gradients)`.
    `gathered` and `reduced` are the places among the call's parameters of those that these graphs take; others are used
    as they are kept."""

    gathered: tuple[int, ...] = ()
    reduced: tuple[int, ...] = ()
    unshard_start: fx.GraphModule | None = None
    unshard_finish: fx.GraphModule | None = None
    reduce_start: fx.GraphModule | None = None
    reduce_finish: fx.GraphModule | None = None

    def parts(self) -> dict[str, fx.GraphModule | None]:
        return {name: getattr(self, name) for name in CARRIED}


@dataclass(frozen=True)
class Graphs:
    """A lowered body. `fwd(*ins, *params) -> (*outs, *saved)`; `bwd(*saved, *d_outs) -> (*d_ins, *d_params)`.

    On a mesh, the rank's coordinates follow the parameters of fwd, and `carry` has the parameters' own graphs.

    `bwd_input(*saved, *d_outs) -> (*d_ins, *live)` and `bwd_weight(*live) -> (*d_params)` are its two halves.
    Gradients are those of the flagged operands, in order; `out_grads` says which outs have a cotangent.
    `saved_from[i]` is the index of the operand of fwd that the i-th saved value is, or -1."""

    fwd: fx.GraphModule
    bwd: fx.GraphModule | None
    bwd_input: fx.GraphModule | None
    bwd_weight: fx.GraphModule | None
    n_outs: int
    in_grads: tuple[bool, ...]
    param_grads: tuple[bool, ...]
    out_grads: tuple[bool, ...]
    saved_from: tuple[int, ...] = ()
    saved_bytes: int = 0
    carry: Carry | None = None

    def parts(self) -> dict[str, fx.GraphModule]:
        named = {"fwd": self.fwd, "bwd": self.bwd, "bwd_input": self.bwd_input, "bwd_weight": self.bwd_weight}
        named |= self.carry.parts() if self.carry else {}
        return {n: g for n, g in named.items() if g is not None}


def comes_again(n_ins: int, gathered: Iterable[int], saved_from: Iterable[int]) -> dict[int, int]:
    """Which saved values are parameters that come again for the backward: place among the saved -> the call's."""
    ours = {n_ins + i: i for i in gathered}
    return {j: ours[source] for j, source in enumerate(saved_from) if source in ours}


def verify(gm: fx.GraphModule) -> fx.GraphModule:
    """Assert that a graph is well formed, functional, typed, and made of allowed operators alone."""
    gm.graph.lint()
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        assert node.op == "call_function", f"{node.name} is a {node.op}"
        target = node.target
        assert target is operator.getitem or isinstance(target, torch._ops.OpOverload), f"{target}"
        if isinstance(target, torch._ops.OpOverload):
            assert target.namespace in NAMESPACES, f"{target} is not an allowed operator"
            assert not target._schema.is_mutable, f"{target} mutates its operands"
        assert "val" in node.meta, f"{node.name} has no type"
    return gm


def to_json(gm: fx.GraphModule) -> str:
    """The graph as JSON with names made here; equal graphs give equal bytes."""
    names: dict[fx.Node, str] = {}
    rows: list[dict[str, Any]] = []
    for node in gm.graph.nodes:
        if node.op == "output":
            rows.append({"op": "output", "args": _encode(node.args[0], names)})
            continue
        names[node] = f"{'a' if node.op == 'placeholder' else 'n'}{len(names)}"
        row: dict[str, Any] = {"name": names[node], "op": node.op, "type": node_type(node)}
        if node.op == "call_function":
            row["target"] = "getitem" if node.target is operator.getitem else str(node.target)
            row["args"] = _encode(node.args, names)
            if node.kwargs:
                row["kwargs"] = {k: _encode(v, names) for k, v in sorted(node.kwargs.items())}
        rows.append(row)
    return "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n"


def from_json(text: str, device: torch.device | None = None) -> fx.GraphModule:
    """The graph of a JSON text; raises ValueError on anything that to_json does not write.

    What it makes without an operand (a range, say) is made on `device`, by default the CPU, where it was lowered."""
    is_elsewhere = device is not None and device.type != "cpu"
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for row in json.loads(text):
        if row["op"] == "output":
            graph.output(tuple(_decode(row["args"], nodes)))
            continue
        name = row["name"]
        if not NAME.fullmatch(name) or name in nodes:
            raise ValueError(f"'{name}' is not a name of a graph")
        if row["op"] == "placeholder":
            node = graph.placeholder(name)
        elif row["op"] == "call_function":
            kwargs = {k: _decode(v, nodes) for k, v in row.get("kwargs", {}).items()}
            if device is not None and isinstance(kwargs.get("device"), torch.device):
                kwargs["device"] = device
            if not all(k.isidentifier() and k.isascii() for k in kwargs):
                raise ValueError(f"bad argument names in {name}")
            target = ELSEWHERE.get(row["target"], row["target"]) if is_elsewhere else row["target"]
            node = graph.call_function(resolve(target), tuple(_decode(row["args"], nodes)), kwargs)
        else:
            raise ValueError(f"'{row['op']}' is not an operation of a graph")
        node.meta["type"] = row["type"]
        nodes[name] = node
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def resolve(target: str) -> Any:
    """The operator of a name such as `aten.mm.default`, from the allowed namespaces alone."""
    if target == "getitem":
        return operator.getitem
    parts = target.split(".")
    if len(parts) != 3 or parts[0] not in NAMESPACES or not all(p.isidentifier() for p in parts):
        raise ValueError(f"'{target}' is not an allowed operator")
    return getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])


def to_text(gm: fx.GraphModule) -> str:
    """`%n7: float32[4096, 512] = aten.mm.default(%n5, %a3)`, a line a node."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in gm.graph.nodes:
        if node.op == "output":
            lines.append(f"return {', '.join('-' if n is None else '%' + names[n] for n in node.args[0])}")
            continue
        names[node] = f"{'a' if node.op == 'placeholder' else 'n'}{len(names)}"
        head = f"%{names[node]}: {type_text(_type(node.meta.get('val')) or node.meta.get('type'))}"
        if node.op == "placeholder":
            lines.append(head)
            continue
        target = "getitem" if node.target is operator.getitem else str(node.target)
        args = [_arg_text(a, names) for a in node.args] + [f"{k}={_arg_text(v, names)}" for k, v in node.kwargs.items()]
        lines.append(f"{head} = {target}({', '.join(args)})")
    return "\n".join(lines) + "\n"


def type_text(t: Any) -> str:
    if not t:
        return "?"
    if isinstance(t[0], str):
        return f"{t[0]}[{', '.join(map(str, t[1]))}]"
    return "(" + ", ".join(type_text(part) for part in t) + ")"


def tensor_bytes(t: Any) -> int:
    """Bytes of a node's value from its recorded type."""
    if not t:
        return 0
    if isinstance(t[0], str):
        return int(math.prod(t[1])) * _DTYPES[t[0]].itemsize
    return sum(tensor_bytes(part) for part in t)


def node_type(node: fx.Node) -> Any:
    return _type(node.meta.get("val")) or node.meta.get("type")


def _type(val: Any) -> Any:
    if isinstance(val, torch.Tensor):
        return [str(val.dtype).removeprefix("torch."), [int(n) for n in val.shape], [int(n) for n in val.stride()]]
    if isinstance(val, list | tuple):
        return [_type(v) for v in val]
    return None


def _arg_text(a: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(a, fx.Node):
        return f"%{names[a]}"
    if isinstance(a, list | tuple):
        return f"[{', '.join(_arg_text(x, names) for x in a)}]"
    return str(a).removeprefix("torch.")


def _encode(a: Any, names: Mapping[fx.Node, str]) -> Any:
    if isinstance(a, fx.Node):
        return {"node": names[a]}
    if isinstance(a, list | tuple):
        return [_encode(x, names) for x in a]
    if isinstance(a, float) and not math.isfinite(a):
        return {"float": str(a)}
    if a is None or isinstance(a, bool | int | float | str):
        return a
    for kind, table in (("dtype", _DTYPES), ("layout", _LAYOUTS), ("format", _FORMATS)):
        for name, value in table.items():
            if value is a:
                return {kind: name}
    if isinstance(a, torch.device):
        return {"device": a.type}
    raise TypeError(f"a graph cannot hold {a!r}")


def _decode(a: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(a, list):
        return [_decode(x, nodes) for x in a]
    if not isinstance(a, dict):
        return a
    ((kind, value),) = a.items()
    tables: dict[str, Mapping[str, Any]] = {"node": nodes, "dtype": _DTYPES, "layout": _LAYOUTS, "format": _FORMATS}
    if kind in tables:
        if value not in tables[kind]:
            raise ValueError(f"no {kind} is called '{value}'")
        return tables[kind][value]
    if kind == "float":
        return float(value)
    if kind == "device":
        return torch.device(value)
    raise ValueError(f"'{kind}' is not a kind of argument")


def dtype_named(name: str) -> torch.dtype:
    return _DTYPES[name]
