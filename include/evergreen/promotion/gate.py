"""The gate: a pure function from measured facts to a decision. "Cannot decide" is a no."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from include.evergreen.decisions import Decision
from include.evergreen.specs import Gate
from include.evergreen.training.metrics import gain

ROUNDING = 1e-9
"""A gain within this of `min_gain` is a tie: 0.71 - 0.70 is not more than 0.01."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the rows that neither model was trained on.

    Attributes:
        rows: number of comparison rows.
        first, last: their as-of dates, ISO; empty without rows.
        challenger, baseline: metric -> value on those rows.
        champion: the same for the champion, on the same rows; None without a champion.
        champion_version: its version.
        identical: the challenger's bytes are the champion's.
        model_mb: size of the stored model, MB.
        ms_per_1k: scoring time, milliseconds per 1,000 rows.
        leak_rows: entity rows on which the leak check passed.
    """

    rows: int
    first: str
    last: str
    challenger: dict[str, float]
    baseline: dict[str, float]
    champion: dict[str, float] | None
    champion_version: int | None
    identical: bool
    model_mb: float
    ms_per_1k: float
    leak_rows: int


def gate(facts: Evaluation, rules: Gate) -> Decision:
    """Accept the challenger, or refuse it with every failed reason.

    A tie keeps the champion. Too few rows, or a metric that is not a number, is a refusal.
    """
    failed: list[str] = []
    passed: list[str] = []

    def check(good: bool, yes: str, no: str) -> None:
        (passed if good else failed).append(yes if good else no)

    metric = rules.metric
    value = facts.challenger.get(metric, math.nan)
    check(
        facts.rows >= rules.min_holdout_rows,
        f"{facts.rows} comparison rows ({facts.first} to {facts.last})",
        f"cannot decide: expected at least {rules.min_holdout_rows} comparison rows, found {facts.rows}",
    )
    check(facts.leak_rows > 0, f"no leak in {facts.leak_rows} rows", "cannot decide: the leak check compared no row")
    for name, floor in sorted(rules.floors.items()):
        found = facts.challenger.get(name, math.nan)
        check(found >= floor, f"{name} {found:.4f} reaches the floor {floor}", f"{name} {found:.4f} is below {floor}")
    over_baseline = gain(metric, value, facts.baseline.get(metric, math.nan))
    check(
        over_baseline > 0,
        f"{metric} beats the baseline by {over_baseline:.4f}",
        f"{metric} {value:.4f} does not beat the baseline's {facts.baseline.get(metric, math.nan):.4f}",
    )
    if facts.champion is None:
        passed.append("there is no champion yet")
    else:
        over_champion = gain(metric, value, facts.champion.get(metric, math.nan))
        check(
            over_champion - rules.min_gain > ROUNDING and not facts.identical,
            f"{metric} {value:.4f} beats champion {facts.champion_version} by {over_champion:.4f} on the same rows",
            "identical to the champion: a tie keeps the champion"
            if facts.identical
            else f"{metric} gain over champion {facts.champion_version} is {over_champion:.4f} on the same rows, "
            f"expected more than {rules.min_gain}: the champion stays",
        )
    check(
        facts.model_mb <= rules.max_model_mb,
        f"{facts.model_mb:.2f} MB",
        f"model is {facts.model_mb:.2f} MB, at most {rules.max_model_mb} allowed",
    )
    check(
        facts.ms_per_1k <= rules.max_ms_per_1k,
        f"{facts.ms_per_1k:.1f} ms per 1,000 rows",
        f"scoring takes {facts.ms_per_1k:.1f} ms per 1,000 rows, at most {rules.max_ms_per_1k} allowed",
    )
    return Decision(not failed, tuple(failed or passed), {**asdict(facts), "rules": rules.model_dump(mode="json")})
