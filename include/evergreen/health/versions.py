"""Versions as the ledger knows them: the gate's answers, what became of them, what waits for a person."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.health.facts import Version, Waiting
from include.evergreen.health.words import estimate, parsed
from include.evergreen.mart.schema import champions, ledger

if TYPE_CHECKING:
    from include.evergreen.mart.store import Mart
    from include.evergreen.specs import ModelSpec

ANSWERED = {"approved": "not promoted", "rejected": "rejected", "expired": "rejected"}


@dataclass(frozen=True)
class Number:
    """The number of the version that a training made. `counted`: from its place among the gate's decisions."""

    value: int
    counted: bool


@dataclass(frozen=True)
class Candidate:
    """An accepted challenger that waits for a person."""

    model: str
    as_of: dt.date
    run_key: str
    gain: str


def numbers(connection: sa.Connection, models: Iterable[str]) -> dict[tuple[str, str], Number]:
    """(model, run key of the training) -> the version it made.

    The ledger names a version at its promotion or approval. Between two named ones that are as far apart as the
    decisions between them, and before the first, the others follow; after the last they are counted.
    """
    c = ledger.c
    later = c.kind != "gate"  # the gate's evidence is large, and names no version
    query = (
        sa.select(
            c.kind,
            c.subject,
            c.run_id,
            sa.case((later, c.evidence["version"].as_integer())).label("version"),
            sa.case((later, c.evidence["gate_run"].as_string())).label("gate_run"),
        )
        .where(c.kind.in_(("gate", "promotion", "approval")), c.subject.in_(list(models)))
        .order_by(c.id)
    )
    gates: dict[str, list[str]] = {}
    named: dict[tuple[str, str], int] = {}
    for row in connection.execute(query):
        if row.kind == "gate":
            gates.setdefault(row.subject, []).append(row.run_id)
        elif row.version is not None:
            named[row.subject, row.gate_run or row.run_id] = row.version
    return {
        (model, run): number
        for model, runs in gates.items()
        for run, number in _numbered(runs, {run: named[model, run] for run in runs if (model, run) in named}).items()
    }


def _numbered(runs: Sequence[str], named: Mapping[str, int]) -> dict[str, Number]:
    known = [(at, named[run]) for at, run in enumerate(runs) if run in named]
    found = {}
    for at, run in enumerate(runs):
        before = max((pair for pair in known if pair[0] <= at), default=(-1, 0))
        after = min((pair for pair in known if pair[0] >= at), default=None)
        sure = after is not None and after[1] - before[1] == after[0] - before[0]
        found[run] = Number(before[1] + at - before[0], counted=not sure)
    return found


