"""The steps of a training run on the example shop, from rows to a champion."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.errors import LeakDetected, NotEnoughData, NotFound, Refused
from include.evergreen.pipeline import staging
from include.evergreen.pipeline import training as steps
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC = examples.model()
DAYS = 40
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)
LATER = AS_OF + dt.timedelta(days=20)


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    """The shop with 40 days of history, as of the day after."""
    made = memory_platform(tmp_path)
    examples.fill(made.lake, DAYS)
    return made


def run(
    platform: Platform,
    spec: ModelSpec = SPEC,
    as_of: dt.date = AS_OF,
    key: str = "run-1",
    overrides: dict[str, Any] | None = None,
    times: int = 1,
) -> dict[str, Any]:
    """All steps as `train__` chains them, each `times` times; what passes between tasks is JSON."""

    def step(call: Any) -> Any:
        answers = [json.loads(json.dumps(call(), allow_nan=False)) for _ in range(times)]
        assert all(answer == answers[0] for answer in answers)
        return answers[-1]

    built = step(lambda: steps.build(platform, spec, as_of, key, "a test"))
    leaks = step(lambda: steps.check_leaks(platform, spec, as_of, built))
    fitted = step(lambda: steps.fit(platform, spec, as_of, key, built, overrides))
    decided = step(lambda: steps.decide(platform, spec, as_of, key, built, fitted, leaks))
    registered = step(lambda: steps.register(platform, spec, as_of, key, built, fitted, decided))
    done = {"built": built, "leaks": leaks, "fitted": fitted, "decided": decided, "registered": registered}
    if decided["accepted"]:
        done["promoted"] = step(lambda: steps.promote(platform, spec, as_of, key, registered, decided))
    return done


def champion(platform: Platform) -> int | None:
    found = platform.registry.champion(SPEC.name)
    return found.number if found else None


def kinds(platform: Platform) -> list[str]:
    return sorted(row["kind"] for row in platform.mart.decisions(subject=SPEC.name))


# --- the first champion ----------------------------------------------------------------------------------------------


def test_the_first_champion_is_in_force_from_its_own_date(platform: MemoryPlatform) -> None:
    done = run(platform)
    assert done["decided"]["accepted"], done["decided"]["reasons"]
    assert done["promoted"] == {"version": 1, "effective_from": AS_OF.isoformat()}
    assert champion(platform) == 1
    assert platform.mart.champion_at(SPEC.name, AS_OF) == (1, AS_OF)
    assert platform.mart.champion_at(SPEC.name, AS_OF - dt.timedelta(days=1)) is None


def test_a_training_of_the_past_does_not_become_todays_champion(platform: MemoryPlatform) -> None:
    run(platform)
    before = AS_OF - dt.timedelta(days=5)
    past = run(platform, as_of=before, key="run-2", overrides={"max_depth": 1})
    accepted = {**past["decided"], "accepted": True}
    version = steps.register(platform, SPEC, before, "run-2", past["built"], past["fitted"], accepted)
    done = steps.promote(platform, SPEC, before, "run-2", {**version, "accepted": True}, accepted)
    assert done == {"version": 2, "effective_from": before.isoformat()}
    assert platform.mart.champion_at(SPEC.name, before) == (2, before)
    assert platform.mart.champion_at(SPEC.name, AS_OF) == (1, AS_OF)
    assert champion(platform) == 1


def test_the_decision_can_be_read_later(platform: MemoryPlatform) -> None:
    done = run(platform)
    (gate,) = platform.mart.decisions(subject=SPEC.name, kind="gate")
    assert (gate["outcome"], gate["as_of"], gate["run_id"], gate["actor"]) == ("accepted", AS_OF, "run-1", "gate")
    assert gate["reasons"] == done["decided"]["reasons"]
    evidence = gate["evidence"]
    assert evidence["challenger"]["auc"] > evidence["baseline"]["auc"]
    assert evidence["challenger_sha256"] == done["fitted"]["sha256"]
    assert evidence["champion"] is None
    assert evidence["rules"]["min_holdout_rows"] == SPEC.gate.min_holdout_rows
    assert evidence["rows_from"]["snapshots"] == done["built"]["snapshots"]
    (promotion,) = platform.mart.decisions(subject=SPEC.name, kind="promotion")
    assert promotion["evidence"] == {"version": 1, "former_version": None, "effective_from": AS_OF.isoformat()}


def test_lineage_says_what_made_the_version(platform: MemoryPlatform) -> None:
    done = run(platform, overrides={"max_depth": 2})
    made = platform.registry.records["run-1"]
    assert made.lineage["snapshots"] == done["built"]["snapshots"]
    assert made.lineage["spec_sha256"] == SPEC.hash
    assert ModelSpec.model_validate(made.lineage["spec"]) == SPEC
    assert (made.lineage["reason"], made.lineage["decision"]) == ("a test", "accepted")
    assert made.params["xgboost.max_depth"] == 2
    assert made.params["seed"] == SPEC.training.seed
    assert made.metrics["challenger_auc"] == done["decided"]["evidence"]["challenger"]["auc"]
    assert made.importances


def test_only_what_was_known_at_midnight_is_trained_on(platform: MemoryPlatform) -> None:
    done = run(platform, as_of=AS_OF - dt.timedelta(days=5))
    built = done["built"]
    assert (built["since"], built["until"]) == (examples.FIRST.isoformat(), "2024-02-04")
    rows = staging.get(platform, built["rows_key"])
    assert max(rows["as_of"].to_pylist()) == dt.date(2024, 2, 4)
    assert built["rows"] == rows.num_rows == 35 * 60
    assert {name: platform.lake.snapshot(name) for name in built["snapshots"]} == {
        name: int(number) for name, number in built["snapshots"].items()
    }


def test_a_window_can_be_asked_for(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test", window_days=20)
    assert built["since"] == (AS_OF - dt.timedelta(days=20)).isoformat()
    assert built["rows"] == 20 * 60


def test_upkeep_keeps_the_snapshots_of_a_training(platform: MemoryPlatform) -> None:
    done = run(platform)
    orders, _ = examples.rows(DAYS, seed=3)
    for _ in range(4):
        platform.lake.write("trusted.orders", orders, examples.dates(DAYS))
    platform.lake.maintain("trusted.orders", keep_snapshots=1)
    pinned = int(done["built"]["snapshots"]["trusted.orders"])
    kept = platform.lake.read("trusted.orders", snapshot=pinned)
    assert kept["region"].to_pylist() == examples.rows(DAYS)[0]["region"].to_pylist()


# --- retries ---------------------------------------------------------------------------------------------------------


def stored(platform: MemoryPlatform) -> dict[str, Any]:
    """All that a training leaves behind."""
    return {
        "versions": platform.registry.versions(SPEC.name),
        "ledger": platform.mart.decisions(),
        "champions": platform.mart.champion_history(SPEC.name),
        "objects": [(info.key, info.etag) for info in platform.objects.list()],
        "tags": {name: dict(platform.lake._tables[name].tags) for name in platform.lake.tables()},
    }


def test_a_retry_of_every_step_changes_nothing(platform: MemoryPlatform) -> None:
    run(platform)
    once = stored(platform)
    again = run(platform, times=2)
    assert stored(platform) == once
    assert kinds(platform) == ["gate", "promotion"]
    assert again["registered"]["version"] == 1
    assert len(platform.mart.champion_history(SPEC.name)) == 1


def test_steps_run_twice_in_place_leave_what_one_run_does(platform: MemoryPlatform, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = memory_platform(tmp_path / "other")
    examples.fill(other.lake, DAYS)
    run(platform, times=2)
    run(other)
    ours, theirs = stored(platform), stored(other)
    assert ours["objects"] == theirs["objects"]
    assert [v.sha256 for v in ours["versions"]] == [v.sha256 for v in theirs["versions"]]
    assert [row["kind"] for row in ours["ledger"]] == [row["kind"] for row in theirs["ledger"]]


def test_a_recorded_decision_stands_when_the_rules_change(platform: MemoryPlatform) -> None:
    first = run(platform)
    strict = examples.model(gate={"min_holdout_rows": 10**9})
    again = steps.decide(platform, strict, AS_OF, "run-1", first["built"], first["fitted"], first["leaks"])
    assert again["accepted"]
    assert again["reasons"] == first["decided"]["reasons"]


def test_a_promotion_that_broke_off_is_completed(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died between the mart's history and the alias."""
    with monkeypatch.context() as patch:

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(platform.registry, "set_alias", dies)
        with pytest.raises(KeyboardInterrupt):
            run(platform)
    assert champion(platform) is None
    assert run(platform)["promoted"] == {"version": 1, "effective_from": AS_OF.isoformat()}
    assert champion(platform) == 1
    assert kinds(platform) == ["gate", "promotion"]


