"""A small report for the tests of the page: a two-layer model with every part filled in."""

from __future__ import annotations

import math
from typing import Any

from specc.compiler.program import Body, BodyParam, Call, Eqn, Init, Param, Program, Var, check
from specc.compiler.report.data import Action, Report, Series, Stage
from specc.compiler.report.program import model_data
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import parse

B, S, D, F, V = Dim("B"), Dim("S"), Dim("D", 16), Dim("F", 32), Dim("V", 100)
SIZES = {"B": 2, "S": 8}
X, HIDDEN, TOKENS = TensorType((B, S, D)), TensorType((B, S, F)), TensorType((B, S), "int")
NORMAL = Init("normal", {"std": 0.02})


def eqn(op: str, ins: list[str], out: str, type_: TensorType, path: str, **attrs: Any) -> Eqn:
    return Eqn(op, tuple(ins), (out,), (type_,), attrs, path)


def program() -> Program:
    """embed -> 2 x (norm, mlp block, residual; the first layer is frozen) -> head tied to embed -> loss."""
    table = TensorType((V, D))
    stem = Body(
        "stem", (Var("tokens", TOKENS),), (BodyParam("vp0", "embed.weight", table, NORMAL),),
        (eqn("embedding", ["tokens", "vp0"], "v0", X, "embed"),), ("v0",),
    )  # fmt: skip
    layer = Body(
        "layers",
        (Var("x_x", X),),
        (
            BodyParam("p0", "norm.weight", TensorType((D,)), Init("ones")),
            BodyParam("p1", "mlp.up.weight", TensorType((D, F)), NORMAL),
            BodyParam("p2", "mlp.down.weight", TensorType((F, D)), NORMAL),
        ),
        (
            eqn("rms_norm", ["x_x", "p0"], "0", X, "norm"),
            eqn("linear", ["0", "p1"], "1", HIDDEN, "mlp.up"),
            eqn("expr", ["1"], "2", HIDDEN, "mlp.expr", formula=parse("gelu(up)")),
            eqn("linear", ["2", "p2"], "3", X, "mlp.down"),
            eqn("expr", ["x_x", "3"], "4", X, "expr", formula=parse("x + _")),
        ),
        ("4",),
    )
    logits = TensorType((B, S, V))
    head = Body(
        "head", (Var("v2", X), Var("labels", TOKENS)),
        (BodyParam("vp1", "head.weight", table, NORMAL, tied="embed.weight"),),
        (eqn("linear", ["v2", "vp1"], "v3", logits, "head"),
         eqn("cross_entropy", ["v3", "labels"], "v4", TensorType(()), "cross_entropy")),
        ("v3", "v4"),
    )  # fmt: skip
    calls = [Call("stem", 0, ("tokens",), ("embed.weight",), ("v0",))]
    params = {"embed.weight": Param("embed.weight", table, NORMAL)}
    for i in range(2):
        paths = tuple(f"layers.{i}.{p.local}" for p in layer.params)
        calls.append(Call("layers", i, (f"v{i}",), paths, (f"v{i + 1}",)))
        for path, p in zip(paths, layer.params, strict=True):
            params[path] = Param(path, p.type, p.init, trainable=i > 0)
    calls.append(Call("head", 0, ("v2", "labels"), ("embed.weight",), ("v3", "v4")))
    inputs = {"tokens": TOKENS, "labels": TOKENS}
    bodies = {"stem": stem, "layers": layer, "head": head}
    return check(Program("tiny", inputs, params, bodies, tuple(calls), {"logits": "v3"}, "v4"))


def series(name: str, steps: int) -> Series:
    return {"name": name, "x": [*map(float, range(steps))], "y": [3 + 5 * math.exp(-k / 40) for k in range(steps)]}


def stage(steps: int = 200, hostile: str = "") -> Stage:
    return {
        "name": "pretrain", "kind": "pretrain", "after": [], "status": "done", "key": "0123456789abcdef",
        "steps": steps, "steps_done": steps, "tokens": 4096 * steps, "unit": "token", "seconds": 75.0, "entropy": 6.5,
        "series": [series(n, steps) for n in ("loss", "val_loss", "lr", "grad_norm", "tokens_per_s")],
        "samples": [
            {"step": 100, "prompt": "def ", "text": "f(x): return x"},
            {"step": 200, "prompt": "import" + hostile, "text": " os" + hostile},
        ],
        "notes": ["resumed at step 100" + hostile],
    }  # fmt: skip


def report(steps: int = 200, hostile: str = "", microbatches: int = 2) -> Report:
    """`hostile` is put into every text that comes from a spec, a data set or a model."""
    card = model_data(program(), SIZES, tokens=16, doc="A tiny decoder." + hostile)
    card["blocks"][0]["steps"][0]["name"] += hostile
    calls = [c.body for c in program().calls]
    actions: list[Action] = []
    for m in range(microbatches):
        for kind, order in (("F", calls), ("B", calls[::-1])):
            for c in order:
                n = len(actions)
                actions.append({
                    "kind": kind, "label": c, "microbatch": m, "start": 10.0 * n, "work": 10.0, "live": 1000 * n,
                })  # fmt: skip
    end = 10.0 * len(actions)
    actions.append({"kind": "STEP", "label": "", "microbatch": -1, "start": end, "work": 2.0, "live": 100})
    shares = [("weights", 4000), ("gradients", 4000), ("optimizer", 8000), ("activations", 90_000)]
    return {
        "name": "tiny" + hostile, "doc": "A test." + hostile, "version": "0.1.0", "key": "fedcba9876543210",
        "figures": [{"label": "parameters", "value": "3.7 K", "note": hostile}],
        "stages": [stage(steps, hostile)],
        "models": [card],
        "memory": [{"stage": "pretrain", "shares": [{"category": c, "bytes": n} for c, n in shares],
                    "limit": 200_000, "measured": 101_000}],
        "schedules": [{"stage": "pretrain" + hostile, "note": "widths are FLOPs" + hostile, "ranks": [actions]}],
        "compiled": [{"stage": "pretrain", "block": "layers" + hostile, "times": 2, "forward": 9, "backward": 20,
                      "saved": 12_000, "how": "graph"}],
        "covers": [{"stage": "pretrain" + hostile, "block": "layers" + hostile, "ops": [214, 38], "bytes": [1235, 230],
                    "left": {"alone, it gains nothing" + hostile: 1}}],
        "kernels": [{"name": "expr_rms_norm_1a2b" + hostile, "places": ["llama.yaml:27:5" + hostile],
                     "used": "aten" + hostile, "targets": ["sm90" + hostile], "registers": 112, "spilled": 0,
                     "shared": 25_088}],
        "files": [{"path": "spec.yaml" + hostile, "sha256": "ab" * 32, "bytes": 321}],
    }  # fmt: skip
