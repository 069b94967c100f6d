"""Measure a challenger, the champion and a baseline on the same rows, with the same draws of days."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.promotion.bootstrap import Draws, Estimate, Sample
from include.evergreen.promotion.gate import Bin, Calibration, Evaluation, Holdout, Slice, better
from include.evergreen.specs import FrozenHoldout, ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import label_of, on_frozen_days
from include.evergreen.training.metrics import costs_of

BINS = 24
CALIBRATION_BINS = 10


def baseline(spec: ModelSpec, train: pa.Table, rows: pa.Table) -> np.ndarray:
    """The training rate of the label by one feature: the simplest prediction worth beating, shape (rows,)."""
    label = label_of(train).astype("float64")
    overall = float(label.mean())
    name = spec.gate.baseline_by
    if name is None:
        return np.full(rows.num_rows, overall)
    if spec.features[name].type == "category":
        levels = sorted(v for v in pc.unique(train[name]).to_pylist() if v is not None)
        index = {v: i for i, v in enumerate(levels)}
        code = [np.array([index.get(v, len(levels)) for v in t[name].to_pylist()]) for t in (train, rows)]
        size = len(levels) + 1
    else:
        values = [t[name].to_numpy(zero_copy_only=False).astype("float64") for t in (train, rows)]
        edges = np.unique(np.nanquantile(values[0], np.linspace(0, 1, BINS + 1)[1:-1]))
        code = [np.where(np.isnan(v), len(edges) + 1, np.searchsorted(edges, v, side="right")) for v in values]
        size = len(edges) + 2
    count = np.bincount(code[0], minlength=size)
    late = np.bincount(code[0], weights=label, minlength=size)
    rate = np.where(count > 0, late / np.maximum(count, 1), overall)
    found: np.ndarray = rate[code[1]] if rows.num_rows else np.zeros(0)
    return found


def trained_until(bundle: ModelBundle) -> dt.date:
    """The last day whose labels the model has seen."""
    return dt.date.fromisoformat(bundle.facts["trained_until"])


def trained_on(bundle: ModelBundle, day: dt.date) -> bool:
    """Whether the model was fitted, or stopped early, on rows of a day."""
    first, every = dt.date.fromisoformat(bundle.facts["train_from"]), bundle.facts.get("frozen_every")
    kept = every is not None and FrozenHoldout(every_days=every).holds(day)
    return first <= day <= trained_until(bundle) and not kept


def latency(bundle: ModelBundle, rows: pa.Table) -> float:
    """Processor milliseconds to score 1,000 rows, the best of three, features in memory: a busy machine is not a slow
    model."""
    sample = rows.slice(0, 1000)
    if sample.num_rows == 0:
        return float("nan")
    times = []
    for _ in range(3):
        start = time.process_time()
        bundle.predict(sample)
        times.append(time.process_time() - start)
    return min(times) * 1000 * 1000 / float(sample.num_rows)


def metrics_of(spec: ModelSpec) -> list[str]:
    """What is measured, the primary metric first."""
    value = ["value"] if spec.costs else []
    names = [spec.gate.metric, "auc", "auc_by_day", "log_loss", "brier", *spec.gate.floors, *value]
    return list(dict.fromkeys(names))


class Rows:
    """Comparison rows with every model's probabilities, and what is measured on any part of them.

    Args:
        table: labelled rows with the sliced categories; days: of each row, any sortable type.
        probability: of `challenger`, `baseline` and, where there is one, `champion`, shape (rows,) each.
        threshold: of the same models' decisions.
        metrics: what is measured, the primary metric first.
    """

    def __init__(
        self,
        spec: ModelSpec,
        table: pa.Table,
        days: np.ndarray,
        probability: dict[str, np.ndarray],
        threshold: dict[str, float],
        metrics: Sequence[str],
    ) -> None:
        self.spec, self.table, self.days = spec, table, days
        self.label = label_of(table)
        self.probability, self.threshold, self.metrics = probability, threshold, metrics
        self.costs = costs_of(spec.costs) if spec.costs else None

    def _draws(self, mask: np.ndarray) -> Draws:
        return Draws(self.days[mask], self.spec.gate.resamples, self.spec.training.seed)

    def _sample(self, draws: Draws, who: str, metric: str, mask: np.ndarray) -> Sample:
        probability = self.probability[who][mask]
        return draws.metric(metric, self.label[mask], probability, self.threshold[who], self.costs)

    def _gain(self, draws: Draws, challenger: Sample, other: Sample) -> Estimate:
        gain = challenger - other
        return draws.bound(gain if better(self.metrics[0]) > 0 else -gain, self.spec.gate.confidence)

    def holdout(self, mask: np.ndarray) -> Holdout:
        """Every model in every metric on the rows of `mask`, shape (rows,)."""
        draws, primary, confidence = self._draws(mask), self.metrics[0], self.spec.gate.confidence
        samples = {who: {m: self._sample(draws, who, m, mask) for m in self.metrics} for who in self.probability}
        measured = {who: {m: draws.bound(s, confidence) for m, s in found.items()} for who, found in samples.items()}
        mine = samples["challenger"][primary]
        known = "champion" in samples
        shown = draws.days.astype(str)
        return Holdout(
            rows=int(mask.sum()),
            days=len(shown),
            first=str(shown[0]) if len(shown) else "",
            last=str(shown[-1]) if len(shown) else "",
            challenger=measured["challenger"],
            baseline=measured["baseline"],
            champion=measured.get("champion"),
            over_baseline=self._gain(draws, mine, samples["baseline"][primary]),
            over_champion=self._gain(draws, mine, samples["champion"][primary]) if known else None,
        )

    def slices(self) -> tuple[Slice, ...]:
        """The gain in each value of each sliced category that has enough rows."""
        found, metric = [], self.metrics[0]
        for column in self.spec.gate.slices:
            values = self.table[column].combine_chunks().dictionary_encode()
            code = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            for index, value in enumerate(values.dictionary.to_pylist()):
                mask = code == index
                if mask.sum() < self.spec.gate.min_slice_rows:
                    continue
                draws = self._draws(mask)
                mine = self._sample(draws, "challenger", metric, mask)
                other = self._sample(draws, "champion", metric, mask) if "champion" in self.probability else None
                found.append(
                    Slice(
                        column=column,
                        value=str(value),
                        rows=int(mask.sum()),
                        days=len(draws.days),
                        challenger=mine.value,
                        champion=other.value if other else None,
                        over_champion=self._gain(draws, mine, other) if other else None,
                    )
                )
        return tuple(sorted(found, key=lambda s: (s.column, -s.rows, s.value)))

    def calibration(self) -> Calibration:
        """Of the challenger, over bins of equal size."""
        size, probability = len(self.label), self.probability["challenger"].astype("float64")
        order = np.argsort(probability, kind="stable")
        bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
        draws = self._draws(np.ones(size, dtype=bool))
        total: Sample | None = None
        for part in bins:
            gap = np.zeros(size)
            gap[part] = probability[part] - self.label[part]
            signed = draws.mean(gap)
            share = Sample(abs(signed.value), np.abs(signed.draws))
            total = share if total is None else Sample(total.value + share.value, total.draws + share.draws)
        error = draws.bound(total or Sample(float("nan"), np.zeros(0)), self.spec.gate.confidence)
        shown = tuple(Bin(len(b), float(probability[b].mean()), float(self.label[b].mean())) for b in bins)
        return Calibration(error, shown)


def _predict(bundle: ModelBundle, rows: pa.Table) -> np.ndarray:
    return bundle.predict(rows) if rows.num_rows else np.zeros(0, dtype="float32")


def _indifferent(costs: tuple[float, float, float] | None) -> float:
    """The threshold of a true probability: acting costs as much as not acting."""
    if costs is None:
        return 0.5
    hit, miss, false_alarm = costs
    return false_alarm / (false_alarm + miss - hit)


def evaluate(
    spec: ModelSpec,
    rows: pa.Table,
    challenger: ModelBundle,
    champion: ModelBundle | None,
    champion_version: int | None,
    leak_rows: int,
    frozen: pa.Table | None = None,
    frozen_from: Mapping[str, Any] | None = None,
    obstacles: Sequence[str] = (),
    train: pa.Table | None = None,
) -> Evaluation:
    """The facts of the gate.

    Args:
        rows: the labelled rows the challenger was made from, up to the newest matured day.
        frozen: labelled rows of the frozen days; None without any.
        obstacles: why a fair comparison is impossible, known before measuring.
        train: labelled rows the challenger has seen, where `rows` holds only later ones: `as_of`, `label` and the
            baseline's feature.
    """
    unfair = list(obstacles)
    known = set(rows.column_names)
    strange = sorted(set(champion.features) - known) if champion is not None else []
    if strange:
        unfair.append(f"champion {champion_version} needs features that the spec no longer has: {strange}")
        champion = None
    compared = [challenger, *([champion] if champion is not None else [])]
    newest = max(map(trained_until, compared))
    fresh = rows.filter(pc.greater(rows["as_of"], pa.scalar(newest, pa.date32())))
    until = trained_until(challenger)
    train = rows if train is None else train
    train = train.filter(pc.less_equal(train["as_of"], pa.scalar(until, pa.date32())))
    train = train.filter(pc.invert(on_frozen_days(train, spec.gate.frozen, until + dt.timedelta(days=1))))
    everything = fresh
    if frozen is not None:
        frozen = frozen.filter(pc.less_equal(frozen["as_of"], pa.scalar(newest, pa.date32())))
        for who, bundle in (("the challenger", challenger), (f"champion {champion_version}", champion)):
            seen = [d for d in pc.unique(frozen["as_of"]).to_pylist() if bundle is not None and trained_on(bundle, d)]
            if seen:
                unfair.append(f"{who} was trained on {len(seen)} frozen day(s), such as {min(seen)}")
        everything = pa.concat_tables([frozen.select(rows.column_names), fresh])
    days = everything["as_of"].to_numpy().astype("datetime64[D]")
    models = {"challenger": challenger, **({"champion": champion} if champion is not None else {})}
    probability = {who: _predict(bundle, everything) for who, bundle in models.items()}
    threshold = {who: bundle.threshold for who, bundle in models.items()}
    measured = Rows(
        spec,
        everything,
        days,
        probability | {"baseline": baseline(spec, train, everything)},
        threshold | {"baseline": _indifferent(costs_of(spec.costs) if spec.costs else None)},
        metrics_of(spec),
    )
    is_fresh = days > np.datetime64(newest)
    return Evaluation(
        metric=spec.gate.metric,
        confidence=spec.gate.confidence,
        fresh=measured.holdout(is_fresh),
        frozen=measured.holdout(~is_fresh) if frozen is not None and frozen.num_rows else None,
        pooled=measured.holdout(np.ones(len(is_fresh), dtype=bool)),
        slices=measured.slices(),
        calibration=measured.calibration(),
        champion_version=champion_version,
        identical=champion is not None and champion.sha256 == challenger.sha256,
        obstacles=tuple(unfair),
        model_mb=len(challenger.booster) / 1e6,
        ms_per_1k=latency(challenger, everything),
        leak_rows=leak_rows,
        frozen_from=dict(frozen_from) if frozen_from else None,
    )