# --- the next ones ---------------------------------------------------------------------------------------------------


def flipped(days: int, since: int) -> tuple[pa.Table, pa.Table]:
    """The shop's rows whose pattern is another one from a day on."""
    orders, outcomes = examples.rows(days)
    amount = orders["amount"].to_numpy()
    late = np.where(np.where(np.array(orders["region"]) == "south", amount < 40, amount > 60), 5, 2)
    after = np.array(outcomes["day"].to_pylist()) >= examples.FIRST + dt.timedelta(days=since)
    took = np.where(after, late, outcomes["took"].to_numpy())
    index = outcomes.schema.get_field_index("took")
    return orders, outcomes.set_column(index, "took", pa.array(took, pa.int64()))


def drift(platform: MemoryPlatform) -> None:
    """Twenty more days, of another pattern."""
    orders, outcomes = flipped(DAYS + 20, since=DAYS)
    platform.lake.write("trusted.orders", orders, examples.dates(DAYS + 20))
    platform.lake.write("trusted.outcomes", outcomes, examples.dates(DAYS + 20))


def test_a_better_challenger_is_in_force_from_the_day_after(platform: MemoryPlatform) -> None:
    run(platform)
    drift(platform)
    tomorrow = LATER + dt.timedelta(days=1)
    second = run(platform, as_of=LATER, key="run-2", times=2)
    assert second["decided"]["accepted"], second["decided"]["reasons"]
    evidence = second["decided"]["evidence"]
    assert evidence["champion_version"] == 1
    assert evidence["challenger"]["auc"] > evidence["champion"]["auc"]
    assert second["promoted"] == {"version": 2, "effective_from": tomorrow.isoformat()}
    assert platform.mart.champion_at(SPEC.name, LATER) == (1, AS_OF)
    assert platform.mart.champion_at(SPEC.name, tomorrow) == (2, tomorrow)
    assert champion(platform) == 2
    before = stored(platform)
    assert run(platform, as_of=LATER, key="run-2")["promoted"] == second["promoted"], (
        "the day after a retry is the same"
    )
    assert stored(platform) == before


