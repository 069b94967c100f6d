"""Scoring stored features: from the lake by `score_batches`, against Parquet batches and `inplace_predict`."""

from __future__ import annotations

from typing import Any

from benchmarks import data
from benchmarks.side import Side

BATCH_ROWS = 65_536


def _engine(side: Side, reasons: int, most: int | None = None) -> dict[str, Any]:
    import pyarrow.compute as pc

    from include.evergreen.scoring.score import score_batches

    spec, bundle = data.spec(), data.bundle()
    spec = spec.model_copy(update={"scoring": spec.scoring.model_copy(update={"reasons": reasons})})
    bundle = bundle.__class__.from_files(bundle.files())
    columns = [*spec.entity.key, "as_of", *bundle.features]
    rows, total = 0, 0.0
    with side.platform(data.lake_of(side.scale)) as platform:
        warm = platform.lake.stream("bench.rows", since=data.DAY, until=data.DAY, columns=columns).read_next_batch()
        next(score_batches(bundle, [warm.slice(0, 100)], spec, 1))
        del warm
        with side.timed():
            batches = platform.lake.stream("bench.rows", columns=columns)
            for batch in score_batches(bundle, batches, spec, 1):
                rows += batch.num_rows
                total += pc.sum(batch["probability"]).as_py()
                if most is not None and rows >= most:
                    break
    return {"rows": rows, "mean": total / rows, "rows_per_second": rows / side.seconds}


def engine(side: Side) -> dict[str, Any]:
    return _engine(side, 0)


def reasons(side: Side) -> dict[str, Any]:
    """Exact SHAP values take most of it: one batch says enough."""
    return _engine(side, data.spec().scoring.reasons, BATCH_ROWS)


def bare(side: Side) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xgboost

    bundle = data.bundle()
    booster = xgboost.Booster(model_file=bytearray(bundle.booster))
    names, known = list(bundle.features), {name: pa.array(values) for name, values in bundle.categories.items()}
    file = pq.ParquetFile(data.rows(side.scale))
    booster.inplace_predict(np.zeros((100, len(names)), dtype="float32"))
    rows, total = 0, 0.0
    with side.timed():
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            matrix = np.empty((batch.num_rows, len(names)), dtype="float32")
            for at, name in enumerate(names):
                column = batch[name]
                if name in known:
                    column = pc.index_in(column, value_set=known[name]).cast(pa.float32())
                matrix[:, at] = column.to_numpy(zero_copy_only=False)
            probability = booster.inplace_predict(matrix)
            rows += len(probability)
            total += float(probability.astype("float64").sum())
    return {"rows": rows, "mean": total / rows, "rows_per_second": rows / side.seconds}


SIDES = {"engine": engine, "bare": bare, "reasons": reasons}
