"""The steps of `approve__<model>`: what a person is asked, and what the answer does."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from include.evergreen.alerts.cause import of_waiting_approval
from include.evergreen.errors import NotFound, Refused
from include.evergreen.pipeline import training
from include.evergreen.platform import Platform
from include.evergreen.promotion.card import escaped, text
from include.evergreen.promotion.ports import Version
from include.evergreen.specs import ModelSpec

APPROVE = "Approve"
MAX_ACTOR = 64
"""Characters of an actor in the ledger."""


def _registered(platform: Platform, spec: ModelSpec, version: int) -> Version:
    versions = platform.registry.versions(spec.name)
    found = next((one for one in versions if one.number == version), None)
    if found is None:
        raise NotFound(f"{spec.name}: expected version {version}, found {len(versions)} version(s)")
    return found


def _gate(platform: Platform, spec: ModelSpec, version: int, run_key: str | None = None) -> dict[str, Any]:
    """The gate's decision on the bytes of a version. Raises NotFound, Refused: the gate accepted no such bytes."""
    candidate = _registered(platform, spec, version)
    for row in platform.mart.decisions(subject=spec.name, kind="gate", until=candidate.as_of):
        same = row["as_of"] == candidate.as_of and row["evidence"].get("challenger_sha256") == candidate.sha256
        if same and row["outcome"] == "accepted" and run_key in (None, row["run_id"]):
            return row
    raise Refused(f"{spec.name} version {version}: expected a decision of the gate that accepted it, found none")


def prepare(
    platform: Platform, spec: ModelSpec, asked: list[dict[str, Any]], version: int | None, run_id: str
) -> dict[str, Any]:
    """What is asked: the version given by hand, else the newest that training asks for. The inbox calls a person.

    Args:
        asked: payloads of `approval_requested__<model>`, each {version, run_key, as_of}.

    Returns:
        {version, run_key, as_of, set_aside, subject, body}: `set_aside` are older versions of the same request.

    Raises:
        NotFound: no such version. Refused: no version at all; the gate did not accept it; it was champion already.
    """
    from include.evergreen.alerts.inbox import Inbox

    if version is None and not asked:
        raise Refused("expected the param version: a request by hand names its candidate, found none")
    numbers = sorted({int(one["version"]) for one in asked})
    number = version or numbers[-1]
    gate = _gate(platform, spec, number, next((one["run_key"] for one in asked if one["version"] == number), None))
    promotions = platform.mart.decisions(subject=spec.name, kind="promotion")
    if any(one["evidence"]["version"] == number for one in promotions) and not _recorded(platform, spec, run_id):
        raise Refused(f"{spec.name} version {number}: it was champion already; `rollback` puts it back in force")
    body = request_body(platform, spec, number, gate["run_id"])
    Inbox(platform.mart).raise_(of_waiting_approval(spec.name, gate["as_of"], number, spec.approval_hours, run_id))
    return {
        "version": number,
        "run_key": gate["run_id"],
        "as_of": gate["as_of"].isoformat(),
        "set_aside": [other for other in numbers if other < number],
        "subject": f"Promote {spec.name} version {number}, trained as of {gate['as_of']}?",
        "body": body,
    }


def request_body(platform: Platform, spec: ModelSpec, version: int, run_key: str) -> str:
    """The request in Markdown: the model card in a few lines, and what each answer does.

    Raises:
        NotFound: no such version, or one without a card. Refused: the gate did not accept it in that training.
    """
    gate = _gate(platform, spec, version, run_key)
    former = gate["evidence"]["champion_version"]
    stays = "there is no champion yet" if former is None else f"version {former} stays champion"
    page = f"{platform.settings.ui_url.rstrip('/')}/evergreen/cards/{spec.name}/{version}"
    return "\n".join(
        [
            escaped(spec.description),
            "",
            text(json.loads(platform.registry.attachment(spec.name, version, "card.json"))),
            f"[The whole card]({page}): slices, calibration, importances, lineage.",
            "",
            f"Approve: it is champion from the first date that is not scored yet. Reject: {stays}. "
            f"No answer within {spec.approval_hours:g} hours counts as no.",
        ]
    )


def _recorded(platform: Platform, spec: ModelSpec, run_id: str) -> dict[str, Any] | None:
    """What this run has concluded before."""
    rows = platform.mart.decisions(subject=spec.name, kind="approval")
    return next((row for row in rows if row["run_id"] == run_id), None)


def _effective_from(
    platform: Platform, spec: ModelSpec, as_of: dt.date, champion: dict[str, Any] | None
) -> dt.date | None:
    """The first date a late approval may score: none that is scored, none before the champion of today began.

    None leaves it to `training.put_in_force`: nothing is scored, and there is no champion.
    """
    scored = [row["as_of"] for row in platform.mart.scorings(spec.name) if row["is_current"]]
    if champion is None and not scored:
        return None
    first = max(as_of, *scored) + dt.timedelta(days=1) if scored else as_of + dt.timedelta(days=1)
    return max(first, champion["effective_from"]) if champion else first


