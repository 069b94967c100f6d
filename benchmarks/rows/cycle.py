"""Daily cycles through Airflow, against the same functions called in a row in one process."""

from __future__ import annotations

import datetime as dt
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import data, stack, steps
from benchmarks.side import Side

DAYS = [data.HISTORY + dt.timedelta(days=number) for number in range(1, 5)]
"""The first one warms."""
VERBS = (("ingest", "nyc_flights"), ("score", data.MODEL), ("monitor", data.MODEL))
INGEST, SCORE, MONITOR = (f"{verb}__{name}" for verb, name in VERBS)


def _days(one: Callable[[dt.date], float]) -> float:
    """Seconds of a day: the median of all but the first."""
    return statistics.median([one(day) for day in DAYS][1:])


def engine(side: Side) -> dict[str, Any]:
    """From the call that starts the ingest to the end of the monitoring that it leads to."""
    found: list[list[dict[str, Any]]] = []
    with stack.stack(stack.copy(data.champion(), side.folder / "var")) as (made, api):
        for dag_id in (INGEST, SCORE, MONITOR):
            api.unpause(dag_id)

        def one(day: dt.date) -> float:
            start, key = time.time(), day.isoformat()
            run_id = api.trigger_run(INGEST, partition_key=key)
            last = stack.partition(api, MONITOR, key)
            runs = [(INGEST, api.dag_run(INGEST, run_id)), (SCORE, stack.partition(api, SCORE, key)), (MONITOR, last)]
            found.append(stack.tasks(api, runs))
            return stack.moment(last["end_date"]) - start

        with stack.timed(side, made):
            whole = _days(one)
    side.seconds = whole
    tasks = [task for day in found[1:] for task in day]
    return {
        "rows": len(DAYS) - 1,
        "tasks": len(found[-1]),
        "body": statistics.median(task["end"] - task["start"] for task in tasks),
        "lag": statistics.median(task["start"] - task["scheduled"] for task in tasks),
    }


def row(side: Side) -> dict[str, Any]:
    """The functions that those tasks call, on the same object store, in one process that has made their first use."""
    shutil.copytree(data.champion(), side.folder / "root")
    with side.platform(side.folder / "root") as platform:

        def one(day: dt.date) -> float:
            start = time.time()
            for step in (steps.ingest, steps.score, steps.monitor):
                step(platform, day)
            return time.time() - start

        with side.timed():
            whole = _days(one)
    side.seconds = whole
    return {"rows": len(DAYS) - 1}


SIDES = {"engine": engine, "row": row}
