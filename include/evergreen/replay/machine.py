"""The time machine: a model's life replayed under different retrain policies, and with faults of known date.

Every day runs the steps that the DAGs run, in their order, without the pages that nobody would read; a policy only says
on which days a training is asked for.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from include.evergreen.errors import DataError, Refused
from include.evergreen.replay.faults import Fault, spoil
from include.evergreen.replay.world import History, MemoryPlatform, take_in
from include.evergreen.specs import ModelSpec, SourceSpec

if TYPE_CHECKING:
    import numpy as np

Policy = Literal["never", "weekly", "monthly", "governed"]
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Scenario:
    """One life: the first champion is trained as of `first`, then days run through `last`."""

    name: str
    policy: Policy
    first: dt.date
    last: dt.date
    fault: Fault | None = None

    @property
    def days(self) -> list[dt.date]:
        return [self.first + i * DAY for i in range((self.last - self.first).days + 1)]


@dataclass
class Life:
    """What happened.

    Attributes:
        trainings: {as_of, reason, outcome, version, reasons, effective_from (None unless promoted)}.
        verdicts: as-of date -> {verdict, guilty, reasons}; of the governed policy only.
        requests: as-of date -> {outcome, reasons}.
        auc: ISO week -> AUC of what was published; `all` over every row.
        stopped: as-of date -> why ingest stopped; the date ran later or never.
        versions: version -> ISO week -> AUC, of every version ever trained, on the weeks after it.
    """

    scenario: str
    trainings: list[dict[str, Any]] = field(default_factory=list)
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    auc: dict[str, float | None] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def promotions(self) -> list[dict[str, Any]]:
        return [training for training in self.trainings if training["effective_from"]]


def live(history: History, scenario: Scenario, folder: Path, step: Callable[[dt.date], None]) -> Life:
    """Run a scenario in an empty `folder`. Raises what a step raises that no DAG would survive."""
    shutil.rmtree(folder, ignore_errors=True)
    spec = _timeless(history.model)
    life, run = Life(scenario.name), _Run(history, spec, scenario, folder)
    train(run.platform, spec, scenario.first, "first", "the first champion", life)
    if not life.promotions():
        raise Refused(f"{scenario.name}: expected a first champion, found: {'; '.join(life.trainings[0]['reasons'])}")
    for day in scenario.days:
        run.day(day, life)
        step(day)
    life.auc = _weekly(run.platform, spec, scenario)
    life.versions = _versions(run, life)
    run.platform.mart.engine.dispose()
    shutil.rmtree(folder)
    return life


def _timeless(spec: ModelSpec) -> ModelSpec:
    """The spec without what takes time and changes no probability: reasons, and the clock in the gate."""
    return spec.model_copy(
        update={
            "scoring": spec.scoring.model_copy(update={"reasons": 0}),
            "gate": spec.gate.model_copy(update={"max_ms_per_1k": float("inf")}),
        }
    )


class _Run:
    """A platform in the middle of a scenario."""

    def __init__(self, history: History, spec: ModelSpec, scenario: Scenario, folder: Path) -> None:
        self.history, self.spec, self.scenario = history, spec, scenario
        self.source: SourceSpec = history.source
        self.platform: MemoryPlatform = history.platform(folder)
        self.pending: list[dt.date] = []
        self.held: dict[dt.date, dict[str, bytes]] = {}
        fault = scenario.fault
        self.by_day = fault is not None and fault.spec is None
        if fault is not None and self.by_day:
            self._undo_ingest(fault)

    def _undo_ingest(self, fault: Fault) -> None:
        """Take daily partitions from the fault's first date on out of the lake, and land their files, spoiled."""
        from importlib import import_module

        import sqlalchemy as sa

        from include.evergreen.mart.schema import ingest_batches

        platform, since = self.platform, fault.first
        daily = [table for table in self.source.tables.values() if table.cadence == "daily"]
        for table in daily:
            for name in (f"trusted.{table.name}", f"quarantine.{table.name}"):
                dates = [day for day in platform.lake.counts(name) if day >= since]
                if dates:
                    platform.lake.write(name, platform.lake.read(name).slice(0, 0), dates)
        with platform.mart.engine.begin() as connection:
            c = ingest_batches.c
            names = [table.name for table in daily]
            connection.execute(sa.delete(ingest_batches).where(c.partition_date >= since, c.table_name.in_(names)))
        publisher = import_module(f"include.sources.{self.source.name}.publish")
        publisher.publish(platform.landing, since, self.scenario.last)
        self.held = spoil(platform.landing, self.source, fault)

    def spec_of(self, day: dt.date) -> ModelSpec:
        """The spec in force: a fault in the spec is deployed on its first date."""
        fault = self.scenario.fault
        return fault.spec(self.spec) if fault and fault.spec and day >= fault.first else self.spec

    def day(self, day: dt.date, life: Life) -> None:
        for key, data in self.held.pop(day, {}).items():
            self.platform.landing.put(key, data)
        due = [*self.pending, day]
        self.pending = []
        for as_of in due:
            if self._ingest(as_of, life):
                self._score_and_monitor(as_of, day, life)

    def _ingest(self, as_of: dt.date, life: Life) -> bool:
        """False when the run of this date stops or waits; it is tried again the next day."""
        fault = self.scenario.fault
        if not self.by_day or fault is None or as_of < fault.first:
            return True
        try:
            take_in(self.platform, self.source, as_of, None, f"ingest-{as_of}")
        except DataError as error:
            life.stopped.setdefault(as_of.isoformat(), f"{type(error).__name__}: {str(error).splitlines()[0]}")
            self.pending.append(as_of)
            return False
        return True

    def _score_and_monitor(self, as_of: dt.date, today: dt.date, life: Life) -> None:
        from include.evergreen.pipeline import monitoring, retraining, scoring

        platform, source, policy = self.platform, self.source, self.scenario.policy
        spec = self.spec_of(today)
        key = f"run-{as_of}"
        staged = scoring.predict(platform, spec, source, as_of, key)
        scoring.publish(platform, spec, source, as_of, staged, key)
        if policy != "governed":
            scheduled = {"weekly": as_of.weekday() == 0, "monthly": as_of.day == 1}.get(policy, False)
            if scheduled and as_of > self.scenario.first:
                train(platform, spec, as_of, f"scheduled-{as_of}", policy, life)
            return
        facts = monitoring.measure(platform, spec, source, as_of, key, page=False)
        concluded = monitoring.conclude(platform, spec, source, as_of, facts, key)
        life.verdicts[as_of.isoformat()] = {name: concluded[name] for name in ("verdict", "guilty", "reasons")}
        asked = retraining.ask(platform, spec, as_of, key)
        if concluded["verdict"] != "ok":
            outcome = "allowed" if asked.decision.accepted else "refused"
            life.requests[as_of.isoformat()] = {"outcome": outcome, "reasons": list(asked.decision.reasons)}
        if asked.decision.accepted:
            train(platform, spec, as_of, f"drift-{as_of}", concluded["verdict"], life)


