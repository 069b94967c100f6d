"""A mart with a past, for the health page: `seed` writes through the real steps, judges and the mart's methods.

Models play parts in turn (`PARTS`): a drifting one, one on broken data, one that waits for a person, one that got worse
and is halted, one that is late, one that nobody monitors. With `hostile` every text that a person, a file or a column
name can bring holds markup, very long, right-to-left or emoji text.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from include.evergreen.alerts.cause import of_stopped_partition, of_waiting_approval
from include.evergreen.alerts.inbox import Inbox
from include.evergreen.drift.report import drifts
from include.evergreen.drift.verdict import ColumnDrift, ColumnHealth, Misfit, MonitoringFacts, Performance
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.mart.store import Mart
from include.evergreen.pipeline import monitoring, retraining
from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.promotion.gate import Bin, Calibration, Evaluation, Holdout, Slice, gate
from include.evergreen.specs import ModelSpec, SourceSpec, models, sources
from include.evergreen.training.bundle import PREDICTION

TODAY = dt.date(2013, 6, 30)
HUBS = "hub_flights"
SCRIPT = "</script><script>alert(1)</script>"
IMAGE = '"><img src=x onerror="window.__hacked=1">'
LONG = "n" * 300
HOSTILE = (SCRIPT, IMAGE, LONG, "\u202etfel ot thgir \u05e9\u05dc\u05d5\u05dd", "🛫🔥 {{ 7 * 7 }} ' or 1=1 --")
NAMES = ("flight_delay", "missed_connection", "gate_hold", "baggage_late", "crew_timeout", "taxi_time")
PARTS = ("drifting", "broken", "waiting", "halted", "late", "silent", "well")
WET = ("humid", "wind_speed", "visib", "temp", "precip", "origin_late_7d", "dest_late_7d")
SEASON = ("origin_late_7d", "carrier_late_7d", "dest_late_7d", "temp", "weekday", "planned_minutes", "airline")


@dataclass(frozen=True)
class World:
    """What was seeded. `parts` says which part each model plays."""

    models: dict[str, ModelSpec]
    sources: dict[str, SourceSpec]
    parts: dict[str, str]
    first: dt.date
    today: dt.date


def seed(mart: Mart, models: int = 3, days: int = 60, hostile: bool = False, today: dt.date = TODAY) -> World:
    """Create the mart's tables and fill them with `days` days up to `today` of that many models."""
    world = _world(models, days, hostile, today)
    mart.create()
    for source in world.sources.values():
        _ingest(mart, source, world, hostile)
    for at, (name, spec) in enumerate(world.models.items()):
        mart.ensure_model(spec, world.sources[spec.source])
        _Life(mart, spec, world.parts[name], world, at, hostile).live()
    _inbox(mart, world, hostile)
    return world


def quarantine(world: World, hostile: bool = False) -> MemoryLake:
    """A lake whose quarantine holds the rows that the seeded partitions count."""
    lake = MemoryLake()
    for source in world.sources.values():
        for table in source.tables.values():
            day_of = {ago: world.today - dt.timedelta(days=ago + table.lag_days) for ago in range(60)}
            dates = [day for ago, day in day_of.items() if _quarantined(table.name, ago)]
            rows = [
                {
                    "partition_date": day_of[ago],
                    "available_at": dt.datetime.combine(day_of[ago], dt.time(4)),
                    "source_file": f"{source.name}/{table.name}/{day_of[ago]}.csv",
                    "source_row": number + 2,
                    "delivery": 0,
                    "row": json.dumps(
                        {c: HOSTILE[number % 5] if hostile else f"{c} {number}" for c in list(table.columns)[:6]}
                        | {list(table.columns)[-1]: None}
                    ),
                    "reasons": [
                        f"{list(table.columns)[1]}: expected to match ^[A-Z0-9]{{2}}$, found {number!r}",
                        *([f"{list(table.columns)[-1]}: expected at least 0, found {SCRIPT}"] if number % 2 else []),
                    ],
                }
                for ago in day_of
                for number in range(_quarantined(table.name, ago))
            ]
            if rows:
                lake.write(f"quarantine.{table.name}", pa.Table.from_pylist(rows), dates)
    return lake


