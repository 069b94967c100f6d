"""The frozen holdout: pinned once, the same on a retry, renewed by rule, in no training."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.errors import NotFound
from include.evergreen.pipeline import holdout, staging
from include.evergreen.pipeline import training as steps
from include.evergreen.specs import FrozenHoldout, ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, split
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC = examples.model()
DAYS = 60
AS_OF = examples.FIRST + dt.timedelta(days=40)
PINNED = [day for day in examples.dates(35) if day.toordinal() % 5 == 0]
DAY = dt.timedelta(days=1)


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    made = memory_platform(tmp_path)
    examples.fill(made.lake, DAYS)
    return made


def ruled(**frozen: Any) -> ModelSpec:
    return examples.model(gate={**SPEC.gate.model_dump(), "frozen": {"every_days": 5, "min_days": 2, **frozen}})


def pin(
    platform: MemoryPlatform,
    as_of: dt.date = AS_OF,
    key: str = "run-1",
    spec: ModelSpec = SPEC,
    champion: ModelBundle | None = None,
    since: dt.date = examples.FIRST,
) -> dict[str, Any] | None:
    return holdout.pin(platform, spec, as_of, key, snapshots(platform), since, champion)


def snapshots(platform: MemoryPlatform) -> dict[str, int]:
    return {f"trusted.{name}": platform.lake.snapshot(f"trusted.{name}") or 0 for name in ("orders", "outcomes")}


def ledger(platform: MemoryPlatform) -> list[dict[str, Any]]:
    """Pins, oldest first."""
    return platform.mart.decisions(SPEC.name, "holdout")[::-1]


def rewrite(platform: MemoryPlatform, seed: int = 9) -> None:
    """Other rows of the same days: a correction from upstream."""
    examples.fill(platform.lake, DAYS, seed=seed)


def champion(**facts: Any) -> ModelBundle:
    """One that was fitted from the first day to ten days before `AS_OF`, without the frozen days."""
    known = {"train_from": "2024-01-01", "trained_until": str(AS_OF - 10 * DAY), "frozen_every": 5}
    return ModelBundle(SPEC.name, AS_OF, b"", ("amount",), {}, facts={**known, **facts})


# --- the pin ---------------------------------------------------------------------------------------------------------


def test_the_rule_is_every_nth_date_whatever_the_window() -> None:
    rule = FrozenHoldout(every_days=5)
    assert [day for day in examples.dates(35) if rule.holds(day)] == PINNED
    weekdays = {day.weekday() for day in examples.dates(13 * 7) if FrozenHoldout().holds(day)}
    assert weekdays == set(range(7)), "by default every weekday takes its turn"


def test_the_first_pin_is_in_the_ledger(platform: MemoryPlatform) -> None:
    found = pin(platform)
    (row,) = ledger(platform)
    assert found == row["evidence"]
    assert found == {
        "days": [str(day) for day in PINNED],
        "snapshots": {name: str(number) for name, number in snapshots(platform).items()},
        "cut": str(AS_OF),
        "every_days": 5,
    }
    assert (row["outcome"], row["as_of"], row["run_id"]) == ("pinned", AS_OF, "run-1")
    assert row["reasons"] == [f"7 frozen days from {PINNED[0]} to {PINNED[-1]}: the first one"]


def test_a_retry_and_later_trainings_use_the_same_pin(platform: MemoryPlatform) -> None:
    first = pin(platform)
    rewrite(platform)
    assert pin(platform) == first, "a retry"
    assert pin(platform, key="run-2") == first, "another training as of the same date"
    assert pin(platform, AS_OF + 15 * DAY, "run-3") == first, "a later one"
    assert pin(platform, AS_OF + 15 * DAY, "run-4", champion=champion()) == first
    assert len(ledger(platform)) == 1


def test_a_retry_after_its_own_version_became_champion_uses_the_same_pin(platform: MemoryPlatform) -> None:
    first = pin(platform)
    own = champion(trained_until=str(AS_OF - 6 * DAY))
    assert pin(platform, key="run-1", champion=own) == first
    assert len(ledger(platform)) == 1


def test_the_pinned_rows_stay_the_same_when_the_lake_changes(platform: MemoryPlatform) -> None:
    found = pin(platform)
    assert found is not None
    before = holdout.rows(platform, SPEC, found)
    rewrite(platform)
    after = holdout.rows(platform, SPEC, found)
    assert after.equals(before)
    assert sorted(set(before["as_of"].to_pylist())) == PINNED
    assert before.num_rows == 60 * len(PINNED)
    assert {"label", "order_id", *SPEC.features} <= set(before.column_names)
    fresh = holdout.rows(platform, SPEC, {**found, "snapshots": {k: str(v) for k, v in snapshots(platform).items()}})
    assert not fresh.equals(before)


def test_labels_that_came_after_the_pin_are_not_seen(platform: MemoryPlatform) -> None:
    found = pin(platform)
    assert found is not None
    early = holdout.rows(platform, SPEC, {**found, "cut": str(PINNED[-1])})
    assert sorted(set(early["as_of"].to_pylist())) == PINNED[:-1]


@pytest.mark.parametrize("keep", [1, 3])
def test_upkeep_keeps_the_pinned_snapshots(platform: MemoryPlatform, keep: int) -> None:
    found = pin(platform)
    assert found is not None
    before = holdout.rows(platform, SPEC, found)
    for seed in range(5):
        rewrite(platform, seed)
    for table in snapshots(platform):
        assert platform.lake.maintain(table, keep_snapshots=keep).snapshots_expired > 0
    assert holdout.rows(platform, SPEC, found).equals(before)


def test_rows_whose_snapshot_is_gone_are_not_found(platform: MemoryPlatform) -> None:
    found = pin(platform)
    assert found is not None
    with pytest.raises(NotFound, match="snapshot 999"):
        holdout.rows(platform, SPEC, {**found, "snapshots": dict.fromkeys(found["snapshots"], "999")})


# --- renewal ---------------------------------------------------------------------------------------------------------


def test_it_is_renewed_after_its_days(platform: MemoryPlatform) -> None:
    spec = ruled(renew_days=10)
    first = pin(platform, spec=spec)
    rewrite(platform)
    assert pin(platform, AS_OF + 9 * DAY, "run-2", spec) == first
    second = pin(platform, AS_OF + 10 * DAY, "run-3", spec)
    assert second is not None
    assert second["cut"] == str(AS_OF + 10 * DAY)
    assert second["days"] == [str(day) for day in examples.dates(45) if day.toordinal() % 5 == 0]
    assert second["snapshots"] == {name: str(number) for name, number in snapshots(platform).items()}
    assert [row["reasons"][0].split(": ")[1] for row in ledger(platform)] == [
        "the first one",
        "the last one is 10 days old, 10 allowed",
    ]
    assert pin(platform, AS_OF + 11 * DAY, "run-4", spec) == second
    assert pin(platform, AS_OF + 5 * DAY, "run-5", spec) == first, "a training of the past has what was known then"


def test_both_pins_survive_upkeep(platform: MemoryPlatform) -> None:
    spec = ruled(renew_days=10)
    pins = [pin(platform, spec=spec)]
    rewrite(platform)
    pins.append(pin(platform, AS_OF + 10 * DAY, "run-2", spec))
    rewrite(platform, 11)
    for table in snapshots(platform):
        platform.lake.maintain(table, keep_snapshots=1)
    for found in pins:
        assert found is not None
        assert holdout.rows(platform, spec, found).num_rows == 60 * len(found["days"])


def test_it_is_renewed_when_the_rule_changes(platform: MemoryPlatform) -> None:
    pin(platform)
    found = pin(platform, key="run-2", spec=ruled(every_days=7))
    assert found is not None
    assert found["days"] == [str(day) for day in examples.dates(35) if day.toordinal() % 7 == 0]
    assert "every 7 days are kept now, every 5 were" in ledger(platform)[-1]["reasons"][0]
    later = pin(platform, AS_OF + DAY, "run-3", ruled(every_days=7, min_days=4))
    assert later == found, "it has enough days"
    more = pin(platform, AS_OF + 15 * DAY, "run-4", ruled(every_days=7, min_days=len(found["days"]) + 1))
    assert more is not None
    assert len(more["days"]) == len(found["days"]) + 2
    assert "needed" in ledger(platform)[-1]["reasons"][0]


def test_a_champion_that_was_trained_on_its_days_leads_to_another(platform: MemoryPlatform) -> None:
    """Kept every 7th day: it has seen all others until it was trained."""
    pin(platform)
    later = AS_OF + 15 * DAY
    greedy = champion(frozen_every=7)
    found = pin(platform, later, "run-2", champion=greedy)
    assert found is not None
    kept = [day for day in examples.dates(50) if day.toordinal() % 5 == 0]
    seen = [day for day in kept if day <= AS_OF - 10 * DAY and day.toordinal() % 7]
    assert found["days"] == [str(day) for day in kept if day not in seen]
    assert len(seen) > 3
    assert ledger(platform)[-1]["reasons"][0].endswith("the champion was trained on the last one")
    assert pin(platform, later, "run-3", champion=greedy) == found


def test_without_enough_fair_days_there_is_none(platform: MemoryPlatform) -> None:
    spec = ruled(min_days=8)
    assert pin(platform, spec=spec) is None
    assert ledger(platform) == []
    assert platform.lake._tables["trusted.orders"].tags == {}
    assert pin(platform, AS_OF + 5 * DAY, spec=spec) is not None, "eight days are there five days later"
    spec, old = ruled(min_days=3), champion(frozen_every=None, trained_until=str(AS_OF - 6 * DAY))
    assert pin(platform, spec=spec, champion=old) is None, "the champion has seen all but none of them"


def test_a_window_that_ends_before_it_begins_has_no_days(platform: MemoryPlatform) -> None:
    assert pin(platform, examples.FIRST + DAY) is None


# --- in no training --------------------------------------------------------------------------------------------------


def test_no_training_sees_a_frozen_day(platform: MemoryPlatform) -> None:
    """Over renewals and windows: what was fitted on, by the rows themselves and by the model's own facts."""
    for number, (ahead, window) in enumerate([(0, None), (7, 25), (13, 40), (20, None)]):
        as_of = AS_OF + ahead * DAY
        built = steps.build(platform, SPEC, as_of, f"run-{number}", "a test", window)
        rows = staging.get(platform, built["rows_key"])
        parts = split(rows, as_of, SPEC.training, SPEC.gate.frozen)
        fitted = {*parts.train["as_of"].to_pylist(), *parts.validation["as_of"].to_pylist()}
        assert fitted
        assert not [day for day in fitted if SPEC.gate.frozen.holds(day)]
        made = fit(SPEC, rows, as_of)
        assert made.facts["rows"]["train"] == parts.train.num_rows
        if built["frozen"]:
            kept = {dt.date.fromisoformat(day) for day in built["frozen"]["days"]}
            assert not kept & fitted
            assert not holdout.stale(built["frozen"], SPEC.gate.frozen, as_of, made)


