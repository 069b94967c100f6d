"""Every model in one row, in a constant number of indexed queries."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.drift.verdict import GRAVITY
from include.evergreen.health.facts import UNKNOWN, Alert, Band, Fleet, FleetRow, Point
from include.evergreen.health.versions import Candidate, Number, candidates, numbers, waiting
from include.evergreen.health.words import day, short
from include.evergreen.mart.schema import alerts, champions, cohorts, ledger, monitorings, scorings

if TYPE_CHECKING:
    from include.evergreen.mart.store import Mart
    from include.evergreen.specs import ModelSpec, SourceSpec

COHORTS = 28
"""Matured cohorts in a row of the fleet."""
EARLIEST = dt.date(1, 1, 1)
Named = Mapping[str, Any]


def fleet(
    mart: Mart,
    models: Mapping[str, ModelSpec],
    sources: Mapping[str, SourceSpec] | None = None,
    now: dt.datetime | None = None,
) -> Fleet:
    """Every model, sick ones first, with the open alerts of models and `sources`.

    Args:
        sources: those whose alerts are shown too; all alerts without them.
        now: until when alerts are snoozed is measured against it.
    """
    with mart.reading() as connection:
        inbox = open_alerts(connection)
        rows, today = model_rows(connection, list(models.values()), list(models), inbox, now)
    known = None if sources is None else {*models, *sources}
    shown = tuple(alert for alert in inbox if known is None or alert.subject in known or "__" in alert.subject)
    return Fleet(tuple(sorted(rows, key=_sick_first)), today, shown)


def _sick_first(row: FleetRow) -> tuple[float, int, str]:
    return (-gravity(row.verdict), -row.late_days, row.model)


def gravity(verdict: str) -> float:
    """Rank of a verdict, more is graver: `ok`, never monitored, then the others; a kind nobody knows is the gravest."""
    order: tuple[str, ...] = GRAVITY
    if verdict == UNKNOWN:
        return 0.5
    return float(order.index(verdict)) if verdict in order else float(len(order))


def model_rows(
    connection: sa.Connection,
    specs: Sequence[ModelSpec],
    peers: Iterable[str],
    inbox: Sequence[Alert],
    now: dt.datetime | None = None,
) -> tuple[list[FleetRow], dt.date | None]:
    """A row for each spec, and the newest as-of date that any of `peers` was scored for."""
    names = [spec.name for spec in specs]
    scored = _scored(connection, {*names, *peers})
    today = max((row.as_of for row in scored.values()), default=None)
    if not names:
        return [], today
    newest = _verdicts(connection, names)
    since = _since(connection, {name: row.verdict for name, row in newest.items()})
    history = _champions(connection, names)
    measured = _cohorts(connection, names)
    spent = _retrains(connection, specs, today)
    halted = _halted(connection, names)
    people = candidates(connection, [spec.name for spec in specs if spec.approval == "human"])
    known = numbers(connection, {one.model for one in people}) if people else {}
    latest: dict[str, dt.date] = {}
    sources_of = {spec.name: spec.source for spec in specs}
    for name, row in scored.items():
        if name in sources_of:
            latest[sources_of[name]] = max(row.as_of, latest.get(sources_of[name], row.as_of))
    alerts_of: dict[str, list[Alert]] = {}
    for alert in inbox:
        alerts_of.setdefault(alert.subject, []).append(alert)
    people_of: dict[str, list[Candidate]] = {}
    for one in people:
        people_of.setdefault(one.model, []).append(one)
    moment = now or dt.datetime.now(dt.UTC)
    rows = []
    for spec in specs:
        name = spec.name
        seen, verdict = scored.get(name), newest.get(name)
        champion, first = history.get(name, (None, None))
        mine = alerts_of.get(name, [])
        rows.append(
            FleetRow(
                model=name,
                description=spec.description,
                owner=spec.owner,
                source=spec.source,
                verdict=verdict.verdict if verdict else UNKNOWN,
                as_of=verdict.as_of if verdict else None,
                since=since.get(name),
                guilty=tuple(verdict.guilty or ()) if verdict else (),
                reasons=tuple(verdict.reasons) if verdict else (),
                champion=champion,
                champion_since=first,
                champion_days=max((today - first).days, 0) if today and first else None,
                scored=seen.as_of if seen else None,
                scored_rows=seen.rows if seen else 0,
                scored_at=utc(seen.scored_at) if seen else None,
                late_days=(latest[spec.source] - seen.as_of).days if seen else 0,
                performance=tuple(measured.get(name, ())),
                band=_band(verdict),
                retrains=spent.get(name, 0),
                budget=spec.retrain.budget,
                retrain_days=spec.retrain.budget_days,
                waiting=_waiting(people_of.get(name, []), known, halted.get(name), mine),
                alerts=len(mine),
                acknowledged=bool(mine) and all(alert.acknowledged_by for alert in mine),
                silenced=bool(mine) and all(a.snoozed_until is not None and a.snoozed_until > moment for a in mine),
            )
        )
    return rows, today


def _waiting(
    people: Sequence[Candidate], known: Mapping[tuple[str, str], Number], halted: Any, inbox: Sequence[Alert]
) -> tuple[str, ...]:
    said = [
        f"version {one.version} of {day(one.as_of)} waits for an answer{f': {one.gain}' if one.gain else ''}"
        for one in waiting(people, known)
    ]
    if halted is not None:
        reasons = [reason for reason in halted.reasons if reason.startswith("halted")] or halted.reasons
        said.append(f"retraining is halted: {short('; '.join(reasons).removeprefix('halted: '), 160)}")
    nobody = sum(alert.acknowledged_by is None for alert in inbox)
    if nobody:
        said.append(f"{nobody} open alert{'s' if nobody > 1 else ''} nobody has taken")
    return tuple(said)


def _band(verdict: Any) -> Band:
    return Band(verdict.reference, verdict.low, verdict.high) if verdict else Band()


# --- queries ---------------------------------------------------------------------------------------------------------


def named(connection: sa.Connection, names: Iterable[str]) -> Any:
    """The names as a table with a column `name`: an index is looked up once per name, no table read whole. They are one
    parameter, so that SQLAlchemy compiles a query once for any number of them."""
    return _pairs(connection, dict.fromkeys(names, ""), sa.Text())


def dated(connection: sa.Connection, dates: Mapping[str, dt.date]) -> Any:
    """(name, value) as a table; `value` is a date."""
    return _pairs(connection, {name: date.isoformat() for name, date in dates.items()}, sa.Date())


def _pairs(connection: sa.Connection, pairs: Mapping[str, str], kind: sa.types.TypeEngine[Any]) -> Any:
    each = connection.dialect.name == "sqlite"
    given = sa.literal(json.dumps(pairs))
    function = sa.func.json_each(given) if each else sa.func.json_each_text(sa.cast(given, sa.JSON))
    rows = function.table_valued("key", "value", name="pairs")
    rows = rows if each else rows.render_derived()
    value = sa.type_coerce(rows.c.value, kind) if each else sa.cast(rows.c.value, kind)
    return sa.select(sa.type_coerce(rows.c.key, sa.Text()).label("name"), value.label("value")).cte()


def open_alerts(connection: sa.Connection, subjects: Iterable[str] | None = None) -> tuple[Alert, ...]:
    """Open alerts: pages first, then the oldest."""
    query = sa.select(*(alerts.c[name] for name in Alert.__dataclass_fields__)).where(alerts.c.resolved_at.is_(None))
    if subjects is not None:
        query = query.where(alerts.c.subject.in_(list(subjects)))
    rows = connection.execute(query.order_by(alerts.c.severity != "page", alerts.c.opened_at, alerts.c.id)).all()
    return tuple(Alert(*map(utc, row)) for row in rows)


def utc(value: Any) -> Any:
    """SQLite returns naive timestamps; all stored ones are UTC."""
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    return value


def _scored(connection: sa.Connection, names: Iterable[str]) -> dict[str, Any]:
    """The newest current scoring of each."""
    m, s, newer = named(connection, names), scorings, scorings.alias("newer")
    newest = (
        sa.select(sa.func.max(newer.c.as_of)).where(newer.c.model == m.c.name, newer.c.is_current).correlate(m)
    ).scalar_subquery()
    mine = sa.and_(s.c.model == m.c.name, s.c.as_of == newest, s.c.is_current)
    query = sa.select(s.c.model, s.c.as_of, s.c.rows, s.c.scored_at).select_from(m.join(s, mine))
    return {row.model: row for row in connection.execute(query).all()}


def _verdicts(connection: sa.Connection, names: Iterable[str]) -> dict[str, Any]:
    """The newest verdict of each, with its guilty columns from the ledger."""
    m, mo, newer, said = named(connection, names), monitorings, monitorings.alias("newer"), ledger.alias("said")
    newest = sa.select(sa.func.max(newer.c.as_of)).where(newer.c.model == m.c.name).correlate(m).scalar_subquery()
    mine = sa.and_(mo.c.model == m.c.name, mo.c.as_of == newest)
    query = sa.select(
        mo.c.model,
        mo.c.as_of,
        mo.c.verdict,
        mo.c.reasons,
        mo.c.performance["reference_auc"].as_float().label("reference"),
        mo.c.performance["reference_auc_low"].as_float().label("low"),
        mo.c.performance["reference_auc_high"].as_float().label("high"),
        said.c.evidence["guilty"].label("guilty"),
    ).select_from(m.join(mo, mine).outerjoin(said, said.c.id == verdict_in_ledger(mo)))
    return {row.model: row for row in connection.execute(query).all()}


def verdict_in_ledger(of: Any) -> sa.ScalarSelect[Any]:
    """Id of the newest row of the ledger that says what a row of `monitorings` says."""
    row = ledger.alias("decision")
    same = (row.c.subject == of.c.model, row.c.as_of == of.c.as_of, row.c.outcome == of.c.verdict)
    return sa.select(sa.func.max(row.c.id)).where(row.c.kind == "verdict", *same).correlate(of).scalar_subquery()


def _since(connection: sa.Connection, verdicts: Mapping[str, str]) -> dict[str, dt.date]:
    """First date of the unbroken run of the newest verdict: the first after the last date of any other."""
    if not verdicts:
        return {}
    m, row = named(connection, verdicts), monitorings.alias("row")
    k = named(connection, [*GRAVITY, *verdicts.values()])
    last = (
        sa.select(sa.func.max(row.c.as_of)).where(row.c.model == m.c.name, row.c.verdict == k.c.name).correlate(m, k)
    ).scalar_subquery()
    others = dict.fromkeys(verdicts, EARLIEST)
    for found in connection.execute(
        sa.select(m.c.name, k.c.name.label("kind"), last.label("last")).select_from(m.join(k, sa.true()))
    ):
        if found.last is not None and found.kind != verdicts[found.name]:
            others[found.name] = max(others[found.name], found.last)
    d = dated(connection, others)
    first = sa.select(sa.func.min(row.c.as_of)).where(row.c.model == d.c.name, row.c.as_of > d.c.value).correlate(d)
    return {r.name: r.first for r in connection.execute(sa.select(d.c.name, first.scalar_subquery().label("first")))}


def _champions(connection: sa.Connection, names: Iterable[str]) -> dict[str, tuple[int, dt.date]]:
    """(version, first day in force) of each champion: one that a rollback put back keeps its first day."""
    c, m = champions.c, named(connection, names)
    query = (
        sa.select(c.model, c.version, c.effective_from)
        .select_from(m.join(champions, c.model == m.c.name))
        .order_by(c.model, c.effective_from)
    )
    found: dict[str, tuple[int, dt.date]] = {}
    for model, version, first in connection.execute(query).all():
        if model not in found or found[model][0] != version:
            found[model] = (version, first)
    return found


def _cohorts(connection: sa.Connection, names: Iterable[str]) -> dict[str, list[Point]]:
    """The last COHORTS dates of each that are measured, oldest first, as the current version scored them."""
    m, older = named(connection, names), cohorts.alias("older")
    oldest = (
        sa.select(older.c.as_of)
        .where(older.c.model == m.c.name)
        .distinct()
        .order_by(older.c.as_of.desc())
        .limit(1)
        .offset(COHORTS - 1)
        .correlate(m)
    ).scalar_subquery()
    since = sa.and_(cohorts.c.model == m.c.name, cohorts.c.as_of >= sa.func.coalesce(oldest, sa.literal(EARLIEST)))
    query = points_query(m.join(cohorts, since))
    found: dict[str, list[Point]] = {}
    for model, *values in connection.execute(query).all():
        found.setdefault(model, []).append(Point(*values))
    for points in found.values():
        points.sort(key=lambda point: point.as_of)
    return found


def points_query(of: Any) -> sa.Select[Any]:
    """(model, the fields of a Point) of those cohorts in `of` whose scoring is current, in any order."""
    c, s = cohorts.c, scorings
    same = (s.c.model == c.model, s.c.as_of == c.as_of, s.c.version == c.version, s.c.is_current)
    # a join would be planned from the scorings: twice as slow on SQLite
    current = sa.exists(sa.select(sa.literal_column("1")).select_from(s).where(*same).correlate(cohorts))
    fields = (c.auc, c.brier, c.label_rate, c.mean_probability, c.coverage, c.matured_rows, c.revisions)
    return sa.select(c.model, c.as_of, c.version, *fields).select_from(of).where(current)


def _retrains(connection: sa.Connection, specs: Sequence[ModelSpec], today: dt.date | None) -> dict[str, int]:
    """Allowed requests within each model's `budget_days` up to `today`."""
    if today is None:
        return {}
    d, c = (
        dated(connection, {spec.name: today - dt.timedelta(days=spec.retrain.budget_days) for spec in specs}),
        ledger.c,
    )
    mine = sa.and_(c.kind == "retrain", c.subject == d.c.name, c.as_of > d.c.value, c.as_of <= today)
    query = (
        sa.select(d.c.name, sa.func.count().label("spent"))
        .select_from(d.join(ledger, mine))
        .where(c.outcome == "allowed")
        .group_by(d.c.name)
    )
    return {row.name: row.spent for row in connection.execute(query).all()}


def _halted(connection: sa.Connection, names: Iterable[str]) -> dict[str, Any]:
    """The newest answer of the governor where it found the breaker open and no challenger was accepted since."""
    m, asked, gate = named(connection, names), ledger.alias("asked"), ledger.alias("gate")
    newest = (
        sa.select(asked.c.id)
        .where(asked.c.kind == "retrain", asked.c.subject == m.c.name)
        .order_by(asked.c.as_of.desc(), asked.c.id.desc())
        .limit(1)
        .correlate(m)
    ).scalar_subquery()
    won = sa.exists(
        sa.select(sa.literal_column("1"))
        .select_from(gate)
        .where(
            gate.c.kind == "gate",
            gate.c.subject == ledger.c.subject,
            gate.c.outcome == "accepted",
            gate.c.id > ledger.c.id,
        )
        .correlate(ledger)
    )
    halted = sa.or_(ledger.c.outcome == "halted", ledger.c.evidence["breaker"].as_string() == "open")
    query = (
        sa.select(ledger.c.subject, ledger.c.as_of, ledger.c.reasons)
        .select_from(m.join(ledger, ledger.c.id == newest))
        .where(halted, ~won)
    )
    return {row.subject: row for row in connection.execute(query).all()}
