"""
Target leakage: a feature that gives the answer away.

Two questions of each feature alone:

1. **How well does it rank the labels?** Its values, in up to :data:`BINS` quantile bins (each value of its own where
   there are few, missing as one more), are scored by the rate of positives among the *other* half of the rows, so that
   many values cannot learn their own labels by heart; the score's AUC finds copies, monotone or not, and noisy ones.
   The AUC of the number itself finds copies that bins cut too coarsely. It gives the answer away if the lower limit
   of either AUC is above ``max_auc``.
2. **Is there one value that decides?** A category, a flag or a missing value whose rows are of the rarer class so
   often that the lower limit of their share is above ``max_purity``: a status code that is set only once the answer is
   known. Numbers of more than :data:`FLAG_VALUES` values are not asked: the far end of an honest one may be as pure.

Limits are one-sided and hold for all features (and all their values) of a data set together, at :data:`ALPHA`.

What it cannot see: a copy so noisy that it ranks no better than an honest feature may (``max_auc``), features that
give the answer away only together, and a value that decides fewer than :data:`MIN_VALUE_ROWS` rows.

Sources: Kaufman, Rosset, Perlich and Stitelman, Leakage in data mining, 2012; DeLong, DeLong and Clarke-Pearson, 1988,
for the limit of the AUC; Clopper and Pearson, 1934, for that of a share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airloop.domain.distributions import binomial_lower, student_t_quantile
from airloop.domain.influence import influence
from airloop.domain.metrics import METRICS, Floats

ALPHA = 0.01
"""Chance that any limit of a data set is too high."""
BINS = 64
FLAG_VALUES = 5
MIN_VALUE_ROWS = 30
"""Rows of one value, fewer decide nothing."""
MIN_CLASS_ROWS = 20
"""Rows of the rarer class, with fewer no feature is judged."""


@dataclass(frozen=True, slots=True)
class Giveaway:
    """What speaks against a feature."""

    feature: str
    auc: float
    """Of the feature alone, the larger of both."""
    auc_low: float
    value: str | None
    """The value that decides; None if it is the AUC that is too high."""
    value_rows: int
    value_share: float
    """Share of the rarer class among the value's rows."""
    why: str


def giveaways(
    columns: Mapping[str, NDArray[Any]], labels: Floats, *, max_auc: float = 0.97, max_purity: float = 0.95
) -> tuple[list[Giveaway], dict[str, float]]:
    """
    Features that give the label away, and the AUC of each feature alone.

    :param columns: values by feature, shape ``(n,)``: floats with NaN, or objects with None for missing.
    :param labels: 0 or 1, shape ``(n,)``.
    :returns: nothing of either with fewer than :data:`MIN_CLASS_ROWS` rows of one class.
    """
    rarer = min(int(labels.sum()), int(len(labels) - labels.sum()))
    if rarer < MIN_CLASS_ROWS:
        return [], {}
    # Alternate rows of each class, in a fixed shuffle: rows may be sorted by anything.
    half = np.empty(len(labels), dtype=bool)
    half[np.random.default_rng(0).permutation(len(labels))] = np.arange(len(labels)) % 2 == 0
    coded = {name: _codes(values) for name, values in columns.items()}
    tests = sum(2 + int((_sizes(codes, names) >= MIN_VALUE_ROWS).sum()) for codes, names in coded.values())
    found, areas = [], {}
    for name, values in columns.items():
        codes, names = coded[name]
        scores = [_rates(codes, labels, half)]
        if values.dtype != object and not np.isnan(values).all():
            # Missing in the middle: it says nothing here, and has a bin of its own there.
            scores.append(np.where(np.isnan(values), np.nanmedian(values), values))
        area, low = max((_area(labels, s, tests) for s in scores), key=lambda pair: pair[1])
        areas[name] = area
        giveaway = _decided(name, codes, names, labels, area, low, tests, max_purity)
        if low > max_auc:
            why = f"alone it ranks the labels with an AUC of {area:.4f} (at least {low:.4f}; limit {max_auc:g})"
            giveaway = Giveaway(name, area, low, None, len(labels), float(labels.mean()), why)
        if giveaway is not None:
            found.append(giveaway)
    return found, areas


def _codes(values: NDArray[Any]) -> tuple[NDArray[np.intp], list[str]]:
    """The bin of each row; names of the bins that are one value each, the first ones."""
    if values.dtype == object:
        texts = np.array(["(missing)" if v is None or v != v else str(v) for v in values], dtype=str)
        names, codes = np.unique(texts, return_inverse=True)
        return codes.astype(np.intp), [str(n) for n in names]
    missing = np.isnan(values)
    known = values[~missing]
    distinct = np.unique(known)
    if len(distinct) <= BINS:
        codes = 1 + np.searchsorted(distinct, values)
    else:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
        codes = 1 + np.searchsorted(edges, values, side="right")
    codes[missing] = 0
    named = [f"{v:g}" for v in distinct] if len(distinct) <= FLAG_VALUES else []
    return codes.astype(np.intp), ["(missing)", *named]


def _sizes(codes: NDArray[np.intp], names: list[str]) -> NDArray[np.intp]:
    """Rows of each value that has a name."""
    return np.bincount(codes, minlength=len(names))[: len(names)]


def _rates(codes: NDArray[np.intp], labels: Floats, half: NDArray[np.bool_]) -> Floats:
    """Each row's bin by the rate of positives in the other half, drawn to the whole's where a bin has few rows."""
    found = np.empty(len(labels))
    mean = labels.mean()
    size = int(np.max(codes)) + 1
    for here in (half, ~half):
        rows = np.bincount(codes[~here], minlength=size)
        positives = np.bincount(codes[~here], labels[~here], minlength=size)
        found[here] = ((positives + mean) / (rows + 1))[codes[here]]
    return found


def _area(labels: Floats, scores: Floats, tests: int) -> tuple[float, float]:
    """AUC, whichever way round, and its lower limit."""
    metric = METRICS["roc_auc"]
    area = metric.function(labels, scores, None)
    error = float(np.sqrt((influence(metric, labels, scores) ** 2).sum()))
    area = max(area, 1 - area)
    reach = student_t_quantile(1 - ALPHA / tests, min(int(labels.sum()), int(len(labels) - labels.sum())) - 1)
    return area, area - reach * error


def _decided(
    feature: str, codes: NDArray[np.intp], names: list[str], labels: Floats, area: float, low: float, tests: int,
    max_purity: float,
) -> Giveaway | None:  # fmt: skip
    rarer = 1.0 if labels.mean() <= 0.5 else 0.0
    rows = _sizes(codes, names)
    hits = np.bincount(codes, labels == rarer, minlength=len(names)).astype(int)
    best: Giveaway | None = None
    for i, value in enumerate(names):
        if rows[i] < MIN_VALUE_ROWS or hits[i] <= rows[i] * max_purity:
            continue
        share = binomial_lower(int(hits[i]), int(rows[i]), ALPHA / tests)
        if share > max_purity and (best is None or rows[i] > best.value_rows):
            why = (
                f"of {rows[i]:,} rows with the value {value}, {hits[i]:,} have label {rarer:g} "
                f"(at least {math.floor(1000 * share) / 10:g} % by chance; of all rows "
                f"{100 * float((labels == rarer).mean()):.3g} %)"
            )
            best = Giveaway(feature, area, low, value, int(rows[i]), float(hits[i] / rows[i]), why)
    return best
