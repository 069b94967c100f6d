"""
## Purpose
Takes a champion back: puts a version that was champion before in force again, and re-scores every date that the
withdrawn one has scored since.

## Inputs and outputs
In: the model, the version to go back to, a reason. Out: a `rollback` in the ledger, the champion history, the aliases
`champion` and `withdrawn`, and the re-scored partitions; the withdrawn rows stay in the history. A dry run, which is
the default, writes its plan to the ledger and changes nothing else.

## Rerun policy
Safe at any time: a run that was cleared goes on with the plan it recorded, and never undoes a later decision.

## On failure
Either version may still show for some dates: `docs/runbooks/rollback.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk import DAG, Param, task

from include.evergreen.orchestration import defaults, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.pipeline import rollback as steps
from include.evergreen.specs import ModelSpec, model, names, source

MODELS = names("model")


def chosen() -> ModelSpec:
    """The model of this run."""
    return model(runs.params()["model"])


@task(multiple_outputs=False)
def plan() -> dict[str, Any]:
    return steps.plan(platform(), chosen(), runs.params()["version"], runs.run_key())


@task
def withdraw(planned: dict[str, Any]) -> list[str]:
    params = runs.params()
    asked = (runs.actor(), params["reason"], params["dry_run"])
    dates: list[str] = steps.withdraw(platform(), chosen(), planned, runs.run_key(), *asked)["partitions"]
    return dates


@task(multiple_outputs=False)
def rescore(planned: dict[str, Any], as_of: str) -> dict[str, Any]:
    spec, day = chosen(), dt.date.fromisoformat(as_of)
    return steps.rescore(platform(), spec, source(spec.source), day, planned["version"], runs.run_key())


@task(multiple_outputs=False, trigger_rule="none_failed")
def complete(planned: dict[str, Any]) -> dict[str, Any]:
    return steps.complete(platform(), chosen(), planned, runs.run_key())


with DAG(
    dag_id="rollback",
    description="Go back to an earlier champion and re-score what the withdrawn one scored",
    doc_md=__doc__,
    schedule=None,
    start_date=dt.datetime(2013, 1, 1, tzinfo=dt.UTC),
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=12),
    default_args=defaults.default_args("evergreen", defaults.POOL_SCORING),
    **defaults.watched("rollback"),
    tags=["score", "operate"],
    params={
        "model": Param(MODELS[0], type="string", enum=MODELS, description="The model"),
        "version": Param(1, type="integer", minimum=1, description="The version to go back to; it was champion before"),
        "reason": Param(None, type=["null", "string"], minLength=3, description="Why; asked of every run that is real"),
        "dry_run": Param(True, type="boolean", description="Plan only: what would be withdrawn and re-scored"),
    },
) as dag:
    planned = plan()
    rescored = rescore.partial(planned=planned).expand(as_of=withdraw(planned))  # type: ignore[arg-type]
    rescored >> complete(planned)  # type: ignore[arg-type]
