"""Everything on one model: its row, timeline, drift over time, story, versions and reports; and one date of it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.health.facts import (
    ColumnRow,
    Heat,
    Mark,
    MarkKind,
    ModelPage,
    Point,
    Report,
    ReportPage,
)
from include.evergreen.health.fleet import model_rows, open_alerts, points_query, verdict_in_ledger
from include.evergreen.health.story import story
from include.evergreen.health.versions import candidates, numbers, versions, waiting
from include.evergreen.health.words import MAX_NAME, RUNBOOKS, blamed, listed, short, summary
from include.evergreen.mart.schema import cohorts, ingest_batches, ledger, monitorings

if TYPE_CHECKING:
    from include.evergreen.mart.store import Mart
    from include.evergreen.specs import ModelSpec, SourceSpec

TIMELINE_DAYS = 180
HEAT_DATES = 60


def model_page(
    mart: Mart,
    spec: ModelSpec,
    source: SourceSpec,
    limit: int = 50,
    before: int | None = None,
    peers: Iterable[str] = (),
    now: dt.datetime | None = None,
) -> ModelPage:
    """Everything on one model; lists hold the newest `limit` entries, the timeline the last TIMELINE_DAYS.

    Args:
        before: the story goes on below this id of the ledger.
        peers: names of the deployment's models: what is newest among them says what is late.
        now: as in `fleet`.
    """
    with mart.reading() as connection:
        inbox = open_alerts(connection, [spec.name])
        rows, today = model_rows(connection, [spec], peers, inbox, now)
        newest = rows[0].scored or rows[0].as_of or today or spec.start_date
        first = newest - dt.timedelta(days=TIMELINE_DAYS - 1)
        people = candidates(connection, [spec.name] if spec.approval == "human" else [])
        asked = waiting(people, numbers(connection, [spec.name]) if people else {})
        points = _points(connection, spec.name, first)
        judged = _judged(connection, spec.name, first)
        marks = _marks(connection, spec, source, first, judged)
        heat = _heat(connection, spec.name)
    told, more_told = story(mart, [spec.name], limit, before)
    made, more_made = versions(mart, spec, limit)
    dates, more_dates = reports(mart, spec, limit)
    return ModelPage(
        row=rows[0],
        points=points,
        marks=marks,
        verdicts={row["as_of"]: row["verdict"] for row in judged},
        heat=heat,
        story=told,
        versions=made,
        reports=dates,
        alerts=inbox,
        waiting=asked,
        more={"story": more_told, "versions": more_made, "reports": more_dates},
    )


def reports(
    mart: Mart, spec: ModelSpec, limit: int = 50, before: dt.date | None = None
) -> tuple[tuple[Report, ...], bool]:
    """The newest `limit` monitored dates before `before`, newest first, and whether there are older ones."""
    m, said = monitorings, ledger.alias("said")
    query = (
        sa.select(
            m.c.as_of,
            m.c.verdict,
            m.c.version,
            said.c.evidence["guilty"].label("guilty"),
            m.c.report_uri.is_not(None).label("has_page"),
        )
        .select_from(m.outerjoin(said, said.c.id == verdict_in_ledger(m)))
        .where(m.c.model == spec.name)
        .order_by(m.c.as_of.desc())
        .limit(limit + 1)
    )
    query = query if before is None else query.where(m.c.as_of < before)
    with mart.reading() as connection:
        rows = connection.execute(query).all()
    found = tuple(Report(r.as_of, r.verdict, r.version, tuple(r.guilty or ()), bool(r.has_page)) for r in rows[:limit])
    return found, len(rows) > limit


def report_page(mart: Mart, spec: ModelSpec, source: SourceSpec, as_of: dt.date) -> ReportPage | None:
    """One date of one model; None when it was never monitored."""
    m, said, c = monitorings, ledger.alias("said"), ledger.c
    with mart.reading() as connection:
        row = connection.execute(
            sa.select(m, said.c.evidence["guilty"].label("guilty"))
            .select_from(m.outerjoin(said, said.c.id == verdict_in_ledger(m)))
            .where(m.c.model == spec.name, m.c.as_of == as_of)
        ).one_or_none()
        if row is None:
            return None
        of_model = sa.select(sa.func.max(m.c.as_of)).where(m.c.model == spec.name)
        earlier = connection.scalar(of_model.where(m.c.as_of < as_of))
        later = connection.scalar(sa.select(sa.func.min(m.c.as_of)).where(m.c.model == spec.name, m.c.as_of > as_of))
        other = connection.scalar(of_model.where(m.c.as_of < as_of, m.c.verdict != row.verdict))
        since = connection.scalar(
            sa.select(sa.func.min(m.c.as_of)).where(m.c.model == spec.name, m.c.as_of > (other or dt.date(1, 1, 1)))
        )
        decided = sa.select(c.outcome, c.reasons, c.evidence, c.as_of).where(c.subject == spec.name, c.as_of == as_of)
        newest = c.id.desc()
        retrain = connection.execute(decided.where(c.kind == "retrain").order_by(newest).limit(1)).one_or_none()
        gate = connection.scalar(
            sa.select(c.outcome)
            .where(c.kind == "gate", c.subject == spec.name, c.as_of == as_of)
            .order_by(newest)
            .limit(1)
        )
    guilty, reasons = tuple(row.guilty or ()), tuple(map(str, row.reasons))
    happened, todo = summary(
        row.verdict,
        guilty,
        reasons,
        row.performance,
        model=spec.name,
        source=source.name,
        as_of=as_of,
        version=row.version,
        since=since,
        owner=source.owner,
        tables=source.tables,
        retrain=dict(retrain._mapping) if retrain else None,
        gate=gate,
    )
    return ReportPage(
        model=spec.name,
        as_of=as_of,
        verdict=row.verdict,
        version=row.version,
        happened=happened,
        todo=todo,
        reasons=reasons,
        columns=_columns(row.columns),
        performance=row.performance,
        earlier=earlier,
        later=later,
        runbook=RUNBOOKS.get(row.verdict, "docs/on-call.md"),
        has_page=row.report_uri is not None,
    )


def _columns(recorded: Mapping[str, Any]) -> tuple[ColumnRow, ...]:
    """Worst first; those without a score last."""
    ranked = sorted(recorded.items(), key=lambda item: (-(severity(item[1]) or -1.0), item[0]))
    return tuple(
        ColumnRow(
            name=name,
            method=column.get("method", ""),
            score=column.get("score"),
            threshold=column["threshold"],
            breached=bool(column.get("breached")),
            note=column.get("note", ""),
        )
        for name, column in ranked
    )


def severity(column: Mapping[str, Any]) -> float | None:
    """A recorded column's score in units of its threshold: 1 is a breach. None without a score."""
    score, threshold = column.get("score"), column.get("threshold")
    if score is None or not threshold or not math.isfinite(score / threshold):
        return None
    return float(score / threshold)


