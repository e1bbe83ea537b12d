"""Name tables: how a published checkpoint names, lays out and joins what a model's parameters hold.

`spec/models/names/NAME.yaml` is the table of `spec/models/NAME.yaml` (or of the model it names)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import product
from typing import Any, Literal

from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.expr import ExprError, evaluate, parse
from specc.spec.loader import Document, load_text, validate
from specc.spec.node import Node

BRACED = re.compile(r"\{(\w+)\}")


class NameRule(Node):
    """One tensor of the checkpoint and the parameters in it; `{i}` in a name stands for a number.

    `pattern` says how their dims become ours: `(h e) d -> d h e` (None: the same dims). Several `ours` stand one
    after the other along their dim `concat`; `pattern` is then for all, or one for each. A `{n}` that only `theirs`
    has counts tensors that are stacked along a new first dim, which is the pattern's first letter."""

    theirs: str
    ours: str | list[str]
    pattern: str | list[str] | None = None
    concat: int = 0
    each: dict[str, list[str]] = {}  # a rule for each choice of these words, written `{word}` in the names
    when: str | None = None  # over the checkpoint's config

    def chosen(self) -> Iterator[NameRule]:
        """The rules that `each` stands for."""
        for words in product(*self.each.values()):
            choice = dict(zip(self.each, words, strict=True))
            ours = [filled(o, choice) for o in ([self.ours] if isinstance(self.ours, str) else self.ours)]
            yield self.model_copy(update={"theirs": filled(self.theirs, choice), "ours": ours, "each": {}})


class Variant(Node):
    """Settings for checkpoints whose config says so; `config` is what a config says then that is made."""

    when: str
    set: dict[str, Any] = {}
    numbers: dict[str, str] = {}  # further constants of the model
    config: dict[str, Any] = {}
    unused: list[str] = []  # dims that the model then has not


class NameTable(Node):
    """How checkpoints of one family map to one model. A file may say `like: NAME`, and what it adds to that table."""

    specc: Literal[1]
    doc: str = ""
    model: str
    dims: dict[str, str | int] = {}  # dim of the model: expression over the config
    numbers: dict[str, str | float] = {}  # the same for the model's constants
    assumes: dict[str, Any] = {}  # config keys that must have this value (or one of these): the model is written for it
    defaults: dict[str, Any] = {}  # config keys that files may leave out
    derived: dict[str, str] = {}  # keys that they may leave out or have as null: expressions over the others
    config: dict[str, Any] = {}  # what a config that is made says beside all this: `model_type` and `architectures`
    variants: list[Variant] = []
    names: list[NameRule]
    prefix: str = ""  # of all names, which a file of the model without its head may leave out
    ignore: list[str] = []  # tensors of the checkpoint that are not parameters
    initial: list[str] = []  # parameters that are in no checkpoint: they stay as they are initialised

    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """All that a config says, inner keys joined by `_`, with what it leaves out."""
        found = {**self.defaults, **flat(standard(config))}
        for key, text in self.derived.items():
            if found.get(key) is None:
                found[key] = looked_up(text, found)
        return found

    def overrides(self, config: Mapping[str, Any]) -> list[str]:
        """Overrides `a.b=value` that turn the model into the checkpoint's; raises SpecError if it cannot be that."""
        known = self.known(config)
        allowed = {k: v if isinstance(v, list) else [v] for k, v in self.assumes.items()}
        wrong = [
            f"{k} is {known.get(k)!r}, not {self.assumes[k]!r}" for k, v in allowed.items() if known.get(k) not in v
        ]
        if wrong:
            raise SpecError(Diagnostic("S308", f"the model '{self.model}' is not this checkpoint's: {wrong[0]}"))
        sizes = {f"model.dims.{dim}": _whole(text, looked_up(text, known)) for dim, text in self.dims.items()}
        sizes |= {f"model.numbers.{name}": looked_up(text, known) for name, text in self.numbers.items()}
        for variant in self.variants:
            if looked_up(variant.when, known):
                sizes = {k: v for k, v in sizes.items() if k not in {f"model.dims.{n}" for n in variant.unused}}
                sizes |= {f"model.numbers.{name}": looked_up(text, known) for name, text in variant.numbers.items()}
                sizes |= variant.set
        return [f"{path}={shown(value)}" for path, value in sizes.items()]

    def rules(self, config: Mapping[str, Any]) -> list[NameRule]:
        """The rules for a checkpoint with this config."""
        known = self.known(config)
        used = (r for r in self.names if r.when is None or looked_up(r.when, known))
        return [rule for r in used for rule in r.chosen()]


