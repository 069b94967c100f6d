"""Find and end every process of one stack: all of them carry its id in their environment, orphans too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

import psutil

MARK = "EVERGREEN_STACK_ID"


def of_stack(stack_id: str) -> list[psutil.Process]:
    """Living processes whose environment holds the id, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == stack_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def session(process: psutil.Process) -> int:
    """The id of a process's session; -1 when it is gone."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return -1


def under(pid: int) -> list[psutil.Process]:
    """A process and all under it, by parent and by session: also those whose parent ended before."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid == pid or session(process) == pid:
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
    return list(found.values())


def kill(pids: Collection[int], sparing: Collection[int] = ()) -> None:
    """SIGKILL to processes and all under them but those of `sparing`; returns when none of them runs."""
    while left := [p for pid in pids for p in under(pid) if p.pid not in sparing and _runs(p)]:
        send(left, signal.SIGKILL)
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal each process; one that is gone, or whose pid is another's by now, is no error."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def end(stack_id: str, grace: float = 5.0) -> int:
    """End all processes of a stack: SIGTERM, and SIGKILL for what lives after `grace` seconds. Returns how many."""
    first = of_stack(stack_id)
    send(first, signal.SIGTERM)
    psutil.wait_procs(first, timeout=grace)
    deadline = time.monotonic() + 10
    while (left := of_stack(stack_id)) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1)
    return len(first)


def holder(port: int) -> str:
    """`name (pid N)` of the process that listens on the port, or an empty string when that cannot be known."""
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f"{psutil.Process(found.pid).name()} (pid {found.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
