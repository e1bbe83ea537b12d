"""The diagnostic of a shape that does not fit: the dims, the op, and both places that they come from."""

from __future__ import annotations

from specc.compiler.elaborate.scope import Frame, Path
from specc.compiler.elaborate.unit import Value
from specc.compiler.rules import Mismatch
from specc.compiler.types import Dim
from specc.spec.errors import Diagnostic, Mark

RENAME = "the sizes agree but the names do not: use 'rename'"


def mismatch(
    frame: Frame, what: str, e: Mismatch, value: Value, at: Path, spot: str = "", called: Mark | None = None
) -> Diagnostic:
    """`linear` at x.yaml:31 needs the last dim `D`=512 of its input, got `F`=1408 from `glu` at :29.

    `called` is where a block is called whose declaration stands at `at`."""
    declared = frame.locate(at)
    mark = called or frame.called_at or declared
    given = f"its input '{spot}'" if spot else "its input"
    if e.wanted and e.dim:
        text = f"needs the {e.place} {_dim(e.wanted)} of {given}, got {_dim(e.dim)}"
    else:
        text = f"{e} for {given}" if spot else str(e)
    source = f" from `{value.by}`{_near(value.mark, mark)}" if value.by else ""
    related = [(value.mark, f"`{value.by}` makes {value.type.shown()}")] if value.mark else []
    if called and declared:
        related.append((declared, f"`{what}` declares its input here"))
    elif frame.called_at and declared:
        related.append((declared, "here in the library"))
    place = f" at {mark.file}:{mark.line}" if mark else ""
    same_size = e.wanted and e.dim and e.wanted.size is not None and e.wanted.size == e.dim.size
    return Diagnostic("S201", f"`{what}`{place} {text}{source}", mark, RENAME if same_size else "", tuple(related))


def _dim(dim: Dim) -> str:
    return f"`{dim.name}`" if dim.size is None or not dim.is_plain else f"`{dim.name}`={dim.size}"


def _near(mark: Mark | None, beside: Mark | None) -> str:
    """The place of the source, without the file if that is the same."""
    if mark is None:
        return ""
    return f" at :{mark.line}" if beside and beside.file == mark.file else f" at {mark.file}:{mark.line}"
