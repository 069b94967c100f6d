"""How the health page speaks: pure, plain text from facts. Whoever draws it escapes it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from include.evergreen.training.bundle import PREDICTION

MAX_SENTENCE = 240
MAX_NAME = 40
NAMED = 3
"""Columns that a sentence names."""
BOOKS = "docs/runbooks"
RUNBOOKS = {
    "ok": "docs/on-call.md",
    "covariate_drift": f"{BOOKS}/drift-verdict.md",
    "label_drift": f"{BOOKS}/drift-verdict.md",
    "prediction_drift": f"{BOOKS}/drift-verdict.md",
    "performance_drop": f"{BOOKS}/performance-drop.md",
    "broken_data": f"{BOOKS}/broken-data.md",
}
"""Verdict -> what to do."""


def short(text: str, length: int = MAX_SENTENCE) -> str:
    """At most `length` characters on one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def day(date: dt.date) -> str:
    """`17 June`."""
    return f"{date:%-d %B}"


def listed(names: Iterable[str], most: int = NAMED) -> str:
    """`humid, wind_speed and 4 more`."""
    found = [short(name, MAX_NAME) for name in names]
    left = len(found) - most
    return f"{', '.join(found[:most])} and {left} more" if left > 0 else ", ".join(found)


def estimate(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.021 [0.014, 0.028]`; empty without a value."""
    if not found or found.get("value") is None:
        return ""
    value, low, high = (
        "unknown" if found.get(name) is None else f"{found[name]:.{digits}f}" for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def parsed(text: Any) -> dt.date | None:
    """An ISO date; None for anything else."""
    try:
        return dt.date.fromisoformat(str(text)[:10])
    except ValueError:
        return None


def refusal(evidence: Mapping[str, Any], reasons: Sequence[str], as_of: dt.date) -> str:
    """Why the retrain governor said no, in a few words: `cooldown until 28 June`. The rule that lasts longest."""
    policy: Mapping[str, Any] = evidence.get("policy") or {}
    waits = [
        (dt.timedelta(days=policy.get(days, 0)) + asked, what)
        for what, days, asked in (
            ("cooldown", "cooldown_days", parsed(evidence.get("nearest_request"))),
            ("the same drift was asked for; again from", "same_drift_days", parsed(evidence.get("nearest_same_drift"))),
        )
        if asked is not None and asked <= as_of
    ]
    waits = [(until, what) for until, what in waits if until > as_of]
    spent = evidence.get("requests_in_budget_window") or []
    if policy and len(spent) >= policy.get("budget", len(spent) + 1):
        return f"budget of {policy['budget']} in {policy['budget_days']} days is spent"
    if waits:
        until, what = max(waits)
        return f"{what} until {day(until)}" if what == "cooldown" else f"{what} {day(until)}"
    return short(reasons[0], 120) if reasons else "no reason recorded"


def retrained(row: Mapping[str, Any]) -> str:
    """`retrain allowed`, `retrain refused (cooldown until 28 June)`, `retrain halted`. `row` is of the ledger."""
    if row["outcome"] == "refused":
        return f"retrain refused ({refusal(row['evidence'] or {}, row['reasons'], row['as_of'])})"
    return f"retrain {row['outcome']}"


def blamed(verdict: str, guilty: Sequence[str], reasons: Sequence[str]) -> list[str]:
    """The columns behind a verdict: of broken data those that a reason calls broken, as others drift in consequence."""
    columns = [name for name in guilty if name != PREDICTION]
    if verdict != "broken_data":
        return columns
    said = [reason for reason in reasons if ": drift not measured: " not in reason]
    return [name for name in columns if any(reason.startswith(f"{name}: ") for reason in said)]


def finding(verdict: str, guilty: Sequence[str], reasons: Sequence[str]) -> str:
    """A verdict in a few words: `drift in humid, wind_speed`."""
    columns = blamed(verdict, guilty, reasons)
    named = f" in {listed(columns)}" if columns else ""
    behind = f"; {listed(columns)} behind it" if columns else ""
    said = {
        "ok": "ok, nothing found",
        "covariate_drift": f"drift{named}",
        "label_drift": f"the label drifts{behind}",
        "prediction_drift": f"the predictions drift{behind}",
        "performance_drop": f"performance dropped{behind}",
        "broken_data": f"data broken{named}",
    }
    return said.get(verdict, f"{short(verdict, MAX_NAME)}{named}")


def summary(
    verdict: str,
    guilty: Sequence[str],
    reasons: Sequence[str],
    performance: Mapping[str, Any],
    *,
    model: str,
    source: str,
    as_of: dt.date,
    version: int,
    since: dt.date | None = None,
    owner: str = "",
    tables: Iterable[str] = (),
    retrain: Mapping[str, Any] | None = None,
    gate: str | None = None,
) -> tuple[str, str]:
    """What happened and what to do: a sentence each, at most MAX_SENTENCE characters.

    Args:
        performance: the mart's `monitorings.performance`.
        since: first date of the unbroken run of the verdict; owner: of the source; tables: its tables.
        retrain: the ledger's row of the date, {outcome, reasons, evidence, as_of}; None without one.
        gate: what the gate said of the challenger that the date asked for; None before it has.
    """
    lasting = f" since {day(since)}" if since is not None and since < as_of else f" on {day(as_of)}"
    columns = blamed(verdict, guilty, reasons)
    happened = _happened(verdict, columns, reasons, performance, version, lasting, day(as_of))
    if verdict == "broken_data":
        todo = _repair(columns, reasons, model, source, owner, sorted(tables, key=len, reverse=True))
    elif verdict == "ok":
        todo = "Nothing to do."
    else:
        todo = _wait(verdict, model, retrain, gate, as_of)
    return short(happened), short(todo)


def _happened(
    verdict: str,
    columns: Sequence[str],
    reasons: Sequence[str],
    performance: Mapping[str, Any],
    version: int,
    lasting: str,
    today: str,
) -> str:
    seen, reference = performance.get("auc"), performance.get("reference_auc")
    rows = performance.get("matured_rows") or 0
    if verdict == "ok":
        if seen is not None and reference is not None:
            return (
                f"Nothing is wrong on {today}: version {version} ranks with AUC {seen:.3f} on {rows:,} matured rows, "
                f"{reference:.3f} in its reference."
            )
        return f"Nothing is wrong on {today}; how well version {version} ranks is not known yet."
    if verdict == "covariate_drift":
        verb = "differs" if len(columns) == 1 else "differ"
        return f"{listed(columns) or 'Columns'} {verb}{lasting} from what version {version} was trained on."
    if verdict == "prediction_drift":
        most = f", most with {listed(columns)}" if columns else ""
        return f"The predictions of version {version} differ{lasting} from its reference{most}."
    if verdict == "label_drift":
        rate, usual = performance.get("label_rate"), performance.get("reference_rate")
        if rate is None or usual is None:
            return f"The share of positives differs{lasting} from what version {version} was trained on."
        return f"The label drifts{lasting}: {rate:.1%} of {rows:,} matured rows are positive, {usual:.1%} in training."
    if verdict == "performance_drop":
        if seen is None or reference is None:
            return f"Version {version} ranks worse{lasting} than it did on its reference."
        return (
            f"Version {version} ranks worse{lasting}: AUC {estimate(_auc(performance))} on {rows:,} matured rows, "
            f"{reference:.3f} in its reference."
        )
    if verdict == "broken_data":
        why = next((reason for reason in reasons if reason), "")
        named = f" in {listed(columns)}" if columns else ""
        return (
            f"The data is broken{named}{lasting}: {short(why, 130)}" if why else f"The data is broken{named}{lasting}."
        )
    return f"The verdict{lasting} is {short(verdict, MAX_NAME)}: {short('; '.join(reasons), 150)}"


def _auc(performance: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": performance["auc"], "low": performance.get("auc_low"), "high": performance.get("auc_high")}


def _repair(
    columns: Sequence[str], reasons: Sequence[str], model: str, source: str, owner: str, tables: Sequence[str]
) -> str:
    who = f"the owner of {source}" + (f" ({short(owner, MAX_NAME)})" if owner else "")
    never = "nothing retrains on broken data"
    for reason in reasons:
        table = next((name for name in tables if reason.startswith(f"{name} of ")), None)
        if table is not None:
            found = parsed(reason.removeprefix(f"{table} of "))
            date = f" of {day(found)}" if found else ""
            return f"Repair {table}{date} and run ingest__{source} for it again; {never}."
    if any("contradict the predictions" in reason for reason in reasons):
        return f"Ask {who} whether the label is turned round; do not train {model} before it is settled."
    if any(reason.startswith(("nothing to judge", "scored rows")) for reason in reasons):
        return f"Find out why entities are missing: look at ingest__{source} and score__{model}; {never}."
    if not columns:
        return f"Ask {who}; {never}."
    return f"Ask {who} about {', '.join(f'`{short(name, MAX_NAME)}`' for name in columns[:NAMED])}; {never}."


def _wait(verdict: str, model: str, retrain: Mapping[str, Any] | None, gate: str | None, as_of: dt.date) -> str:
    if retrain is None:
        return f"See whether monitor__{model} of {day(as_of)} has ended: it recorded no retrain decision yet."
    if retrain["outcome"] == "halted":
        until = _open_until(retrain)
        return (
            f"Find out why the last challengers lost{f': nothing asks again before {until}' if until else ''}; "
            f"then start train__{model} by hand."
        )
    grave = verdict == "performance_drop"
    if retrain["outcome"] == "allowed":
        if gate == "accepted":
            return "Nothing to do: the challenger beat the champion."
        if gate == "refused":
            return (
                "Tell the analysts: the champion is still the better one on the same rows."
                if grave
                else "Nothing to do: a challenger was trained and the champion is still the better one."
            )
        if gate == "cannot_decide":
            return f"Read why the gate could not decide, and start train__{model} by hand when that is repaired."
        return f"Nothing to do: a retrain was allowed; train__{model} runs by itself and the gate decides."
    why = refusal(retrain["evidence"] or {}, retrain["reasons"], retrain["as_of"])
    if grave:
        return f"Start train__{model} by hand if it cannot wait: the retrain governor refused ({why})."
    return f"Nothing to do: the retrain governor refused ({why})."


def _open_until(retrain: Mapping[str, Any]) -> str:
    """`28 June`, from the governor's sentence; empty when it is not there."""
    for reason in retrain["reasons"]:
        found = parsed(reason.rpartition("no request before ")[2]) if "no request before " in reason else None
        if found is not None:
            return day(found)
    return ""
