"""The embedded stack on a folder of its own, for the rows that run through Airflow."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from benchmarks.side import Side
from include.evergreen.local import processes
from include.evergreen.local.api import Api
from include.evergreen.local.layout import PORTS, PROJECT, Layout
from include.evergreen.local.stack import Stack
from tests.outside import ports_of

DAGS = PROJECT / "dags"
PATIENCE = 900
"""Seconds for a part of the stack, or a run."""


@contextmanager
def stack(var: Path, dags: Path = DAGS, project: Path = PROJECT, **changes: str | None) -> Iterator[tuple[Stack, Api]]:
    """The stack, ready, and its API.

    Args:
        dags: the folder of DAG files. project: where `include` is.
        changes: of its environment; None leaves a variable to Airflow's default.
    """
    given = {"EVERGREEN_VAR": str(var), "EVERGREEN_DAGS": str(dags), **ports_of(PORTS)}
    with Stack(replace(Layout.from_env(given), project=project)) as made:
        for name, value in changes.items():
            made.environment.pop(name, None)
            if value is not None:
                made.environment[name] = value
        made.start()
        made.wait_ready(PATIENCE)
        with Api.login(made.layout) as api:
            yield made, api


def spent(made: Stack) -> float:
    """Processor seconds of all its processes, and of those they have seen end."""
    total = 0.0
    for process in processes.of_stack(made.mark[processes.MARK]):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


@contextmanager
def timed(side: Side, made: Stack) -> Iterator[None]:
    """Time the body; the stack's processes are the side's own. Its peak memory is all of the stack at the end."""
    with side.timed(lambda: spent(made)):
        yield
    whole = 0
    for process in processes.of_stack(made.mark[processes.MARK]):
        with suppress(psutil.Error):
            whole += process.memory_full_info().pss
    side.peak_mib = whole / 2**20


def copy(of: Path, var: Path) -> Path:
    """A folder that `Side.platform` wrote, as the `var` of a stack."""
    shutil.copytree(of, var)
    if (var / "registry.db").exists():
        (var / "registry.db").rename(var / "mlflow.db")
    return var


def run(api: Api, dag_id: str, **trigger: Any) -> dict[str, Any]:
    """Start a run and wait for its end. Raises RuntimeError: it failed."""
    return ended(api, dag_id, api.wait_run(dag_id, api.trigger_run(dag_id, **trigger), PATIENCE))


def partition(api: Api, dag_id: str, key: str) -> dict[str, Any]:
    """The run that an event starts for a partition, once it has ended. Raises RuntimeError: it failed or never came."""
    deadline = time.monotonic() + PATIENCE
    while (found := api.partition_run(dag_id, key)) is None or found["state"] not in ("success", "failed"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{dag_id} {key}: expected a run to end within {PATIENCE} s, found {found}")
        time.sleep(0.25)
    return ended(api, dag_id, found)


def ended(api: Api, dag_id: str, found: dict[str, Any]) -> dict[str, Any]:
    """The run. Raises RuntimeError: names the tasks that failed."""
    if found["state"] != "success":
        raise RuntimeError(f"{dag_id}: expected success, found {api.failed_tasks(dag_id, found['dag_run_id'])} failed")
    return found


def returned(api: Api, dag_id: str, run_id: str, task_id: str) -> Any:
    """What a task returned: Airflow hands it out as it keeps it."""
    path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/return_value"
    value = api.request("GET", path, params={"deserialize": False})["value"]
    return json.loads(value) if isinstance(value, str) else value


def moment(text: str) -> float:
    """A time of Airflow's API, in seconds since the epoch."""
    return dt.datetime.fromisoformat(text).timestamp()


def tasks(api: Api, runs: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Task instances of runs that ran: queued, start and end in seconds since the epoch."""
    return [
        {
            "run": one["dag_run_id"],
            "task": f"{dag_id}.{one['task_id']}",
            "queued": moment(one["queued_when"]),
            "scheduled": moment(one["scheduled_when"]),
            "start": moment(one["start_date"]),
            "end": moment(one["end_date"]),
        }
        for dag_id, found in runs
        for one in api.task_instances(dag_id, found["dag_run_id"])
        if one["start_date"] and one["queued_when"]
    ]
