"""The habits of a world with known faults: what fits is left alone, what does not is found on the day and named."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.drift.profile import (
    MAX_USUAL,
    MAX_USUAL_EARLY,
    MIN_DAYS,
    SEASONAL_DAYS,
    SUPPORT_DAYS,
    UNITS,
    Profile,
    learn,
    misfits,
)
from include.evergreen.drift.verdict import Misfit
from include.evergreen.specs import ModelSpec

FIRST = dt.date(2013, 1, 1)
LEARNED, UNTIL, PER_DAY = 60, 90, 50
SEEDS = range(8)
LIMIT = 0.4
TWINS = ("temp", "dewp", "wetb")


def spec(**features: Any) -> ModelSpec:
    names: dict[str, Any] = {name: {} for name in ("miles", *TWINS, "free", "flat")}
    return ModelSpec.model_validate(
        {
            "name": "delay",
            "description": "d",
            "owner": "o",
            "source": "s",
            "start_date": FIRST,
            "entity": {"table": "t", "key": ["id"]},
            "label": {"table": "t", "expression": "true"},
            "features": {**names, "carrier": {"type": "category"}, **features},
            "sql": "select 1",
        }
    )


@functools.cache
def world(seed: int = 1, days: int = UNTIL) -> pa.Table:
    """`miles` on a lattice, the twins moved by the day's weather, `free` by nothing, `flat` not."""
    random = np.random.default_rng(seed)
    count = days * PER_DAY
    day = np.repeat(np.arange(days), PER_DAY)
    routes = np.unique(np.random.default_rng(0).gamma(3, 350, 80).round() + 100)
    weather = random.normal(0, 1, days)[day]
    return pa.table(
        {
            "as_of": pa.array(np.datetime64(FIRST) + day, pa.date32()),
            "miles": random.choice(routes, count),
            "temp": 55 + 14 * weather + random.normal(0, 2, count),
            "dewp": 40 + 12 * weather + random.normal(0, 2, count),
            "wetb": 47 + 13 * weather + random.normal(0, 2, count),
            "free": random.normal(0, 1, days)[day] + random.normal(0, 1, count),
            "flat": np.full(count, 3.0),
            "carrier": random.choice(["AA", "UA"], count),
        }
    )


def between(rows: pa.Table, first: int, until: int) -> pa.Table:
    return rows.slice(first * PER_DAY, (until - first) * PER_DAY)


def date(day: int) -> dt.date:
    return FIRST + dt.timedelta(days=day)


@functools.cache
def profile(seed: int = 1) -> Profile:
    return learn(between(world(seed), 0, LEARNED), spec())


def changed(rows: pa.Table, day: int, name: str, make: Callable[[np.ndarray], Any], days: int = 1) -> pa.Table:
    """One column changed on `day` and the days before it, `days` in all."""
    values = rows[name].to_numpy().astype("float64")
    first, until = (day - days + 1) * PER_DAY, (day + 1) * PER_DAY
    values[first:until] = make(values[first:until])
    at = rows.column_names.index(name)
    return rows.set_column(at, name, pa.array(values, pa.float64(), from_pandas=False))


def shift(name: str, by: float = 0.5, more: float = 0.0) -> Callable[[np.ndarray], Any]:
    """By standard deviations of the column, and a little more."""
    step = by * profile().std[name] + more
    return lambda values: values + step


def nulls(rows: pa.Table, day: int, name: str, days: int = 1) -> pa.Table:
    values = rows[name].to_pylist()
    first, until = (day - days + 1) * PER_DAY, (day + 1) * PER_DAY
    values[first:until] = [None] * (until - first)
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.float64()))


def found(rows: pa.Table, day: int, learned: Profile | None = None, window: int = 7) -> dict[str, Misfit]:
    """As monitoring asks: the last days up to the as-of date."""
    return misfits(learned or profile(), between(rows, day + 1 - window, day + 1), date(day), LIMIT)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_lattice_and_the_twins_are_watched_and_the_free_column_is_not(seed: int) -> None:
    learned = profile(seed)
    assert list(learned.support) == ["miles"]
    assert sorted(learned.weights) == sorted(TWINS)
    assert set(learned.columns) == {"miles", *TWINS, "free"}, "neither constant nor a category"


