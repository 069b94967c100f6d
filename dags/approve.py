"""
## Purpose
Asks a person before a candidate that the gate accepted becomes champion. Only models with `approval: human` have it.

## Inputs and outputs
In: the asset `approval_requested__<model>` of `train__<model>`, or a run by hand with a version. Out: the answer in the
ledger (approved, rejected or expired; who and when) and, on a yes, the alias `champion` and the asset
`champion__<model>`. Nobody's answer is a no.

## Rerun policy
Safe at any time: the first answer of a run stands when a task is cleared. To ask again, start a run by hand.

## On failure
The champion stays in force: `docs/runbooks/approval.md`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, PartitionedAssetTimetable
from airflow.sdk.exceptions import AirflowSkipException

from include.evergreen.orchestration import assets, defaults, notify, runs
from include.evergreen.orchestration.connections import platform
from include.evergreen.orchestration.links import link
from include.evergreen.orchestration.quick import DAG, task
from include.evergreen.pipeline import approval as steps
from include.evergreen.specs import ModelSpec

FORM = defaults.form(
    version=Param(None, type=["null", "integer"], minimum=1, description="Candidate; asked of every run by hand")
)


class Approval(ApprovalOperator):
    """Reject skips no task: a skip would drop the answer, and `conclude` has to record who gave it."""

    def skip(self, ti: Any, tasks: Any) -> None:
        self.log.info("the answer is no")


def approve(model: ModelSpec) -> DAG:
    """The approval DAG of one model."""
    champion, asked = assets.champion(model.name), assets.approval_requested(model.name)

    @task
    def prepare() -> dict[str, Any]:
        version = runs.params()["version"]
        prepared = steps.prepare(platform(), model, runs.payloads(asked), version, runs.run_key())
        notify.deliver()
        return prepared

    @task(outlets=[champion])
    def conclude(request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
        done = steps.conclude(platform(), model, request, response, runs.run_key())
        if done["effective_from"] is None:
            raise AirflowSkipException(f"{done['outcome']}: {'; '.join(done['reasons'])}")
        runs.emit(champion, request["as_of"], version=done["version"])
        return done

    with DAG(
        dag_id=f"approve__{model.name}",
        description=f"Ask a person before a candidate of {model.name} becomes champion",
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(assets=asked),
        start_date=defaults.midnight(model.start_date),
        catchup=False,
        max_active_runs=8,
        dagrun_timeout=dt.timedelta(hours=model.approval_hours) + dt.timedelta(days=1),
        default_args=defaults.default_args(model.owner),
        **defaults.watched("approve"),
        tags=["train", model.name],
    ) as dag:
        request = link(prepare(), "Model card", f"/cards/{model.name}/{{version}}")
        answer = Approval(
            task_id="wait",
            subject="{{ ti.xcom_pull(task_ids='prepare')['subject'] }}",
            body="{{ ti.xcom_pull(task_ids='prepare')['body'] }}",
            defaults=Approval.REJECT,
            response_timeout=dt.timedelta(hours=model.approval_hours),
            assigned_users=[{"id": name, "name": name} for name in model.approvers] or None,
        )
        request >> answer
        conclude(request, answer.output)

    return defaults.finish(dag, FORM)


for _model, _ in runs.models("approve"):
    if _model.approval == "human":
        globals()[f"approve__{_model.name}"] = approve(_model)