def _points(connection: sa.Connection, model: str, first: dt.date) -> tuple[Point, ...]:
    query = points_query(cohorts).where(cohorts.c.model == model, cohorts.c.as_of >= first).order_by(cohorts.c.as_of)
    return tuple(Point(*values) for _, *values in connection.execute(query))


def _judged(connection: sa.Connection, model: str, first: dt.date) -> list[dict[str, Any]]:
    """{as_of, verdict, reasons, guilty} by date."""
    m, said = monitorings, ledger.alias("said")
    query = (
        sa.select(m.c.as_of, m.c.verdict, m.c.reasons, said.c.evidence["guilty"].label("guilty"))
        .select_from(m.outerjoin(said, said.c.id == verdict_in_ledger(m)))
        .where(m.c.model == model, m.c.as_of >= first)
        .order_by(m.c.as_of)
    )
    return [dict(row._mapping) for row in connection.execute(query)]


def _heat(connection: sa.Connection, model: str) -> Heat:
    m = monitorings
    query = sa.select(m.c.as_of, m.c.columns).where(m.c.model == model).order_by(m.c.as_of.desc()).limit(HEAT_DATES)
    rows = connection.execute(query).all()[::-1]
    names = dict.fromkeys(name for row in rows for name in row.columns)
    score = {
        name: tuple(severity(row.columns[name]) if name in row.columns else None for row in rows) for name in names
    }
    worst = {
        name: max((value for value in values if value is not None), default=-1.0) for name, values in score.items()
    }
    return Heat(
        dates=tuple(row.as_of for row in rows),
        columns=tuple(sorted(names, key=lambda name: (-worst[name], name))),
        score=score,
    )


