"""Metrics of a probability against what happened."""

from __future__ import annotations

import numpy as np

METRICS = ("auc", "average_precision", "log_loss", "brier")
LOWER_IS_BETTER = frozenset({"log_loss", "brier"})


def score(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Every metric of `METRICS`, shape (rows,) in; NaN where one is undefined (a single class, no rows)."""
    from sklearn import metrics

    if len(label) == 0:
        return dict.fromkeys(METRICS, float("nan"))
    both = 0 < label.sum() < len(label)
    clipped = np.clip(probability.astype("float64"), 1e-7, 1 - 1e-7)
    return {
        "auc": float(metrics.roc_auc_score(label, clipped)) if both else float("nan"),
        "average_precision": float(metrics.average_precision_score(label, clipped)) if both else float("nan"),
        "log_loss": float(metrics.log_loss(label, clipped, labels=[0, 1])),
        "brier": float(np.mean((clipped - label) ** 2)),
    }


def gain(metric: str, challenger: float, champion: float) -> float:
    """How much better the challenger is, positive = better, whatever the direction of the metric."""
    return champion - challenger if metric in LOWER_IS_BETTER else challenger - champion
