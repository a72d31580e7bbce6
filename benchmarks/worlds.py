"""
Worlds whose truth is known: what the gates are measured on, here and in the tests.

Everything follows from its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows that two models scored."""

    labels: Floats
    champion: Floats
    challenger: Floats
    days: NDArray[np.intp]
    slices: dict[str, NDArray[np.str_]]


def two_models(
    seed: tuple[int, ...],
    *,
    rows: int,
    days: int = 28,
    margin: float = 0.0,
    auc: float = 0.75,
    rate: float = 0.2,
    correlation: float = 0.9,
    day_share: float = 0.05,
    carriers: int = 10,
    hurt: str = "",
    harm: float = 0.0,
) -> Scored:
    """
    Two calibrated models whose true AUC is ``auc`` and ``auc + margin``, on the same rows.

    The binormal model: a row's score before calibration is ``d · label + noise`` with noise of variance 1, so the AUC
    is ``Φ(d / √2)``, and the score is the exact posterior probability. What makes a row hard is common to both models.

    :param correlation: of the two models' noise.
    :param day_share: share of the noise of a model's own that is the same for all rows of a day.
    :param carriers: values of the slice ``carrier``, the i-th about ``1 / i`` as frequent as the first.
    :param hurt: a carrier on whose rows the challenger's AUC is ``harm`` below the champion's.
    """
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < rate).astype(np.float64)
    day = np.arange(rows) * days // rows
    common = math.sqrt(correlation) * generator.standard_normal(rows)

    share = 1 / np.arange(1, carriers + 1)
    slices = {
        "carrier": generator.choice([f"c{i}" for i in range(carriers)], rows, p=share / share.sum()),
        "origin": generator.choice(["EWR", "JFK", "LGA"], rows),
    }

    def model(quality: float) -> Floats:
        d = math.sqrt(2) * NormalDist().inv_cdf(quality)
        own = math.sqrt(1 - day_share) * generator.standard_normal(rows)
        own += math.sqrt(day_share) * generator.standard_normal(days)[day]
        score = d * labels + common + math.sqrt(1 - correlation) * own
        probability: Floats = 1 / (1 + np.exp(-(d * score - d * d / 2 + math.log(rate / (1 - rate)))))
        return probability

    champion, challenger = model(auc), model(auc + margin)
    if hurt:
        challenger = np.where(slices["carrier"] == hurt, model(auc - harm), challenger)
    return Scored(labels, champion, challenger, day, slices)


SHIFTS = {
    "none": "nothing",
    "mean +0.3 sd": "a number's mean moves by 0.3 standard deviations",
    "mean +0.5 sd": "a number's mean moves by half a standard deviation",
    "mean +0.75 sd": "a number's mean moves by 0.75 standard deviations",
    "sd x1.5": "a number's standard deviation grows by half",
    "sd x2": "a number's standard deviation doubles",
    "missing 1% → 10%": "a number that is missing in 1 % of rows is missing in 10 %",
    "missing 1% → 25%": "a number that is missing in 1 % of rows is missing in 25 %",
    "category 30% → 45%": "a category's share goes from 30 % to 45 %",
    "category 30% → 55%": "a category's share goes from 30 % to 55 %",
    "new category 5%": "a value never seen has 5 % of rows",
    "new category 10%": "a value never seen has 10 % of rows",
    "boolean 20% → 45%": "a flag that is set in 20 % of rows is set in 45 %",
}
"""What :func:`drift_window` can plant, by its name."""
NUMBERS, CATEGORIES, FLAGS = 20, 6, 4


def drift_window(
    seed: tuple[int, ...], rows: int, shift: str = "none", *, days: int = 28, alike: float = 0.0, lasting: float = 0.0
) -> dict[str, NDArray[Any]]:
    """
    A window of 30 columns: 20 numbers (normal, skewed, heavy-tailed, counts; some missing), 6 categories, 4 flags.

    Each value follows from a normal variable of which a share is its day's own, the same for all rows of the day; a
    column's day effect is nobody else's.

    :param shift: a key of :data:`SHIFTS`; it hits the first column of its kind.
    :param days: over which the rows are spread evenly; see :func:`days_of`.
    :param alike: the day's share of the variance (intraclass correlation), 0: rows are independent.
    :param lasting: correlation of a day's effect with that of the day before.
    """
    generator = np.random.default_rng(seed)
    day = days_of(rows, days)

    def normal() -> Floats:
        effects = generator.standard_normal(days)
        for i in range(1, days if lasting else 0):
            effects[i] = lasting * effects[i - 1] + math.sqrt(1 - lasting**2) * effects[i]
        found: Floats = math.sqrt(alike) * effects[day] + math.sqrt(1 - alike) * generator.standard_normal(rows)
        return found

    def happens(rate: float) -> NDArray[np.bool_]:
        return normal() < (NormalDist().inv_cdf(rate) if rate > 0 else -math.inf)

    window: dict[str, NDArray[Any]] = {}
    for i in range(NUMBERS):
        kind, values = i % 4, normal()
        if kind == 1:
            values = np.exp(values)
        elif kind == 2:
            values = values * np.sqrt(2 / generator.chisquare(2, rows))
        elif kind == 3:
            values = np.searchsorted(_POISSON, values).astype(np.float64)
        values[happens((0.01, 0.0, 0.2)[i % 3])] = np.nan
        window[f"number_{i}"] = values
    first = window["number_0"]
    if shift.startswith("mean"):
        first += float(shift.split()[1])
    elif shift.startswith("sd"):
        first *= float(shift.split("x")[1])
    elif shift.startswith("missing"):
        wanted = float(shift.split()[-1].rstrip("%")) / 100
        first[happens((wanted - 0.01) / 0.99)] = np.nan
    for i in range(CATEGORIES):
        share = 1 / np.arange(1, 4 + 6 * i)
        share = share / share.sum() if i else np.array([0.3, 0.4, 0.2, 0.1])
        names = np.array([f"c{j}" for j in range(len(share))], dtype=object)
        if i == 0 and shift.startswith("category"):
            wanted = float(shift.split()[-1].rstrip("%")) / 100
            share = np.array([wanted, *(share[1:] * (1 - wanted) / 0.7)])
        found = names[np.searchsorted([NormalDist().inv_cdf(c) for c in np.cumsum(share)[:-1]], normal())]
        if i == 0 and shift.startswith("new"):
            found[happens(float(shift.split()[-1].rstrip("%")) / 100)] = "unseen"
        window[f"category_{i}"] = found
    for i in range(FLAGS):
        rate = float(shift.split()[-1].rstrip("%")) / 100 if shift.startswith("boolean") and i == 0 else 0.2
        window[f"flag_{i}"] = happens(rate).astype(np.float64)
    return window


