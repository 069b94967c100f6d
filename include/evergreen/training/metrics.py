"""Metrics of a probability against what happened."""

from __future__ import annotations

import numpy as np

from include.evergreen.specs import Costs

METRICS = ("auc", "average_precision", "log_loss", "brier")
LOWER_IS_BETTER = frozenset({"log_loss", "brier"})
EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1."""


def score(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Every metric of `METRICS`, shape (rows,) in; NaN where one is undefined (a single class, no rows)."""
    from sklearn import metrics

    if len(label) == 0:
        return dict.fromkeys(METRICS, float("nan"))
    both = 0 < label.sum() < len(label)
    clipped = np.clip(probability.astype("float64"), EPSILON, 1 - EPSILON)
    return {
        "auc": float(metrics.roc_auc_score(label, clipped)) if both else float("nan"),
        "average_precision": float(metrics.average_precision_score(label, clipped)) if both else float("nan"),
        "log_loss": float(metrics.log_loss(label, clipped, labels=[0, 1])),
        "brier": float(np.mean((clipped - label) ** 2)),
    }


def auc_error(auc: float, positive: int, negative: int) -> float:
    """Standard error of an AUC over independent rows (Hanley and McNeil, 1982); NaN without both classes."""
    if positive < 1 or negative < 1:
        return float("nan")
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (positive * negative)))


def costs_of(costs: Costs) -> tuple[float, float, float]:
    """Costs of a hit, a miss, a false alarm."""
    return costs.hit, costs.miss, costs.false_alarm


def saved(label: np.ndarray, decision: np.ndarray, costs: tuple[float, float, float]) -> np.ndarray:
    """What each decision saves against never acting, shape (rows,); `costs` of a hit, a miss, a false alarm."""
    hit, miss, false_alarm = costs
    return np.where(decision, np.where(label == 1, miss - hit, -false_alarm), 0.0)


def best_threshold(label: np.ndarray, probability: np.ndarray, costs: tuple[float, float, float]) -> float:
    """The threshold in (0, 1] whose decisions save most on these rows; of equals the highest."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order].astype("float64")
    total = np.cumsum(saved(label[order], np.ones(len(order), dtype=bool), costs))
    last = np.append(ranked[1:] != ranked[:-1], True) if len(ranked) else np.zeros(0, dtype=bool)
    if not last.any() or total[last].max() <= 0:
        return 1.0
    return float(ranked[last][int(np.argmax(total[last]))])
