"""Facts as text and shapes."""

from __future__ import annotations

import datetime as dt
import math
import re

import pytest

from include.evergreen.drift.verdict import GRAVITY
from include.evergreen.health.facts import UNKNOWN, Band, Mark, Point
from include.evergreen.web import draw
from include.evergreen.web.render import environment

DAY = dt.date(2013, 6, 17)


def points(*values: float | None) -> list[Point]:
    return [Point(DAY + dt.timedelta(days=at), 1, value, None, None, None, 1.0, 10) for at, value in enumerate(values)]


def test_every_verdict_has_words_and_a_shape_of_its_own() -> None:
    looks = [draw.look(verdict) for verdict in (*GRAVITY, UNKNOWN)]
    assert len({look.words for look in looks}) == len(looks)
    assert len({look.shape for look in looks}) == len(looks)
    sprite = environment().get_template("sprite.html").render()
    assert all(f'id="s-{look.shape}"' in sprite for look in looks)
    assert draw.look("heat_death").words == "Heat death"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (draw.day(DAY), "17 Jun 2013"),
        (draw.day(None), draw.DASH),
        (draw.moment(dt.datetime(2013, 6, 17, 4, 5, tzinfo=dt.UTC)), "17 Jun 2013, 04:05 UTC"),
        (draw.number(0.7314), "0.731"),
        (draw.number(math.nan), draw.DASH),
        (draw.signed(-0.004), "\u22120.004"),
        (draw.signed(0.021), "+0.021"),
        (draw.percent(0.256), "25.6 %"),
        (draw.count(1234567), "1\u202f234\u202f567"),
        (draw.plural(1, "day"), "1\u00a0day"),
        (draw.plural(2, "day"), "2\u00a0days"),
    ],
)
def test_text(said: str, expected: str) -> None:
    assert said == expected


def test_a_sparkline_leaves_gaps_and_says_its_numbers() -> None:
    drawn = draw.sparkline(points(0.7, None, 0.72, 0.6), Band(0.7, 0.68, 0.72))
    path = re.search(r'class="line" d="([^"]+)"', drawn)
    assert path is not None
    assert path.group(1).count("M") == 2
    assert "AUC of 3 matured dates, 0.700 to 0.600; reference 0.680 to 0.720" in drawn
    assert 'class="last below"' in drawn


def test_a_sparkline_of_one_value_is_finite() -> None:
    drawn = draw.sparkline(points(0.7), Band())
    assert "nan" not in drawn
    assert "band" not in drawn
    assert draw.sparkline(points(None), Band(0.7, 0.6, 0.8)) == '<span class="none">no matured labels</span>'


def test_heat_levels_rise_with_the_score_and_a_breach_is_told_apart() -> None:
    assert draw.heat_level(None) == draw.heat_level(math.inf) == "h-none"
    levels = [draw.heat_level(score) for score in (0.0, 0.3, 0.6, 0.8, 1.0, 1.6, 9.0)]
    assert levels == [f"h{level}" for level in range(7)]


def test_the_timeline_has_every_date_once() -> None:
    marks = [Mark(DAY + dt.timedelta(days=5), "promotion", "version 2", "/evergreen/cards/a/2")]
    found = draw.timeline(points(0.7, 0.71), marks, {DAY: "ok"}, Band(0.7, 0.6, 0.8), {DAY: 1.2})
    assert found["days"] == ["2013-06-17", "2013-06-18", "2013-06-22"]
    assert found["auc"] == [0.7, 0.71, None]
    assert found["drift"] == [1.2, None, None]
    assert found["verdicts"] == ["OK", None, None]
    assert found["band"] == [0.6, 0.7, 0.8]


def test_the_worst_column_of_each_date() -> None:
    dates = [DAY, DAY + dt.timedelta(days=1)]
    assert draw.worst(dates, {"a": (0.2, None), "b": (0.4, None)}) == {dates[0]: 0.4, dates[1]: None}