# --- marks -----------------------------------------------------------------------------------------------------------


def _marks(
    connection: sa.Connection,
    spec: ModelSpec,
    source: SourceSpec,
    first: dt.date,
    judged: Sequence[Mapping[str, Any]],
) -> tuple[Mark, ...]:
    """What happened from `first` on, oldest first."""
    marks = [*_faults(spec, judged), *_stopped(connection, source, first), *_decided(connection, spec, first)]
    return tuple(sorted(marks, key=lambda mark: (mark.as_of, mark.kind, mark.text)))


def _faults(spec: ModelSpec, judged: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """The first date of every run of broken data."""
    found, before = [], ""
    for row in judged:
        if row["verdict"] == "broken_data" != before:
            guilty = listed(blamed(row["verdict"], row["guilty"] or (), row["reasons"]))
            link = f"/evergreen/reports/{spec.name}/{row['as_of']}"
            found.append(Mark(row["as_of"], "data_fault", f"data broken{f': {guilty}' if guilty else ''}", link))
        before = row["verdict"]
    return found


def _stopped(connection: sa.Connection, source: SourceSpec, first: dt.date) -> list[Mark]:
    """Partitions that were not published, on the date of the run that should have brought them."""
    b = ingest_batches.c
    query = sa.select(b.table_name, b.partition_date).where(
        b.table_name.in_(list(source.tables)),
        b.status != "published",
        b.partition_date >= first - dt.timedelta(days=31),
    )
    found = []
    for table, day in connection.execute(query):
        run = day + dt.timedelta(days=source.tables[table].lag_days)
        if run >= first:
            text, link = f"{table} of {day} stopped at ingest", f"/evergreen/data/{source.name}/{table}"
            found.append(Mark(run, "data_fault", text, link))
    return found


def _decided(connection: sa.Connection, spec: ModelSpec, first: dt.date) -> list[Mark]:
    c = ledger.c
    kinds = ("gate", "promotion", "approval", "rollback", "retrain")
    query = (
        sa.select(
            c.kind,
            c.as_of,
            c.outcome,
            c.actor,
            c.run_id,
            c.reasons,
            sa.case((c.kind != "gate", c.evidence)).label("evidence"),
        )
        .where(c.kind.in_(kinds), c.subject == spec.name, c.as_of >= first)
        .order_by(c.as_of, c.id)
    )
    rows = connection.execute(query).all()
    known = numbers(connection, [spec.name])
    promoted = {row.run_id for row in rows if row.kind == "promotion"}
    found, halted = [], False
    for row in rows:
        facts: Mapping[str, Any] = row.evidence or {}
        kind: MarkKind
        if row.kind == "gate" and row.run_id not in promoted:
            number = known[spec.name, row.run_id]
            who = "a challenger" if number.counted else f"challenger {number.value}"
            kind = "training" if row.outcome == "accepted" else "refusal"
            text = (
                f"{who} {row.outcome.replace('_', ' ')}" if row.outcome != "cannot_decide" else f"no decision on {who}"
            )
            link = "" if number.counted else f"/evergreen/cards/{spec.name}/{number.value}"
        elif row.kind == "promotion":
            kind, text = "promotion", f"version {facts.get('version')} promoted"
            link = f"/evergreen/cards/{spec.name}/{facts.get('version')}"
        elif row.kind == "approval":
            who = "nobody answered for" if row.outcome == "expired" else f"{short(row.actor, MAX_NAME)} {row.outcome}"
            kind, text = "approval", f"{who} version {facts.get('version')}"
            link = f"/evergreen/cards/{spec.name}/{facts.get('version')}"
        elif row.kind == "rollback" and row.outcome == "rolled_back":
            kind, text = "rollback", f"rolled back from version {facts.get('withdrawn')} to {facts.get('version')}"
            link = f"/evergreen/cards/{spec.name}/{facts.get('version')}"
        elif row.kind == "retrain":
            if row.outcome == "halted" and not halted:
                link = f"/evergreen/reports/{spec.name}/{row.as_of}"
                found.append(Mark(row.as_of, "retrain_halted", "retraining halted", link))
            halted = row.outcome == "halted" or (halted and row.outcome != "allowed")
            continue
        else:
            continue
        found.append(Mark(row.as_of, kind, text, link))
    return found