# --- specs -----------------------------------------------------------------------------------------------------------


def _world(count: int, days: int, hostile: bool, today: dt.date) -> World:
    flights = sources()["nyc_flights"]
    hubs = _hubs(flights, hostile)
    example = models()["flight_delay"]
    made, parts = {}, {}
    for at in range(count):
        name = NAMES[at] if at < len(NAMES) else f"model_{at + 1:03d}"
        parts[name] = PARTS[at % len(PARTS)]
        changes: dict[str, Any] = {"name": name}
        if at:
            changes["description"] = f"An example: {name.replace('_', ' ')}?"
        if parts[name] == "broken":
            label = example.label.model_copy(update={"table": "hub_actuals"})
            entity = example.entity.model_copy(update={"table": "hub_schedules"})
            changes |= {"source": HUBS, "owner": "hubs", "entity": entity, "label": label}
            changes |= {"reference_tables": ("hub_planes",)}
        if parts[name] == "halted":
            eager = {"losers": 3, "budget": 8, "cooldown_days": 3, "same_drift_days": 3}
            changes |= {"retrain": example.retrain.model_copy(update=eager)}
        if parts[name] == "waiting":
            changes |= {"approval": "human", "approvers": ("ada",)}
        if hostile:
            changes |= {"description": f"{HOSTILE[at % 5]} {SCRIPT}", "owner": HOSTILE[(at + 1) % 5]}
        made[name] = example.model_copy(update=changes)
    return World(made, {flights.name: flights, hubs.name: hubs}, parts, today - dt.timedelta(days=days - 1), today)


def _hubs(flights: SourceSpec, hostile: bool) -> SourceSpec:
    data = flights.model_dump()
    tables = {
        f"hub_{name}": {
            **table,
            "name": f"hub_{name}",
            "path": table["path"].replace("nyc_", "hub_"),
            **({"description": SCRIPT + IMAGE} if hostile else {}),
        }
        for name, table in data["tables"].items()
    }
    about = HOSTILE[1] if hostile else "The same of the other hubs"
    return SourceSpec.model_validate({**data, "name": HUBS, "description": about, "owner": "hubs", "tables": tables})


# --- ingest ----------------------------------------------------------------------------------------------------------


def _quarantined(table: str, ago: int) -> int:
    return (0, 0, 3, 0, 8, 0, 0, 1)[(ago + len(table)) % 8] if not table.endswith("planes") else 0


def _ingest(mart: Mart, source: SourceSpec, world: World, hostile: bool) -> None:
    rows = []
    for table in source.tables.values():
        span = (world.today - world.first).days + 1
        for ago in range(span) if table.cadence == "daily" else (span - 1, 20):
            day = world.today - dt.timedelta(days=ago + table.lag_days)
            stopped = (source.name == HUBS and table.name == "hub_actuals" and ago == 0) or (
                source.name != HUBS and table.name == "weather" and ago == 33
            )
            bad, repeated = _quarantined(table.name, ago), 2 if ago % 11 == 0 else 0
            size = 880 + 37 * (ago * 7 % 5)
            why = (
                "bad rows: expected at most 5.0%, found 31.2% (281): 281 rows: carrier: expected to match ^[A-Z0-9]{2}$"
            )
            reasons = [f"{why}, found {SCRIPT if hostile else 'delta'!r}"] if stopped else []
            warnings = [f"{day}: tailnum: expected to match ^N[0-9A-Z]+$, found 'X1'"] if ago % 17 == 3 else []
            rows.append(
                {
                    "table_name": table.name,
                    "partition_date": day,
                    "source": source.name,
                    "status": "stopped" if stopped else "published",
                    "rows_in": 0 if stopped else size,
                    "trusted": 0 if stopped else size - bad - repeated,
                    "quarantined": 0 if stopped else bad,
                    "duplicates": 0 if stopped else repeated,
                    "deliveries": [{"key": f"{source.name}/{table.name}/{day}.csv", "etag": "e", "rows": size}],
                    "reasons": reasons or warnings,
                    "validation_uri": f"s3://lake/validation/{table.name}/{day}.html",
                    "snapshot_id": None if stopped else 1000 + ago,
                    "run_id": f"scheduled__{day}",
                }
            )
    mart.record_batches(rows)
    released = world.today - dt.timedelta(days=4)
    mart.append_decision(
        kind="quarantine_release",
        subject=f"{source.name}.{next(iter(source.tables))}",
        as_of=released,
        outcome="released",
        reasons=["5 rows pass today's rules, 3 do not"],
        evidence={"released": 5, "duplicates": 0, "kept": 3},
        actor="replay_quarantine",
        run_id=f"manual__{source.name}",
    )


