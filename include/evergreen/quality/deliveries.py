"""Find and read delivered files, strictly: a file that is not exactly what was declared is refused, with the reason."""

from __future__ import annotations

import codecs
import datetime as dt
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from include.evergreen.errors import DataError, DeliveryMissing, SchemaMismatch, UnreadableDelivery
from include.evergreen.lake.ports import ObjectInfo, ObjectStore
from include.evergreen.specs import TableSpec

MAX_BYTES = 1 << 30
"""A delivery larger than this, before or after it is decompressed, is refused: no honest daily file is."""
FREE_BYTES, USUAL_RATIO = 64 << 20, 10
"""What inflates beyond both is measured to its end before it is kept: a bomb takes time, not memory."""
THREADS = 8
SMALL_ROWS = 20_000
"""A delivery of at most so many rows stays in memory between two readings."""
SOME = 12
"""Names that an error lists."""
ORDER, DELIVERED = "__delivery", "__delivered_at"
"""Columns of staged rows beside the declared ones; no declared name starts with an underscore."""
_RAGGED = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", re.DOTALL)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Delivery:
    """One delivered file as it is, before anything is believed of its content."""

    date: dt.date
    key: str
    etag: str
    modified: dt.datetime
    data: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def _stem(table: TableSpec) -> str:
    """The path template without the extension of its file; a dot before the date belongs to the name."""
    at = max(table.path.rfind("{date}"), table.path.rfind("/") + 1)
    return table.path[:at] + table.path[at:].split(".")[0]


def prefix(table: TableSpec, day: dt.date) -> str:
    """The part of a partition's keys before the extension: every object that starts with it is a delivery."""
    return _stem(table).replace("{date}", day.isoformat())


def find(store: ObjectStore, table: TableSpec, day: dt.date) -> list[ObjectInfo]:
    """Deliveries of one partition in their order, the last one wins: by key without its extensions, so that
    `2013-07-01-2.csv.gz` comes after `2013-07-01.csv.gz`."""
    return _in_order(table, day, store.list(prefix(table, day)))


def _in_order(table: TableSpec, day: dt.date, infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    start = len(prefix(table, day))
    return sorted(infos, key=lambda info: (info.key[start:].split(".")[0], info.key))


def find_all(store: ObjectStore, table: TableSpec, days: Sequence[dt.date]) -> list[list[ObjectInfo]]:
    """`find` for each of the days; days of one month are one listing."""
    months: dict[str, list[dt.date]] = {}
    for day in days:
        months.setdefault(day.isoformat()[:7], []).append(day)

    def listed(item: tuple[str, list[dt.date]]) -> list[tuple[dt.date, ObjectInfo]]:
        month, some = item
        if len(some) == 1:
            return [(some[0], info) for info in store.list(prefix(table, some[0]))]
        return dated(store, table, _stem(table).split("{date}")[0] + month)

    found: dict[dt.date, list[ObjectInfo]] = {day: [] for day in days}
    with ThreadPoolExecutor(THREADS) as pool:
        for day, info in chain.from_iterable(pool.map(listed, months.items())):
            if day in found:
                found[day].append(info)
    return [_in_order(table, day, found[day]) for day in days]


def dated(store: ObjectStore, table: TableSpec, under: str) -> list[tuple[dt.date, ObjectInfo]]:
    """(partition date, delivery) of every delivery whose key starts with `under`; a key without a date is none."""
    head, *rest = (re.escape(part) for part in _stem(table).split("{date}"))
    day = r"(?P<day>\d{4}-\d{2}-\d{2})"
    pattern = re.compile(head + day + r"(?P=day)".join(rest))
    found = []
    for info in store.list(under):
        if match := pattern.match(info.key):
            try:
                found.append((dt.date.fromisoformat(match["day"]), info))
            except ValueError:
                continue
    return found


def newest_date(store: ObjectStore, table: TableSpec, until: dt.date) -> dt.date | None:
    """The newest partition date with a delivery, not after `until`; None when there is none."""
    days = [day for day, _ in dated(store, table, table.path.split("{date}")[0])]
    return max((day for day in days if day <= until), default=None)


def fetch(store: ObjectStore, table: TableSpec, days: list[dt.date]) -> list[Delivery]:
    """Every delivery of the partitions, by date then key.

    Raises:
        DeliveryMissing: a partition has none; names all of them. UnreadableDelivery: a file is too large to fetch.
    """

    def one(item: tuple[dt.date, ObjectInfo]) -> Delivery:
        day, info = item
        if info.size > MAX_BYTES:
            raise UnreadableDelivery(f"{info.key}: expected at most {MAX_BYTES:,} bytes, found {info.size:,}")
        return Delivery(day, info.key, info.etag, info.modified, store.get(info.key))

    listed = find_all(store, table, days)
    missing = [day.isoformat() for day, infos in zip(days, listed, strict=True) if not infos]
    if missing:
        raise DeliveryMissing(
            f"{table.name}: expected a file at {table.path} for {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more dates' if len(missing) > 5 else ''}, found none"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, [(day, info) for day, infos in zip(days, listed, strict=True) for info in infos]))


