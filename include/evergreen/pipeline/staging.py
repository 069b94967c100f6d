"""Rows between two steps of a run: Parquet under `staging/`, which `maintain_lake` clears.

Rows of any number are staged in parts of bounded memory: `<key>-00000.parquet` and on.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from include.evergreen.ahead import ahead

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.platform import Platform

PART_ROWS = 131_072
THREADS = 2


def packed(rows: pa.Table, plain: bool = False) -> bytes:
    """Rows as a Parquet file; `plain`: in half of the time, for rows that are read whole."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    kind = "lz4" if plain else "zstd"
    pq.write_table(rows, buffer, compression=kind, use_dictionary=not plain, write_statistics=not plain)
    return buffer.getvalue()


def put(platform: Platform, key: str, rows: pa.Table, plain: bool = False) -> str:
    """Stage rows under `key`, and hand the key back. Raises Unavailable."""
    platform.objects.put(key, packed(rows, plain), "application/vnd.apache.parquet")
    return key


def get(platform: Platform, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows staged under `key`, of these columns or of all. Raises NotFound, Unavailable."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(platform.objects.get(key)), columns=None if columns is None else list(columns))


def part(key: str, number: int) -> str:
    """The key of a part."""
    return f"{key}-{number:05}.parquet"


def put_parts(platform: Platform, key: str, tables: Iterable[pa.Table]) -> list[int]:
    """Stage each table as a part under `key`; their rows. Raises Unavailable."""

    def stage(number: int, rows: pa.Table) -> int:
        put(platform, part(key, number), rows, plain=True)
        return int(rows.num_rows)

    return list(ahead((partial(stage, number, rows) for number, rows in enumerate(tables)), THREADS, "staging"))


def cut(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `PART_ROWS`, the last one of what is left; at least one, if `tables` has one."""
    import pyarrow as pa

    held: list[pa.Table] = []
    rows = cuts = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= PART_ROWS:
            whole = pa.concat_tables(held)
            while rows >= PART_ROWS:
                yield whole.slice(0, PART_ROWS)
                whole, rows, cuts = whole.slice(PART_ROWS), rows - PART_ROWS, cuts + 1
            held = [whole]
    if held and (rows or not cuts):
        yield pa.concat_tables(held)
