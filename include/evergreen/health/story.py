"""The ledger told as sentences, one for the decisions that belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.health.facts import Story
from include.evergreen.health.fleet import utc
from include.evergreen.health.versions import Number, gained, numbers
from include.evergreen.health.words import MAX_NAME, day, finding, parsed, retrained, short
from include.evergreen.mart.schema import ledger

if TYPE_CHECKING:
    from include.evergreen.mart.store import Mart

LEADS = {"promotion": "gate", "holdout": "gate", "retrain": "verdict"}
"""A decision of the first kind is told with the one of the second kind of the same run."""


def story(
    mart: Mart, subjects: Sequence[str], limit: int = 50, before: int | None = None
) -> tuple[tuple[Story, ...], bool]:
    """The newest `limit` lines on these subjects with an id below `before`, newest first, and whether there are older
    ones.

    A gate is told with its promotion and the holdout it renewed, a verdict with the retrain it asked for. A verdict of
    `ok` is told when the one before was not.
    """
    with mart.reading() as connection:
        rows = _leaders(connection, subjects, limit + 1, before)
        told = rows[:limit]
        others = _companions(connection, told)
        known = numbers(connection, {row["subject"] for row in told if row["kind"] == "gate"})
    lines = tuple(_line(row, others.get((row["subject"], row["as_of"], row["run_id"]), {}), known) for row in told)
    return lines, len(rows) > limit


def _leaders(
    connection: sa.Connection, subjects: Sequence[str], limit: int, before: int | None
) -> list[dict[str, Any]]:
    row, other, previous = ledger.alias("row"), ledger.alias("other"), ledger.alias("previous")

    def led(kind: str, by: str) -> sa.ColumnElement[bool]:
        same = (
            other.c.kind == by,
            other.c.subject == row.c.subject,
            other.c.as_of == row.c.as_of,
            other.c.run_id == row.c.run_id,
        )
        leader = sa.exists(sa.select(sa.literal_column("1")).select_from(other).where(*same).correlate(row))
        return sa.and_(row.c.kind == kind, leader)

    said_before = (
        sa.select(previous.c.outcome)
        .where(previous.c.subject == row.c.subject, previous.c.id < row.c.id, previous.c.kind == "verdict")
        .order_by(previous.c.id.desc())
        .limit(1)
        .correlate(row)
    ).scalar_subquery()
    still_ok = sa.and_(row.c.kind == "verdict", row.c.outcome == "ok", sa.func.coalesce(said_before, "") == "ok")
    query = (
        sa.select(
            row.c.id,
            row.c.kind,
            row.c.subject,
            row.c.as_of,
            row.c.outcome,
            row.c.reasons,
            row.c.actor,
            row.c.run_id,
            row.c.decided_at,
            # what the gate measured is large: only what is told of it
            sa.case((row.c.kind != "gate", row.c.evidence)).label("evidence"),
            sa.case((row.c.kind == "gate", row.c.evidence["metric"].as_string())).label("metric"),
            sa.case((row.c.kind == "gate", row.c.evidence["champion_version"].as_integer())).label("champion"),
            row.c.evidence[("fresh", "over_champion")].label("over_champion"),
            row.c.evidence[("pooled", "over_baseline")].label("over_baseline"),
        )
        .where(row.c.subject.in_(list(subjects)), ~still_ok, *(~led(kind, by) for kind, by in LEADS.items()))
        .order_by(row.c.id.desc())
        .limit(limit)
    )
    query = query if before is None else query.where(row.c.id < before)
    return [dict(found._mapping) for found in connection.execute(query)]


def _companions(
    connection: sa.Connection, told: Sequence[Mapping[str, Any]]
) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """{(subject, as_of, run_id): {kind: row}} of what is told with these."""
    c = ledger.c
    leaders = [row for row in told if row["kind"] in LEADS.values()]
    if not leaders:
        return {}
    query = sa.select(ledger).where(
        c.kind.in_(LEADS),
        c.subject.in_({row["subject"] for row in leaders}),
        c.as_of.in_({row["as_of"] for row in leaders}),
        c.run_id.in_({row["run_id"] for row in leaders}),
    )
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in connection.execute(query):
        found.setdefault((row.subject, row.as_of, row.run_id), {})[row.kind] = dict(row._mapping)
    return found


def _line(
    row: Mapping[str, Any], others: Mapping[str, dict[str, Any]], known: Mapping[tuple[str, str], Number]
) -> Story:
    mine = {kind: other for kind, other in others.items() if LEADS[kind] == row["kind"]}
    text, outcome, link = _told(row, mine, known)
    reasons = [*row["reasons"], *(reason for kind in ("retrain",) if kind in mine for reason in mine[kind]["reasons"])]
    return Story(
        id=row["id"],
        as_of=row["as_of"],
        kind=row["kind"],
        outcome=outcome,
        actor=row["actor"],
        text=short(text, 300),
        reasons=tuple(map(str, reasons)),
        decided_at=utc(row["decided_at"]),
        link=link,
    )


def _told(
    row: Mapping[str, Any], mine: Mapping[str, dict[str, Any]], known: Mapping[tuple[str, str], Number]
) -> tuple[str, str, str]:
    """(text, outcome, link) of one line."""
    kind, outcome, subject = row["kind"], row["outcome"], row["subject"]
    facts: Mapping[str, Any] = row["evidence"] or {}
    version = facts.get("version")
    card = f"/evergreen/cards/{subject}/{version}" if isinstance(version, int) else ""
    if kind == "verdict":
        text = finding(outcome, facts.get("guilty") or (), row["reasons"])
        if "retrain" in mine:
            text += "; no retrain on broken data" if outcome == "broken_data" else f"; {retrained(mine['retrain'])}"
        return text, outcome, f"/evergreen/reports/{subject}/{row['as_of']}"
    if kind == "gate":
        return _gate(row, mine, known.get((subject, row["run_id"])))
    if kind == "rollback":
        return _rollback(row, facts), outcome, card
    teller = {
        "promotion": _promotion,
        "approval": _approval,
        "rebuild": _rebuild,
        "retrain": _retrain,
        "training": _training,
        "holdout": _holdout,
        "quarantine_release": _release,
        "acknowledgement": _acknowledgement,
    }.get(kind)
    text = teller(row, facts) if teller else f"{kind.replace('_', ' ')}: {outcome.replace('_', ' ')}"
    return text, outcome, card


def _gate(row: Mapping[str, Any], mine: Mapping[str, dict[str, Any]], number: Number | None) -> tuple[str, str, str]:
    promotion = mine.get("promotion")
    told = promotion["evidence"].get("version") if promotion else None
    if told is None and number is not None and not number.counted:
        told = number.value
    who = f"challenger {told}" if told is not None else "a challenger"
    gain, champion, outcome = gained(row), row["champion"], row["outcome"]
    over = "the baseline" if champion is None else f"champion {champion}"
    measured = gain.removesuffix(f" over {over}")
    why = short(row["reasons"][0], 160) if row["reasons"] else "no reason recorded"
    if outcome == "accepted":
        text = f"{who} beat {over} by {measured}" if measured else f"{who} accepted"
    elif outcome == "cannot_decide":
        text = f"no decision on {who}: {why.removeprefix('cannot decide: ')}"
    elif "the champion stays" in why and measured:
        text = f"{who} did not beat {over}: {measured}; the champion stays"
    else:
        text = f"{who} refused: {why}"
    if promotion is not None:
        person = f" after {short(promotion['actor'], MAX_NAME)} approved" if promotion["actor"] != row["actor"] else ""
        text, outcome = f"{text}; promoted{person}", "promoted"
    if "holdout" in mine:
        text += "; frozen holdout renewed"
    card = f"/evergreen/cards/{row['subject']}/{told}" if told is not None else ""
    return text, outcome, card


def _promotion(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    first = parsed(facts.get("effective_from"))
    return f"version {facts.get('version')} promoted{f', in force from {day(first)}' if first else ''}"


def _approval(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    version, who = facts.get("version"), short(row["actor"], MAX_NAME)
    if row["outcome"] == "expired":
        return f"nobody answered for version {version} in time: it is not promoted"
    first = parsed(facts.get("effective_from"))
    force = f", in force from {day(first)}" if first and row["outcome"] == "approved" else ""
    late = next((r for r in row["reasons"] if "no going backwards" in r or "withdrawn by" in r), "")
    if late:
        return f"{who} approved version {version}, too late: {short(late, 160)}"
    return f"{who} {row['outcome']} version {version}{force}"


def _rollback(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    who, dates = short(row["actor"], MAX_NAME), len(facts.get("partitions") or ())
    way = f"from version {facts.get('withdrawn')} to {facts.get('version')}"
    scored = f"{dates} date{'' if dates == 1 else 's'}"
    if row["outcome"] == "dry_run":
        return f"{who} tried a rollback {way} (dry run): {scored} would be scored again"
    why = short(row["reasons"][0], 160) if row["reasons"] else "no reason recorded"
    return f"{who} rolled back {way}, {scored} to score again: {why}"


def _rebuild(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if row["outcome"] == "equal":
        return f"version {facts.get('version')} rebuilt: the same bytes"
    why = short(row["reasons"][0], 160) if row["reasons"] else "no reason recorded"
    return f"version {facts.get('version')} rebuilt, the bytes differ: {why}"


def _retrain(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if row["actor"] == "schedule":
        return "retrain asked for on schedule"
    return retrained(row)


def _training(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    why = short(row["reasons"][0], 160) if row["reasons"] else "no reason recorded"
    return f"{short(row['actor'], MAX_NAME)} asked for a training: {why}"


def _holdout(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f"frozen holdout renewed: {short(row['reasons'][0], 160)}" if row["reasons"] else "frozen holdout renewed"


def _release(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    where = row["subject"]
    return (
        f"{facts.get('released', 0)} rows of {where} released from quarantine by {short(row['actor'], MAX_NAME)}, "
        f"{facts.get('kept', 0)} kept"
    )


def _acknowledgement(row: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    until, outcome = parsed(facts.get("until")), row["outcome"]
    said = [reason for reason in row["reasons"][:1] if reason != f"{outcome} without a note"]
    return (
        f"{short(row['actor'], MAX_NAME)} {outcome} an alert{f' until {day(until)}' if until else ''}"
        f"{f': {short(said[0], 160)}' if said else ''}"
    )
