"""Real gloo processes on this machine, with a hard limit of time so that a hang is a failure.

They are forked, as those of the launcher are, from a process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from specc.runtime import gloo

Work = Callable[..., Any]
PRELOAD = ["pytest", "tests.grid.memory"]


def spawn(work: Work, n: int, *args: Any, seconds: float = 120.0) -> list[Any]:
    """`work(rank, *args)` on n processes that know each other; their results in order of rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(n)]
        started = [
            context.Process(target=_enter, args=(rank, n, folder, pipes[rank][1], work, args), daemon=True)
            for rank in range(n)
        ]
        for p in started:
            p.start()
        try:
            return _collect([reader for reader, _ in pipes], time.monotonic() + seconds)
        finally:
            for p in started:
                p.kill()
                p.join()


def _collect(readers: list[Connection], deadline: float) -> list[Any]:
    found: list[Any] = []
    for rank, reader in enumerate(readers):
        if not reader.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"rank {rank} has no result in time")
        try:
            ok, value = reader.recv()
        except EOFError:
            raise RuntimeError(f"rank {rank} died") from None
        if not ok:
            raise RuntimeError(f"rank {rank} failed:\n{value}")
        found.append(value)
    return found


def _enter(rank: int, n: int, folder: str, writer: Connection, work: Work, args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(Path(folder) / "store"), n)
        dist.init_process_group(gloo.NAME, store=store, rank=rank, world_size=n)
        writer.send((True, work(rank, *args)))
        dist.destroy_process_group()
    except BaseException:  # sent to the parent, which raises
        writer.send((False, traceback.format_exc()))
