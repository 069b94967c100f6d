"""Downloads: the rows of a view between two as-of dates, as CSV or Parquet, a day at a time."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from include.evergreen.errors import NotFound, Refused
from include.evergreen.mart.schema import ledger, scorings
from include.evergreen.mart.store import Mart
from include.evergreen.mart.values import CHUNK_ROWS, utc
from include.evergreen.mart.views import common_views, names
from include.evergreen.specs import ModelSpec

Format = Literal["csv", "parquet"]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take a cell for a formula, at its beginning."""


def export(mart: Mart, spec: ModelSpec, view: str, since: dt.date, until: dt.date, format: Format) -> Iterator[bytes]:
    """Rows with `since` <= as_of <= `until`, by as-of date and key; as of one moment, in bounded memory.

    CSV: UTF-8 with a header, ISO dates, true/false, nothing for null; a text that a spreadsheet would run as a formula
    begins with an apostrophe. Parquet: the view's types, timestamps in UTC microseconds.

    Args:
        view: a view of the model (`views.names`), or `model_decisions`: those about the model.

    Raises:
        NotFound: no such view, or the mart has not made it yet. Refused: another format, or a range that ends before
        it begins. Unavailable. All before the first byte, but for a database that goes away later.
    """
    known = (*names(spec), *(definition.name for definition in common_views(mart.engine.dialect)))
    if view not in known:
        raise NotFound(f"view: expected one of {', '.join(known)}, found {view!r}")
    if format not in ("csv", "parquet"):
        raise Refused(f"format: expected csv or parquet, found {format!r}")
    if since > until:
        raise Refused(f"range: expected since <= until, found {since} and {until}")
    with mart.reading() as connection:
        if not sa.inspect(connection).has_table(view):
            raise NotFound(f"{view}: expected the view in the mart, found none: nothing was scored yet")
        columns = _columns(connection, view)
    chunks = _chunks(mart, spec, view, columns, since, until)
    return _csv(columns, chunks) if format == "csv" else _parquet(columns, chunks)


def _columns(connection: sa.Connection, view: str) -> dict[str, sa.types.TypeEngine[Any]]:
    """{name: type}; SQLite does not know that of what a view computes."""
    computed = {
        column.name: column.type
        for definition in common_views(connection.dialect)
        if definition.name == view
        for column in definition.query.selected_columns
    }
    found = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns(view)}
    return {name: computed[name] if isinstance(kind, sa.types.NullType) else kind for name, kind in found.items()}


def _chunks(
    mart: Mart,
    spec: ModelSpec,
    view: str,
    columns: dict[str, sa.types.TypeEngine[Any]],
    since: dt.date,
    until: dt.date,
) -> Iterator[list[list[Any]]]:
    table = sa.table(view, *(sa.column(name, kind) for name, kind in columns.items()))
    of_decisions = view not in names(spec)
    dates = ledger.c if of_decisions else scorings.c
    subject = ledger.c.subject if of_decisions else scorings.c.model
    days = sa.select(dates.as_of).where(subject == spec.name, dates.as_of.between(since, until)).distinct()
    order = [table.c[name] for name in ("id", *spec.entity.key, "model_version") if name in columns]
    with mart.reading(as_of_one_moment=True) as connection:
        for day in connection.scalars(days.order_by(dates.as_of)).all():
            query = sa.select(table).where(table.c.as_of == day).order_by(*order)
            if of_decisions:
                query = query.where(table.c.subject == spec.name)
            with contextlib.closing(connection.execution_options(yield_per=CHUNK_ROWS).execute(query)) as rows:
                for chunk in rows.partitions():
                    yield [[utc(value) for value in row] for row in chunk]


def _csv(columns: dict[str, sa.types.TypeEngine[Any]], chunks: Iterator[list[list[Any]]]) -> Iterator[bytes]:
    def lines(rows: Sequence[Sequence[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return text.getvalue().encode()

    yield lines([list(columns)])
    for chunk in chunks:
        yield lines([[_cell(value) for value in row] for row in chunk])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return str(value)


def _arrow(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    known: tuple[tuple[type[Any], pa.DataType], ...] = (
        (sa.Boolean, pa.bool_()),
        (sa.Integer, pa.int64()),
        (sa.Float, pa.float64()),
        (sa.DateTime, pa.timestamp("us", "UTC")),
        (sa.Date, pa.date32()),
    )
    return next((arrow for sql, arrow in known if isinstance(kind, sql)), pa.string())


class _Taken(io.RawIOBase):
    """A file that forgets what was taken from it."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = bytes(self._data)
        self._data.clear()
        return taken


def _parquet(columns: dict[str, sa.types.TypeEngine[Any]], chunks: Iterator[list[list[Any]]]) -> Iterator[bytes]:
    schema = pa.schema([(name, _arrow(kind)) for name, kind in columns.items()])
    sink = _Taken()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for chunk in chunks:
            values = zip(*chunk, strict=True)
            writer.write_batch(
                pa.record_batch(
                    [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)], schema=schema
                )
            )
            yield sink.take()
    yield sink.take()
