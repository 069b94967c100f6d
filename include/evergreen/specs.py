"""Specs: what an adopter writes as data. An invalid spec cannot be built.

`include/sources/<name>/source.yaml` becomes a `SourceSpec`, `include/models/<name>/model.yaml`
(plus `features.sql`) a `ModelSpec`. Errors name the file, the field, the value and what would be right.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from include.evergreen.errors import SpecError

PROJECT = Path(__file__).resolve().parents[2]
NAME = r"^[a-z][a-z0-9_]{0,47}$"
Name = Annotated[str, Field(pattern=NAME)]
Fraction = Annotated[float, Field(ge=0, le=1)]
KEY = r"(?:[A-Za-z0-9_={][A-Za-z0-9_=.{}+-]*/)*[A-Za-z0-9_={][A-Za-z0-9_=.{}+-]*"
"""A key template of plain segments: it starts at the bucket's root and stays below it."""
ColumnType = Literal["string", "integer", "number", "boolean", "date", "timestamp"]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _digest(spec: Spec) -> str:
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


# --- sources ---------------------------------------------------------------------------------------------------------


class Column(Spec):
    """A delivered column. `nullable: false` is itself an expectation."""

    type: ColumnType
    nullable: bool = True
    description: str = ""


class Availability(Spec):
    """When a row could first be known: `scheduled` = midnight of its partition date + `hours_after`
    (replayed history); `arrival` = when its file was delivered (live feeds)."""

    rule: Literal["scheduled", "arrival"] = "scheduled"
    hours_after: float = 0


class RowCount(Spec):
    """Bounds of a partition's rows: absolute, and as ratios of the median of recent partitions."""

    min: int = 1
    max: int | None = None
    recent_partitions: int = 28
    min_ratio: float | None = None
    max_ratio: float | None = None


class Expectation(Spec):
    """One Great Expectations expectation, by its snake_case `type`, with its own arguments in `args`.

    `severity: warning` is recorded and shown but neither quarantines a row nor stops a partition.
    """

    type: Annotated[str, Field(pattern=r"^expect_[a-z0-9_]+$")]
    args: dict[str, Any] = Field(default_factory=dict)
    severity: Literal["error", "warning"] = "error"
    because: str = ""


class Freshness(Spec):
    """The newest value of `column` must reach at least `hours` after midnight of the partition date."""

    column: Name
    hours: float


class TableSpec(Spec):
    """One table of a source.

    Attributes:
        path: key template in the landing bucket; `{date}` is the partition date (YYYY-MM-DD). Every object whose
            key starts with the part before the extension is a delivery of that partition, in key order.
        cadence: `daily` = one partition a day is due; `occasional` = a full snapshot now and then, the newest counts.
        lag_days: run R lands partition R - lag_days.
        date_column: must equal the partition date in every row of a daily table.
        key: columns that identify a row.
        derive: extra columns as DuckDB expressions over the typed columns.
        max_bad_share: above this share of quarantined rows the partition is stopped.
    """

    name: Name
    description: str
    path: str
    cadence: Literal["daily", "occasional"] = "daily"
    lag_days: Annotated[int, Field(ge=0, le=31)] = 0
    date_column: Name | None = None
    key: tuple[Name, ...] = Field(min_length=1)
    available: Availability = Availability()
    columns: dict[Name, Column] = Field(min_length=1)
    derive: dict[Name, str] = Field(default_factory=dict)
    expectations: tuple[Expectation, ...] = ()
    row_count: RowCount = RowCount()
    freshness: Freshness | None = None
    max_bad_share: Fraction = 0.05
    delimiter: Annotated[str, Field(pattern=r"^[\t -~]$")] = ","
    null: str = "NA"

    @model_validator(mode="after")
    def _coherent(self) -> TableSpec:
        if "{date}" not in self.path:
            raise ValueError(f"path: expected a template with {{date}}, found {self.path!r}")
        if not re.fullmatch(KEY, self.path) or ".." in self.path:
            raise ValueError(f"path: expected a key inside the landing bucket, found {self.path!r}")
        named = [*self.key, *([self.date_column] if self.date_column else [])]
        unknown = sorted(set(named) - set(self.columns))
        if unknown:
            raise ValueError(f"key and date_column: expected declared columns, found {unknown}")
        if self.cadence == "daily" and self.date_column is None:
            raise ValueError("date_column: a daily table needs one")
        if self.delimiter == '"':
            raise ValueError("delimiter: expected another character than the quote")
        reserved = {"partition_date", "available_at", "source_file", "source_row"} & {*self.columns, *self.derive}
        if reserved:
            raise ValueError(f"columns: {sorted(reserved)} are added by the engine and cannot be declared")
        return self


