"""What a person may do here: answer alerts, retrain, roll back, approve, release quarantined rows.

Every action has a page that says what it will do, then a POST that does it. The form on the page is signed for one user
and one purpose; its nonce names the DAG run, so that a second press finds the first one's run.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.errors import NotFound, Refused
from include.evergreen.health import read
from include.evergreen.health.facts import Alert
from include.evergreen.web.access import Answer
from include.evergreen.web.pages import Name, Number, SiteDep, question
from include.evergreen.web.site import NoPage, Site

RUN_PREFIX = "health__"
SNOOZES = {"1": "1 hour", "4": "4 hours", "12": "12 hours", "24": "1 day", "72": "3 days", "168": "a week"}
UNFINISHED = {"queued", "running"}
REFRESH_SECONDS = 3
DAGS = re.compile(r"^(train__[a-z][a-z0-9_]{0,47}|rollback|replay_quarantine)$")

RunId = Annotated[str, Path(pattern=r"^health__[0-9a-f]{16}$")]

router = APIRouter()


class AirflowRefused(Exception):
    """Airflow did not do what was asked; the text is shown."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status if answer.status in (403, 404, 409) else 502
        super().__init__(answer.detail or f"Airflow answered {answer.status}.")


async def start(site: Site, request: Request, dag_id: str, nonce: str, conf: Mapping[str, Any]) -> str:
    """Start a DAG run as the user, named after the form's nonce, and return its id. A second press finds the run.

    Raises:
        AirflowRefused: no permission, no such DAG, or params that its schema refuses.
    """
    run_id = f"{RUN_PREFIX}{nonce}"
    body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
    said = await site.access.call(request, request.state.user, "POST", f"/dags/{dag_id}/dagRuns", body)
    if not said.ok and said.status != 409:
        raise AirflowRefused(said)
    return run_id


async def _run(site: Site, request: Request, dag_id: str, run_id: str) -> Mapping[str, Any]:
    said = await site.access.call(request, request.state.user, "GET", f"/dags/{dag_id}/dagRuns/{run_id}")
    if said.status == 404:
        raise NoPage("There is no such run.")
    if not said.ok:
        raise AirflowRefused(said)
    return said.body


async def _paused(site: Site, request: Request, dag_id: str) -> bool:
    said = await site.access.call(request, request.state.user, "GET", f"/dags/{dag_id}")
    return bool(said.ok and said.body.get("is_paused"))


async def _allowed(site: Site, request: Request, dag_id: str, method: Literal["POST", "PUT"] = "POST") -> None:
    entity: Literal["RUN", "HITL_DETAIL"] = "HITL_DETAIL" if method == "PUT" else "RUN"
    await run_in_threadpool(site.require, request, method, dag_id, entity)


# --- retrain ---------------------------------------------------------------------------------------------------------


@router.get("/models/{model}/retrain")
def ask_retrain(request: Request, site: SiteDep, model: Name) -> Response:
    """What retraining now means."""
    spec = site.model(model)
    site.require(request, "POST", f"train__{model}")
    return site.page(
        request,
        "retrain.html",
        spec=spec,
        as_of=site.platform.mart.newest_scored(model),
        fleet_row=read.model_page(site.platform.mart, spec, site.sources[spec.source], limit=1, peers=site.models).row,
        token=site.token(request, f"retrain {model}"),
    )


@router.post("/models/{model}/retrain")
async def retrain(request: Request, site: SiteDep, model: Name) -> Response:
    """Start `train__<model>` as of the newest date."""
    await run_in_threadpool(site.model, model)
    dag_id = f"train__{model}"
    await _allowed(site, request, dag_id)
    form = await site.form(request, f"retrain {model}")
    reason = form.text("reason", 300, shortest=3)
    as_of = await run_in_threadpool(site.platform.mart.newest_scored, model)
    if as_of is None:
        raise Refused(f"{model} was never scored: train it from Airflow, with an as-of date of your choice")
    run_id = await start(site, request, dag_id, form.nonce, {"reason": reason, "as_of": as_of.isoformat()})
    return site.redirect(request, f"/runs/{dag_id}/{run_id}")


# --- roll back -------------------------------------------------------------------------------------------------------


