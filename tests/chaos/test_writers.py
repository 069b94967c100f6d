"""Many at once on one thing: partitions, scorings, champions, upkeep. Processes, released at one moment, in rounds.

The rows are compared with those of one clean run; readers from outside poll meanwhile and see a whole old or a whole
new partition. Catalog and mart on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from include.evergreen.errors import Unavailable
from include.evergreen.lake.iceberg import IcebergLake
from include.evergreen.pipeline import rollback, scoring, staging
from include.evergreen.pipeline.maintenance import maintain_lake
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings
from tests.chaos import flights
from tests.chaos.flights import (
    DAY,
    SCHEDULES,
    SOURCE,
    TRAINED,
    UNTIL,
    Outside,
    csv_rows,
    delivered,
    opened,
    packed,
    postgres_server,
    quick,
    together,
    world,
    written,
)
from tests.chaos.tally import Tally

KIND = "many at once"
SPEC = quick()
ROUNDS = 3
DATE = dt.date(2013, 1, 20)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The server that holds catalog and mart; None for SQLite files."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else None


@pytest.fixture(scope="module")
def made(
    url: str | None, s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Some weeks of flights, two champions."""
    platform = world(s3_store, tmp_path_factory.mktemp("writers"), SPEC, url)
    platform.mart.ensure_model(SPEC, SOURCE)
    yield platform
    platform.mart.engine.dispose()


# --- looking meanwhile -----------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a reader saw, and what it could not read."""

    states: Counter[Any]
    errors: list[str]


@contextmanager
def polling(look: Callable[[], Any]) -> Iterator[Seen]:
    """Calls `look` over and over, from a thread, until the block ends."""
    seen, done = Seen(Counter(), []), threading.Event()

    def poll() -> None:
        while True:
            try:
                seen.states[look()] += 1
            except Exception as error:
                seen.errors.append(repr(error))
            if done.wait(0.05):  # leaves the processor to those who write
                return

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(60)


def all_answered(answers: list[tuple[str, Any]]) -> list[Any]:
    assert [kind for kind, _ in answers] == ["answer"] * len(answers), answers
    return [answer for _, answer in answers]


# --- ingest: two runs of one partition -------------------------------------------------------------------------------


def take_in(settings: Settings, day: str, run_id: str) -> dict[str, Any]:
    return flights.take_in(Platform(settings), SCHEDULES, [dt.date.fromisoformat(day)], run_id)


def partition(outside: Outside, kind: str, day: dt.date) -> tuple[str, ...]:
    """Rows of a partition, sorted, without what names the writer."""
    if not outside.has(f"{kind}.schedules"):
        return ()
    found = outside.lake(f"select * from {{{kind}.schedules}} where partition_date = ?", day)
    return tuple(sorted(json.dumps(row, default=str, sort_keys=True) for row in found))


def deliveries(day: dt.date) -> list[bytes]:
    """What the upstream delivers of a date, one version after another: real rows, some broken, some twice."""
    rows = csv_rows(delivered(day, day, 0.12)[SCHEDULES.path.format(date=day)])
    versions = []
    for i in range(ROUNDS):
        kept = [row for at, row in enumerate(rows) if at % (ROUNDS + 2) != i]
        kept[i] = {**kept[i], "tailnum": "broken"}
        versions.append(packed(written([*kept, kept[5], kept[6]])))
    return versions


def test_two_runs_of_one_partition(
    made: Platform, s3_store: ObjectStoreSettings, tally: Tally, tmp_path: Path, url: str | None
) -> None:
    """Each round the file is another one, and two runs take it in at once, and a third a neighbour."""
    outside = Outside(made.settings, tmp_path / "cache")
    twin = opened(s3_store, tmp_path)
    clean = Outside(twin.settings, tmp_path / "twin")
    key, beside = SCHEDULES.path.format(date=DATE), DATE + DAY
    neighbour = partition(outside, "trusted", beside)
    states = {partition(outside, "trusted", DATE)}
    for round_, data in enumerate(deliveries(DATE)):
        with tally.fault(KIND, f"two runs of one partition, round {round_}, {_named(url)}") as fault:
            for platform in (made, twin):
                platform.landing.put(key, data)
            flights.take_in(twin, SCHEDULES, [DATE], "clean")
            states.add(partition(clean, "trusted", DATE))
            work = [
                *((take_in, (made.settings, str(DATE), f"run-{round_}-{i}")) for i in (1, 2)),
                (take_in, (made.settings, str(beside), f"beside-{round_}")),
            ]
            with polling(lambda: partition(outside, "trusted", DATE)) as seen:
                all_answered(together(*work))
            assert not seen.errors and seen.states, seen.errors
            assert set(seen.states) <= states, "a reader saw half a partition"
            for kind in ("trusted", "quarantine"):
                fault.rows(partition(clean, kind, DATE), partition(outside, kind, DATE))
            query = "select rows_in, trusted, quarantined, duplicates, status from ingest_batches "
            query += "where table_name = 'schedules' and partition_date = ?"
            assert outside.mart(query, _stored(DATE, url)) == clean.mart(query, str(DATE))
            assert partition(outside, "trusted", beside) == neighbour


