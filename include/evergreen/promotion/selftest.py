"""The gate's self-test: does it refuse a twin and worse models, accept a better one, and how small a gain can it see?

A champion trained on all of the history is offered its identical twin, itself with shuffled labels, and itself with
half of the features; a champion trained on few days is offered one with all of the history. Every trial draws the
holdout's days anew, with replacement, as another fortnight might have brought them, and asks the gate.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.promotion.evaluate import Rows, baseline, trained_until
from include.evergreen.promotion.gate import Calibration, Evaluation, gate
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, on_frozen_days

EXPECTED = {"twin": False, "shuffled_labels": False, "half_the_features": False, "more_data": True}
POWER = 0.8


@dataclass(frozen=True)
class Trials:
    """What the gate answered to one rival.

    Attributes:
        gains: of the primary metric on the fresh days of each trial, shape (trials,); NaN for a twin.
        lows: their lower bounds.
        reasons: why it was refused, and how often.
    """

    rival: str
    accepted: int
    trials: int
    gains: np.ndarray
    lows: np.ndarray
    reasons: dict[str, int]


@dataclass(frozen=True)
class SelfTest:
    """The answers to every rival, and what they say of the gate.

    Attributes:
        false_accepts: share of trials of the twin and the worse rivals that were accepted.
        false_rejects: share of trials of the better rival that were refused.
        smallest_gain: the true gain that the gate would accept in 80% of trials on this holdout.
    """

    trials: tuple[Trials, ...]
    false_accepts: float
    false_rejects: float
    smallest_gain: float
    fresh_days: int
    frozen_days: int
    rows: int


def pairs(spec: ModelSpec, rows: pa.Table, as_of: dt.date, few_days: int) -> dict[str, tuple[ModelBundle, ModelBundle]]:
    """Rival -> (champion, challenger).

    Args:
        rows: labelled rows before `as_of`, the whole training window.
        few_days: training days of the champion that the better rival is offered to.
    """
    champion = fit(spec, rows, as_of)
    rng = np.random.default_rng(spec.training.seed)
    label = rng.permutation(rows["label"].to_numpy(zero_copy_only=False))
    shuffled = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    ranked = sorted(spec.features, key=lambda name: -champion.facts["importances"].get(name, 0.0))
    half = {name: feature for name, feature in spec.features.items() if name in ranked[1::2]}
    first = as_of - dt.timedelta(days=few_days + spec.training.validation_days + spec.training.holdout_days)
    few = rows.filter(pc.greater_equal(rows["as_of"], pa.scalar(first, pa.date32())))
    return {
        "twin": (champion, champion),
        "shuffled_labels": (champion, fit(spec, shuffled, as_of)),
        "half_the_features": (champion, fit(spec.model_copy(update={"features": half}), rows, as_of)),
        "more_data": (fit(spec, few, as_of), champion),
    }


def run(
    spec: ModelSpec,
    rows: pa.Table,
    as_of: dt.date,
    few_days: int = 7,
    trials: int = 200,
    report: Callable[[int, int], None] | None = None,
) -> SelfTest:
    """Offer every rival to the gate in `trials` seeded resamples of the holdout's days.

    Args:
        rows: labelled rows before `as_of`.
        few_days: training days of the champion that the better rival is offered to.
        report: called with (trials done, trials in all).

    Raises NotEnoughData.
    """
    offered = pairs(spec, rows, as_of, few_days)
    newest = trained_until(offered["twin"][0])
    fresh = rows.filter(pc.greater(rows["as_of"], pa.scalar(newest, pa.date32())))
    frozen = rows.filter(on_frozen_days(rows, spec.gate.frozen, newest + dt.timedelta(days=1)))
    train = rows.filter(pc.less_equal(rows["as_of"], pa.scalar(newest, pa.date32())))
    held = pa.concat_tables([frozen, fresh])
    is_fresh = np.arange(held.num_rows) >= frozen.num_rows
    days = held["as_of"].to_numpy().astype("datetime64[D]").astype("int64")
    plain = baseline(spec, train, held)
    metrics = list(dict.fromkeys([spec.gate.metric, *spec.gate.floors]))
    found, done = [], 0
    for name, (champion, rival) in offered.items():
        probability = {"challenger": rival.predict(held), "champion": champion.predict(held), "baseline": plain}
        threshold = {"challenger": rival.threshold, "champion": champion.threshold, "baseline": 0.5}
        gains, lows, reasons, accepted = [], [], dict[str, int](), 0
        for trial in range(trials):
            index, day = _drawn(days, is_fresh, np.random.default_rng([spec.training.seed, trial]))
            measured = Rows(
                spec,
                held.take(pa.array(index)),
                day,
                {who: p[index] for who, p in probability.items()},
                threshold,
                metrics,
            )
            facts = _facts(spec, measured, is_fresh[index], rival, identical=rival.sha256 == champion.sha256)
            decision = gate(facts, spec.gate)
            accepted += decision.accepted
            for reason in decision.reasons if not decision.accepted else ():
                head = re.split(r" \+?-?\d|:", reason)[0]
                reasons[head] = reasons.get(head, 0) + 1
            gain = facts.fresh.over_champion
            gains.append(gain.value if gain else math.nan)
            lows.append(gain.low if gain else math.nan)
            done += 1
            if report is not None:
                report(done, trials * len(offered))
        found.append(Trials(name, accepted, trials, np.array(gains), np.array(lows), reasons))
    return _summary(spec, tuple(found), len(np.unique(days[is_fresh])), len(np.unique(days[~is_fresh])), len(days))


def _drawn(days: np.ndarray, is_fresh: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of as many days as there are, drawn with replacement in each holdout, and the day of each row: a day
    drawn twice counts as two."""
    index, day = [], []
    for part in (False, True):
        known = np.unique(days[is_fresh == part])
        for number, chosen in enumerate(rng.choice(known, len(known)) if len(known) else ()):
            rows = np.flatnonzero((days == chosen) & (is_fresh == part))
            index.append(rows)
            day.append(np.full(len(rows), number + 10_000 * part))
    return np.concatenate(index), np.concatenate(day)


