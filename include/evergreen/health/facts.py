"""The facts of the Model health page: frozen values, plain types, ready to be drawn."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

UNKNOWN = "unknown"
"""The verdict of a model that was never monitored."""

MarkKind = Literal["training", "promotion", "refusal", "rollback", "data_fault", "approval", "retrain_halted"]


@dataclass(frozen=True)
class Point:
    """One matured cohort: the predictions of a date, measured."""

    as_of: dt.date
    version: int
    auc: float | None
    brier: float | None
    label_rate: float | None
    mean_probability: float | None
    coverage: float
    rows: int
    revisions: int = 0


@dataclass(frozen=True)
class Band:
    """What the champion could do on its reference rows: its AUC and bounds. None where unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Alert:
    """One row of the inbox (mart table `alerts`)."""

    id: int
    cause: str
    subject: str
    kind: str
    severity: str
    what: str
    since: dt.date | None
    as_of: dt.date | None
    link: str
    runbook: str
    seen: int
    opened_at: dt.datetime
    last_seen_at: dt.datetime
    resolved_at: dt.datetime | None = None
    resolution: str | None = None
    acknowledged_by: str | None = None
    acknowledged_at: dt.datetime | None = None
    note: str | None = None
    snoozed_until: dt.datetime | None = None


@dataclass(frozen=True)
class FleetRow:
    """One model.

    Attributes:
        verdict: the newest verdict, or `unknown`; `as_of` its date; `since` the first date of the unbroken run of it.
        guilty: columns, worst first.
        champion_days: days from the champion's first day in force to the newest as-of date of the deployment.
        late_days: days that the last scored partition is behind the newest one of any model of the same source.
        performance: the last matured cohorts, oldest first, at most 28; `band` the champion's reference.
        retrains: allowed within `retrain_days` up to the newest as-of date; `budget` how many are allowed.
        waiting: sentences: what waits for a person (an approval, a halted retrain, an open alert nobody took).
        alerts: open; `acknowledged` when every open alert has an owner. silenced: all of them snoozed.
    """

    model: str
    description: str
    owner: str
    source: str
    verdict: str
    as_of: dt.date | None
    since: dt.date | None
    guilty: tuple[str, ...]
    reasons: tuple[str, ...]
    champion: int | None
    champion_since: dt.date | None
    champion_days: int | None
    scored: dt.date | None
    scored_rows: int
    scored_at: dt.datetime | None
    late_days: int
    performance: tuple[Point, ...]
    band: Band
    retrains: int
    budget: int
    retrain_days: int
    waiting: tuple[str, ...]
    alerts: int
    acknowledged: bool
    silenced: bool

    @property
    def current(self) -> float | None:
        """AUC of the newest matured cohort that has one."""
        return next((p.auc for p in reversed(self.performance) if p.auc is not None), None)


@dataclass(frozen=True)
class Fleet:
    """Every model, sick ones first: by gravity, then lateness, then name. `today` is the newest as-of date scored."""

    rows: tuple[FleetRow, ...]
    today: dt.date | None
    alerts: tuple[Alert, ...]


@dataclass(frozen=True)
class Mark:
    """Something that happened, on the timeline. `link` is a path from /evergreen on, or empty."""

    as_of: dt.date
    kind: MarkKind
    text: str
    link: str = ""


@dataclass(frozen=True)
class Story:
    """One line of the ledger told as a sentence. `outcome` colours it; `id` is the ledger's row; `text` has no date,
    `line` begins with it."""

    id: int
    as_of: dt.date
    kind: str
    outcome: str
    actor: str
    text: str
    reasons: tuple[str, ...]
    decided_at: dt.datetime
    link: str = ""

    @property
    def line(self) -> str:
        """`17 June: drift in humid, wind_speed; retrain allowed`."""
        return f"{self.as_of:%-d %B}: {self.text}"