class Wait(Spec):
    """How long a run waits for a file."""

    timeout_minutes: Annotated[float, Field(gt=0)] = 720
    poke_seconds: Annotated[float, Field(gt=0)] = 60


class SourceSpec(Spec):
    """One upstream and its tables."""

    name: Name
    description: str
    owner: str
    start_date: dt.date
    end_date: dt.date | None = None
    schedule: str = "0 0 * * *"
    wait: Wait = Wait()
    tables: dict[Name, TableSpec] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _name_tables(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("tables"), dict):
            tables = {k: {"name": k, **v} if isinstance(v, dict) else v for k, v in data["tables"].items()}
            return {**data, "tables": tables}
        return data

    @model_validator(mode="after")
    def _coherent(self) -> SourceSpec:
        renamed = {key: table.name for key, table in self.tables.items() if table.name != key}
        if renamed:
            raise ValueError(f"tables: expected no name but the key's, found {renamed}")
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the spec."""
        return _digest(self)


# --- models ----------------------------------------------------------------------------------------------------------


class Entity(Spec):
    """What is predicted: the rows of `table` in partition R are the entities of as-of date R."""

    table: Name
    key: tuple[Name, ...] = Field(min_length=1)
    where: str = "true"


class Label(Spec):
    """What happened: a DuckDB boolean expression over `table`, joined on the entity key. Null = no label.

    Labels of as-of date R are due at midnight of R + `matures_after_days`: performance is judged from then on.
    """

    table: Name
    expression: str
    description: str = ""
    matures_after_days: Annotated[int, Field(ge=1)] = 1


class Drift(Spec):
    """How one column's drift is measured. `distance >= threshold` is a breach, whatever the number of rows."""

    method: Literal["jensenshannon", "wasserstein", "psi"] = "jensenshannon"
    threshold: Annotated[float, Field(gt=0)] = 0.1


class Feature(Spec):
    """A column of `features.sql`."""

    type: Literal["number", "category"] = "number"
    description: str = ""
    drift: Drift | None = Drift()

    @model_validator(mode="after")
    def _coherent(self) -> Feature:
        if self.type == "category" and self.drift is not None and self.drift.method == "wasserstein":
            raise ValueError("drift.method: wasserstein is for numbers; expected jensenshannon or psi for a category")
        return self


class Training(Spec):
    """How a challenger is made. Days count back from the as-of date: [train | validation | holdout] as-of.

    `trials` > 0 tunes the `search` ranges (low, high) of XGBoost parameters on the validation days.
    `memory_mb`: training rows whose features take more (4 bytes a value) are built in windows of days, staged in parts,
    and binned on local disk; part of the lineage.
    """

    window_days: Annotated[int, Field(ge=2)] = 365
    validation_days: Annotated[int, Field(ge=1)] = 14
    holdout_days: Annotated[int, Field(ge=1)] = 7
    min_rows: int = 1000
    params: dict[str, JsonValue] = Field(default_factory=dict)
    num_boost_round: Annotated[int, Field(ge=1)] = 300
    early_stopping_rounds: int = 20
    seed: int = 20130101
    threads: int = 2
    memory_mb: Annotated[int, Field(ge=1)] = 2048
    trials: Annotated[int, Field(ge=0)] = 0
    search: dict[str, tuple[float, float]] = Field(default_factory=dict)
    leak_check_dates: Annotated[int, Field(ge=1)] = 3
    schedule: str | None = "0 6 1 * *"