def _facts(spec: ModelSpec, measured: Rows, fresh: np.ndarray, rival: ModelBundle, identical: bool) -> Evaluation:
    calibration = measured.calibration()
    return Evaluation(
        metric=spec.gate.metric,
        confidence=spec.gate.confidence,
        fresh=measured.holdout(fresh),
        frozen=measured.holdout(~fresh) if (~fresh).any() else None,
        pooled=measured.holdout(np.ones(len(fresh), dtype=bool)),
        slices=measured.slices(),
        # shuffled days have shuffled rates: what is tested here is the comparison
        calibration=Calibration(replace(calibration.error, low=0.0), calibration.bins),
        champion_version=1,
        identical=identical,
        obstacles=(),
        model_mb=len(rival.booster) / 1e6,
        ms_per_1k=0.0,
        leak_rows=1,
    )


def _summary(spec: ModelSpec, trials: tuple[Trials, ...], fresh_days: int, frozen_days: int, rows: int) -> SelfTest:
    no = [t for t in trials if not EXPECTED[t.rival]]
    yes = [t for t in trials if EXPECTED[t.rival]]
    better = yes[0]
    reach = float(np.mean(better.gains - better.lows))
    spread = float(np.std(better.gains))
    return SelfTest(
        trials=trials,
        false_accepts=sum(t.accepted for t in no) / sum(t.trials for t in no),
        false_rejects=1 - sum(t.accepted for t in yes) / sum(t.trials for t in yes),
        smallest_gain=spec.gate.min_gain + reach + NormalDist().inv_cdf(POWER) * spread,
        fresh_days=fresh_days,
        frozen_days=frozen_days,
        rows=rows,
    )