def candidates(connection: sa.Connection, models: Iterable[str]) -> list[Candidate]:
    """The accepted challengers of these models that nobody has answered, oldest first: the newest of each as-of date,
    unless a later date has been promoted."""
    names = list(models)
    if not names:
        return []
    g, other = ledger.alias("g"), ledger.alias("other")

    def there(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        same: sa.Select[Any] = sa.select(sa.literal_column("1")).where(other.c.subject == g.c.subject, *conditions)
        return sa.exists(same.select_from(other).correlate(g))

    dated = other.c.as_of == g.c.as_of
    query = (
        sa.select(
            g.c.subject,
            g.c.as_of,
            g.c.run_id,
            g.c.evidence["metric"].as_string().label("metric"),
            g.c.evidence["champion_version"].as_integer().label("champion"),
            g.c.evidence[("fresh", "over_champion")].label("over_champion"),
            g.c.evidence[("pooled", "over_baseline")].label("over_baseline"),
        )
        .where(
            g.c.kind == "gate",
            g.c.subject.in_(names),
            g.c.outcome == "accepted",
            ~there(other.c.kind == "gate", dated, other.c.outcome == "accepted", other.c.id > g.c.id),
            ~there(other.c.kind == "promotion", dated, other.c.run_id == g.c.run_id),
            ~there(other.c.kind == "promotion", other.c.as_of > g.c.as_of),
            ~there(other.c.kind == "approval", dated, other.c.evidence["gate_run"].as_string() == g.c.run_id),
        )
        .order_by(g.c.as_of, g.c.id)
    )
    return [
        Candidate(row.subject, row.as_of, row.run_id, gained(dict(row._mapping))) for row in connection.execute(query)
    ]


def gained(facts: Mapping[str, Any]) -> str:
    """`0.021 [0.014, 0.028] auc_by_day over champion 2`; empty where the gate recorded none."""
    champion = facts["champion"]
    said = estimate(facts["over_baseline"] if champion is None else facts["over_champion"])
    if not said:
        return ""
    return f"{said} {facts['metric']} over {'the baseline' if champion is None else f'champion {champion}'}"


def waiting(found: Iterable[Candidate], known: Mapping[tuple[str, str], Number]) -> tuple[Waiting, ...]:
    """Candidates with the numbers of their versions."""
    return tuple(
        Waiting(version=known[one.model, one.run_key].value, as_of=one.as_of, gain=one.gain, run_key=one.run_key)
        for one in found
    )


def versions(
    mart: Mart, spec: ModelSpec, limit: int = 50, before: int | None = None
) -> tuple[tuple[Version, ...], bool]:
    """The newest `limit` versions below the number `before`, newest first, and whether there are older ones."""
    c = ledger.c
    with mart.reading() as connection:
        known = numbers(connection, [spec.name])
        runs = [run for (_, run), n in known.items() if before is None or n.value < before]
        runs.sort(key=lambda run: known[spec.name, run].value, reverse=True)
        shown = runs[:limit]
        gates = connection.execute(
            sa.select(
                c.as_of,
                c.outcome,
                c.run_id,
                c.evidence["metric"].as_string().label("metric"),
                c.evidence[("fresh", "over_champion")].label("gain"),
            ).where(c.kind == "gate", c.subject == spec.name, c.run_id.in_(shown))
        ).all()
        fates = connection.execute(
            sa.select(c.kind, c.outcome, c.run_id, c.evidence)
            .where(c.kind.in_(("promotion", "approval", "rollback")), c.subject == spec.name)
            .order_by(c.id)
        ).all()
        newest = connection.execute(
            sa.select(champions.c.version)
            .where(champions.c.model == spec.name)
            .order_by(champions.c.effective_from.desc())
            .limit(1)
        ).scalar()
        open_runs = {one.run_key for one in candidates(connection, [spec.name] if spec.approval == "human" else [])}
    promoted = {row.run_id: row.evidence for row in fates if row.kind == "promotion"}
    answered = {row.evidence.get("gate_run"): row.outcome for row in fates if row.kind == "approval"}
    withdrawn = {row.evidence.get("withdrawn") for row in fates if row.outcome == "rolled_back"}

    def status(run: str, number: int, outcome: str) -> str:
        if number == newest and run in promoted:
            return "champion"
        if run in promoted:
            return "withdrawn" if number in withdrawn else "former champion"
        if outcome != "accepted":
            return outcome.replace("_", " ")
        return "waiting" if run in open_runs else ANSWERED.get(answered.get(run, ""), "not promoted")

    found = []
    for row in sorted(gates, key=lambda row: known[spec.name, row.run_id].value, reverse=True):
        number = known[spec.name, row.run_id]
        gain = row.gain
        found.append(
            Version(
                number=number.value,
                as_of=row.as_of,
                status=status(row.run_id, number.value, row.outcome),
                gain=(gain.get("value"), gain.get("low"), gain.get("high")) if gain else None,
                metric=row.metric or spec.gate.metric,
                effective_from=parsed(promoted[row.run_id].get("effective_from")) if row.run_id in promoted else None,
                can_roll_back_to=row.run_id in promoted and number.value != newest,
                counted=number.counted,
            )
        )
    return tuple(found), len(runs) > limit
