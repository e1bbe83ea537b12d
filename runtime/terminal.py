"""Colour and diagnostics on a terminal; plain text everywhere else."""

from __future__ import annotations

import os
import re
from typing import TextIO

from specc.spec.errors import Diagnostic, SpecError

RED, YELLOW, CYAN, BOLD, DIM = "31", "33", "36", "1", "2"
MAX_SHOWN = 10
_HEAD = re.compile(r"^(?P<where>.*?)(?P<kind>error\[\w+\]): (?P<what>.*)$")
_MARGIN = re.compile(r"^(?P<margin> *\d* \| )(?P<text>.*)$")


def has_colour(stream: TextIO) -> bool:
    """Whether to colour: NO_COLOR and FORCE_COLOR decide, else whether the stream is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_progress(stream: TextIO) -> bool:
    """Whether to draw a moving bar: on a terminal alone, and not where NO_COLOR or CI ask for plain lines."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def paint(text: str, *codes: str, on: bool = True) -> str:
    return f"\033[{';'.join(codes)}m{text}\033[0m" if on and text else text


def show_error(error: SpecError, stream: TextIO) -> None:
    """Write every diagnostic, with a line between two and a count below several."""
    on = has_colour(stream)
    count = len(error.diagnostics)
    shown = [coloured(d) if on else str(d) for d in error.diagnostics[:MAX_SHOWN]]
    print("\n\n".join(shown), file=stream)
    if count > 1:
        print(f"\n{count} errors" + (f", the first {MAX_SHOWN} are shown" if count > MAX_SHOWN else ""), file=stream)
    codes = sorted(set(error.codes))
    if codes:
        print(paint(f"`specc explain {codes[0]}` tells more", DIM, on=on), file=stream)


def coloured(diagnostic: Diagnostic) -> str:
    """The diagnostic's text with colour on the code, the margin and the caret."""
    return "\n".join(_colour_line(line) for line in str(diagnostic).splitlines())


def _colour_line(line: str) -> str:
    if head := _HEAD.match(line):
        what = paint(head["what"], BOLD)
        return f"{paint(head['where'], BOLD)}{paint(head['kind'], RED, BOLD)}: {what}"
    if margin := _MARGIN.match(line):
        text = margin["text"]
        is_caret = text.lstrip().startswith("^")
        return paint(margin["margin"], CYAN) + (paint(text, YELLOW) if is_caret else text)
    return paint(line, CYAN)
