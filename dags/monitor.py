"""
## Purpose
Says whether a model is well on one as-of date: data health, drift against its training reference, performance of what
has matured. Asks for a retrain when the retrain governor allows one.

## Inputs and outputs
In: the asset `predictions__<model>`, same as-of date. Out: an Evidently report (HTML and JSON) on S3, one row in
`monitorings`, the verdict and the retrain decision in the ledger, an alert for a verdict other than `ok` and for a
halted retrain, the asset `retrain_requested__<model>` with the key `<model>|<date>` when a retrain is allowed.

## Rerun policy
Safe at any time: the verdict of a date is replaced; a decision once taken by a run stands, and one date asks at most
once.

## On failure
Predictions are not touched. No verdict means no retrain: `docs/runbooks/monitoring-failed.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import PartitionedAssetTimetable
from airflow.sdk.exceptions import AirflowSkipException

from include.evergreen.orchestration import assets, defaults, notify, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.orchestration.links import link
from include.evergreen.orchestration.quick import DAG, task
from include.evergreen.pipeline import monitoring as steps
from include.evergreen.pipeline import retraining
from include.evergreen.specs import ModelSpec, SourceSpec

FORM = defaults.form(as_of=defaults.AS_OF)


def monitor(model: ModelSpec, source: SourceSpec) -> DAG:
    """The monitoring DAG of one model."""
    retrain = assets.retrain_requested(model.name)

    @task
    def measure() -> dict[str, Any]:
        return steps.measure(platform(), model, source, runs.as_of(), runs.run_key())

    @task
    def conclude(facts: dict[str, Any]) -> dict[str, Any]:
        concluded = steps.conclude(platform(), model, source, runs.as_of(), facts, runs.run_key())
        notify.deliver()
        return concluded

    @task(outlets=[retrain])
    def ask_retrain(verdict: dict[str, Any]) -> None:
        asked = retraining.ask(platform(), model, runs.as_of(), runs.run_key())
        if not asked.decision.accepted:
            raise AirflowSkipException(f"no retrain: {'; '.join(asked.decision.reasons)}")
        runs.emit(retrain, assets.retrain_key(model.name, runs.as_of()), reasons=list(asked.decision.reasons))

    with DAG(
        dag_id=f"monitor__{model.name}",
        description=f"Health of {model.name}",
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(assets=assets.predictions(model.name)),
        start_date=defaults.midnight(model.start_date),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=dt.timedelta(hours=2),
        default_args=defaults.default_args(model.owner, defaults.POOL_SCORING),
        **defaults.watched("monitor"),
        tags=["monitor", model.name],
    ) as dag:
        facts = link(measure(), "Drift report", f"/reports/{model.name}/{{as_of}}")
        ask_retrain(conclude(facts))

    return defaults.finish(dag, FORM)


for _model, _source in runs.models("monitor"):
    globals()[f"monitor__{_model.name}"] = monitor(_model, _source)