def train(platform: MemoryPlatform, spec: ModelSpec, as_of: dt.date, key: str, reason: str, life: Life) -> None:
    """The steps of `train__<model>`. A training that fails on its data counts as one that lost."""
    from include.evergreen.pipeline import training as steps

    found: dict[str, Any] = {"as_of": as_of.isoformat(), "reason": reason, "version": None, "effective_from": None}
    try:
        built = steps.build(platform, spec, as_of, key, reason)
        leaks = steps.check_leaks(platform, spec, as_of, built)
        fitted = steps.fit(platform, spec, as_of, key, built)
    except DataError as error:
        life.trainings.append({**found, "outcome": "failed", "reasons": [str(error)]})
        return
    decided = steps.decide(platform, spec, as_of, key, built, fitted, leaks)
    registered = steps.register(platform, spec, as_of, key, built, fitted, decided)
    found |= {"outcome": decided["outcome"], "reasons": decided["reasons"], "version": registered["version"]}
    found["champion"] = decided["evidence"]["champion_version"]
    if decided["accepted"]:
        found["effective_from"] = steps.promote(platform, spec, as_of, key, registered, decided)["effective_from"]
    life.trainings.append(found)


def week_of(day: dt.date) -> str:
    """ISO week, `2013-W26`."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def _weekly(platform: MemoryPlatform, spec: ModelSpec, scenario: Scenario) -> dict[str, float | None]:
    """AUC by ISO week of the published predictions against labels as they were in truth, and over all of them."""
    from include.evergreen.features.build import labels
    from include.evergreen.query import connect, quoted

    known = labels(platform.lake, spec, scenario.first, scenario.last)
    predicted = platform.lake.read(f"predictions.{spec.name}", scenario.first, scenario.last)
    keys = quoted(*spec.entity.key, "as_of")
    with connect() as connection:
        connection.register("p", predicted)
        connection.register("l", known)
        rows = connection.execute(
            f"select as_of, label, probability from p join l using ({keys}) order by {keys}"
        ).fetchnumpy()
    return _auc_by_week(rows["as_of"].astype("datetime64[D]"), rows["label"], rows["probability"])


def _auc_by_week(day: np.ndarray, label: np.ndarray, probability: np.ndarray) -> dict[str, float | None]:
    import numpy as np

    from include.evergreen.training.metrics import score

    weeks = np.array([week_of(d) for d in day.tolist()])
    found = {}
    for name in [*np.unique(weeks).tolist(), "all"]:
        mask = weeks == name if name != "all" else np.ones(len(weeks), dtype=bool)
        auc = score(label[mask].astype("int8"), probability[mask])["auc"]
        found[name] = round(auc, 6) if auc == auc else None
    return found


def _versions(run: _Run, life: Life) -> dict[str, dict[str, float | None]]:
    """What every version would have scored, had it been in force from its day on: the yardstick of its promotion."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.features.build import features, labelled, labels
    from include.evergreen.training.fit import label_of

    spec, first, last = run.spec, run.scenario.first, run.scenario.last
    lake = run.platform.lake
    rows = labelled(features(lake, spec, first, last), labels(lake, spec, first, last), spec)
    found = {}
    for training in life.trainings:
        if training["version"] is None:
            continue
        after = pa.scalar(dt.date.fromisoformat(training["as_of"]), pa.date32())
        later = rows.filter(pc.greater(rows["as_of"], after))
        if later.num_rows:
            probability = run.platform.registry.load(spec.name, training["version"]).predict(later)
            days = later["as_of"].to_numpy().astype("datetime64[D]")
            found[str(training["version"])] = _auc_by_week(days, label_of(later), probability)
    return found


