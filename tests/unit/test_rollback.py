"""Going back to an earlier champion, on the example shop: what is planned, withdrawn, re-scored."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from include.evergreen.errors import AccountingError, NotFound, Refused
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.pipeline import rollback as steps
from include.evergreen.pipeline import scoring
from include.evergreen.promotion.ports import TrainingRecord
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC, SOURCE = examples.model(), examples.source()
DAYS = 46
AS_OF = examples.FIRST + dt.timedelta(days=40)
SECOND = AS_OF + dt.timedelta(days=2)
"""Version 2 is champion from here on."""
SCORED = [AS_OF + dt.timedelta(days=offset) for offset in range(5)]
WITHDRAWN = [day.isoformat() for day in SCORED[2:]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[ModelBundle]:
    """Three models of the shop that predict differently."""
    lake = memory_platform(tmp_path_factory.mktemp("shop")).lake
    examples.fill(lake, DAYS)
    until = AS_OF - dt.timedelta(days=1)
    rows = labelled(
        features(lake, SPEC, examples.FIRST, until), labels(lake, SPEC, examples.FIRST, until, cut=AS_OF), SPEC
    )
    return [fit(SPEC, rows, AS_OF, {"max_depth": depth}) for depth in (3, 2, 1)]


@pytest.fixture
def platform(tmp_path: Path, bundles: list[ModelBundle]) -> MemoryPlatform:
    """Versions 1, 2 and 3 registered; 1 champion from `AS_OF`, 2 from `SECOND`; five dates scored by them."""
    made = memory_platform(tmp_path)
    examples.fill(made.lake, DAYS)
    for number, bundle in enumerate(bundles, 1):
        made.registry.register(bundle, TrainingRecord(f"train-{number}", {}, {}, {}, {}))
    promote(made, 1, AS_OF)
    promote(made, 2, SECOND)
    score(made, *SCORED)
    return made


def promote(platform: MemoryPlatform, version: int, effective_from: dt.date) -> None:
    """As the last step of a training does."""
    platform.mart.append_decision(
        kind="promotion",
        subject=SPEC.name,
        as_of=effective_from,
        outcome="promoted",
        reasons=["better"],
        evidence={"version": version},
        actor="gate",
        run_id=f"train-{version}",
    )
    platform.mart.promote(
        model=SPEC.name, version=version, effective_from=effective_from, metrics={}, run_id=f"train-{version}"
    )
    platform.registry.set_alias(SPEC.name, version, "champion")


def score(platform: MemoryPlatform, *days: dt.date) -> list[int]:
    """As `score__` does; the versions that did it."""
    return [
        scoring.publish(platform, SPEC, SOURCE, day, scoring.predict(platform, SPEC, SOURCE, day, "score"), "score")[
            "version"
        ]
        for day in days
    ]


def run(platform: MemoryPlatform, version: int, key: str = "run-1", dry_run: bool = False) -> dict[str, Any]:
    """All steps as the DAG chains them; what passes between tasks is JSON."""

    def passed(value: Any) -> Any:
        return json.loads(json.dumps(value, allow_nan=False))

    planned = passed(steps.plan(platform, SPEC, version, key))
    done = passed(steps.withdraw(platform, SPEC, planned, key, "ada", "a test", dry_run))
    for day in done["partitions"]:
        passed(steps.rescore(platform, SPEC, SOURCE, dt.date.fromisoformat(day), version, key))
    return {"plan": planned, "withdrawn": done, "complete": passed(steps.complete(platform, SPEC, planned, key))}


def shown(platform: MemoryPlatform) -> dict[dt.date, int]:
    """Date -> the version that analysts see."""
    return {row["as_of"]: row["version"] for row in platform.mart.scorings(SPEC.name) if row["is_current"]}


def predicted(platform: MemoryPlatform) -> set[tuple[str, int, int]]:
    """(date, version, rows) of all stored predictions, withdrawn ones too."""
    query = f"select as_of, model_version, count(*) from {SPEC.name}_predictions group by 1, 2"
    with platform.mart.engine.connect() as connection:
        return {tuple(row) for row in connection.execute(sa.text(query))}


def stored(platform: MemoryPlatform) -> dict[str, Any]:
    """All that a rollback may change."""
    query = f"select * from {SPEC.name}_predictions order by order_id, as_of, model_version"
    with platform.mart.engine.connect() as connection:
        rows = connection.execute(sa.text(query)).all()
    return {
        "ledger": platform.mart.decisions(),
        "champions": platform.mart.champion_history(SPEC.name),
        "aliases": [version.aliases for version in platform.registry.versions(SPEC.name)],
        "scorings": platform.mart.scorings(SPEC.name),
        "predictions": rows,
        "lake": platform.lake.read(f"predictions.{SPEC.name}").to_pylist(),
    }


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_names_what_the_champion_scored_since_it_is_in_force(platform: MemoryPlatform) -> None:
    before = stored(platform)
    assert steps.plan(platform, SPEC, 1, "run-1") == {
        "model": SPEC.name,
        "version": 1,
        "withdrawn": 2,
        "effective_from": SECOND.isoformat(),
        "partitions": WITHDRAWN,
        "rows": 3 * 60,
    }
    assert stored(platform) == before


def test_only_current_scorings_of_its_time_are_planned(platform: MemoryPlatform) -> None:
    steps.rescore(platform, SPEC, SOURCE, SCORED[3], 1, "by-hand")
    steps.rescore(platform, SPEC, SOURCE, SCORED[0], 2, "by-hand")
    found = steps.plan(platform, SPEC, 1, "run-1")
    assert found["partitions"] == [SCORED[2].isoformat(), SCORED[4].isoformat()]


def test_a_version_that_never_was_champion_is_refused(platform: MemoryPlatform) -> None:
    with pytest.raises(Refused, match=r"was champion, one of \[1, 2\], found 3"):
        steps.plan(platform, SPEC, 3, "run-1")


def test_a_gate_that_said_yes_makes_no_champion(platform: MemoryPlatform) -> None:
    told: dict[str, Any] = {
        "subject": SPEC.name,
        "as_of": SECOND,
        "reasons": ["x"],
        "evidence": {"version": 3},
        "actor": "a",
    }
    platform.mart.append_decision(kind="gate", outcome="accepted", run_id="train-3", **told)
    platform.mart.append_decision(kind="promotion", outcome="refused", run_id="train-3", **told)
    with pytest.raises(Refused, match="found 3"):
        steps.plan(platform, SPEC, 3, "run-1")


def test_the_champion_itself_is_refused(platform: MemoryPlatform) -> None:
    with pytest.raises(Refused, match=f"another version than the champion, found 2, champion since {SECOND}"):
        steps.plan(platform, SPEC, 2, "run-1")


def test_an_unknown_version_is_not_found(platform: MemoryPlatform) -> None:
    with pytest.raises(NotFound, match="expected version 9"):
        steps.plan(platform, SPEC, 9, "run-1")


def test_a_version_whose_features_are_gone_is_refused(platform: MemoryPlatform) -> None:
    features_ = {name: feature for name, feature in SPEC.features.items() if name != "amount"}
    narrower = SPEC.model_copy(update={"features": features_})
    with pytest.raises(Refused, match=r"version 1: .*\['amount'\]"):
        steps.plan(platform, narrower, 1, "run-1")


# --- a dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_one_row_in_the_ledger(platform: MemoryPlatform) -> None:
    before = stored(platform)
    done = run(platform, 1, dry_run=True)
    assert done["withdrawn"] == {"outcome": "dry_run", "partitions": []}
    assert done["complete"] == {"model": SPEC.name, "version": 1, "withdrawn": 2, "outcome": "dry_run", "rescored": 0}
    after = stored(platform)
    (row,) = [row for row in after["ledger"] if row not in before["ledger"]]
    assert (row["kind"], row["outcome"], row["evidence"]) == ("rollback", "dry_run", done["plan"])
    assert {**after, "ledger": None} == {**before, "ledger": None}
    run(platform, 1, dry_run=True)
    assert stored(platform) == after


def test_a_dry_run_needs_no_reason_and_a_real_one_does(platform: MemoryPlatform) -> None:
    planned = steps.plan(platform, SPEC, 1, "run-1")
    with pytest.raises(Refused, match="expected the param reason"):
        steps.withdraw(platform, SPEC, planned, "run-1", "ada", None, dry_run=False)
    assert platform.mart.decisions(kind="rollback") == []
    steps.withdraw(platform, SPEC, planned, "run-1", "ada", None)
    assert [row["reasons"] for row in platform.mart.decisions(kind="rollback")] == [["dry run"]]


# --- a real one ------------------------------------------------------------------------------------------------------


def test_the_earlier_version_is_in_force_for_the_withdrawn_dates(platform: MemoryPlatform) -> None:
    done = run(platform, 1)
    assert done["withdrawn"] == {"outcome": "rolled_back", "partitions": WITHDRAWN}
    assert done["complete"] == {
        "model": SPEC.name,
        "version": 1,
        "withdrawn": 2,
        "outcome": "rolled_back",
        "rescored": 3,
    }
    assert shown(platform) == dict.fromkeys(SCORED, 1)
    assert platform.mart.champion_at(SPEC.name, SECOND) == (1, SECOND)
    assert platform.mart.champion_at(SPEC.name, AS_OF) == (1, AS_OF)
    assert [version.aliases for version in platform.registry.versions(SPEC.name)] == [("champion",), ("withdrawn",), ()]
    (row,) = platform.mart.decisions(SPEC.name, "rollback")
    assert (row["outcome"], row["as_of"], row["actor"], row["run_id"]) == ("rolled_back", SECOND, "ada", "run-1")
    assert row["reasons"] == ["a test"]
    assert row["evidence"] == done["plan"]


def test_withdrawn_rows_stay_in_the_history(platform: MemoryPlatform) -> None:
    before = predicted(platform)
    run(platform, 1)
    assert predicted(platform) == before | {(day, 1, 60) for day in WITHDRAWN}


def test_scoring_keeps_what_the_rollback_decided(platform: MemoryPlatform) -> None:
    run(platform, 1)
    before = stored(platform)
    assert score(platform, *SCORED) == [1] * len(SCORED), "scored dates keep the version they went back to"
    assert stored(platform) == before
    assert score(platform, SCORED[-1] + dt.timedelta(days=1)) == [1], "so do the dates to come"


def test_a_second_run_of_every_step_changes_nothing(platform: MemoryPlatform) -> None:
    first = run(platform, 1)
    once = stored(platform)
    assert run(platform, 1) == first, "a plan that is cleared after the withdrawal is the recorded one"
    assert stored(platform) == once


@pytest.mark.parametrize("broken", ["promote", "set_alias"])
def test_a_withdrawal_that_broke_off_is_completed(
    platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    with monkeypatch.context() as patch:

        def dies(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(platform.mart if broken == "promote" else platform.registry, broken, dies)
        with pytest.raises(KeyboardInterrupt):
            run(platform, 1)
    champion = platform.registry.champion(SPEC.name)
    assert champion is not None
    assert champion.number == 2
    run(platform, 1)
    champion = platform.registry.champion(SPEC.name)
    assert champion is not None
    assert champion.number == 1
    assert shown(platform) == dict.fromkeys(SCORED, 1)
    assert len(platform.mart.decisions(kind="rollback")) == 1


def test_a_champion_promoted_after_a_broken_try_keeps_its_alias(
    platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def dies(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(platform.mart, "promote", dies)
        with pytest.raises(KeyboardInterrupt):
            run(platform, 1)
    third = SCORED[-1] + dt.timedelta(days=1)
    promote(platform, 3, third)
    run(platform, 1)
    assert [platform.mart.champion_at(SPEC.name, day) for day in (SECOND, third)] == [(1, SECOND), (3, third)]
    champion = platform.registry.champion(SPEC.name)
    assert champion is not None
    assert champion.number == 3


def test_a_date_scored_after_the_plan_is_rescored_too(platform: MemoryPlatform) -> None:
    late = SCORED[-1] + dt.timedelta(days=1)
    planned = steps.plan(platform, SPEC, 1, "run-1")
    score(platform, late)
    done = steps.withdraw(platform, SPEC, planned, "run-1", "ada", "a test", dry_run=False)
    assert done["partitions"] == [*WITHDRAWN, late.isoformat()]


def test_a_scoring_that_a_rollback_overtook_is_made_by_the_version_in_force(platform: MemoryPlatform) -> None:
    late = SCORED[-1] + dt.timedelta(days=1)
    staged = scoring.predict(platform, SPEC, SOURCE, late, "score")
    assert staged["version"] == 2
    run(platform, 1)
    assert scoring.publish(platform, SPEC, SOURCE, late, staged, "score")["version"] == 1
    assert shown(platform)[late] == 1


def test_what_is_left_is_named_and_found_by_clearing(platform: MemoryPlatform) -> None:
    late = SCORED[-1] + dt.timedelta(days=1)
    staged = scoring.predict(platform, SPEC, SOURCE, late, "score")
    done = run(platform, 1)
    scoring.publish(platform, SPEC, SOURCE, late, staged, "score", replace=True)
    with pytest.raises(AccountingError, match=f"by version 2 since {SECOND}, found {late}: clear `withdraw`"):
        steps.complete(platform, SPEC, done["plan"], "run-1")
    run(platform, 1)
    assert shown(platform) == dict.fromkeys([*SCORED, late], 1)


def test_a_run_that_recorded_nothing_is_not_complete(platform: MemoryPlatform) -> None:
    planned = steps.plan(platform, SPEC, 1, "run-1")
    with pytest.raises(AccountingError, match="run-1"):
        steps.complete(platform, SPEC, planned, "run-1")


# --- others decide too -----------------------------------------------------------------------------------------------


def test_a_plan_that_another_champion_overtook_is_refused(platform: MemoryPlatform) -> None:
    planned = steps.plan(platform, SPEC, 1, "run-1")
    third = SCORED[-1] + dt.timedelta(days=1)
    promote(platform, 3, third)
    before = stored(platform)
    with pytest.raises(Refused, match=f"expected version 2, champion since {SECOND}, found version 3 since {third}"):
        steps.withdraw(platform, SPEC, planned, "run-1", "ada", "a test", dry_run=False)
    assert stored(platform) == before


def test_there_and_back_again(platform: MemoryPlatform) -> None:
    first = run(platform, 1)
    run(platform, 2, "run-2")
    assert shown(platform) == {day: 2 if day >= SECOND else 1 for day in SCORED}
    assert [version.aliases for version in platform.registry.versions(SPEC.name)] == [("withdrawn",), ("champion",), ()]
    before = stored(platform)
    with pytest.raises(Refused, match=r"1 later rollback\(s\): start a new run"):
        steps.withdraw(platform, SPEC, first["plan"], "run-1", "ada", "a test", dry_run=False)
    assert stored(platform) == before


def test_a_training_promoted_from_the_same_date_is_not_undone(platform: MemoryPlatform) -> None:
    first = run(platform, 1)
    promote(platform, 3, SECOND)
    with pytest.raises(Refused, match=f"from {SECOND} on, found version 3"):
        steps.withdraw(platform, SPEC, first["plan"], "run-1", "ada", "a test", dry_run=False)


def test_one_withdraws_at_a_time(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = steps.plan(platform, SPEC, 1, "run-1")
    held: list[str] = []
    lock = platform.mart.lock

    def watched(name: str, timeout: float = 600) -> Any:
        held.append(name)
        return lock(name, timeout)

    monkeypatch.setattr(platform.mart, "lock", watched)
    steps.withdraw(platform, SPEC, planned, "run-1", "ada", "a test", dry_run=False)
    assert held == [f"champion-{SPEC.name}", SPEC.name]  # and no scoring is published meanwhile


def test_analysts_see_which_dates_were_restated_and_why(platform: MemoryPlatform) -> None:
    run(platform, 1)
    run(platform, 1)  # a cleared run
    found = {
        row["as_of"].isoformat(): row["restated_reason"]
        for row in platform.mart.scorings(SPEC.name)
        if row["restated_at"]
    }
    assert found == dict.fromkeys(WITHDRAWN, "rollback: a test")
    with platform.mart.reading() as connection:
        query = f"select as_of, count(*) from {SPEC.name}_current where restated_reason = 'rollback: a test' group by 1"
        assert dict(tuple(row) for row in connection.execute(sa.text(query))) == dict.fromkeys(WITHDRAWN, 60)