class Costs(Spec):
    """What one decision costs, in `unit`; a correct "no" costs nothing.

    The value of a model is what it saves against never acting, per 1,000 entities. With costs, the decision threshold
    is picked on the validation rows, and `gate.metric: value` makes the value the primary metric.
    """

    hit: Annotated[float, Field(ge=0)] = 0.0
    miss: Annotated[float, Field(gt=0)]
    false_alarm: Annotated[float, Field(ge=0)]
    unit: str = ""

    @model_validator(mode="after")
    def _worth_acting(self) -> Costs:
        if self.hit >= self.miss:
            raise ValueError(f"hit: expected less than miss = {self.miss:g} (else never act), found {self.hit:g}")
        return self


class FrozenHoldout(Spec):
    """Every `every_days`-th date is kept from every training. Those of the training window are pinned by snapshot and
    measure every challenger until they are `renew_days` old. 13 is coprime to 7: every weekday takes its turn."""

    every_days: Annotated[int, Field(ge=2)] = 13
    renew_days: Annotated[int, Field(ge=1)] = 90
    min_days: Annotated[int, Field(ge=2)] = 5

    def holds(self, day: dt.date) -> bool:
        """Whether `day` is kept from training."""
        return day.toordinal() % self.every_days == 0


class Gate(Spec):
    """What a challenger must show on two holdouts: the newest days (fresh), where it must gain, and the frozen days,
    where it must not lose.

    `auc_by_day` is the share of pairs of one day ranked right; `value` needs the model's `costs`. Gains and drops are
    in units of the metric: for `value` set all three. Bounds hold each with `confidence`, from `resamples` of days.
    `floors` are minimum values. The baseline is the training rate of the label by `baseline_by` (in 24 quantile bins of
    a number, by value of a category), or overall when it is null. A slice is a value of a category with at least
    `min_slice_rows` rows.
    """

    metric: Literal["auc", "auc_by_day", "average_precision", "log_loss", "brier", "value"] = "auc"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=200)] = 2000
    floors: dict[Literal["auc", "average_precision"], float] = Field(default_factory=dict)
    baseline_by: Name | None = None
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    min_holdout_rows: int = 500
    min_holdout_days: Annotated[int, Field(ge=2)] = 5
    frozen: FrozenHoldout = FrozenHoldout()
    max_frozen_drop: Annotated[float, Field(ge=0)] = 0.01
    slices: tuple[Name, ...] = ()
    min_slice_rows: Annotated[int, Field(ge=1)] = 500
    max_slice_drop: Annotated[float, Field(ge=0)] = 0.03
    max_calibration_error: Fraction = 0.1
    max_model_mb: float = 50
    max_ms_per_1k: float = 200


class Scoring(Spec):
    threshold: Fraction = 0.5
    reasons: Annotated[int, Field(ge=0)] = 3
    batch_rows: Annotated[int, Field(ge=1)] = 65_536


class Monitoring(Spec):
    """What is asked of a scored date.

    Drift is measured over the last `window_days` scored dates against the champion's training reference: covariates
    drift when at least `min_columns` features breach their thresholds, the prediction by its own, labels when their
    rate is more than `max_label_shift` away. Data is broken when on the date itself nulls rose by more than
    `max_null_increase`, or a number does not fit the champion's profile by more than `max_misfit` of its standard
    deviations (`drift.profile`). Performance dropped when the bounds of the AUC are below the reference's, by more than
    `max_performance_drop`. Labels that arrive late revise estimates for `reconcile_days`.
    """

    window_days: Annotated[int, Field(ge=1)] = 7
    min_columns: Annotated[int, Field(ge=1)] = 2
    prediction: Drift = Drift()
    max_label_shift: Fraction = 0.2
    max_null_increase: Fraction = 0.2
    max_misfit: Annotated[float, Field(gt=0)] = 0.4
    performance_metric: Literal["auc"] = "auc"
    max_performance_drop: float = 0.03
    min_matured_rows: int = 1000
    reconcile_days: Annotated[int, Field(ge=1)] = 28
    sketch_rows: int = 10_000


