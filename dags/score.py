"""
## Purpose
Scores every entity of one as-of date with the champion, and publishes predictions with their reasons to analysts.

## Inputs and outputs
In: the asset `trusted__<source>`, same as-of date; the champion in force that day. Out: one partition of
`predictions.<model>` in the lake, the same rows in the mart (`<model>_current`, `<model>_outcomes`), the asset
`predictions__<model>`.

## Rerun policy
Safe at any time: a scored partition keeps its model version and its rows. Analysts see all of a partition or none.

## On failure
Nothing was published; yesterday's predictions stand: `docs/runbooks/scoring-failed.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import PartitionedAssetTimetable
from airflow.sdk.exceptions import AirflowSkipException

from include.evergreen.orchestration import assets, defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.orchestration.quick import DAG, task
from include.evergreen.pipeline import scoring as steps
from include.evergreen.specs import ModelSpec, SourceSpec

FORM = defaults.form(as_of=defaults.AS_OF)


def score(model: ModelSpec, source: SourceSpec) -> DAG:
    """The scoring DAG of one model."""
    predictions = assets.predictions(model.name)

    @task
    def predict() -> dict[str, Any]:
        if not platform().mart.champion_history(model.name):
            raise AirflowSkipException(f"no champion yet: trigger train__{model.name}")
        return steps.predict(platform(), model, source, runs.as_of(), runs.run_key())

    @task(outlets=[predictions])
    def publish(staged: dict[str, Any]) -> dict[str, Any]:
        published = steps.publish(platform(), model, source, runs.as_of(), staged, runs.run_key())
        runs.emit(predictions, runs.as_of().isoformat(), version=staged["version"], rows=staged["rows"])
        return published

    with DAG(
        dag_id=f"score__{model.name}",
        description=model.description,
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(assets=assets.trusted(source.name)),
        start_date=defaults.midnight(model.start_date),
        catchup=False,
        max_active_runs=4,
        dagrun_timeout=dt.timedelta(hours=2),
        default_args=defaults.default_args(model.owner, defaults.POOL_SCORING),
        **defaults.watched("score"),
        tags=["score", model.name],
    ) as dag:
        publish(predict())

    return defaults.finish(dag, FORM)


for _model, _source in runs.models("score"):
    globals()[f"score__{_model.name}"] = score(_model, _source)
