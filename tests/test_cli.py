"""The command line: its options are frozen, its exit codes hold, and it starts without torch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from specc.runtime import cli, terminal
from specc.runtime.commands import ops
from specc.runtime.errors import RunError
from specc.runtime.options import COMMANDS, Command
from specc.spec.errors import Diagnostic, Mark, SpecError
from tests.pace import within


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)


def options_text() -> str:
    """Every command with its options, one a line."""
    lines = []
    for name, command in COMMANDS.items():
        lines.append(f"{name}: {command.help}")
        for o in command.options:
            settings = {k: v for k, v in o.settings.items() if k != "metavar"}
            lines.append(
                f"  {' '.join(o.flags)} {json.dumps(settings, sort_keys=True, default=lambda kind: kind.__name__)}"
            )
    return "\n".join(lines) + "\n"


def test_the_options_are_frozen(golden: Callable[[str, str], None]) -> None:
    golden("cli.txt", options_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"specc {name}" in capsys.readouterr().out


def test_a_wrong_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["chek"])
    assert stop.value.code == cli.WRONG_SPEC
    assert "no command 'chek': did you mean 'check'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample b --top-p -1", "--top-p: '-1' is not a number above 0 and up to 1"),
        ("sample b --top-p 3", "--top-p: '3' is not a number above 0 and up to 1"),
        ("sample b --top-p nan", "--top-p: 'nan' is not a number above 0 and up to 1"),
        ("sample b --top-k -3", "--top-k: '-3' is not a whole number from 1"),
        ("sample b --top-k 0", "--top-k: '0' is not a whole number from 1"),
        ("sample b --temperature -1", "--temperature: '-1' is not a number from 0"),
        ("sample b --temperature inf", "--temperature: 'inf' is not a number from 0"),
        ("sample b --tokens -4", "--tokens: '-4' is not a whole number from 1"),
        (f"sample b --seed {2**64}", f"--seed: '{2**64}' is not a whole number from 0 to {2**64 - 1}"),
        ("profile b --steps 0", "--steps: '0' is not a whole number from 1"),
        ("launch b --per-node 0", "--per-node: '0' is not a whole number from 1"),
        ("launch b --hours -3", "--hours: '-3' is not a whole number from 1"),
        ("run b --max-restarts -2", "--max-restarts: '-2' is not a whole number from 0"),
        ("run b --nproc two", "--nproc: 'two' is not a whole number from 1"),
        ("verify s --ranks -1", "--ranks: '-1' is not a whole number from 1"),
        ("tune --ranks 0", "--ranks: '0' is not a whole number from 1"),
        ("plan s --top 0", "--top: '0' is not a whole number from 1"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == cli.WRONG_SPEC
    assert f"error: argument {message}\n" in capsys.readouterr().err


def test_the_ends_of_a_range_are_taken() -> None:
    words = "sample b --temperature 0 --top-p 1 --top-k 1 --tokens 1 --seed 0"
    args = cli.parser().parse_args(words.split())
    assert (args.temperature, args.top_p, args.top_k, args.tokens, args.seed) == (0, 1, 1, 1, 0)
    assert cli.parser().parse_args(["run", "b", "--max-restarts", "0"]).max_restarts == 0


def outcome(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    def run(args: argparse.Namespace) -> int:
        if error:
            raise error
        return cli.OK

    monkeypatch.setattr(ops, "run", run)
    return cli.main(["ops"])


MARK = Mark("a.yaml", 3, 5, 4, "    heds: 8")
WRONG = SpecError(Diagnostic("S102", "no key 'heds'", MARK, "did you mean 'heads'?"), Diagnostic("S101", "no op"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (RunError("the disk is full"), 1),
        (FileNotFoundError(2, "No such file", "x"), 1),
        (WRONG, 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=["ok", "failed", "os", "wrong", "interrupted"],
)
def test_exit_codes(error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(monkeypatch, error) == code


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        outcome(monkeypatch, AssertionError("a bug"))


def test_diagnostics_are_plain_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(monkeypatch, WRONG)
    text = capsys.readouterr().err
    assert text.startswith("a.yaml:3:5: error[S102]: no key 'heds'\n")
    assert "2 errors" in text
    assert "\033" not in text


def test_colour_changes_no_character() -> None:
    for diagnostic in WRONG.diagnostics:
        coloured = terminal.coloured(diagnostic)
        plain = coloured
        for code in ("\033[31;1m", "\033[1m", "\033[33m", "\033[36m", "\033[0m"):
            plain = plain.replace(code, "")
        assert coloured != plain == str(diagnostic)


def test_no_color_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal.has_colour(sys.stderr)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.has_colour(sys.stderr)


def test_the_command_line_starts_without_torch() -> None:
    heavy = "[m for m in ('torch', 'rich', 'pydantic') if m in sys.modules]"
    done = python("-c", f"import sys, specc.runtime.cli as cli; cli.parser(); print({heavy})")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    """`specc ops | head -1`."""
    command = [sys.executable, "-m", "specc", "ops"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) in (0, 1)


def test_ops_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ops", "--json"]) == cli.OK
    rows = json.loads(capsys.readouterr().out)
    assert "... i*, i* o*" in rows["linear"]["rule"]
    assert cli.main(["ops", "linear"]) == cli.OK
    assert "weight" in capsys.readouterr().out
    assert cli.main(["ops", "linera"]) == cli.WRONG_SPEC
    assert "did you mean 'linear'?" in capsys.readouterr().err


def test_doctor_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == cli.OK
    parts = json.loads(capsys.readouterr().out)
    assert parts["packages"]["torch"].startswith("2.")
    assert set(parts) == {"packages", "machine", "extras", "works"}


@pytest.mark.alone
def test_help_is_quick() -> None:
    with within(1.0, time.perf_counter):  # 0.1 s alone
        assert python("-m", "specc", "--help").returncode == 0


def test_a_command_is_data() -> None:
    assert all(isinstance(c, Command) and c.help and c.help[0].islower() for c in COMMANDS.values())