def _inflate(data: bytes) -> bytes | None:
    """The content of a gzip file; None when it is larger than `MAX_BYTES`."""
    usual = min(max(FREE_BYTES, USUAL_RATIO * len(data)), MAX_BYTES)
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        text = file.read(usual + 1)
        if len(text) <= usual:
            return text
        size = len(text)
        del text
        while size <= MAX_BYTES and (chunk := file.read(1 << 20)):
            size += len(chunk)
    return gzip.decompress(data) if size <= MAX_BYTES else None


def _decompress(delivery: Delivery) -> bytes:
    text: bytes | None = delivery.data
    if delivery.data.startswith(_GZIP):
        try:
            text = _inflate(delivery.data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableDelivery(f"{delivery.key}: expected a whole gzip file, found: {error}") from error
    if text is None or len(text) > MAX_BYTES:
        raise UnreadableDelivery(f"{delivery.key}: expected at most {MAX_BYTES:,} bytes once decompressed, found more")
    return text


def _check_text(delivery: Delivery, text: bytes) -> bytes:
    if text.startswith(codecs.BOM_UTF8):
        text = text[len(codecs.BOM_UTF8) :]
    if not text or text.isspace():
        raise UnreadableDelivery(f"{delivery.key}: expected a header and rows, found an empty file")
    if b"\x00" in text:
        line = text[: text.index(b"\x00")].count(b"\n") + 1
        raise UnreadableDelivery(f"{delivery.key}: expected text, found a zero byte in line {line}")
    try:
        if not text.isascii():
            text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise UnreadableDelivery(
            f"{delivery.key}: expected UTF-8, found byte 0x{text[error.start]:02x} in line {line}"
        ) from error
    return text


def _check_header(delivery: Delivery, header: list[str], table: TableSpec) -> None:
    expected = list(table.columns)
    if sorted(header) == sorted(expected):
        return
    if len(header) == 1 and len(expected) > 1:
        other = next((d for d in ",;\t|" if d != table.delimiter and d in header[0]), None)
        hint = f"; is the delimiter {other!r} instead of {table.delimiter!r}?" if other else ""
        raise SchemaMismatch(
            f"{delivery.key}: expected the columns {expected}, found the one column {_short(header[0])!r}{hint}"
        )
    twice = [name for name, times in Counter(header).items() if times > 1]
    raise SchemaMismatch(
        f"{delivery.key}: expected the columns {expected}; missing {sorted(set(expected) - set(header))}, "
        f"not expected {_some(set(header) - set(expected))}{f', twice {_some(twice)}' if twice else ''}"
    )


def _short(text: str, length: int = 120) -> str:
    """Of a text that somebody else wrote, as much as a message can hold."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _some(names: Iterable[str]) -> str:
    """The first names, in order, and how many more there are."""
    listed = sorted(names)
    return f"{[_short(name, 40) for name in listed[:SOME]]}{f' and {len(listed) - SOME} more' * (len(listed) > SOME)}"


def _check_quotes(delivery: Delivery, text: bytes, delimiter: str) -> None:
    """Arrow takes what follows an unclosed quote for one value and loses the rows in it: such a file is refused."""
    if b'"' not in text:
        return
    rows = csv_reader(io.StringIO(text.decode("utf-8"), newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for _ in rows:
            start = rows.line_num + 1
    except CsvError as error:
        raise UnreadableDelivery(
            f"{delivery.key}: expected every quote to be closed before a {delimiter!r} or the end of its row, "
            f"found otherwise in the row that starts in line {start}: {error}"
        ) from error


def _ragged(error: pa.ArrowInvalid) -> str:
    """What Arrow found, with the data row instead of its own count, which starts at the header."""
    match = _RAGGED.search(str(error))
    if not match:
        return str(error)
    return f"{match[2]} in data row {int(match[1]) - 1}: {_short(match[3])!r}"


def blocks(delivery: Delivery, table: TableSpec) -> Iterator[pa.Table]:
    """The rows of `parse` in tables of about 1 MiB of text; at least one, and an error comes when it is reached."""
    text = _check_text(delivery, _decompress(delivery))
    end = text.find(b"\n")
    first = text[: end if end >= 0 else len(text)].decode("utf-8").rstrip("\r")
    header = [name.strip().strip('"') for name in first.split(table.delimiter)]
    _check_header(delivery, header, table)
    _check_quotes(delivery, text, table.delimiter)
    yield pa.table(
        {name: pa.array([], pa.string()) for name in table.columns} | {"source_row": pa.array([], pa.int64())}
    )
    rows = 0
    try:
        reader = csv.open_csv(
            pa.BufferReader(text if end >= 0 else text + b"\n"),
            read_options=csv.ReadOptions(column_names=header, skip_rows=1, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=table.delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False, check_utf8=False
            ),
        )
        for batch in reader:
            block = pa.Table.from_batches([batch]).select(list(table.columns))
            numbers = pa.array(np.arange(rows + 1, rows + 1 + block.num_rows))
            yield block.append_column("source_row", numbers)
            rows += block.num_rows
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise UnreadableDelivery(
                f"{delivery.key}: expected {len(header)} values in every row, found {_ragged(error)}"
            ) from error


def parse(delivery: Delivery, table: TableSpec) -> pa.Table:
    """The declared columns as text, in declared order, and `source_row` (1-based data row). Null is text still.

    Raises:
        UnreadableDelivery: empty, truncated, not UTF-8, ragged, too large. SchemaMismatch: columns differ.
    """
    return pa.concat_tables(blocks(delivery, table))


@dataclass(frozen=True)
class Reading:
    """Deliveries that were read once: to the last row, or large ones just begun.

    Attributes:
        stopped: partition date -> why it cannot be read. One unreadable file stops its whole partition.
    """

    table: TableSpec
    deliveries: tuple[Delivery, ...]
    stopped: dict[dt.date, str]
    _small: dict[str, pa.Table] = field(repr=False)
    _begun: dict[str, Iterator[pa.Table]] = field(repr=False)
    _rows: dict[str, int] = field(repr=False)

    @property
    def counts(self) -> list[int]:
        """Rows of each delivery; 0 in a partition that cannot be read. Of large ones just begun: after `tables`."""
        return [0 if one.date in self.stopped else self._rows[one.key] for one in self.deliveries]

    def tables(self) -> Iterator[pa.Table]:
        """The rows by partition, delivery and row: the declared columns as text, `partition_date`, `source_file`,
        `source_row`, `__delivery` (order within the partition) and `__delivered_at` (naive UTC).

        A large delivery is read again, block by block. The first table is empty.
        Raises DataError for a large one that was just begun, at the block that cannot be read.
        """
        order: dict[dt.date, int] = {}
        yield schema_of(self.table).empty_table()
        for delivery in sorted(self.deliveries, key=lambda delivery: delivery.date):
            order[delivery.date] = order.get(delivery.date, -1) + 1
            if delivery.date in self.stopped:
                continue
            rows = 0
            for block in self._blocks(delivery):
                rows += block.num_rows
                yield _placed(block, delivery, order[delivery.date], self.table)
            self._rows[delivery.key] = rows

    def _blocks(self, delivery: Delivery) -> Iterable[pa.Table]:
        if delivery.key in self._small:
            return [self._small[delivery.key]]
        return self._begun.pop(delivery.key) if delivery.key in self._begun else blocks(delivery, self.table)


def _placed(block: pa.Table, delivery: Delivery, order: int, table: TableSpec) -> pa.Table:
    """Rows of a delivery with where they came from."""
    delivered = delivery.modified.astimezone(dt.UTC).replace(tzinfo=None)
    place = {"partition_date": delivery.date, "source_file": delivery.key, ORDER: order, DELIVERED: delivered}
    schema = schema_of(table)
    columns = [
        pa.repeat(pa.scalar(place[field.name], field.type), block.num_rows)
        if field.name in place
        else block[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def check(deliveries: Sequence[Delivery], table: TableSpec, begin: bool = False) -> Reading:
    """Read every delivery once, to its last row; what is small is kept. Raises nothing about their content.

    Args:
        begin: large ones are just begun; `Reading.tables` finds out about the rest.
    """

    begun: dict[str, Iterator[pa.Table]] = {}

    def one(delivery: Delivery) -> pa.Table | int | str:
        small: list[pa.Table] | None = []
        rows, reading = 0, blocks(delivery, table)
        try:
            for block in reading:
                rows += block.num_rows
                if small is not None:
                    small.append(block)
                if rows > SMALL_ROWS:
                    if begin and small is not None:
                        if delivery is deliveries[0]:  # the others would hold their text until their turn
                            begun[delivery.key] = chain(small, reading)
                        return rows
                    small = None
        except DataError as error:
            return f"{type(error).__name__}: {error}"
        return rows if small is None else pa.concat_tables(small)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(one, deliveries))
    stopped: dict[dt.date, str] = {}
    for delivery, result in zip(deliveries, found, strict=True):
        if isinstance(result, str):
            known = stopped.get(delivery.date)
            stopped[delivery.date] = f"{known}; {result}" if known else result
    read = {d.key: result for d, result in zip(deliveries, found, strict=True) if not isinstance(result, str)}
    small = {key: result for key, result in read.items() if isinstance(result, pa.Table)}
    rows = {key: result.num_rows if isinstance(result, pa.Table) else result for key, result in read.items()}
    return Reading(table, tuple(deliveries), stopped, small, begun, rows)


def read(deliveries: list[Delivery], table: TableSpec) -> tuple[pa.Table, dict[dt.date, str]]:
    """The rows of `Reading.tables` as one table, and why a partition cannot be read."""
    reading = check(deliveries, table)
    return pa.concat_tables(reading.tables()), reading.stopped


def schema_of(table: TableSpec) -> pa.Schema:
    """The columns of `read`'s rows."""
    schema = [
        *((name, pa.string()) for name in table.columns),
        ("source_row", pa.int64()),
        ("partition_date", pa.date32()),
        ("source_file", pa.string()),
        (ORDER, pa.int32()),
        (DELIVERED, pa.timestamp("us")),
    ]
    return pa.schema(schema)
