"""Labelled rows that a training reads: a table in memory, or Parquet files on local disk that never are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_SLICES = 4096


class Stored:
    """Rows of Parquet files of one schema, in order of the files: read a column, or a batch of rows, at a time.

    It answers what is asked of a `pa.Table` in a training: `num_rows`, `column_names`, `[name]`, `select`,
    `append_column`. Safe for threads.

    Attributes:
        ranges: the rows meant, shape (n, 2): first, and one past the last, over all files; ascending.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Sequence[str] | None = None,
        ranges: np.ndarray | None = None,
        extra: dict[str, pa.ChunkedArray] | None = None,
    ) -> None:
        self.paths = tuple(paths)
        self._sizes = [pq.read_metadata(path).num_rows for path in self.paths]
        self.column_names = list(columns if columns is not None else pq.read_schema(self.paths[0]).names)
        self.ranges = np.array([[0, sum(self._sizes)]]) if ranges is None else ranges
        self._extra = dict(extra or {})

    @property
    def num_rows(self) -> int:
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One column. Raises KeyError."""
        if name in self._extra:
            return self._extra[name]
        if name not in self.column_names:
            raise KeyError(name)
        whole = pa.concat_tables([pq.read_table(path, columns=[name]) for path in self.paths])[name]
        slices = [whole.slice(first, last - first) for first, last in self.ranges.tolist()]
        return pa.chunked_array([chunk for part in slices for chunk in part.chunks], whole.type)

    def select(self, names: Sequence[str]) -> Stored:
        """The same rows with these columns."""
        return Stored(self.paths, names, self.ranges)

    def append_column(self, name: str, values: pa.Array) -> Stored:
        """The same rows with one more column, of `num_rows` values."""
        extra = {**self._extra, name: pa.chunked_array([values])}
        return Stored(self.paths, [*self.column_names, name], self.ranges, extra)

    def only(self, mask: pa.ChunkedArray) -> Stored:
        """The rows of a mask, shape (num_rows,)."""
        start, found = 0, []
        chosen = mask.to_numpy()
        for first, last in self.ranges.tolist():
            found.append(runs(chosen[start : start + last - first]) + first)
            start += last - first
        return Stored(self.paths, self.column_names, np.concatenate([np.empty((0, 2), dtype=np.int64), *found]))

    def beside(self, other: Stored) -> Stored:
        """These rows and later ones of the same files."""
        return Stored(self.paths, self.column_names, np.concatenate([self.ranges, other.ranges]))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows in memory."""
        names = list(self.column_names if columns is None else columns)
        schema = pa.schema([field for field in pq.read_schema(self.paths[0]) if field.name in names])
        return pa.concat_tables([schema.empty_table().select(names), *self._parts(names, 65_536, ())])

    def take(self, indices: np.ndarray) -> pa.Table:
        """The rows at ascending positions, in memory."""
        mask = np.zeros(self.num_rows, dtype=bool)
        mask[indices] = True
        return self.only(pa.chunked_array([mask])).table()

    def batches(self, columns: Sequence[str], size: int, coded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The rows in order, `size` at a time, the last batch with what is left.

        Args:
            coded: string columns that come as dictionaries.
        """
        waiting: list[pa.Table] = []
        held = 0
        for part in self._parts(columns, size, coded):
            while part.num_rows:
                taken = part.slice(0, size - held)
                part = part.slice(taken.num_rows)
                waiting.append(taken)
                held += taken.num_rows
                if held == size:
                    yield pa.concat_tables(waiting)
                    waiting, held = [], 0
        if held:
            yield pa.concat_tables(waiting)

    def _parts(self, columns: Sequence[str], size: int, coded: Sequence[str]) -> Iterator[pa.Table]:
        start, at = 0, 0
        for path, rows in zip(self.paths, self._sizes, strict=True):
            if at == len(self.ranges) or self.ranges[at, 0] >= start + rows:
                start += rows
                continue
            with pq.ParquetFile(path, read_dictionary=[name for name in coded if name in columns]) as file:
                for batch in file.iter_batches(size, columns=list(columns)):
                    end = start + batch.num_rows
                    while at < len(self.ranges) and self.ranges[at, 0] < end:
                        first, last = (int(bound) for bound in self.ranges[at])
                        begin = max(first, start)
                        yield pa.Table.from_batches([batch.slice(begin - start, min(last, end) - begin)])
                        if last > end:
                            break
                        at += 1
                    start = end


Rows = pa.Table | Stored
"""Labelled rows, wherever they are."""


def runs(mask: np.ndarray) -> np.ndarray:
    """Where a mask is true: first, and one past the last, of each run; shape (n, 2)."""
    return np.flatnonzero(np.diff(mask.astype("int8"), prepend=0, append=0)).reshape(-1, 2)


def only(rows: Any, mask: pa.ChunkedArray) -> Any:
    """Rows of a mask: as slices, without a copy, where they lie together, as rows sorted by date do."""
    if isinstance(rows, Stored):
        return rows.only(mask)
    found = runs(mask.to_numpy())
    if len(found) > MAX_SLICES:
        return rows.filter(mask)
    slices = [rows.slice(start, stop - start) for start, stop in found.tolist()]
    return pa.concat_tables(slices) if slices else rows.slice(0, 0)


def batches(rows: Any, columns: Sequence[str], size: int, coded: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows in order, `size` at a time; `coded`: string columns that may come as dictionaries."""
    if isinstance(rows, Stored):
        yield from rows.batches(columns, size, coded)
    else:
        chosen = rows.select(list(columns))
        yield from (chosen.slice(start, size) for start in range(0, rows.num_rows, size))


def joined(parts: Sequence[Any]) -> Any:
    """The rows of parts of the same rows, one after the other; of files in order of the files."""
    if isinstance(parts[0], Stored):
        found = parts[0]
        for part in parts[1:]:
            found = found.beside(part)
        return found
    return pa.concat_tables(parts)
