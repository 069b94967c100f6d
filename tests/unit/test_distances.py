"""The fast distances are Evidently's own, to the last digit that a rerun keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.drift import report
from include.evergreen.drift.distance import MIN_STD, distances, measure
from include.evergreen.drift.sketch import sketch
from include.evergreen.specs import Drift
from tests.unit.test_drift_report import model

KINDS: dict[str, Any] = {
    "smooth": "number",
    "few": "number",
    "constant": "number",
    "gaps": "number",
    "level": "number",
    "region": "category",
    "plane": "category",
    "same": "category",
    "other": "category",
    "grade": "category",
}
DRIFTS = {
    "smooth": Drift(method="wasserstein"),
    "few": Drift(method="jensenshannon"),
    "constant": Drift(method="wasserstein"),
    "gaps": Drift(method="wasserstein"),
    "level": Drift(method="psi"),
    "region": Drift(method="jensenshannon"),
    "plane": Drift(method="jensenshannon"),
    "same": Drift(method="jensenshannon"),
    "other": Drift(method="jensenshannon"),
    "grade": Drift(method="psi"),
}


def holed(values: np.ndarray, share: float, rng: np.random.Generator) -> pa.Array:
    return pa.array(values.tolist(), mask=rng.random(len(values)) < share)


def window(rng: np.random.Generator, rows: int, late: bool) -> pa.Table:
    """Numbers with gaps; later windows hold levels that the reference lacks, and lack some that it holds."""
    regions = ["north", "south", "new one", "", "nan"] if late else ["north", "south", "west", ""]
    return pa.table(
        {
            "smooth": rng.normal(0.4 * late, 1 + late, rows),
            "few": rng.integers(0, 3 + late, rows).astype("float64"),
            "constant": np.full(rows, 7.0 + 1e-4 * late),
            "gaps": holed(rng.gamma(2.0, 50.0, rows), 0.9 if late else 0.3, rng),
            "level": holed(rng.integers(1, 8 + late, rows).astype("float64"), 0.1, rng),
            "region": holed(rng.choice(regions, rows), 0.2 * late, rng),
            "plane": rng.choice([f"N{at}" for at in range(300 * late, 300 * late + 400)], rows),
            "same": np.full(rows, "one"),
            "other": np.full(rows, "after" if late else "before"),
            "grade": holed(rng.choice(list("abcd" if late else "abc"), rows), 0.2, rng),
        }
    )


@pytest.mark.parametrize(("seed", "rows"), [(1, 2000), (2, 400), (3, 37)])
def test_distances_are_those_of_evidently(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    reference, current = window(rng, 2000, late=False), window(rng, rows, late=True)
    fast, evidently = distances(reference, current, KINDS, DRIFTS), measure(reference, current, KINDS, DRIFTS).scores
    assert list(fast) == list(DRIFTS)
    assert fast == {name: pytest.approx(score, abs=1e-9, rel=0) for name, score in evidently.items()}
    moved = [name for name, score in fast.items() if score is not None and score > 0]
    assert set(moved) == set(DRIFTS) - {"same"}
    assert fast["other"] == pytest.approx(np.sqrt(np.log(2)), abs=1e-9)
    assert fast["constant"] == pytest.approx(1e-4 / MIN_STD, abs=1e-9)


def test_distances_on_sketches_are_the_scores_of_the_report() -> None:
    """Also where there is nothing to measure: no value then, no value now."""
    features: dict[str, Any] = {
        "smooth": {"drift": {"method": "wasserstein"}},
        "gaps": {"drift": {"method": "wasserstein"}},
        "few": {},
        "region": {"type": "category"},
        "grade": {"type": "category", "drift": {"method": "psi"}},
    }
    spec, rng = model(features), np.random.default_rng(5)

    def part(rows: int, late: bool, empty: tuple[str, ...]) -> pa.Table:
        table = window(rng, rows, late).append_column("probability", pa.array(rng.random(rows)))
        for name in empty:
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.nulls(rows, table.schema.field(name).type))
        return sketch(table, report.kinds(spec), 500)

    reference, current = part(3000, False, ("gaps", "few")), part(900, True, ("region", "few"))
    columns = report.build(reference, current, spec).columns
    assert report.columns(reference, current, spec) == columns
    shown = {name: column.score for name, column in columns.items()}
    fast = distances(reference, current, report.kinds(spec), report.drifts(spec))
    assert [name for name, score in fast.items() if score is None] == ["gaps", "few", "region"]
    assert fast == {name: score if score is None else pytest.approx(score, abs=1e-9) for name, score in shown.items()}
