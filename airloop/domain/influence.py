"""
What each row does to a metric: the first-order change of the metric as the row's weight grows.

The sum of squares of these changes, summed by cluster first, is the metric's variance (the infinitesimal jackknife,
which the bootstrap approaches as clusters become many). For the AUC it is DeLong's. ``O(n log n)``, no resampling.

Sources: Efron, The jackknife, the bootstrap and other resampling plans, 1982, ch. 6; DeLong, DeLong and
Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, 1988.
"""

from __future__ import annotations

import numpy as np

from airloop.domain.metrics import Floats, Metric


def influence(metric: Metric, labels: Floats, scores: Floats) -> Floats:
    """
    Derivative of ``metric`` by the weight of each row, at weights of one, shape ``(n,)``; it sums to zero.

    :param labels: 0 or 1, of both classes unless the metric is a mean over rows.
    """
    if metric.row_loss is not None:
        losses = metric.row_loss(labels, scores)
        found: Floats = (losses - losses.mean()) / len(losses)
        return found
    return {"roc_auc": _roc_auc, "average_precision": _average_precision}[metric.name](labels, scores)


def _roc_auc(labels: Floats, scores: Floats) -> Floats:
    positive = labels > 0.5
    ours, others = scores[positive], scores[~positive]
    # Share of the other class that a row is on the right side of; ties count one half.
    won, lost = _share_below(ours, others), 1 - _share_below(others, ours)
    area = won.mean()
    found = np.empty(len(labels))
    found[positive] = (won - area) / len(ours)
    found[~positive] = (lost - area) / len(others)
    return found


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    both = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    share: Floats = both / (2 * len(others))
    return share


def _average_precision(labels: Floats, scores: Floats) -> Floats:
    order = np.argsort(scores, kind="stable")
    ordered, ours = scores[order], labels[order]
    # Rows and positives with at least a row's score, ties included.
    first = np.searchsorted(ordered, ordered, side="left")
    seen = len(ordered) - first
    hits = np.cumsum(ours[::-1])[::-1][first]
    precision, positives = hits / seen, ours.sum()
    area = (ours * precision).sum() / positives
    # A row enters the precision at every positive whose score is not above its own.
    last = np.searchsorted(ordered, ordered, side="right") - 1
    reached = np.cumsum(ours / seen)[last]
    expected = np.cumsum(ours * precision / seen)[last]
    found = np.empty(len(labels))
    found[order] = (ours * (precision - area) + ours * reached - expected) / positives
    return found
