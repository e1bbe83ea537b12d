"""RunError: a run that cannot go on, for a reason that is not a mistake in the spec."""

from __future__ import annotations


class RunError(Exception):
    """The message is all that a person needs: what failed, where, what to do. Exit code 1, no traceback."""

    code = 1


class Stopped(RunError):
    """A signal asked to stop, and the state is saved. The exit code is that of a process that the signal ended."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.code = 128 + signal