# --- a model's life --------------------------------------------------------------------------------------------------


class _Life:
    """One model, day by day. `ago` counts days back from today."""

    def __init__(self, mart: Mart, spec: ModelSpec, part: str, world: World, at: int, hostile: bool) -> None:
        self.mart, self.spec, self.part, self.world, self.at, self.hostile = mart, spec, part, world, at, hostile
        self.platform: Any = SimpleNamespace(mart=mart)
        self.version, self.made = 1, 1
        self.measured: list[dict[str, Any]] = []

    def live(self) -> None:
        span = (self.world.today - self.world.first).days + 1
        self._train(self.world.first, 0.08, champion=None)
        for ago in range(span - 1, self._last() - 1, -1):
            day = self._day(ago)
            self._score(day, ago, self.version)
            if self.part != "silent":
                self._monitor(day, ago)
                self._events(day, ago)
        self.mart.record_cohorts(self.measured)

    def _day(self, ago: int) -> dt.date:
        return self.world.today - dt.timedelta(days=ago)

    def _last(self) -> int:
        return 2 if self.part == "late" else 0

    def _episode(self, ago: int) -> tuple[str, ...]:
        """What drifts."""
        recent = {"drifting": 3, "halted": 9, "late": 5}.get(self.part, 0)
        if ago < recent:
            return WET
        if self.part == "drifting" and ago in (21, 22, 23):
            return SEASON
        return SEASON if self.part == "halted" and ago % 8 < 3 else ()

    def _monitor(self, day: dt.date, ago: int) -> None:
        spec, sick = self.spec, self._episode(ago)
        columns = {
            name: self._column(name, drift.method, drift.threshold, ago, sick) for name, drift in drifts(spec).items()
        }
        importances = {name: 1 / (rank + 1) for rank, name in enumerate(spec.features)}
        if self.hostile:
            for rank, name in enumerate(HOSTILE):
                columns[name] = ColumnDrift("jensenshannon", 0.3 - rank / 50, 0.1, True, note=IMAGE)
                importances[name] = 2.0
        broken = self.part == "broken" and (ago < 2 or ago in (30, 31))
        worse = self.part == "halted" and ago < 4
        auc = 0.71 - (0.07 if worse else 0.0) - 0.01 * math.sin(ago / 3)
        matured = 5800 if ago < 58 else 0
        facts = MonitoringFacts(
            as_of=day,
            version=self.version,
            partitions=tuple(day - dt.timedelta(days=back) for back in range(6, -1, -1)),
            rows=6300,
            scored_rows=905,
            recent_rows=(900, 910, 905, 880),
            columns=columns,
            health={name: ColumnHealth(0.01, 0.01, 200, 240) for name in ("distance", "humid", "seats")},
            performance=Performance(
                auc=auc if matured else None,
                brier=0.17,
                log_loss=0.53,
                matured_rows=matured,
                scored_rows=6200,
                reference_auc=0.724,
                auc_low=auc - 0.014,
                auc_high=auc + 0.013,
                label_rate=0.23,
                reference_auc_low=0.711,
                reference_auc_high=0.736,
                reference_rate=0.21,
                cohorts=6,
                waiting=1,
                newest=(day - dt.timedelta(days=1)).isoformat(),
                newest_auc=auc,
                newest_auc_high=auc + 0.05,
            ),
            stopped=(f"hub_actuals of {day - dt.timedelta(days=1)}: stopped: bad rows: expected at most 5.0%",)
            if broken and ago == 0
            else (),
            misfits={"distance": Misfit("fit", 2.31, 0.4, "as if changed from miles to kilometres")} if broken else {},
            importances=importances,
        ).to_dict()
        uri = None if ago % 19 == 5 else f"s3://lake/reports/{spec.name}/{day}.html"
        run = f"asset_triggered__{day}_{spec.name}"
        monitoring.conclude(
            self.platform, spec, self.world.sources[spec.source], day, {**facts, "report_uri": uri}, run
        )
        asked = retraining.ask(self.platform, spec, day, run)
        if asked.decision.accepted:
            self._train(day, -0.004 if self.part == "halted" or ago < 15 else 0.021, champion=self.version)

    def _column(self, name: str, method: str, threshold: float, ago: int, sick: Sequence[str]) -> ColumnDrift:
        rank = sum(map(ord, name)) + self.at
        severity = 0.45 + 0.25 * math.sin(ago / 4 + rank) + 0.1 * math.cos(ago * rank)
        if name in sick:
            severity = 1.15 + 0.12 * (rank % 9) + 0.1 * math.sin(ago)
        if name == PREDICTION and self.part == "halted" and ago < 9:
            severity = 1.3
        if name == "seats" and ago % 23 == 7:
            return ColumnDrift(method, None, threshold, False, "no value in the current window")
        score = round(threshold * severity, 9)
        return ColumnDrift(method, score, threshold, score >= threshold)

    def _events(self, day: dt.date, ago: int) -> None:
        if self.part == "broken" and ago == 40:
            self._train(day, 0.012, champion=self.version)
        if self.part == "broken" and ago == 36 and self.version > 1:
            self._roll_back(day, ago)
        if self.part == "waiting" and ago in (30, 3):
            self._train(day, 0.018, champion=self.version, asks=True)
        if self.part == "waiting" and ago == 29 and self.made > 2:
            self._answer(self._day(30))
        if self.part == "well" and ago == 12:
            self._train(day, 0.002, champion=self.version)

    def _train(self, day: dt.date, gain: float, champion: int | None, asks: bool = False) -> None:
        """A training: the frozen holdout at the first, the real gate, and a promotion unless it asks a person."""
        spec, key = self.spec, f"train-{self.spec.name}-{day}"
        if champion is None:
            self._decide("holdout", day, "pinned", ["12 frozen days: the first one"], {"days": []}, "train", key)
        decision = gate(_evaluation(spec, day, gain, champion), spec.gate)
        evidence = {**decision.evidence, "challenger_sha256": f"{self.made:064x}", "rows_from": {"rows": 150_000}}
        self._decide("gate", day, decision.outcome, decision.reasons, evidence, "gate", key)
        number, self.made = self.made, self.made + 1
        if decision.accepted and not asks:
            self._promote(day, key, number, champion, decision.reasons, decision.evidence, "gate")

    def _promote(
        self,
        day: dt.date,
        key: str,
        number: int,
        champion: int | None,
        reasons: Sequence[str],
        facts: Mapping[str, Any],
        actor: str,
    ) -> None:
        first = day if champion is None else day + dt.timedelta(days=1)
        evidence = {"version": number, "former_version": champion, "effective_from": first.isoformat()}
        self._decide("promotion", day, "promoted", reasons, evidence, actor, key)
        metrics = {**facts["fresh"], "metric": facts["metric"]}
        self.mart.promote(model=self.spec.name, version=number, effective_from=first, metrics=metrics, run_id=key)
        self.version = number

    def _answer(self, day: dt.date) -> None:
        """A person's yes to what was trained on `day`."""
        key = f"train-{self.spec.name}-{day}"
        who = HOSTILE[1][:60] if self.hostile else "ada"
        asked = next(row for row in self.mart.decisions(self.spec.name, "gate") if row["run_id"] == key)
        number, compared = self.made - 1, asked["evidence"]["champion_version"]
        evidence = {
            "version": number,
            "gate_run": key,
            "compared_with": compared,
            "champion": compared,
            "effective_from": (day + dt.timedelta(days=2)).isoformat(),
            "answer": ["Approve"],
            "responded_at": "2013-06-01T08:12:00+00:00",
            "responded_by": {"id": who, "name": who},
        }
        reasons = [f"approved by {who} at 2013-06-01T08:12:00+00:00"]
        self._decide("approval", day, "approved", reasons, evidence, who, f"approve-{day}")
        self._promote(day, key, number, compared, reasons, asked["evidence"], who)

    def _roll_back(self, day: dt.date, ago: int) -> None:
        champion = self.mart.champion_history(self.spec.name)[-1]
        scored = {
            row["as_of"].isoformat(): row["rows"]
            for row in self.mart.scorings(self.spec.name)
            if row["is_current"] and row["version"] == champion["version"]
        }
        plan = {
            "model": self.spec.name,
            "version": 1,
            "withdrawn": champion["version"],
            "effective_from": champion["effective_from"].isoformat(),
            "partitions": list(scored),
            "rows": sum(scored.values()),
        }
        why = f"{SCRIPT}{LONG}" if self.hostile else "Worse for transfers since the new version"
        first, who = champion["effective_from"], HOSTILE[4][:60] if self.hostile else "oncall"
        self._decide("rollback", first, "dry_run", ["dry run"], plan, who, f"dry-{day}")
        self._decide("rollback", first, "rolled_back", [why], plan, who, f"rollback-{day}")
        self.mart.promote(
            model=self.spec.name,
            version=1,
            effective_from=first,
            metrics={"rollback_from": champion["version"]},
            run_id=f"rollback-{day}",
        )
        report = {"model": self.spec.name, "version": 1, "equal": True, "changed": []}
        self._decide("rebuild", day, "equal", ["every recorded input is the same"], report, who, f"rebuild-{day}")
        self.version = 1
        for back in range((self.world.today - first).days, ago - 1, -1):
            self._score(self._day(back), back, 1)

    def _decide(
        self,
        kind: str,
        as_of: dt.date,
        outcome: str,
        reasons: Sequence[str],
        evidence: Mapping[str, Any],
        actor: str,
        run_id: str,
    ) -> None:
        self.mart.append_decision(
            kind=kind,
            subject=self.spec.name,
            as_of=as_of,
            outcome=outcome,
            reasons=list(reasons),
            evidence=evidence,
            actor=actor,
            run_id=run_id,
        )

    def _score(self, day: dt.date, ago: int, version: int) -> None:
        """A scoring, and its cohort; the labels of the last date are not due."""
        worse = self.part == "halted" and ago < 5
        rate = 0.2 + 0.04 * math.sin(ago / 5)
        moment = dt.datetime.combine(day, dt.time(0, 7), dt.UTC)
        rows = _predictions(self.spec, day, rate, version)
        self.mart.publish_scoring(self.spec, day, version, rows, 500 + ago, f"score-{day}", scored_at=moment)
        if ago == self._last():
            return
        auc = 0.712 - (0.07 if worse else 0.0) - 0.018 * math.sin(ago / 3 + self.at) + 0.004 * (version - 1)
        self.measured.append(
            {
                "model": self.spec.name,
                "as_of": day,
                "version": version,
                "scored_rows": 905,
                "matured_rows": 880,
                "coverage": 0.9724,
                "label_rate": rate + 0.01,
                "mean_probability": rate,
                "auc": None if ago == 17 else auc,
                "brier": 0.17,
                "log_loss": 0.52,
                "measured_on": day + dt.timedelta(days=1),
                "run_id": f"monitor-{day}",
            }
        )


