"""Diagnostics: every mistake in a spec has a code, a place, a message and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

MISSING = "S107"  # often follows from a wrong name beside it
MAX_MISTAKES = 50  # that are looked for in one spec
MAX_LINE, MAX_MESSAGE, MAX_HINT = 160, 600, 400  # characters


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
        hint = cut(self.hint, MAX_HINT)
        lines = [f"{where}error[{self.code}]: {cut(self.message, MAX_MESSAGE)}"]
        if self.mark and self.mark.text:
            lines += excerpt(self.mark, hint)
        elif hint:
            lines.append(f"  hint: {hint}")
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
    """The source line with a caret line below it; the hint stands behind the caret. A long line is cut around it."""
    number = f"{mark.line:5d}"
    start, text = max(mark.column - 1, 0), mark.text
    if len(text) > MAX_LINE:
        cut = max(0, start - MAX_LINE // 2)
        text, start = text[cut : cut + MAX_LINE], start - cut
    caret = "^" * max(1, min(mark.length, len(text) - start))
    return [f"{number} | {text}", f"{' ' * 5} | {' ' * start}{caret} {hint}".rstrip()]


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Each mistake once, by file and line; what is missing comes after what is wrong, what has no place comes last."""
    once = {(d.code, d.message, d.mark): d for d in diagnostics}

    def place(d: Diagnostic) -> tuple[bool, str, bool, int, int]:
        if d.mark is None:
            return True, "", False, 0, 0
        return False, d.mark.file, d.code == MISSING, d.mark.line, d.mark.column

    return sorted(once.values(), key=place)


def cut(text: str, length: int) -> str:
    """A text that is not too long and on one line."""
    text = text.replace("\n", " ")
    return text if len(text) <= length else f"{text[: length - 40]}... ({len(text)} characters)"


def pattern_hint(pattern: str, paths: Iterable[str]) -> str:
    """A hint that names the nearest pattern of those that match some of the paths, or lists these."""
    return did_you_mean(pattern, {f"{folder}.*" if dot else p for p in paths for folder, dot, _ in [p.rpartition(".")]})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists the known ones."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1) if len(name) < 100 and len(names) < 500 else []
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return ""
    shown = ", ".join(cut(n, 80) for n in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}"
