"""
## Purpose
Keeps the lake small and quick: compacts small files, expires old snapshots, deletes what nothing references, and clears
old staging files. Snapshots that a registered model was trained on are kept.

## Inputs and outputs
In: every table of the lake. Out: the same rows in fewer files; before and after in the task's log.

## Rerun policy
Safe at any time, beside running pipelines: a table that is being written is taken up by the next run.

## On failure
No row is at risk: `docs/runbooks/maintenance-failed.md`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, Param, task

from include.evergreen.orchestration import defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.pipeline.maintenance import maintain_lake


@task
def maintain() -> list[dict[str, Any]]:
    params = runs.params()
    return [asdict(upkeep) for upkeep in maintain_lake(platform(), params["keep_snapshots"], params["staging_days"])]


with DAG(
    dag_id="maintain_lake",
    description="Compact, expire, clean up",
    doc_md=__doc__,
    schedule="0 3 * * *",
    start_date=dt.datetime(2013, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=4),
    default_args=defaults.default_args("evergreen", defaults.POOL_INGEST, timeout_minutes=120),
    **defaults.watched("maintain"),
    tags=["lake", "operate"],
    params={
        "keep_snapshots": Param(10, type="integer", minimum=1, description="Newest untagged snapshots kept per table"),
        "staging_days": Param(3, type="integer", minimum=0, description="Days that staging files are kept"),
    },
) as dag:
    maintain()
