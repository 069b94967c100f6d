"""What both lakes ask of rows before they are stored, and how stored rows fit a grown schema."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import NotFound, SchemaMismatch
from include.evergreen.lake.ports import PARTITION


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The lake's type for an Arrow type: plain strings, microseconds, signed integers of 32 or 64 bits."""
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz else None)
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_integer(kind):
        return pa.int64() if kind.bit_width == 64 or kind.equals(pa.uint32()) else pa.int32()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(pa.field("element", stored_type(kind.value_type)))
    return kind


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` in the lake's types, without metadata."""
    return pa.schema([pa.field(f.name, stored_type(f.type)) for f in schema])


def prepare(table: str, rows: pa.Table, dates: Collection[dt.date]) -> dict[dt.date, pa.Table]:
    """Rows in stored types, split by partition in date order; the order within a partition is kept.

    Raises:
        ValueError: no dates, no `partition_date`, or a row outside `dates`.
        SchemaMismatch: a column whose type is unknown (all nulls) or cannot be stored.
    """
    if not dates:
        raise ValueError(f"{table}: expected at least one partition date to replace, found none")
    if PARTITION not in rows.column_names:
        raise ValueError(f"{table}: expected a column {PARTITION}, found {rows.column_names}")
    for field in rows.schema:
        if pa.types.is_null(field.type):
            raise SchemaMismatch(f"{table}.{field.name}: expected a typed column, found nulls without a type")
    schema = stored_schema(rows.schema)
    if schema.field(PARTITION).type != pa.date32():
        raise ValueError(f"{table}.{PARTITION}: expected date32, found {rows.schema.field(PARTITION).type}")
    rows = cast(table, rows, schema)
    counted = per_partition(rows)
    found = set(counted)
    outside = found - set(dates)
    if outside:
        some = ", ".join(sorted(str(day) for day in outside)[:5])
        raise ValueError(
            f"{table}: expected rows of {min(dates)} to {max(dates)} ({len(set(dates))} dates), "
            f"found {len(outside)} other partition date(s): {some}"
        )
    if not rows.num_rows:
        return {}
    if len(found) > 1 and not _sorted(rows[PARTITION]):
        rows = rows.take(pc.sort_indices(rows, sort_keys=[(PARTITION, "ascending")]))
    parts: dict[dt.date, pa.Table] = {}
    start = 0
    for day in sorted(found):
        parts[day] = rows.slice(start, counted[day]).combine_chunks()
        start += counted[day]
    return parts


def per_partition(rows: pa.Table) -> dict[dt.date, int]:
    """Rows of each partition; soonest for rows of one."""
    days = rows[PARTITION]
    bounds = pc.min_max(days).as_py()
    if bounds["min"] == bounds["max"] and not days.null_count:
        return {bounds["min"]: len(days)} if len(days) else {}
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(days).to_pylist()}


def _sorted(days: pa.ChunkedArray) -> bool:
    """As they come from the staged parts of a batch."""
    numbers = days.cast(pa.int32()).to_numpy()
    return bool((numbers[1:] >= numbers[:-1]).all())


def cast(table: str, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with the columns of `schema`, absent ones null. Raises SchemaMismatch for a value that does not fit."""
    if rows.schema.equals(schema):
        return rows
    columns: list[pa.ChunkedArray] = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.chunked_array([pa.nulls(rows.num_rows, field.type)], type=field.type))
            continue
        column = rows[field.name]
        if column.type == field.type:
            columns.append(column)
            continue
        try:
            # sub-microsecond digits of a timestamp are the only thing that may be lost
            columns.append(column.cast(field.type, safe=not pa.types.is_timestamp(column.type)))
        except pa.ArrowException as error:
            message = f"{table}.{field.name}: expected {field.type}, found {column.type}: {error}"
            raise SchemaMismatch(message) from error
    return pa.table(columns, schema=schema)


def chosen(table: str, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The fields of `columns`, in that order. Raises NotFound for an unknown one."""
    if columns is None:
        return schema
    unknown = [name for name in columns if name not in schema.names]
    if unknown:
        raise NotFound(f"{table}: expected columns among {schema.names}, found {unknown}")
    return pa.schema([schema.field(name) for name in columns])


def ranges(dates: Collection[dt.date]) -> list[tuple[dt.date, dt.date]]:
    """Contiguous inclusive ranges that cover exactly `dates`."""
    found: list[tuple[dt.date, dt.date]] = []
    for day in sorted(set(dates)):
        if found and day - found[-1][1] == dt.timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
