"""The pages that only read: fleet, model, report, validation, card, data, alerts, dictionary, downloads, files."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

import anyio.from_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.errors import NotFound
from include.evergreen.health import read
from include.evergreen.health.facts import ModelPage
from include.evergreen.specs import ModelSpec
from include.evergreen.web import draw
from include.evergreen.web.guard import DOWNLOAD_HEADERS, RAW_HEADERS
from include.evergreen.web.render import markdown
from include.evergreen.web.site import NoPage, Site

STATIC = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
    "theme.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "uplot/uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uplot/uPlot.min.css": "text/css; charset=utf-8",
}
STORY_LIMIT = 50
PARTITIONS_LIMIT = 60
MAX_DOWNLOAD_DAYS = 366
PAGES = {"ingest": "data", "replay_quarantine": "data", "maintain_lake": "data"}

Name = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
Number = Annotated[int, Path(ge=1, lt=2**31)]
Before = Annotated[int | None, Query(ge=1, lt=2**31)]

router = APIRouter()


def _site(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


SiteDep = Annotated[Site, Depends(_site)]


# --- fleet -----------------------------------------------------------------------------------------------------------


@router.get("/")
def fleet(request: Request, site: SiteDep) -> Response:
    """Every model, sick ones first."""
    found = read.fleet(site.platform.mart, site.models, site.sources)
    tally: dict[str, int] = {}
    for row in found.rows:
        tally[row.verdict] = tally.get(row.verdict, 0) + 1
    return site.page(request, "fleet.html", fleet=found, tally=tally)


# --- one model -------------------------------------------------------------------------------------------------------


@router.get("/models/{model}")
def model(request: Request, site: SiteDep, model: Name, before: Before = None) -> Response:
    """A model: timeline, story, versions, reports, drift by column."""
    spec = site.model(model)
    found = read.model_page(
        site.platform.mart, spec, site.sources[spec.source], limit=STORY_LIMIT, before=before, peers=site.models
    )
    return site.page(
        request,
        "model.html",
        model=found,
        spec=spec,
        timeline=json.dumps(_timeline(found)),
        before=before,
        waiting=_questions(request, site, spec),
        may_train=site.may(request, "POST", f"train__{model}"),
        may_roll_back=site.may(request, "POST", "rollback"),
        may_answer=site.may(request, "POST", site.alert_dag(model)),
    )


def _timeline(found: ModelPage) -> dict[str, Any]:
    drift = draw.worst(found.heat.dates, found.heat.score)
    return draw.timeline(found.points, found.marks, found.verdicts, found.row.band, drift)


def _questions(request: Request, site: Site, spec: ModelSpec) -> list[dict[str, Any]]:
    """Candidates that wait for this user's yes or no, as Airflow lists them."""
    dag_id = f"approve__{spec.name}"
    if spec.approval != "human" or not site.may(request, "PUT", dag_id, "HITL_DETAIL"):
        return []
    path = f"/dags/{dag_id}/dagRuns/~/hitlDetails?response_received=false&task_id=wait&limit=20"
    said = anyio.from_thread.run(site.access.call, request, request.state.user, "GET", path)
    return [question(one) for one in said.body.get("hitl_details", [])] if said.ok else []


def question(detail: dict[str, Any]) -> dict[str, Any]:
    """What is asked: {run_id, subject, version, assigned, answered_by}."""
    subject = str(detail.get("subject", ""))
    version = re.search(r" version (\d+),", subject)
    answered = detail.get("responded_by_user") or {}
    return {
        "run_id": str(detail["task_instance"]["dag_run_id"]),
        "subject": subject,
        "version": int(version.group(1)) if version else None,
        "assigned": [str(one["name"]) for one in detail.get("assigned_users") or []],
        "answered_by": answered.get("name") or ("nobody in time" if detail.get("response_received") else ""),
        "answer": ", ".join(detail.get("chosen_options") or []),
    }


