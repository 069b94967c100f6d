"""What holds for any history, any order of arrival and any policy."""

from __future__ import annotations

import datetime as dt
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from include.evergreen.drift.policy import BREACHES, Window, retrain
from include.evergreen.drift.verdict import GRAVITY
from include.evergreen.specs import Retrain

DAYS = st.integers(0, 30).map(lambda n: dt.date(2013, 12, 1) + dt.timedelta(days=n))
HISTORY = st.dictionaries(DAYS, st.sampled_from(GRAVITY), max_size=31).map(
    lambda verdicts: [Window(day, verdicts[day]) for day in sorted(verdicts)]
)
ASKED = st.sets(DAYS, max_size=4)


@st.composite
def policies(draw: st.DrawFn) -> Retrain:
    windows = draw(st.integers(1, 5))
    return Retrain(windows=windows, breaches=draw(st.integers(1, windows)), cooldown_days=draw(st.integers(0, 10)))


@given(HISTORY, ASKED, DAYS, policies())
def test_yes_only_on_a_breach_of_that_date_with_enough_others(
    history: list[Window], asked: set[dt.date], as_of: dt.date, policy: Retrain
) -> None:
    decision = retrain(history, asked, as_of, policy)
    kinds = {window.as_of: window.kind for window in history}
    last = [kinds[day] for day in sorted(kinds) if day <= as_of][-policy.windows :]
    expected = (
        kinds.get(as_of) in BREACHES
        and sum(kind in BREACHES for kind in last) >= policy.breaches
        and as_of not in asked
        and all(abs((day - as_of).days) >= policy.cooldown_days for day in asked)
    )
    assert decision.accepted is expected
    if kinds.get(as_of) in ("broken_data", "ok", None):
        assert not decision.accepted


@given(HISTORY, ASKED, DAYS, policies(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    history: list[Window], asked: set[dt.date], as_of: dt.date, policy: Retrain, rng: random.Random
) -> None:
    shuffled = rng.sample(history, len(history))
    requests = rng.sample(sorted(asked), len(asked))
    assert retrain(shuffled, requests, as_of, policy) == retrain(history, sorted(asked), as_of, policy)


@given(HISTORY, ASKED, DAYS, policies(), HISTORY)
def test_later_verdicts_do_not_matter(
    history: list[Window], asked: set[dt.date], as_of: dt.date, policy: Retrain, others: list[Window]
) -> None:
    known = [window for window in history if window.as_of <= as_of]
    later = [window for window in others if window.as_of > as_of]
    assert retrain([*known, *later], asked, as_of, policy) == retrain(known, asked, as_of, policy)


@given(HISTORY, policies(), st.randoms(use_true_random=False))
def test_replayed_in_any_order_no_two_requests_fall_within_the_cooldown(
    history: list[Window], policy: Retrain, rng: random.Random
) -> None:
    arrived: list[Window] = []
    asked: list[dt.date] = []
    for window in rng.sample(history, len(history)):
        arrived.append(window)
        for _ in range(2):
            if retrain(arrived, asked, window.as_of, policy).accepted:
                asked.append(window.as_of)
    asked.sort()
    assert all((b - a).days >= max(policy.cooldown_days, 1) for a, b in itertools.pairwise(asked))
