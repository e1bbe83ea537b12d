"""The architecture card: every unique block drawn once, with its dataflow, shapes, parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.report.data import Block, Model, Step, Value
from specc.compiler.report.layers import Placement, place
from specc.compiler.report.text import esc, flops
from specc.compiler.units import count

CHAR = 7.0  # width of a letter of the node font
HIGH, HIGH_PORT = 42.0, 22.0
MARGIN = 8.0
MAX_OPEN = 4  # groups of a block that are shown unfolded


@dataclass(frozen=True)
class Box:
    """A node of the drawing: two lines of text, a style, a tooltip, and the dims that leave it."""

    title: str
    note: str
    style: str
    tip: str
    leaves: str = ""

    @property
    def width(self) -> float:
        return max(len(self.title) * CHAR, len(self.note) * CHAR * 0.88, 30.0) + 22

    @property
    def height(self) -> float:
        return HIGH if self.style != "port" else HIGH_PORT


def architecture(model: Model) -> str:
    """The card of a model: a line of figures, its blocks in order, and the legend."""
    dims = " ".join(f"<span class=dim><b>{esc(n)}</b> {v:,}</span>" for n, v in model["dims"].items())
    inputs = ", ".join(f"{esc(v['name'])}: {esc(v['dtype'])}[{esc(v['dims'])}]" for v in model["inputs"])
    blocks = "".join(_block(b, model) for b in model["blocks"])
    return (
        f"<div class=lead>{esc(model['doc'])}</div><p class=dims>{dims}</p>"
        f"<p class=quiet>inputs <code>{inputs}</code></p>{blocks}{_LEGEND}"
    )


_LEGEND = (
    "<p class=legend><span class='key trained'></span>trained <span class='key frozen'></span>frozen "
    "<span class='key mixed'></span>partly frozen <span class='key plain'></span>no parameters "
    "<span class=remark>dims stand beside the edges; FLOPs are forward, for one token</span></p>"
)


def _block(block: Block, model: Model) -> str:
    times = f"<span class=times>×{block['times']}</span>" if block["times"] > 1 else ""
    total = block["params"] * block["times"]
    share = total / model["params"] if model["params"] else 0.0
    each = f" <span class=quiet>({count(block['params'])} each)</span>" if block["times"] > 1 else ""
    head = (
        f"<summary><span class=name>{esc(block['name'])}</span>{times}"
        f"<span class=spread></span><span>{count(total)} parameters{each}</span>"
        f"<span>{_flops(block['flops'] * block['times'])}</span>"
        f"<span class=meter title='{share:.1%} of the parameters'><i style='width:{share:.1%}'></i></span></summary>"
    )
    makers = {v["name"]: v["by"] or _port(v["name"]) for v in block["ins"]}
    groups = [s for s in block["steps"] if s["steps"]]
    inner = "".join(_group(s, makers | _made(block["steps"]), len(groups) <= MAX_OPEN) for s in groups)
    side = f"<div class=groups>{inner}</div>" if inner else ""
    picture = _picture(block["steps"], block["ins"], block["outs"])
    return f"<details class=block open>{head}<div class=inside>{picture}{side}</div></details>"


def _group(step: Step, makers: Mapping[str, str], is_open: bool = False) -> str:
    """A step that is a block of its own, and so on inside; `makers` names what made a value outside."""
    ins = _ins_of(step["steps"], makers)
    deeper = "".join(_group(s, {**makers, **_made(step["steps"])}) for s in step["steps"] if s["steps"])
    kind = f" <span class=quiet>{esc(step['op'])}</span>" if step["op"] != step["name"] else ""
    head = f"<span class=name>{esc(step['name'])}</span>{kind}<span class=spread></span><span>{_cost(step)}</span>"
    picture = _picture(step["steps"], ins, step["outs"])
    state = " open" if is_open else ""
    return f"<details class=group{state}><summary>{head}</summary>{picture}{deeper}</details>"


def _made(steps: Sequence[Step]) -> dict[str, str]:
    """The name of the step that makes each value."""
    return {v["name"]: s["name"] for s in steps for v in s["outs"]}


def _ins_of(steps: Sequence[Step], makers: Mapping[str, str]) -> list[Value]:
    """What the steps use and none of them makes."""
    made = _made(steps)
    used = dict.fromkeys(i for s in steps for i in s["ins"] if i not in made)
    return [{"name": name, "dims": "", "dtype": "", "by": makers.get(name, "")} for name in used]


def _picture(steps: Sequence[Step], ins: Sequence[Value], outs: Sequence[Value]) -> str:
    """One level of the dataflow as a drawing."""
    made = {v["name"]: len(ins) + k for k, s in enumerate(steps) for v in s["outs"]}
    source = {v["name"]: k for k, v in enumerate(ins)} | made
    boxes = [Box(v["by"] or _port(v["name"]), "", "port", f"input {v['name']}", v["dims"]) for v in ins]
    boxes += [_box(s) for s in steps]
    edges = {(source[i], len(ins) + k) for k, s in enumerate(steps) for i in s["ins"] if i in source}
    for v in (o for o in outs if o["name"] in source):
        boxes.append(Box(v["by"] or "result", "", "port", f"value {v['name']}"))
        edges.add((source[v["name"]], len(boxes) - 1))
    used = {a for a, _ in edges} | {b for _, b in edges}
    keep = [k for k in range(len(boxes)) if k in used or boxes[k].style != "port"]
    number = {old: new for new, old in enumerate(keep)}
    shown = [boxes[k] for k in keep]
    links = sorted((number[a], number[b]) for a, b in edges)
    light = [k for k, b in enumerate(shown) if b.style == "port"]
    at = place([b.width for b in shown], [b.height for b in shown], links, light)
    return _svg(shown, links, at)


def _port(name: str) -> str:
    """Operands of a repeated block are called x_NAME, values that it captures c_NAME."""
    return name[2:] if name[:2] in {"x_", "c_"} else name


def _box(step: Step) -> Box:
    title = step["name"] + (" ▸" if step["steps"] else "")
    kind = step["detail"] or (step["op"] if step["op"] not in (step["name"], "expr") else "")
    note = " · ".join(t for t in (kind, count(step["params"]) if step["params"] else "") if t)
    dims = dict.fromkeys(v["dims"] for v in step["outs"])
    tip = f"{step['op']} {step['name']}\n{_cost(step)}"
    return Box(title, note[:34], _style(step), tip, " | ".join(dims))


def _style(step: Step) -> str:
    if not step["params"]:
        return "plain"
    if step["trained"] == 0:
        return "frozen"
    return "trained" if step["trained"] == step["params"] else "mixed"


def _cost(step: Step) -> str:
    parts = [f"{count(step['params'])} parameters"] if step["params"] else []
    parts += [_flops(step["flops"])] if step["flops"] else []
    return ", ".join(parts) or "no parameters"


def _flops(n: float) -> str:
    return flops(n) if n >= 1 else ""


def _svg(boxes: Sequence[Box], edges: Sequence[tuple[int, int]], at: Placement) -> str:
    side = max((len(b.leaves) * CHAR * 0.85 / 2 for b in boxes), default=0.0)
    width, height = at.width + 2 * MARGIN + side, at.height + 2 * MARGIN
    tops = [at.y[i] - b.height / 2 for i, b in enumerate(boxes)]
    parts = [
        f"<path class=edge d='{_route(at.routes[e], boxes[e[0]], boxes[e[1]])}' marker-end='url(#arrow)'/>"
        for e in edges
    ]
    starts = {a for a, _ in edges}
    for i, box in enumerate(boxes):
        x, y = at.x[i] - box.width / 2, tops[i]
        parts.append(_node(box, x, y))
        if box.leaves and i in starts:
            parts.append(
                f"<text class=shape x='{at.x[i] + 6:.0f}' y='{y + box.height + 13:.0f}'>{esc(box.leaves)}</text>"
            )
    view = f"{-MARGIN:.0f} {-MARGIN:.0f} {width:.0f} {height:.0f}"
    return f"<svg class=flow viewBox='{view}' width='{width:.0f}' height='{height:.0f}'>{''.join(parts)}</svg>"


def _node(box: Box, x: float, y: float) -> str:
    middle = x + box.width / 2
    radius = HIGH_PORT / 2 if box.style == "port" else 7
    rect = f"<rect x='{x:.1f}' y='{y:.1f}' width='{box.width:.1f}' height='{box.height:.0f}' rx='{radius:.0f}'/>"
    first = y + (box.height / 2 + 4 if not box.note else 18)
    lines = f"<text x='{middle:.1f}' y='{first:.1f}'>{esc(box.title)}</text>"
    if box.note:
        lines += f"<text class=note x='{middle:.1f}' y='{y + 33:.1f}'>{esc(box.note)}</text>"
    return f"<g class='node {box.style}'><title>{esc(box.tip)}</title>{rect}{lines}</g>"


def _route(points: Sequence[tuple[float, float]], start: Box, end: Box) -> str:
    """A smooth line from the bottom of a box through its lanes to the top of another."""
    (x, y), (x_end, y_end) = points[0], points[-1]
    y, y_end = y + start.height / 2, y_end - end.height / 2 - 5
    path = f"M{x:.1f} {y:.1f}"
    for lane_x, lane_y in points[1:-1]:
        top, bottom = lane_y - HIGH / 2, lane_y + HIGH / 2
        path += f"{_bend(y, lane_x, top, x)}V{bottom:.1f}"
        x, y = lane_x, bottom
    return path + _bend(y, x_end, y_end, x)


def _bend(y: float, x_to: float, y_to: float, x: float) -> str:
    if abs(x - x_to) < 0.5:
        return f"V{y_to:.1f}"
    middle = (y + y_to) / 2
    return f"C{x:.1f} {middle:.1f} {x_to:.1f} {middle:.1f} {x_to:.1f} {y_to:.1f}"
