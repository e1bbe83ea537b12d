"""The `specc` command. It imports a command's module when it is called, so that `specc check` starts fast."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from specc.runtime.entry import function_of
from specc.runtime.errors import RunError
from specc.runtime.options import COMMANDS, Command
from specc.runtime.terminal import BOLD, RED, has_colour, paint, show_error
from specc.spec.errors import SpecError, did_you_mean

OK, RUN_FAILED, WRONG_SPEC = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT


class Parser(argparse.ArgumentParser):
    """argparse with the nearest name in the message for a wrong command."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.match(r"argument COMMAND: invalid choice: '(.*)' \(", message):
            message = f"no command '{wrong[1]}': {did_you_mean(wrong[1], COMMANDS)}"
        self.exit(WRONG_SPEC, f"{self.format_usage()}{self.prog}: error: {message}\n")


class Version(argparse.Action):
    """Prints the version of the package: only who asks pays for the import that finds it, a tenth of `specc check`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        parser.exit(OK, f"specc {version('specc')}\n")


def parser() -> Parser:
    """The parser of the whole command line, made of the table."""
    top = Parser(prog="specc", description="A declarative compiler for training language models.")
    top.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=_sentence(command), allow_abbrev=False)
        for o in command.options:
            sub.add_argument(*o.flags, help=o.help, **o.settings)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0 ok, 1 the run failed, 2 the spec or the command is wrong."""
    args = parser().parse_args(argv)
    atexit.register(gc.freeze)
    try:
        return _call(COMMANDS[args.command], args)
    except SpecError as error:
        show_error(error, sys.stderr)
        return WRONG_SPEC
    except RunError as error:
        return _failed(str(error), error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`specc ops | head`): nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.filename is None:
            raise
        return _failed(f"{error.filename}: {error.strerror}")


def _call(command: Command, args: argparse.Namespace) -> int:
    code = function_of(command.function)(args)
    assert isinstance(code, int), f"{command.function} gives no exit code"
    sys.stdout.flush()
    return code


def _failed(message: str, code: int = RUN_FAILED) -> int:
    """Say what failed; a run that a signal stopped did not fail."""
    word = paint("error", RED, BOLD, on=has_colour(sys.stderr)) if code == RUN_FAILED else "stopped"
    print(f"{word}: {message}", file=sys.stderr)
    return code


def _sentence(command: Command) -> str:
    return command.help[0].upper() + command.help[1:] + "."
