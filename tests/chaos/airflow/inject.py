"""Ends or holds the tasks of a stack at chosen points. Copied into a project, loaded where its workers are forked from.

A point is passed before each kind of commit of a body (files, the catalog's swap, a transaction of the mart, a call of
the registry) and when the body has returned but Airflow does not know it yet; inside a transaction of the mart it can
only be held. The plan is a folder that the variable EVG_CHAOS names:

    kill            while it is there, a task dies by SIGKILL at each of its points, once; of a mapped one the first
    hold/<step>     the step's body stops at the point that the file names, until the file go/<step> is there
    fired/<step>/   a file per point at which the step was killed, numbered
    held/<step>     process and parent of the body that is held
    ended/<step>/   a file per process whose body has returned

A step is `<verb>.<task>` and `.<map index>` of a mapped one: the models of a DAG factory share their steps.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RETURNED = "returned"
HOLD_SECONDS = 240
LATER = re.compile(r"\.[1-9]\d*$|\.[1-9]\d*\.")
"""A later index of a mapped step: the same code on another table."""

current: str | None = None


def plan() -> Path:
    return Path(os.environ["EVG_CHAOS"])


def step_of(dag_id: str, task_id: str, map_index: int | None) -> str:
    """`ingest.table.publish.2` of `ingest__nyc_flights`, `table.publish`, 2."""
    mapped = "" if map_index is None or map_index < 0 else f".{map_index}"
    return f"{dag_id.split('__')[0]}.{task_id}{mapped}"


def _once(path: Path, text: str = "") -> bool:
    """Whether this process, of all, is the one that makes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def reach(point: str, deadly: bool = True) -> None:
    """The task of this process, if it is one, is at a point. Where it is not `deadly` a body can only be held."""
    if current is None:
        return
    name, root = re.sub(r"[^A-Za-z0-9_., -]", "_", point), plan()
    _hold(root, name)
    if not deadly:
        return
    if (root / "kill").exists() and not LATER.search(current):
        fired = root / "fired" / current
        known = {path.name.split("-", 1)[1] for path in fired.glob("*")} if fired.exists() else set()
        if name not in known and _once(fired / f"{len(known) + 1:02d}-{name}"):
            os.kill(os.getpid(), signal.SIGKILL)


def _hold(root: Path, name: str) -> None:
    wanted = root / "hold" / str(current)
    if not wanted.exists() or wanted.read_text() != name:
        return
    if _once(root / "held" / str(current), f"{os.getpid()} {os.getppid()}"):
        deadline = time.monotonic() + HOLD_SECONDS
        while not (root / "go" / str(current)).exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _before(owner: Any, method: str, name: Callable[..., str | None]) -> None:
    """Pass a point before each call of a method; none where `name` says None."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        point = name(*args, **kwargs)
        if point is not None:
            reach(point)
        return original(*args, **kwargs)

    setattr(owner, method, wrapped)


def _transactions(database: Any) -> None:
    original, take = database.writing, database.lock

    @functools.wraps(take)
    def lock(self: Any, name: str, timeout: float = 600) -> Any:
        reach("lock", deadly=False)
        return take(self, name, timeout)

    @contextmanager
    def writing(self: Any, alone: str | None = None) -> Iterator[Any]:
        words = (alone or "mart").split()
        name = " ".join(words[: 2 if words[0] == "ledger" else 1])
        reach(f"mart {name}")
        with original(self, alone) as connection:
            yield connection
            reach(f"mart {name}, uncommitted", deadly=False)

    database.writing, database.lock = writing, lock


def _tasks(task_runner: Any) -> None:
    execute = task_runner._execute_task

    @functools.wraps(execute)
    def wrapped(context: Any, ti: Any, log: Any) -> Any:
        global current
        current = step_of(ti.dag_id, ti.task_id, ti.map_index)
        resumed = bool(ti._ti_context_from_server and ti._ti_context_from_server.next_method)
        if resumed:
            current += ".resumed"
        try:
            return execute(context, ti, log)
        finally:
            reach(RETURNED)
            _once(plan() / "ended" / current / str(os.getpid()))
            current = None

    task_runner._execute_task = wrapped


def _object(self: Any, key: str, *_: Any, **__: Any) -> str | None:
    """Files of the lake's tables are part of a write, which has points of its own."""
    first = key.split("/", 1)[0]
    return None if first == "iceberg" else f"put {first}"


def arm() -> None:
    """Wrap what commits."""
    from airflow.sdk.execution_time import task_runner
    from mlflow import MlflowClient
    from pyiceberg.catalog.sql import SqlCatalog

    from include.evergreen.lake.iceberg import IcebergLake
    from include.evergreen.lake.objects import S3Objects
    from include.evergreen.mart.database import Database

    _tasks(task_runner)
    _transactions(Database)
    _before(S3Objects, "put", _object)
    _before(S3Objects, "delete", lambda *_: "delete")
    for method in ("write", "tag", "maintain"):
        _before(IcebergLake, method, lambda _, table, *__, method=method, **___: f"lake {method} {table.split('.')[0]}")
    _before(SqlCatalog, "commit_table", lambda _, table, *__: f"lake commit {table.name()[-2]}")
    for method in ("create_run", "log_batch", "create_model_version", "set_terminated"):
        _before(MlflowClient, method, lambda *_, method=method, **__: f"mlflow {method}")
    _before(MlflowClient, "set_registered_model_alias", lambda _, model, alias, *__: f"mlflow alias {alias}")


if "EVG_CHAOS" in os.environ:
    arm()
