"""The whole loop on the flights of 2013, from the landed files: take in the year, validate it, train a champion that a
gate accepts, score a day with reasons, monitor it.

Through Airflow, against a script of DuckDB and XGBoost, and against the engine's libraries a process per step.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import data, stack
from benchmarks.side import Side

FIRST, DAY = dt.date(2013, 1, 1), data.DAY
TRAINED = DAY
"""The day that is scored is the first one in force of the champion."""
TRAIN = f"train__{data.MODEL}"


def engine(side: Side) -> dict[str, Any]:
    """From the call that starts the bulk load to the end of the monitoring, on a stack that is up."""
    from benchmarks.rows.cycle import INGEST, MONITOR, SCORE

    key = DAY.isoformat()
    with stack.stack(stack.copy(data.landed(), side.folder / "var")) as (made, api):
        for dag_id in (INGEST, TRAIN, SCORE, MONITOR):
            api.unpause(dag_id)
        with stack.timed(side, made):
            conf = {"history_from": FIRST.isoformat()}
            runs = [(INGEST, stack.run(api, INGEST, partition_key=key, conf=conf))]
            conf = {"reason": "benchmark", "as_of": TRAINED.isoformat()}
            runs += [(TRAIN, stack.run(api, TRAIN, conf=conf))]
            runs += [(SCORE, stack.run(api, SCORE, partition_key=key))]
            runs += [(MONITOR, stack.partition(api, MONITOR, key))]
        done = stack.tasks(api, runs)
        trained = stack.returned(api, TRAIN, runs[1][1]["dag_run_id"], "fit")
    return {
        "rows": data.FLIGHTS,
        "tasks": len(done),
        "auc": trained["metrics"]["holdout"]["auc"],
        "stages": {
            dag_id: round(stack.moment(run["end_date"]) - stack.moment(run["queued_at"]), 2) for dag_id, run in runs
        },
        "bodies": {
            task["task"]: round(task["end"] - task["start"], 2)
            for task in sorted(done, key=lambda one: one["start"] - one["end"])[:8]
        },
    }


def bare(side: Side) -> dict[str, Any]:
    """One process, everything in memory, as little as answers the same questions."""
    import duckdb  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import xgboost  # noqa: F401

    from benchmarks import bare as script

    with side.timed():
        return script.loop(data.landed() / "s3/landing", side.folder)


def steps(side: Side) -> dict[str, Any]:
    """pandas and Great Expectations, XGBoost and MLflow, Evidently: a process for each step."""
    registry = side.folder / "registry.db"
    shutil.copy(data.landed() / "registry.db", registry)
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{registry}", "GX_ANALYTICS_ENABLED": "false"}
    with side.timed():
        for step in ("take_in", "validate", "train", "score", "monitor"):
            argv = [sys.executable, "-m", "benchmarks.by_process", step, str(data.landed()), str(side.folder)]
            subprocess.run(argv, env=env, check=True, stdout=sys.stderr)  # noqa: S603
    side.peak_mib = 0  # of the parent, who does nothing
    return {"rows": data.FLIGHTS, "auc": float((Path(side.folder) / "auc").read_text(encoding="ascii"))}


SIDES = {"engine": engine, "bare": bare, "steps": steps}
