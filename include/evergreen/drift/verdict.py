"""The verdict on a date: pure, from facts. Triage before action: broken data is told apart from drift first."""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeGuard

from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION

Kind = Literal["ok", "covariate_drift", "label_drift", "prediction_drift", "performance_drop", "broken_data"]
GRAVITY: tuple[Kind, ...] = (
    "ok",
    "covariate_drift",
    "label_drift",
    "prediction_drift",
    "performance_drop",
    "broken_data",
)
"""Verdicts from light to grave."""
BREACHES: frozenset[str] = frozenset(GRAVITY) - {"ok", "broken_data"}
"""Verdicts that may retrain a model."""

MIN_ROWS_RATIO = 0.5
"""Scored rows below this share of the median of recent partitions are far below recent."""
MIN_RECENT = 3
"""Partitions it takes to speak of a median."""
CHANCE = 0.5
"""AUC of a coin. A world that changed makes a model useless; only a fault makes it wrong."""
CONSTANT_SHARE = 0.5
"""A window that holds one value only is broken when that value had less than this share of the reference."""


@dataclass(frozen=True)
class ColumnDrift:
    """One column's drift. `score` is None when there is nothing to measure; `note` then says why."""

    method: str
    score: float | None
    threshold: float
    breached: bool
    note: str = ""

    @property
    def severity(self) -> float:
        """Score in units of its threshold, the common scale of different methods; -1 without a score."""
        return self.score / self.threshold if _known(self.score) else -1.0


@dataclass(frozen=True)
class Misfit:
    """What a number of a day does not fit (`drift.profile`): a share of rows with unknown values (`support`), or
    standard deviations away from what the other columns say (`fit`)."""

    kind: Literal["support", "fit"]
    found: float
    limit: float
    hint: str = ""

    @property
    def severity(self) -> float:
        return abs(self.found) / self.limit


@dataclass(frozen=True)
class ColumnHealth:
    """A feature's values in the window and in the reference.

    Attributes:
        null_share: share of nulls, 0 to 1, on the as-of date; `reference_null_share` in the reference.
        distinct: distinct values without null in the window; `reference_distinct` in the reference.
        only_value_share: share of the reference that equals the window's only value; None when it holds more than one.
    """

    null_share: float
    reference_null_share: float
    distinct: int
    reference_distinct: int
    only_value_share: float | None = None


@dataclass(frozen=True)
class Performance:
    """The window's cohorts whose labels are due: those of the version that scored its last date. What is undefined
    (no rows, one class) or not recorded is None.

    Attributes:
        matured_rows: rows of the due cohorts whose label is known; `scored_rows` all of them.
        auc_low: lower bound of the AUC by whole days; `auc_high` the upper. None with fewer than two days.
        label_rate: share of positives; `reference_rate` in the reference.
        cohorts: due cohorts; `waiting` those not due yet.
        revised: one sentence per cohort, of any version, whose labels grew since it was first measured.
        newest: the newest due cohort, ISO; its AUC, and three standard errors above it (Hanley and McNeil, 1982).
    """

    auc: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    matured_rows: int = 0
    scored_rows: int = 0
    reference_auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    label_rate: float | None = None
    reference_auc_low: float | None = None
    reference_auc_high: float | None = None
    reference_rate: float | None = None
    cohorts: int = 0
    waiting: int = 0
    revised: list[str] = field(default_factory=list)
    newest: str | None = None
    newest_auc: float | None = None
    newest_auc_high: float | None = None

    @property
    def coverage(self) -> float:
        """Matured over scored, 0 to 1."""
        return self.matured_rows / self.scored_rows if self.scored_rows else 0.0