def _predictions(spec: ModelSpec, day: dt.date, rate: float, version: int) -> pa.Table:
    flights = range(4)
    return pa.table(
        {
            "flight_date": pa.array([day] * 4, pa.date32()),
            "carrier": ["UA", "B6", "DL", "AA"],
            "flight": pa.array([100 + number for number in flights], pa.int64()),
            "origin": ["JFK"] * 4,
            "as_of": pa.array([day] * 4, pa.date32()),
            "probability": [rate + number / 50 for number in flights],
            "decision": [False] * 4,
            **{f"reason_{rank + 1}": [f"humid = 8{rank} (+0.1)"] * 4 for rank in range(spec.scoring.reasons)},
            "model_version": pa.array([version] * 4, pa.int32()),
        }
    )


def _evaluation(spec: ModelSpec, day: dt.date, gain: float, champion: int | None) -> Evaluation:
    over = Estimate(gain, gain - 0.007, gain + 0.007)

    def holdout(days: int) -> Holdout:
        mine, theirs = (
            {"auc_by_day": Estimate(v, v - 0.01, v + 0.01), "auc": Estimate(v, v - 0.01, v + 0.01)}
            for v in (0.72, 0.72 - gain)
        )
        first = day - dt.timedelta(days=days)
        return Holdout(
            rows=900 * days,
            days=days,
            first=first.isoformat(),
            last=(day - dt.timedelta(days=1)).isoformat(),
            challenger=mine,
            baseline={name: Estimate(0.65, 0.64, 0.66) for name in mine},
            champion=theirs if champion is not None else None,
            over_baseline=Estimate(0.07, 0.06, 0.08) if days > 7 else Estimate(0.05, -0.01, 0.09),
            over_champion=over if champion is not None else None,
        )

    return Evaluation(
        metric=spec.gate.metric,
        confidence=spec.gate.confidence,
        fresh=holdout(7),
        frozen=None,
        pooled=holdout(19),
        slices=(Slice("airport", "JFK", 5000, 19, 0.72, 0.7, over if champion is not None else None),),
        calibration=Calibration(Estimate(0.03, 0.02, 0.04), (Bin(900, 0.1, 0.11),)),
        champion_version=champion,
        identical=False,
        obstacles=(),
        model_mb=0.28,
        ms_per_1k=9.1,
        leak_rows=2910,
    )


# --- inbox -----------------------------------------------------------------------------------------------------------


def _inbox(mart: Mart, world: World, hostile: bool) -> None:
    """What ingest and approvals raise; verdicts have raised theirs. Those of drifting models are taken."""
    inbox, hubs = Inbox(mart), world.sources[HUBS]
    why = HOSTILE[0] if hostile else "bad rows: expected at most 5.0%, found 31.2% (281)"
    yesterday = world.today - dt.timedelta(days=1)
    inbox.raise_(of_stopped_partition(hubs.name, "hub_actuals", yesterday, [why], f"scheduled__{yesterday}"))
    for name, part in world.parts.items():
        gates = mart.decisions(name, "gate")
        if part == "waiting" and len(gates) > 1:
            day = gates[0]["as_of"]
            inbox.raise_(of_waiting_approval(name, day, len(gates), 72, f"approve-{day}"))
    note = HOSTILE[1] if hostile else "Storm season, watching it"
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    for alert in inbox.open():
        if world.parts.get(alert.subject) == "drifting":
            inbox.acknowledge(alert.id, "oncall", note)
            inbox.snooze(alert.id, "oncall", until, note)