def test_the_labels_of_pinned_days_change_no_model(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test")
    first = fit(SPEC, staging.get(platform, built["rows_key"]), AS_OF)
    outcomes = platform.lake.read("trusted.outcomes")
    took = outcomes["took"].to_numpy()
    kept = np.isin(np.array(outcomes["day"].to_pylist()), np.array(PINNED))
    at = outcomes.schema.get_field_index("took")
    turned = outcomes.set_column(at, "took", pa.array(np.where(kept, 7 - took, took), pa.int64()))
    platform.lake.write("trusted.outcomes", turned, examples.dates(DAYS))
    spec = examples.model(features={"region": {"type": "category"}, "amount": {}})
    again = steps.build(platform, SPEC, AS_OF, "run-2", "a test")
    before, after = (fit(spec, staging.get(platform, one["rows_key"]), AS_OF) for one in (built, again))
    assert before.sha256 == after.sha256
    assert fit(SPEC, staging.get(platform, again["rows_key"]), AS_OF).sha256 != first.sha256, (
        "the late rate of the days before, a feature, may see them"
    )


def test_the_built_holdout_is_staged_and_json(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test")
    frozen = built["frozen"]
    kept = staging.get(platform, frozen["rows_key"])
    assert frozen["rows"] == kept.num_rows == 60 * len(PINNED)
    assert sorted(set(kept["as_of"].to_pylist())) == PINNED
    assert kept.combine_chunks().equals(holdout.rows(platform, SPEC, frozen).combine_chunks())
    none = steps.build(platform, ruled(min_days=30), AS_OF, "run-2", "a test")
    assert none["frozen"] is None


def test_stale_says_why() -> None:
    rule = FrozenHoldout(every_days=5, renew_days=30, min_days=2)
    found = {"days": [str(day) for day in PINNED], "cut": str(AS_OF), "every_days": 5, "snapshots": {}}
    assert holdout.stale(None, rule, AS_OF, None) == "the first one"
    assert holdout.stale(found, rule, AS_OF + 29 * DAY, champion()) == ""
    assert "30 days old" in holdout.stale(found, rule, AS_OF + 30 * DAY, None)
    assert "every 5 were" in holdout.stale(found, rule.model_copy(update={"every_days": 6}), AS_OF, None)
    assert "8 needed" in holdout.stale(found, rule.model_copy(update={"min_days": 8}), AS_OF, None)
    assert "champion" in holdout.stale(found, rule, AS_OF, champion(frozen_every=None))
    late = champion(frozen_every=None, train_from=str(PINNED[-1] + DAY), trained_until=str(AS_OF))
    assert holdout.stale(found, rule, AS_OF, late) == ""
