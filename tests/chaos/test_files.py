"""Corrupt files, made from real ones: each is refused whole, or every row of it is in one place; nothing else moves.

The truth about a file is Python's own gzip and csv; what became of it is read by boto3, DuckDB and sqlite3.
"""

from __future__ import annotations

import bz2
import csv
import datetime as dt
import gzip
import io
import json
import lzma
import pickle
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from include.evergreen.errors import PartitionStopped
from include.evergreen.platform import Platform
from include.evergreen.quality.deliveries import MAX_BYTES
from include.evergreen.settings import ObjectStoreSettings
from include.evergreen.specs import TableSpec
from tests.chaos.flights import DAY, SOURCE, Outside, csv_rows, days, delivered, packed, take_in, written
from tests.chaos.flights import opened as open_platform
from tests.chaos.tally import Fault, Tally

KIND = "corrupt file"
FIRST = dt.date(2013, 1, 2)
SAMPLE = 0.15
POOL = {"schedules": 280, "actuals": 80, "weather": 80}
"""Dates of each table that are published clean, to be delivered again corrupted."""
FLAT_BYTES = 320 << 20
"""What a run may add to the memory of its process, whatever is delivered."""
FREE_COLUMN = {"schedules": "tailnum", "actuals": "dep_time", "weather": "wind_gust"}
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A way to spoil a file. `expect`: refused, rows, or None for either. `said`: what the refusal must name."""

    name: str
    make: Callable[[bytes], bytes]
    expect: str | None = None
    said: str = ""
    table: str = "schedules"


@dataclass
class World:
    """A platform with real flights, where dates wait to be spoilt."""

    platform: Platform
    outside: Outside
    clean: dict[str, bytes]
    used: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def dates(self, table: TableSpec, count: int) -> list[dt.date]:
        """Published dates of a table that no test has touched."""
        start = self.used[table.name]
        self.used[table.name] += count
        assert self.used[table.name] <= POOL[table.name], f"{table.name}: the pool of dates is used up"
        return days(FIRST + start * DAY, count)

    def text(self, table: TableSpec, day: dt.date) -> bytes:
        return self.clean[table.path.format(date=day)]

    def held(self, kind: str, table: TableSpec, dates: list[dt.date]) -> dict[dt.date, list[dict[str, Any]]]:
        """Rows of `trusted` or `quarantine` by date."""
        found: dict[dt.date, list[dict[str, Any]]] = defaultdict(list)
        if self.outside.has(f"{kind}.{table.name}"):
            query = f"select * from {{{kind}.{table.name}}} where partition_date between ? and ?"
            for row in self.outside.lake(query, dates[0], dates[-1]):
                found[row["partition_date"]].append(row)
        return found

    def batches(self, table: TableSpec) -> dict[dt.date, dict[str, Any]]:
        rows = self.outside.mart("select * from ingest_batches where table_name = ?", table.name)
        return {dt.date.fromisoformat(str(row["partition_date"])): row for row in rows}

    def page(self, table: TableSpec, dates: list[dt.date]) -> str:
        span = str(dates[0]) if len(dates) == 1 else f"{dates[0]}_{dates[-1]}"
        return self.outside.get(self.outside.bucket, f"validation/{table.name}/{span}.html").decode()


@pytest.fixture(scope="module")
def world(s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("files")
    platform = open_platform(s3_store, folder)
    clean = delivered(FIRST, FIRST + max(POOL.values()) * DAY, SAMPLE)
    for name, count in POOL.items():
        table = SOURCE.tables[name]
        dates = days(FIRST, count)
        for day in dates:
            platform.landing.put(table.path.format(date=day), packed(clean[table.path.format(date=day)]))
        take_in(platform, table, dates, "clean")
    yield World(platform, Outside(platform.settings, folder / "cache"), clean)
    platform.mart.engine.dispose()


# --- what is true of a file, without the engine ----------------------------------------------------------------------


def opened(data: bytes) -> bytes:
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def rows_of(data: bytes) -> list[Row]:
    """Rows of a file that the engine took. Raises whatever Python's readers raise of one that is no CSV."""
    text = opened(data).decode("utf-8-sig")
    longest = csv.field_size_limit(1 << 30)  # the engine keeps the default
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    finally:
        csv.field_size_limit(longest)
    header = [name.strip() for name in lines[0]]
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def value(text: str, kind: str) -> Any:
    """Text as its declared type. Raises ValueError."""
    if text in ("", "NA"):
        return None
    if kind == "integer":
        return int(text)
    if kind == "number":
        return float(text)
    if kind == "date":
        return dt.date.fromisoformat(text)
    if kind == "timestamp":
        day, midnight, rest = text.partition("T24:00")  # of ISO 8601: the day's end
        moment = dt.datetime.fromisoformat(f"{day}T00:00{rest}" if midnight else text) + dt.timedelta(bool(midnight))
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return text