def days_of(rows: int, days: int) -> NDArray[np.intp]:
    """The day of each row of :func:`drift_window`."""
    return np.arange(rows) * days // rows


_POISSON = [
    NormalDist().inv_cdf(min(1 - 1e-12, sum(math.exp(-2) * 2**k / math.factorial(k) for k in range(n + 1))))
    for n in range(12)
]
"""Where a normal variable is cut into counts of mean 2."""


def examples(seed: int, leak: str = "") -> tuple[dict[str, NDArray[Any]], Floats]:
    """
    A clean training set with honest features, some strong; its size, rate and strength follow from the seed.

    :param leak: plant the column ``leak``; one of :data:`LEAKS`.
    """
    generator = np.random.default_rng((4, seed))
    rows = int(generator.choice([500, 2_000, 5_000]))
    rate = float(generator.choice([0.05, 0.2, 0.5]))
    # The sum of two parts decides; each feature sees one of them, or both with noise.
    seen, unseen = generator.standard_normal((2, rows))
    strength = generator.uniform(0.6, 0.9)
    truth = strength * seen + math.sqrt(1 - strength**2) * unseen
    labels = (truth > np.quantile(truth, 1 - rate)).astype(np.float64)
    code = np.minimum(9, (10 / (1 + np.exp(-2 * (seen + 0.5 * generator.standard_normal(rows))))).astype(int))
    columns: dict[str, NDArray[Any]] = {
        "strong": seen,
        "strong_skewed": np.exp(2 * seen),
        "strong_category": np.array([f"c{c}" for c in code], dtype=object),
        "bowl": -np.abs(seen - seen.max() / 2) + generator.standard_normal(rows),
        "rate": np.round(1 / (1 + np.exp(-seen)), 1),
        "weak": truth + 3 * generator.standard_normal(rows),
        "noise": generator.standard_normal(rows),
        "id": np.array([f"k{i}" for i in generator.integers(0, rows // 3, rows)], dtype=object),
        "constant": np.zeros(rows),
        "flag": (generator.random(rows) < 0.01).astype(np.float64),
        "mostly_missing": np.where(generator.random(rows) < 0.95, np.nan, seen),
        "all_missing": np.full(rows, np.nan),
    }
    if leak:
        columns["leak"] = _leak(leak, generator, labels, truth)
    return columns, labels


LEAKS = {
    "copy": "the label itself",
    "inverted": "its negation",
    "noisy copy": "the label, of which 1 % is flipped",
    "blurred copy": "the label plus noise of a standard deviation of 0.2",
    "cause": "the number that the label is cut from",
    "monotone cause": "a monotone function of it",
    "folded cause": "a function of it that goes up and down",
    "missing": "a value that is missing wherever the label is 1",
    "status": "a code that half of the rows with label 1 have, and no others",
    "category copy": "the label as two words",
}
"""What :func:`examples` can plant, by its name."""


def _leak(kind: str, generator: np.random.Generator, labels: Floats, truth: Floats) -> NDArray[Any]:
    rows = len(labels)
    other = generator.standard_normal(rows)
    status = np.where((labels == 1) & (generator.random(rows) < 0.5), "closed", "open").astype(object)
    found: dict[str, NDArray[Any]] = {
        "copy": labels,
        "inverted": 1 - labels,
        "noisy copy": np.where(generator.random(rows) < 0.01, 1 - labels, labels),
        "blurred copy": labels + 0.2 * other,
        "cause": truth,
        "monotone cause": np.exp(truth) ** 3,
        "folded cause": np.where(generator.random(rows) < 0.5, truth + 50, -truth - 50),
        "missing": np.where(labels == 1, np.nan, other),
        "status": status,
        "category copy": np.where(labels == 1, "late", "early").astype(object),
    }
    return found[kind]