class Retrain(Spec):
    """The retrain governor.

    A request needs at least `breaches` of the last `windows` verdicts and the latest one, no request within
    `cooldown_days`, fewer than `budget` of them within `budget_days`, and no request for the same drift within
    `same_drift_days`. After `losers` losing challengers in a row it asks nothing for `breaker_days`, and a person is
    called.
    """

    breaches: Annotated[int, Field(ge=1)] = 2
    windows: Annotated[int, Field(ge=1)] = 3
    cooldown_days: Annotated[int, Field(ge=0)] = 7
    budget: Annotated[int, Field(ge=1)] = 4
    budget_days: Annotated[int, Field(ge=1)] = 30
    same_drift_days: Annotated[int, Field(ge=0)] = 14
    losers: Annotated[int, Field(ge=1)] = 3
    breaker_days: Annotated[int, Field(ge=1)] = 30

    @model_validator(mode="after")
    def _n_of_m(self) -> Retrain:
        if self.breaches > self.windows:
            raise ValueError(f"breaches: expected at most windows = {self.windows}, found {self.breaches}")
        return self


class Calibration(Spec):
    """How the thresholds were found (`make calibrate`), and the false alarms they are expected to cost.

    Attributes:
        as_of: history before this date was used.
        budget, false_alarms: alarms a month: allowed, and expected on months that gave no threshold.
        alarm_days: expected share of days in alarm. by_kind: expected alarms a month of each verdict alone.
        multiplier: of the columns' scales. months, seed: placebo months drawn, and how.
    """

    as_of: dt.date
    budget: float
    false_alarms: float
    alarm_days: Fraction
    by_kind: dict[str, float]
    multiplier: float
    months: int
    seed: int


class ModelSpec(Spec):
    """One model: an entity, a label, features, and the rules of its life.

    `features.sql` reads the last `lookback_days` of the source's tables, and the `reference_tables` whole.
    `compute: dask` trains and scores on a Dask cluster, whose address is the connection `evergreen_dask`.
    """

    name: Name
    description: str
    owner: str
    source: Name
    start_date: dt.date
    end_date: dt.date | None = None
    entity: Entity
    label: Label
    lookback_days: Annotated[int, Field(ge=0)] = 7
    reference_tables: tuple[Name, ...] = ()
    features: dict[Name, Feature] = Field(min_length=1)
    compute: Literal["local", "dask"] = "local"
    training: Training = Training()
    gate: Gate = Gate()
    costs: Costs | None = None
    approval: Literal["auto", "human"] = "auto"
    approvers: tuple[str, ...] = ()
    approval_hours: Annotated[float, Field(gt=0)] = 72
    scoring: Scoring = Scoring()
    monitoring: Monitoring = Monitoring()
    retrain: Retrain = Retrain()
    calibration: Calibration | None = None
    sql: str = Field(repr=False)

    @model_validator(mode="after")
    def _coherent(self) -> ModelSpec:
        if self.gate.baseline_by is not None and self.gate.baseline_by not in self.features:
            raise ValueError(f"gate.baseline_by: expected a feature, found {self.gate.baseline_by!r}")
        unsliced = [name for name in self.gate.slices if name not in self.categories]
        if unsliced:
            raise ValueError(f"gate.slices: expected features of type category, found {unsliced}")
        if self.gate.metric == "value" and self.costs is None:
            raise ValueError("gate.metric: value needs costs, found none")
        clash = sorted({*self.entity.key, "as_of", "label", "probability"} & set(self.features))
        if clash:
            raise ValueError(f"features: {clash} are names of the entity or the engine; rename the columns")
        if self.training.trials and not self.training.search:
            raise ValueError("training.search: expected ranges to tune when trials > 0")
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the spec with its SQL: one input of every model's lineage."""
        return _digest(self)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(name for name, feature in self.features.items() if feature.type == "category")


