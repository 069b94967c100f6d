"""From queued to a body that has the heavy libraries: warm workers against stock LocalExecutor."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import stack
from benchmarks.side import Side

DAG = "probe"
FILE = """
import time
from airflow.sdk import DAG, task

@task
def probe():
    began = time.time()
    import evidently, great_expectations, mlflow, xgboost
    return {"began": began, "ready": time.time()}

with DAG("probe", schedule=None):
    probe()
"""
STOCK: dict[str, str | None] = {
    f"AIRFLOW__{name}": None
    for name in (
        "SCHEDULER__MP_START_METHOD",
        "SCHEDULER__MP_FORKSERVER_PRELOAD",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME",
        "WORKERS__MIN_HEARTBEAT_INTERVAL",
    )
}
"""What the embedded stack sets and stock LocalExecutor does not."""
TASKS = 5


def _side(side: Side, changes: dict[str, str | None]) -> dict[str, Any]:
    folder = side.folder / "dags"
    folder.mkdir()
    (folder / "probe.py").write_text(FILE, encoding="utf-8")
    with stack.stack(side.folder / "var", folder, **changes) as (made, api):
        api.unpause(DAG)
        stack.run(api, DAG)
        with stack.timed(side, made):
            runs = [(DAG, stack.run(api, DAG)) for _ in range(TASKS)]
        queued = {one["run"]: one for one in stack.tasks(api, runs)}
        said = {run_id: stack.returned(api, DAG, run_id, "probe") for _, run in runs for run_id in [run["dag_run_id"]]}
    ready = [said[run_id]["ready"] - one["queued"] for run_id, one in queued.items()]
    began = [said[run_id]["began"] - one["queued"] for run_id, one in queued.items()]
    side.seconds = statistics.median(ready)
    return {"began": statistics.median(began), "imports": statistics.median(ready) - statistics.median(began)}


def engine(side: Side) -> dict[str, Any]:
    """As the embedded stack sets it."""
    return _side(side, {})


def stock(side: Side) -> dict[str, Any]:
    """The same stack with Airflow's own settings of executor and scheduler: no preload."""
    return _side(side, STOCK)


SIDES = {"engine": engine, "stock": stock}
