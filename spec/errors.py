"""Diagnostics: every mistake in a spec has a code, a place, a message and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mark:
    """A place in a source text; `line` and `column` count from 1, `length` is in characters."""

    file: str
    line: int
    column: int
    length: int = 1
    text: str = ""  # the whole source line, for the excerpt

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Diagnostic:
    """One mistake. `related` are other places that explain it, each with a short text."""

    code: str
    message: str
    mark: Mark | None = None
    hint: str = ""
    related: tuple[tuple[Mark, str], ...] = field(default=())

    def __str__(self) -> str:
        where = f"{self.mark}: " if self.mark else ""
        lines = [f"{where}error[{self.code}]: {self.message}"]
        if self.mark and self.mark.text:
            lines += excerpt(self.mark, self.hint)
        elif self.hint:
            lines.append(f"  hint: {self.hint}")
        for mark, text in self.related:
            lines.append(f"  {mark}: {text}")
        return "\n".join(lines)


class SpecError(Exception):
    """One or more mistakes of the user, found before anything ran. Exit code 2."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(str(d) for d in diagnostics))
        self.diagnostics = diagnostics

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(d.code for d in self.diagnostics)


def excerpt(mark: Mark, hint: str) -> list[str]:
    """The source line with a caret line below it; the hint stands behind the caret."""
    number = f"{mark.line:5d}"
    start = max(mark.column - 1, 0)
    caret = "^" * max(1, min(mark.length, len(mark.text) - start))
    return [f"{number} | {mark.text}", f"{' ' * 5} | {' ' * start}{caret} {hint}".rstrip()]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists the known ones."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}"
