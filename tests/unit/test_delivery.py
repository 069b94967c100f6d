"""When a channel is told, whatever clock wrote what it knows."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any

import pytest

from include.evergreen.alerts.delivery import RETRY, Told, due, lately
from include.evergreen.health.facts import Alert

NOW = dt.datetime(2013, 6, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def alert(**changes: Any) -> Alert:
    empty: dict[str, Any] = {field.name: None for field in fields(Alert)}
    return Alert(**{**empty, "seen": 1, "opened_at": NOW, **changes})


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (Told(), "opened"),
        (Told(tried_at=NOW - RETRY / 2), None),
        (Told(tried_at=NOW + RETRY / 2), None),
        (Told(tried_at=NOW - RETRY), "opened"),
        (Told(tried_at=NOW + 365 * DAY), "opened"),
        (Told("opened", at=NOW - DAY / 2), None),
        (Told("opened", at=NOW - DAY), "reminder"),
        (Told("opened", at=NOW + RETRY / 2), None),
        (Told("opened", at=NOW + 365 * DAY), "reminder"),
    ],
    ids=range(9),
)
def test_what_a_clock_that_ran_ahead_wrote_holds_nothing_up(told: Told, said: str | None) -> None:
    assert due(alert(), told, NOW, DAY) == said


def test_lately_is_near_on_either_side() -> None:
    assert [lately(NOW + i * DAY, NOW, DAY) for i in (-1, -0.9, 0, 0.9, 1)] == [False, True, True, True, False]
