"""What is worth an alert, and under which cause repeats are folded: pure, from facts to occurrences."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from include.evergreen.drift.verdict import GRAVITY

Severity = Literal["page", "warn"]
MAX_SUBJECT, MAX_CAUSE, MAX_WHAT, MAX_RUN = 64, 200, 600, 500
"""Characters of the columns of the mart table `alerts`, and of a text that is read on a phone."""
BOOKS = "docs/runbooks"


@dataclass(frozen=True)
class Kind:
    """A kind of alert. `page`: wake somebody; `warn`: in working hours. `runbook`: None where the DAG says it."""

    severity: Severity
    title: str
    runbook: str | None


KINDS: dict[str, Kind] = {
    "broken_data": Kind("page", "broken data", f"{BOOKS}/broken-data.md"),
    "performance_drop": Kind("page", "performance drop", f"{BOOKS}/performance-drop.md"),
    "drift": Kind("warn", "drift", f"{BOOKS}/drift-verdict.md"),
    "partition_stopped": Kind("warn", "partition stopped", f"{BOOKS}/ingest-stopped.md"),
    "run_failed": Kind("page", "run failed", None),
    "run_late": Kind("warn", "run late", f"{BOOKS}/run-late.md"),
    "person_needed": Kind("warn", "a person is needed", f"{BOOKS}/approval.md"),
    "retrain_halted": Kind("warn", "retraining is halted", f"{BOOKS}/retrain-halted.md"),
}
VERDICTS: dict[str, str] = {
    "covariate_drift": "drift",
    "label_drift": "drift",
    "prediction_drift": "drift",
    "performance_drop": "performance_drop",
    "broken_data": "broken_data",
}
"""Verdict -> kind; `ok` has none."""
RUNBOOKS = {
    "ingest": f"{BOOKS}/ingest-stopped.md",
    "score": f"{BOOKS}/scoring-failed.md",
    "monitor": f"{BOOKS}/monitoring-failed.md",
    "train": f"{BOOKS}/training-failed.md",
    "request": f"{BOOKS}/training-failed.md",
    "approve": f"{BOOKS}/approval.md",
    "replay": f"{BOOKS}/ingest-stopped.md",
    "rollback": f"{BOOKS}/rollback.md",
    "rebuild": f"{BOOKS}/rebuild.md",
    "maintain": f"{BOOKS}/maintenance-failed.md",
}
"""Verb of a DAG -> what to do when its run fails."""


@dataclass(frozen=True)
class Occurrence:
    """One sighting of something wrong.

    Attributes:
        subject: the model or source; the DAG's id where it has neither.
        kind: a key of KINDS.
        what: one or two sentences.
        as_of: the date it is about; None for a run without one.
        link: path of the page about it, from /evergreen on.
        run_id: the run that saw it.
        part: what of the subject, where one subject can have several causes of a kind: table, DAG, version.
        runbook: docs/runbooks/*.md; by default the kind's.
        stands: it is wrong until it is repaired, whatever is known of later dates.
    """

    subject: str
    kind: str
    what: str
    as_of: dt.date | None
    link: str
    run_id: str
    part: str = ""
    runbook: str = ""
    stands: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {sorted(KINDS)}, found {self.kind!r}")
        known = KINDS[self.kind].runbook
        if not (self.runbook or known):
            raise ValueError(f"runbook: expected one with kind {self.kind}, found none")
        for name, value in (
            ("subject", fit(self.subject, MAX_SUBJECT)),
            ("what", fit(self.what, MAX_WHAT)),
            ("run_id", fit(self.run_id, MAX_RUN)),
            ("runbook", self.runbook or str(known)),
        ):
            object.__setattr__(self, name, value)

    @property
    def cause(self) -> str:
        """What repeats are folded by."""
        return cause_key(self.subject, self.kind, self.part)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


def fit(text: str, length: int) -> str:
    """At most `length` characters, without the NUL that PostgreSQL refuses."""
    text = text.replace("\x00", "").strip()
    return text if len(text) <= length else f"{text[: length - 1]}…"


def cause_key(subject: str, kind: str, part: str = "") -> str:
    """`subject|kind` or `subject|kind|part`; one that is too long ends in a digest instead."""
    key = "|".join(item for item in (fit(subject, MAX_SUBJECT), kind, part.replace("\x00", "")) if item)
    if len(key) <= MAX_CAUSE:
        return key
    return f"{key[: MAX_CAUSE - 17]}#{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def verb(dag_id: str) -> str:
    """The verb that a DAG's id starts with."""
    return dag_id.split("_", 1)[0]


def subject_of(dag_id: str) -> str:
    """`score__flight_delay` -> `flight_delay`; a DAG without a model or source in its id is its own subject."""
    return dag_id.split("__", 1)[1] if "__" in dag_id else dag_id


def page_of(dag_id: str, subject: str) -> str:
    """The page about a DAG's subject."""
    if subject == dag_id:
        return "/evergreen/alerts"
    if verb(dag_id) in ("ingest", "replay"):
        return "/evergreen/data"
    return f"/evergreen/models/{quote(subject, safe='')}"


def of_verdict(
    model: str, as_of: dt.date, verdict: str, guilty: Sequence[str], reasons: Sequence[str], run_id: str
) -> Occurrence | None:
    """None for `ok`. Raises KeyError: no such verdict."""
    if verdict == "ok":
        return None
    named = f" in {', '.join(guilty[:3])}{' and others' if len(guilty) > 3 else ''}" if guilty else ""
    said = f": {reasons[0]}" if reasons else ""
    return Occurrence(
        subject=model,
        kind=VERDICTS[verdict],
        what=f"{verdict.replace('_', ' ').capitalize()}{named} on {as_of}{said}",
        as_of=as_of,
        link=f"/evergreen/reports/{quote(model, safe='')}/{as_of}",
        run_id=run_id,
    )


def ended_by_verdict(verdict: str) -> tuple[str, ...]:
    """The kinds that a verdict ends: those graver than itself, which it would have named. Raises ValueError."""
    graver = [VERDICTS[kind] for kind in GRAVITY[GRAVITY.index(verdict) + 1 :]]  # type: ignore[arg-type]
    return tuple(dict.fromkeys(kind for kind in graver if kind != VERDICTS.get(verdict)))


def of_stopped_partition(source: str, table: str, day: dt.date, reasons: Sequence[str], run_id: str) -> Occurrence:
    """A partition of a table that ingest did not publish. `day` is the partition's date."""
    return Occurrence(
        subject=source,
        kind="partition_stopped",
        what=f"{table} of {day} is not published: {'; '.join(reasons)}",
        as_of=day,
        link=f"/evergreen/data/{quote(source, safe='')}/{quote(table, safe='')}",
        run_id=run_id,
        part=table,
        stands=True,
    )


def of_failed_run(
    dag_id: str, as_of: dt.date | None, run_id: str, why: str, task_id: str | None = None, subject: str | None = None
) -> Occurrence:
    """A run that failed; `why` is the error of its task, or what Airflow says. Raises KeyError: no such verb."""
    about = subject or subject_of(dag_id)
    where = f"{task_id} in {dag_id}" if task_id else dag_id
    return Occurrence(
        subject=about,
        kind="run_failed",
        what=f"{where} failed{_on(as_of)}: {why}",
        as_of=as_of,
        link=page_of(dag_id, about),
        run_id=run_id,
        part=dag_id,
        runbook=RUNBOOKS[verb(dag_id)],
    )


def of_late_run(
    dag_id: str, as_of: dt.date | None, run_id: str, minutes: float, subject: str | None = None
) -> Occurrence:
    """A run that has not ended `minutes` after it was queued."""
    about = subject or subject_of(dag_id)
    return Occurrence(
        subject=about,
        kind="run_late",
        what=f"{dag_id}{_on(as_of)} has not ended {minutes:g} minutes after it was queued",
        as_of=as_of,
        link=page_of(dag_id, about),
        run_id=run_id,
        part=dag_id,
    )


def of_waiting_approval(model: str, as_of: dt.date, version: int, hours: float, run_id: str) -> Occurrence:
    """A candidate that waits for a person. `as_of` is the date it was trained at."""
    return Occurrence(
        subject=model,
        kind="person_needed",
        what=f"Version {version}, trained as of {as_of}, waits for an answer; none within {hours:g} hours is a no",
        as_of=as_of,
        link=f"/evergreen/models/{quote(model, safe='')}",
        run_id=run_id,
        part=str(version),
    )


def of_halted_retrain(model: str, as_of: dt.date, reasons: Sequence[str], run_id: str) -> Occurrence:
    """The circuit breaker of the retrain governor has opened."""
    return Occurrence(
        subject=model,
        kind="retrain_halted",
        what="; ".join(reasons).capitalize(),
        as_of=as_of,
        link=f"/evergreen/models/{quote(model, safe='')}",
        run_id=run_id,
    )


def _on(as_of: dt.date | None) -> str:
    return f" on {as_of}" if as_of else ""
