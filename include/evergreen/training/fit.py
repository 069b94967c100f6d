"""Fit XGBoost on a time-ordered split. Same rows, seed and threads: the same bytes."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.drift.profile import learn
from include.evergreen.drift.sketch import sketch, to_bytes
from include.evergreen.errors import NotEnoughData
from include.evergreen.specs import FrozenHoldout, ModelSpec, Training
from include.evergreen.training.bundle import BATCH_ROWS, PREDICTION, ModelBundle
from include.evergreen.training.metrics import best_threshold, costs_of, score
from include.evergreen.training.rows import Rows, batches, joined, only
from include.evergreen.training.scratch import scratch

IN_ONE_PIECE = 524_288
"""More rows than this reach XGBoost in batches: the quantiles are merged, the memory of a copy is saved."""
PAGE_ROWS = 524_288
"""Rows of a page on disk, where the bins are kept there: each tree reads every page once per level."""
VALUE_BYTES = 4
"""Of a feature's value, as a float32."""


@dataclass(frozen=True)
class Split:
    """Labelled rows by time: train < validation < holdout < as-of date. Bounds are first dates.

    Frozen days (`gate.frozen`) before the holdout are in none of the parts.
    """

    train: Rows
    validation: Rows
    holdout: Rows
    validation_from: dt.date
    holdout_from: dt.date


def cut(rows: Rows, as_of: dt.date, training: Training, frozen: FrozenHoldout) -> Split:
    """Cut labelled rows by date, and leave the frozen days out. A part may be empty."""
    holdout_from = as_of - dt.timedelta(days=training.holdout_days)
    validation_from = holdout_from - dt.timedelta(days=training.validation_days)
    rows = only(rows, pc.invert(on_frozen_days(rows, frozen, holdout_from)))
    day = rows["as_of"]
    return Split(
        only(rows, pc.less(day, validation_from)),
        only(rows, pc.and_(pc.greater_equal(day, validation_from), pc.less(day, holdout_from))),
        only(rows, pc.and_(pc.greater_equal(day, holdout_from), pc.less(day, as_of))),
        validation_from,
        holdout_from,
    )


def enough(found: dict[str, tuple[int, int]], total: int, parts: Split, as_of: dt.date, training: Training) -> None:
    """Check what each part holds: rows, and distinct labels; `total` labelled rows in all. Raises NotEnoughData."""
    for name, (rows, outcomes) in found.items():
        least = training.min_rows if name == "training" else 1
        if rows < least or outcomes < 2:
            raise NotEnoughData(
                f"{name} rows as of {as_of}: expected at least {least} with both outcomes, found {rows} "
                f"({total} labelled rows in all; train < {parts.validation_from} <= validation < {parts.holdout_from})"
            )


def split(rows: Rows, as_of: dt.date, training: Training, frozen: FrozenHoldout) -> Split:
    """`cut`, and see that a model can be trained on it.

    Raises:
        NotEnoughData: fewer than `min_rows` training rows, an empty part, or a part with a single class.
    """
    parts = cut(rows, as_of, training, frozen)
    named = {"training": parts.train, "validation": parts.validation, "holdout": parts.holdout}
    found = {name: (part.num_rows, pc.count_distinct(part["label"]).as_py()) for name, part in named.items()}
    total = rows.num_rows - pc.sum(on_frozen_days(rows, frozen, parts.holdout_from)).as_py()
    enough(found, total, parts, as_of, training)
    return parts


def on_frozen_days(rows: Rows, frozen: FrozenHoldout, before: dt.date) -> pa.ChunkedArray:
    """Which rows are of a frozen day before a date, shape (rows,)."""
    days = [day for day in pc.unique(rows["as_of"]).to_pylist() if day < before and frozen.holds(day)]
    return pc.is_in(rows["as_of"], pa.array(days, pa.date32()))


def label_of(rows: Rows) -> np.ndarray:
    """The label as 0/1, shape (rows,)."""
    found: np.ndarray = rows["label"].to_numpy().astype("int8")
    return found