@pytest.mark.parametrize("seed", SEEDS)
def test_thirty_days_of_the_same_process_fit(seed: int) -> None:
    assert [found(world(seed), day, profile(seed)) for day in range(LEARNED, UNTIL)] == [{}] * 30


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_half_a_standard_deviation_in_one_twin_is_found_on_the_day(seed: int, name: str, sign: int) -> None:
    step = sign * 0.5 * profile(seed).std[name]
    for day in (63, 71, 88):
        seen = found(changed(world(seed), day, name, lambda v: v + step), day, profile(seed))
        assert list(seen) == [name]
        assert (seen[name].kind, seen[name].limit) == ("fit", LIMIT)
        assert seen[name].found * sign >= LIMIT


def test_of_two_twins_alone_both_are_named() -> None:
    """Each contradicts the other; which of them is wrong, their means cannot say."""
    pair = learn(between(world(), 0, LEARNED), spec(wetb={"drift": None}))
    rows = changed(world(), 70, "temp", lambda v: v + pair.std["temp"])
    assert found(rows, 70, pair).keys() == {"temp", "dewp"}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", SEEDS)
def test_half_a_standard_deviation_on_the_lattice_is_found_on_its_second_day(seed: int, sign: int) -> None:
    """One odd day is a third of the last three, and half of them have to be unknown; alone in its window it is all."""
    step = sign * 0.5 * profile(seed).std["miles"] + 0.25
    for day in (63, 71, 88):
        one = changed(world(seed), day, "miles", lambda v: v + step)
        two = changed(world(seed), day, "miles", lambda v: v + step, days=2)
        assert found(one, day, profile(seed)) == {}
        assert found(two, day, profile(seed)) == {"miles": Misfit("support", 2 / 3, 0.5)}
        assert found(one, day, profile(seed), window=1) == {"miles": Misfit("support", 1.0, 0.5)}


def test_all_twins_together_are_weather() -> None:
    for day in range(LEARNED, UNTIL, 5):
        rows = world()
        for name in TWINS:
            rows = changed(rows, day, name, shift(name))
        assert found(rows, day) == {}


@pytest.mark.parametrize(
    ("name", "unit", "days"),
    [
        ("miles", "miles to kilometres", 2),
        ("miles", "nautical miles to kilometres", 2),
        ("temp", "Fahrenheit to Celsius", 1),
        ("dewp", "Fahrenheit to Celsius", 1),
        ("temp", "inches to millimetres", 1),
    ],
)
def test_a_change_of_unit_is_named(name: str, unit: str, days: int) -> None:
    """Also on a day that is colder or warmer than any average."""
    factor, offset = UNITS[unit]
    for day in range(LEARNED, UNTIL, 4):
        rows = changed(world(), day, name, lambda v: v * factor + offset, days)
        worst, misfit = next(iter(found(rows, day).items()))
        assert (worst, misfit.hint) == (name, f"as if changed from {unit}")


def test_a_shift_is_no_change_of_unit() -> None:
    for day in range(LEARNED, UNTIL, 4):
        for by in (0.5, -0.5):
            assert found(changed(world(), day, "miles", shift("miles", by, 0.25), days=2), day)["miles"].hint == ""
            assert found(changed(world(), day, "temp", shift("temp", by)), day)["temp"].hint == ""


def test_the_worst_comes_first_and_a_named_unit_before_it() -> None:
    rows = changed(world(), 70, "temp", shift("temp", 5))
    seen = found(changed(rows, 70, "miles", lambda v: v + 0.5, days=2), 70)
    severities = [misfit.severity for misfit in seen.values()]
    assert (next(iter(seen)), next(reversed(seen))) == ("temp", "miles")
    assert severities == sorted(severities, reverse=True)
    assert next(iter(found(changed(rows, 70, "miles", lambda v: v * 1.852, days=2), 70))) == "miles"