@dataclass(frozen=True)
class MonitoringFacts:
    """What `judge` needs to know of one window.

    Attributes:
        as_of: the window's last date; `version` scored it.
        partitions: the scored dates in the window, oldest first.
        rows: feature rows in the window.
        scored_rows: rows scored on `as_of`; `recent_rows` on the scored dates before it, any order.
        columns: drift of features and prediction; `health` of the features.
        stopped: one sentence per partition of the source that the window needed and that was not published.
        misfits: numbers of the as-of date that do not fit the version's profile.
        importances: gain of each feature in the version, any scale.
    """

    as_of: dt.date
    version: int
    partitions: tuple[dt.date, ...]
    rows: int
    scored_rows: int
    recent_rows: tuple[int, ...] = ()
    columns: Mapping[str, ColumnDrift] = field(default_factory=dict)
    health: Mapping[str, ColumnHealth] = field(default_factory=dict)
    performance: Performance = Performance()
    stopped: tuple[str, ...] = ()
    misfits: Mapping[str, Misfit] = field(default_factory=dict)
    importances: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "as_of": self.as_of.isoformat(),
            "partitions": [day.isoformat() for day in self.partitions],
            "recent_rows": list(self.recent_rows),
            "stopped": list(self.stopped),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MonitoringFacts:
        """Rebuild from `to_dict`; keys it does not know are ignored."""
        return cls(
            as_of=dt.date.fromisoformat(data["as_of"]),
            version=data["version"],
            partitions=tuple(dt.date.fromisoformat(day) for day in data["partitions"]),
            rows=data["rows"],
            scored_rows=data["scored_rows"],
            recent_rows=tuple(data["recent_rows"]),
            columns={name: ColumnDrift(**column) for name, column in data["columns"].items()},
            health={name: ColumnHealth(**column) for name, column in data["health"].items()},
            performance=Performance(**data["performance"]),
            stopped=tuple(data["stopped"]),
            misfits={name: Misfit(**misfit) for name, misfit in data["misfits"].items()},
            importances=dict(data["importances"]),
        )


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a date.

    Attributes:
        kind: the gravest finding.
        reasons: every finding, gravest first, then what could not be known. Never empty.
        guilty: columns behind the findings: broken ones first, worst first; then drifting ones by severity times
            importance.
    """

    kind: Kind
    reasons: tuple[str, ...]
    guilty: tuple[str, ...] = ()


def judge(facts: MonitoringFacts, spec: ModelSpec) -> Verdict:
    """Judge one date by the spec's `monitoring` rules."""
    broken, sick = _broken(facts, spec)
    dropped, unknown = _performance(facts, spec)
    drift = _Drift(facts, spec)
    findings: tuple[tuple[Kind, list[str]], ...] = (
        ("broken_data", broken),
        ("performance_drop", dropped),
        ("prediction_drift", drift.prediction),
        ("label_drift", _labels(facts, spec)),
        ("covariate_drift", drift.covariates),
    )
    kind: Kind = next((kind for kind, reasons in findings if reasons), "ok")
    reasons = [reason for _, found in findings for reason in found]
    if not reasons:
        reasons.append(f"nothing found in {facts.rows} rows of {len(facts.partitions)} scored partition(s)")
    suspects = [*sick, *(drift.guilty if kind != "ok" else [])]
    return Verdict(kind, (*reasons, *unknown, *drift.unmeasured), tuple(dict.fromkeys(suspects)))


def _broken(facts: MonitoringFacts, spec: ModelSpec) -> tuple[list[str], list[str]]:
    reasons = list(facts.stopped)
    if not facts.rows or not facts.scored_rows:
        reasons.append(
            f"nothing to judge: {facts.scored_rows} rows scored on {facts.as_of}, {facts.rows} in the window"
        )
    elif len(facts.recent_rows) >= MIN_RECENT:
        usual = statistics.median(facts.recent_rows)
        if facts.scored_rows < MIN_ROWS_RATIO * usual:
            reasons.append(
                f"scored rows: expected at least {MIN_ROWS_RATIO:.0%} of the usual {usual:g}, found {facts.scored_rows}"
            )
    found = []
    if facts.rows:
        for name, health in facts.health.items():
            feature = spec.features.get(name)
            watched = feature is not None and feature.drift is not None
            reason = _sick(name, health, spec, constant=watched and len(facts.partitions) > 1)
            if reason:
                found.append((health.reference_null_share - health.null_share, name, reason))
    found.sort()
    sick = [name for _, name, _ in found]
    reasons += [reason for _, _, reason in found]
    for name, misfit in facts.misfits.items():
        if name not in sick:
            sick.append(name)
            reasons.append(_misfit(name, misfit))
    seen = facts.performance
    if _known(seen.newest_auc) and _known(seen.newest_auc_high) and seen.newest_auc_high < CHANCE:
        reasons.append(
            f"the labels of {seen.newest} contradict the predictions: AUC {seen.newest_auc:.4f}, at most "
            f"{seen.newest_auc_high:.4f} by chance; labels or scores are turned round"
        )
    return reasons, sick


def _misfit(name: str, misfit: Misfit) -> str:
    hint = f"; {misfit.hint}?" if misfit.hint else ""
    if misfit.kind == "support":
        return (
            f"{name}: {misfit.found:.0%} of the last rows hold values never seen in training, "
            f"at most {misfit.limit:.0%} expected{hint}"
        )
    return (
        f"{name}: does not fit the other columns: {misfit.found:+.2f} standard deviations off, "
        f"at most {misfit.limit:g} expected{hint}"
    )