def params_of(spec: ModelSpec, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """XGBoost's parameters, but for those that are tuned."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "eval_metric": "logloss",  # a proper score stops later and steadier than a rank metric on a few stormy days
        **spec.training.params,
        **(overrides or {}),
        "seed": spec.training.seed,
        "nthread": spec.training.threads,
    }


def _train(params: dict[str, Any], training: Training, train: Any, validation: Any) -> Any:
    import xgboost

    booster = xgboost.train(
        params,
        train,
        training.num_boost_round,
        evals=[(validation, "validation")],
        early_stopping_rounds=training.early_stopping_rounds,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1], booster.best_score


def is_large(spec: ModelSpec, rows: int) -> bool:
    """Whether the features of so many rows are beyond the model's `training.memory_mb`."""
    return rows * len(spec.features) * VALUE_BYTES > spec.training.memory_mb * 1024 * 1024


def _matrix(draft: ModelBundle, rows: Rows, threads: int, ref: Any, folder: Path, large: bool) -> Any:
    """Rows as XGBoost trains on them, in bins (those of `ref`); those of a large training are on disk, in `folder`."""
    import xgboost

    columns, coded = [*draft.features, "label"], tuple(draft.categories)
    if not large and rows.num_rows <= IN_ONE_PIECE:
        [whole] = batches(rows, columns, max(rows.num_rows, 1), coded)
        return xgboost.QuantileDMatrix(
            draft.matrix(whole), label=label_of(whole), enable_categorical=True, nthread=threads, ref=ref
        )

    def values() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in batches(rows, columns, PAGE_ROWS if large else BATCH_ROWS, coded):
            yield draft.codes(part), label_of(part)

    read = values if isinstance(rows, pa.Table) else _Spool(values, folder / "values", len(draft.features))

    class Batches(xgboost.DataIter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(cache_prefix=str(folder / "bins") if large else None, on_host=False)
            self.reset()

        def next(self, input_data: Any) -> bool:
            part = next(self.parts, None)
            if part is not None:
                input_data(data=draft.frame(part[0]), label=part[1])
            return part is not None

        def reset(self) -> None:
            self.parts = read()

    made = xgboost.ExtMemQuantileDMatrix if large else xgboost.QuantileDMatrix
    return made(Batches(), enable_categorical=True, nthread=threads, ref=ref)


class _Spool:
    """Values, shape (rows, width), and labels of batches, from a file after the first time: XGBoost reads them all four
    times."""

    def __init__(self, made: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]], path: Path, width: int) -> None:
        self._made, self._path, self._width = made, path, width
        self._sizes: list[int] = []

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._kept() if self._sizes else self._first()

    def _first(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sizes = []
        with self._path.open("wb") as file:
            for values, label in self._made():
                np.ascontiguousarray(values.T).tofile(file)
                label.tofile(file)
                sizes.append(len(label))
                yield values, label
        self._sizes = sizes

    def _kept(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with self._path.open("rb") as file:
            for size in self._sizes:
                values = np.fromfile(file, "float32", size * self._width).reshape(self._width, size).T
                yield values, np.fromfile(file, "int8", size)


def _fitted(
    spec: ModelSpec, draft: ModelBundle, parts: Split, params: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], bytes, np.ndarray | None]:
    """The parameters used, the trained booster as UBJ, and its predictions for training and validation rows: from their
    bins, the same to the last bit as from their values, and sooner. None where the bins are on disk.

    `folder` is for what is not kept in memory.
    """
    threads = spec.training.threads
    large = is_large(spec, parts.train.num_rows)
    for name in ("train", "validation"):
        (folder / name).mkdir()
    train = _matrix(draft, parts.train, threads, None, folder / "train", large)
    validation = _matrix(draft, parts.validation, threads, train, folder / "validation", large)
    if spec.training.trials:
        params = tune(spec, params, lambda tried: float(_train(tried, spec.training, train, validation)[1]))
    booster = _train(params, spec.training, train, validation)[0]
    prediction = None if large else np.concatenate([booster.predict(train), booster.predict(validation)])
    return params, bytes(booster.save_raw("ubj")), prediction


def tune(spec: ModelSpec, params: dict[str, Any], loss: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The parameters of least `loss` in the ranges of `training.search`."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        tried = {
            name: trial.suggest_int(name, int(low), int(high))
            if float(low).is_integer() and float(high).is_integer()
            else trial.suggest_float(name, low, high, log=low > 0)
            for name, (low, high) in sorted(spec.training.search.items())
        }
        return loss({**params, **tried})

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=spec.training.seed))
    study.optimize(objective, n_trials=spec.training.trials)
    return {**params, **study.best_params}


def _reference(
    spec: ModelSpec, days: pa.ChunkedArray, label: np.ndarray, prediction: np.ndarray, fitted: int
) -> dict[str, float | None]:
    """Metrics of the rows not fitted on, AUC with its bounds by day, and the rate of the label among all rows."""
    from include.evergreen.promotion.bootstrap import Draws

    draws = Draws(days.to_numpy()[fitted:], spec.gate.resamples, spec.training.seed)
    auc = draws.bound(draws.auc(label[fitted:], prediction[fitted:]), spec.gate.confidence)
    return {
        **score(label[fitted:], prediction[fitted:]),
        "auc_low": auc.low if math.isfinite(auc.low) else None,
        "auc_high": auc.high if math.isfinite(auc.high) else None,
        "rate": float(label.mean()),
    }


