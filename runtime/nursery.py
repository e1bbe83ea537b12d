"""A process that has imported what ranks need and forks ranks when it is told, so that a restart imports nothing.

It speaks lines of JSON over a socket that it inherits; it neither computes nor listens. When its launcher dies it kills
all ranks; when it dies itself, the kernel does."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from specc.runtime.entry import function_of

PR_SET_PDEATHSIG = 1
DUMP = signal.SIGUSR1  # a rank that gets it writes the stacks of its threads to its log
POLL = 0.02  # seconds between looks for ranks that ended


@dataclass(frozen=True)
class Birth:
    """A rank to be: what it runs ("module:function", called with `argument`), its environment, where it writes.

    `defaults` are variables that count where this process's environment has none of the name. `talks` is where its
    standard output goes: "out", "err" or, as all else, to its log."""

    rank: int
    entry: str
    argument: dict[str, Any]
    defaults: dict[str, str]
    environment: dict[str, str]
    log: str
    talks: str = ""


@dataclass
class Nursery:
    """This process: its socket, and the ranks that live by their processes."""

    link: socket.socket
    alive: dict[int, int] = field(default_factory=dict)

    def serve(self) -> None:
        """Do what is asked until the launcher is gone."""
        text = b""
        while True:
            if select.select([self.link], [], [], POLL)[0]:
                got = self.link.recv(1 << 16)
                if not got:
                    return self.kill(signal.SIGKILL)
                *lines, text = (text + got).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))
            self.reap()

    def obey(self, asked: dict[str, Any]) -> None:
        if "kill" in asked:
            return self.kill(asked["kill"])
        pids = [self.bear(Birth(**b)) for b in asked["births"]]
        self.tell({"pids": pids})

    def bear(self, birth: Birth) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.link.close()
                code = live(birth, parent)
            finally:
                os._exit(code)
        self.alive[pid] = birth.rank
        return pid

    def reap(self) -> None:
        """Tell of ranks that ended; what they started ends with them."""
        while self.alive:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
            if (rank := self.alive.pop(ended.si_pid, None)) is not None:
                self.tell({"ended": rank, "code": code})

    def kill(self, number: int) -> None:
        for pid in self.alive:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)

    def tell(self, message: dict[str, Any]) -> None:
        self.link.sendall(json.dumps(message).encode() + b"\n")


def live(birth: Birth, parent: int) -> int:
    """The whole life of a rank; its exit code."""
    try:
        os.setsid()
        die_with_parent(parent)
        redirect(birth)
        os.environ.update({**birth.defaults, **os.environ, **birth.environment})
        faulthandler.enable()
        faulthandler.register(DUMP, all_threads=True)
        code = function_of(birth.entry)(birth.argument)
        return code if isinstance(code, int) else 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()  # to the log: this is the last that can be heard of the rank
        raise
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies; only Linux does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the line above


def redirect(birth: Birth) -> None:
    """Standard streams: nothing to read, and all that is written to the log but for the one that talks."""
    log = os.open(birth.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if birth.talks != "out":
        os.dup2(2 if birth.talks == "err" else log, 1)
    os.dup2(log, 2)
    for handle in (log, nothing):
        os.close(handle)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def main() -> None:
    """`nursery.py SOCKET PARENT MODULE ...`: import the modules, then serve."""
    handle, parent, *modules = sys.argv[1:]
    die_with_parent(int(parent))
    link = socket.socket(fileno=int(handle))
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # the ranks share this memory as long as none writes to it
    Nursery(link).serve()


if __name__ == "__main__":
    main()
