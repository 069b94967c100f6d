"""The steps of a training run on the example shop, from rows to a champion."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.errors import ChecksumMismatch, LeakDetected, NotEnoughData, NotFound, Refused
from include.evergreen.pipeline import rollback, staging
from include.evergreen.pipeline import training as steps
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import FILES
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC = examples.model()
DAYS = 40
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)
LATER = AS_OF + dt.timedelta(days=20)
FROZEN = [str(day) for day in examples.dates(DAYS - 5) if SPEC.gate.frozen.holds(day)]


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
    fresh, pooled = evidence["fresh"], evidence["pooled"]
    assert fresh["challenger"]["auc"]["value"] > fresh["baseline"]["auc"]["value"]
    assert pooled["over_baseline"]["low"] > 0
    assert (fresh["days"], fresh["rows"], pooled["days"]) == (5, 300, 5 + len(FROZEN))
    assert evidence["challenger_sha256"] == done["fitted"]["sha256"]
    assert fresh["champion"] is evidence["champion_version"] is None
    assert evidence["frozen_from"]["days"] == FROZEN
    assert {part["value"] for part in evidence["slices"]} == {"north", "south", "west"}
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
    assert made.metrics["challenger_auc"] == done["decided"]["evidence"]["fresh"]["challenger"]["auc"]["value"]
    assert made.lineage["frozen"] == done["built"]["frozen"]
    assert made.lineage["rows_sha256"] == done["built"]["rows_sha256"]
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
    assert kinds(platform) == ["gate", "holdout", "promotion"]
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
    assert kinds(platform) == ["gate", "holdout", "promotion"]


# --- the next ones ---------------------------------------------------------------------------------------------------


def drift(platform: MemoryPlatform) -> None:
    """Twenty more days: half of their orders are from a new region, where the small ones are late."""
    orders, outcomes = examples.rows(DAYS + 20)
    random = np.random.default_rng(5)
    after = np.array(orders["day"].to_pylist()) >= examples.FIRST + dt.timedelta(days=DAYS)
    east = after & (random.random(len(after)) < 0.5)
    late = random.random(len(after)) < np.where(orders["amount"].to_numpy() < 80, 0.9, 0.1)
    took = np.where(east, np.where(late, 5, 2), outcomes["took"].to_numpy())
    region = np.where(east, "east", np.array(orders["region"].to_pylist()))
    for name, rows, column, values in (
        ("trusted.orders", orders, "region", pa.array(region)),
        ("trusted.outcomes", outcomes, "took", pa.array(took, pa.int64())),
    ):
        rows = rows.set_column(rows.schema.get_field_index(column), column, values)
        platform.lake.write(name, rows, examples.dates(DAYS + 20))


def test_a_better_challenger_is_in_force_from_the_day_after(platform: MemoryPlatform) -> None:
    run(platform)
    drift(platform)
    tomorrow = LATER + dt.timedelta(days=1)
    second = run(platform, as_of=LATER, key="run-2", times=2)
    assert second["decided"]["accepted"], second["decided"]["reasons"]
    evidence = second["decided"]["evidence"]
    assert evidence["champion_version"] == 1
    assert evidence["fresh"]["over_champion"]["low"] > 0
    assert evidence["frozen"]["over_champion"]["value"] > -0.02
    assert evidence["frozen_from"]["cut"] == AS_OF.isoformat(), "both were measured on the same frozen days"
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
    assert done["registered"] == {"version": 2, "accepted": False, "model": SPEC.name}
    assert [v.aliases for v in platform.registry.versions(SPEC.name)] == [("champion",), ("challenger",)]
    assert platform.registry.records["run-2"].lineage["decision"] == "refused"
    assert platform.registry.records["run-2"].lineage["decision_reasons"] == done["decided"]["reasons"]
    with pytest.raises(Refused, match=r"version 2: .+"):
        steps.promote(platform, SPEC, AS_OF, "run-2", done["registered"], done["decided"])
    assert champion(platform) == 1
    assert [row["version"] for row in platform.mart.champion_history(SPEC.name)] == [1]
    assert kinds(platform) == ["gate", "gate", "holdout", "promotion"]


# --- what cannot be decided ------------------------------------------------------------------------------------------


def judge(platform: MemoryPlatform, day: dt.date, verdict: str) -> None:
    """As `monitor__` does."""
    platform.mart.record_monitoring(
        model=SPEC.name,
        as_of=day,
        version=1,
        verdict=verdict,
        reasons=["amount: 40.0% null, 0.0% usual"],
        columns={},
        performance={},
        report_uri=None,
        run_id=f"monitor-{day}",
    )


def test_broken_data_among_the_fresh_days_cannot_decide(platform: MemoryPlatform) -> None:
    broken = AS_OF - dt.timedelta(days=2)
    judge(platform, broken, "broken_data")
    done = run(platform, times=2)
    assert done["decided"]["outcome"] == "cannot_decide"
    assert done["decided"]["reasons"] == [
        f"cannot decide: the data of {broken} is broken (amount: 40.0% null, 0.0% usual): repair it, and monitor that "
        "date again"
    ]
    assert champion(platform) is None
    assert platform.mart.champion_history(SPEC.name) == []
    assert [version.aliases for version in platform.registry.versions(SPEC.name)] == [("challenger",)]
    assert platform.registry.records["run-1"].lineage["decision"] == "cannot_decide"
    with pytest.raises(Refused, match=f"version 1: cannot decide: the data of {broken} is broken"):
        steps.promote(platform, SPEC, AS_OF, "run-1", done["registered"], done["decided"])
    judge(platform, broken, "ok")
    assert run(platform)["decided"] == done["decided"], "a run's answer stands"
    assert run(platform, key="run-2")["decided"]["outcome"] == "accepted", "a new run sees the repaired date"


@pytest.mark.parametrize("verdict", ["ok", "covariate_drift", "performance_drop"])
def test_other_verdicts_are_no_obstacle(platform: MemoryPlatform, verdict: str) -> None:
    judge(platform, AS_OF - dt.timedelta(days=2), verdict)
    assert run(platform)["decided"]["outcome"] == "accepted"


def test_broken_data_before_the_fresh_days_is_no_obstacle(platform: MemoryPlatform) -> None:
    judge(platform, AS_OF - dt.timedelta(days=6), "broken_data")
    judge(platform, AS_OF + dt.timedelta(days=1), "broken_data")
    assert run(platform)["decided"]["outcome"] == "accepted"


def test_too_few_fresh_days_cannot_decide(platform: MemoryPlatform) -> None:
    spec = examples.model(gate={**SPEC.gate.model_dump(), "min_holdout_days": 6})
    done = run(platform, spec)
    assert done["decided"]["outcome"] == "cannot_decide"
    assert "expected at least 6 fresh days" in done["decided"]["reasons"][0]
    assert "promoted" not in done


def test_a_champion_that_has_seen_the_fresh_days_cannot_be_challenged(platform: MemoryPlatform) -> None:
    """A training of the past after a newer champion: no day is new to both."""
    run(platform)
    past = run(platform, as_of=AS_OF - dt.timedelta(days=5), key="run-2", overrides={"max_depth": 1})
    assert past["decided"]["outcome"] == "cannot_decide"
    assert "found 0" in past["decided"]["reasons"][0]
    assert champion(platform) == 1


def test_without_a_frozen_holdout_the_fresh_days_decide(platform: MemoryPlatform) -> None:
    spec = examples.model(gate={**SPEC.gate.model_dump(), "frozen": {"every_days": 5, "min_days": 30}})
    done = run(platform, spec, times=2)
    assert done["built"]["frozen"] is done["decided"]["evidence"]["frozen"] is None
    assert done["decided"]["outcome"] == "accepted"
    assert kinds(platform) == ["gate", "promotion"]


def test_costs_can_decide(platform: MemoryPlatform) -> None:
    spec = examples.model(
        costs={"hit": 1, "miss": 5, "false_alarm": 2, "unit": "EUR"},
        gate={**SPEC.gate.model_dump(), "metric": "value", "max_frozen_drop": 200, "max_slice_drop": 400},
    )
    first = run(platform, spec, overrides={"max_depth": 1, "eta": 0.1}, times=2)
    assert first["decided"]["outcome"] == "accepted", first["decided"]["reasons"]
    drift(platform)
    second = run(platform, spec, as_of=LATER, key="run-2", times=2)
    evidence = second["decided"]["evidence"]
    assert second["decided"]["outcome"] == "accepted", second["decided"]["reasons"]
    assert evidence["metric"] == "value"
    fresh = evidence["fresh"]
    assert fresh["over_champion"]["value"] == pytest.approx(
        fresh["challenger"]["value"]["value"] - fresh["champion"]["value"]["value"]
    )
    assert champion(platform) == 2
    made = platform.registry.load(SPEC.name, 2)
    assert made.threshold != SPEC.scoring.threshold
    assert platform.registry.records["run-2"].metrics["challenger_value"] == fresh["challenger"]["value"]["value"]


# --- the model card --------------------------------------------------------------------------------------------------


def test_every_version_has_its_card(platform: MemoryPlatform) -> None:
    run(platform)
    twin = run(platform, key="run-2")
    for number, outcome in ((1, "accepted"), (2, "refused")):
        found = json.loads(platform.registry.attachment(SPEC.name, number, "card.json"))
        assert (found["version"], found["outcome"]) == (number, outcome)
        page = platform.registry.attachment(SPEC.name, number, "card.html").decode()
        assert f"version {number}" in page.lower()
        assert "<script" not in page
    assert found["reasons"] == twin["decided"]["reasons"]
    assert found["champion_version"] == 1
    assert set(found["shap"]) == set(SPEC.features)


def test_a_card_is_made_again_byte_for_byte(platform: MemoryPlatform) -> None:
    def cards() -> list[bytes]:
        return [platform.registry.attachment(SPEC.name, 1, name) for name in ("card.json", "card.html")]

    run(platform)
    before = cards()
    run(platform)
    assert cards() == before


# --- a promotion that was overruled ----------------------------------------------------------------------------------


def withdrawn(platform: MemoryPlatform) -> dict[str, Any]:
    """Version 2 was champion, and a rollback went back to version 1; the run that promoted it."""
    run(platform)
    drift(platform)
    second = run(platform, as_of=LATER, key="run-2")
    assert champion(platform) == 2
    planned = rollback.plan(platform, SPEC, 1, "rollback-1")
    rollback.withdraw(platform, SPEC, planned, "rollback-1", "ada", "a test", dry_run=False)
    return second


def again(platform: MemoryPlatform, done: dict[str, Any]) -> dict[str, Any]:
    """The task `promote` of run-2 is cleared."""
    return steps.promote(platform, SPEC, LATER, "run-2", done["registered"], done["decided"])


def test_a_withdrawn_version_is_not_put_back_by_clearing_its_run(platform: MemoryPlatform) -> None:
    done = withdrawn(platform)
    before = stored(platform)
    assert champion(platform) == 1
    assert again(platform, done) == done["promoted"]
    assert stored(platform) == before
    assert platform.mart.champion_at(SPEC.name, LATER + dt.timedelta(days=1)) == (1, LATER + dt.timedelta(days=1))


def test_a_withdrawn_version_that_a_rollback_put_back_stays_champion(platform: MemoryPlatform) -> None:
    done = withdrawn(platform)
    planned = rollback.plan(platform, SPEC, 2, "rollback-2")
    rollback.withdraw(platform, SPEC, planned, "rollback-2", "ada", "a test", dry_run=False)
    before = stored(platform)
    assert again(platform, done) == done["promoted"]
    assert champion(platform) == 2
    assert stored(platform) == before


def test_a_dry_run_of_a_rollback_overrules_nothing(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion that broke off before the alias is completed still."""
    run(platform)
    drift(platform)
    with monkeypatch.context() as patch:

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(platform.registry, "set_alias", dies)
        with pytest.raises(KeyboardInterrupt):
            run(platform, as_of=LATER, key="run-2")
    planned = rollback.plan(platform, SPEC, 1, "rollback-1")
    rollback.withdraw(platform, SPEC, planned, "rollback-1", "ada", None, dry_run=True)
    assert champion(platform) == 1
    run(platform, as_of=LATER, key="run-2")
    assert champion(platform) == 2