def _named(url: str | None) -> str:
    return "PostgreSQL" if url else "SQLite"


def _stored(day: dt.date, url: str | None) -> Any:
    return day if url else str(day)


# --- the lake: writers and upkeep during scans -----------------------------------------------------------------------

TABLE = "trusted.scanned"


def block(day: dt.date, mark: int, size: int = 400) -> pa.Table:
    """A partition whose rows all carry the mark of the write that made them."""
    return pa.table(
        {
            "partition_date": pa.array([day] * size, pa.date32()),
            "mark": pa.array([mark] * size, pa.int64()),
            "row": pa.array(range(size), pa.int64()),
        }
    )


def rewrite(settings: Settings, first: str, marks: list[int]) -> int:
    """Replace three partitions, over and over."""
    lake, days = Platform(settings).lake, flights.days(dt.date.fromisoformat(first), 3)
    for mark in marks:
        lake.write(TABLE, pa.concat_tables([block(day, mark) for day in days]), days)
    return len(marks)


def scan(settings: Settings, times: int, stream: bool) -> list[str]:
    """Read everything, over and over: what was not whole. A stream that upkeep has overtaken says so."""
    lake, odd = Platform(settings).lake, []
    for _ in range(times):
        try:
            rows = lake.stream(TABLE).read_all() if stream else lake.read(TABLE)
        except Exception as error:
            if not (stream and isinstance(error, Unavailable) and "while it is read" in str(error)):
                odd.append(f"{type(error).__name__}: {error}")
            continue
        counted = rows.group_by(["partition_date", "mark"]).aggregate([("row", "count"), ("row", "sum")]).to_pylist()
        marks = Counter(part["partition_date"] for part in counted)
        whole = all(part["row_count"] == 400 and part["row_sum"] == 400 * 399 // 2 for part in counted)
        if not whole or set(marks.values()) != {1} or len(marks) != 7:
            odd.append(repr(counted))
    return odd


def maintain(settings: Settings, times: int, keep: int) -> int:
    lake = Platform(settings).lake
    return sum(lake.maintain(TABLE, keep_snapshots=keep).snapshots_expired for _ in range(times))


@pytest.mark.parametrize("keep", [10, 1])
def test_upkeep_during_scans_and_writes(
    made: Platform, tally: Tally, tmp_path: Path, url: str | None, keep: int
) -> None:
    """Two writers, two readers and upkeep that keeps `keep` snapshots: every scan is whole, and no row is lost."""
    lake, days = IcebergLake(made.settings), flights.days(dt.date(2013, 3, 1), 6)
    lake.write(TABLE, pa.concat_tables([block(day, 0) for day in days]), [*days, days[-1] + DAY])
    for at in range(0, 400, 50):  # many small files in a partition: there is something to compact
        lake._table(TABLE).append(block(days[-1] + DAY, 0).slice(at, 50))
    small = len(Outside(made.settings, tmp_path / "before").paths(TABLE))
    with tally.fault(KIND, f"upkeep keeping {keep} during scans and writes, {_named(url)}") as fault:
        marks = [list(range(i, 60, 2)) for i in (1, 2)]
        answers = all_answered(
            together(
                (rewrite, (made.settings, str(days[0]), marks[0][:8])),
                (rewrite, (made.settings, str(days[3]), marks[1][:8])),
                (scan, (made.settings, 12, False)),
                (scan, (made.settings, 12, True)),
                (maintain, (made.settings, 6, keep)),
            )
        )
        assert answers[2] == answers[3] == []
        maintain_lake(made, keep_snapshots=1)
        outside = Outside(made.settings, tmp_path)
        found = outside.lake(f"select partition_date, mark, row from {{{TABLE}}}")
        last = {day: marks[i // 3][7] for i, day in enumerate(days)} | {days[-1] + DAY: 0}
        expected = [(day, mark, row) for day, mark in last.items() for row in range(400)]
        assert len(outside.paths(TABLE)) < small
        fault.rows(expected, [(row["partition_date"], row["mark"], row["row"]) for row in found])


def overwrite(settings: Settings, day: str, mark: int) -> int:
    date = dt.date.fromisoformat(day)
    return Platform(settings).lake.write(TABLE, block(date, mark), [date])


def test_writers_of_one_partition_replace_it_whole(
    made: Platform, tally: Tally, tmp_path: Path, url: str | None
) -> None:
    """Four writers of one partition, some rounds: the rows are those of one of them, and a reader sees no mixture."""
    day = dt.date(2013, 4, 1)
    made.lake.write(TABLE, block(day, 0), [day])
    outside = Outside(made.settings, tmp_path)

    def marks() -> tuple[tuple[int, int], ...]:
        query = f"select mark, count(*) as n from {{{TABLE}}} where partition_date = ? group by 1 order by 1"
        return tuple((row["mark"], row["n"]) for row in outside.lake(query, day))

    for round_ in range(ROUNDS):
        with tally.fault(KIND, f"four writers of one partition, round {round_}, {_named(url)}") as fault:
            mine = [100 * round_ + i for i in range(1, 5)]
            with polling(marks) as seen:
                all_answered(together(*[(overwrite, (made.settings, str(day), mark)) for mark in mine]))
            assert not seen.errors and all(len(state) == 1 and state[0][1] == 400 for state in seen.states), seen
            [(mark, _)] = marks()
            assert mark in mine
            found = outside.lake(f"select mark, row from {{{TABLE}}} where partition_date = ?", day)
            fault.rows([(mark, row) for row in range(400)], [(row["mark"], row["row"]) for row in found])


# --- scoring, training and rollback at once --------------------------------------------------------------------------


def retried(call: Callable[[], Any]) -> Any:
    """As Airflow does where a dependency is busy: MLflow's SQLite file waits for a lock for seconds only."""
    for last in (False, False, True):
        try:
            return call()
        except Unavailable:
            if last:
                raise
    return None


def score(settings: Settings, day: str, run_id: str) -> int:
    platform, date = Platform(settings), dt.date.fromisoformat(day)
    return int(retried(lambda: flights.score(platform, SPEC, date, run_id))["version"])


def train(settings: Settings, as_of: str, key: str, eta: float) -> int:
    platform, date = Platform(settings), dt.date.fromisoformat(as_of)
    return int(retried(lambda: flights.promoted(platform, SPEC, date, key, eta)))


def go_back(settings: Settings, version: int, run_id: str) -> list[str]:
    """As `rollback`: plan, withdraw, re-score, complete."""
    platform = Platform(settings)
    plan = retried(lambda: rollback.plan(platform, SPEC, version, run_id))
    done = retried(lambda: rollback.withdraw(platform, SPEC, plan, run_id, "oncall", "a test", dry_run=False))
    for day in done["partitions"]:
        date = dt.date.fromisoformat(day)
        retried(lambda date=date: rollback.rescore(platform, SPEC, SOURCE, date, version, run_id))
    rollback.complete(platform, SPEC, plan, run_id)
    return list(done["partitions"])


def shown(outside: Outside, day: dt.date) -> list[Any]:
    """Rows that analysts see of a date: (key, version, probability)."""
    query = f"select carrier, flight, origin, model_version, probability from {SPEC.name}_current where as_of = ?"
    postgres = outside.settings.mart_uri.get_secret_value().startswith("postgres")
    rows = outside.mart(query, day if postgres else str(day))
    return sorted((r["carrier"], r["flight"], r["origin"], r["model_version"], float(r["probability"])) for r in rows)


def in_the_lake(outside: Outside, day: dt.date) -> list[Any]:
    query = "select carrier, flight, origin, model_version, probability from {predictions.%s} where partition_date = ?"
    rows = outside.lake(query % SPEC.name, day)
    return sorted((r["carrier"], r["flight"], r["origin"], r["model_version"], float(r["probability"])) for r in rows)


def clean(platform: Platform, day: dt.date, version: int) -> list[Any]:
    """What one run alone would publish."""
    staged = scoring.predict(platform, SPEC, SOURCE, day, f"twin-{version}", version)
    rows = staging.get(platform, staged["key"]).to_pylist()
    return sorted((r["carrier"], r["flight"], r["origin"], r["model_version"], float(r["probability"])) for r in rows)


def test_runs_that_score_one_date(made: Platform, tally: Tally, tmp_path: Path, url: str | None) -> None:
    """Four runs score one date at once: one scoring, whole at any moment, as one run leaves it."""
    outside = Outside(made.settings, tmp_path)
    for round_ in range(2):
        day = TRAINED + (2 + round_) * DAY
        alone = clean(made, day, 1)
        with tally.fault(KIND, f"four scorings of one date, round {round_}, {_named(url)}") as fault:
            with polling(lambda day=day: len(shown(outside, day))) as seen:
                answers = together(*[(score, (made.settings, str(day), f"score-{round_}-{i}")) for i in range(4)])
            assert all_answered(answers) == [1] * 4
            assert set(seen.states) <= {0, len(alone)} and not seen.errors
            fault.rows(alone, shown(outside, day))
            fault.rows(alone, in_the_lake(outside, day))


def test_scoring_training_and_rollback_at_once(made: Platform, tally: Tally, tmp_path: Path, url: str | None) -> None:
    """Dates are scored by version 2 while it is withdrawn and another version is trained and promoted."""
    outside = Outside(made.settings, tmp_path)
    days = [TRAINED + i * DAY for i in (8, 9, 10)]
    flights.score(made, SPEC, days[0], "before")
    before = made.mart.champion_history(SPEC.name)[-1]["version"]
    with tally.fault(KIND, f"scoring, training and rollback at once, {_named(url)}") as fault:
        answers = together(
            *((score, (made.settings, str(day), f"{who}-{day}")) for day in days for who in ("one", "two")),
            (train, (made.settings, str(UNTIL), "third", 0.2)),
            (go_back, (made.settings, 1, "back")),
        )
        refused = [told for kind, told in answers if kind == "error"]
        # a run may lose to the rollback, or the rollback to a promotion: a clear refusal, and it is run again
        assert all(told.startswith(("Refused", "AccountingError")) for told in refused), refused
        for i, (kind, told) in enumerate(answers[:-2]):
            if kind == "error":
                assert told.startswith("Refused"), told
                score(made.settings, str(days[i // 2]), f"again-{i}")
        if answers[-1][0] == "error":
            go_back(made.settings, 1, "back")

        [third] = [v.number for v in made.registry.versions(SPEC.name) if v.number > before]
        history = made.mart.champion_history(SPEC.name)
        registered = made.registry.champion(SPEC.name)
        assert registered is not None and registered.number == history[-1]["version"]
        decided = outside.mart("select kind, run_id, outcome from ledger where kind in ('promotion', 'rollback')")
        assert Counter((row["kind"], row["run_id"]) for row in decided).most_common(1)[0][1] == 1
        assert ("rollback", "back") in {(row["kind"], row["run_id"]) for row in decided}
        assert {row["version"] for row in history} <= {1, 2, third}
        [back] = outside.mart("select evidence from ledger where kind = 'rollback'")
        evidence = json.loads(back["evidence"]) if isinstance(back["evidence"], str) else back["evidence"]
        for day in days:
            current = outside.mart("select as_of, version, rows from scorings where is_current")
            [scored] = [row for row in current if str(row["as_of"]) == str(day)]
            alone = clean(made, day, scored["version"])
            fault.rows(alone, shown(outside, day))
            fault.rows(alone, in_the_lake(outside, day))
            assert scored["version"] != evidence["withdrawn"], "the withdrawn version is shown"
        doubled = outside.mart("select as_of from scorings where is_current group by as_of having count(*) > 1")
        assert doubled == []


def test_trainings_of_one_run_make_one_version(made: Platform, tally: Tally, tmp_path: Path, url: str | None) -> None:
    """An orphaned training beside its retry: one version, one decision, one promotion, the same bytes."""
    outside = Outside(made.settings, tmp_path)
    before = {v.number for v in made.registry.versions(SPEC.name)}
    with tally.fault(KIND, f"a training twice at once, {_named(url)}") as fault:
        as_of = UNTIL + DAY
        answers = all_answered(together(*[(train, (made.settings, str(as_of), "orphan", 0.27))] * 3))
        new = {v.number for v in made.registry.versions(SPEC.name)} - before
        assert set(answers) == new and len(new) == 1
        made.registry.load(SPEC.name, new.pop())
        rows = outside.mart("select kind, outcome from ledger where run_id = 'orphan'")
        fault.rows(["gate", "promotion"], sorted(row["kind"] for row in rows))
