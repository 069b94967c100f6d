"""Exactness: ten days of the loop, then every run again, cleared, out of order and at once: nothing changes."""

from __future__ import annotations

import datetime as dt
import functools
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from include.evergreen.mart.views import names
from include.evergreen.pipeline import monitoring, retraining, scoring
from include.evergreen.replay import machine, world
from include.evergreen.replay.machine import Life
from tests import examples
from tests.support import MemoryPlatform, memory_platform
from tests.unit.test_replay import SHOP, model, publish

DAY = dt.timedelta(days=1)
BEFORE = 44
FIRST = examples.FIRST + BEFORE * DAY
DAYS = [FIRST + offset * DAY for offset in range(10)]
SECOND = DAYS[6]
"""A second version is in force from here on."""
SPEC = model()
Run = Callable[[MemoryPlatform, dt.date, str], None]


def ingest(platform: MemoryPlatform, day: dt.date, key: str) -> None:
    world.take_in(platform, SHOP, day, None, f"ingest-{key}")


def score(platform: MemoryPlatform, day: dt.date, key: str) -> None:
    staged = scoring.predict(platform, SPEC, SHOP, day, f"score-{key}")
    scoring.publish(platform, SPEC, SHOP, day, staged, f"score-{key}")


def monitor(platform: MemoryPlatform, day: dt.date, key: str) -> None:
    facts = monitoring.measure(platform, SPEC, SHOP, day, f"monitor-{key}", page=False)
    monitoring.conclude(platform, SPEC, SHOP, day, facts, f"monitor-{key}")
    retraining.ask(platform, SPEC, day, f"monitor-{key}")


def started(folder: Path) -> MemoryPlatform:
    """The shop with its history, a champion from the first day on and another one from `SECOND` on."""
    folder.mkdir()
    platform = memory_platform(folder)
    publish(platform.landing, examples.FIRST, DAYS[-1])
    world.take_in(platform, SHOP, FIRST - DAY, examples.FIRST, "history")
    for number, as_of in ((1, FIRST - DAY), (2, FIRST)):
        life = Life("exact")
        machine.train(platform, SPEC, as_of - DAY, f"train-{number}", "a champion", life)
        assert life.trainings[0]["version"] == number, life.trainings
    for number, day in ((1, FIRST), (2, SECOND)):
        platform.mart.promote(model=SPEC.name, version=number, effective_from=day, metrics={}, run_id=f"train-{number}")
    return platform


def walk(platform: MemoryPlatform, days: Iterable[dt.date], key: Callable[[dt.date], str], *runs: Run) -> None:
    for day in days:
        for run in runs or (ingest, score, monitor):
            run(platform, day, key(day))


def dump(platform: MemoryPlatform, view: str, *without: str) -> bytes:
    """Every row of a view as a foreign tool reads it, in an order of its own."""
    platform.mart.engine.dispose()
    with closing(sqlite3.connect(platform.mart.read_only_uri(), uri=True)) as reader:
        found = reader.execute(f"select * from {view}")
        columns = [column[0] for column in found.description]
        rows = [[value for name, value in zip(columns, row, strict=True) if name not in without] for row in found]
    return "\n".join(sorted(map(repr, rows))).encode()


def seen(platform: MemoryPlatform) -> dict[str, bytes]:
    """All that analysts see."""
    return {view: dump(platform, view) for view in (*names(SPEC), "model_decisions")}


def repeated(platform: MemoryPlatform) -> list[tuple[object, ...]]:
    """Entities that the history holds twice for one date and version."""
    with closing(sqlite3.connect(platform.mart.read_only_uri(), uri=True)) as reader:
        keys = "order_id, as_of, model_version"
        return reader.execute(f"select {keys} from {SPEC.name}_history group by {keys} having count(*) > 1").fetchall()


@functools.cache
def shuffled(seed: int) -> tuple[dt.date, ...]:
    days = list(DAYS)
    random.Random(seed).shuffle(days)
    assert days != DAYS
    return tuple(days)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> MemoryPlatform:
    """Ten days, once and in order."""
    platform = started(tmp_path_factory.mktemp("exact") / "lived")
    walk(platform, DAYS, str)
    return platform


