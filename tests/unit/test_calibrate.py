"""Thresholds for a stated budget of false alarms: on distances made by hand, then placebo months of the shop."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from include.evergreen.drift import calibrate as module
from include.evergreen.drift.calibrate import (
    FOLDS,
    LABEL,
    MONTH,
    MULTIPLIERS,
    SCALE,
    Placebo,
    calibrate,
    false_alarms,
    placebo,
)
from include.evergreen.errors import NotEnoughData
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.replay.calibration import document
from include.evergreen.specs import THRESHOLDS, ModelSpec, load_model
from include.evergreen.training.bundle import PREDICTION
from tests import examples

COLUMNS = ("a", "b", "c", PREDICTION, LABEL)
MONTHS = 40


def spec(**monitoring: Any) -> ModelSpec:
    return examples.model(monitoring={"min_columns": 2, **monitoring})


def measured(distances: np.ndarray, misfits: int = 0, days: int = 150) -> Placebo:
    """Months of equal numbers in every fold."""
    odd = tuple(examples.dates(misfits))
    return Placebo(COLUMNS, distances, np.arange(len(distances)) * FOLDS // len(distances), odd, days)


def noise(seed: int = 1, months: int = MONTHS) -> Placebo:
    """Seven-day means, as windows give them: neighbours are alike; each column on a scale of its own."""
    daily = np.random.default_rng(seed).gamma(2.0, 1.0, (months, MONTH + 6, len(COLUMNS)))
    windows = np.lib.stride_tricks.sliding_window_view(daily, 7, axis=1).mean(axis=-1)
    return measured(windows * np.array([0.01, 1.0, 30.0, 0.2, 0.05]))


def still(value: float = 1.0) -> np.ndarray:
    return np.full((MONTHS, MONTH, len(COLUMNS)), value)


def spiked(heights: dict[int, float], column: str = PREDICTION, window: int = 9) -> np.ndarray:
    """Distances of 1 everywhere, and one higher in one window of some months."""
    found = still()
    for month, height in heights.items():
        found[month, window, COLUMNS.index(column)] = height
    return found


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0, 2.0])
def test_the_multiplier_is_the_smallest_down_to_which_the_budget_holds(budget: float) -> None:
    found = calibrate(noise(), spec(), budget)
    at = int(np.flatnonzero(found.multiplier == MULTIPLIERS)[0])
    assert false_alarms(noise(), spec(), float(MULTIPLIERS[at - 1]))[0] > budget
    assert all(false_alarms(noise(), spec(), float(m))[0] <= budget for m in MULTIPLIERS[at::10])
    assert (found.false_alarms, found.alarm_days, found.by_kind) == false_alarms(noise(), spec(), found.multiplier)


def test_a_larger_budget_gives_smaller_thresholds_and_more_alarms() -> None:
    found = [calibrate(noise(), spec(), budget) for budget in (0.1, 0.5, 1.0, 2.0)]
    for strict, loose in itertools.pairwise(found):
        assert all(strict.thresholds[name] > loose.thresholds[name] for name in COLUMNS)
        assert strict.false_alarms < loose.false_alarms
        assert strict.alarm_days < loose.alarm_days


def test_thresholds_are_found_by_hand() -> None:
    """Half of the months spike to 2, half to 3: one alarm a month from 3 down to 2 times the scale costs 0.5."""
    high = {month: 2.0 + month % 2 for month in range(MONTHS)}
    assert false_alarms(measured(spiked(high)), spec(), 3.0)[0] == 0.5
    found = calibrate(measured(spiked(high)), spec(), 0.5)
    assert (found.multiplier, found.false_alarms) == (2.02, 0.5)
    assert found.alarm_days == pytest.approx(MONTHS / 2 / (MONTHS * MONTH))
    assert found.by_kind == {"covariate_drift": 0, "prediction_drift": 0.5, "label_drift": 0, "broken_data": 0}
    assert found.thresholds == {**dict.fromkeys(COLUMNS, 2.02), LABEL: 1.0}
    assert calibrate(measured(spiked(high)), spec(), 0.4).multiplier == 3.02


def test_runs_that_grow_together_are_no_fewer_alarms() -> None:
    """Five alarms a month from 3 times the scale on would be one from 2 times on: the search does not go there."""
    distances = still()
    distances[:4, 0:9:2, COLUMNS.index(PREDICTION)] = 3.0
    distances[:4, 1:9:2, COLUMNS.index(PREDICTION)] = 2.0
    rates = [false_alarms(measured(distances), spec(), m)[0] for m in (3.02, 3.0, 2.0)]
    assert rates == [0.0, pytest.approx(0.5), pytest.approx(0.1)]
    assert calibrate(measured(distances), spec(), 0.3).multiplier == 3.02


def test_one_long_alarm_is_not_one_false_alarm() -> None:
    """Below the scale every day is in alarm: one run a month, which no budget buys."""
    found = calibrate(measured(spiked({0: 2.0})), spec(), 4.0)
    assert found.multiplier == 1.02
    assert found.alarm_days < 0.01


def test_thresholds_are_scales_times_the_multiplier_in_three_digits() -> None:
    found = calibrate(noise(), spec(), 1.0)
    exact = np.quantile(noise().distances.reshape(-1, len(COLUMNS)), SCALE, axis=0) * found.multiplier
    for name, value in zip(COLUMNS, exact, strict=True):
        threshold = found.thresholds[name]
        assert value - 1e-12 <= threshold <= value * 1.01
        assert float(f"{threshold:.3g}") == threshold


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.1, 0.1), (0.12341, 0.124), (0.0999, 0.0999), (0.09991, 0.1), (1.0001, 1.01), (12.34, 12.4), (3.0, 3.0)],
)
def test_rounding_never_lowers_a_threshold(value: float, rounded: float) -> None:
    assert module._round_up(value) == rounded


def test_a_column_that_never_moved_has_a_threshold() -> None:
    distances = spiked({0: 2.0})
    distances[..., 0] = 0.0
    found = calibrate(measured(distances), spec(), 1.0)
    assert found.thresholds["a"] == pytest.approx(1e-3 * found.multiplier, rel=0.01)


def test_the_threshold_of_the_label_is_a_difference_of_shares() -> None:
    """A rate cannot be further off than 1: above, the spec would be invalid."""
    distances = np.minimum(spiked(dict.fromkeys(range(MONTHS), 1.9), LABEL) * 0.6, 1.0)
    found = calibrate(measured(distances, days=10_000), spec(), 0.5)
    assert found.multiplier > 1 / 0.6
    assert found.thresholds[LABEL] == 1.0


# --- what is an alarm ------------------------------------------------------------------------------------------------


def test_a_wild_fold_does_not_excuse_itself() -> None:
    """The first fold is five times as wild: its months alarm by the scales of the calm ones, and theirs do not."""
    distances = still()
    distances[: MONTHS // FOLDS] = 5.0
    wild = measured(distances)
    rate, days, _ = false_alarms(wild, spec(), 4.0)
    assert rate == days == pytest.approx(1 / FOLDS)
    assert false_alarms(wild, spec(), 0.9)[1] == pytest.approx(1 / FOLDS), "the calm months are measured by the wild"


def test_runs_of_days_are_counted_and_not_days() -> None:
    distances = still()
    at = COLUMNS.index(LABEL)
    distances[0, [0, 1, 2, 8, 20, 21], at] = 9.0  # three runs, one from the first day on
    distances[1, [0, 29], at] = 9.0  # two; the month before does not reach into this one
    rate, days, kinds = false_alarms(measured(distances), spec(), 5.0)
    assert rate == pytest.approx(5 / MONTHS)
    assert days == pytest.approx(8 / (MONTHS * MONTH))
    assert kinds["label_drift"] == rate


def test_alarms_of_two_kinds_at_once_are_one() -> None:
    distances = still()
    distances[0, 4:7, COLUMNS.index(LABEL)] = 9.0
    distances[0, 6:9, COLUMNS.index(PREDICTION)] = 9.0
    rate, days, kinds = false_alarms(measured(distances), spec(), 5.0)
    assert rate == kinds["label_drift"] == kinds["prediction_drift"] == pytest.approx(1 / MONTHS)
    assert days == pytest.approx(5 / (MONTHS * MONTH))


@pytest.mark.parametrize(("least", "alarms"), [(1, 2), (2, 1), (3, 0)])
def test_covariates_drift_together(least: int, alarms: int) -> None:
    distances = still()
    distances[0, 3, :2] = 5.0
    distances[1, 3, 2] = 5.0
    rate, _, kinds = false_alarms(measured(distances), spec(min_columns=least), 5.0)  # at the threshold is a breach
    assert rate == kinds["covariate_drift"] == pytest.approx(alarms / MONTHS)


def test_what_cannot_be_measured_is_no_alarm() -> None:
    distances = spiked({0: 9.0, 1: 9.0})
    distances[0, 9, COLUMNS.index(PREDICTION)] = np.nan
    assert false_alarms(measured(distances), spec(), 5.0)[0] == pytest.approx(1 / MONTHS)


def test_numbers_that_do_not_fit_count_whatever_the_thresholds() -> None:
    calm = measured(spiked({0: 2.0}), misfits=2, days=150)
    rate, _, kinds = false_alarms(calm, spec(), 6.0)
    assert rate == kinds["broken_data"] == pytest.approx(MONTH * 2 / 150)
    found = calibrate(calm, spec(), 0.41)
    assert found.multiplier == 2.02, "the spike no longer fits into what is left of the budget"


def test_a_budget_out_of_reach_is_said() -> None:
    with pytest.raises(NotEnoughData, match=r"at most 1 false alarms a month, found none: 1\.60 come .*max_misfit"):
        calibrate(measured(spiked({0: 2.0}), misfits=8, days=150), spec(), 1.0)
    with pytest.raises(NotEnoughData, match="found none"):
        calibrate(measured(spiked(dict.fromkeys(range(MONTHS), 99.0))), spec(), 0.9)


def test_a_column_without_a_distance_is_named() -> None:
    distances = spiked({0: 2.0})
    distances[..., 1] = np.nan
    with pytest.raises(NotEnoughData, match=r"distances of \['b'\] in two folds"):
        calibrate(measured(distances), spec(), 1.0)


# --- months ----------------------------------------------------------------------------------------------------------


def month(days: list[dt.date], block: int, seed: int) -> list[dt.date]:
    return module._month(days, block, np.random.default_rng(seed))


def test_a_month_is_whole_weeks_of_consecutive_days() -> None:
    days = [day for day in examples.dates(45) if day != examples.FIRST + dt.timedelta(days=20)]  # one is missing
    for seed in range(20):
        found = month(days, 7, seed)
        assert len(found) == MONTH + 6, "one window of seven days for each of thirty"
        assert set(found) <= set(days)
        for at in range(0, len(found), 7):
            week = found[at : at + 7]
            assert [(day - week[0]).days for day in week] == list(range(len(week)))
        assert [day.weekday() for day in found] == [(found[0].weekday() + at) % 7 for at in range(len(found))]


def test_months_are_seeded_and_drawn_with_replacement() -> None:
    days = examples.dates(60)
    drawn = [month(days, 7, seed) for seed in range(12)]
    assert drawn == [month(days, 7, seed) for seed in range(12)]
    assert len({tuple(found) for found in drawn}) == 12
    assert any(len(set(found)) < len(found) for found in drawn)


def test_blocks_of_other_lengths_start_on_any_day() -> None:
    starts = {month(examples.dates(40), 5, seed)[at].weekday() for seed in range(10) for at in range(0, 34, 5)}
    assert len(starts) == 7


def test_days_that_hold_no_week_are_said() -> None:
    with pytest.raises(NotEnoughData, match="7 consecutive labelled days"):
        month([day for day in examples.dates(60) if day.weekday() < 5], 7, 0)


# --- end to end ------------------------------------------------------------------------------------------------------

DAYS = 45
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)
WATCHED = examples.model(
    features={
        "region": {"type": "category"},
        "amount": {"drift": {"method": "wasserstein"}},
        "late_before": {"drift": {"method": "wasserstein"}},
    },
    monitoring={"window_days": 3, "sketch_rows": 200, "prediction": {"method": "wasserstein"}, "max_misfit": 2.0},
)
FOLD = DAYS // FOLDS


@functools.cache
def history() -> tuple[pa.Table, pa.Table]:
    """Features of every order, and those whose label is known. It goes on after AS_OF."""
    lake = MemoryLake()
    examples.fill(lake, DAYS + 5, per_day=30)
    rows = features(lake, WATCHED, examples.FIRST, AS_OF + dt.timedelta(days=4))
    return rows, labelled(rows, labels(lake, WATCHED, examples.FIRST, AS_OF + dt.timedelta(days=4)), WATCHED)


def watched(labelled_: pa.Table | None = None, **options: Any) -> Placebo:
    rows, known = history()
    return placebo(WATCHED, rows, known if labelled_ is None else labelled_, AS_OF, **options)


@functools.cache
def seven() -> tuple[Placebo, list[tuple[int, int]]]:
    done: list[tuple[int, int]] = []
    return watched(months=7, seed=3, report=lambda *at: done.append(at)), done


def test_placebo_months_of_the_shop() -> None:
    found, done = seven()
    assert found.columns == ("region", "amount", "late_before", PREDICTION, LABEL)
    assert found.distances.shape == (7, MONTH, 5)
    assert found.fold.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert np.isfinite(found.distances[:, :, [0, 1, 3, 4]]).all()
    assert found.days == DAYS, "nothing from the as-of date on is looked at"
    assert done == [(at, 7) for at in range(1, 8)]

    again = watched(months=7, seed=3)
    np.testing.assert_array_equal(found.distances, again.distances)
    assert (found.misfit_days, found.days) == (again.misfit_days, again.days)
    assert not np.array_equal(watched(months=7, seed=4).distances, found.distances)


def test_a_month_is_measured_by_a_model_that_has_not_seen_it() -> None:
    """Every order of one fold is late: its rate is 1, and the model knows the rate of the others alone."""
    _, known = history()
    odd = pa.array(examples.dates(DAYS)[2 * FOLD : 3 * FOLD], pa.date32())
    late = pc.or_(known["label"], pc.is_in(known["as_of"], odd))
    changed = known.set_column(known.column_names.index("label"), "label", late)
    found = watched(changed, months=FOLDS)
    days = [day for day in examples.dates(DAYS) if not WATCHED.gate.frozen.holds(day) and day not in odd.to_pylist()]
    others = known.filter(pc.is_in(known["as_of"], pa.array(days, pa.date32())))
    seen = 1 - found.distances[2, :, -1]
    assert np.ptp(seen) < 1e-12
    assert seen[0] == pytest.approx(pc.mean(others["label"].cast("int8")).as_py(), abs=0.02)


def test_too_little_history_is_said() -> None:
    rows, known = history()
    with pytest.raises(NotEnoughData, match="at least 45 labelled days, found 40"):
        placebo(WATCHED, rows, known, AS_OF - dt.timedelta(days=5), FOLDS)
    with pytest.raises(NotEnoughData, match="at least 5 placebo months, found 4"):
        watched(months=4)


def test_what_is_written_loads_as_thresholds(tmp_path: Path) -> None:
    found = calibrate(seven()[0], WATCHED, 4.0)
    assert found.false_alarms <= 4.0
    folder = tmp_path / WATCHED.name
    folder.mkdir()
    plain = WATCHED.model_dump(mode="json", exclude={"sql"}, exclude_unset=True)
    (folder / "features.sql").write_text(WATCHED.sql, encoding="utf-8")
    for feature in plain["features"].values():
        feature.setdefault("drift", {}).pop("threshold", None)
    (folder / "model.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    text = document(WATCHED, found, AS_OF, 4.0, 7, 3)
    (folder / THRESHOLDS).write_text(text, encoding="utf-8")
    loaded = load_model(folder / "model.yaml")
    assert {n: f.drift.threshold for n, f in loaded.features.items() if f.drift} == {
        name: found.thresholds[name] for name in WATCHED.features
    }
    assert loaded.monitoring.prediction.threshold == found.thresholds[PREDICTION]
    assert loaded.monitoring.max_label_shift == found.thresholds[LABEL]
    assert loaded.calibration is not None
    assert loaded.calibration.as_of == AS_OF
    assert loaded.calibration.multiplier == found.multiplier
    assert loaded.calibration.false_alarms == pytest.approx(found.false_alarms, abs=1e-3)
    assert loaded.calibration.by_kind.keys() == {"covariate_drift", "prediction_drift", "label_drift", "broken_data"}
    assert text.startswith("# Written by `make calibrate MODEL=late_order`")
