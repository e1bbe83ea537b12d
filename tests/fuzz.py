"""`python -m tests.fuzz [--n 5000] [--seed 0]`: mutated specs through `specc check`.

Each must end in exit code 0 or 2, without a traceback, within the time limit, and without running anything: files that
payloads would write, processes and shells are watched. Prints one line of JSON; the exit code says whether all held."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from specc.runtime import cli

ROOT = Path(__file__).resolve().parent.parent
GOOD = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "spec" / "models").glob("*.yaml")])
BROKEN = sorted(p for p in (ROOT / "tests" / "broken").glob("*.yaml") if not p.name.startswith("bomb"))
MARKS = "{}[]:&*!|>%@-'\" \n\t#,"
MANY, MANY_CHARS = 3000, 1 << 18
LIMIT = 2.0  # CPU seconds of a spec
CANARY = "canary_fired"
WRITE = f"open('{CANARY}','w')"
PAYLOADS: tuple[Any, ...] = (
    f"__import__('os').system('touch {CANARY}')", f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"{{{{ cycler.__init__.__globals__.os.system('touch {CANARY}') }}}}", f"{WRITE}", f"'''\n{WRITE}\n'''",
    f"x\n{WRITE}", f"f\"{{{WRITE}}}\"", f"(lambda: {WRITE})()", "../../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa",
    "file:///etc/passwd", "a\0b", "\u202e", "\ud7ff", "𝐨𝐬", "", " ", "*", "&a [*a]", "- " * 80, "[" * 90, "{" * 70,
    "9" * 400, "1e999", ".nan", "-0", "0x" + "f" * 40, "2 ** 99999", "D // 0", "D % 0", "L * L * L * L * L * L",
    None, True, -1, 0, 2**63, 10**17, 1e-320, [], {}, [[[[[]]]]], {"a": {"b": {"c": {}}}}, list(range(300)), "x" * 9000,
)  # fmt: skip
WATCHED = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "socket.connect"}


@dataclass
class Tally:
    """What was seen; the lists name seeds of specs that broke a rule."""

    checked: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    tracebacks: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.checked > 0 and not (self.tracebacks or self.slow or self.fired)


def mutated(draw: random.Random) -> str:
    """One to four changes of a seed."""
    text = draw.choice(GOOD if draw.random() < 0.8 else BROKEN).read_text(encoding="utf-8")
    for _ in range(draw.randint(1, 3)):
        text = draw.choice(CHANGES)(text, draw)
    return text


def of_bytes(text: str, draw: random.Random) -> str:
    """A few characters flipped, dropped or doubled."""
    chars = list(text)
    for _ in range(draw.randint(1, 6)):
        i = draw.randrange(len(chars) or 1)
        here = chars[i : i + 1]
        chars[i : i + 1] = draw.choice([[], here * 2, [chr(draw.randrange(1, 0x250))], [draw.choice(MARKS)]])
    return "".join(chars)


def of_lines(text: str, draw: random.Random) -> str:
    """A line moved, doubled, dropped or indented."""
    lines = text.split("\n")
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    line = lines.pop(i)
    kept = draw.choice([[], [line], [line] * 2, [" " * draw.randrange(9) + line.strip()], [line] * 200])
    return "\n".join(lines[:j] + kept + lines[j:])


def of_values(text: str, draw: random.Random) -> str:
    """A value or a key anywhere in the tree replaced by a payload, or by another part of the same tree."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, KeyError):
        return of_bytes(text, draw)
    nodes = list(places(tree))
    if not nodes:
        return of_bytes(text, draw)
    holder, key = draw.choice(nodes)
    other, at = draw.choice(nodes)
    value = copy.deepcopy(draw.choice([draw.choice(PAYLOADS), other[at]]))
    if isinstance(holder, dict) and draw.random() < 0.2:
        name = draw.choice([p for p in PAYLOADS if isinstance(p, str | int)] + [str(at)])
        holder[name] = holder.pop(key)
    else:
        holder[key] = value
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)[:MANY_CHARS]
    except (yaml.YAMLError, RecursionError):
        return text


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of the values of a tree, outer ones first; MANY at most, for aliases make trees endless."""
    found: list[tuple[Any, Any]] = []
    todo = deque([tree])
    while todo and len(found) < MANY:
        part = todo.popleft()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
        found += [(part, k) for k in keys]
        todo += [part[k] for k in keys]
    return found[:MANY]


CHANGES: tuple[Callable[[str, random.Random], str], ...] = (of_bytes, of_lines, of_values, of_values)


def check(path: Path, name: str, tally: Tally) -> None:
    """One spec through the command."""
    began = time.process_time()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.main(["check", str(path)])
    except BaseException:  # whatever ends the command so is what is looked for
        tally.tracebacks.append(f"{name}: {traceback.format_exc(limit=-3)}")
        code = -1
    took = time.process_time() - began
    tally.checked += 1
    tally.codes[code] += 1
    tally.slowest = max(tally.slowest, took)
    if took > LIMIT:
        tally.slow.append(f"{name}: {took:.2f} s")
    if code not in (cli.OK, cli.WRONG_SPEC) and code != -1:
        tally.tracebacks.append(f"{name}: exit code {code}")


def fuzz(n: int, seed: int) -> Tally:
    """Check n specs in a folder of their own; specs are functions of (seed, number)."""
    tally, before = Tally(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        watching = [True]
        sys.addaudithook(lambda event, _: tally.fired.append(event) if watching[0] and event in WATCHED else None)
        os.chdir(folder)
        try:
            for i in range(n):
                Path("s.yaml").write_text(mutated(random.Random(f"{seed}/{i}")), "utf-8", errors="replace")
                check(Path("s.yaml"), f"{seed}/{i}", tally)
                if set(os.listdir()) != {"s.yaml"}:
                    tally.fired.append(f"{seed}/{i}: {sorted(os.listdir())}")
                    break
        finally:
            watching[0] = False
            os.chdir(before)
    return tally


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    tally = fuzz(options.n, options.seed)
    print(json.dumps({**vars(tally), "good": tally.good}))
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
