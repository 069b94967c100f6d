"""A delivered file is read exactly or refused with what was expected and found."""

from __future__ import annotations

import datetime as dt
import gzip
from typing import Any

import pyarrow as pa
import pytest

from include.evergreen.errors import DeliveryMissing, SchemaMismatch, UnreadableDelivery
from include.evergreen.lake.objects import MemoryObjects
from include.evergreen.quality import deliveries as files
from include.evergreen.specs import TableSpec
from tests import examples

DAY = dt.date(2024, 1, 1)
KEY = "shop/orders/2024-01-01.csv"
ORDERS = examples.source().tables["orders"]
HEADER = b"day,order_id,region,amount\n"
ROW = b"2024-01-01,1,north,10.5\n"


def table(**changes: Any) -> TableSpec:
    return TableSpec.model_validate({**ORDERS.model_dump(), **changes})


def delivery(data: bytes, key: str = KEY) -> files.Delivery:
    return files.Delivery(DAY, key, "e", dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), data)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", UnreadableDelivery, "expected a header and rows, found an empty file"),
        (b" \n\n", UnreadableDelivery, "found an empty file"),
        (gzip.compress(b"", mtime=0), UnreadableDelivery, "found an empty file"),
        (gzip.compress(HEADER + ROW * 500, mtime=0)[:-30], UnreadableDelivery, "expected a whole gzip file, found: "),
        (b"day,order_id,region\n2024-01-01,1,north\n", SchemaMismatch, "missing ['amount'], not expected []"),
        (HEADER[:-1] + b",note\n", SchemaMismatch, "missing [], not expected ['note']"),
        (HEADER[:-1] + b",region\n", SchemaMismatch, "twice ['region']"),
        ((HEADER + ROW).replace(b",", b";"), SchemaMismatch, "is the delimiter ';' instead of ','?"),
        (HEADER + ROW + b"2024-01-01,2,K\xf6ln,1\n", UnreadableDelivery, "expected UTF-8, found byte 0xf6 in line 3"),
        (HEADER + b"2024-01-01,2,a\x00b,1\n", UnreadableDelivery, "found a zero byte in line 2"),
        (HEADER.decode().encode("utf-16"), UnreadableDelivery, "found a zero byte in line 1"),
        (
            HEADER + ROW + b"2024-01-01,2,north\n" + ROW,
            UnreadableDelivery,
            "expected 4 values in every row, found 3 in data row 2: '2024-01-01,2,north'",
        ),
        (HEADER + ROW + b"\n2024-01-01,2,north,1,1\n", UnreadableDelivery, "found 5 in data row 2"),
        (HEADER + b'2024-01-01,2,"north,1\n' + ROW, UnreadableDelivery, "the row that starts in line 2"),
        (HEADER + b'2024-01-01,1,n,"1\n2024-01-01,2,n,"2\n', UnreadableDelivery, "every quote to be closed"),
    ],
)
def test_a_broken_file_is_refused(data: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        files.parse(delivery(data), ORDERS)
    assert KEY in str(caught.value)
    assert said in str(caught.value)


def test_the_rows_of_a_large_file_are_counted_through() -> None:
    data = HEADER + ROW * 100_000
    assert files.parse(delivery(data), ORDERS)["source_row"].to_pylist() == list(range(1, 100_001))
    with pytest.raises(UnreadableDelivery, match="found 3 in data row 100001"):
        files.parse(delivery(data + b"2024-01-01,2,north\n" + ROW), ORDERS)


def test_a_large_file_is_read_again_and_a_small_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [delivery(HEADER + ROW * 3, "b.csv"), delivery(HEADER + ROW, "a.csv")]
    kept = files.check(some, ORDERS)
    monkeypatch.setattr(files, "SMALL_ROWS", 0)
    again = files.check(some, ORDERS)
    begun = files.check(some, ORDERS, begin=True)
    rows = [pa.concat_tables(reading.tables()) for reading in (kept, again, begun)]
    assert rows[0].equals(rows[1])
    assert rows[0].equals(rows[2])
    assert kept.counts == again.counts == begun.counts == [3, 1]
    assert list(files.check(some, ORDERS, begin=True)._begun) == ["b.csv"], "the others wait without their text"


def test_a_large_file_just_begun_says_where_it_breaks() -> None:
    data = HEADER + ROW * 100_000 + b"2024-01-01,2,north\n"
    begun = files.check([delivery(data)], ORDERS, begin=True)
    assert not begun.stopped
    with pytest.raises(UnreadableDelivery, match="in data row 100001"):
        pa.concat_tables(begun.tables())
    assert list(files.check([delivery(data)], ORDERS).stopped) == [DAY]


def test_a_huge_header_is_refused_at_once_in_few_words() -> None:
    names = b",".join(b"c%d" % i for i in range(100_000))
    for header in (
        HEADER[:-1] + b"," + names + b"\n",
        b"x" * (1 << 20) + b"\n",
        HEADER[:-1] + b",day" * 50_000 + b"\n",
    ):
        with pytest.raises(SchemaMismatch, match="expected the columns") as caught:
            files.parse(delivery(header + ROW), ORDERS)
        assert len(str(caught.value)) < 1000


def test_a_file_too_large_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    store = MemoryObjects("landing")
    store.put(KEY, HEADER + ROW)
    with pytest.raises(UnreadableDelivery, match=rf"{KEY}: expected at most 10 bytes, found 51"):
        files.fetch(store, ORDERS, [DAY])


def test_a_bomb_is_measured_without_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 4000)
    monkeypatch.setattr(files, "FREE_BYTES", 100)
    with pytest.raises(UnreadableDelivery, match="at most 4,000 bytes once decompressed"):
        files.parse(delivery(gzip.compress(HEADER + ROW * 1000, mtime=0)), ORDERS)
    assert files.parse(delivery(gzip.compress(HEADER + ROW * 150, mtime=0)), ORDERS).num_rows == 150