def test_the_limit_is_the_caller_s() -> None:
    rows = changed(world(), 70, "temp", shift("temp", 1))
    window = between(rows, 64, 71)
    assert "temp" in misfits(profile(), window, date(70), 0.5)
    assert misfits(profile(), window, date(70), 5.0) == {}


def test_below_the_least_days_nothing_is_watched() -> None:
    short = learn(between(world(), 0, MIN_DAYS - 1), spec())
    assert (short.support, short.weights) == ({}, {})
    assert learn(between(world(), 0, MIN_DAYS), spec()).support
    empty = learn(between(world(), 0, 0), spec())
    assert (empty.columns, empty.support) == ((), {})
    assert found(changed(world(), 70, "temp", lambda v: v * 9), 70, empty) == {}


def test_days_without_a_value_are_no_habit() -> None:
    """A column that came late is judged by its own days, and not before it has had enough of them."""
    rows, missing = world(days=120), LEARNED - MIN_DAYS + 1
    for name in ("miles", "temp"):
        late = nulls(rows, missing - 1, name, missing)
        few, enough = (learn(between(late, 0, until), spec()) for until in (LEARNED, UNTIL))
        assert name not in {*few.support, *few.weights}
        assert name in {*enough.support, *enough.weights}
        assert [found(rows, day, enough) for day in range(UNTIL, 120)] == [{}] * 30


@pytest.mark.parametrize("name", ["miles", "temp", "free"])
def test_a_column_of_nulls_is_no_misfit_and_blames_no_other(name: str) -> None:
    for day in range(LEARNED, UNTIL, 3):
        assert found(nulls(world(), day, name), day) == {}
        assert found(nulls(world(), day, name, days=7), day) == {}


def test_a_fault_shows_beside_a_column_of_nulls() -> None:
    rows = nulls(changed(world(), 70, "temp", lambda v: v * 25), 70, "dewp")
    assert next(iter(found(rows, 70))) == "temp"
    rows = nulls(changed(world(), 70, "miles", lambda v: v + 0.5, days=2), 70, "temp")
    assert list(found(rows, 70)) == ["miles"]


def test_nulls_among_the_values_change_nothing() -> None:
    holes = world()
    for name in ("miles", *TWINS):
        values = [None if row % 5 == 0 else value for row, value in enumerate(holes[name].to_pylist())]
        holes = holes.set_column(holes.column_names.index(name), name, pa.array(values, pa.float64()))
    learned = learn(between(holes, 0, LEARNED), spec())
    assert list(learned.support) == ["miles"] and sorted(learned.weights) == sorted(TWINS)
    assert [found(holes, day, learned) for day in range(LEARNED, UNTIL)] == [{}] * 30


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinities_are_no_values(odd: float) -> None:
    def some(values: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(values)) % 7 == 0, odd, values)

    dirty = world()
    for name in ("miles", *TWINS):
        dirty = changed(dirty, UNTIL - 1, name, some, days=UNTIL)
    learned = learn(between(dirty, 0, LEARNED), spec())
    assert list(learned.support) == ["miles"] and sorted(learned.weights) == sorted(TWINS)
    json.dumps(learned.to_dict(), allow_nan=False)
    assert [found(dirty, day, learned) for day in range(LEARNED, UNTIL)] == [{}] * 30
    flood = changed(world(), 70, "temp", lambda v: np.full(len(v), odd), days=7)
    assert found(flood, 70) == {}


def test_constant_and_empty_columns_are_not_watched() -> None:
    rows = between(world(), 0, LEARNED)
    empty = rows.set_column(rows.column_names.index("free"), "free", pa.nulls(rows.num_rows, pa.float64()))
    learned = learn(empty, spec())
    assert set(learned.columns) == {"miles", *TWINS}
    assert "flat" not in {*learned.support, *learned.weights, *learned.mean}
    assert found(changed(world(), 70, "flat", lambda v: v + 1, days=7), 70, learned) == {}


