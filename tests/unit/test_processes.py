"""Ending whole families of processes, and starting parts again as an engine of containers does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from include.evergreen.local import cluster, processes, stack
from include.evergreen.local.cluster import Cluster
from include.evergreen.local.stack import StackFell

FAMILY = "import subprocess, sys; subprocess.Popen(['sleep', '300']); print('ready', flush=True); sys.stdin.read()"
LONER = (
    "import subprocess, sys; subprocess.Popen(['sleep', '300'], start_new_session=True); print('ready', flush=True); "
    "sys.stdin.read()"
)


def family(code: str) -> tuple[subprocess.Popen[bytes], int]:
    """A leader of a session with one child, and the child's pid."""
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None and leader.stdout.readline() == b"ready\n"
    [child] = psutil.Process(leader.pid).children()
    return leader, child.pid


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("code", [FAMILY, LONER], ids=["same session", "session of its own"])
def test_all_under_a_process_end_with_it(code: str) -> None:
    leader, child = family(code)
    processes.kill([leader.pid])
    assert leader.wait() == -signal.SIGKILL
    assert not lives(child)


def test_what_is_left_of_a_session_is_found_after_its_leader_ended() -> None:
    leader, child = family(FAMILY)
    leader.kill()
    leader.wait()
    assert lives(child)
    processes.kill([leader.pid])
    assert not lives(child)


def test_a_process_that_is_spared_lives_on() -> None:
    leader, child = family(FAMILY)
    try:
        processes.kill([leader.pid], sparing=[child])
        assert leader.wait() == -signal.SIGKILL
        assert lives(child)
    finally:
        psutil.Process(child).kill()


# --- restarts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A supervisor that restarts, whose only part is a process that waits."""
    made = Cluster(Cluster.layout_of({"EVERGREEN_VAR": str(tmp_path / "var")}), restarting=True)
    monkeypatch.setattr(made, "_start_redis", lambda: made._spawn("redis", ["sleep", "300"]))
    monkeypatch.setattr(made, "_start", lambda: (made._claim(), made.launch("redis"), made._watch()))
    monkeypatch.setattr(made, "stop_order", (("redis",),))
    monkeypatch.setattr(cluster, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(stack, "taken", lambda port: False)
    with made:
        made.start()
        yield made


def until(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_part_that_ends_by_itself_is_started_again(small: Cluster) -> None:
    first = small.parts["redis"].process
    small.kill("redis")
    until(lambda: len(small.restarts) == 1)
    assert small.parts["redis"].process.pid != first.pid
    assert (small.restarts[0].part, small.restarts[0].code) == ("redis", -signal.SIGKILL)
    small.check()


def test_a_part_that_keeps_ending_is_started_ever_later(small: Cluster) -> None:
    for count in range(1, 5):
        small.kill("redis")
        until(lambda count=count: len(small.restarts) == count)  # type: ignore[misc]
    after = [restart.after for restart in small.restarts]
    assert after[3] >= 0.08 > 0.01 <= after[0]


def test_a_halted_part_stays_down_until_it_is_launched(small: Cluster) -> None:
    small.halt("redis")
    time.sleep(0.5)
    assert small.parts["redis"].process.poll() == -signal.SIGTERM
    assert small.restarts == []
    small.launch("redis")
    assert small.parts["redis"].process.poll() is None


def test_after_a_power_cut_nothing_runs_and_the_same_var_starts_again(small: Cluster) -> None:
    first = small.parts["redis"].process
    small.power_cut()
    assert first.poll() == -signal.SIGKILL
    assert small.parts == {} and small.restarts == []
    small.start()
    assert small.parts["redis"].process.poll() is None


def test_without_restarting_the_end_of_a_part_is_the_end_of_the_cluster(tmp_path: Path) -> None:
    made = Cluster(Cluster.layout_of({"EVERGREEN_VAR": str(tmp_path / "var")}))
    made._spawn("redis", ["sleep", "300"])
    made.parts["redis"].process.kill()
    made.parts["redis"].process.wait()
    with pytest.raises(StackFell, match="redis ended with signal SIGKILL"):
        made.check()
    made.stop()
