"""One behaviour of lake tables, over Iceberg and in memory."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.exc import OperationalError

from include.evergreen.errors import NotFound, SchemaMismatch, Unavailable
from include.evergreen.lake import iceberg
from include.evergreen.lake.iceberg import PROPERTIES, IcebergLake, ObjectFileIO
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.lake.objects import S3Objects
from include.evergreen.lake.rows import ranges
from include.evergreen.pipeline.maintenance import maintain_lake
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts
from tests.support import memory_platform

D1, D2, D3 = dt.date(2013, 1, 1), dt.date(2013, 1, 2), dt.date(2013, 1, 5)
TABLE = "trusted.flights"
AnyLake = MemoryLake | IcebergLake


def rows(day: dt.date, *values: int, **more: Any) -> pa.Table:
    """One row per value: partition_date, available_at, value, name, and constant columns of `more`."""
    n = len(values)
    columns: dict[str, pa.Array] = {
        "partition_date": pa.array([day] * n, pa.date32()),
        "available_at": pa.array([dt.datetime.combine(day, dt.time(1))] * n, pa.timestamp("us")),
        "value": pa.array(values, pa.int64()),
        "name": pa.array([f"n{v}" for v in values], pa.string()),
    }
    return pa.table({**columns, **{name: pa.array([constant] * n) for name, constant in more.items()}})


def values(lake: AnyLake, **where: Any) -> list[tuple[dt.date, int]]:
    found = lake.read(TABLE, **where)
    return list(zip(found["partition_date"].to_pylist(), found["value"].to_pylist(), strict=True))


@pytest.fixture(params=["memory", "iceberg"])
def lake(request: pytest.FixtureRequest) -> AnyLake:
    return MemoryLake() if request.param == "memory" else IcebergLake(request.getfixturevalue("settings"))


def test_write_then_read(lake: AnyLake) -> None:
    written = pa.concat_tables([rows(D2, 3, 1), rows(D1, 2)])
    snapshot = lake.write(TABLE, written, [D1, D2])
    assert values(lake) == [(D1, 2), (D2, 3), (D2, 1)]
    assert lake.snapshot(TABLE) == snapshot
    assert lake.tables() == [TABLE]
    assert lake.read(TABLE).schema.equals(written.schema)


def test_replace_is_idempotent_and_leaves_the_others(lake: AnyLake) -> None:
    lake.write(TABLE, pa.concat_tables([rows(D1, 1), rows(D2, 2), rows(D3, 3)]), [D1, D2, D3])
    for _ in range(2):
        lake.write(TABLE, rows(D2, 20, 21), [D2])
        assert values(lake) == [(D1, 1), (D2, 20), (D2, 21), (D3, 3)]


def test_each_write_is_one_step_of_history(lake: AnyLake) -> None:
    first = lake.write(TABLE, rows(D1, 1), [D1])
    second = lake.write(TABLE, rows(D1, 2), [D1])
    assert first != second
    assert values(lake, snapshot=first) == [(D1, 1)]
    assert values(lake, snapshot=second) == values(lake) == [(D1, 2)]
    if isinstance(lake, IcebergLake):
        assert [s.snapshot_id for s in lake._table(TABLE).snapshots()] == [first, second]


def test_a_date_without_rows_becomes_empty(lake: AnyLake) -> None:
    lake.write(TABLE, pa.concat_tables([rows(D1, 1), rows(D2, 2), rows(D3, 3)]), [D1, D2, D3])
    lake.write(TABLE, rows(D3, 4), [D2, D3])
    assert values(lake) == [(D1, 1), (D3, 4)]
    lake.write(TABLE, rows(D1), [D1])
    assert values(lake) == [(D3, 4)]
    assert lake.counts(TABLE) == {D3: 1}


def test_an_empty_first_write_makes_an_empty_table(lake: AnyLake) -> None:
    snapshot = lake.write(TABLE, rows(D1), [D1])
    assert lake.snapshot(TABLE) == snapshot
    assert values(lake) == []
    assert lake.read(TABLE).column_names == ["partition_date", "available_at", "value", "name"]
    assert lake.counts(TABLE) == {}
    lake.write(TABLE, rows(D1), [D1])
    assert lake.tables() == [TABLE]


def test_tables_one_after_the_other_are_one_write(lake: AnyLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPERTIES, "write.target-file-size-bytes", "120")
    parts = [
        rows(D1, 1, 2),
        pa.concat_tables([rows(D1, 3), rows(D2, 4)]),
        rows(D2, *range(5, 20)),
        rows(D3, 20).slice(1),
    ]
    lake.write(TABLE, iter(parts), [D1, D2, D3])
    assert values(lake) == [(D1, 1), (D1, 2), (D1, 3), *[(D2, value) for value in range(4, 20)]]
    before = lake.snapshot(TABLE)

    def broken() -> Iterator[pa.Table]:
        yield rows(D1, 100)
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        lake.write(TABLE, broken(), [D1, D2])
    with pytest.raises(ValueError, match="other partition"):
        lake.write(TABLE, [rows(D1, 1), rows(D2, 1)], [D1])
    assert lake.snapshot(TABLE) == before


def test_dates_between_two_given_ones_stay(lake: AnyLake) -> None:
    lake.write(TABLE, pa.concat_tables([rows(D1, 1), rows(D2, 2), rows(D3, 3)]), [D1, D2, D3])
    lake.write(TABLE, pa.concat_tables([rows(D1, 10), rows(D3, 30)]), [D3, D1])
    assert values(lake) == [(D1, 10), (D2, 2), (D3, 30)]


def test_a_row_outside_the_dates_is_refused(lake: AnyLake) -> None:
    lake.write(TABLE, rows(D1, 1), [D1])
    with pytest.raises(ValueError, match="2013-01-02"):
        lake.write(TABLE, pa.concat_tables([rows(D1, 5), rows(D2, 2)]), [D1])
    with pytest.raises(ValueError, match="partition_date"):
        lake.write(TABLE, rows(D1, 5).drop_columns("partition_date"), [D1])
    with pytest.raises(ValueError, match="at least one"):
        lake.write(TABLE, rows(D1), [])
    assert values(lake) == [(D1, 1)]


def test_new_columns_are_added_and_missing_ones_are_null(lake: AnyLake) -> None:
    lake.write(TABLE, rows(D1, 1), [D1])
    first = lake.snapshot(TABLE)
    lake.write(TABLE, rows(D2, 2, gate="A1", wait=1.5), [D2])
    lake.write(TABLE, rows(D3, 3).drop_columns("name"), [D3])
    found = lake.read(TABLE)
    assert found.column_names == ["partition_date", "available_at", "value", "name", "gate", "wait"]
    assert found["gate"].to_pylist() == [None, "A1", None]
    assert found["wait"].to_pylist() == [None, 1.5, None]
    assert found["name"].to_pylist() == ["n1", "n2", None]
    assert "gate" not in lake.read(TABLE, snapshot=first).column_names


def test_types_are_kept_or_refused(lake: AnyLake) -> None:
    lake.write(TABLE, rows(D1, 1, ok=True, tags=["a", "b"], share=0.5), [D1])
    found = lake.read(TABLE)
    assert found["ok"].to_pylist() == [True]
    assert found["tags"].to_pylist() == [["a", "b"]]
    narrow = rows(D2, 2).set_column(2, "value", pa.array([7], pa.int32()))
    lake.write(TABLE, narrow, [D2])
    assert lake.read(TABLE)["value"].to_pylist() == [1, 7]
    assert lake.read(TABLE).schema.field("value").type == pa.int64()
    text = rows(D3, 3).set_column(2, "value", pa.array(["seven"]))
    with pytest.raises(SchemaMismatch, match=r"flights\.value: expected int64, found string"):
        lake.write(TABLE, text, [D3])
    with pytest.raises(SchemaMismatch, match="nulls without a type"):
        lake.write(TABLE, rows(D3, 3, nothing=None), [D3])


def test_foreign_arrow_types_are_stored_plainly(lake: AnyLake) -> None:
    given = pa.table(
        {
            "partition_date": pa.array([D1, D1], pa.date32()),
            "code": pa.array(["a", "b"]).dictionary_encode(),
            "text": pa.array(["x", None], pa.large_string()),
            "at": pa.array([dt.datetime.combine(D1, dt.time(5))] * 2, pa.timestamp("ns")),
            "small": pa.array([1, 2], pa.uint8()),
        }
    )
    lake.write(TABLE, given, [D1])
    found = lake.read(TABLE)
    assert [f.type for f in found.schema] == [pa.date32(), pa.string(), pa.string(), pa.timestamp("us"), pa.int32()]
    assert found["code"].to_pylist() == ["a", "b"]


def test_read_by_dates_and_columns(lake: AnyLake) -> None:
    lake.write(TABLE, pa.concat_tables([rows(D1, 1), rows(D2, 2), rows(D3, 3)]), [D1, D2, D3])
    assert values(lake, since=D2) == [(D2, 2), (D3, 3)]
    assert values(lake, until=D2) == [(D1, 1), (D2, 2)]
    assert values(lake, since=D2, until=D2) == [(D2, 2)]
    assert values(lake, since=dt.date(2014, 1, 1)) == []
    assert lake.read(TABLE, columns=["name", "value"], since=D3).to_pylist() == [{"name": "n3", "value": 3}]
    with pytest.raises(NotFound, match="gate"):
        lake.read(TABLE, columns=["gate"])


def test_stream_equals_read(lake: AnyLake) -> None:
    days = [D1 + dt.timedelta(days=i) for i in range(25)]
    lake.write(TABLE, pa.concat_tables([rows(day, *range(i, i + 40)) for i, day in enumerate(days)]), days)
    for where in ({}, {"since": days[20]}, {"columns": ["value"], "until": days[3]}, {"since": dt.date(2020, 1, 1)}):
        assert lake.stream(TABLE, **where).read_all().equals(lake.read(TABLE, **where))


def test_stream_comes_in_bounded_batches(lake: AnyLake) -> None:
    lake.write(TABLE, rows(D1, *range(150_000)), [D1])
    sizes = [batch.num_rows for batch in lake.stream(TABLE)]
    assert sum(sizes) == 150_000
    assert max(sizes) <= 65_536
    assert lake.read(TABLE)["value"].to_pylist() == list(range(150_000))


def test_counts(lake: AnyLake) -> None:
    assert lake.counts("trusted.nothing") == {}
    lake.write(TABLE, pa.concat_tables([rows(D1, 1, 2, 3), rows(D2, 2)]), [D1, D2])
    assert lake.counts(TABLE) == {D1: 3, D2: 1}


def test_what_is_not_there(lake: AnyLake) -> None:
    assert lake.tables() == []
    assert lake.snapshot(TABLE) is None
    for call in (lake.read, lake.stream, lake.maintain):
        with pytest.raises(NotFound, match=TABLE):
            call(TABLE)
    lake.write(TABLE, rows(D1, 1), [D1])
    with pytest.raises(NotFound, match="snapshot 12345"):
        lake.read(TABLE, snapshot=12345)
    with pytest.raises(NotFound, match="snapshot 12345"):
        lake.tag(TABLE, 12345, "v1")


def test_maintain_keeps_rows_tags_and_the_newest(lake: AnyLake) -> None:
    snapshots = [lake.write(TABLE, rows(D1, i), [D1]) for i in range(8)]
    lake.write(TABLE, rows(D2, 100), [D2])
    lake.tag(TABLE, snapshots[1], "flight_delay-v1")
    lake.tag(TABLE, snapshots[1], "flight_delay-v1")
    before, current = lake.read(TABLE), lake.snapshot(TABLE)
    done = lake.maintain(TABLE, keep_snapshots=2)
    assert done.table == TABLE
    assert done.snapshots_expired == 6
    assert done.files_after < done.files_before
    assert done.bytes_after < done.bytes_before
    assert lake.read(TABLE).equals(before)
    assert lake.snapshot(TABLE) == current
    assert values(lake, snapshot=snapshots[1]) == [(D1, 1)]
    assert values(lake, snapshot=snapshots[7]) == [(D1, 7)]
    with pytest.raises(NotFound):
        lake.read(TABLE, snapshot=snapshots[3])
    again = lake.maintain(TABLE, keep_snapshots=2)
    assert again.snapshots_expired == 0
    assert again.files_after == again.files_before
    lake.write(TABLE, rows(D3, 7), [D3])
    assert values(lake) == [(D1, 7), (D2, 100), (D3, 7)]


def test_a_tag_that_moves_pins_its_new_snapshot(lake: AnyLake) -> None:
    first, second = lake.write(TABLE, rows(D1, 1), [D1]), lake.write(TABLE, rows(D1, 2), [D1])
    lake.write(TABLE, rows(D1, 3), [D1])
    lake.tag(TABLE, first, "v1")
    lake.tag(TABLE, second, "v1")
    lake.maintain(TABLE, keep_snapshots=1)
    assert values(lake, snapshot=second) == [(D1, 2)]
    with pytest.raises(NotFound):
        lake.read(TABLE, snapshot=first)


def test_writers_of_disjoint_partitions_all_succeed(lake: AnyLake) -> None:
    """Also the first write: namespace, table and columns are created by whoever comes first."""
    days = [D1 + dt.timedelta(days=i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: lake.write(TABLE, rows(days[i], i, **{f"c{i % 2}": i}), [days[i]]), range(6)))
    assert values(lake) == [(day, i) for i, day in enumerate(days)]
    assert {"c0", "c1"} <= set(lake.read(TABLE).column_names)


def test_writers_of_one_partition_leave_one_of_them_whole(lake: AnyLake) -> None:
    lake.write(TABLE, rows(D2, 0), [D2])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: lake.write(TABLE, rows(D1, i, i, i), [D1]), range(1, 4)))
    found = [value for day, value in values(lake) if day == D1]
    assert len(found) == 3
    assert len(set(found)) == 1
    assert values(lake, since=D2) == [(D2, 0)]


def test_contiguous_dates_make_one_range() -> None:
    days = [D1 + dt.timedelta(days=i) for i in range(334)]
    assert ranges(days) == [(days[0], days[-1])]
    assert ranges([D3, D1, D2, D1]) == [(D1, D2), (D3, D3)]


@pytest.fixture(params=["memory", "real"])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Platform:
    return memory_platform(tmp_path) if request.param == "memory" else Platform(request.getfixturevalue("settings"))


def test_maintain_lake_covers_every_table_and_old_staging(platform: Platform) -> None:
    for i in range(4):
        platform.lake.write(TABLE, rows(D1, i), [D1])
        platform.lake.write("quarantine.flights", rows(D2, i), [D2])
    for key in ("staging/run-1/a.parquet", "staging/run-1/b.parquet", "reports/kept.html"):
        platform.objects.put(key, b"1234")
    now = dt.datetime.now(dt.UTC)

    young = maintain_lake(platform, keep_snapshots=3, now=now + dt.timedelta(days=2))
    assert [u.table for u in young[:2]] == ["quarantine.flights", TABLE]
    assert [u.snapshots_expired for u in young] == [1, 1, 0]
    assert (young[-1].files_before, young[-1].files_after) == (2, 2)

    old = maintain_lake(platform, keep_snapshots=3, now=now + dt.timedelta(days=4))
    assert (old[-1].files_before, old[-1].files_after, old[-1].bytes_before, old[-1].bytes_after) == (2, 0, 8, 0)
    assert platform.objects.list("staging/") == []
    assert platform.objects.get("reports/kept.html") == b"1234"
    assert platform.lake.counts(TABLE) == {D1: 1}
    assert platform.lake.counts("quarantine.flights") == {D2: 1}


# --- Iceberg alone ---------------------------------------------------------------------------------------------------


def test_a_second_process_sees_the_commit(settings: Settings) -> None:
    IcebergLake(settings).write(TABLE, rows(D1, 1), [D1])
    assert values(IcebergLake(settings)) == [(D1, 1)]


def test_fresh_catalog_is_created_by_many_at_once(settings: Settings) -> None:
    with ThreadPoolExecutor(6) as pool:
        days = [D1 + dt.timedelta(days=i) for i in range(6)]
        list(pool.map(lambda day: IcebergLake(settings).write(TABLE, rows(day, 1), [day]), days))
    assert IcebergLake(settings).counts(TABLE) == dict.fromkeys(days, 1)


class LostAnswer(SqlCatalog):
    """A catalog whose next commit lands, or does not, and whose answer is lost."""

    lose: str | None = None

    def commit_table(self, table: Any, requirements: Any, updates: Any) -> Any:
        how, self.lose = self.lose, None
        answer = super().commit_table(table, requirements, updates) if how != "before" else None
        if how is not None:
            raise OperationalError("commit", {}, ConnectionError("connection dropped"))
        return answer


@pytest.mark.parametrize("how", ["before", "after"])
def test_unknown_commit_result_is_settled_by_reading_again(settings: Settings, how: str) -> None:
    lake = IcebergLake(settings)
    lake.write(TABLE, rows(D1, 1), [D1])
    catalog = LostAnswer("evergreen", **lake._catalog.properties)
    lake.__dict__["_catalog"] = catalog
    catalog.lose = how
    snapshot = lake.write(TABLE, rows(D1, 2), [D1])
    assert catalog.lose is None
    assert values(lake) == [(D1, 2)]
    assert lake.snapshot(TABLE) == snapshot
    assert len(lake._table(TABLE).snapshots()) == 2


def test_maintain_compacts_many_small_files(settings: Settings) -> None:
    lake = IcebergLake(settings)
    lake.write(TABLE, rows(D2, 5), [D2])
    for i in range(6):
        lake._table(TABLE).append(rows(D1, i))
    before = lake.read(TABLE).sort_by("value")
    assert len(list(lake._table(TABLE).scan().plan_files())) == 7
    lake.maintain(TABLE)
    assert len(list(lake._table(TABLE).scan().plan_files())) == 2
    assert lake.read(TABLE).sort_by("value").equals(before)
    assert lake.counts(TABLE) == {D1: 6, D2: 1}


def test_a_long_history_is_cut_by_the_next_write(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg, "HISTORY", 6)
    monkeypatch.setattr(iceberg, "MANY_MANIFESTS", 4)
    lake = IcebergLake(settings)
    days = [D1 + dt.timedelta(days=i) for i in range(20)]
    pinned = lake.write(TABLE, rows(days[0], 0), [days[0]])
    lake.tag(TABLE, pinned, "flight_delay-v1")
    for number, day in enumerate(days[1:], 1):
        lake.write(TABLE, rows(day, number), [day])
        table = lake._table(TABLE)
        assert len(table.metadata.snapshots) <= 8
    assert len(table.current_snapshot().manifests(table.io)) <= 10  # type: ignore[union-attr]
    assert values(lake) == [(day, number) for number, day in enumerate(days)]
    assert values(lake, snapshot=pinned) == [(days[0], 0)]


def test_maintain_merges_many_manifests(settings: Settings) -> None:
    lake = IcebergLake(settings)
    days = [D1 + dt.timedelta(days=i) for i in range(32)]
    for day in days:
        lake.write(TABLE, rows(day, day.day), [day])
    before = lake.read(TABLE)
    lake.maintain(TABLE)
    table = lake._table(TABLE)
    current = table.current_snapshot()
    assert current is not None
    assert len(current.manifests(table.io)) == 1
    assert lake.read(TABLE).equals(before)
    lake.write(TABLE, rows(days[3], 99), [days[3]])
    assert lake.counts(TABLE) == dict.fromkeys(days, 1)


def test_orphans_go_after_their_grace_and_live_files_never(settings: Settings) -> None:
    lake = IcebergLake(settings)
    lake.write(TABLE, rows(D1, 1), [D1])
    objects, prefix = ObjectFileIO(lake._catalog.properties).objects(lake._table(TABLE).location())
    orphan = f"{prefix}/data/partition_date=2013-01-01/orphan.parquet"
    objects.put(orphan, b"left by a writer that lost")
    live = {o.key for o in objects.list(prefix)} - {orphan}
    lake.maintain(TABLE)
    assert objects.exists(orphan)
    lake.maintain(TABLE, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=2))
    assert {o.key for o in objects.list(prefix)} == live
    assert values(lake) == [(D1, 1)]


def test_maintain_beside_writers_loses_nothing(settings: Settings) -> None:
    lake = IcebergLake(settings)
    days = [D1 + dt.timedelta(days=i) for i in range(12)]
    lake.write(TABLE, rows(days[0], 0), [days[0]])
    with ThreadPoolExecutor(3) as pool:
        upkeep = [pool.submit(lake.maintain, TABLE, 1) for _ in range(3)]
        writes = [pool.submit(lake.write, TABLE, rows(day, 1), [day]) for day in days]
        for write in writes:
            write.result()
        for pass_ in upkeep:
            pass_.result()
    assert lake.counts(TABLE) == dict.fromkeys(days, 1)
    assert lake.read(TABLE).num_rows == 12


def test_dead_object_store_is_unavailable(settings: Settings) -> None:
    lake = IcebergLake(settings)
    lake.write(TABLE, rows(D1, 1), [D1])
    quick = Timeouts(connect=0.5, read=0.5, tries=2)
    store = settings.object_store
    dead = ObjectStoreSettings(**{**store.model_dump(), "endpoint": "http://127.0.0.1:9"})
    down = IcebergLake(settings.model_copy(update={"object_store": dead, "timeouts": quick}))
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        down.read(TABLE)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        down.write(TABLE, rows(D1, 2), [D1])
    assert time.monotonic() - begun < 10
    assert values(lake) == [(D1, 1)]


def test_dead_catalog_is_unavailable(settings: Settings) -> None:
    down = IcebergLake(settings.model_copy(update={"catalog_uri": SecretStr("sqlite:////nowhere/at/all.db")}))
    with pytest.raises(Unavailable, match="nowhere"):
        down.read(TABLE)
    with pytest.raises(Unavailable, match="nowhere"):
        down.write(TABLE, rows(D1, 1), [D1])


def test_a_data_file_is_fetched_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = iceberg._Kept(20_000, 10_000)
    monkeypatch.setattr(iceberg, "_KEPT", kept)
    lake = IcebergLake(settings)
    days = [D1 + dt.timedelta(days=i) for i in range(3)]
    for day in days:
        lake.write(TABLE, rows(day, day.day), [day])
    fetched: list[str] = []
    get = S3Objects.get
    monkeypatch.setattr(S3Objects, "get", lambda self, key: fetched.append(key) or get(self, key))  # type: ignore[func-returns-value]
    first, again = lake.read(TABLE), lake.read(TABLE)
    assert first.equals(again)
    assert len([key for key in fetched if key.endswith(".parquet")]) == 3
    lake.write(TABLE, rows(D1, 99), [D1])
    assert values(lake)[0] == (D1, 99)
    for number in range(100):
        kept.put(("e", f"{number}.parquet"), b"x" * 5_000)
    assert sum(map(len, kept._files.values())) <= 20_000
    kept.put(("e", "large.parquet"), b"x" * 10_001)
    assert kept.get(("e", "large.parquet")) is None
    assert kept.get(("e", "99.parquet")) is not None


def test_files_are_one_per_partition_and_open_to_other_tools(settings: Settings) -> None:
    lake = IcebergLake(settings)
    lake.write(TABLE, pa.concat_tables([rows(D1, 1), rows(D2, 2)]), [D1, D2])
    bucket = S3Objects(settings.object_store, settings.object_store.lake_bucket, settings.timeouts)
    found = [o.key for o in bucket.list("iceberg/trusted/flights/data/")]
    assert [key.split("/")[-2] for key in found] == ["partition_date=2013-01-01", "partition_date=2013-01-02"]


def test_a_read_that_upkeep_overtakes_begins_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned files are gone when they are read: `read` plans anew, `stream` says so, an old snapshot is gone."""
    monkeypatch.setattr(iceberg, "_KEPT", iceberg._Kept(0, 0))  # what a process has read it can give again
    lake, planned = IcebergLake(settings), IcebergLake._plan
    first = lake.write(TABLE, rows(D1, 1), [D1])
    overtaken: list[int] = []

    def overtake(self: IcebergLake, *args: Any) -> Any:
        found = planned(self, *args)
        if not overtaken:
            overtaken.append(self.write(TABLE, rows(D1, 2, 3), [D1]))
            self.maintain(TABLE, keep_snapshots=1)
        return found

    monkeypatch.setattr(IcebergLake, "_plan", overtake)
    assert values(lake) == [(D1, 2), (D1, 3)]
    overtaken.clear()
    with pytest.raises(
        Unavailable, match=r"trusted.flights: expected its files while it is read, found one gone: s3://"
    ):
        lake.stream(TABLE).read_all()
    assert values(lake) == [(D1, 2), (D1, 3)]
    with pytest.raises(NotFound, match=f"snapshot {first}"):
        lake.read(TABLE, snapshot=first)
