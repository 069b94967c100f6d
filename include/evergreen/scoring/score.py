"""Batch scoring: features in, probabilities with their reasons out, in Arrow batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import SchemaMismatch
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle


def score_batches(
    bundle: ModelBundle,
    features: Iterable[pa.RecordBatch] | pa.RecordBatchReader,
    spec: ModelSpec,
    version: int,
) -> Iterator[pa.RecordBatch]:
    """Score a stream of features, at most `spec.scoring.batch_rows` rows at a time.

    Args:
        features: the entity key, `as_of` (date32) and at least the bundle's features.
        version: the bundle's version in the registry.

    Yields:
        The entity key, `as_of`, `probability` (float64), `decision` (bool), `reason_1..n` (string, strongest first,
        null where nothing more contributed), `model_version` (int32), in the order of the input.

    Raises:
        SchemaMismatch: a column is missing.
        DataError: an infinite feature value.
    """
    for batch in features:
        for start in range(0, batch.num_rows, spec.scoring.batch_rows):
            rows = pa.Table.from_batches([batch.slice(start, spec.scoring.batch_rows)])
            yield _score(bundle, rows, spec, version)


def _score(bundle: ModelBundle, rows: pa.Table, spec: ModelSpec, version: int) -> pa.RecordBatch:
    _check(bundle, rows, spec)
    probability = pa.array(bundle.predict(rows).astype("float64"))
    columns = {name: rows[name].combine_chunks() for name in (*spec.entity.key, "as_of")}
    columns["as_of"] = columns["as_of"].cast(pa.date32())
    columns["probability"] = probability
    columns["decision"] = pc.greater_equal(probability, bundle.threshold)
    for rank, reason in enumerate(reasons(bundle, rows, spec.scoring.reasons), 1):
        columns[f"reason_{rank}"] = reason
    columns["model_version"] = pa.array(np.full(rows.num_rows, version, dtype="int32"))
    return pa.RecordBatch.from_pydict(columns)


def _check(bundle: ModelBundle, rows: pa.Table, spec: ModelSpec) -> None:
    expected = [*spec.entity.key, "as_of", *bundle.features]
    missing = [name for name in expected if name not in rows.column_names]
    if missing:
        raise SchemaMismatch(f"features of {bundle.model}: expected {missing}, found only {rows.column_names}")


def reasons(bundle: ModelBundle, rows: pa.Table, n: int) -> list[pa.Array]:
    """The n features that moved each row's log-odds most, as text such as `dep_hour = 17 (+0.42)`.

    Returns:
        `n` string arrays of `rows.num_rows`, strongest first; equal contributions in the order of the features.
    """
    size, width = rows.num_rows, len(bundle.features)
    if not n or not size:
        return [pa.nulls(size, pa.string()) for _ in range(n)]
    contributions = bundle.contributions(rows)[:, :width]
    top = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :n]
    amounts = np.take_along_axis(contributions, top, axis=1).ravel()
    chosen = top.ravel()
    order = np.argsort(chosen, kind="stable")
    bounds = np.searchsorted(chosen[order], np.arange(width + 1))
    texts = [
        _values(bundle, name, rows[name].take(pa.array(order[low:high] // top.shape[1])))
        for name, low, high in zip(bundle.features, bounds[:-1], bounds[1:], strict=True)
        if high > low
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    values = pa.concat_arrays(texts).take(pa.array(back))
    text = pc.binary_join_element_wise(values, _amounts(amounts), " ")
    text = pc.if_else(pa.array(amounts != 0), text, pa.scalar(None, pa.string()))
    ranked = [text.take(pa.array(np.arange(rank, len(chosen), top.shape[1]))) for rank in range(top.shape[1])]
    return ranked + [pa.nulls(size, pa.string()) for _ in range(n - top.shape[1])]


def _values(bundle: ModelBundle, name: str, values: pa.ChunkedArray) -> pa.Array:
    """`name = value` per row, formatted once per distinct value."""
    column = values.combine_chunks()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    encoded = column.dictionary_encode()
    known = set(bundle.categories[name]) if name in bundle.categories else None
    shown = []
    for value in encoded.dictionary.to_pylist():
        if known is not None:
            shown.append(f"{name} = {value}" if value in known else f"{name} = {value}, unseen")
        else:
            shown.append(f"{name} = {_number(value)}")
    decoded = pa.array(shown, pa.string()).take(encoded.indices)
    return decoded.fill_null(f"{name} = missing")


def _number(value: float) -> str:
    """Four significant digits, and every digit of the whole part."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _amounts(amounts: np.ndarray) -> pa.Array:
    cents, index = np.unique(np.rint(amounts * 100).astype("int64"), return_inverse=True)
    return pa.array([f"({value / 100:+.2f})" for value in cents.tolist()], pa.string()).take(pa.array(index))
