"""The gate, case by case: the tie, no champion, NaN, too few rows, every reason at once."""

import math
from dataclasses import replace

import pytest

from include.evergreen.promotion.gate import Evaluation, gate
from include.evergreen.specs import Gate

RULES = Gate(metric="auc", floors={"auc": 0.6}, min_gain=0.01, min_holdout_rows=100, max_model_mb=5, max_ms_per_1k=50)
GOOD = Evaluation(
    rows=1000,
    first="2013-06-24",
    last="2013-06-30",
    challenger={"auc": 0.75},
    baseline={"auc": 0.62},
    champion={"auc": 0.70},
    champion_version=1,
    identical=False,
    model_mb=1.0,
    ms_per_1k=5.0,
    leak_rows=900,
)


def test_a_better_challenger_is_accepted_with_reasons() -> None:
    decision = gate(GOOD, RULES)
    assert decision.accepted
    assert any("beats champion 1 by 0.0500" in reason for reason in decision.reasons)


def test_the_first_model_needs_no_champion() -> None:
    assert gate(replace(GOOD, champion=None, champion_version=None), RULES).accepted


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(GOOD, challenger={"auc": 0.70}), "the champion stays"),
        (replace(GOOD, challenger={"auc": 0.71}), "the champion stays"),
        (replace(GOOD, challenger={"auc": 0.65}), "the champion stays"),
        (replace(GOOD, identical=True), "a tie keeps the champion"),
        (replace(GOOD, rows=99), "cannot decide"),
        (replace(GOOD, rows=0, challenger={}, baseline={}, champion={}), "cannot decide"),
        (replace(GOOD, leak_rows=0), "cannot decide"),
        (replace(GOOD, challenger={"auc": 0.59}, champion=None), "below 0.6"),
        (replace(GOOD, challenger={"auc": math.nan}), "nan"),
        (replace(GOOD, champion={"auc": math.nan}), "the champion stays"),
        (replace(GOOD, baseline={"auc": 0.75}), "does not beat the baseline"),
        (replace(GOOD, baseline={"auc": math.nan}), "does not beat the baseline"),
        (replace(GOOD, model_mb=5.1), "at most 5"),
        (replace(GOOD, ms_per_1k=math.nan), "at most 50"),
    ],
)
def test_a_challenger_that_fails_one_check_is_refused(facts: Evaluation, reason: str) -> None:
    decision = gate(facts, RULES)
    assert not decision.accepted
    assert any(reason in found for found in decision.reasons), decision.reasons


def test_every_failed_reason_is_given() -> None:
    bad = replace(GOOD, challenger={"auc": 0.5}, model_mb=99, ms_per_1k=999, rows=1)
    assert len(gate(bad, RULES).reasons) == 6


def test_a_lower_log_loss_is_better() -> None:
    rules = RULES.model_copy(update={"metric": "log_loss", "floors": {}})
    facts = replace(GOOD, challenger={"log_loss": 0.4}, champion={"log_loss": 0.5}, baseline={"log_loss": 0.6})
    assert gate(facts, rules).accepted
    assert not gate(replace(facts, challenger={"log_loss": 0.55}), rules).accepted
