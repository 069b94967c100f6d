"""
## Purpose
Makes a challenger and lets the gate decide: build the training set, prove that no feature sees the future, fit, measure
challenger, champion and baseline on the same rows, decide, register, promote.

## Inputs and outputs
In: the asset `retrain_requested__<model>` (drift, or `request__<model>` on the model's schedule), or a run by hand with
a reason. Out: a registered version with everything that made it, the gate's decision in the ledger with its evidence,
and, when it is accepted, the alias `champion` and the asset `champion__<model>`.

## Rerun policy
Safe at any time: one run makes at most one version, and its recorded decision stands when a task is cleared.

## On failure
The champion stays in force: `docs/runbooks/training-failed.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import CronPartitionTimetable, Param, PartitionedAssetTimetable
from airflow.sdk.exceptions import AirflowSkipException

from include.evergreen.orchestration import assets, defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.orchestration.links import link
from include.evergreen.orchestration.quick import DAG, task
from include.evergreen.pipeline import retraining
from include.evergreen.pipeline import training as steps
from include.evergreen.specs import ModelSpec

FORM = defaults.form(
    reason=Param(None, type=["null", "string"], minLength=3, description="Why train now; asked of every run by hand"),
    as_of=Param(None, type=["null", "string"], format="date", description="Train on what was known at this midnight"),
    window_days=Param(None, type=["null", "integer"], minimum=2, description="Days of history; empty = the spec's"),
    hyper_parameters=Param({}, type=["object", "null"], description="XGBoost parameters that replace the spec's"),
)
FORM_REQUEST = defaults.form(as_of=defaults.AS_OF)


def train(model: ModelSpec) -> DAG:
    """The training DAG of one model."""
    champion, retrain = assets.champion(model.name), assets.retrain_requested(model.name)
    approval = assets.approval_requested(model.name)

    @task
    def build() -> dict[str, Any]:
        reason = runs.reason(retrain)
        retraining.record_by_hand(platform(), model, runs.as_of(), runs.run_key(), reason, runs.person())
        return steps.build(platform(), model, runs.as_of(), runs.run_key(), reason, runs.params()["window_days"])

    @task
    def check_leaks(built: dict[str, Any]) -> dict[str, Any]:
        return steps.check_leaks(platform(), model, runs.as_of(), built)

    @task
    def fit(built: dict[str, Any]) -> dict[str, Any]:
        overrides = runs.params()["hyper_parameters"]
        return steps.fit(platform(), model, runs.as_of(), runs.run_key(), built, overrides)

    @task
    def gate(built: dict[str, Any], fitted: dict[str, Any], leaks: dict[str, Any]) -> dict[str, Any]:
        decided = steps.decide(platform(), model, runs.as_of(), runs.run_key(), built, fitted, leaks)
        retraining.close_halt(platform(), model, runs.as_of(), decided)
        return decided

    @task
    def register(built: dict[str, Any], fitted: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
        return steps.register(platform(), model, runs.as_of(), runs.run_key(), built, fitted, decided)

    @task(outlets=[champion])
    def promote(registered: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
        if not decided["accepted"]:
            raise AirflowSkipException(f"refused: {'; '.join(decided['reasons'])}")
        runs.emit(champion, runs.as_of().isoformat(), version=registered["version"])
        return steps.promote(platform(), model, runs.as_of(), runs.run_key(), registered, decided)

    @task(outlets=[approval])
    def ask_approval(registered: dict[str, Any], decided: dict[str, Any]) -> None:
        if not decided["accepted"]:
            raise AirflowSkipException(f"refused: {'; '.join(decided['reasons'])}")
        day, key = runs.as_of(), assets.retrain_key(model.name, runs.as_of())
        runs.emit(approval, key, version=registered["version"], run_key=runs.run_key(), as_of=day.isoformat())

    with DAG(
        dag_id=f"train__{model.name}",
        description=f"Train a challenger of {model.name} and let the gate decide",
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(assets=retrain),
        start_date=defaults.midnight(model.start_date),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=dt.timedelta(hours=6),
        default_args=defaults.default_args(model.owner, defaults.POOL_TRAINING, timeout_minutes=180),
        **defaults.watched("train"),
        tags=["train", model.name],
    ) as dag:
        built = build()
        leaks = check_leaks(built)
        fitted = fit(built)
        decided = gate(built, fitted, leaks)
        registered = link(register(built, fitted, decided), "Model card", "/cards/{model}/{version}")
        conclude = ask_approval if model.approval == "human" else promote
        conclude(registered, decided)

    return defaults.finish(dag, FORM)


def request(model: ModelSpec) -> DAG:
    """Asks for a training on the model's schedule: a keyed event, so that every training has an as-of date."""
    retrain = assets.retrain_requested(model.name)

    @task(outlets=[retrain])
    def ask() -> None:
        retraining.request_on_schedule(platform(), model, runs.as_of(), runs.run_key())
        runs.emit(retrain, assets.retrain_key(model.name, runs.as_of()), reasons=["on schedule"])

    with DAG(
        dag_id=f"request__{model.name}",
        description=f"Ask for a training of {model.name} on schedule ({model.training.schedule})",
        doc_md=__doc__,
        schedule=CronPartitionTimetable(model.training.schedule or "", timezone="UTC", key_format="%Y-%m-%d"),
        start_date=defaults.midnight(model.start_date),
        end_date=defaults.midnight(model.end_date) if model.end_date else None,
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=dt.timedelta(hours=1),
        default_args=defaults.default_args(model.owner),
        **defaults.watched("request"),
        tags=["train", model.name],
    ) as dag:
        ask()

    return defaults.finish(dag, FORM_REQUEST)


for _model, _ in runs.models("train", "request"):
    if runs.wanted(f"train__{_model.name}"):
        globals()[f"train__{_model.name}"] = train(_model)
    if _model.training.schedule and runs.wanted(f"request__{_model.name}"):
        globals()[f"request__{_model.name}"] = request(_model)
