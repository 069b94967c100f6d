"""The disk of the embedded stack is full in the middle of a day."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.airflow.conftest import FIRST, Base, Twin
from tests.chaos.airflow.embedded import INGEST, MODEL, MONITOR, SCORE, TRAIN, Embedded, flat, watched
from tests.chaos.tally import Tally

pytestmark = pytest.mark.timeout(1800)  # the first test pays for the history and the twin

ROOM = 200 * 2**20
"""Bytes for what the day itself writes, logs too."""


@pytest.fixture
def disk(base: Base, tmp_path: Path) -> Iterator[Path]:
    """A folder for a stack whose `var` is a file system of its own."""
    used = sum(path.stat().st_size for path in base.var.rglob("*") if path.is_file())
    var = tmp_path / "var"
    var.mkdir()
    options = f"size={used + ROOM},uid={os.getuid()},gid={os.getgid()},mode=700"
    made = as_root("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(var))
    if made.returncode:
        pytest.fail(f"expected to mount a small tmpfs, which takes root or sudo, found: {made.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        assert as_root("umount", "-l", str(var)).returncode == 0


def as_root(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*([] if os.getuid() == 0 else ["sudo", "-n"]), *command], capture_output=True, text=True)


def fill(folder: Path) -> Path:
    """Take every free byte of a file system; the file that holds them."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    assert shutil.disk_usage(folder).free == 0
    return ballast


def test_a_full_disk_is_named_and_loses_nothing(disk: Path, base: Base, twin: Callable[[], Twin], tally: Tally) -> None:
    stack = base.stack(disk)
    step = "ingest.table.publish.0"
    defaults = stack.project / "include/evergreen/orchestration/defaults.py"
    defaults.write_text(defaults.read_text().replace('"retries": 30', '"retries": 1'))  # who waits for a full disk
    with tally.fault("disk full", f"embedded stack, {step}") as fault, stack.running(), watched(stack) as wrong:
        stack.hold(step, "lake write trusted")
        stack.api().unpause(TRAIN)
        run = stack.trigger(INGEST, partition_key=str(FIRST))
        stack.held(step)
        supervisor = psutil.Process(stack.state()["pid"])
        ballast = fill(stack.layout.var)
        stack.let_go(step)
        stack.until("a part of the stack falls, or the run fails", lambda: gave_up(stack, supervisor, run), 180)
        said = json.loads(stack.command("status").stdout)["disk"]
        assert f"the disk is full: expected at least 64 MB free on the disk of {stack.layout.var}" in said
        ballast.unlink()
        stack.down()  # what of it is left
        stack.up()
        known = stack.api().partition_run(INGEST, str(FIRST))
        if known is not None and known["state"] == "failed":
            stack.clear(INGEST, run)
        for dag_id, key in ((INGEST, FIRST), (SCORE, FIRST), (MONITOR, FIRST), (TRAIN, f"{MODEL}|{FIRST}")):
            stack.run_of(dag_id, str(key))
        assert wrong == []
        fault.rows(flat(twin().first), flat(stack.facts()))


def gave_up(stack: Embedded, supervisor: psutil.Process, run: str) -> bool:
    """Whether the stack has ended or the run has failed."""
    if not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE:
        return True
    try:
        [row] = stack.sql(stack.layout.airflow_db, "select state from dag_run where run_id = ?", run)
    except sqlite3.OperationalError:  # nobody has the file open, and there is no room to open it: the stack is ending
        return False
    return bool(row["state"] == "failed")
