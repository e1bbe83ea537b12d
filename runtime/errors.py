"""RunError: a run that cannot go on, for a reason that is not a mistake in the spec."""

from __future__ import annotations


class RunError(Exception):
    """The message is all that a person needs: what failed, where, what to do. Exit code 1, no traceback."""