def test_the_ten_days_are_there(lived: MemoryPlatform) -> None:
    scorings = lived.mart.scorings(SPEC.name)
    assert [(row["as_of"], row["version"]) for row in scorings] == [(day, 1 + (day >= SECOND)) for day in DAYS]
    assert dump(lived, f"{SPEC.name}_current").count(b"\n") == 10 * 60 - 1
    assert dump(lived, f"{SPEC.name}_outcomes").count(b"\n") == 9 * 60 - 1
    assert len(lived.mart.monitorings(SPEC.name)) == 10
    assert len({row["auc"] for row in lived.mart.cohorts(SPEC.name)}) > 5, "the days differ"


@pytest.mark.parametrize(
    ("cleared", "days"),
    [(True, DAYS[::-1]), (False, DAYS), (False, shuffled(1))],
    ids=["cleared, backwards", "run anew", "run anew, shuffled"],
)
def test_every_run_again_changes_nothing(
    lived: MemoryPlatform, cleared: bool, days: list[dt.date], request: pytest.FixtureRequest
) -> None:
    before = seen(lived)
    walk(lived, days, str if cleared else lambda day: f"again-{day}-{request.node.name}")
    assert seen(lived) == before
    assert repeated(lived) == []


def test_steps_apart_and_out_of_order_change_nothing(lived: MemoryPlatform) -> None:
    before = seen(lived)
    for seed, run in enumerate((monitor, score, ingest, score), 2):
        walk(lived, shuffled(seed), lambda day, seed=seed: f"apart-{day}-{seed}", run)  # type: ignore[misc]
    assert seen(lived) == before
    assert repeated(lived) == []


def test_two_scorings_of_one_partition_at_once_change_nothing(lived: MemoryPlatform) -> None:
    before = seen(lived)
    for day in DAYS[4:8]:
        assert at_once(lambda number, day=day: score(lived, day, f"twin-{number}-{day}")) == []  # type: ignore[misc]
    assert seen(lived) == before
    assert repeated(lived) == []


def test_a_clean_run_in_another_order_makes_the_same_rows(lived: MemoryPlatform, tmp_path: Path) -> None:
    other = started(tmp_path / "other")
    walk(other, DAYS, str, ingest)
    for day in shuffled(9):
        failures = at_once(lambda number, day=day: score(other, day, f"{number}-{day}"))  # type: ignore[misc]
        assert failures == []
    walk(other, shuffled(10), str, monitor)
    view = f"{SPEC.name}_current"
    assert dump(other, view, "scored_at") == dump(lived, view, "scored_at")
    assert repeated(other) == []
    outcomes = f"{SPEC.name}_outcomes"
    assert dump(other, outcomes, "scored_at") == dump(lived, outcomes, "scored_at")


def test_a_restatement_is_seen_and_the_rerun_of_it_is_not(lived: MemoryPlatform, tmp_path: Path) -> None:
    """Last: it changes what the other tests compare."""
    day = DAYS[2]
    before = dump(lived, f"{SPEC.name}_history", "is_current")

    def restate(number: int) -> None:
        staged = scoring.predict(lived, SPEC, SHOP, day, f"restate-{number}", version=2)
        scoring.publish(lived, SPEC, SHOP, day, staged, f"restate-{number}", replace=True, reason="a better one")

    assert at_once(restate) == []
    after = seen(lived)
    kept = set(dump(lived, f"{SPEC.name}_history", "is_current").splitlines())
    assert set(before.splitlines()) < kept
    assert after[f"{SPEC.name}_current"].count(b"a better one") == 60
    restate(3)
    walk(lived, shuffled(3), str, score)
    assert seen(lived) == after
    assert repeated(lived) == []


def at_once(work: Callable[[int], None]) -> list[Exception]:
    """What two threads that start together raised."""
    failures: list[Exception] = []
    barrier = threading.Barrier(2)

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