def test_a_promotion_that_another_of_its_date_replaced_stays_replaced(platform: MemoryPlatform) -> None:
    """Two trainings as of one date; the later promotion has the date, whichever run is cleared."""
    run(platform)
    drift(platform)
    second = run(platform, as_of=LATER, key="run-2", overrides={"max_depth": 4})
    assert second["decided"]["accepted"], second["decided"]["reasons"]
    third = run(platform, as_of=LATER, key="run-3")
    accepted = {**third["decided"], "accepted": True}
    steps.promote(platform, SPEC, LATER, "run-3", third["registered"], accepted)
    assert champion(platform) == 3
    before = stored(platform)
    assert again(platform, second) == second["promoted"]
    assert stored(platform) == before


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


def test_a_staged_model_that_was_replaced_is_not_measured(platform: MemoryPlatform) -> None:
    """Files and checksums that fit together, but are not what `fit` staged."""
    built = steps.build(platform, SPEC, AS_OF, "run-1", "a test")
    leaks = steps.check_leaks(platform, SPEC, AS_OF, built)
    fitted = steps.fit(platform, SPEC, AS_OF, "run-1", built, None)
    other = steps.fit(platform, SPEC, AS_OF, "run-2", built, {"max_depth": 1})
    for name in FILES:
        platform.objects.put(f"{fitted['prefix']}/{name}", platform.objects.get(f"{other['prefix']}/{name}"))
    with pytest.raises(ChecksumMismatch, match=r"bundle.json: expected SHA-256"):
        steps.decide(platform, SPEC, AS_OF, "run-1", built, fitted, leaks)
