"""Values on their way into the mart and out of it: JSON, UTC, Arrow types; when two facts are the same."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

CHUNK_ROWS = 10_000
SQL_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "string": sa.Text(),
    "integer": sa.BigInteger(),
    "number": sa.Double(),
    "boolean": sa.Boolean(),
    "date": sa.Date(),
    "timestamp": sa.DateTime(),
}
# What may differ between two runs that found the same: it does not make a new fact.
PROVENANCE = {"run_id", "snapshot_id", "recorded_at", "scored_at", "promoted_at"}


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: dates as ISO text, numpy scalars as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (dt.date, dt.datetime)):
        return value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False, ensure_ascii=False)


def known(value: Any) -> Any:
    """A scalar as a column can hold it: numpy's as Python's, NaN and infinity as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def utc(value: Any) -> Any:
    """SQLite returns naive timestamps; all stored ones are UTC."""
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    return value


def naive(value: Any) -> Any:
    """A timestamp as naive UTC, whatever the database returned; anything else as it is."""
    return utc(value).replace(tzinfo=None) if isinstance(value, dt.datetime) else value


def row_of(row: sa.Row[Any]) -> dict[str, Any]:
    return {name: utc(value) for name, value in row._mapping.items()}


def number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def same(table: sa.Table, stored: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether `values` state the fact that is stored."""
    for name, value in values.items():
        if name in PROVENANCE:
            continue
        expected = dumps(value) if isinstance(table.c[name].type, sa.JSON) else utc(value)
        found = dumps(stored[name]) if isinstance(table.c[name].type, sa.JSON) else stored[name]
        if expected != found:
            return False
    return True


def sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    if pa.types.is_date(kind):
        return SQL_TYPES["date"]
    if pa.types.is_timestamp(kind):
        return SQL_TYPES["timestamp"]
    if pa.types.is_boolean(kind):
        return SQL_TYPES["boolean"]
    if pa.types.is_integer(kind):
        return SQL_TYPES["integer"]
    return SQL_TYPES["number"] if pa.types.is_floating(kind) else SQL_TYPES["string"]


def chunks(rows: pa.Table) -> Iterator[list[dict[str, Any]]]:
    names = rows.column_names
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        columns = [column.to_pylist() for column in rows.slice(start, CHUNK_ROWS).columns]
        yield [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
