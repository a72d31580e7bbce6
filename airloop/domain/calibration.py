"""Calibration: whether of the flights scored 0.3, three in ten are late."""

from __future__ import annotations

from typing import Any

import numpy as np

from airloop.domain.metrics import Floats


def reliability(labels: Floats, scores: Floats, *, bins: int = 10) -> list[dict[str, Any]]:
    """
    Mean score and rate of positives in bins of about equally many rows; empty without rows.

    Bins are scikit-learn's ``calibration_curve(strategy="quantile")``; tied quantiles become one bin.
    """
    if not len(scores):
        return []
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)))
    bin_of = np.searchsorted(edges[1:-1], scores, side="left")
    found = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        found.append(
            {
                "low": float(scores[inside].min()),
                "high": float(scores[inside].max()),
                "rows": int(inside.sum()),
                "mean_score": float(scores[inside].mean()),
                "rate": float(labels[inside].mean()),
            }
        )
    return found


def expected_calibration_error(labels: Floats, scores: Floats, *, bins: int = 10) -> float:
    """
    Mean absolute difference of mean score and rate over the :func:`reliability` bins, weighted by rows.

    It is biased upward by chance, by about ``sqrt(rate · (1 - rate) · bins / n)``: leave room for that in a limit.
    """
    found = reliability(labels, scores, bins=bins)
    if not found:
        return float("nan")
    return float(sum(b["rows"] * abs(b["mean_score"] - b["rate"]) for b in found)) / len(scores)


def calibration(labels: Floats, scores: Floats, *, bins: int = 10) -> dict[str, Any]:
    """Expected calibration error, mean score minus rate ("in the large"), and the reliability bins."""
    if not len(scores):
        return {"error": None, "in_the_large": None, "bins": []}
    return {
        "error": expected_calibration_error(labels, scores, bins=bins),
        "in_the_large": float(scores.mean() - labels.mean()),
        "bins": reliability(labels, scores, bins=bins),
    }
