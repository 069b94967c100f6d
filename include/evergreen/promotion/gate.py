"""The gate: a pure function from measured facts to a decision. "Cannot decide" is a no."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from include.evergreen.decisions import Decision
from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.specs import Gate
from include.evergreen.training.metrics import LOWER_IS_BETTER

ROUNDING = 1e-9
"""A gain within this of `min_gain` is a tie: 0.71 - 0.70 is not more than 0.01."""


@dataclass(frozen=True)
class Holdout:
    """What was measured on rows that no compared model was trained on.

    Attributes:
        rows, days: their number.
        first, last: their first and last as-of date, ISO; empty without rows.
        challenger, baseline: metric -> estimate.
        champion: the same on the same rows; None without a champion.
        over_baseline: gain of the challenger in the primary metric, positive = better, from paired draws.
        over_champion: the same over the champion; None without one.
    """

    rows: int
    days: int
    first: str
    last: str
    challenger: dict[str, Estimate]
    baseline: dict[str, Estimate]
    champion: dict[str, Estimate] | None
    over_baseline: Estimate
    over_champion: Estimate | None


@dataclass(frozen=True)
class Slice:
    """One value of a category on the fresh and the frozen rows together, in the primary metric."""

    column: str
    value: str
    rows: int
    days: int
    challenger: float
    champion: float | None
    over_champion: Estimate | None


@dataclass(frozen=True)
class Bin:
    """Rows of similar probability: their mean, and the share of positives."""

    rows: int
    predicted: float
    happened: float


@dataclass(frozen=True)
class Calibration:
    """The mean distance of `predicted` from `happened`, weighted by rows, over ten bins of equal size."""

    error: Estimate
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Evaluation:
    """The facts of the gate.

    Attributes:
        metric, confidence: the primary metric, and how far each bound of an estimate can be trusted.
        fresh: the newest matured days, in neither model's training.
        frozen: days that no version was ever trained on, pinned by snapshot; None before there are enough.
        pooled: both together: floors, baseline, calibration and slices are asked of it.
        champion_version: None without a champion.
        identical: the challenger's bytes are the champion's.
        obstacles: why a fair comparison is impossible, one sentence each.
        model_mb: size of the stored model, MB. ms_per_1k: processor milliseconds to score 1,000 rows.
        leak_rows: entity rows on which the leak check passed.
        frozen_from: where the frozen rows come from: its days, snapshots, cut and the ledger's row.
    """

    metric: str
    confidence: float
    fresh: Holdout
    frozen: Holdout | None
    pooled: Holdout
    slices: tuple[Slice, ...]
    calibration: Calibration
    champion_version: int | None
    identical: bool
    obstacles: tuple[str, ...]
    model_mb: float
    ms_per_1k: float
    leak_rows: int
    frozen_from: dict[str, Any] | None = None


def said(estimate: Estimate, sign: bool = False) -> str:
    """`0.021 [0.014, 0.028]`."""
    value, low, high = (
        f"{x:{'+' if sign else ''}.4f}" if math.isfinite(x) else "unknown"
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def gate(facts: Evaluation, rules: Gate) -> Decision:
    """Accept the challenger, or refuse it with every failed reason. A tie keeps the champion."""
    impossible = list(facts.obstacles)
    failed: list[str] = []
    passed: list[str] = []

    def check(good: bool, yes: str, no: str) -> None:
        (passed if good else failed).append(yes if good else no)

    metric, fresh = facts.metric, facts.fresh
    for what, found, least in (
        ("rows", fresh.rows, rules.min_holdout_rows),
        ("days", fresh.days, rules.min_holdout_days),
    ):
        if found < least:
            impossible.append(
                f"expected at least {least} fresh {what} that no compared model was trained on, found {found}"
            )
    if facts.leak_rows <= 0:
        impossible.append("the leak check compared no row")
    if not impossible:
        passed.append(f"{fresh.rows:,} fresh rows ({fresh.first} to {fresh.last}); no leak in {facts.leak_rows:,} rows")

    for name, floor in sorted(rules.floors.items()):
        seen = facts.pooled.challenger.get(name)
        value = seen.value if seen else math.nan
        check(
            value >= floor, f"{name} {value:.4f} reaches the floor {floor:g}", f"{name} {value:.4f} is below {floor:g}"
        )
    over, rows = facts.pooled.over_baseline, f"{facts.pooled.rows:,} rows"
    if facts.champion_version is None:  # the baseline takes the champion's place
        check(
            over.low > 0 and over.value > 0,
            f"there is no champion yet; {metric} beats the baseline by {said(over)} on {rows}",
            f"{metric} gain over the baseline is {said(over)} on {rows}, expected more than 0 "
            f"with confidence {facts.confidence:g}",
        )
    else:
        check(
            over.value > 0,
            f"{metric} is {said(over)} above the baseline on {rows}",
            f"{metric} is {said(-over)} below the baseline on {rows}",
        )
    if facts.identical:
        failed.append("identical to the champion: a tie keeps the champion")
    elif facts.champion_version is not None:
        _against_champion(facts, rules, check, impossible)
    error = facts.calibration.error
    check(
        error.low <= rules.max_calibration_error,
        f"calibration error {said(error)}",
        f"calibration error {said(error)} is beyond {rules.max_calibration_error:g}",
    )
    check(
        facts.model_mb <= rules.max_model_mb,
        f"the model is {facts.model_mb:.2f} MB",
        f"the model is {facts.model_mb:.2f} MB, at most {rules.max_model_mb:g} allowed",
    )
    check(
        facts.ms_per_1k <= rules.max_ms_per_1k,
        f"scores 1,000 rows in {facts.ms_per_1k:.1f} ms",
        f"scores 1,000 rows in {facts.ms_per_1k:.1f} ms, at most {rules.max_ms_per_1k:g} allowed",
    )
    evidence = {**asdict(facts), "rules": rules.model_dump(mode="json")}
    reasons = [*(f"cannot decide: {reason}" for reason in impossible), *failed]
    return Decision(not reasons, tuple(reasons or passed), evidence, undecided=bool(impossible))


def _against_champion(facts: Evaluation, rules: Gate, check: Any, impossible: list[str]) -> None:
    """It must gain where it is fresh, and must not lose on the frozen days nor in a slice."""
    who, metric = f"champion {facts.champion_version}", facts.metric
    gain = facts.fresh.over_champion
    if gain is None or not math.isfinite(gain.value):
        impossible.append(f"{metric} of the challenger or of {who} is undefined on the fresh rows")
        return
    check(
        gain.low - rules.min_gain > ROUNDING,
        f"{metric} beats {who} by {said(gain)} on the same {facts.fresh.rows:,} fresh rows",
        f"{metric} gain over {who} is {said(gain)} on the same {facts.fresh.rows:,} fresh rows, "
        f"expected more than {rules.min_gain:g} with confidence {facts.confidence:g}: the champion stays",
    )
    if facts.frozen is not None and facts.frozen.over_champion is not None:
        kept = facts.frozen.over_champion
        if math.isfinite(kept.value) and math.isfinite(kept.high):
            check(
                kept.high >= -rules.max_frozen_drop,
                f"{metric} {said(kept, sign=True)} over {who} on {facts.frozen.rows:,} frozen rows",
                f"{metric} falls by {said(-kept)} on {facts.frozen.rows:,} frozen rows, "
                f"at most {rules.max_frozen_drop:g} allowed",
            )
        else:
            impossible.append(
                f"the {metric} gain over {who} is {said(kept)} on {facts.frozen.rows:,} frozen rows: undefined"
            )
    gains = {f"{s.column} = {s.value}": s.over_champion for s in facts.slices}
    unknown = [name for name, gain in gains.items() if gain and not math.isfinite(gain.value)]
    worse = [s for s in facts.slices if s.over_champion and s.over_champion.high < -rules.max_slice_drop]
    check(
        not worse,
        f"no slice of {len(facts.slices)} is worse"
        + (f"; {metric} is undefined in {', '.join(unknown)}" if unknown else ""),
        "; ".join(
            f"{s.column} = {s.value}: {metric} falls by {said(-s.over_champion)} on {s.rows:,} rows, "
            f"at most {rules.max_slice_drop:g} allowed"
            for s in worse
            if s.over_champion
        ),
    )


def better(metric: str) -> int:
    """1 where more of a metric is better, -1 where less is."""
    return -1 if metric in LOWER_IS_BETTER else 1
