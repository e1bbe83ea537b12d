"""Tied weights: a step with a parameter of another step, and a block call with all those of an earlier call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specc.compiler.elaborate.args import substitute
from specc.compiler.elaborate.scope import Frame, Path, Poisoned, StepFailed, Tie
from specc.compiler.elaborate.unit import Called
from specc.compiler.program import BodyParam, Init
from specc.compiler.types import TensorType, same
from specc.spec.errors import Diagnostic, did_you_mean
from specc.spec.model import Block

ANOTHER_NAME = "give one of the steps another 'name:', or let a block call share the weights of another: 'tie: NAME'"


def tied_weight(frame: Frame, source: str, wanted: TensorType, at: Path) -> str:
    """The operand for a weight shared with the step `source` (or a parameter's path), dims in the wanted order."""
    params = frame.ctx.model.params
    path = source if source in params else f"{source}.weight"
    if path not in params:
        known = [p.removesuffix(".weight") for p in params]
        frame.fail(
            "S105",
            f"there is no parameter '{path}' to share before this step",
            at,
            did_you_mean(source, known),
        )
    frame.ctx.shared.add(path)
    have = params[path].type
    if sorted(d.name for d in have.dims) != sorted(d.name for d in wanted.dims):
        frame.fail("S201", f"'{path}' is {have.shown()}, this step needs {wanted.shown()}", at)
    name = operand(frame, path, have)
    if have.dims == wanted.dims:
        return name
    letters = {d.name: f"a{i}" for i, d in enumerate(have.dims)}
    pattern = f"{' '.join(letters.values())} -> {' '.join(letters[d.name] for d in wanted.dims)}"
    return frame.emit("rearrange", [name], (wanted,), {"pattern": pattern}, f"{frame.prefix}tie")[0].name


def operand(frame: Frame, path: str, type_: TensorType) -> str:
    """The operand of this frame's unit that stands for a parameter of the whole model."""
    names = (n for n, p in frame.unit.params.items() if path == p.tied or (path == p.local and frame.own_unit is None))
    return next(names, None) or frame.unit.add_param(path, type_, Init("zeros"), tied=path)


def without_tie(frame: Frame, block: Block, raw: Any) -> tuple[Any, Any]:
    """The arguments of a block call, and what its `tie:` says, unless the block has an argument of that name."""
    raw = substitute(frame, raw)
    if not isinstance(raw, Mapping) or "tie" not in raw or "tie" in block.args:
        return raw, None
    return {k: v for k, v in raw.items() if k != "tie"}, substitute(frame, raw["tie"])


def tie_to(frame: Frame, source: Any, what: str, own: str, at: Path) -> Tie:
    """The tie of a call at the path `own` to the earlier call `source`, as this block or the whole model names it."""
    if not isinstance(source, str):
        frame.fail("S103", f"'tie' names an earlier call, got {source!r}", at)
    whole, here = frame.ctx.model.called, _calls(frame)
    found = here.get(frame.prefix + source) or whole.get(source)
    if found is None:
        near = [p.removeprefix(frame.prefix) for p in here if p.startswith(frame.prefix)]
        known = [p for p in (*near, *whole) if p != own.removeprefix(frame.prefix)]
        frame.fail("S105", f"no call before this one is named '{source}'", at, did_you_mean(source, known))
    if found.what != what:
        hint = "calls that share weights call the same block"
        frame.fail("S116", f"'{source}' is a call of `{found.what}`, this one of `{what}`", at, hint)
    return Tie(own, found.path, found.is_whole, frame.called_at or frame.locate(at))


def note_call(frame: Frame, label: str, what: str) -> None:
    """Remember a call for those that are tied to it; one that is tied itself leads to where its parameters are."""
    _calls(frame)[frame.prefix + label] = Called(what, *followed(frame, frame.prefix + label))


def note_tie(frame: Frame, inner: Frame) -> None:
    """What a call is tied to, once known; a tile's own unit does not know where the tile stands."""
    if inner.tie is not None and inner.own_unit is frame.own_unit:
        _calls(frame)[inner.tie.own] = Called(inner.stack[-1], inner.tie.source, inner.tie.is_whole)


def note_tile(frame: Frame, label: str, what: str, inner: Mapping[str, Called]) -> None:
    """Remember a call of a repeat, and those in it."""
    note_call(frame, label, what)
    for path, call in inner.items():
        below = followed(frame, f"{frame.prefix}{label}.{call.path}")
        found = call if call.is_whole else Called(call.what, *below)
        frame.ctx.model.called[f"{frame.prefix}{label}.{path}"] = found


def shared_weight(frame: Frame, local: str, wanted: TensorType, at: Path) -> str:
    """The operand for a parameter of a tied call."""
    path, is_whole = shared_path(frame, local, wanted, at)
    if is_whole:
        return operand(frame, path, frame.ctx.model.params[path].type)
    return next(n for n, p in frame.unit.params.items() if p.local == path)


def shared_path(frame: Frame, local: str, wanted: TensorType, at: Path) -> tuple[str, bool]:
    """Where the parameter of a tied call stands that would be called `local`; its shape must be the wanted one."""
    path, is_whole = followed(frame, local)
    have = frame.ctx.model.params.get(path) if is_whole else _of_unit(frame, path)
    if have is None and frame.ctx.diagnostics:
        raise Poisoned  # the other call's own mistakes may be why
    if have is None:
        hint = "a tied call has parameters of the earlier one alone: let the call that has more of them stand first"
        raise _unlike(frame, f"there is no parameter '{path}' to share as '{local}'", hint, at)
    pairs = list(zip(have.type.dims, wanted.dims, strict=False))
    if len(have.type.dims) != len(wanted.dims) or not all(same(a, b) for a, b in pairs):
        hint = "arguments that shape parameters must be those of the earlier call"
        raise _unlike(frame, f"'{path}' is {have.type.shown()}, this call needs {wanted.shown()}", hint, at)
    return path, is_whole


def _unlike(frame: Frame, message: str, hint: str, at: Path) -> StepFailed:
    """A parameter that a tied call needs and has not: told of the call, not of the block that has no fault."""
    assert frame.tie is not None
    step = frame.locate(at)
    related = ((step, "needed here"),) if step and frame.called_at is None else ()
    return StepFailed(Diagnostic("S116", message, frame.tie.mark or step, hint, related))


def followed(frame: Frame, path: str) -> tuple[str, bool]:
    """The path of a parameter or call below the call that this frame's is tied to."""
    if frame.tie is None:
        return path, frame.own_unit is None
    below = path.removeprefix(frame.tie.own).removeprefix(".")
    return f"{frame.tie.source}.{below}".removesuffix("."), frame.tie.is_whole


def _calls(frame: Frame) -> dict[str, Called]:
    """The calls of this frame's repeated block, or of the model."""
    return frame.ctx.model.called if frame.own_unit is None else frame.own_unit.called


def _of_unit(frame: Frame, local: str) -> BodyParam | None:
    return next((p for p in frame.unit.params.values() if p.local == local and not p.tied), None)