@router.get("/dags/{dag_id}")
def dag(request: Request, site: SiteDep, dag_id: str) -> Response:
    """Where a DAG's tab in Airflow leads: the page of its model or source, or the fleet."""
    verb, _, name = dag_id.partition("__")
    if name in site.models and verb != "ingest":
        return site.redirect(request, f"/models/{name}")
    return site.redirect(request, "/data" if verb in PAGES else "/")


# --- reports, validation results, cards ------------------------------------------------------------------------------


@router.get("/reports/{model}/{as_of}")
def report(request: Request, site: SiteDep, model: Name, as_of: dt.date) -> Response:
    """One monitored date: what happened, what to do, and the drift report."""
    spec = site.model(model)
    found = read.report_page(site.platform.mart, spec, site.sources[spec.source], as_of)
    if found is None:
        raise NoPage(f"{model} was not monitored as of {as_of}.")
    return site.page(request, "report.html", report=found)


@router.get("/validation/{table}/{partition}")
def validation(request: Request, site: SiteDep, table: Name, partition: dt.date) -> Response:
    """The validation result of a table's partition, below what it counted."""
    source = site.source_of(table)
    found = next((row for row in site.platform.mart.batches(table) if row["partition_date"] == partition), None)
    if found is None:
        raise NoPage(f"{table} has no partition {partition}.")
    return site.page(request, "validation.html", batch=found, source=source)


@router.get("/cards/{model}/{version}")
def card(request: Request, site: SiteDep, model: Name, version: Number) -> Response:
    """The card of a model's version."""
    return site.page(request, "card.html", spec=site.model(model), version=version)


def _raw(fetch: Callable[[], bytes], what: str) -> Response:
    try:
        body = fetch()
    except NotFound:
        raise NoPage(f"There is no {what}: its file is gone.") from None
    return Response(body, media_type="text/html; charset=utf-8", headers=dict(RAW_HEADERS))


def _stored(site: Site, uri: str | None, what: str) -> Response:
    objects = site.platform.objects
    prefix = objects.uri("")
    if not uri or not uri.startswith(prefix):
        raise NoPage(f"There is no {what}.")
    return _raw(lambda: objects.get(uri.removeprefix(prefix)), what)


@router.get("/raw/reports/{model}/{as_of}")
def raw_report(site: SiteDep, model: Name, as_of: dt.date) -> Response:
    """The drift report as it was drawn, sandboxed."""
    found = [row for row in site.platform.mart.monitorings(model, until=as_of, limit=1) if row["as_of"] == as_of]
    return _stored(site, found[0]["report_uri"] if found else None, "drift report of this model and date")


@router.get("/raw/validation/{table}/{partition}")
def raw_validation(site: SiteDep, table: Name, partition: dt.date) -> Response:
    """The validation result as it was drawn, sandboxed."""
    found = [row for row in site.platform.mart.batches(table) if row["partition_date"] == partition]
    return _stored(site, found[0]["validation_uri"] if found else None, "validation result of this table and date")


@router.get("/raw/cards/{model}/{version}")
def raw_card(site: SiteDep, model: Name, version: Number) -> Response:
    """The card as it was drawn, sandboxed."""
    spec = site.model(model)
    return _raw(
        lambda: site.platform.registry.attachment(spec.name, version, "card.html"), "card of this model and version"
    )


@router.get("/runbooks/{name}")
def runbook(request: Request, site: SiteDep, name: Annotated[str, Path(pattern=r"^[a-z][a-z-]{0,47}$")]) -> Response:
    """A runbook of the project, drawn."""
    file = site.runbooks / f"{name}.md"
    if not file.is_file():
        raise NoPage("There is no such runbook here: look into docs/runbooks of the repository.")
    return site.page(request, "runbook.html", name=name, text=markdown(file.read_text(encoding="utf-8")))


# --- data ------------------------------------------------------------------------------------------------------------


@router.get("/data")
def data(request: Request, site: SiteDep) -> Response:
    """Every table of every source: freshness and accounting."""
    return site.page(request, "data.html", tables=read.tables(site.platform.mart, site.sources))


