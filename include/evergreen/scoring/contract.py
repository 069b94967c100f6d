"""What every scoring must be before it is published."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import OutputInvalid
from include.evergreen.specs import ModelSpec


def check(entities_count: int, predictions: pa.Table, spec: ModelSpec, threshold: float) -> None:
    """Refuse predictions that are not one sound row per entity.

    Args:
        entities_count: how many entities were to be scored.
        predictions: the columns of `score_batches`.
        threshold: from this probability on the decision is yes.

    Raises:
        OutputInvalid: names everything that is wrong, as expected and found.
    """
    keys = [*spec.entity.key, "as_of"]
    required = [*keys, "probability", "decision", "model_version"]
    missing = [name for name in required if name not in predictions.column_names]
    if missing:
        raise OutputInvalid(f"predictions of {spec.name}: expected the columns {required}, found none of {missing}")
    faults = []
    if predictions.num_rows != entities_count:
        faults.append(f"expected {entities_count} rows, one per entity, found {predictions.num_rows}")
    for name in required:
        if predictions[name].null_count:
            faults.append(f"{name}: expected no nulls, found {predictions[name].null_count}")
    probability = predictions["probability"].drop_null()
    # NaN fails both comparisons
    sound = pc.and_(pc.greater_equal(probability, 0.0), pc.less_equal(probability, 1.0))
    outside = probability.filter(pc.invert(sound))
    if len(outside):
        faults.append(f"probability: expected 0 to 1, found {len(outside)} outside, such as {outside[0].as_py()}")
    decided = pc.greater_equal(predictions["probability"], threshold)
    contrary = pc.sum(pc.not_equal(decided, predictions["decision"])).as_py() or 0
    if contrary:
        faults.append(f"decision: expected probability >= {threshold:g}, found {contrary} rows otherwise")
    counts = predictions.select(keys).group_by(keys).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))
    if repeated.num_rows:
        example = repeated.slice(0, 1).select(keys).to_pylist()[0]
        shown = ", ".join(f"{name}={value}" for name, value in example.items())
        faults.append(f"key: expected each entity once, found {repeated.num_rows} repeated, such as {shown}")
    if faults:
        raise OutputInvalid(f"predictions of {spec.name}: {'; '.join(faults)}")
