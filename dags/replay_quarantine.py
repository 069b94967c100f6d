"""
## Purpose
Gives quarantined rows a second chance after a fix or a relaxed rule: validates them with today's spec and publishes
what now passes.

## Inputs and outputs
In: `quarantine.<table>` of a range of partitions. Out: the rows that pass, in `trusted.<table>`; updated counts in
`ingest_batches`; a `quarantine_release` in the ledger.

## Rerun policy
Safe at any time: what is released is released once; what still fails stays, with its reasons of today.

## On failure
Nothing moved: `docs/runbooks/ingest-stopped.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import DAG, Param, task

from include.evergreen.orchestration import defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.pipeline import ingest as steps
from include.evergreen.specs import source, survey_sources

TABLES = sorted(f"{spec.name}.{table}" for spec in survey_sources()[0].values() for table in spec.tables)


@task(multiple_outputs=False)
def replay() -> dict[str, Any]:
    params = runs.params()
    name, table = params["table"].split(".")
    since, until = (dt.date.fromisoformat(params[bound]) for bound in ("since", "until"))
    spec = source(name)
    return steps.replay_quarantine(platform(), spec, spec.tables[table], since, until, runs.run_key(), runs.actor())


with DAG(
    dag_id="replay_quarantine",
    description="Validate quarantined rows again and publish what passes",
    doc_md=__doc__,
    schedule=None,
    start_date=dt.datetime(2013, 1, 1, tzinfo=dt.UTC),
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=2),
    default_args=defaults.default_args("evergreen", defaults.POOL_INGEST),
    **defaults.watched("replay"),
    tags=["ingest", "operate"],
    params={
        "table": Param(TABLES[0], type="string", enum=TABLES, description="source.table"),
        "since": Param("2013-01-01", type="string", format="date", description="First partition"),
        "until": Param("2013-01-01", type="string", format="date", description="Last partition"),
    },
) as dag:
    replay()
