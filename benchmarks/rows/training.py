"""`fit` on labelled rows, against XGBoost on a frame in memory; both with the spec's parameters and 100 trees."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

from benchmarks import data
from benchmarks.side import Side

TREES = 100


def _spec() -> Any:
    spec = data.spec()
    # copies of a year hold the validation days of the others: a stop by validation would never come
    training = spec.training.model_copy(update={"num_boost_round": TREES, "early_stopping_rounds": TREES})
    return spec.model_copy(update={"training": training})


def _engine(side: Side, external: bool) -> dict[str, Any]:
    """All of `fit` on the staged rows on local disk: split, bins, trees, metrics with bounds, sketch, profile."""
    import pandas as pd  # noqa: F401 (a warm worker has it)
    import xgboost  # noqa: F401

    from include.evergreen.drift import profile, sketch  # noqa: F401
    from include.evergreen.training import fit as module
    from include.evergreen.training.rows import Stored

    spec, path = _spec(), data.rows(side.scale)
    if external:
        training = spec.training.model_copy(update={"memory_mb": 1})
        spec = spec.model_copy(update={"training": training})
    boosted = 0.0
    inner = module._train

    def clocked(*arguments: Any) -> Any:
        nonlocal boosted
        start = time.perf_counter()
        found = inner(*arguments)
        boosted = time.perf_counter() - start
        return found

    module._train = clocked
    with side.timed():
        bundle = module.fit(spec, Stored([path]), data.after(side.scale))
    return {
        "rows": sum(bundle.facts["rows"].values()),
        "fitted": bundle.facts["rows"]["train"],
        "boost_seconds": boosted,
        "auc": bundle.facts["metrics"]["holdout"]["auc"],
        "sha256": bundle.sha256,
    }


def engine(side: Side) -> dict[str, Any]:
    return _engine(side, external=False)


def external(side: Side) -> dict[str, Any]:
    """The same with the bins on local disk."""
    return _engine(side, external=True)


def bare(side: Side) -> dict[str, Any]:
    """Read the same columns into pandas, one QuantileDMatrix, the same trees; no metrics but the loss."""
    import pandas as pd
    import pyarrow  # noqa: F401
    import xgboost
    from sklearn.metrics import roc_auc_score

    from include.evergreen.training.fit import params_of

    spec, path, after = _spec(), data.rows(side.scale), data.after(side.scale)
    holdout_from = after - dt.timedelta(days=spec.training.holdout_days)
    validation_from = holdout_from - dt.timedelta(days=spec.training.validation_days)
    names, params = list(spec.features), params_of(spec, None)
    with side.timed():
        frame = pd.read_parquet(path, columns=["as_of", "label", *names])
        days = pd.to_datetime(frame.pop("as_of"))
        label = frame.pop("label").astype("int8")
        for name in spec.categories:
            frame[name] = frame[name].astype("category")
        frozen = {day for day in days.unique() if spec.gate.frozen.holds(day.date()) and day.date() < holdout_from}
        kept = ~days.isin(frozen)
        train = kept & (days < pd.Timestamp(validation_from))
        validation = kept & (days >= pd.Timestamp(validation_from)) & (days < pd.Timestamp(holdout_from))
        made = xgboost.QuantileDMatrix(frame[train], label=label[train], enable_categorical=True, nthread=2)
        held = xgboost.QuantileDMatrix(frame[validation], label=label[validation], enable_categorical=True, ref=made)
        boost = time.perf_counter()
        booster = xgboost.train(params, made, TREES, evals=[(held, "validation")], verbose_eval=False)
        boosted = time.perf_counter() - boost
    last = days >= pd.Timestamp(holdout_from)
    auc = roc_auc_score(label[last], booster.inplace_predict(frame[last]))
    return {"rows": len(frame), "fitted": int(train.sum()), "boost_seconds": boosted, "auc": float(auc)}


SIDES = {"engine": engine, "external": external, "bare": bare}
