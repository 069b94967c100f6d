"""Fit XGBoost on a time-ordered split. Same rows, seed and threads: the same bytes."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, replace
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

IN_ONE_PIECE = 524_288
"""More rows than this reach XGBoost in batches: the quantiles are merged, the memory of a copy is saved."""
MAX_SLICES = 4096


@dataclass(frozen=True)
class Split:
    """Labelled rows by time: train < validation < holdout < as-of date. Bounds are first dates.

    Frozen days (`gate.frozen`) before the holdout are in none of the parts.
    """

    train: pa.Table
    validation: pa.Table
    holdout: pa.Table
    validation_from: dt.date
    holdout_from: dt.date


def split(rows: pa.Table, as_of: dt.date, training: Training, frozen: FrozenHoldout) -> Split:
    """Cut labelled rows by date, and leave the frozen days out.

    Raises:
        NotEnoughData: fewer than `min_rows` training rows, an empty part, or a part with a single class.
    """
    holdout_from = as_of - dt.timedelta(days=training.holdout_days)
    validation_from = holdout_from - dt.timedelta(days=training.validation_days)
    rows = _only(rows, pc.invert(on_frozen_days(rows, frozen, holdout_from)))
    day = rows["as_of"]
    parts = {
        "training": _only(rows, pc.less(day, validation_from)),
        "validation": _only(rows, pc.and_(pc.greater_equal(day, validation_from), pc.less(day, holdout_from))),
        "holdout": _only(rows, pc.and_(pc.greater_equal(day, holdout_from), pc.less(day, as_of))),
    }
    for name, part in parts.items():
        least = training.min_rows if name == "training" else 1
        if part.num_rows < least or pc.count_distinct(part["label"]).as_py() < 2:
            raise NotEnoughData(
                f"{name} rows as of {as_of}: expected at least {least} with both outcomes, found {part.num_rows} "
                f"({rows.num_rows} labelled rows in all; train < {validation_from} <= validation < {holdout_from})"
            )
    return Split(parts["training"], parts["validation"], parts["holdout"], validation_from, holdout_from)


def _only(rows: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Rows of a mask: as slices, without a copy, where they lie together, as rows sorted by date do."""
    chosen = mask.to_numpy().astype("int8")
    edges = np.flatnonzero(np.diff(chosen, prepend=0, append=0))
    if len(edges) > 2 * MAX_SLICES:
        return rows.filter(mask)
    slices = [rows.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(slices) if slices else rows.slice(0, 0)


def on_frozen_days(rows: pa.Table, frozen: FrozenHoldout, before: dt.date) -> pa.ChunkedArray:
    """Which rows are of a frozen day before a date, shape (rows,)."""
    days = [day for day in pc.unique(rows["as_of"]).to_pylist() if day < before and frozen.holds(day)]
    return pc.is_in(rows["as_of"], pa.array(days, pa.date32()))


def label_of(rows: pa.Table) -> np.ndarray:
    """The label as 0/1, shape (rows,)."""
    found: np.ndarray = rows["label"].to_numpy().astype("int8")
    return found


def _params(spec: ModelSpec, overrides: dict[str, Any] | None) -> dict[str, Any]:
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


def _matrix(draft: ModelBundle, rows: pa.Table, threads: int, ref: Any) -> Any:
    """Rows as XGBoost trains on them, in bins (those of `ref`)."""
    import xgboost

    if rows.num_rows <= IN_ONE_PIECE:
        return xgboost.QuantileDMatrix(
            draft.matrix(rows), label=label_of(rows), enable_categorical=True, nthread=threads, ref=ref
        )

    class Batches(xgboost.DataIter):  # type: ignore[misc]
        start = 0

        def next(self, input_data: Any) -> bool:
            part = rows.slice(self.start, BATCH_ROWS)
            if part.num_rows:
                input_data(data=draft.matrix(part), label=label_of(part))
            self.start += BATCH_ROWS
            return bool(part.num_rows)

        def reset(self) -> None:
            self.start = 0

    return xgboost.QuantileDMatrix(Batches(), enable_categorical=True, nthread=threads, ref=ref)


def _tune(spec: ModelSpec, params: dict[str, Any], train: Any, validation: Any) -> dict[str, Any]:
    import optuna

    def objective(trial: optuna.Trial) -> float:
        tried = {
            name: trial.suggest_int(name, int(low), int(high))
            if float(low).is_integer() and float(high).is_integer()
            else trial.suggest_float(name, low, high, log=low > 0)
            for name, (low, high) in sorted(spec.training.search.items())
        }
        return float(_train({**params, **tried}, spec.training, train, validation)[1])

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


def fit(spec: ModelSpec, rows: pa.Table, as_of: dt.date, overrides: dict[str, Any] | None = None) -> ModelBundle:
    """Train one challenger on labelled rows (`features.build.labelled`), all before `as_of`.

    Args:
        overrides: hyper-parameters that replace the spec's, for a training started by hand.

    Returns:
        A bundle whose `facts` hold the parameters used, the windows, the metrics on validation and holdout, the feature
        importances (gain), the decision threshold, and the profile that later days must fit (`drift.profile`).

    Raises:
        NotEnoughData.
    """
    parts = split(rows, as_of, spec.training, spec.gate.frozen)
    categories = {
        name: tuple(sorted(value for value in pc.unique(parts.train[name]).to_pylist() if value is not None))
        for name in spec.categories
    }
    draft = ModelBundle(model=spec.name, as_of=as_of, booster=b"", features=tuple(spec.features), categories=categories)

    train = _matrix(draft, parts.train, spec.training.threads, None)
    validation = _matrix(draft, parts.validation, spec.training.threads, train)
    params = _params(spec, overrides)
    if spec.training.trials:
        params = _tune(spec, params, train, validation)
    booster, _ = _train(params, spec.training, train, validation)
    del train, validation
    importances = {name: float(np.mean(value)) for name, value in booster.get_score(importance_type="gain").items()}
    bundle = replace(draft, booster=bytes(booster.save_raw("ubj")), baseline=float(label_of(parts.train).mean()))
    everything = pa.concat_tables([parts.train, parts.validation, parts.holdout])
    prediction = bundle.predict(everything)
    reference = everything.select(list(spec.features)).append_column(PREDICTION, pa.array(prediction))
    types = {**{name: feature.type for name, feature in spec.features.items()}, PREDICTION: "number"}
    fitted, seen = parts.train.num_rows, parts.train.num_rows + parts.validation.num_rows
    label = label_of(everything)
    metrics = {
        "validation": score(label[fitted:seen], prediction[fitted:seen]),
        "holdout": score(label[seen:], prediction[seen:]),
        # both together: what later performance is compared with; one week alone swings by a tenth of AUC
        "reference": _reference(spec, everything["as_of"], label, prediction, fitted),
    }
    return replace(
        bundle,
        reference=to_bytes(sketch(reference, types, spec.monitoring.sketch_rows)),
        facts={
            "params": params,
            "trees": booster.num_boosted_rounds(),
            "rows": {
                "train": parts.train.num_rows,
                "validation": parts.validation.num_rows,
                "holdout": parts.holdout.num_rows,
            },
            "train_from": pc.min(parts.train["as_of"]).as_py().isoformat(),
            "trained_until": (parts.holdout_from - dt.timedelta(days=1)).isoformat(),
            "metrics": metrics,
            "importances": importances,
            "categories": {name: len(values) for name, values in categories.items()},
            "frozen_every": spec.gate.frozen.every_days,
            "threshold": spec.scoring.threshold
            if spec.costs is None
            else best_threshold(label[fitted:seen], prediction[fitted:seen], costs_of(spec.costs)),
            "profile": learn(everything, spec).to_dict(),
        },
    )
