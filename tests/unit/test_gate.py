"""The gate, case by case: the tie, no champion, NaN, too few rows, every reason at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.promotion.gate import Bin, Calibration, Evaluation, Holdout, Slice, better, gate, said
from include.evergreen.specs import Gate

RULES = Gate(
    metric="auc",
    floors={"auc": 0.6},
    min_gain=0.01,
    min_holdout_rows=100,
    min_holdout_days=5,
    max_frozen_drop=0.02,
    max_slice_drop=0.03,
    max_calibration_error=0.1,
    max_model_mb=5,
    max_ms_per_1k=50,
)
UNKNOWN = Estimate(math.nan, -math.inf, math.inf)


def about(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half)


def holdout(rows: int = 1000, days: int = 7, **changes: Any) -> Holdout:
    return replace(
        Holdout(
            rows=rows,
            days=days,
            first="2013-06-24",
            last="2013-06-30",
            challenger={"auc": about(0.75)},
            baseline={"auc": about(0.62)},
            champion={"auc": about(0.70)},
            over_baseline=about(0.13),
            over_champion=about(0.05),
        ),
        **changes,
    )


def part(value: str, gain: Estimate | None) -> Slice:
    return Slice("airport", value, 400, 7, 0.75, 0.70, gain)


GOOD = Evaluation(
    metric="auc",
    confidence=0.95,
    fresh=holdout(),
    frozen=holdout(900, 9, over_champion=about(0.001)),
    pooled=holdout(1900, 16),
    slices=(part("JFK", about(0.04)), part("LGA", about(-0.02))),
    calibration=Calibration(about(0.02, 0.005), (Bin(1900, 0.2, 0.21),)),
    champion_version=1,
    identical=False,
    obstacles=(),
    model_mb=1.0,
    ms_per_1k=5.0,
    leak_rows=900,
)
NONE_YET = replace(
    GOOD,
    champion_version=None,
    fresh=holdout(champion=None, over_champion=None),
    frozen=holdout(900, 9, champion=None, over_champion=None),
    pooled=holdout(1900, 16, champion=None, over_champion=None),
    slices=(part("JFK", None),),
)


def fresh(**changes: Any) -> Evaluation:
    return replace(GOOD, fresh=holdout(**changes))


def frozen(gain: Estimate) -> Evaluation:
    return replace(GOOD, frozen=holdout(900, 9, over_champion=gain))


def pooled(**changes: Any) -> Evaluation:
    return replace(GOOD, pooled=holdout(1900, 16, **changes))


def slices(*parts: Slice) -> Evaluation:
    return replace(GOOD, slices=parts)


def calibrated(error: Estimate) -> Evaluation:
    return replace(GOOD, calibration=Calibration(error, ()))


ACCEPTED = {
    "a gain": GOOD,
    "a gain just above": fresh(over_champion=Estimate(0.05, 0.0101, 0.09)),
    "a sure gain, however small its value": fresh(over_champion=Estimate(0.0103, 0.0102, 0.0104)),
    "no champion": NONE_YET,
    "no frozen rows yet": replace(GOOD, frozen=None),
    "a frozen loss within its interval": frozen(Estimate(-0.03, -0.07, -0.0199)),
    "a frozen loss that is allowed": frozen(Estimate(-0.015, -0.019, -0.011)),
    "a slice worse within its interval": slices(part("JFK", Estimate(-0.2, -0.4, -0.029))),
    "a slice that says nothing": slices(part("JFK", UNKNOWN)),
    "no slices": slices(),
    "calibration that may be good": calibrated(Estimate(0.15, 0.1, 0.2)),
    "at every limit": replace(GOOD, model_mb=5.0, ms_per_1k=50.0, fresh=holdout(100, 5)),
    "at the floor": pooled(challenger={"auc": about(0.6)}),
}
REFUSED = {
    "a tie": (fresh(over_champion=Estimate(0.0, 0.0, 0.0)), "champion 1", "the champion stays"),
    "a twin": (replace(GOOD, identical=True), "identical to the champion", "a tie keeps the champion"),
    "a gain just below": (fresh(over_champion=Estimate(0.05, 0.0099, 0.09)), "more than 0.01", "the champion stays"),
    "exactly the least gain": (fresh(over_champion=Estimate(0.05, 0.71 - 0.70, 0.09)), "the champion stays"),
    "a large gain that is unsure": (fresh(over_champion=Estimate(0.2, -0.01, 0.4)), "the champion stays"),
    "a loss": (fresh(over_champion=about(-0.05)), "the champion stays"),
    "a gain without bounds": (fresh(over_champion=Estimate(0.2, -math.inf, math.inf)), "unknown", "champion stays"),
    "a sure loss on frozen days": (frozen(Estimate(-0.06, -0.1, -0.021)), "frozen rows", "0.0600", "at most 0.02"),
    "a slice": (
        slices(part("JFK", about(0.04)), part("LGA", Estimate(-0.08, -0.12, -0.031))),
        *("airport = LGA", "0.0800", "400 rows", "at most 0.03"),
    ),
    "two slices": (
        slices(part("JFK", about(-0.2)), part("LGA", about(-0.1)), part("EWR", about(0.1))),
        *("airport = JFK", "airport = LGA"),
    ),
    "below the floor": (pooled(challenger={"auc": about(0.59)}), "auc 0.5900 is below 0.6"),
    "a floor on NaN": (pooled(challenger={"auc": UNKNOWN}), "auc nan is below 0.6"),
    "a floor on what was not measured": (pooled(challenger={}), "auc nan is below 0.6"),
    "below the baseline": (pooled(over_baseline=about(-0.02)), "below the baseline"),
    "as good as the baseline": (pooled(over_baseline=about(0.0)), "the baseline"),
    "a baseline that cannot be measured": (pooled(over_baseline=UNKNOWN), "the baseline"),
    "bad calibration": (calibrated(Estimate(0.15, 0.101, 0.2)), "calibration error 0.1500", "beyond 0.1"),
    "too large": (replace(GOOD, model_mb=5.1), "5.10 MB", "at most 5"),
    "too slow": (replace(GOOD, ms_per_1k=50.1), "50.1 ms", "at most 50"),
    "a time that was not measured": (replace(GOOD, ms_per_1k=math.nan), "at most 50"),
    "the first one, unsure against the baseline": (
        replace(NONE_YET, pooled=holdout(over_baseline=Estimate(0.05, -0.001, 0.1))),
        "over the baseline",
    ),
    "the first one, without bounds": (
        replace(NONE_YET, pooled=holdout(over_baseline=Estimate(0.05, -math.inf, math.inf))),
        "over the baseline",
    ),
}
UNDECIDED = {
    "too few rows": (fresh(rows=99), "at least 100 fresh rows", "found 99"),
    "too few days": (fresh(days=4), "at least 5 fresh days", "found 4"),
    "no rows": (
        replace(
            GOOD,
            fresh=Holdout(0, 0, "", "", {}, {}, {}, UNKNOWN, UNKNOWN),
            calibration=Calibration(UNKNOWN, ()),
        ),
        "found 0",
    ),
    "an obstacle": (replace(GOOD, obstacles=("the data of 2013-06-25 is broken",)), "the data of 2013-06-25 is broken"),
    "two obstacles": (replace(GOOD, obstacles=("one", "two")), "one", "two"),
    "an obstacle to the first one": (replace(NONE_YET, obstacles=("one",)), "one"),
    "an obstacle to a twin": (replace(GOOD, identical=True, obstacles=("one",)), "one"),
    "no leak check": (replace(GOOD, leak_rows=0), "leak check"),
    "frozen rows that say nothing": (frozen(UNKNOWN), "frozen rows", "undefined"),
    "frozen rows without bounds": (frozen(Estimate(0.01, -math.inf, math.inf)), "frozen rows", "undefined"),
    "a NaN gain": (fresh(over_champion=UNKNOWN), "undefined"),
    "an infinite gain": (fresh(over_champion=Estimate(math.inf, math.inf, math.inf)), "undefined"),
    "a champion that could not be measured": (fresh(champion=None, over_champion=None), "champion 1", "undefined"),
}


@pytest.mark.parametrize("facts", ACCEPTED.values(), ids=ACCEPTED)
def test_it_accepts(facts: Evaluation) -> None:
    decision = gate(facts, RULES)
    assert (decision.outcome, decision.accepted) == ("accepted", True), decision.reasons


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_it_refuses_and_says_why(case: Any) -> None:
    facts, *said_ = case
    decision = gate(facts, RULES)
    assert (decision.outcome, decision.accepted) == ("refused", False)
    (reason,) = decision.reasons
    assert [text for text in said_ if text not in reason] == [], reason


@pytest.mark.parametrize("case", UNDECIDED.values(), ids=UNDECIDED)
def test_it_cannot_decide_and_says_why(case: Any) -> None:
    facts, *said_ = case
    decision = gate(facts, RULES)
    assert (decision.outcome, decision.accepted) == ("cannot_decide", False)
    told = "; ".join(reason for reason in decision.reasons if reason.startswith("cannot decide: "))
    assert [text for text in said_ if text not in told] == [], decision.reasons


def test_only_a_bad_slice_is_named() -> None:
    (reason,) = gate(slices(part("JFK", about(0.04)), part("LGA", about(-0.2))), RULES).reasons
    assert "JFK" not in reason


def test_a_yes_says_what_was_found() -> None:
    told = "\n".join(gate(GOOD, RULES).reasons)
    for text in ("1,000 fresh rows", "champion 1", "0.0500 [0.0400, 0.0600]", "frozen", "calibration", "MB", "ms"):
        assert text in told


def test_every_failed_reason_is_given() -> None:
    bad = replace(
        GOOD,
        fresh=holdout(rows=1, days=1, over_champion=about(-0.3)),
        frozen=holdout(over_champion=about(-0.3)),
        pooled=holdout(challenger={"auc": about(0.5)}, over_baseline=about(-0.1)),
        slices=(part("JFK", about(-0.3)),),
        calibration=Calibration(about(0.3), ()),
        obstacles=("the champion saw them",),
        leak_rows=0,
        model_mb=99,
        ms_per_1k=999,
    )
    decision = gate(bad, RULES)
    assert decision.outcome == "cannot_decide"
    expected = ["champion saw", "fresh rows", "fresh days", "leak check", "below 0.6", "baseline", "champion stays"]
    expected += ["frozen rows", "airport = JFK", "calibration", "MB", "999.0 ms"]
    told = list(decision.reasons)
    assert len(told) == len(expected), told
    assert [text for text, reason in zip(expected, told, strict=True) if text not in reason] == [], told


def test_a_yes_names_the_slices_that_could_not_be_measured() -> None:
    told = gate(slices(part("JFK", UNKNOWN), part("LGA", about(0.1))), RULES).reasons
    assert "no slice of 2 is worse; auc is undefined in airport = JFK" in told


def test_a_no_gives_no_reason_for_a_yes() -> None:
    assert len(gate(replace(GOOD, model_mb=99), RULES).reasons) == 1


def test_the_evidence_holds_every_number_and_the_rules() -> None:
    evidence = gate(GOOD, RULES).evidence
    assert evidence["fresh"]["over_champion"] == {"value": 0.05, "low": 0.04, "high": pytest.approx(0.06)}
    assert evidence["slices"][1]["value"] == "LGA"
    assert evidence["rules"] == RULES.model_dump(mode="json")
    json.dumps(evidence)


def test_lower_is_better_for_a_loss() -> None:
    assert [better(name) for name in ("auc", "auc_by_day", "average_precision", "value")] == [1] * 4
    assert [better(name) for name in ("log_loss", "brier")] == [-1] * 2


def test_an_estimate_is_said_in_short() -> None:
    assert said(Estimate(0.02104, 0.014, 0.028)) == "0.0210 [0.0140, 0.0280]"
    assert said(Estimate(0.02, -0.01, 0.05), sign=True) == "+0.0200 [-0.0100, +0.0500]"
    assert said(UNKNOWN) == "unknown [unknown, unknown]"
