"""
## Purpose
Proves that a registered version can be made again: retrains it from its recorded lineage and compares the bytes.

## Inputs and outputs
In: a model and a version; its lineage, with the lake snapshots it was trained on. Out: a `rebuild` in the ledger, with
a report that names every recorded input that has changed. Nothing is registered.

## Rerun policy
Safe at any time: a run that has answered keeps its answer. To measure again, start a new run.

## On failure
The version in force is not touched: `docs/runbooks/rebuild.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import DAG, Param, task

from include.evergreen.orchestration import defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.pipeline import rebuild as steps
from include.evergreen.specs import names

MODELS = names("model")


@task(multiple_outputs=False)
def retrain() -> dict[str, Any]:
    params = runs.params()
    return steps.rebuild(platform(), params["model"], params["version"], runs.run_key(), runs.actor())


with DAG(
    dag_id="rebuild",
    description="Retrain a registered version from its lineage; the bytes must be equal",
    doc_md=__doc__,
    schedule=None,
    start_date=dt.datetime(2013, 1, 1, tzinfo=dt.UTC),
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=6),
    default_args=defaults.default_args("evergreen", defaults.POOL_TRAINING, timeout_minutes=180),
    **defaults.watched("rebuild"),
    tags=["train", "operate"],
    params={
        "model": Param(MODELS[0], type="string", enum=MODELS, description="The model"),
        "version": Param(1, type="integer", minimum=1, description="The registered version to make again"),
    },
) as dag:
    retrain()