@contextmanager
def journal(folder: Path, name: str) -> Iterator[tuple[dict[str, Any] | None, Callable[[Any], None]]]:
    """What was kept under `name`, and how to keep it: a scenario that has run does not run again."""
    path = folder / f"{name}.json"

    def keep(value: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
        draft.replace(path)

    yield (json.loads(path.read_text(encoding="utf-8")) if path.exists() else None), keep


def lived(history: History, scenario: Scenario, folder: Path, step: Callable[[dt.date], None]) -> Life:
    """The life of a scenario, from the journal in `folder` when it has run before."""
    with journal(folder, scenario.name) as (kept, keep):
        if kept is not None:
            return Life(**kept)
        life = live(history, scenario, folder / f"{scenario.name}.run", step)
        keep(asdict(life))
        return life


# --- what is run -----------------------------------------------------------------------------------------------------

AFTER = 14
"""Days that a life with a fault goes on after it."""
SHIFTS = (0.5, -0.5, 1.0)
TOP = 10
DETECT_DAYS = 3


def policies(history: History) -> list[Scenario]:
    """Every policy over the history that calibration has not seen."""
    first = history.model.calibration.as_of if history.model.calibration else history.model.start_date
    last = history.last - history.model.label.matures_after_days * DAY
    names: tuple[Policy, ...] = ("never", "monthly", "weekly", "governed")
    return [Scenario(name, name, first, last) for name in names]


def faults(history: History) -> list[Scenario]:
    """The governed policy through each fault of the source's `faults.py`, and once without any."""
    from importlib import import_module

    try:
        known = import_module(f"include.sources.{history.source.name}.faults").FAULTS
    except ModuleNotFoundError:
        return []
    first, last = policies(history)[0].first, known[0].first + AFTER * DAY
    clean = Scenario("no-fault", "governed", first, last)
    return [clean, *(Scenario(fault.name, "governed", first, last, fault) for fault in known)]


def shifts(history: History, folder: Path, step: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every number among the ten most important features, shifted from one of three dates on: when it was noticed.

    Each date has a model trained a week before, on any baseline: what is tried is the watch, not the gate.

    Returns [{date, feature, rank, amount, delay (days; None within DETECT_DAYS not), named, verdict}].
    """
    from include.evergreen.features.build import features
    from include.evergreen.pipeline import monitoring, scoring
    from include.evergreen.promotion.card import shap_importance
    from include.evergreen.replay.faults import shifted

    spec = _timeless(history.model)
    spec = spec.model_copy(update={"gate": spec.gate.model_copy(update={"baseline_by": None})})
    whole = policies(history)[0]
    found = []
    for part in (1, 2, 3):
        first = whole.first + (whole.last - whole.first) * part / 4
        shutil.rmtree(folder, ignore_errors=True)
        platform, life = history.platform(folder), Life("shifts")
        train(platform, spec, first - 7 * DAY, "first", "a champion", life)
        if not life.promotions():
            raise Refused(f"shifts of {first}: expected a champion, found: {'; '.join(life.trainings[0]['reasons'])}")
        bundle = platform.registry.load(spec.name, 1)
        for back in range(spec.monitoring.window_days, -DETECT_DAYS, -1):
            key, day = f"run-{back}", first - back * DAY
            scoring.publish(
                platform, spec, history.source, day, scoring.predict(platform, spec, history.source, day, key), key
            )
        window = features(platform.lake, spec, first - 28 * DAY, first - DAY)
        ranked = list(shap_importance(bundle, window))[:TOP]
        for rank, name in enumerate(ranked, 1):
            if name not in bundle.facts["profile"]["std"]:
                continue
            for amount in SHIFTS:
                moved = shifted(name, amount * bundle.facts["profile"]["std"][name], first)(spec)
                seen: dict[str, Any] = {"delay": None, "verdict": "ok", "named": False}
                for delay in range(DETECT_DAYS):
                    day = first + delay * DAY
                    facts = monitoring.measure(platform, moved, history.source, day, "shift", page=False)
                    said = monitoring.conclude(platform, moved, history.source, day, facts, f"{name}-{amount}-{delay}")
                    if said["verdict"] != "ok" and name in said["guilty"]:
                        first_guilty = said["guilty"][0] == name
                        seen = {"delay": delay, "verdict": said["verdict"], "named": first_guilty}
                        break
                found.append({"date": first.isoformat(), "feature": name, "rank": rank, "amount": amount, **seen})
                step(f"{first} {name} {amount:+}")
        platform.mart.engine.dispose()
    shutil.rmtree(folder, ignore_errors=True)
    return found


def placebo_alarms(history: History, folder: Path, step: Callable[[int, int], None]) -> dict[str, Any]:
    """False alarms a month on placebo months that calibration did not draw, at its multiplier."""
    from include.evergreen.drift.calibrate import false_alarms, placebo
    from include.evergreen.features.build import features, labelled, labels

    spec = history.model
    if spec.calibration is None:
        raise Refused(f"{spec.name}: expected calibrated thresholds, found none; run make calibrate MODEL={spec.name}")
    as_of = spec.calibration.as_of
    platform, until = history.platform(folder), as_of - DAY
    rows = features(platform.lake, spec, spec.start_date, until)
    known = labelled(rows, labels(platform.lake, spec, spec.start_date, until, cut=as_of), spec)
    measured = placebo(spec, rows, known, as_of, spec.calibration.months, spec.calibration.seed + 1, step)
    rate, days, kinds = false_alarms(measured, spec, spec.calibration.multiplier)
    platform.mart.engine.dispose()
    shutil.rmtree(folder, ignore_errors=True)
    return {"a_month": rate, "alarm_days": days, "by_kind": kinds, "months": spec.calibration.months}
