"""How values are distributed, small enough to travel with a model: what drift is later measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airloop.training.features import FeatureSpec


def summarise_numbers(values: NDArray[np.float64], *, bins: int = 10) -> dict[str, Any]:
    """
    Histogram over quantile bins. The bin of ``x`` is ``np.searchsorted(edges, x, side="right")``.

    :param values: shape ``(n,)``; NaN counts as missing.
    :param bins: number of quantile bins aimed at; ties make it fewer.
    :returns: ``edges`` (inner ones, ascending, distinct), ``counts`` (one more than edges), ``missing``, ``mean``,
        ``std``, ``min``, ``max``; the last four are None when all is missing.
    """
    known = values[~np.isnan(values)]
    missing = int(values.size - known.size)
    if not known.size:
        return {"edges": [], "counts": [0], "missing": missing, "mean": None, "std": None, "min": None, "max": None}
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=edges.size + 1)
    return {
        "edges": [float(e) for e in edges],
        "counts": [int(c) for c in counts],
        "missing": missing,
        "mean": float(known.mean()),
        "std": float(known.std()),
        "min": float(np.min(known)),
        "max": float(np.max(known)),
    }


def summarise_codes(codes: NDArray[np.float64], categories: Sequence[str]) -> dict[str, Any]:
    """
    Count categories.

    :param codes: place of each row's category in ``categories``, shape ``(n,)``; NaN is missing.
    """
    known = codes[~np.isnan(codes)].astype(np.int64)
    counts = np.bincount(known, minlength=len(categories))
    return {
        "counts": {name: int(count) for name, count in zip(categories, counts, strict=True)},
        "other": 0,
        "missing": int(codes.size - known.size),
    }


def summarise(
    matrix: NDArray[np.float64],
    labels: NDArray[np.float64],
    features: Sequence[FeatureSpec],
    scores: NDArray[np.float64],
) -> dict[str, Any]:
    """
    The reference of a model.

    :param matrix: encoded training rows, shape ``(n, len(features))``.
    :param labels: 0 or 1 for each of them, shape ``(n,)``.
    :param scores: the model's probabilities for rows that it was not fitted on, shape ``(m,)``.
    """
    columns: dict[str, Any] = {}
    for index, spec in enumerate(features):
        values = matrix[:, index]
        columns[spec.name] = {"kind": spec.kind} | (
            summarise_codes(values, spec.categories) if spec.kind == "category" else summarise_numbers(values)
        )
    return {
        "rows": int(matrix.shape[0]),
        "label_rate": float(labels.mean()),
        "features": columns,
        "score": summarise_numbers(scores),
    }
