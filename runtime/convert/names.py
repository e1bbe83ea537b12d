"""A name table applied to a model's parameters: tensors of a checkpoint to parameters, and parameters back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from specc.runtime.convert.layout import Layout, layout
from specc.runtime.errors import RunError
from specc.spec.names import NameRule

NUMBER = re.compile(r"\{(\w+)\}")
DIFFERS = "'{}' differs from another tensor for '{}'"


@dataclass(frozen=True)
class Link:
    """One tensor of the checkpoint (several, if they are `stacked`) and the parameters that it holds."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layouts: tuple[Layout, ...]
    concat: int
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each of the checkpoint's tensors."""
        shape = list(self.layouts[0].theirs)
        if len(self.ours) > 1:
            shape[self.concat] = sum(x.theirs[self.concat] for x in self.layouts)
        return tuple(shape[1:] if self.stacked else shape)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raises RunError if one of the tensors has another shape than the model needs."""
        if tuple(shape) != self.shape:
            raise RunError(f"'{name}' is {list(shape)}, the model needs {list(self.shape)}")

    def to_ours(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        for name, t in zip(self.theirs, tensors, strict=True):
            self.check(name, t.shape)
        whole = torch.stack(list(tensors)) if self.stacked else tensors[0]
        parts = [whole]
        if len(self.ours) > 1:
            parts = list(torch.split_with_sizes(whole, [x.theirs[self.concat] for x in self.layouts], self.concat))
        return {n: x.to_ours(t) for n, x, t in zip(self.ours, self.layouts, parts, strict=True)}

    def to_theirs(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        parts = [x.to_theirs(t) for x, t in zip(self.layouts, tensors, strict=True)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, self.concat)
        return dict(zip(self.theirs, whole.unbind() if self.stacked else [whole], strict=True))


def links(rules: Sequence[NameRule], shapes: Mapping[str, tuple[int, ...]]) -> list[Link]:
    """What the rules say of parameters of these shapes, by path."""
    return [link for rule in rules for link in _rule_links(rule, shapes)]


def _rule_links(rule: NameRule, shapes: Mapping[str, tuple[int, ...]]) -> list[Link]:
    ours = [rule.ours] if isinstance(rule.ours, str) else rule.ours
    patterns = rule.pattern if isinstance(rule.pattern, list) else [rule.pattern] * len(ours)
    first = re.compile(NUMBER.sub(r"(?P<\1>[0-9]+)", re.escape(ours[0]).replace(r"\{", "{").replace(r"\}", "}")))
    found: list[Link] = []
    for match in (m for m in map(first.fullmatch, shapes) if m):
        paths = tuple(_filled(o, match.groupdict()) for o in ours)
        missing = [p for p in paths if p not in shapes]
        if missing:
            raise RunError(f"the rule for '{rule.theirs}' names '{missing[0]}', which the model has not")
        try:
            layouts = tuple(layout(p, shapes[o]) for p, o in zip(patterns, paths, strict=True))
        except ValueError as e:
            raise RunError(f"the rule for '{rule.theirs}': {e}") from None
        name = _filled(rule.theirs, match.groupdict())
        counted = NUMBER.search(name)
        names = [name] if not counted else [NUMBER.sub(str(n), name) for n in range(layouts[0].theirs[0])]
        found.append(Link(tuple(names), paths, layouts, rule.concat, counted is not None))
    return found


def _filled(pattern: str, numbers: Mapping[str, str]) -> str:
    return NUMBER.sub(lambda m: numbers.get(m[1], m[0]), pattern)


def from_checkpoint(
    found: Sequence[Link], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ignore: Sequence[str]
) -> dict[str, Tensor]:
    """Every parameter from the checkpoint; raises RunError if one is missing or a tensor is left over."""
    params: dict[str, Tensor] = {}
    for link in usable(found, tensors, shapes, ignore):
        for path, t in link.to_ours([tensors[n] for n in link.theirs]).items():
            if path in params and not torch.equal(params[path], t):
                raise RunError(DIFFERS.format(link.theirs[0], path))
            params[path] = t.contiguous()
    return params


def usable(
    found: Sequence[Link], names: Collection[str], wanted: Collection[str], ignore: Sequence[str]
) -> list[Link]:  # fmt: skip
    """The links whose tensors are all in the checkpoint; raises RunError if they do not make all that is wanted, or if
    it has a tensor that no rule names."""
    used = [link for link in found if all(n in names for n in link.theirs)]
    made = {p for link in used for p in link.ours}
    known = {n for link in found for n in link.theirs}
    missing = [p for p in wanted if p not in made]
    extra = [n for n in names if n not in known and not any(fnmatchcase(n, p) for p in ignore)]
    if missing or extra:
        what = f"nothing for '{missing[0]}'" if missing else f"'{extra[0]}', which no rule names"
        raise RunError(f"the checkpoint has {what} (parameters missing: {len(missing)}, tensors left: {len(extra)})")
    return used


def to_checkpoint(found: Sequence[Link], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as the checkpoint names them, of the links whose parameters are all there (gradients, say)."""
    out: dict[str, Tensor] = {}
    for link in found:
        if all(p in params for p in link.ours):
            out |= link.to_theirs([params[p] for p in link.ours])
    return out