def load_names(name: str) -> NameTable:
    """The table called `name`."""
    if name not in (known := name_tables()):
        raise SpecError(Diagnostic("S001", f"there is no name table '{name}'", None, did_you_mean(name, known)))
    document = _document(name)
    while (like := document.data.pop("like", None)) is not None:
        document = Document(_over(_document(like).data, document.data), document.marks)
    return validate(document, NameTable)


def _document(name: str) -> Document:
    text = (files("specc.spec.models.names") / f"{name}.yaml").read_text(encoding="utf-8")
    return load_text(text, f"specc:models/names/{name}.yaml")


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A table with what another adds to it: entries of mappings and lists, other values instead of its own."""
    found = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict):
            found[key] = {**base[key], **own[key]}
        elif isinstance(base[key], list):
            found[key] = [*base[key], *own[key]]
    return found


def name_tables() -> list[str]:
    """What the tables are called."""
    found = files("specc.spec.models.names").iterdir()
    return sorted(p.name.removesuffix(".yaml") for p in found if p.name.endswith(".yaml"))


def table_for(config: Mapping[str, Any]) -> str:
    """The table of checkpoints with this config, by its `model_type`; raises SpecError if not just one is."""
    kinds = {name: load_names(name).config.get("model_type") for name in name_tables()}
    found = [name for name, kind in kinds.items() if kind is not None and kind == config.get("model_type")]
    if len(found) != 1:
        text = f"no name table is known for the model_type {config.get('model_type')!r} of the checkpoint"
        hint = f"say which one with 'names': {', '.join(kinds)}"
        raise SpecError(Diagnostic("S308", text, None, hint))
    return found[0]


def standard(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with its rotary settings in `rope_parameters`: older files say `rope_theta` and `rope_scaling`."""
    if not isinstance(config.get("rope_parameters") or {}, Mapping):
        raise SpecError(Diagnostic("S308", f"the checkpoint's rope_parameters are {config['rope_parameters']!r:.80}"))
    if config.get("rope_parameters") or not {"rope_theta", "rope_scaling"} & set(config):
        return config
    scaling, theta = config.get("rope_scaling") or {}, config.get("rope_theta")
    if not isinstance(scaling, Mapping) or (scaling and not {"type", "rope_type"} & set(scaling)):
        raise SpecError(Diagnostic("S308", f"the checkpoint's rope_scaling has no type: {scaling!r:.80}"))
    found = {"rope_type": scaling.get("type", "default"), **({} if theta is None else {"rope_theta": theta}), **scaling}
    return {**config, "rope_parameters": found}


def filled(pattern: str, words: Mapping[str, str]) -> str:
    """The pattern with words for those of its `{name}` that have one."""
    return BRACED.sub(lambda m: words.get(m[1], m[0]), pattern)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config whose inner keys are joined by `_`: rope_parameters_rope_theta."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}_") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _whole(text: str | int, value: Any) -> Any:
    """A size, or a list of them."""
    if any(type(n) is not int for n in (value if isinstance(value, list) else [value])):
        raise SpecError(Diagnostic("S308", f"the checkpoint's '{text}' is {value!r:.80}, not a whole number"))
    return value


def looked_up(text: str | float, known: Mapping[str, Any]) -> Any:
    """The value of an expression over the config; a plain name may stand for a list, and null counts as 0."""
    if isinstance(text, str) and isinstance(known.get(text), list | tuple):
        return list(known[text])
    numbers = {k: v or 0 for k, v in known.items() if v is None or isinstance(v, bool | int | float)}
    try:
        return evaluate(parse(text), numbers)
    except ExprError as e:
        raise SpecError(Diagnostic("S308", f"the checkpoint's config does not say '{text}': {e}")) from None


def shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)
