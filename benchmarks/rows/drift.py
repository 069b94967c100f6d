"""The drift report of a window from sketches of all its rows, against Evidently on the rows themselves."""

from __future__ import annotations

from typing import Any

from benchmarks import data
from benchmarks.side import Side

FEW = 30_000


def _tables(side: Side, few: bool = False) -> tuple[Any, Any]:
    """(reference, current): the first half of a year, and all rows of that many years."""
    import datetime as dt

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from include.evergreen.drift.report import kinds

    names = list(kinds(data.spec()))
    year = pq.read_table(data.rows(1), columns=["as_of", *names])
    reference = year.filter(pc.less(year["as_of"], pa.scalar(dt.date(2013, 7, 1), pa.date32()))).select(names)
    current = year.select(names) if side.scale == 1 else pq.read_table(data.rows(side.scale), columns=names)
    if few:
        current = current.take(pa.array(np.linspace(0, current.num_rows - 1, FEW).astype("int64")))
    return reference, current


def _report(side: Side, few: bool) -> dict[str, Any]:
    from include.evergreen.drift.report import build, kinds
    from include.evergreen.drift.sketch import sketch

    spec = data.spec()
    reference, current = _tables(side, few)
    size = spec.monitoring.sketch_rows
    kept = sketch(reference, kinds(spec), size)  # a bundle holds it
    build(kept, sketch(current.slice(0, 1000), kinds(spec), size), spec)
    with side.timed():
        found = build(kept, sketch(current, kinds(spec), size), spec)
    return {
        "rows": current.num_rows,
        "scores": {name: column.score for name, column in found.columns.items()},
        "breached": sorted(name for name, column in found.columns.items() if column.breached),
    }


def engine(side: Side) -> dict[str, Any]:
    return _report(side, few=False)


def few(side: Side) -> dict[str, Any]:
    return _report(side, few=True)


def bare(side: Side) -> dict[str, Any]:
    """The same metrics, methods and page by Evidently, on every row."""
    import pyarrow.compute as pc

    from include.evergreen.drift.distance import measure
    from include.evergreen.drift.report import drifts, kinds

    spec = data.spec()
    reference, current = _tables(side)
    measure(reference.slice(0, 1000), current.slice(0, 1000), kinds(spec), drifts(spec))
    with side.timed():
        scores = measure(reference, current, kinds(spec), drifts(spec)).scores
    return {
        "rows": current.num_rows,
        "scores": scores,
        "breached": sorted(n for n, s in scores.items() if s is not None and s >= drifts(spec)[n].threshold),
        "categories": {n: len(pc.unique(current[n])) for n, kind in kinds(spec).items() if kind == "category"},
    }


SIDES = {"engine": engine, "bare": bare, "few": few}