def _sick(name: str, health: ColumnHealth, spec: ModelSpec, constant: bool) -> str | None:
    """Empty, much emptier, or stuck. A feature with `drift: null`, and a window of one partition, may be constant."""
    if not health.distinct and health.reference_distinct:
        return f"{name}: no value in the window, the reference has {health.reference_distinct}"
    rise = health.null_share - health.reference_null_share
    if _above(rise, spec.monitoring.max_null_increase):
        return (
            f"{name}: nulls rose from {health.reference_null_share:.1%} to {health.null_share:.1%} of the date, "
            f"more than the {spec.monitoring.max_null_increase:.1%} allowed"
        )
    share = health.only_value_share
    varied = health.reference_distinct > 1
    if constant and health.distinct == 1 and varied and share is not None and share < CONSTANT_SHARE:
        return f"{name}: one value throughout the window, {share:.1%} of the reference has it"
    return None


def _performance(facts: MonitoringFacts, spec: ModelSpec) -> tuple[list[str], list[str]]:
    rules, seen = spec.monitoring, facts.performance
    if seen.matured_rows < rules.min_matured_rows:
        return [], [f"performance unknown: {seen.matured_rows} matured rows, expected {rules.min_matured_rows}"]
    if not _known(seen.auc):
        return [], [f"performance unknown: AUC is undefined on {seen.matured_rows} matured rows"]
    if not _known(seen.auc_high):
        return [], [f"performance unknown: {seen.cohorts} matured date(s), expected at least 2 for an interval"]
    if not _known(seen.reference_auc):
        return [], [f"performance unknown: version {facts.version} has no reference AUC"]
    drop = seen.reference_auc - seen.auc
    floor = seen.reference_auc_low if _known(seen.reference_auc_low) else seen.reference_auc
    if seen.auc_high < floor and _above(drop, rules.max_performance_drop):
        return [
            f"AUC {seen.auc:.4f}, at most {seen.auc_high:.4f}, on {seen.matured_rows} matured rows "
            f"({seen.coverage:.0%} of those due) is below the reference's {seen.reference_auc:.4f}, "
            f"at least {floor:.4f}"
        ], []
    return [], []


def _labels(facts: MonitoringFacts, spec: ModelSpec) -> list[str]:
    seen = facts.performance
    enough = seen.matured_rows >= spec.monitoring.min_matured_rows
    if not enough or not _known(seen.label_rate) or not _known(seen.reference_rate):
        return []
    if not _above(abs(seen.label_rate - seen.reference_rate), spec.monitoring.max_label_shift):
        return []
    return [
        f"the label drifts: {seen.label_rate:.1%} of {seen.matured_rows} matured rows, {seen.reference_rate:.1%} of "
        f"the reference; {spec.monitoring.max_label_shift:.1%} away is allowed"
    ]


class _Drift:
    """What the distances say. `guilty` are breached columns by severity times importance, the prediction first."""

    def __init__(self, facts: MonitoringFacts, spec: ModelSpec) -> None:
        measured = {name: column for name, column in facts.columns.items() if _known(column.score)}
        breached = {name: column for name, column in measured.items() if column.breached}
        weight = {name: facts.importances.get(name, 0.0) for name in breached}
        features = sorted(
            (name for name in breached if name != PREDICTION),
            key=lambda name: (-breached[name].severity * weight[name], -breached[name].severity, name),
        )
        self.guilty = [*(name for name in breached if name == PREDICTION), *features]
        self.prediction, self.covariates = [], []
        if PREDICTION in breached:
            self.prediction.append(f"the prediction drifts: {_said(breached[PREDICTION])}")
        if len(features) >= spec.monitoring.min_columns:
            worst = ", ".join(f"{name} {_said(breached[name])}" for name in features[:5])
            more = f" and {len(features) - 5} more" if len(features) > 5 else ""
            allowed = spec.monitoring.min_columns - 1
            self.covariates.append(f"{len(features)} features drift (allowed: {allowed}): {worst}{more}")
        self.unmeasured = [
            f"{name}: drift not measured: {column.note or 'no finite distance'}"
            for name, column in facts.columns.items()
            if name not in measured
        ]


def _said(column: ColumnDrift) -> str:
    return f"{column.method} {column.score:.3f} >= {column.threshold:g}"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _above(value: float, limit: float) -> bool:
    """Strictly above, blind to the last bits of a subtraction."""
    return round(value - limit, 9) > 0
