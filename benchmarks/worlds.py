"""
Worlds whose truth is known: what the gates are measured on, here and in the tests.

Everything follows from its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

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
