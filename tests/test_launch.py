"""The launcher: it starts ranks, names the first that fails, starts all again, finds those that hang, leaves none."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from specc.runtime import heartbeat
from specc.runtime.errors import RunError, Stopped
from specc.runtime.heartbeat import Page, Pulse, Watch
from specc.runtime.launch import Job, launch

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nursery looks for modules where Python's path says, not in the working directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder: Path, said: list[str] | None = None, ranks: int = 3, restarts: int = 3, **argument: Any) -> None:
    given = {"folder": str(folder), "steps": 20, **argument}
    job = Job("tests.ranks:toy", given, ranks, folder / "logs", restarts)
    launch(job, (said if said is not None else []).append)


def dead(folder: Path) -> bool:
    """Whether no rank lives any more."""
    return not [p for p in folder.glob("pid*") if Path(f"/proc/{p.read_text()}").exists()]


def test_all_ranks_run_and_rank_0_talks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert capfd.readouterr().out == "rank 0 talks\n"
    for rank in range(3):
        assert (tmp_path / "logs" / f"rank{rank:05d}.log").read_text() == f"rank {rank} is done\n"
    assert dead(tmp_path)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("kill", "rank 1 was killed by SIGKILL"),
        ("abort", "rank 1 was killed by SIGABRT"),
        ("exit", "rank 1 failed with exit code 7"),
        ("raise", "rank 1 failed with exit code 1 at step 4: .*ValueError: the toy is broken"),
    ],
)
def test_the_first_failure_is_named_and_all_start_again(tmp_path: Path, fault: str, told: str) -> None:
    said: list[str] = []
    run(tmp_path, said, rank=1, at=4, fault=fault)
    assert len(said) == 1
    assert re.match(rf"{told}.*; all ranks start again \(1 of 3\)", said[0]), said
    assert len(list(tmp_path.glob("try-1-*"))) == 2
    assert dead(tmp_path)


def test_restarts_run_out(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RunError, match=r"rank 2 was killed by SIGKILL .*after 2 restarts without a checkpoint"):
        run(tmp_path, said, restarts=2, rank=2, at=3, fault="kill", times=99)
    assert len(said) == 2
    assert dead(tmp_path)


def test_restarts_are_counted_anew_after_progress(tmp_path: Path) -> None:
    """Each attempt saves a step before it dies: six deaths with a limit of two in a row."""
    said: list[str] = []
    run(tmp_path, said, ranks=2, restarts=1, saves=True, rank=0, at=1, fault="kill", times=6)
    assert len(said) == 6
    assert all(line.endswith("(1 of 1)") for line in said)


@pytest.mark.alone
@pytest.mark.parametrize(
    "fault", ["stop", pytest.param("sleep", marks=pytest.mark.slow), pytest.param("spin", marks=pytest.mark.slow)]
)
def test_a_rank_that_hangs_is_found_and_named(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = heartbeat.SHORTEST if fault == "stop" else 2.0
    monkeypatch.setattr(heartbeat, "SHORTEST", shortest)
    said: list[str] = []
    heard: list[float] = []

    def say(line: str) -> None:
        heard.append(time.monotonic())
        said.append(line)
        os.kill(os.getpid(), signal.SIGTERM)

    given = {"folder": str(tmp_path), "steps": 4000, "rank": 1, "at": 5, "fault": fault}
    job = Job("tests.ranks:toy", given, 2, tmp_path / "logs")
    with pytest.raises(Stopped):
        launch(job, say)
    assert said[0].startswith("rank 1 " + ("is stopped (SIGSTOP)" if fault == "stop" else "does not get on"))
    assert "at step 5" in said[0]
    assert shortest <= heard[0] - float((tmp_path / "fault").read_text()) <= shortest + 5.0
    if fault != "stop":
        assert "in fault" in (tmp_path / "logs" / "rank00001.log").read_text(), "the stack is in the log"
    assert dead(tmp_path)


def test_a_signal_lets_all_ranks_save(tmp_path: Path) -> None:
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Stopped, match="saved at step") as stopped:
        run(tmp_path, steps=100000)
    assert stopped.value.code == 128 + signal.SIGINT
    assert dead(tmp_path)


def test_no_rank_outlives_its_launcher(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom specc.runtime.launch import Job, launch\n"
        "launch(Job('tests.ranks:toy', {'folder': sys.argv[1], 'steps': 100000}, 3, Path(sys.argv[1]) / 'logs'), print)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        until(lambda: born(tmp_path))
    finally:
        launcher.kill()
        launcher.wait()
    until(lambda: dead(tmp_path), 5.0)


def test_no_rank_outlives_the_process_that_forked_it(tmp_path: Path) -> None:
    def kill_parent() -> None:
        until(lambda: born(tmp_path))
        stat = Path(f"/proc/{(tmp_path / 'pid0').read_text()}/stat").read_text()
        os.kill(int(stat.rpartition(") ")[2].split()[1]), signal.SIGKILL)

    threading.Thread(target=kill_parent).start()
    with pytest.raises(RunError, match="the process that starts ranks died"):
        run(tmp_path, steps=100000)
    until(lambda: dead(tmp_path), 5.0)


def born(folder: Path) -> bool:
    """Whether three ranks have written who they are: a file is there before its text is."""
    return sum(bool(p.read_text()) for p in folder.glob("pid*")) == 3


def until(what: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def listening(pid: str) -> list[str]:
    """The addresses, in hexadecimal, on which a process listens."""
    inodes: set[str] = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of this very listing
            inodes.add(os.readlink(handle).removeprefix("socket:[").removesuffix("]"))
    rows = [x.split() for t in ("tcp", "tcp6") for x in Path(f"/proc/{pid}/net/{t}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_ranks_meet_and_listen_on_the_loopback_device_alone(tmp_path: Path) -> None:
    found: list[str] = []
    modes: list[int] = []

    def look() -> None:
        until(lambda: len(list(tmp_path.glob("sum*"))) == 3)
        time.sleep(0.1)
        for path in tmp_path.glob("sum*"):
            total, *said, pid = path.read_text().split(" ")
            assert (total, said) == ("3", ["", "1", "22"])
            found.extend(listening(pid))
        found.extend(listening(str(os.getpid())))
        modes.extend(stat.S_IMODE(p.stat().st_mode) for p in Path(os.environ.get("TMPDIR", "/tmp")).glob("specc-*"))
        (tmp_path / "go").write_text("")

    looker = threading.Thread(target=look)
    looker.start()
    launch(Job("tests.ranks:sums", {"folder": str(tmp_path)}, 3, tmp_path / "logs", 0, ["specc.runtime.worker"]), print)
    looker.join()
    assert found
    assert set(found) <= {"0100007F", "00000000000000000000000001000000"}
    assert set(modes) == {0o700}


def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Pulse], Watch]:
    """Three ranks past their first step, which may be silent for a fifth of a second."""
    monkeypatch.setattr(heartbeat, "SHORTEST", 0.2)
    page = Page(tmp_path / "page", 3)
    pulses = [Pulse(page, r) for r in range(3)]
    for p in pulses:
        p.allow(0.0)
        p.at(7)
    return pulses, Watch(page, [os.getpid()] * 3)


def look(watch: Watch, seconds: float, beat: Callable[[], None] = lambda: None) -> tuple[list[int], str] | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        beat()
        if found := watch.hung([0, 1, 2]):
            return found
        time.sleep(0.01)
    return None


def test_the_rank_that_is_behind_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulses, watch = watched(tmp_path, monkeypatch)
    for r in (0, 2):
        pulses[r].at(7, 5)
    found = look(watch, 2.0)
    assert found
    assert found[0] == [1]
    assert found[1].endswith("at step 7")


def test_a_slow_rank_that_gets_on_is_not_named_and_nor_are_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulses, watch = watched(tmp_path, monkeypatch)
    for r in (0, 2):
        pulses[r].at(7, 5)
    assert look(watch, 0.6, pulses[1].touch) is None
    assert look(watch, 2.0) is not None


def test_what_may_take_long_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulses, watch = watched(tmp_path, monkeypatch)
    pulses[0].allow(60.0)  # it saves, say, and the others wait for it
    for r in (1, 2):
        pulses[r].at(7, 5)
    assert look(watch, 0.6) is None


def test_long_steps_give_long_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulses, watch = watched(tmp_path, monkeypatch)
    time.sleep(0.3)
    for p in pulses:
        p.at(8)
    assert look(watch, 1.0) is None
    assert look(watch, 2.0) is not None


def test_a_launcher_that_was_stopped_suspects_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulses, watch = watched(tmp_path, monkeypatch)
    watch.hung([0, 1, 2])
    watch.last -= 3600.0
    monkeypatch.setattr(heartbeat, "SHORTEST", 5.0)
    assert watch.hung([0, 1, 2]) is None
    assert pulses[0].page is not None