# --- loading ---------------------------------------------------------------------------------------------------------


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: {error.error_count()} field(s) are wrong"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        found = repr(item["input"])
        lines.append(f"  {where}: {item['msg']}; found {found if len(found) < 120 else found[:117] + '...'}")
    return "\n".join(lines)


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C loader is five times as fast."""

Made = TypeVar("Made", bound=Spec)
_made: dict[tuple[Path, bool], tuple[tuple[str | None, ...], Spec]] = {}
"""(file, calibrated) -> the texts that a spec was made of, and the spec."""


def _kept(path: Path, calibrated: bool, texts: tuple[str | None, ...], make: Callable[[], Made]) -> Made:
    """The spec of these texts, made once in this process: what changes on disk is read anew."""
    found = _made.get((path, calibrated))
    if found is None or found[0] != texts:
        found = _made[path, calibrated] = (texts, make())
    return found[1]  # type: ignore[return-value]


def _text(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:  # a third of the time of `read_text`
            return file.read().decode().replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise SpecError(f"{path}: expected a readable file, found {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected UTF-8, found {error}") from error


def _read(path: Path, text: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, LOADER)  # noqa: S506 - a safe loader, in C where there is one
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2013-13-01
        raise SpecError(f"{path}: expected YAML, found {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected a mapping, found {type(data).__name__}")
    return data


def load_source(path: Path) -> SourceSpec:
    """Read one `source.yaml`. Raises SpecError."""
    text = _text(path)
    return _kept(path, False, (text,), lambda: _source(path, text))


def _source(path: Path, text: str) -> SourceSpec:
    try:
        spec = SourceSpec.model_validate(_read(path, text))
    except ValidationError as error:
        raise SpecError(_explain(path, error)) from error
    if spec.name != path.parent.name:
        raise SpecError(f"{path}: name: expected {path.parent.name!r} (its folder), found {spec.name!r}")
    return spec


THRESHOLDS = "thresholds.yaml"
LABEL, PREDICTION = "label", "probability"


def _calibrated(path: Path, data: dict[str, Any], thresholds_text: str) -> dict[str, Any]:
    """`data` of a model.yaml with the thresholds that `make calibrate` wrote beside it. Raises SpecError."""
    file = path.with_name(THRESHOLDS)
    written = _read(file, thresholds_text)
    if set(written) != {"calibration", "thresholds"} or not isinstance(written["thresholds"], dict):
        raise SpecError(f"{file}: expected calibration and thresholds, found {sorted(written)}; run make calibrate")
    thresholds = dict(written["thresholds"])
    features, monitoring = dict(data.get("features") or {}), dict(data.get("monitoring") or {})
    if LABEL in thresholds:
        monitoring["max_label_shift"] = thresholds.pop(LABEL)
    if PREDICTION in thresholds:
        monitoring["prediction"] = {**(monitoring.get("prediction") or {}), "threshold": thresholds.pop(PREDICTION)}
    for name, threshold in thresholds.items():
        feature = features.get(name)
        drift = feature.get("drift", {}) if isinstance(feature, dict) else None
        if not isinstance(feature, dict) or not isinstance(drift, dict):
            raise SpecError(f"{file}: thresholds.{name}: expected a feature with drift; run make calibrate again")
        if "threshold" in drift:
            raise SpecError(f"{path}: features.{name}.drift.threshold: expected none, {file.name} has it")
        features[name] = {**feature, "drift": {**drift, "threshold": threshold}}
    return {**data, "features": features, "monitoring": monitoring, "calibration": written["calibration"]}


def load_model(path: Path, calibrated: bool = True) -> ModelSpec:
    """Read one `model.yaml` with the `features.sql` beside it, and the calibrated thresholds. Raises SpecError."""
    text, folder = _text(path), os.path.dirname(path)
    if not os.path.isfile(sql := f"{folder}/features.sql"):
        raise SpecError(f"{sql}: expected the model's feature query, found no file")
    query = _text(sql)
    bounds = _text(file) if calibrated and os.path.isfile(file := f"{folder}/{THRESHOLDS}") else None
    return _kept(path, calibrated, (text, query, bounds), lambda: _model(path, text, query, bounds))


def _model(path: Path, text: str, query: str, bounds: str | None) -> ModelSpec:
    data = _read(path, text)
    try:
        spec = ModelSpec.model_validate({**(data if bounds is None else _calibrated(path, data, bounds)), "sql": query})
    except ValidationError as error:
        raise SpecError(_explain(path, error)) from error
    if spec.name != path.parent.name:
        raise SpecError(f"{path}: name: expected {path.parent.name!r} (its folder), found {spec.name!r}")
    return spec


def _path(root: Path, kind: Literal["source", "model"], name: str) -> Path:
    return root / f"include/{kind}s" / name / f"{kind}.yaml"


def names(kind: Literal["source", "model"], root: Path = PROJECT) -> list[str]:
    """Folders that hold a spec, sorted; none is read."""
    folder = root / f"include/{kind}s"
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        return sorted(one.name for one in found if os.path.isfile(f"{one.path}/{kind}.yaml"))


def _named(root: Path, kind: Literal["source", "model"], name: str) -> Path:
    path = _path(root, kind, name)
    if not re.fullmatch(NAME, name) or not path.is_file():
        raise SpecError(f"{path.parent}: expected one of the {kind}s {names(kind, root)}, found {name!r}")
    return path


def source(name: str, root: Path = PROJECT) -> SourceSpec:
    """One source; no other is read. Raises SpecError."""
    return load_source(_named(root, "source", name))


def model(name: str, root: Path = PROJECT, calibrated: bool = True) -> ModelSpec:
    """One model, on a sound source; no other is read. Raises SpecError."""
    path = _named(root, "model", name)
    spec = load_model(path, calibrated)
    if spec.source not in (known := names("source", root)):
        raise SpecError(_no_source(path, spec, known))
    _check_tables(path, spec, source(spec.source, root))
    return spec


def _no_source(path: Path, spec: ModelSpec, known: Iterable[str]) -> str:
    return f"{path}: source: expected one of {sorted(known)}, found {spec.source!r}"


def _check_tables(path: Path, spec: ModelSpec, on: SourceSpec) -> None:
    """Raises SpecError: the model reads what its source does not have."""
    named = [("entity.table", spec.entity.table), ("label.table", spec.label.table)]
    for field, table in [*named, *(("reference_tables", table) for table in spec.reference_tables)]:
        if table not in on.tables:
            raise SpecError(f"{path}: {field}: expected one of {sorted(on.tables)}, found {table!r}")
    for _, table in named:
        unknown = sorted(set(spec.entity.key) - set(on.tables[table].columns))
        if unknown:
            raise SpecError(f"{path}: entity.key: expected columns of {table}, found {unknown}")


@dataclass(frozen=True)
class Survey:
    """Every sound spec by name, and what is wrong with the others: one of them takes no other down."""

    sources: dict[str, SourceSpec]
    models: dict[str, ModelSpec]
    wrong: tuple[SpecError, ...]

    @property
    def pairs(self) -> list[tuple[ModelSpec, SourceSpec]]:
        """Every model with its source."""
        return [(spec, self.sources[spec.source]) for spec in self.models.values()]


def survey_sources(root: Path = PROJECT) -> tuple[dict[str, SourceSpec], list[SpecError]]:
    """Sound sources by name, and what is wrong with the others; no model is read."""
    found: dict[str, SourceSpec] = {}
    wrong: list[SpecError] = []
    owners: dict[str, list[str]] = {}
    for name in names("source", root):
        try:
            found[name] = load_source(_path(root, "source", name))
        except SpecError as error:
            wrong.append(error)
            continue
        for table in found[name].tables:
            owners.setdefault(table, []).append(name)
    for table, claims in owners.items():
        for name in reversed(claims if len(claims) > 1 else []):
            path, others = _path(root, "source", name), [other for other in claims if other != name]
            says = f"expected a name of its own, found it in {', '.join(map(repr, others))} too"
            wrong.append(SpecError(f"{path}: tables.{table}: {says}"))
            found.pop(name, None)
    return found, wrong


def survey(root: Path = PROJECT, calibrated: bool = True) -> Survey:
    """Read every spec. A table has one source: those that share one are wrong, and so are the models on them."""
    known, wrong = survey_sources(root)
    found: dict[str, ModelSpec] = {}
    for name in names("model", root):
        path = _path(root, "model", name)
        try:
            spec = load_model(path, calibrated)
            if spec.source not in known:
                raise SpecError(_no_source(path, spec, known))
            _check_tables(path, spec, known[spec.source])
        except SpecError as error:
            wrong.append(error)
        else:
            found[name] = spec
    return Survey(known, found, tuple(wrong))


def sources(root: Path = PROJECT) -> dict[str, SourceSpec]:
    """Every source of the project, by name. Table names are unique across sources. Raises SpecError."""
    found, wrong = survey_sources(root)
    if wrong:
        raise wrong[0]
    return found


def models(root: Path = PROJECT, calibrated: bool = True) -> dict[str, ModelSpec]:
    """Every model of the project, by name, each on a known source and its tables; without the calibrated thresholds to
    find new ones. Raises SpecError."""
    found = survey(root, calibrated)
    if found.wrong:
        raise found.wrong[0]
    return found.models
