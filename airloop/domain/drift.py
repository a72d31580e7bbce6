"""
Drift: whether a column is still distributed as in the data that a model was trained on.

A column is compared by its counts in the reference's bins (quantiles for numbers, values for categories, one more for
missing). With many rows every real column differs *significantly*, with few rows a large difference happens by
chance: a column has drifted only if its effect is large (population stability index) **and** chance is ruled out, under
Holm's correction over all columns together. Predictions are the one column that sums up all others: where there are
any, half of the rate is theirs, and the features share the other half.

Rows of one day share their weather, so a month of 30,000 rows may say no more than 100 independent ones. Rows that are
counted by cluster are therefore tested by dealing clusters anew between reference and window
(:mod:`airloop.domain.deals`); rows that are independent, by the chi-square test of homogeneity and by Kolmogorov and
Smirnov's. Where so few clusters could not be told from chance, whatever is in them, the column is not judged.

What it does not know is the season: another month differs from the training data because it is another month.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airloop.domain.bootstrap import holm
from airloop.domain.deals import least_p, p_of_deals
from airloop.domain.distributions import chi_square_sf, kolmogorov_sf
from airloop.domain.metrics import Floats

Counts = NDArray[np.float64]

DRAWS = 20_000
"""Deals of clusters, unless told; see :func:`airloop.domain.deals.draws_for`."""


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """How one column moved."""

    column: str
    kind: str
    """``number``, ``boolean``, ``category`` or ``score``."""
    rows: int
    reference_rows: int
    psi: float
    js: float
    """Jensen-Shannon distance, 0 … 1 (base 2)."""
    ks: float | None
    """Kolmogorov-Smirnov distance at the bins' edges; None for categories."""
    p: float
    missing: float
    """Share of missing values now."""
    reference_missing: float
    p_adjusted: float = 1.0
    p_least: float = 0.0
    """The least p that so many clusters can have, whatever is in them."""
    clusters: int | None = None
    """With rows, of the window; None: rows are taken as independent."""
    reference_clusters: int | None = None
    design_effect: float = 1.0
    """How many of the window's rows say as much as one independent row."""
    outcome: Literal["ok", "drifted", "too few"] = "ok"
    why: str = ""
    bins: tuple[dict[str, Any], ...] = ()
    """Shares by bin, for charts."""


def population_stability_index(reference: Counts, current: Counts) -> float:
    """
    Population stability index of two sets of counts in the same bins; 0 is no shift, unbounded above.

    Half a row is added to every bin, so that an empty one does not make it infinite.

    Source: Siddiqi, Credit Risk Scorecards, 2006, ch. 8.
    """
    return float(_indices(reference, current))


def jensen_shannon_distance(reference: Counts, current: Counts) -> float:
    """Square root of the Jensen-Shannon divergence, base 2: 0 is the same, 1 is nothing in common."""
    p, q = reference / reference.sum(), current / current.sum()
    m = (p + q) / 2

    def against(x: Counts) -> float:
        there = x > 0
        return float((x[there] * np.log2(x[there] / m[there])).sum())

    return math.sqrt(max(0.0, (against(p) + against(q)) / 2))


def chi_square_homogeneity(reference: Counts, current: Counts) -> tuple[float, float]:
    """
    Chi-square statistic and p-value of "both counts come from one distribution"; bins empty in both are left out.

    Bins with an expected count below 5 are joined to one first, since the approximation needs them.
    """
    both = np.stack([reference, current]).astype(np.float64)
    both = both[:, both.sum(axis=0) > 0]
    rows = both.sum(axis=1, keepdims=True)
    small = (rows * both.sum(axis=0) / both.sum()).min(axis=0) < 5
    if small.any():
        both = np.column_stack([both[:, ~small], both[:, small].sum(axis=1)])
    if both.shape[1] < 2:
        return 0.0, 1.0
    expected = rows * both.sum(axis=0) / both.sum()
    statistic = float(((both - expected) ** 2 / expected).sum())
    return statistic, chi_square_sf(statistic, both.shape[1] - 1)