def _overtaken(platform: Platform, spec: ModelSpec, candidate: Version, champion: dict[str, Any] | None) -> str | None:
    """Why a yes comes too late: a newer champion, or the candidate was withdrawn since its promotion."""
    rollbacks = platform.mart.decisions(subject=spec.name, kind="rollback")
    if any(row["outcome"] == "rolled_back" and row["evidence"]["withdrawn"] == candidate.number for row in rollbacks):
        return f"version {candidate.number} was withdrawn by a rollback"
    if champion is None or champion["version"] == candidate.number:
        return None
    today = _registered(platform, spec, champion["version"])
    if (today.as_of, today.number) < (candidate.as_of, candidate.number):
        return None
    return (
        f"no going backwards: version {today.number} as of {today.as_of} became champion meanwhile, "
        f"version {candidate.number} is as of {candidate.as_of}"
    )


def conclude(
    platform: Platform, spec: ModelSpec, request: dict[str, Any], response: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Record the answer, and on a yes make the version champion. Idempotent: the first answer of a run stands.

    The alert that called a person ends.

    Args:
        request: what `prepare` returned.
        response: {chosen_options, responded_at, responded_by_user}; without a user the time ran out.

    Returns:
        {outcome, reasons, actor, version, effective_from}: outcome is approved, rejected or expired; effective_from
        is None unless the version was made champion.

    Raises:
        NotFound: no such version. Refused: the gate did not accept it.
    """
    from include.evergreen.alerts.inbox import Inbox

    version = int(request["version"])
    gate = _gate(platform, spec, version, request["run_key"])
    candidate = _registered(platform, spec, version)
    with platform.mart.lock(f"champion-{spec.name}"):  # of two answers at once the later one sees the first's champion
        history = platform.mart.champion_history(spec.name)
        champion = max(history, key=lambda one: one["effective_from"], default=None)
        late = _overtaken(platform, spec, candidate, champion)
        outcome, actor, reasons = _answer(spec, response)
        if outcome == "approved" and late:
            outcome, reasons = "rejected", [*reasons, late]
        first = _effective_from(platform, spec, candidate.as_of, champion) if outcome == "approved" else None
        compared, former = gate["evidence"]["champion_version"], champion["version"] if champion else None
        if compared != former:
            reasons.append(f"the gate compared it with {_champion(compared)}; the answer found {_champion(former)}")
        reasons += [f"version {other} of the same request was set aside" for other in request["set_aside"]]
        user, when = response["responded_by_user"], response["responded_at"]
        recorded = platform.mart.append_decision(
            kind="approval",
            subject=spec.name,
            as_of=candidate.as_of,
            outcome=outcome,
            reasons=reasons,
            evidence={
                "version": version,
                "gate_run": gate["run_id"],
                "compared_with": compared,
                "champion": former,
                "effective_from": first,
                "answer": response["chosen_options"],
                "responded_at": when,
                "responded_by": dict(user) if user else None,
            },
            actor=actor,
            run_id=run_id,
        )
        promoted = None
        if recorded["outcome"] == "approved" and not late:
            promoted = _promote(platform, spec, candidate, gate, recorded)
    said = f"{recorded['outcome']} by {recorded['actor']}"
    Inbox(platform.mart).recover(spec.name, ["person_needed"], candidate.as_of, said, str(version))
    return {
        "outcome": recorded["outcome"],
        "reasons": list(recorded["reasons"]),
        "actor": recorded["actor"],
        "version": version,
        "effective_from": promoted,
    }


def _champion(version: int | None) -> str:
    return "no champion" if version is None else f"champion {version}"


def _answer(spec: ModelSpec, response: dict[str, Any]) -> tuple[str, str, list[str]]:
    """(outcome, actor, reasons) of what a person or the clock said."""
    user, when = response["responded_by_user"], response["responded_at"]
    at = when.isoformat(timespec="seconds") if isinstance(when, dt.datetime) else str(when)
    if not user:
        return "expired", "timeout", [f"no answer within {spec.approval_hours:g} hours, until {at}"]
    name = str(user["name"] or user["id"])
    outcome = "approved" if list(response["chosen_options"]) == [APPROVE] else "rejected"
    return outcome, name[:MAX_ACTOR], [f"{'approved' if outcome == 'approved' else 'rejected'} by {name} at {at}"]


def _promote(
    platform: Platform, spec: ModelSpec, candidate: Version, gate: dict[str, Any], recorded: dict[str, Any]
) -> str:
    """Promote as the ledger has it. Returns the date it is in force from, ISO."""
    first = recorded["evidence"]["effective_from"]
    decided = {
        "accepted": True,
        "reasons": [*recorded["reasons"], *gate["reasons"]],
        "evidence": {**gate["evidence"], "champion_version": recorded["evidence"]["champion"]},
    }
    done = training.put_in_force(
        platform,
        spec,
        candidate.as_of,
        gate["run_id"],
        {"version": candidate.number},
        decided,
        effective_from=dt.date.fromisoformat(first) if first else None,
        actor=recorded["actor"],
    )
    return str(done["effective_from"])