@router.get("/models/{model}/rollback")
def ask_rollback(
    request: Request, site: SiteDep, model: Name, version: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> Response:
    """Which version to go back to, and why. What follows is a dry run."""
    spec = site.model(model)
    site.require(request, "POST", "rollback")
    found = read.model_page(site.platform.mart, spec, site.sources[spec.source], limit=50)
    choices = [one for one in found.versions if one.can_roll_back_to]
    token = site.token(request, f"rollback {model}")
    return site.page(
        request, "rollback.html", spec=spec, choices=choices, champion=found.row.champion, chosen=version, token=token
    )


@router.post("/models/{model}/rollback")
async def dry_run(request: Request, site: SiteDep, model: Name) -> Response:
    """Start the dry run of a rollback."""
    await run_in_threadpool(site.model, model)
    await _allowed(site, request, "rollback")
    form = await site.form(request, f"rollback {model}")
    reason, version = form.text("reason", 300, shortest=3), form.text("version", 9, shortest=1)
    if not version.isdigit():
        raise Refused("version: expected a number")
    conf = {"model": model, "version": int(version), "reason": reason, "dry_run": True}
    run_id = await start(site, request, "rollback", form.nonce, conf)
    return site.redirect(request, f"/models/{model}/rollback/{run_id}")


def _plan(site: Site, model: str, run_id: str) -> Mapping[str, Any] | None:
    """What a dry run found, from the ledger."""
    rows = site.platform.mart.decisions(model, "rollback")
    return next((row["evidence"] for row in rows if row["run_id"] == run_id and row["outcome"] == "dry_run"), None)


async def _dry_run(site: Site, request: Request, model: str, run_id: str) -> tuple[Mapping[str, Any], Any]:
    """(run, plan) of a dry run of this model."""
    run = await _run(site, request, "rollback", run_id)
    conf = run.get("conf") or {}
    if conf.get("model") != model or not conf.get("dry_run"):
        raise NoPage("There is no such dry run.")
    return run, await run_in_threadpool(_plan, site, model, run_id)


@router.get("/models/{model}/rollback/{run_id}")
async def planned(request: Request, site: SiteDep, model: Name, run_id: RunId) -> Response:
    """What the dry run found, and the button that does it."""
    spec = await run_in_threadpool(site.model, model)
    await _allowed(site, request, "rollback")
    run, plan = await _dry_run(site, request, model, run_id)
    waits = plan is None and run.get("state") in UNFINISHED
    paused = waits and await _paused(site, request, "rollback")
    return await run_in_threadpool(
        site.page,
        request,
        "planned.html",
        refresh=REFRESH_SECONDS if waits else 0,
        spec=spec,
        run=run,
        plan=plan,
        waits=waits,
        paused=paused,
        token=site.token(request, f"roll back {model} as {run_id}"),
    )


@router.post("/models/{model}/rollback/{run_id}")
async def roll_back(request: Request, site: SiteDep, model: Name, run_id: RunId) -> Response:
    """Do what the dry run planned."""
    await run_in_threadpool(site.model, model)
    await _allowed(site, request, "rollback")
    form = await site.form(request, f"roll back {model} as {run_id}")
    run, plan = await _dry_run(site, request, model, run_id)
    if plan is None:
        raise Refused("the dry run has found no plan: it is not done, or it failed")
    conf = {"model": model, "version": plan["version"], "reason": run["conf"]["reason"], "dry_run": False}
    started = await start(site, request, "rollback", form.nonce, conf)
    return site.redirect(request, f"/runs/rollback/{started}")


# --- approve ---------------------------------------------------------------------------------------------------------


AnyRun = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:+~@|-]+$", max_length=250)]


async def _question(site: Site, request: Request, model: str, run_id: str) -> dict[str, Any]:
    path = f"/dags/approve__{model}/dagRuns/{_quoted(run_id)}/taskInstances/wait/-1/hitlDetails"
    said = await site.access.call(request, request.state.user, "GET", path)
    if said.status == 404:
        raise NoPage("Nothing is asked there.")
    if not said.ok:
        raise AirflowRefused(said)
    return {**question({**said.body}), "run_id": run_id}


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


@router.get("/models/{model}/approve/{run_id}")
async def ask_approval(request: Request, site: SiteDep, model: Name, run_id: AnyRun) -> Response:
    """What is asked of a person, and both answers."""
    spec = await run_in_threadpool(site.model, model)
    await _allowed(site, request, f"approve__{model}", "PUT")
    asked = await _question(site, request, model, run_id)
    token = site.token(request, f"approve {model} {run_id}")
    return await run_in_threadpool(site.page, request, "approve.html", spec=spec, asked=asked, token=token)


@router.post("/models/{model}/approve/{run_id}")
async def approve(request: Request, site: SiteDep, model: Name, run_id: AnyRun) -> Response:
    """Give the answer to Airflow, as the user. The first answer stands."""
    await run_in_threadpool(site.model, model)
    await _allowed(site, request, f"approve__{model}", "PUT")
    form = await site.form(request, f"approve {model} {run_id}")
    answer = form.text("answer", 10)
    if answer not in ("Approve", "Reject"):
        raise Refused("answer: expected Approve or Reject")
    path = f"/dags/approve__{model}/dagRuns/{_quoted(run_id)}/taskInstances/wait/-1/hitlDetails"
    body = {"chosen_options": [answer], "params_input": {}}
    said = await site.access.call(request, request.state.user, "PATCH", path, body)
    if not said.ok and said.status != 409:
        raise AirflowRefused(said)
    return site.redirect(request, f"/models/{model}/approve/{_quoted(run_id)}")