def test_an_identical_twin_is_refused(platform: MemoryPlatform) -> None:
    run(platform)
    twin = run(platform, key="run-2")
    assert not twin["decided"]["accepted"]
    assert any("identical" in reason for reason in twin["decided"]["reasons"])
    assert_refused(platform, twin)


def test_a_worse_challenger_is_refused(platform: MemoryPlatform) -> None:
    run(platform)
    platform_rows = examples.rows(DAYS + 10)
    for name, rows in zip(("trusted.orders", "trusted.outcomes"), platform_rows, strict=True):
        platform.lake.write(name, rows, examples.dates(DAYS + 10))
    worse = run(platform, as_of=AS_OF + dt.timedelta(days=10), key="run-2", overrides={"max_depth": 1, "eta": 0.001})
    assert not worse["decided"]["accepted"]
    assert any("champion 1" in reason for reason in worse["decided"]["reasons"])
    assert_refused(platform, worse)


def assert_refused(platform: MemoryPlatform, done: dict[str, Any]) -> None:
    """Version 2 is there as the challenger, version 1 is champion, and nobody can promote 2."""
    assert done["registered"] == {"version": 2, "accepted": False}
    assert [v.aliases for v in platform.registry.versions(SPEC.name)] == [("champion",), ("challenger",)]
    assert platform.registry.records["run-2"].lineage["decision"] == "refused"
    assert platform.registry.records["run-2"].lineage["decision_reasons"] == done["decided"]["reasons"]
    with pytest.raises(Refused, match=r"version 2: .+"):
        steps.promote(platform, SPEC, AS_OF, "run-2", done["registered"], done["decided"])
    assert champion(platform) == 1
    assert [row["version"] for row in platform.mart.champion_history(SPEC.name)] == [1]
    assert kinds(platform) == ["gate", "gate", "promotion"]


# --- what cannot be trained ------------------------------------------------------------------------------------------


def test_nothing_ingested_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match=r"late_order: expected the table trusted\.\w+, found none.*history"):
        steps.build(memory_platform(tmp_path), SPEC, AS_OF, "run-1", "a test")


def test_too_few_rows_are_counted(platform: MemoryPlatform) -> None:
    with pytest.raises(
        NotEnoughData,
        match="as of 2024-01-02: expected at least 100 labelled rows from 2024-01-01 to 2024-01-01, found 60",
    ):
        steps.build(platform, SPEC, examples.FIRST + dt.timedelta(days=1), "run-1", "a test", window_days=60)


def test_a_window_too_short_to_split_is_said(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test", window_days=8)
    with pytest.raises(NotEnoughData, match=r"training rows as of 2024-02-10: expected at least 100 .*found 0"):
        steps.fit(platform, SPEC, AS_OF, "run-1", built)


def test_a_day_before_the_model_starts_is_said(platform: MemoryPlatform) -> None:
    with pytest.raises(NotEnoughData, match="found 0"):
        steps.build(platform, SPEC, examples.FIRST - dt.timedelta(days=30), "run-1", "a test")


def test_a_leak_stops_the_training_before_the_gate(platform: MemoryPlatform) -> None:
    leaky = examples.model(
        features={"amount": {}, "took": {}},
        gate={"min_holdout_rows": 100, "max_ms_per_1k": 10_000},
        sql="select e.order_id, e.as_of, o.amount, x.took from entities e join orders o on o.order_id = e.order_id "
        "left join outcomes x on x.order_id = e.order_id",
    )
    built = steps.build(platform, leaky, AS_OF, "run-1", "a test")
    with pytest.raises(LeakDetected, match="took"):
        steps.check_leaks(platform, leaky, AS_OF, built)
    assert platform.mart.decisions() == []


def test_rows_that_were_cleared_away_are_not_found(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test")
    platform.objects.delete([built["rows_key"]])
    with pytest.raises(NotFound, match=r"rows\.parquet"):
        steps.fit(platform, SPEC, AS_OF, "run-1", built)