def categories_of(spec: ModelSpec, rows: Rows) -> dict[str, tuple[str, ...]]:
    """The values of each category feature, sorted."""
    return {
        name: tuple(sorted(value for value in pc.unique(rows[name]).to_pylist() if value is not None))
        for name in spec.categories
    }


def fit(spec: ModelSpec, rows: Rows, as_of: dt.date, overrides: dict[str, Any] | None = None) -> ModelBundle:
    """Train one challenger on labelled rows (`features.build.labelled`), all before `as_of`.

    Args:
        rows: in memory, or on local disk: then never in memory whole. Where they lie changes no byte.
        overrides: hyper-parameters that replace the spec's, for a training started by hand.

    Returns:
        A bundle whose `facts` hold the parameters used, the windows, the metrics on validation and holdout, the feature
        importances (gain), the decision threshold, and the profile that later days must fit (`drift.profile`).

    Raises:
        NotEnoughData.
    """
    parts = split(rows, as_of, spec.training, spec.gate.frozen)
    draft = ModelBundle(
        model=spec.name,
        as_of=as_of,
        booster=b"",
        features=tuple(spec.features),
        categories=categories_of(spec, parts.train),
    )
    with scratch() as folder:
        params, booster, prediction = _fitted(spec, draft, parts, params_of(spec, overrides), folder)
    bundle = replace(draft, booster=booster)
    if prediction is not None:
        prediction = np.concatenate([prediction, predicted(bundle, parts.holdout)])
    made = {"kind": "local", "external_memory": is_large(spec, parts.train.num_rows)}
    return described(spec, bundle, params, parts, made, prediction)


def described(
    spec: ModelSpec,
    bundle: ModelBundle,
    params: dict[str, Any],
    parts: Split,
    compute: dict[str, Any],
    prediction: np.ndarray | None = None,
) -> ModelBundle:
    """The bundle of a trained booster with its baseline, reference and facts.

    Args:
        compute: where it was trained, for `facts`.
        prediction: for training, validation and holdout rows, in this order; None = predict here.
    """
    booster = bundle.loaded
    importances = {name: float(np.mean(value)) for name, value in booster.get_score(importance_type="gain").items()}
    everything = joined([parts.train, parts.validation, parts.holdout])
    label = label_of(everything)
    fitted, seen = parts.train.num_rows, parts.train.num_rows + parts.validation.num_rows
    if prediction is None:
        prediction = predicted(bundle, everything)
    reference = everything.select(list(spec.features)).append_column(PREDICTION, pa.array(prediction))
    types = {**{name: feature.type for name, feature in spec.features.items()}, PREDICTION: "number"}
    metrics = {
        "validation": score(label[fitted:seen], prediction[fitted:seen]),
        "holdout": score(label[seen:], prediction[seen:]),
        # both together: what later performance is compared with; one week alone swings by a tenth of AUC
        "reference": _reference(spec, everything["as_of"], label, prediction, fitted),
    }
    return replace(
        bundle,
        baseline=float(label[:fitted].mean()),
        reference=to_bytes(sketch(reference, types, spec.monitoring.sketch_rows)),
        facts={
            "params": params,
            "trees": booster.num_boosted_rounds(),
            "compute": compute,
            "rows": {
                "train": parts.train.num_rows,
                "validation": parts.validation.num_rows,
                "holdout": parts.holdout.num_rows,
            },
            "train_from": pc.min(parts.train["as_of"]).as_py().isoformat(),
            "trained_until": (parts.holdout_from - dt.timedelta(days=1)).isoformat(),
            "metrics": metrics,
            "importances": importances,
            "categories": {name: len(values) for name, values in bundle.categories.items()},
            "frozen_every": spec.gate.frozen.every_days,
            "threshold": spec.scoring.threshold
            if spec.costs is None
            else best_threshold(label[fitted:seen], prediction[fitted:seen], costs_of(spec.costs)),
            "profile": learn(everything, spec).to_dict(),
        },
    )


def predicted(bundle: ModelBundle, rows: Rows) -> np.ndarray:
    """P(label) per row, shape (rows,), float32."""
    coded = tuple(bundle.categories)
    found = [bundle.predict(part) for part in batches(rows, list(bundle.features), BATCH_ROWS, coded)]
    return np.concatenate([np.empty(0, dtype="float32"), *found])