def test_a_column_that_is_not_watched_for_drift_is_not_watched_here() -> None:
    learned = learn(between(world(), 0, LEARNED), spec(miles={"drift": None}))
    assert "miles" not in {*learned.columns, *learned.support}


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.float32(), pa.bool_(), pa.decimal128(30, 2)])
def test_every_kind_of_number_is_read(kind: pa.DataType) -> None:
    rows = world().append_column("n", pa.array((np.arange(len(world())) % 2).astype("int64")).cast(kind))
    learned = learn(between(rows, 0, LEARNED), spec(n={}))
    assert learned.support["n"].tolist() == [0.0, 1.0]
    assert found(rows, 70, learned) == {}


def test_large_integers_are_numbers_too() -> None:
    ids = 2**53 + (np.arange(len(world())) % 3) * 2**40
    rows = world().append_column("n", pa.array(ids, pa.int64()))
    learned = learn(between(rows, 0, LEARNED), spec(n={}))
    assert len(learned.support["n"]) == 3
    assert found(rows, 70, learned) == {}


def test_a_growing_number_may_grow() -> None:
    """Where new extremes are usual only values between the known ones count."""
    day = np.repeat(np.arange(UNTIL), PER_DAY)
    rows = world().append_column("n", pa.array((day * 2 + np.arange(len(day)) % 9 * 2).astype("float64")))
    learned = learn(between(rows, 0, LEARNED), spec(n={}))
    assert "n" in learned.support and "n" not in learned.bounded
    assert [day for day in range(LEARNED, UNTIL) if "n" in found(rows, day, learned)] == []
    odd = changed(rows, LEARNED + 2, "n", lambda v: v % 100 + 1, days=SUPPORT_DAYS)
    assert found(odd, LEARNED + 2, learned)["n"].kind == "support"


def test_a_profile_survives_json_and_is_the_same_each_time() -> None:
    rows = between(world(), 0, LEARNED)
    plain = profile().to_dict()
    again = Profile.from_dict(json.loads(json.dumps(plain, allow_nan=False)))
    assert again.to_dict() == plain
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    assert learn(rows, spec()).to_dict() == plain
    assert learn(shuffled, spec()).to_dict()["support"] == plain["support"]
    faulty = changed(world(), 70, "temp", lambda v: (v - 32) / 1.8)
    assert found(faulty, 70, again) == found(faulty, 70) != {}


def test_only_the_days_up_to_the_date_are_looked_at() -> None:
    rows = changed(world(), 75, "miles", lambda v: v * 1.609344, days=4)
    assert misfits(profile(), between(rows, 60, 80), date(71), LIMIT) == {}
    assert misfits(profile(), between(rows, 60, 80), date(73), LIMIT).keys() == {"miles"}
    assert misfits(profile(), between(rows, 60, 80), date(85), LIMIT) == {}, "no row of that date"
    assert misfits(profile(), between(rows, 60, 60), date(60), LIMIT) == {}


def test_a_day_without_most_of_its_rows_teaches_no_mean() -> None:
    """After a storm few labels arrive, and those of odd rows: their means are not the day's."""
    rows = changed(world(), 30, "temp", lambda v: v + 60)
    kept = pa.array((np.arange(len(rows)) // PER_DAY != 30) | (np.arange(len(rows)) % PER_DAY < 10))
    few = learn(between(rows, 0, LEARNED).filter(kept[: LEARNED * PER_DAY]), spec())
    assert sorted(few.weights) == sorted(TWINS)
    assert "temp" not in learn(between(rows, 0, LEARNED), spec()).weights, "a whole day like that is a habit broken"


def test_a_column_that_seldom_repeats_a_value_needs_more_than_a_season() -> None:
    """`n` takes five of 400 values a day: on some of the days left out most are new."""
    days = SEASONAL_DAYS + 20
    values = np.random.default_rng(1).integers(0, 400, days * 5).astype("float64")
    rows = world(1, days).append_column("n", pa.array(np.repeat(values, PER_DAY // 5)))
    early = learn(between(rows, 0, SEASONAL_DAYS - 1), spec(n={}))
    late = learn(between(rows, 0, days), spec(n={}))
    assert "n" not in early.support
    assert MAX_USUAL_EARLY < 2 * late.unseen["n"] - 1 <= MAX_USUAL
