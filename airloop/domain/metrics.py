"""
Metrics of a binary classifier's scores, each with optional weights. Proven against scikit-learn in the tests.

Labels are 0 or 1, shape ``(n,)``; scores are finite probabilities of 1, shape ``(n,)``; weights are not negative.
A metric that the rows do not define (no rows, one class for a rank metric) is NaN here and absent from results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and which way is better."""

    name: str
    function: Callable[[Floats, Floats, Floats | None], float]
    higher_is_better: bool
    row_loss: Callable[[Floats, Floats], Floats] | None = None
    """The value by row, if the metric is its weighted mean."""

    def gain(self, challenger: float, champion: float) -> float:
        """How much better the challenger is; negative: worse."""
        return challenger - champion if self.higher_is_better else champion - challenger


def log_loss_rows(labels: Floats, scores: Floats) -> Floats:
    epsilon = np.finfo(np.float64).eps
    clipped: Floats = np.clip(scores, epsilon, 1 - epsilon)
    losses: Floats = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    return losses


def brier_rows(labels: Floats, scores: Floats) -> Floats:
    losses: Floats = (scores - labels) ** 2
    return losses


def accuracy_rows(labels: Floats, scores: Floats) -> Floats:
    right: Floats = ((scores >= 0.5) == (labels > 0.5)).astype(np.float64)
    return right