# --- release quarantined rows ----------------------------------------------------------------------------------------


@router.get("/data/{source}/{table}/{partition}/release")
def ask_release(request: Request, site: SiteDep, source: Name, table: Name, partition: dt.date) -> Response:
    """What replaying the quarantine of a partition means."""
    spec = site.table(source, table)
    site.require(request, "POST", "replay_quarantine")
    return site.page(
        request,
        "release.html",
        source=spec,
        table=spec.tables[table],
        partition=partition,
        token=site.token(request, f"release {source}.{table} {partition}"),
    )


@router.post("/data/{source}/{table}/{partition}/release")
async def release(request: Request, site: SiteDep, source: Name, table: Name, partition: dt.date) -> Response:
    """Start `replay_quarantine` on one partition."""
    await run_in_threadpool(site.table, source, table)
    await _allowed(site, request, "replay_quarantine")
    form = await site.form(request, f"release {source}.{table} {partition}")
    day = partition.isoformat()
    conf = {"table": f"{source}.{table}", "since": day, "until": day}
    run_id = await start(site, request, "replay_quarantine", form.nonce, conf)
    return site.redirect(request, f"/runs/replay_quarantine/{run_id}")


# --- runs ------------------------------------------------------------------------------------------------------------


def _decided(site: Site, subject: str, run_id: str) -> list[dict[str, Any]]:
    return [row for row in site.platform.mart.decisions(subject, limit=500) if row["run_id"] == run_id][::-1]


@router.get("/runs/{dag_id}/{run_id}")
async def run(request: Request, site: SiteDep, dag_id: str, run_id: RunId) -> Response:
    """What became of a run that was started here: its state, and what it wrote to the ledger."""
    if not DAGS.match(dag_id):
        raise NoPage("There is no such run.")
    found = await _run(site, request, dag_id, run_id)
    conf = found.get("conf") or {}
    table = str(conf.get("table", ""))
    subject = dag_id.partition("__")[2] or str(conf.get("model") or table.partition(".")[0])
    waits = found.get("state") in UNFINISHED
    paused = waits and await _paused(site, request, dag_id)
    decided = await run_in_threadpool(_decided, site, subject, run_id)
    back = f"/data/{table.replace('.', '/')}/{conf.get('since', '')}" if table else f"/models/{subject}"
    return await run_in_threadpool(
        site.page,
        request,
        "run.html",
        refresh=REFRESH_SECONDS if waits else 0,
        dag_id=dag_id,
        run=found,
        run_id=run_id,
        subject=subject,
        decided=decided,
        waits=waits,
        paused=paused,
        back=back,
    )


# --- alerts ----------------------------------------------------------------------------------------------------------


def _alert(site: Site, id: int) -> Alert:
    try:
        return Inbox(site.platform.mart).get(id)
    except NotFound as error:
        raise NoPage("There is no such alert.") from error


@router.get("/alerts/{id}/{verb}")
def ask_alert(request: Request, site: SiteDep, id: Number, verb: Literal["acknowledge", "snooze"]) -> Response:
    """The form that takes an alert over, or quiets it for a while."""
    alert = _alert(site, id)
    site.require(request, "POST", site.alert_dag(alert.subject))
    token = site.token(request, f"{verb} {id}")
    return site.page(request, "alert.html", alert=alert, verb=verb, token=token, snoozes=SNOOZES)


@router.post("/alerts/{id}/{verb}")
async def answer_alert(request: Request, site: SiteDep, id: Number, verb: Literal["acknowledge", "snooze"]) -> Response:
    """Acknowledge or snooze an alert, with a note, as the user."""
    alert = await run_in_threadpool(_alert, site, id)
    await _allowed(site, request, site.alert_dag(alert.subject))
    form = await site.form(request, f"{verb} {id}")
    note = form.text("note", 500, shortest=3 if verb == "acknowledge" else 0)
    until = None
    if verb == "snooze":
        hours = form.text("hours", 3)
        if hours not in SNOOZES:
            raise Refused(f"hours: expected one of {', '.join(SNOOZES)}")
        until = form.opened + dt.timedelta(hours=int(hours))
    inbox, who = Inbox(site.platform.mart), request.state.user.name
    if until is None:
        await run_in_threadpool(inbox.acknowledge, id, who, note)
    else:
        await run_in_threadpool(inbox.snooze, id, who, until, note)
    return site.redirect(request, "/alerts")
