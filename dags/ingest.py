"""
## Purpose
Takes one as-of date of a source from landed files to trusted tables: wait, land, validate, publish or quarantine,
table by table; then says so with one asset event that scoring waits for.

## Inputs and outputs
In: the source's files in the landing bucket. Out: `trusted.<table>` and `quarantine.<table>` in the lake, a validation
page per table and partition, one row per partition in `ingest_batches`, the asset `trusted__<source>` with the as-of
date. Every row in is exactly one of trusted, quarantined or duplicate.

## Rerun policy
Safe at any time: a partition is replaced whole, in one commit. A late or corrected file is taken in by running its
partition again. `history_from` loads a range of dates in bulk and emits no event.

## On failure
A stopped partition published nothing and says what was expected and found: `docs/runbooks/ingest-stopped.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import CronPartitionTimetable, Param, task, task_group
from airflow.sdk.exceptions import AirflowSkipException

from include.evergreen.orchestration import assets, defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.orchestration.links import link
from include.evergreen.orchestration.quick import DAG
from include.evergreen.orchestration.sensors import DeliverySensor
from include.evergreen.pipeline import ingest as steps
from include.evergreen.specs import SourceSpec

FORM = defaults.form(
    as_of=defaults.AS_OF,
    history_from=Param(
        None, type=["null", "string"], format="date", description="Load every date from this one in bulk"
    ),
)


def ingest(source: SourceSpec) -> DAG:
    """The ingest DAG of one source."""
    trusted = assets.trusted(source.name)

    @task(multiple_outputs=False)
    def land(table: str, dates: list[str]) -> dict[str, Any]:
        if not dates:
            raise AirflowSkipException(f"{table}: no new delivery")
        days = [dt.date.fromisoformat(day) for day in dates]
        return steps.land(platform(), source, source.tables[table], days, runs.run_key())

    @task(multiple_outputs=False)
    def validate(table: str, staged: dict[str, Any]) -> dict[str, Any]:
        validated = steps.validate(platform(), source, source.tables[table], staged, runs.run_key())
        return {**validated, "table": table}

    @task(multiple_outputs=False)
    def publish(table: str, validated: dict[str, Any]) -> dict[str, Any]:
        return steps.publish(platform(), source, source.tables[table], validated, runs.run_key())

    @task_group
    def table(table: str) -> None:
        dates = DeliverySensor(
            task_id="wait",
            source=source.name,
            table=table,
            wait_minutes=source.wait.timeout_minutes,
            poke_seconds=source.wait.poke_seconds,
        )
        validated = validate(table, land(table, dates.output))  # type: ignore[arg-type]
        publish(table, link(validated, "Validation page", "/validation/{table}/{first}"))  # type: ignore[arg-type]

    @task(outlets=[trusted], trigger_rule="none_failed")
    def complete() -> None:
        if since := runs.params()["history_from"]:
            raise AirflowSkipException(f"history from {since} is loaded; no event is due")
        runs.emit(trusted, runs.as_of().isoformat(), source=source.name)

    with DAG(
        dag_id=f"ingest__{source.name}",
        description=source.description,
        doc_md=__doc__,
        schedule=CronPartitionTimetable(source.schedule, timezone="UTC", run_offset=0, key_format="%Y-%m-%d"),
        start_date=defaults.midnight(source.start_date),
        end_date=defaults.midnight(source.end_date) if source.end_date else None,
        catchup=False,
        max_active_runs=2,
        dagrun_timeout=dt.timedelta(minutes=source.wait.timeout_minutes + 120),
        default_args=defaults.default_args(source.owner, defaults.POOL_INGEST),
        **defaults.watched("ingest", source.wait.timeout_minutes),
        tags=["ingest", source.name],
    ) as dag:
        table.expand(table=list(source.tables)) >> complete()

    return defaults.finish(dag, FORM)


for _source in runs.sources("ingest"):
    globals()[f"ingest__{_source.name}"] = ingest(_source)