def kolmogorov_smirnov(reference: Floats, current: Floats) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov distance and its asymptotic p-value, of samples without NaN."""
    values = np.concatenate([reference, current])
    there = np.searchsorted(np.sort(reference), values, side="right") / len(reference)
    here = np.searchsorted(np.sort(current), values, side="right") / len(current)
    distance = float(np.abs(there - here).max())
    return distance, _ks_p(distance, len(reference), len(current))


def binned_kolmogorov_smirnov(reference: Counts, current: Counts) -> tuple[float, float]:
    """
    The same from counts in ordered bins: the distance at the bins' edges.

    It is never above the exact distance, so its p-value errs on the side of no alarm.
    """
    n, m = reference.sum(), current.sum()
    distance = float(np.abs(np.cumsum(reference) / n - np.cumsum(current) / m).max())
    return distance, _ks_p(distance, n, m)


def tally(
    reference: Mapping[str, Any], values: NDArray[Any], clusters: NDArray[np.intp] | None = None, size: int = 1
) -> Counts:
    """
    Rows by the reference's bins, the last one for missing values; tallies of chunks can be added up.

    :param reference: ``{"edges": […], "counts": […], "missing": n}``, bin of x being
        ``searchsorted(edges, x, side="right")``; or ``{"kind": "category", "counts": {value: n}, "other": n,
        "missing": n}``.
    :param values: floats with NaN for missing, or, for a category, objects with None for missing.
    :param clusters: cluster of each row, 0 … size - 1; None: rows are independent.
    :returns: shape ``(bins + 1,)``, or ``(size, bins + 1)`` with clusters.
    """
    if reference.get("kind") == "category":
        place = {name: i for i, name in enumerate(reference["counts"])}
        bins = len(place) + 1
        # NaN is the one value that differs from itself: pandas and Arrow may give it for a missing text.
        codes = [bins if v is None or v != v else place.get(str(v), bins - 1) for v in values]
        at = np.array(codes, dtype=np.intp)
    else:
        numbers = np.asarray(values, dtype=np.float64)
        bins = len(reference["edges"]) + 1
        at = np.where(np.isnan(numbers), bins, np.searchsorted(reference["edges"], numbers, side="right"))
    if clusters is None:
        return np.bincount(at, minlength=bins + 1).astype(np.float64)
    flat = np.bincount(clusters * (bins + 1) + at, minlength=size * (bins + 1))
    return flat.reshape(size, bins + 1).astype(np.float64)


def design_effect(counts: Counts) -> float:
    """
    Variance of the bins' shares over that of as many independent rows, averaged over bins; at least 1.

    It tells people how alike the rows of a cluster are; nothing is decided by it.

    :param counts: by cluster and bin.
    """
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    clusters, rows = len(counts), counts.sum()
    share = counts.sum(axis=0) / rows
    if len(share) < 2 or clusters < 2:
        return 1.0
    residuals = counts - counts.sum(axis=1, keepdims=True) * share
    variance = clusters / (clusters - 1) * (residuals**2).sum(axis=0) / rows**2
    effects = variance / (share * (1 - share) / rows)
    return max(1.0, float(((1 - share) * effects).sum() / (len(share) - 1)))


def column_drift(
    column: str,
    reference: Mapping[str, Any],
    current: Counts,
    before: Counts | None = None,
    *,
    min_rows: int = 200,
    kind: str = "",
    draws: int = DRAWS,
) -> ColumnDrift:
    """
    Compare a column with the reference that its model keeps.

    :param reference: see :func:`tally`.
    :param current: what :func:`tally` counted, by cluster or not.
    :param before: the same of the rows that the reference was made of, by cluster; needed if ``current`` is.
    :param min_rows: a column with fewer rows on either side is not judged.
    :param draws: deals of clusters at most.
    """
    categorical = reference.get("kind") == "category"
    names = [*_bin_names(reference), "(missing)"]
    told = np.array([*_reference_counts(reference), float(reference.get("missing", 0))], dtype=np.float64)
    if not len(told) == current.shape[-1] == len(names):
        raise ValueError(f"{column}: {len(names) - 1} bins, {len(told) - 1} counts, {current.shape[-1] - 1} tallied")
    clustered = current.ndim == 2
    if clustered != (before is not None):
        raise ValueError(f"{column}: both sides are counted by cluster, or none")
    there, here = (told if before is None else before.sum(axis=0)), (current.sum(axis=0) if clustered else current)
    rows, reference_rows = int(here.sum()), int(there.sum())
    found = ColumnDrift(
        column, kind or str(reference["kind"]), rows, reference_rows, psi=0.0, js=0.0, ks=None, p=1.0,
        missing=float(here[-1] / max(1, rows)), reference_missing=float(there[-1] / max(1, reference_rows)),
    )  # fmt: skip
    if min(rows, reference_rows) < min_rows:
        why = f"{rows:,} rows against {reference_rows:,}, at least {min_rows:,} are needed on both sides"
        return replace(found, outcome="too few", why=why)
    ks = None
    if not categorical and there[:-1].sum() and here[:-1].sum():
        ks, p_ks = binned_kolmogorov_smirnov(there[:-1], here[:-1])
    # Missing is one more bin, unless neither side has any: a column that stops arriving has drifted.
    used = there + here > 0
    if before is None:
        p = chi_square_homogeneity(there, here)[1]
        p = p if ks is None else min(1.0, 2 * min(p, p_ks))  # two tests of one column
    else:
        before, current = (c[c.sum(axis=1) > 0][:, used] for c in (before, current))
        found = replace(
            found,
            clusters=len(current),
            reference_clusters=len(before),
            p_least=least_p(len(before), len(current), draws),
            design_effect=design_effect(current),
        )
        p = p_of_deals(before, current, _indices, draws=draws)
    there, here, names = there[used], here[used], [name for name, there_is in zip(names, used, strict=True) if there_is]
    shares = zip(names, there / there.sum(), here / here.sum(), strict=True)
    return replace(
        found,
        psi=population_stability_index(there, here),
        js=jensen_shannon_distance(there, here),
        ks=ks,
        p=p,
        bins=tuple({"bin": name, "reference": float(a), "current": float(b)} for name, a, b in shares),
    )


def judge(
    columns: Sequence[ColumnDrift],
    *,
    psi_limit: float = 0.2,
    false_alarm_rate: float = 0.01,
    cluster: str = "cluster",
) -> list[ColumnDrift]:
    """
    The same columns with those marked that have drifted: index at least ``psi_limit`` and adjusted p at most
    ``false_alarm_rate``, which is the chance that any column is marked where none has drifted.

    :param cluster: what a cluster is, for people: ``day``, ``hour``…
    """
    judged = list(columns)
    tested = [i for i, c in enumerate(columns) if c.outcome != "too few"]
    families = [[i for i in tested if (columns[i].kind == "score") == score] for score in (True, False)]
    families = [family for family in families if family]
    for family in families:
        most = false_alarm_rate / (len(families) * len(family))
        for i in family:
            if columns[i].p_least > most:
                judged[i] = replace(columns[i], outcome="too few", why=_few_clusters(columns[i], most, cluster))
        rest = [i for i in family if judged[i].outcome != "too few"]
        for i, p in zip(rest, holm([columns[i].p for i in rest]), strict=True):
            judged[i] = _judged(columns[i], min(1.0, len(families) * p), psi_limit, false_alarm_rate)
    return judged


def _few_clusters(column: ColumnDrift, most: float, cluster: str) -> str:
    names = cluster if column.clusters == 1 else f"{cluster}s"
    return (
        f"{column.clusters} {names} against {column.reference_clusters}: whatever is in them, p is at least "
        f"{column.p_least:.2g}, and at most {most:.2g} would rule out chance"
    )


def _judged(column: ColumnDrift, p: float, psi_limit: float, rate: float) -> ColumnDrift:
    large, sure = column.psi >= psi_limit, p <= rate
    why = {
        (True, True): f"index {column.psi:.3f} is over {psi_limit:g} (adjusted p {p:.2g})",
        (True, False): f"index {column.psi:.3f} is over {psi_limit:g}, but may be chance (adjusted p {p:.2g})",
    }.get((large, sure), "")
    return replace(column, p_adjusted=p, outcome="drifted" if large and sure else "ok", why=why)


def _reference_counts(reference: Mapping[str, Any]) -> list[float]:
    if reference.get("kind") == "category":
        return [*reference["counts"].values(), reference.get("other", 0)]
    return list(reference["counts"])


def _bin_names(reference: Mapping[str, Any]) -> list[str]:
    if reference.get("kind") == "category":
        return [*reference["counts"], "(other)"]
    edges = reference["edges"]
    if not edges:
        return ["all"]
    return [f"< {edges[0]:g}", *(f"{a:g} … {b:g}" for a, b in pairwise(edges)), f"≥ {edges[-1]:g}"]


def _indices(reference: Counts, current: Counts) -> Counts:
    """Population stability index over the last axis."""
    p, q = ((c + 0.5) / (c + 0.5).sum(axis=-1, keepdims=True) for c in (reference, current))
    found: Counts = ((q - p) * np.log(q / p)).sum(axis=-1)
    return found


def _ks_p(distance: float, n: float, m: float) -> float:
    size = math.sqrt(n * m / (n + m))
    # Stephens' correction makes the asymptotic value good from about four rows on.
    return kolmogorov_sf((size + 0.12 + 0.11 / size) * distance)