def typed(row: Row, table: TableSpec) -> tuple[Any, ...]:
    return tuple(value(row[name], column.type) for name, column in table.columns.items())


def as_stored(row: dict[str, Any], table: TableSpec) -> tuple[Any, ...]:
    return tuple(row[name] for name in table.columns)


def placed(files: list[tuple[str, bytes]], trusted: list[Any], quarantined: list[Any], table: TableSpec) -> list[Any]:
    """(file, row number, content) of every row that is in exactly one place, told from what the lake holds.

    A row in neither is a duplicate only if a trusted row has its key.
    """
    truth = {(key, at): row for key, data in files for at, row in enumerate(rows_of(data), 1)}
    found = [(row["source_file"], row["source_row"], as_stored(row, table)) for row in trusted]
    keys = {tuple(row[name] for name in table.key) for row in trusted}
    there = {(key, at) for key, at, _ in found}
    for row in quarantined:
        place = (row["source_file"], row["source_row"])
        assert json.loads(row["row"]) == {name: truth[place][name] for name in table.columns}, place
        assert row["reasons"]
        found.append((*place, "quarantined"))
        there.add(place)
    for place, row in truth.items():
        if place not in there and tuple(value(row[name], table.columns[name].type) for name in table.key) in keys:
            found.append((*place, "duplicate"))
    return found


def expected(files: list[tuple[str, bytes]], found: list[Any], table: TableSpec) -> list[Any]:
    """Every row of the files once, with the content that it must have where it was found."""
    where = {(key, at): content for key, at, content in found}
    listing = []
    for key, data in files:
        for at, row in enumerate(rows_of(data), 1):
            content = where.get((key, at), "nowhere")
            listing.append((key, at, content if isinstance(content, str) else typed(row, table)))
    return listing


# --- running ---------------------------------------------------------------------------------------------------------


@contextmanager
def flat_memory(limit: int = FLAT_BYTES) -> Iterator[None]:
    """Fails when the block adds more than `limit` bytes to the memory of this process at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def now(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    before = now("VmRSS")
    yield
    grown = now("VmHWM") - before
    assert grown < limit, f"expected less than {limit >> 20} MiB more, found {grown >> 20} MiB"


def run(world: World, table: TableSpec, dates: list[dt.date]) -> str:
    """Take dates in; what was said of those that were stopped."""
    try:
        take_in(world.platform, table, dates, f"run-{dates[0]}")
    except PartitionStopped as error:
        return str(error)
    return ""


def survived(
    world: World, tally: Tally, table: TableSpec, spoilt: dict[dt.date, tuple[str, dict[str, bytes], Case | None]]
) -> None:
    """Deliver, take in as one run, and look at every date. `spoilt`: date -> (name, {key: bytes}, case)."""
    dates = sorted(spoilt)
    before = {kind: world.held(kind, table, dates) for kind in ("trusted", "quarantine")}
    for _, files, _ in spoilt.values():
        for key, data in files.items():
            world.platform.landing.put(key, data)
    with flat_memory():
        said = run(world, table, dates)
    after = {kind: world.held(kind, table, dates) for kind in ("trusted", "quarantine")}
    batches = world.batches(table)
    for day in dates:
        name, files, case = spoilt[day]
        with tally.fault(KIND, f"{table.name} {day}: {name}") as fault:
            wanted = case.expect if case else None
            status = batches[day]["status"]
            assert wanted is None or (status == "stopped") == (wanted == "refused"), (name, batches[day]["reasons"])
            if status == "stopped":
                refused(fault, said, batches[day], day, table, case)
                for kind in ("trusted", "quarantine"):
                    rows = [[repr(sorted(r.items())) for r in found[kind][day]] for found in (before, after)]
                    if rows[0] or rows[1]:
                        fault.rows(*rows)
            else:
                whole(fault, list(files.items()), after, day, table, batches[day])


def refused(fault: Fault, said: str, batch: dict[str, Any], day: dt.date, table: TableSpec, case: Case | None) -> None:
    """The message names the file, or the partition when its rows together are at fault; what was expected and found."""
    reasons = "; ".join(json.loads(batch["reasons"]))
    assert reasons in said, fault.where
    assert f"{SOURCE.name}.{table.name}" in said and f"  {day}: " in said, fault.where
    assert "expected" in reasons and re.search(r"found|missing|not expected", reasons), reasons
    assert len(reasons) < 2000, f"{fault.where}: {len(reasons)} characters"
    unreadable = re.match(r"(UnreadableDelivery|SchemaMismatch): (\S+)", reasons)
    assert unreadable is None or str(day) in unreadable[2], reasons
    assert case is None or case.said in reasons, f"{case.name}: expected {case.said!r}, found {reasons!r}"


def whole(
    fault: Fault,
    files: list[tuple[str, bytes]],
    after: dict[str, Any],
    day: dt.date,
    table: TableSpec,
    batch: dict[str, Any],
) -> None:
    trusted, quarantined = after["trusted"][day], after["quarantine"][day]
    found = placed(files, trusted, quarantined, table)
    fault.rows(expected(files, found, table), found)
    counted = (batch["rows_in"], batch["trusted"], batch["quarantined"], batch["duplicates"])
    kinds = ("quarantined", "duplicate")
    seen = (len(found), len(trusted), *(sum(content == kind for _, _, content in found) for kind in kinds))
    assert counted == seen, fault.where


def family(world: World, tally: Tally, cases: list[Case]) -> None:
    """One run of as many dates as cases, for every table of them."""
    for name in dict.fromkeys(case.table for case in cases):
        table = SOURCE.tables[name]
        mine = [case for case in cases if case.table == name]
        dates = world.dates(table, len(mine))
        spoilt = {}
        for day, case in zip(dates, mine, strict=True):
            key = table.path.format(date=day)
            spoilt[day] = (case.name, {key: case.make(world.text(table, day))}, case)
        survived(world, tally, table, spoilt)


# --- ways to spoil ---------------------------------------------------------------------------------------------------


def cell(column: str, *texts: str, at: int = 3) -> Callable[[bytes], bytes]:
    """Put texts into the cells of a column, one row each."""

    def make(clean: bytes) -> bytes:
        rows = csv_rows(clean)
        for i, text in enumerate(texts):
            rows[(at + 7 * i) % len(rows)][column] = text
        return packed(written(rows))

    return make


def on_text(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda clean: packed(change(clean))


def on_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return on_text(lambda clean: b"\n".join(change(clean.rstrip(b"\n").split(b"\n"))) + b"\n")


def on_packed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda clean: change(packed(clean))


def flipped(at: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = min(int(at * len(data)), len(data) - 1)
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    return change


def members(*parts: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A gzip file of several members, each packed by itself."""
    return lambda clean: b"".join(part(clean) for part in parts)