@router.get("/data/{source}/{table}")
def table(request: Request, site: SiteDep, source: Name, table: Name, before: dt.date | None = None) -> Response:
    """One table: its partitions, and what failed in them."""
    spec = site.table(source, table)
    shown, more = read.partitions(site.platform.mart, spec, table, before=before, limit=PARTITIONS_LIMIT)
    return site.page(
        request,
        "table.html",
        source=spec,
        table=spec.tables[table],
        partitions=shown,
        older=shown[-1].day if more else None,
        before=before,
        may_release=site.may(request, "POST", "replay_quarantine"),
    )


@router.get("/data/{source}/{table}/{partition}")
def partition(request: Request, site: SiteDep, source: Name, table: Name, partition: dt.date) -> Response:
    """One partition: its accounting, and the failed expectations with rows as they came."""
    spec = site.table(source, table)
    mart, after = site.platform.mart, partition + dt.timedelta(days=1)
    newest, _ = read.partitions(mart, spec, table, before=after, limit=1)
    found = next((one for one in newest if one.day == partition), None)
    if found is None:
        raise NoPage(f"{table} has no partition {partition}.")
    return site.page(
        request,
        "partition.html",
        source=spec,
        table=spec.tables[table],
        partition=found,
        failures=read.failures(mart, spec, table, partition, lambda *asked: site.platform.lake.read(*asked)),
        may_release=site.may(request, "POST", "replay_quarantine"),
    )


# --- alerts ----------------------------------------------------------------------------------------------------------


@router.get("/alerts")
def alerts(request: Request, site: SiteDep) -> Response:
    """The inbox: what is open, and what was."""
    inbox = Inbox(site.platform.mart)
    opened = inbox.open()
    may = {subject: site.may(request, "POST", site.alert_dag(subject)) for subject in {one.subject for one in opened}}
    past = [one for one in inbox.history(limit=100) if one.resolved_at is not None]
    return site.page(request, "alerts.html", opened=opened, past=past, may=may, now=dt.datetime.now(dt.UTC))


# --- dictionary and downloads ----------------------------------------------------------------------------------------


@router.get("/dictionary")
def dictionaries(request: Request, site: SiteDep) -> Response:
    """Models with tables for analysts."""
    return site.page(request, "dictionaries.html", models=site.models)


@router.get("/dictionary/{model}")
def dictionary(request: Request, site: SiteDep, model: Name) -> Response:
    """What analysts can read of a model, column by column, and a download of it."""
    from include.evergreen.mart.dictionary import dictionary as of

    spec = site.model(model)
    newest = site.platform.mart.newest_scored(model)
    return site.page(request, "dictionary.html", spec=spec, views=of(spec, site.sources[spec.source]), newest=newest)


@router.get("/downloads/{model}/{view}")
def download(
    site: SiteDep,
    model: Name,
    view: Name,
    since: dt.date,
    until: dt.date,
    format: Literal["csv", "parquet"] = "csv",
) -> Response:
    """A view's rows of a range of days."""
    from include.evergreen.mart.dictionary import dictionary as of
    from include.evergreen.mart.export import export

    spec = site.model(model)
    if view not in {one.name for one in of(spec, site.sources[spec.source])}:
        raise NoPage("There is no view of this name.")
    if not 0 <= (until - since).days < MAX_DOWNLOAD_DAYS:
        raise NoPage(f"Expected a first day, a last day and at most {MAX_DOWNLOAD_DAYS} days.")
    rows = export(site.platform.mart, spec, view, since, until, format)
    name = f"{view}_{since}_{until}.{format}"
    return StreamingResponse(
        rows,
        media_type="text/csv; charset=utf-8" if format == "csv" else "application/vnd.apache.parquet",
        headers={**DOWNLOAD_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'},
    )


# --- files -----------------------------------------------------------------------------------------------------------


@router.get("/static/{name:path}")
def static(name: str) -> Response:
    """A file of the pages, from a fixed list."""
    if name not in STATIC:
        raise NoPage("There is no such file.")
    body = files("include.evergreen.web").joinpath("static", name).read_bytes()
    return Response(body, media_type=STATIC[name], headers={"Cache-Control": "private, max-age=300"})
