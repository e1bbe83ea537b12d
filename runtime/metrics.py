"""What a run reports of each step: lines of JSON, and TensorBoard's event files where that is installed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
VOLATILE = ("tokens_per_s", "images_per_s", "seconds", "memory")  # what differs from run to run


class Events(Protocol):
    """Where scalars go by name."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends to a run's files. Lines behind `step`, of steps that will be done again, are dropped first."""

    def __init__(self, folder: Path, step: int, events: Events | None = None) -> None:
        self.events = events
        for name in (METRICS, SAMPLES):
            forget_after(folder / name, step)
        self.files = {name: (folder / name).open("a", encoding="utf-8") for name in (METRICS, SAMPLES)}

    def add(self, step: int, facts: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl; numbers that are not finite become null, which JSON has."""
        self._line(METRICS, {"step": step, **{k: finite(v) for k, v in facts.items()}})
        if self.events:
            self.events.add(step, {k: float(v) for k, v in facts.items() if isinstance(v, int | float)})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A line of samples.jsonl."""
        self._line(SAMPLES, {"step": step, "prompt": prompt, "text": text})

    def _line(self, name: str, facts: Mapping[str, Any]) -> None:
        self.files[name].write(json.dumps(facts, allow_nan=False) + "\n")
        self.files[name].flush()

    def sync(self) -> None:
        """Put all on the disk: what is said of a step, but for its samples, is there before its checkpoint is."""
        for f in self.files.values():
            os.fsync(f.fileno())
        if self.events:
            self.events.flush()

    def close(self) -> None:
        for f in self.files.values():
            f.close()
        if self.events:
            self.events.close()


def finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def forget_after(path: Path, step: int) -> None:
    """Cut a file of lines behind the last one of a step up to `step`; a kill half-way changes nothing or all."""
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as f:
        for line in f:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break  # a line that a killed run left half written
            end += len(line)
    os.truncate(path, end)


def has_events() -> bool:
    """Whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None


def open_events(folder: Path, step: int) -> Events | None:
    """TensorBoard's files in `folder`, or None where the package is missing."""
    if not has_events():
        return None
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    class TensorBoard:
        def __init__(self) -> None:
            self.writer = EventFileWriter(str(folder))
            if step:  # readers then drop what an earlier run wrote of later steps
                start = SessionLog(status=SessionLog.START)
                self.writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

        def add(self, step: int, scalars: Mapping[str, float]) -> None:
            values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
            self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

        def flush(self) -> None:
            self.writer.flush()

        def close(self) -> None:
            self.writer.close()

    return TensorBoard()
