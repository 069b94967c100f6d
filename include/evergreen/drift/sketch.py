"""Quantile sketch: a table of any size as `rows` rows that keep each column's distribution.

Random samples of this size change verdicts; even quantiles and proportional counts do not. A number keeps values that
occur in the data (no interpolation), so that a discrete number stays discrete.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.evergreen.errors import SchemaMismatch

ROWS = 10_000
THREADS = 2
SEED = 20130101
SOURCE_ROWS = b"evergreen.source_rows"


def sketch(table: pa.Table, columns: Mapping[str, Literal["number", "category"]], rows: int = ROWS) -> pa.Table:
    """Reduce `table` to exactly `rows` rows, whatever its size; deterministic.

    A number becomes float64: its nulls (and NaN, infinities) in proportion, then even quantiles of the rest. A category
    becomes string: counts in proportion by largest remainder, nulls included, so that every value with a share of at
    least 1/rows is present. Columns are shuffled independently: rows of a sketch are not rows of the table.
    An empty table gives nulls.

    Raises SchemaMismatch (a column is not there, or is not of its kind), ValueError (rows < 1).
    """
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, found {rows}")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise SchemaMismatch(f"expected the columns {sorted(columns)}, found none of {missing}")

    def reduced(name: str) -> pa.Array:
        kind = columns[name]
        try:
            values = _number(table[name], rows) if kind == "number" else _category(table[name], rows)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaMismatch(f"{name}: expected a {kind}, found {table[name].type}: {error}") from error
        order = np.random.default_rng([SEED, zlib.crc32(name.encode())]).permutation(rows)
        return values.take(pa.array(order))

    with ThreadPoolExecutor(THREADS) as pool:
        done = dict(zip(columns, pool.map(reduced, columns), strict=True))
    return pa.table(done).replace_schema_metadata({SOURCE_ROWS: str(table.num_rows).encode()})


def source_rows(reduced: pa.Table) -> int:
    """Rows of the table that was sketched; the sketch's own rows when it does not say."""
    return int((reduced.schema.metadata or {}).get(SOURCE_ROWS, reduced.num_rows))


def to_bytes(reduced: pa.Table) -> bytes:
    """A sketch as Parquet; the same sketch gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(reduced, sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Read `to_bytes`. Raises SchemaMismatch for bytes that are no Parquet file."""
    try:
        return pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise SchemaMismatch(f"expected a sketch as Parquet, found {len(data)} other bytes: {error}") from error


def _number(column: pa.ChunkedArray, rows: int) -> pa.Array:
    # float32 is sorted as it is, in half the time: the order is the same
    kept_as = pa.float32() if column.type == pa.float32() else pa.float64()
    values = column.cast(kept_as, safe=False).to_numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return pa.nulls(rows, pa.float64())
    values.sort()
    kept = max(1, round(rows * values.size / len(column)))
    at = ((np.arange(kept) + 0.5) * values.size / kept).astype(np.int64)
    return pa.concat_arrays([pa.array(values[at].astype(np.float64)), pa.nulls(rows - kept, pa.float64())])


def _category(column: pa.ChunkedArray, rows: int) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    counted = pc.value_counts(column.cast(pa.string()))
    if not len(counted):
        return pa.nulls(rows, pa.string())
    pairs = sorted(
        zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True),
        key=lambda pair: (pair[0] is None, pair[0] or ""),
    )
    counts = np.array([count for _, count in pairs], dtype=np.int64)
    share, remainder = np.divmod(counts * rows, counts.sum())
    first = np.lexsort((np.arange(len(counts)), -counts, -remainder))
    share[first[: rows - share.sum()]] += 1
    return pa.array([value for value, _ in pairs], pa.string()).take(pa.array(np.repeat(np.arange(len(pairs)), share)))
