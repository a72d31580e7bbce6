"""
Paired cluster bootstrap of the difference of two models on the same rows.

Both models score every row, so a resample draws rows once for both: what makes a row hard cancels out. Rows of one
day share weather and knock-on delays, so days are drawn, not rows: with single rows the interval would be too narrow.
The interval is ``estimate ± t · s``, with the bootstrap's standard error ``s``, widened by ``sqrt(G / (G - 1))``, and
Student's t with ``G - 1`` degrees of freedom, ``G`` clusters, which stays honest when there are few of them. With more
than :data:`MANY` clusters ``s`` is the bootstrap's limit, :mod:`airloop.domain.influence`, which costs one sort.

Source: Cameron, Gelbach, Miller, Bootstrap-based improvements for inference with clustered errors, 2008.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airloop.domain.distributions import student_t_quantile, student_t_sf
from airloop.domain.influence import influence
from airloop.domain.metrics import Floats, Metric, resampled

MANY = 100
"""Clusters above which the standard error is computed from influences, without resamples."""
UNDEFINED_LIMIT = 0.01
"""Share of resamples that may leave the metric undefined (one class) before the interval is not trusted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """
    An estimate with its interval. Of two models: how much better the challenger is, in the metric's unit; positive is
    better whatever the metric.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    standard_error: float
    clusters: int
    resamples: int
    """That the standard error comes from; 0: from the rows' influence, without resamples."""

    def p_not_above(self, limit: float) -> float:
        """One-sided p-value of "the gain is at most ``limit``"; small: it is above."""
        return self._tail(self.estimate - limit)

    def p_not_below(self, limit: float) -> float:
        """One-sided p-value of "the gain is at least ``limit``"; small: it is below."""
        return self._tail(limit - self.estimate)

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:
            return 0.0 if distance > 0 else 1.0
        return student_t_sf(distance / self.standard_error, self.clusters - 1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_difference(
    labels: Floats,
    champion: Floats,
    challenger: Floats,
    *,
    metric: Metric,
    clusters: NDArray[np.intp] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """
    The challenger's gain over the champion with a two-sided confidence interval.

    :param clusters: any integers that name each row's cluster, shape ``(n,)``; None: every row is its own.
    :param confidence: of the two-sided interval, between 0 and 1.
    :returns: None if the rows do not define it: fewer than two clusters, or too many resamples of one class.
    """
    direction = 1.0 if metric.higher_is_better else -1.0
    return _interval(
        labels,
        [(challenger, direction), (champion, -direction)],
        metric,
        clusters,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def metric_interval(
    labels: Floats,
    scores: Floats,
    *,
    metric: Metric,
    clusters: NDArray[np.intp] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """One model's metric with a confidence interval made in the same way; None where it is not defined."""
    return _interval(labels, [(scores, 1.0)], metric, clusters, confidence=confidence, resamples=resamples, seed=seed)


def _interval(
    labels: Floats,
    models: Sequence[tuple[Floats, float]],
    metric: Metric,
    clusters: NDArray[np.intp] | None,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference | None:
    """Interval of a weighted sum of the metric over models that scored the same rows."""
    if clusters is None:
        index, size = np.arange(len(labels)), len(labels)
    else:
        names, index = np.unique(clusters, return_inverse=True)
        size = len(names)
    if size < 2:
        return None
    estimate = sum(weight * metric.function(labels, scores, None) for scores, weight in models)
    if not math.isfinite(estimate):
        return None
    error, used = (
        _linear_error(labels, models, metric, index, size)
        if size > MANY
        else _resampled_error(labels, models, metric, index, size, resamples, seed)
    )
    if error is None:
        return None
    error *= math.sqrt(size / (size - 1))
    reach = student_t_quantile((1 + confidence) / 2, size - 1) * error
    return Difference(estimate, estimate - reach, estimate + reach, confidence, error, size, used)


def _linear_error(
    labels: Floats, models: Sequence[tuple[Floats, float]], metric: Metric, clusters: NDArray[np.intp], size: int
) -> tuple[float | None, int]:
    """Standard error from the rows' influence; None where resamples would often lack a class."""
    if metric.row_loss is None:
        holding = min(len(np.unique(clusters[labels == label])) for label in (0, 1))
        if (1 - holding / size) ** size > UNDEFINED_LIMIT:
            return None, 0
    by_row = np.sum([weight * influence(metric, labels, scores) for scores, weight in models], axis=0)
    by_cluster = np.bincount(clusters, by_row, minlength=size)
    return math.sqrt(float(by_cluster @ by_cluster)), 0


def _resampled_error(
    labels: Floats,
    models: Sequence[tuple[Floats, float]],
    metric: Metric,
    clusters: NDArray[np.intp],
    size: int,
    resamples: int,
    seed: int,
) -> tuple[float | None, int]:
    """Standard error over resamples of clusters, and how many defined the metric; None if too few did."""
    draws = _draw(np.random.default_rng(seed), resamples, size)
    values = [weight * resampled(metric, labels, scores, clusters, draws) for scores, weight in models]
    found = np.sum(values, axis=0)
    defined = found[np.isfinite(found)]
    if len(defined) < 2 or len(defined) < len(found) * (1 - UNDEFINED_LIMIT):
        return None, len(defined)
    return float(defined.std(ddof=1)), len(defined)


def seed_of(*parts: Any) -> int:
    """A seed that follows from content: arrays by their bytes, anything else by its text."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return int.from_bytes(digest.digest()[:8], "big")


def holm(p_values: list[float]) -> list[float]:
    """
    Holm's adjusted p-values, in the order given: compared with alpha they bound the chance of any false alarm.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def _draw(generator: np.random.Generator, resamples: int, size: int) -> Floats:
    """How often each of ``size`` clusters falls in each resample, shape ``(resamples, size)``."""
    # Several times faster than drawing from the multinomial distribution.
    picks = generator.integers(0, size, (resamples, size))
    picks += np.arange(resamples)[:, None] * size
    return np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float64)
