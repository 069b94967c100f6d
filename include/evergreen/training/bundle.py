"""A trained model as bytes: what the registry stores and scoring loads. Nothing is ever unpickled."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from include.evergreen.errors import ChecksumMismatch, DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import xgboost

PREDICTION = "probability"
BATCH_ROWS = 65_536
"""Rows that are predicted, or handed to XGBoost, at a time: memory stays flat."""
FILES = ("bundle.json", "model.ubj", "reference.parquet")
"""The files of a stored bundle."""


def manifest_sha256(files: dict[str, bytes]) -> str:
    """SHA-256 of `bundle.json`, which carries those of the other files: what is recorded outside the object store."""
    return hashlib.sha256(files["bundle.json"]).hexdigest()


@dataclass(frozen=True)
class ModelBundle:
    """A booster with all it needs to be used.

    Attributes:
        model: the model's name.
        as_of: the date it was trained as of; it saw labels available at or before that midnight.
        booster: XGBoost UBJ bytes.
        categories: per category feature, the training categories in code order; any other value scores as missing.
        features: feature names in the booster's column order.
        reference: quantile sketch (Parquet bytes) of the training features and the prediction, for drift.
        baseline: P(label) of the training rows, the simplest prediction there is.
        facts: JSON-serialisable: metrics, windows, performance of the reference.
    """

    model: str
    as_of: dt.date
    booster: bytes = field(repr=False)
    features: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(repr=False)
    reference: bytes = field(repr=False, default=b"")
    baseline: float = 0.5
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """From this probability on the decision is yes."""
        return float(self.facts.get("threshold", 0.5))

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.booster).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The three files of a stored bundle; `bundle.json` carries the SHA-256 of the other two."""
        meta = {
            "model": self.model,
            "as_of": self.as_of.isoformat(),
            "features": list(self.features),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "baseline": self.baseline,
            "facts": self.facts,
            "sha256": {
                "model.ubj": self.sha256,
                "reference.parquet": hashlib.sha256(self.reference).hexdigest(),
            },
        }
        return {
            "model.ubj": self.booster,
            "reference.parquet": self.reference,
            "bundle.json": json.dumps(meta, sort_keys=True, indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: dict[str, bytes], sha256: str | None = None, what: str = "bundle") -> ModelBundle:
        """Rebuild from `files()`. Raises ChecksumMismatch before a damaged byte is parsed or reaches XGBoost.

        Args:
            sha256: of `bundle.json`, as recorded outside the object store; None: these bytes never left this process.
            what: names the bundle in the error.
        """

        def check(name: str, expected: str) -> None:
            found = hashlib.sha256(files[name]).hexdigest()
            if found != expected:
                raise ChecksumMismatch(f"{what}, {name}: expected SHA-256 {expected}, found {found}")

        if sha256 is not None:
            check("bundle.json", sha256)
        meta = json.loads(files["bundle.json"])
        for name in ("model.ubj", "reference.parquet"):
            check(name, meta["sha256"][name])
        return cls(
            model=meta["model"],
            as_of=dt.date.fromisoformat(meta["as_of"]),
            booster=files["model.ubj"],
            features=tuple(meta["features"]),
            categories={name: tuple(values) for name, values in meta["categories"].items()},
            reference=files["reference.parquet"],
            baseline=meta["baseline"],
            facts=meta["facts"],
        )

    @cached_property
    def loaded(self) -> xgboost.Booster:
        import xgboost

        return xgboost.Booster(model_file=bytearray(self.booster))

    def matrix(self, features: pa.Table) -> Any:
        """Feature columns as the pandas frame the booster was trained on, categories in training order."""
        import pandas as pd

        frame = features.select(list(self.features)).to_pandas()
        for name, values in self.categories.items():
            frame[name] = pd.Categorical(frame[name], categories=list(values))
        return frame.astype({name: "float32" for name in self.features if name not in self.categories})

    def codes(self, features: pa.Table) -> np.ndarray:
        """Features as the booster stores them: shape (rows, features), float32; a category as its code, NaN for null.

        Raises:
            DataError: an infinite value.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        found = np.empty((features.num_rows, len(self.features)), dtype="float32")
        for at, name in enumerate(self.features):
            column = features[name]
            if name in self.categories:
                known = pa.array(self.categories[name], pa.string())
                # nulls and values that training did not see have no code
                column = pc.index_in(column.cast(pa.string()), value_set=known)
            found[:, at] = column.cast(pa.float32(), safe=False).to_numpy()
        infinite = np.isinf(found)
        if infinite.any():
            name = self.features[int(infinite.any(axis=0).argmax())]
            raise DataError(f"features of {self.model}: {name}: expected finite numbers or nulls, found infinity")
        return found

    def frame(self, codes: np.ndarray) -> Any:
        """`matrix` of the same rows, from their `codes`."""
        import numpy as np
        import pandas as pd

        columns: dict[str, Any] = {}
        for at, name in enumerate(self.features):
            values = codes[:, at]
            if name in self.categories:
                code = np.where(np.isnan(values), -1, values).astype("int32")
                known = pd.CategoricalDtype(list(self.categories[name]))
                columns[name] = pd.Categorical.from_codes(code, dtype=known)
            else:
                columns[name] = values
        return pd.DataFrame(columns, copy=False)

    def predict(self, features: pa.Table) -> np.ndarray:
        """P(label) per row, shape (rows,), float32. Raises DataError: see `codes`."""
        import numpy as np

        found = np.empty(features.num_rows, dtype="float32")
        for start in range(0, features.num_rows, BATCH_ROWS):
            batch = self.codes(features.slice(start, BATCH_ROWS))
            found[start : start + BATCH_ROWS] = self.loaded.inplace_predict(batch, validate_features=False)
        return found

    def contributions(self, features: pa.Table) -> np.ndarray:
        """SHAP values in log-odds, shape (rows, features + 1), the last column the bias."""
        import xgboost

        data = xgboost.DMatrix(self.matrix(features), enable_categorical=True)
        found: np.ndarray = self.loaded.predict(data, pred_contribs=True)
        return found