@dataclass(frozen=True)
class Version:
    """A version that the ledger knows: its gate decision and what became of it.

    Attributes:
        status: champion, former champion, refused, cannot decide, waiting, withdrawn, rejected; not promoted when the
            gate accepted it and nothing came of it.
        gain: over the champion of its day in the gate's metric, on fresh rows: (value, low, high); None without one.
        can_roll_back_to: it was champion before and is not now.
        counted: the number is counted from the gate's decisions, as the ledger does not name it.
    """

    number: int
    as_of: dt.date
    status: str
    gain: tuple[float | None, float | None, float | None] | None
    metric: str
    effective_from: dt.date | None
    can_roll_back_to: bool
    counted: bool = False


@dataclass(frozen=True)
class Heat:
    """Drift per column over time. `score[column][i]` is in units of the column's threshold (1 = breach) on `dates[i]`;
    None without a score. Columns by their worst score, worst first."""

    dates: tuple[dt.date, ...]
    columns: tuple[str, ...]
    score: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Report:
    """One monitored date. `has_page` when a drift report was drawn."""

    as_of: dt.date
    verdict: str
    version: int
    guilty: tuple[str, ...]
    has_page: bool


@dataclass(frozen=True)
class Waiting:
    """A candidate that waits for a person: what `approve__<model>` asks. `run_key` is the training that made it, `gain`
    what the gate measured."""

    version: int
    as_of: dt.date
    gain: str
    run_key: str = ""


@dataclass(frozen=True)
class ModelPage:
    """Everything on one model. Lists are the newest `limit` entries; `more` says of each list whether there are older
    ones: {story, reports, versions}."""

    row: FleetRow
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]
    verdicts: Mapping[dt.date, str]
    heat: Heat
    story: tuple[Story, ...]
    versions: tuple[Version, ...]
    reports: tuple[Report, ...]
    alerts: tuple[Alert, ...]
    waiting: tuple[Waiting, ...] = ()
    more: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnRow:
    """A column's drift on one date, as recorded."""

    name: str
    method: str
    score: float | None
    threshold: float
    breached: bool
    note: str


@dataclass(frozen=True)
class ReportPage:
    """One date of one model.

    Attributes:
        happened, todo: one sentence each: what happened, what to do.
        earlier, later: neighbouring monitored dates.
        runbook: docs/runbooks/*.md.
        performance: the mart's `monitorings.performance`.
    """

    model: str
    as_of: dt.date
    verdict: str
    version: int
    happened: str
    todo: str
    reasons: tuple[str, ...]
    columns: tuple[ColumnRow, ...]
    performance: Mapping[str, Any]
    earlier: dt.date | None
    later: dt.date | None
    runbook: str
    has_page: bool


@dataclass(frozen=True)
class Partition:
    """One partition of one table. `balanced`: in = trusted + quarantined + duplicates."""

    day: dt.date
    status: str
    rows_in: int
    trusted: int
    quarantined: int
    duplicates: int
    reasons: tuple[str, ...]
    has_validation: bool
    recorded_at: dt.datetime

    @property
    def balanced(self) -> bool:
        return self.rows_in == self.trusted + self.quarantined + self.duplicates


@dataclass(frozen=True)
class TableRow:
    """A table of a source: its newest partitions, newest first.

    Attributes:
        newest: the newest published partition.
        due: the partition that the newest run of the source should have brought; None of an occasional table. late_days
            how far `newest` is behind it.
        quarantined, stopped: over all partitions.
    """

    source: str
    name: str
    description: str
    cadence: str
    newest: dt.date | None
    due: dt.date | None
    late_days: int
    partitions: tuple[Partition, ...]
    total: int
    quarantined: int
    stopped: int


@dataclass(frozen=True)
class Failure:
    """An expectation that rows failed, or that stopped the partition (then without rows). `examples` are rows of the
    quarantine as they came: {column: value}, empty for null."""

    reason: str
    rows: int
    examples: tuple[Mapping[str, str], ...]