def log_loss(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Mean negative log likelihood, nats; scores are kept off 0 and 1 by the float's epsilon."""
    return _mean(log_loss_rows(labels, scores), weights)


def brier(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Mean squared difference of score and label."""
    return _mean(brier_rows(labels, scores), weights)


def accuracy(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Share of rows on the right side of 0.5; 0.5 itself counts as 1."""
    return _mean(accuracy_rows(labels, scores), weights)


def roc_auc(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Probability that a random positive scores above a random negative; ties count one half."""
    w = np.ones_like(scores) if weights is None else weights
    return float(_roc_auc_many(labels, scores, w[None, :])[0])


def average_precision(labels: Floats, scores: Floats, weights: Floats | None = None) -> float:
    """Precision averaged over recall steps, one step a distinct score."""
    w = np.ones_like(scores) if weights is None else weights
    return float(_average_precision_many(labels, scores, w[None, :])[0])


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("roc_auc", roc_auc, True),
        Metric("average_precision", average_precision, True),
        Metric("log_loss", log_loss, False, log_loss_rows),
        Metric("brier", brier, False, brier_rows),
        Metric("accuracy", accuracy, True, accuracy_rows),
    )
}


def all_metrics(labels: Floats, scores: Floats) -> dict[str, float]:
    """Every metric that the rows define, by name."""
    values = {name: metric.function(labels, scores, None) for name, metric in METRICS.items()} if len(labels) else {}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def resampled(
    metric: Metric, labels: Floats, scores: Floats, clusters: NDArray[np.intp], draws: NDArray[np.float64]
) -> Floats:
    """
    The metric in many resamples of the same rows.

    :param clusters: cluster of each row, 0 … G-1, shape ``(n,)``.
    :param draws: how often each cluster was drawn, shape ``(b, G)``.
    :returns: shape ``(b,)``; NaN where a resample does not define the metric.
    """
    size = draws.shape[1]
    if metric.row_loss is not None:
        totals = np.bincount(clusters, metric.row_loss(labels, scores), minlength=size)
        counts = np.bincount(clusters, minlength=size).astype(np.float64)
        return _divide(draws @ totals, draws @ counts)
    by_cluster = {"roc_auc": _roc_auc_by_cluster, "average_precision": _average_precision_by_cluster}[metric.name]
    return by_cluster(labels, scores, clusters, draws)


def roc_curve(labels: Floats, scores: Floats, *, points: int = 100) -> list[list[float]]:
    """``[false positive rate, true positive rate]`` from (0, 0) to (1, 1), at most about ``points`` of them."""
    positives, negatives = labels.sum(), len(labels) - labels.sum()
    if not positives or not negatives:
        return []
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.cumsum(labels[order])[last_of_tie] / positives
    false = np.cumsum(1 - labels[order])[last_of_tie] / negatives
    x, y = np.append(0.0, false), np.append(0.0, true)
    if len(x) > points:
        keep = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
        x, y = x[keep], y[keep]
    return [[round(float(a), 6), round(float(b), 6)] for a, b in zip(x, y, strict=True)]


def score_histogram(labels: Floats, scores: Floats, *, bins: int = 20) -> dict[str, Any]:
    """Rows by score in equal bins of 0 … 1, for positives and negatives apart."""
    edges = np.linspace(0, 1, bins + 1)
    inside = np.clip(scores, 0, 1)
    return {
        "edges": [round(float(e), 6) for e in edges],
        "positive": [int(n) for n in np.histogram(inside[labels > 0.5], edges)[0]],
        "negative": [int(n) for n in np.histogram(inside[labels <= 0.5], edges)[0]],
    }


def _mean(rows: Floats, weights: Floats | None) -> float:
    if not len(rows):
        return float("nan")
    if weights is None:
        return float(rows.mean())
    return float(_divide(np.array([rows @ weights]), np.array([weights.sum()]))[0])


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _roc_auc_many(labels: Floats, scores: Floats, weights: Floats) -> Floats:
    """AUC under each row of ``weights``, shape ``(b, n)``."""
    order = np.argsort(scores, kind="stable")
    positive = labels[order] > 0.5
    sorted_scores = scores[order]
    w_positive, w_negative = weights[:, order[positive]], weights[:, order[~positive]]
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(w_negative, axis=1)], axis=1)
    negatives, positives = sorted_scores[~positive], sorted_scores[positive]
    lower = below[:, np.searchsorted(negatives, positives, side="left")]
    lower += below[:, np.searchsorted(negatives, positives, side="right")]
    wins = np.einsum("ij,ij->i", w_positive, lower) / 2
    return _divide(wins, w_positive.sum(axis=1) * below[:, -1])


def _roc_auc_by_cluster(
    labels: Floats, scores: Floats, clusters: NDArray[np.intp], draws: NDArray[np.float64]
) -> Floats:
    """
    AUC of cluster resamples in ``O(n G log n + b G²)``: wins of the positives of cluster g over the negatives of
    cluster h are counted once, and a resample is a quadratic form in them.
    """
    size = draws.shape[1]
    # Sorted once: looking up sorted values is several times faster, and so is cutting out sorted clusters.
    order = np.argsort(scores, kind="stable")
    positive = labels[order] > 0.5
    owner, value = clusters[order[positive]], scores[order[positive]]
    others, below = clusters[order[~positive]], scores[order[~positive]]
    wins = np.zeros((size, size))
    for h in range(size):
        negatives = below[others == h]
        won = np.searchsorted(negatives, value, side="left") + np.searchsorted(negatives, value, side="right")
        wins[:, h] = np.bincount(owner, won / 2, minlength=size)
    n_positive = np.bincount(owner, minlength=size).astype(np.float64)
    n_negative = np.bincount(others, minlength=size).astype(np.float64)
    return _divide(np.einsum("bg,bg->b", draws @ wins, draws), (draws @ n_positive) * (draws @ n_negative))


def _average_precision_many(labels: Floats, scores: Floats, weights: Floats) -> Floats:
    """Average precision under each row of ``weights``, shape ``(b, n)``."""
    if not len(labels):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    w = weights[:, order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    seen = np.cumsum(w, axis=1)[:, last_of_tie]
    hits = np.cumsum(w * labels[order], axis=1)[:, last_of_tie]
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return _divide((steps * precision).sum(axis=1), hits[:, -1])


def _average_precision_by_cluster(
    labels: Floats, scores: Floats, clusters: NDArray[np.intp], draws: NDArray[np.float64]
) -> Floats:
    """
    Average precision of cluster resamples in ``O(n G log n + b G T)``, ``T`` distinct scores of positives: only there
    does recall step, and what lies above a step is counted by cluster once.
    """
    steps_at = np.unique(scores[labels > 0.5])
    own = [np.sort(scores[clusters == g]) for g in range(draws.shape[1])]
    own_positives = [np.sort(scores[(clusters == g) & (labels > 0.5)]) for g in range(draws.shape[1])]
    areas = np.zeros(len(draws))
    # 2 M numbers an array at a time.
    chunk = max(1, 2_000_000 // max(len(draws), draws.shape[1]))
    for start in range(0, len(steps_at), chunk):
        at = steps_at[start : start + chunk]
        seen = draws @ np.array([len(s) - np.searchsorted(s, at, side="left") for s in own])
        above = [len(s) - np.searchsorted(s, at, side="left") for s in own_positives]
        beyond = [len(s) - np.searchsorted(s, at, side="right") for s in own_positives]
        hits, steps = draws @ np.array(above), draws @ (np.array(above) - np.array(beyond))
        areas += np.divide(steps * hits, seen, out=np.zeros_like(hits), where=seen > 0).sum(axis=1)
    positives = np.array([len(s) for s in own_positives], dtype=np.float64)
    return _divide(areas, draws @ positives)