def test_a_file_that_grows_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    for data in (gzip.compress(HEADER + ROW * 1000, mtime=0), HEADER + ROW * 1000):
        with pytest.raises(UnreadableDelivery, match="at most 1,000 bytes"):
            files.parse(delivery(data), ORDERS)


@pytest.mark.parametrize("data", [HEADER + ROW, b"\xef\xbb\xbf" + HEADER + ROW, (HEADER + ROW).replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_bom_line_ends_and_compression_make_no_difference(data: bytes, pack: Any) -> None:
    rows = files.parse(delivery(pack(data)), ORDERS)
    assert rows.to_pylist() == [
        {"day": "2024-01-01", "order_id": "1", "region": "north", "amount": "10.5", "source_row": 1}
    ]


def test_columns_are_found_by_name_and_rows_are_numbered() -> None:
    data = b'amount,"order_id",region,day\n1,7,a,2024-01-01\n\n2,8,b,2024-01-01\n'
    rows = files.parse(delivery(data), ORDERS)
    assert rows.column_names == ["day", "order_id", "region", "amount", "source_row"]
    assert rows["order_id"].to_pylist() == ["7", "8"]
    assert rows["source_row"].to_pylist() == [1, 2]


def test_a_header_alone_is_a_table_without_rows() -> None:
    for data in (HEADER, HEADER.strip()):
        assert files.parse(delivery(data), ORDERS).num_rows == 0


def test_quoted_text_is_kept_to_the_letter() -> None:
    data = HEADER + '2024-01-01,1,"two\nlines, ""quoted""",\n2024-01-01,2,NA,NA\n2024-01-01,3,Köln 5" é,1\n'.encode()
    rows = files.parse(delivery(data), ORDERS)
    assert rows["region"].to_pylist() == ['two\nlines, "quoted"', "NA", 'Köln 5" é']
    assert rows["amount"].to_pylist() == ["", "NA", "1"]


def test_one_unreadable_file_stops_its_partition_and_no_other() -> None:
    other = files.Delivery(DAY + dt.timedelta(days=1), "next.csv", "e", dt.datetime.now(dt.UTC), HEADER + ROW)
    broken = delivery(b"", "shop/orders/2024-01-01-2.csv")
    rows, stopped = files.read([delivery(HEADER + ROW), broken, delivery(b"x\n", "third.csv"), other], ORDERS)
    assert list(stopped) == [DAY]
    assert "UnreadableDelivery: shop/orders/2024-01-01-2.csv" in stopped[DAY]
    assert "SchemaMismatch: third.csv" in stopped[DAY]
    assert rows["source_file"].to_pylist() == ["next.csv"]


def test_rows_carry_their_file_order_and_arrival() -> None:
    rows, _ = files.read([delivery(HEADER + ROW), delivery(HEADER + ROW * 2, "b.csv")], ORDERS)
    assert rows[files.ORDER].to_pylist() == [0, 1, 1]
    assert rows["source_row"].to_pylist() == [1, 1, 2]
    assert rows[files.DELIVERED].to_pylist() == [dt.datetime.fromisoformat("2024-01-02T03:00")] * 3


def test_a_declared_column_may_be_called_delivery() -> None:
    spec = table(columns={**ORDERS.model_dump()["columns"], "delivery": {"type": "string"}})
    rows, stopped = files.read([delivery(HEADER[:-1] + b",delivery\n" + ROW[:-1] + b",van\n")], spec)
    assert not stopped
    assert rows["delivery"].to_pylist() == ["van"]
    assert rows[files.ORDER].to_pylist() == [0]


def store(*keys: str) -> MemoryObjects:
    objects = MemoryObjects("landing")
    for key in keys:
        objects.put(key, HEADER + ROW)
    return objects


@pytest.mark.parametrize(
    ("path", "found", "others"),
    [
        ("a/{date}.csv.gz", ["a/2024-01-01.csv.gz", "a/2024-01-01-2.csv.gz"], ["a/2024-01-02.csv.gz"]),
        ("a/{date}/orders.csv", ["a/2024-01-01/orders.csv"], ["a/2024-01-01/outcomes.csv"]),
        ("v1.2/orders.{date}.csv", ["v1.2/orders.2024-01-01.csv"], ["v1.2/orders.2024-01-02.csv"]),
        ("{date}/x_{date}.csv", ["2024-01-01/x_2024-01-01.csv"], ["2024-01-01/y_2024-01-01.csv"]),
    ],
)
def test_deliveries_are_found_by_the_part_before_the_extension(path: str, found: list[str], others: list[str]) -> None:
    spec, objects = table(path=path), store(*found, *others)
    assert [info.key for info in files.find(objects, spec, DAY)] == found
    apart = [dt.date(2023, 12, 31), *(DAY + dt.timedelta(i) for i in range(33))]
    assert files.find_all(objects, spec, apart) == [files.find(objects, spec, day) for day in apart]
    assert files.find_all(objects, spec, [DAY, DAY + dt.timedelta(1)])[0] == files.find(objects, spec, DAY)
    assert DAY in [day for day, _ in files.dated(objects, spec, "")]
    assert files.newest_date(objects, spec, DAY) == DAY


def test_the_newest_date_passes_over_what_is_no_date() -> None:
    objects = store("shop/orders/2024-01-05.csv", "shop/orders/2024-13-45.csv", "shop/orders/readme.txt")
    assert files.newest_date(objects, ORDERS, dt.date(2024, 12, 31)) == dt.date(2024, 1, 5)
    assert files.newest_date(objects, ORDERS, dt.date(2024, 1, 4)) is None


def test_missing_partitions_are_named() -> None:
    days = examples.dates(8)
    with pytest.raises(DeliveryMissing) as caught:
        files.fetch(store(KEY), ORDERS, days)
    assert "orders: expected a file at shop/orders/{date}.csv for 2024-01-02, " in str(caught.value)
    assert "and 2 more dates, found none" in str(caught.value)
