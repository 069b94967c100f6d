"""Asking for a retrain: what the ledger and the mart hold in, the governor's answer back into ledger and inbox."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from include.evergreen.alerts.cause import of_halted_retrain
from include.evergreen.decisions import Decision
from include.evergreen.drift.governor import Outcome, Request, Window, fingerprint, govern, ledger_outcome
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec

GATE_OUTCOMES = {"accepted", "refused", "cannot_decide"}


@dataclass(frozen=True)
class Asked:
    """What became of asking. `page`: the breaker has just stopped it, and an alert calls a person."""

    decision: Decision
    page: bool = False


def ask(platform: Platform, spec: ModelSpec, as_of: dt.date, run_id: str) -> Asked:
    """Ask the governor whether `as_of` retrains. The answer is in the ledger; a verdict of ok leaves no row.

    One asks at a time, so that monitors that end together get one yes. A retry of the same run gets what it first
    recorded, so that a yes is not lost when the run died before it sent its event. A breaker that has just stopped the
    asking opens an alert; the next request ends it.
    """
    from include.evergreen.alerts.inbox import Inbox

    with platform.mart.lock(f"retrain-{spec.name}"):
        asked = _ask(platform, spec, as_of, run_id)
    inbox = Inbox(platform.mart)
    if asked.page:
        inbox.raise_(of_halted_retrain(spec.name, as_of, asked.decision.reasons, run_id))
    elif asked.decision.accepted:
        inbox.recover(spec.name, ["retrain_halted"], as_of, f"a retrain was asked for on {as_of}")
    return asked


def close_halt(platform: Platform, spec: ModelSpec, as_of: dt.date, decided: Mapping[str, Any]) -> None:
    """End the alert of a halted retrain when the gate has accepted a challenger. `decided`: {accepted}."""
    from include.evergreen.alerts.inbox import Inbox

    if decided["accepted"]:
        by = f"the gate accepted the challenger of {as_of}"
        Inbox(platform.mart).recover(spec.name, ["retrain_halted"], as_of, by)


def _ask(platform: Platform, spec: ModelSpec, as_of: dt.date, run_id: str) -> Asked:
    earlier = platform.mart.decisions(subject=spec.name, kind="retrain")
    mine = next((row for row in earlier if (row["as_of"], row["run_id"]) == (as_of, run_id)), None)
    if mine is not None:
        return _asked(mine)
    gates = platform.mart.decisions(subject=spec.name, kind="gate")
    fresh_days = spec.training.holdout_days
    verdicts = platform.mart.monitorings(spec.name, until=as_of, limit=max(spec.retrain.windows, fresh_days + 1))
    latest = next((row for row in verdicts if row["as_of"] == as_of), None)
    decision = govern(
        as_of,
        [Window(row["as_of"], row["verdict"]) for row in verdicts],
        [Request(row["as_of"], _drift_of(row)) for row in earlier if row["outcome"] == "allowed"],
        [
            Outcome(row["as_of"], row["id"], row["outcome"] == "accepted")
            for row in gates
            if row["outcome"] in GATE_OUTCOMES
        ],
        _fingerprint(platform, latest) if latest else None,
        spec.retrain,
        fresh_days,
    )
    if latest is None or latest["verdict"] == "ok":
        return Asked(decision)
    outcome = ledger_outcome(decision)
    return _asked(
        platform.mart.append_decision(
            kind="retrain",
            subject=spec.name,
            as_of=as_of,
            outcome=outcome,
            reasons=list(decision.reasons),
            evidence={**decision.evidence, "page": outcome == "halted" and _first_halt(earlier, gates)},
            actor="monitor",
            run_id=run_id,
            once_a_date=True,
        )
    )


def request_on_schedule(platform: Platform, spec: ModelSpec, as_of: dt.date, key: str) -> None:
    """Record a training that the schedule asks for: it is not governed, and counts for cooldown and budget."""
    with platform.mart.lock(f"retrain-{spec.name}"):
        platform.mart.append_decision(
            kind="retrain",
            subject=spec.name,
            as_of=as_of,
            outcome="allowed",
            reasons=[f"on schedule ({spec.training.schedule})"],
            evidence={},
            actor="schedule",
            run_id=key,
            once_a_date=True,
        )


def record_by_hand(
    platform: Platform, spec: ModelSpec, as_of: dt.date, key: str, reason: str, person: str | None
) -> None:
    """Record who started a training by hand, and why: nobody governs a person. Nothing without a person."""
    if person is None:
        return
    platform.mart.append_decision(
        kind="training",
        subject=spec.name,
        as_of=as_of,
        outcome="started",
        reasons=[reason],
        evidence={},
        actor=person,
        run_id=key,
    )


def _asked(row: dict[str, Any]) -> Asked:
    decision = Decision(row["outcome"] == "allowed", tuple(row["reasons"]), row["evidence"])
    return Asked(decision, page=bool(row["evidence"].get("page")))


def _drift_of(row: dict[str, Any]) -> str | None:
    """The fingerprint of a recorded request; a request by drift from before there were any has one of its own."""
    if row["actor"] == "schedule":
        return None
    return str(row["evidence"].get("fingerprint") or f"unknown {row['run_id']}")


def _fingerprint(platform: Platform, latest: dict[str, Any]) -> str:
    """Of the newest verdict in the ledger that says what the monitoring row says."""
    as_of, kind = latest["as_of"], latest["verdict"]
    rows = platform.mart.decisions(subject=latest["model"], kind="verdict", since=as_of, until=as_of)
    said = next((row for row in rows if row["outcome"] == kind), None)
    guilty = said["evidence"].get("guilty") if said else None
    return fingerprint(latest["version"], kind, guilty[0] if guilty else None)


def _first_halt(earlier: Sequence[dict[str, Any]], gates: Sequence[dict[str, Any]]) -> bool:
    """Whether no person was called since the last accepted challenger and the last request by drift."""
    closed = [row["id"] for row in gates if row["outcome"] == "accepted"]
    tried = [row["id"] for row in earlier if row["outcome"] == "allowed" and row["actor"] != "schedule"]
    since = max([*closed, *tried], default=0)
    return not any(row["outcome"] == "halted" and row["id"] > since for row in earlier)