def half(first: bool) -> Callable[[bytes], bytes]:
    return lambda clean: packed(clean[: len(clean) // 2] if first else clean[len(clean) // 2 :])


def named(clean: bytes) -> bytes:
    """With a path in the header's name, a comment and an extra field."""
    body = packed(clean)
    head = b"\x1f\x8b\x08" + bytes([4 | 8 | 16]) + body[4:10]
    return head + b"\x04\x00evil" + b"../../../etc/cron.d/x\x00" + b"<script>\x00" + body[10:]


def zipped(clean: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../x.csv", clean)
    return out.getvalue()


def parquet(clean: bytes) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(csv_rows(clean)), out)
    return out.getvalue()


GZIP = "expected a whole gzip file"
CONTAINERS = [
    *(Case(f"gzip cut at {tenth} tenths", on_packed(lambda d, t=tenth: d[: len(d) * t // 10]), "refused", GZIP)
      for tenth in range(1, 10)),
    Case("gzip cut in its header", on_packed(lambda d: d[:6]), "refused", GZIP),
    Case("gzip without its last byte", on_packed(lambda d: d[:-1]), "refused", GZIP),
    Case("gzip with another CRC", on_packed(lambda d: d[:-8] + b"\0\0\0\0" + d[-4:]), "refused", GZIP),
    Case("gzip with another length", on_packed(lambda d: d[:-4] + b"\xff\xff\xff\xff"), "refused", GZIP),
    *(Case(f"gzip with a bit flipped at {place:.2f}", on_packed(flipped(place)), "refused")
      for place in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)),
    Case("gzip of another method", on_packed(lambda d: d[:2] + b"\x07" + d[3:]), "refused", GZIP),
    Case("gzip with reserved flags", on_packed(lambda d: d[:3] + b"\xe0" + d[4:]), None),
    Case("gzip then garbage", on_packed(lambda d: d + b"garbage"), "refused", GZIP),
    Case("gzip then CSV", lambda clean: packed(clean) + clean, "refused", GZIP),
    Case("gzip then zeros", on_packed(lambda d: d + b"\0" * 512), "rows"),
    Case("gzip of two members", members(half(True), half(False)), "rows"),
    Case("gzip of an empty member too", members(packed, lambda _: packed(b"")), "rows"),
    Case("gzip whose second member is cut", members(half(True), lambda c: half(False)(c)[:-9]), "refused", GZIP),
    Case("gzip named with a path", named, "rows"),
    Case("gzip in gzip", lambda clean: packed(packed(clean)), "refused", "expected"),
    Case("no gzip at all", bytes, "rows"),
    Case("zlib", zlib.compress, "refused"),
    Case("zip with a path", zipped, "refused"),
    Case("bzip2", bz2.compress, "refused"),
    Case("xz", lzma.compress, "refused"),
    Case("nothing", lambda _: b"", "refused", "found an empty file"),
    Case("gzip of nothing", lambda _: packed(b""), "refused", "found an empty file"),
    Case("Parquet", parquet, "refused"),
    Case("Parquet in gzip", lambda clean: packed(parquet(clean)), "refused"),
    Case("a pickle", lambda clean: pickle.dumps(csv_rows(clean)), "refused"),
    Case("JSON", lambda clean: json.dumps(csv_rows(clean)).encode(), "refused", "expected the columns"),
    Case("JSON lines", on_lines(lambda lines: [b'{"a": 1}'] * len(lines)), "refused", "expected the columns"),
    Case("an error page", lambda _: b"<html><body>503 <script>alert(1)</script></body></html>", "refused"),
    Case("a PNG", lambda _: b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "refused"),
    Case("a database", lambda _: b"SQLite format 3\0" + b"\0" * 84, "refused"),
]  # fmt: skip


def reheaded(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    return on_lines(lambda lines: [",".join(change(lines[0].decode().split(","))).encode(), *lines[1:]])


def permuted(clean: bytes) -> bytes:
    rows = csv_rows(clean)
    return packed(written([dict(sorted(row.items(), reverse=True)) for row in rows]))


def delimited(mark: str) -> Callable[[bytes], bytes]:
    return on_text(lambda clean: clean.replace(b",", mark.encode()))


def quoted_all(clean: bytes) -> bytes:
    out = io.StringIO()
    rows = csv_rows(clean)
    writer = csv.DictWriter(out, list(rows[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return packed(out.getvalue().encode())


def line(at: int, text: bytes) -> Callable[[bytes], bytes]:
    """Another line put in at a place."""
    return on_lines(lambda lines: [*lines[:at], text, *lines[at:]])


def first_cell(text: bytes, at: int = 4) -> Callable[[bytes], bytes]:
    """A line whose first value is written otherwise."""
    return on_lines(lambda lines: [*lines[:at], text + lines[at][10:], *lines[at + 1 :]])


COLUMNS, VALUES = "expected the columns", "values in every row"
SHAPES = [
    Case("BOM", on_text(lambda t: b"\xef\xbb\xbf" + t), "rows"),
    Case("two BOMs", on_text(lambda t: b"\xef\xbb\xbf" * 2 + t), "refused", COLUMNS),
    Case("BOM in the middle", line(5, b"\xef\xbb\xbf"), "refused"),
    Case("CRLF", on_text(lambda t: t.replace(b"\n", b"\r\n")), "rows"),
    Case("CR alone", on_text(lambda t: t.replace(b"\n", b"\r")), None),
    Case("CR alone after the header", on_text(lambda t: t.replace(b"\n", b"\r").replace(b"\r", b"\n", 1)), None),
    Case("line ends mixed", on_lines(lambda lines: [one + b"\r" * (i % 2) for i, one in enumerate(lines)]), "rows"),
    Case("CR CR LF", on_text(lambda t: t.replace(b"\n", b"\r\r\n")), None),
    Case("no newline at the end", on_text(lambda t: t.rstrip(b"\n")), "rows"),
    Case("blank lines", on_lines(lambda lines: [part for one in lines for part in (one, b"")]), "rows"),
    Case("blank lines first", on_text(lambda t: b"\n\n" + t), "refused"),
    Case("a line of spaces", line(6, b"   "), "refused", VALUES),
    Case("a line of commas", line(6, b","), "refused", VALUES),
    Case("a comment", line(1, b"# exported by nobody"), "refused", VALUES),
    Case("a total below", on_text(lambda t: t + b"100 rows\n"), "refused", VALUES),
    Case("NUL in a value", first_cell(b"2013\x00-01-01"), "refused", "found a zero byte in line 5"),
    Case("NUL in the header", on_text(lambda t: b"\x00" + t), "refused", "zero byte in line 1"),
    Case("NULs at the end", on_text(lambda t: t + b"\x00" * 4096), "refused", "zero byte"),
    Case("end of file mark", on_text(lambda t: t + b"\x1a"), "refused"),
    Case("everything quoted", quoted_all, "rows"),
    Case("a quote never closed", first_cell(b'"2013-01-01'), "refused", "every quote to be closed"),
    Case("a quote in the last line", on_text(lambda t: t.rstrip(b"\n") + b',"'), "refused"),
    Case("text after a quote", first_cell(b'"2013-01-01"x'), "refused", "every quote to be closed"),
    Case("a quote in the header", on_text(lambda t: b'"' + t), "refused"),
    Case("a quote inside a value", first_cell(b'2013-01-01"'), "rows"),
    Case("newlines in values", cell("tailnum", "N1\nN2", "N1\r\nN2", "\n"), "rows"),
    Case("quotes and commas in values", cell("tailnum", '"', '""', ",,,,", '",\n"'), "rows"),
    Case("a row too short", on_lines(lambda lines: [*lines[:9], lines[9].rsplit(b",", 1)[0], *lines[10:]]), "refused",
         VALUES),
    Case("a row too long", on_lines(lambda lines: [*lines[:9], lines[9] + b",x", *lines[10:]]), "refused", VALUES),
    Case("a last row cut", on_text(lambda t: t[:-25]), "refused", VALUES),
    Case("a comma after every row", on_lines(lambda lines: [one + b"," for one in lines]), "refused", COLUMNS),
    Case("a comma after the header", on_lines(lambda lines: [lines[0] + b",", *lines[1:]]), "refused", COLUMNS),
    Case("a comma after the rows", on_lines(lambda lines: [lines[0], *(one + b"," for one in lines[1:])]), "refused",
         VALUES),
    Case("columns permuted", permuted, "rows"),
    Case("a header permuted alone", reheaded(lambda names: [*names[1:], names[0]]), "refused"),
    Case("a column twice", reheaded(lambda names: [names[0], names[0], *names[2:]]), "refused", "twice"),
    Case("a column missing", reheaded(lambda names: names[:-1]), "refused", "missing ['time_hour']"),
    Case("a column more", reheaded(lambda names: [*names, "extra"]), "refused", "not expected ['extra']"),
    Case("a column renamed", reheaded(lambda names: ["date", *names[1:]]), "refused", "not expected ['date']"),
    Case("a header in capitals", reheaded(lambda names: [name.upper() for name in names]), "refused", COLUMNS),
    Case("a header with spaces", reheaded(lambda names: [f" {name} " for name in names]), "rows"),
    Case("a header of SQL", reheaded(lambda names: ['x"; drop table ledger; --', *names[1:]]), "refused"),
    Case("no header", on_lines(lambda lines: lines[1:]), "refused", COLUMNS),
    Case("the header twice", on_lines(lambda lines: [lines[0], *lines]), "rows"),
    Case("the header alone", on_lines(lambda lines: lines[:1]), "refused", "rows: expected at least"),
    Case("one row", on_lines(lambda lines: lines[:2]), "refused", "rows: expected at least"),
    Case("a hundred thousand columns", reheaded(lambda names: [*names, *(f"c{i}" for i in range(100_000))]), "refused",
         COLUMNS),
    Case("a megabyte of header", reheaded(lambda names: ["x" * (1 << 20), *names[1:]]), "refused", COLUMNS),
    Case("a megabyte of commas", line(3, b"," * (1 << 20)), "refused"),
    *(Case(f"delimited by {mark!r}", delimited(mark), "refused", f"is the delimiter {mark!r}") for mark in ";\t|"),
    Case("delimited by a comma and a space", delimited(", "), "refused"),
    Case("delimited by a unit separator", delimited("\x1f"), "refused", COLUMNS),
]  # fmt: skip

ENCODINGS = [
    *(Case(f"in {name}", on_text(lambda t, name=name: t.decode().encode(name)), "refused")
      for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037", "cp500")),
    *(Case(f"a name in {name}", on_text(lambda t, raw=raw: t.replace(b",N", b",N" + raw, 2)), "refused",
           "expected UTF-8, found byte")
      for name, raw in (("latin-1", "é".encode("latin-1")), ("cp1252", "“".encode("cp1252")),
                        ("Shift-JIS", "飛行".encode("shift-jis")), ("overlong UTF-8", b"\xc0\x80"),
                        ("half of a surrogate", b"\xed\xa0\x80"), ("beyond Unicode", b"\xf5\x80\x80\x80"),
                        ("a lone continuation", b"\x80"))),
    Case("a character cut at the end", on_text(lambda t: t.rstrip(b"\n") + b"\xe2\x82"), "refused", "UTF-8"),
    Case("UTF-8 beyond ASCII", cell("tailnum", "N1é", "N\uff12", "N😀", "N\uff45"), "rows"),
    Case("marks of direction and width", cell("tailnum", "N1\u202e", "N\u200b1", "\ufeffN1"), "rows"),
    Case("line ends that only Unicode knows", cell("tailnum", "N1\u2028N2", "N1\u0085N2", "N1\x0bN2", "N1\x0cN2"),
         "rows"),
    Case("control characters", cell("tailnum", "\x01", "\x1b[31mN1", "\x7f", "\x08"), "rows"),
]  # fmt: skip


HOSTILE = {
    "formulas": ("=cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "+HYPERLINK(\"http://x\")", "-2+3"),
    "markup": ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td><script src=//x>", "&lt;b&gt;"),
    "paths": ("../../../etc/passwd", "/etc/passwd", "C:\\Windows\\x", "s3://other/bucket"),
    "SQL": ("'; drop table ledger; --", "' or 1=1 --", '"; attach \'/tmp/x\'; --', "N1'||(select 1)||'"),
    "shell and templates": ("$(touch /tmp/x)", "`id`", "{{ 7*7 }}", "${jndi:ldap://x}"),
    "words that mean null elsewhere": ("null", "None", "NULL", "nan"),
    "format strings": ("%s%s%n", "{0.__class__}", "{rows:g}", "%d"),
    "odd nulls": ("NA ", " NA", "na", "N/A"),
}  # fmt: skip
CELLS = [
    *(Case(f"{name} in tailnum", cell("tailnum", *texts), "rows") for name, texts in HOSTILE.items()),
    *(Case(f"{name} in a key", cell("carrier", *texts), "rows") for name, texts in HOSTILE.items()),
    Case("a megabyte in a value", cell("tailnum", "N" * (1 << 20)), None),
    Case("a megabyte in a number", cell("flight", "9" * (1 << 20)), None),
    Case("a megabyte in quotes", cell("dest", '"' * (1 << 20)), None),
    Case("eight values of a megabyte", cell("tailnum", *["N" * (1 << 20)] * 8), None),
    Case("half a megabyte in a value", cell("tailnum", "N" * (1 << 19)), None),
    Case("a key of nothing", cell("carrier", "", "NA"), "rows"),
    Case("every value null", on_lines(lambda lines: [lines[0], *[b",".join([b"NA"] * 10)] * (len(lines) - 1)]),
         "refused", "bad rows: expected at most"),
    Case("every value a quote", on_lines(lambda lines: [lines[0], *[b'""""' + b',""""' * 9] * (len(lines) - 1)]),
         "refused", "bad rows: expected at most"),
]  # fmt: skip

NUMBERS = {
    "beyond 64 bits": ("9223372036854775808", "-9223372036854775809", "1" + "0" * 30, "18446744073709551616"),
    "at the edge of 64 bits": ("9223372036854775807", "-9223372036854775808", "2147483648", "-2147483649"),
    "not a number": ("nan", "NaN", "inf", "-Infinity"),
    "written otherwise": ("1.0", "1e3", "0x10", "1_000"),
    "in other digits": ("\uff11\uff12", "\u0663", "\u00bd", "\u2167"),
    "with marks": ("1,5", " 5", "5 ", "--5"),
    "signed and padded": ("+5", "-0", "0005", "+0"),
    "true and false": ("true", "false", "yes", "T"),
    "no number": ("-", "+", ".", "e5"),
}
FLOATS = {
    "beyond doubles": ("1e400", "-1e400", "1e309", "9" * 400),
    "tiny": ("1e-400", "4.9e-324", "-0.0", "0." + "0" * 400 + "1"),
    "not a number": ("nan", "NaN", "inf", "-Infinity"),
    "special": ("infinity", "nan(1)", "0x1p3", "1#INF"),
    "long": ("0.1" + "0" * 300, "3.141592653589793238462643383279", "1.7976931348623157e308", "5."),
    "written otherwise": ("1,5", "1.5.2", "1e", ".e1"),
    "padded": (".5", "+.5", "00.5", "5.e0"),
}
DATES = {
    "impossible": ("2013-02-30", "2013-00-10", "2013-13-01", "0000-00-00"),
    "far away": ("9999-12-31", "0001-01-01", "1900-01-01", "2262-04-12"),
    "out of range": ("10000-01-01", "-0001-01-01", "294247-01-10", "99999-99-99"),
    "written otherwise": ("03/02/2013", "2013-2-3", "20130203", "2013/02/03"),
    "words": ("today", "infinity", "epoch", "-infinity"),
    "with more": ("2013-02-03 ", "2013-02-03T00:00", "2013-02-03 (BC)", "1359849600"),
}
TIMES = {
    "impossible": ("2013-02-03T25:00:00Z", "2013-02-30T05:00:00Z", "2013-02-03T05:61:00Z", "2013-02-03T05:00:61Z"),
    "far away": ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2262-04-12T00:00:00Z", "1677-09-21T00:00:00Z"),
    "out of range": ("294247-01-10T04:00:54Z", "10000-01-01T00:00:00Z", "0000-01-01T00:00Z", "0000-12-31T23:00Z"),
    "beyond a zone": (
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
        "-0044-03-15T00:00:00Z",
        "2013-02-03T24:00Z",
    ),
    "zones": ("2013-02-03T05:00:00+99:00", "2013-02-03T05:00:00 Mars/Base", "2013-02-03T05:00:00+05:00:00:01", "05:00"),
    "words": ("now", "infinity", "2013-02-03T05:00 infinity", "epoch"),
}
VALUE_CASES = [
    *(Case(f"integers {name}", cell("dep_time", *texts), "rows", table="actuals") for name, texts in NUMBERS.items()),
    *(Case(f"keys {name}", cell("flight", *texts), "rows") for name, texts in NUMBERS.items()),
    *(Case(f"delays {name}", cell("arr_delay", *texts), "rows", table="actuals") for name, texts in NUMBERS.items()),
    *(Case(f"{column} {name}", cell(column, *texts[:3]), "rows", table="weather")
      for column in ("wind_gust", "pressure") for name, texts in FLOATS.items()),
    *(Case(f"dates {name}", cell("flight_date", *texts), "rows") for name, texts in DATES.items()),
    *(Case(f"dates {name}", cell("observed_on", *texts[:3]), "rows", table="weather") for name, texts in DATES.items()),
    *(Case(f"times {name}", cell("time_hour", *texts), "rows") for name, texts in TIMES.items()),
    *(Case(f"times {name}", cell("time_hour", *texts[:3]), "rows", table="weather") for name, texts in TIMES.items()),
]  # fmt: skip


def other_values(clean: bytes) -> bytes:
    """Three keys again, with other values: the later row wins."""
    rows = csv_rows(clean)
    return packed(written([*rows, *({**row, "tailnum": "N999ZZ"} for row in rows[:3])]))


REPEATS = [
    Case("every row twice", on_lines(lambda lines: [*lines, *lines[1:]]), "rows"),
    Case("every row twice in a row", on_lines(lambda lines: [lines[0], *(one for one in lines[1:] for _ in (0, 1))]),
         "rows"),
    Case("three rows again", on_lines(lambda lines: [*lines, *lines[1:4]]), "rows"),
    Case("a row a thousand times", on_lines(lambda lines: [*lines, *[lines[1]] * 1000]), "rows"),
    Case("keys again with other values", other_values, "rows"),
    Case("one row alone, many times", on_lines(lambda lines: [lines[0], *[lines[1]] * (len(lines) - 1)]), "refused",
         "rows: expected at least"),
    Case("backwards", on_lines(lambda lines: [lines[0], *reversed(lines[1:])]), "rows"),
    Case("half of the rows twice", on_lines(lambda lines: [*lines, *lines[1 : len(lines) // 2]]), "rows"),
]  # fmt: skip
FAMILIES = {
    "containers": CONTAINERS,
    "shapes": SHAPES,
    "encodings": ENCODINGS,
    "cells": CELLS,
    "values": VALUE_CASES,
    "repeats": REPEATS,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spoilt_file_is_refused_whole_or_every_row_is_in_one_place(world: World, tally: Tally, name: str) -> None:
    family(world, tally, FAMILIES[name])


def test_there_are_enough_files() -> None:
    assert sum(map(len, FAMILIES.values())) >= 200


def test_markup_in_rows_stays_text_on_the_validation_page(world: World, tally: Tally) -> None:
    """Formulas, markup and paths that are quarantined are kept to the letter, and shown escaped."""
    table = SOURCE.tables["schedules"]
    [day] = world.dates(table, 1)
    spoilt = cell("tailnum", *HOSTILE["markup"])(world.text(table, day))
    survived(world, tally, table, {day: ("markup shown", {table.path.format(date=day): spoilt}, None)})
    page = world.page(table, [day])
    assert "&lt;script&gt;" in page
    assert not [text for text in HOSTILE["markup"][:3] if text in page]


# --- bombs -----------------------------------------------------------------------------------------------------------


def repeated(text: bytes, times: int) -> bytes:
    """A gzip file of one member that inflates to `text` many times over; it is cheap to make."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = packer.compress(text) + packer.flush(zlib.Z_FINISH)
    return b"\x1f\x8b\x08" + b"\0" * 6 + b"\xff" + first * (times - 1) + last + b"\0" * 8


def filled(rows: bytes) -> bytes:
    """The rows over and over, in about `EIGHT` bytes."""
    return rows * (EIGHT // len(rows) + 1)


EIGHT, SIXTEEN = 8 << 20, 16 << 20
BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda _: repeated(b"0" * SIXTEEN, 2 * MAX_BYTES // SIXTEEN),
    "rows": lambda text: packed(text) + repeated(filled(text.split(b"\n", 1)[1]), 2 * MAX_BYTES // EIGHT),
    "members": lambda clean: packed(clean) + packed(b"\n" * SIXTEEN) * (2 * MAX_BYTES // SIXTEEN),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(world: World, tally: Tally, name: str) -> None:
    """Files of under 20 MB that inflate to 2 GiB: refused at the stated limit."""
    table = SOURCE.tables["schedules"]
    [day] = world.dates(table, 1)
    data = BOMBS[name](world.text(table, day))
    assert len(data) < 20 << 20
    case = Case(f"bomb of {name}", bytes, "refused", f"expected at most {MAX_BYTES:,} bytes once decompressed")
    survived(world, tally, table, {day: (case.name, {table.path.format(date=day): data}, case)})


# --- names of files --------------------------------------------------------------------------------------------------

NAMES = [
    " (copy)", "-2; rm -rf ~", "-'; drop table ledger; --", "-%2e%2e%2fetc%2fpasswd", "-\u202egpj", "-<script>",
    "-$(id)", "-{0.__class__}", "-%s%n", "-\u98db\u884c", "-" + "x" * 120, "-=cmd", "-a\\b", "-a&b=c+d", "-#?",
]  # fmt: skip


def test_names_of_files_are_only_names(world: World, tally: Tally) -> None:
    """A delivery comes again under a name that is a path, a command, markup: all its rows are duplicates."""
    table = SOURCE.tables["schedules"]
    dates = world.dates(table, len(NAMES))
    spoilt: dict[dt.date, tuple[str, dict[str, bytes], Case | None]] = {}
    for day, name in zip(dates, NAMES, strict=True):
        key = table.path.format(date=day)
        data = packed(world.text(table, day))
        spoilt[day] = (f"named {name!r}", {key: data, key.replace(f"{day}", f"{day}{name}"): data},
                       Case(name, bytes, "rows"))  # fmt: skip
    survived(world, tally, table, spoilt)
    kept = world.outside.keys(world.outside.bucket, f"raw/{SOURCE.name}/{table.name}/")
    assert all(key.count("/") == 4 and ".." not in key for key in kept)


# --- anything at all -------------------------------------------------------------------------------------------------

BATCH = 12
POOLS = (HOSTILE, NUMBERS, FLOATS, DATES, TIMES)
SPICE = sorted({text for pool in POOLS for texts in pool.values() for text in texts})
text_of_a_cell = st.one_of(
    st.sampled_from(SPICE), st.text(max_size=12), st.sampled_from(["", ",", '"', "\n", "\r", '""'])
)
place = st.floats(0, 1, exclude_max=True)


@st.composite
def change(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes]]:
    """One mutation of a file's text, by its structure or blind."""
    kind = draw(st.sampled_from(["cell", "cells", "raw cell", "drop line", "swap lines", "repeat line", "join lines",
                                 "flip", "cut", "insert", "shuffle columns", "drop cell", "tail"]))  # fmt: skip
    at, to, texts = draw(place), draw(place), draw(st.lists(text_of_a_cell, min_size=1, max_size=4))
    noise, few = draw(st.binary(max_size=6)), draw(st.integers(1, 9))

    def apply(text: bytes) -> bytes:
        if kind in ("flip", "cut", "insert", "tail"):
            where = int(at * len(text))
            rest = text[where + few :] if kind == "cut" else text[where:]
            flip = bytes([text[where] ^ (1 << few % 8)]) + text[where + 1 :] if text else b""
            return text[:where] + {"flip": flip, "cut": rest, "insert": noise + rest, "tail": b""}[kind]
        lines = text.rstrip(b"\n").split(b"\n")
        i, j = int(at * len(lines)), int(to * len(lines))
        cells = lines[i].split(b",")
        c = int(to * len(cells))
        raw = [one.encode("utf-8", "surrogatepass") for one in texts]
        if kind == "raw cell":
            cells[c] = raw[0]
        elif kind == "drop cell":
            del cells[c]
        lines[i] = b",".join(cells)
        if kind in ("cell", "cells"):
            for n, one in enumerate(raw if kind == "cells" else raw[:1]):
                row = lines[(i + 5 * n) % len(lines)].split(b",")
                row[c % len(row)] = b'"' + one.replace(b'"', b'""') + b'"'
                lines[(i + 5 * n) % len(lines)] = b",".join(row)
        elif kind == "drop line":
            del lines[i]
        elif kind == "swap lines":
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == "repeat line":
            lines[j:j] = [lines[i]] * few
        elif kind == "join lines":
            lines[i : i + 2] = [b"".join(lines[i : i + 2])]
        elif kind == "shuffle columns":
            lines = [b",".join([*row[c:], *row[:c]]) for row in (line.split(b",") for line in lines)]
        return b"\n".join(lines) + b"\n"

    return kind, apply


@st.composite
def batch(draw: st.DrawFn) -> tuple[str, list[list[tuple[str, Callable[[bytes], bytes]]]]]:
    """A table, and for each of some files what is done to it."""
    changes = st.lists(change(), min_size=1, max_size=3)
    table = draw(st.sampled_from(["schedules", "schedules", "actuals", "weather"]))
    return table, draw(st.lists(changes, min_size=BATCH, max_size=BATCH))


@hypothesis_settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(drawn=batch())
def test_any_file_is_refused_whole_or_every_row_is_in_one_place(world: World, tally: Tally, drawn: Any) -> None:
    name, files = drawn
    table = SOURCE.tables[name]
    spoilt: dict[dt.date, tuple[str, dict[str, bytes], Case | None]] = {}
    for day, changes in zip(world.dates(table, BATCH), files, strict=True):
        text = world.text(table, day)
        for _, apply in changes:
            text = apply(text) or b"\n"
        said = "drawn: " + ", ".join(kind for kind, _ in changes)
        spoilt[day] = (said, {table.path.format(date=day): packed(text)}, None)
    survived(world, tally, table, spoilt)
