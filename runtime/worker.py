"""What a process does that is one rank of several: meet the others, run, and say why it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from specc.runtime.device import backend, here
from specc.runtime.errors import RunError
from specc.runtime.heartbeat import PATIENCE, Page, Pulse
from specc.runtime.launch import ATTEMPT, ERROR, PULSE, STORE
from specc.runtime.team import Processes
from specc.spec.errors import SpecError

WRONG_SPEC = 2


@dataclass(frozen=True)
class Rank:
    """This process among all, by torchrun's environment. `attempt` is our launcher's private folder."""

    rank: int
    ranks: int
    attempt: Path | None
    address: str
    port: int
    meeting: str  # a name that differs from attempt to attempt
    has_store: bool  # whether torchrun's agent keeps the store already
    threads: int


def own_rank() -> Rank | None:
    """This process's; None if nobody launched it as a rank."""
    return rank_of(os.environ)


def rank_of(environment: Mapping[str, str]) -> Rank | None:
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    attempt = environment.get(ATTEMPT)
    meeting = f"{environment.get('TORCHELASTIC_RUN_ID', '')}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Rank(
        int(environment["RANK"]), int(environment["WORLD_SIZE"]), Path(attempt) if attempt else None,
        environment.get("MASTER_ADDR", "127.0.0.1"), int(environment.get("MASTER_PORT", "0")), meeting,
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True", int(environment.get("OMP_NUM_THREADS", "1")),
    )  # fmt: skip


def meet(me: Rank) -> Processes:
    """Join the default group; each attempt has a store of its own, so that none reads another's keys."""
    torch.set_num_threads(me.threads)  # OpenMP was loaded before this process had its environment
    store: Store
    if me.attempt:
        store = FileStore(str(me.attempt / STORE), me.ranks)
    else:
        master = me.rank == 0 and not me.has_store
        store = PrefixStore(f"specc/{me.meeting}", TCPStore(me.address, me.port, me.ranks, master))
    timeout = PATIENCE if me.attempt else None
    dist.init_process_group(backend(here()), store=store, rank=me.rank, world_size=me.ranks, timeout=timeout)
    return Processes()


def pulse_of(me: Rank) -> Pulse:
    return Pulse(Page(me.attempt / PULSE, me.ranks), me.rank) if me.attempt else Pulse()


def as_rank(me: Rank, run: Callable[[Processes, Pulse], int]) -> int:
    """Run with the others; an end that was foreseen is written down for the launcher. The exit code."""
    pulse = pulse_of(me)
    try:
        return run(meet(me), pulse)
    except (RunError, SpecError) as e:
        pulse.failed()
        if me.attempt is None:
            raise
        (me.attempt / ERROR.format(me.rank)).write_text(str(e), encoding="utf-8")
        return e.code if isinstance(e, RunError) else WRONG_SPEC
    except BaseException:
        pulse.failed()
        raise
