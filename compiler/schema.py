"""JSON Schema of specs, for completion in editors: pydantic's, with the steps filled in from the op table."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from specc.compiler.elaborate.library import library_block, library_names
from specc.compiler.ops import OPS
from specc.compiler.ops.row import Arg, Op

TEXT_OR_NUMBER = {"type": ["string", "number", "integer"]}
KINDS: dict[str, dict[str, Any]] = {
    "dim": {"type": ["string", "integer"], "description": "a dim: name, number or expression"},
    "dims": {"anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": ["string", "integer"]}}]},
    "int": {"type": ["integer", "string"]},
    "float": {"type": ["number", "string"]},
    "bool": {"type": ["boolean", "string"]},
    "str": {"type": "string"},
    "expr": TEXT_OR_NUMBER,
    "mask": {"type": "string", "description": "a predicate: causal & document, prefix, q.doc == k.doc, ..."},
    "pattern": {"type": ["string", "object"]},
    "renames": {"type": "object"},
    "map": {"type": ["object", "string"]},
    "init": {"anyOf": [{"enum": ["zeros", "ones"]}, {"type": "object"}, {"type": "string"}]},
    "per": {"type": ["object", "string"], "properties": {"by": {"type": "string"}, "of": {"type": "array"}}},
    "positions": {"type": "string"},
    "value": {},
}
TIE = {"description": "an earlier call whose weights this one has", "type": "string"}
WIRING: dict[str, Any] = {
    "from": {"description": "inputs by name; default: the previous output", "type": ["string", "array", "object"]},
    "as": {"description": "names for the results", "type": ["string", "array"]},
    "name": {"description": "path of the step's parameters", "type": "string"},
    "when": {"description": "a guard over the block's arguments", "type": ["string", "boolean"]},
}


def spec_schema(top: type[BaseModel]) -> dict[str, Any]:
    """The schema of a whole spec file; `top` is the pydantic class of a spec."""
    schema = top.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"]["Step"] = step_schema()
    schema.setdefault("properties", {})["use"] = {"type": "string", "description": "another spec to start from"}
    schema["properties"]["set"] = {"type": "object", "description": "values to put in, by path"}
    schema["required"] = [n for n in schema.get("required", []) if n not in ("model", "stages")]
    return schema


def step_schema() -> dict[str, Any]:
    """A step: exactly one op or block beside its wiring."""
    calls: dict[str, Any] = {name: _op(row) for name, row in OPS.items() if not row.internal}
    calls |= {name: _block(name) for name in library_names()}
    calls["repeat"] = _repeat()
    return {
        "anyOf": [
            {"enum": sorted(calls)},
            {"type": "object", "properties": {**calls, **WIRING, "tie": TIE}, "minProperties": 1},
        ]
    }


def _op(row: Op) -> dict[str, Any]:
    properties = {name: _arg(a) for name, a in row.args.items()}
    required = [n for n, a in row.args.items() if a.is_required]
    return _call(row.doc, properties, required)


def _call(doc: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    mapping = {
        "type": "object", "properties": {**properties, **WIRING}, "additionalProperties": False, "required": required,
    }  # fmt: skip
    short = [{"type": ["string", "number", "array", "null"]}]
    return {"description": doc, "anyOf": [mapping, *short] if len(required) < 2 else [mapping, {"type": "string"}]}


def _arg(a: Arg) -> dict[str, Any]:
    schema: dict[str, Any] = {"enum": list(a.choices)} if a.kind == "choice" else dict(KINDS[a.kind])
    if a.within:
        low, high = a.within[1:-1].split(", ")
        schema["minimum" if a.within[0] == "[" else "exclusiveMinimum"] = float(low)
        if high != "inf":
            schema["maximum" if a.within[-1] == "]" else "exclusiveMaximum"] = float(high)
    if a.doc:
        schema["description"] = a.doc
    if not a.is_required and isinstance(a.default, int | float | str | bool):
        schema["default"] = a.default
    return schema


def _block(name: str) -> dict[str, Any]:
    found = library_block(name)
    assert found is not None
    block = found[0]
    properties = {n: dict(KINDS.get(text.split("=")[0].strip(), {})) for n, text in block.args.items()}
    return _call(block.doc, {**properties, "tie": TIE}, [n for n, text in block.args.items() if "=" not in text])


def _repeat() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "block": {"type": "string"}, "times": TEXT_OR_NUMBER, "args": {"type": "object"}, "start": TEXT_OR_NUMBER,
        "each": {"type": "object", "description": "arguments with an entry for each call: {out: [64, 128]}"},
        "reverse": {"type": "boolean", "description": "the lists of `each` from the end"}, "tie": TIE,
    }  # fmt: skip
    return _call("A block called `times` times, or once for each entry of lists; outputs are carried.", properties,
                 ["block"])  # fmt: skip
