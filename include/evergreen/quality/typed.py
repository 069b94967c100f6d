"""Typed rows of a batch of any size: Arrow in memory, or Parquet files in a folder of this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from include.evergreen.query import connect, quoted

ROW = "__row"
"""The position of a row over all parts; a file holds it as a column."""


class Typed:
    """Rows in parts of one schema. A position counts over all parts, in their order."""

    def __init__(self, parts: Sequence[pa.Table | Path]) -> None:
        self.parts = list(parts)
        self.sizes = [p.num_rows if isinstance(p, pa.Table) else pq.read_metadata(p).num_rows for p in self.parts]
        self.starts = np.cumsum([0, *self.sizes])
        first = self.parts[0]
        schema = first.schema if isinstance(first, pa.Table) else pq.read_schema(first)
        self.schema: pa.Schema = pa.schema([field for field in schema if field.name != ROW])

    @classmethod
    def of(cls, rows: pa.Table | Typed) -> Typed:
        """Rows in memory are one part."""
        return rows if isinstance(rows, Typed) else cls([rows])

    @staticmethod
    def keep(rows: pa.Table, start: int, path: Path) -> Path:
        """One part as a file, whose first row is the one at `start` of all."""
        placed = rows.append_column(ROW, pa.array(np.arange(start, start + rows.num_rows)))
        texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
        pq.write_table(placed, path, compression="lz4", write_statistics=False, use_dictionary=texts)
        return path

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def part(self, number: int, names: Sequence[str] | None = None) -> pa.Table:
        """The rows of one part, of these columns or of all."""
        part, wanted = self.parts[number], list(self.schema.names if names is None else names)
        return part.select(wanted) if isinstance(part, pa.Table) else pq.read_table(part, columns=wanted).select(wanted)

    def select(self, names: Sequence[str] | None = None) -> pa.Table:
        """Columns of all rows."""
        return pa.concat_tables([self.part(number, names) for number in range(len(self.parts))])

    def take(self, positions: Any, names: Sequence[str] | None = None) -> pa.Table:
        """The rows at ascending positions."""
        at = np.asarray(positions, dtype=np.int64)
        bounds = np.searchsorted(at, self.starts)
        found = [self.part(0, names).slice(0, 0)]
        for number, (low, high) in enumerate(pairwise(bounds.tolist())):
            if low < high:
                found.append(self.part(number, names).take(pa.array(at[low:high] - self.starts[number])))
        return pa.concat_tables(found)

    def opened(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that knows `rows`, with `__row`, and reaches no file but theirs."""
        if isinstance(self.parts[0], pa.Table):
            rows, connection = self.select(), connect()
            connection.register("rows", rows.append_column(ROW, pa.array(np.arange(rows.num_rows))))
            return connection
        files = ", ".join("'{}'".format(str(path).replace("'", "''")) for path in self.parts)
        connection = connect(f"set allowed_paths = [{files}]")
        connection.execute(f"create temp view rows as select * from read_parquet([{files}])")
        return connection

    @cached_property
    def _repeated(self) -> dict[tuple[str, ...], np.ndarray[Any, Any]]:
        return {}

    def repeated(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """Ascending positions of the rows whose values of these columns may occur more than once; no other does.

        Eight bytes a row, whatever the columns hold: rows are told apart by their hash.
        """
        key = tuple(names)
        if key not in self._repeated:
            hashes = np.empty(self.num_rows, dtype=np.uint64)
            with self.opened() as connection:
                hashed = connection.sql(f"select {ROW}, hash({quoted(*names)}) as h from rows")
                for batch in hashed.to_arrow_reader(1 << 17):
                    hashes[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
            ordered = np.sort(hashes)
            twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
            self._repeated[key] = np.flatnonzero(np.isin(hashes, twice)) if twice.size else np.empty(0, dtype=np.int64)
        return self._repeated[key]
