"""The gate's error rates on worlds whose truth is known; ``benchmarks/gates.py`` measures them at length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.gates import binomial_interval, gate_outcome


def outcomes(
    trials: int, *, clustered: bool = True, policy: dict[str, Any] | None = None, **world: Any
) -> Counter[str]:
    return Counter(
        gate_outcome(trial, world=world, policy=policy or {}, clustered=clustered) for trial in range(trials)
    )


def test_two_models_of_the_same_quality_are_promoted_in_at_most_5_percent_of_1000_trials() -> None:
    assert outcomes(1000, rows=600, days=10)["promote"] <= 50


def test_rows_of_a_day_taken_for_independent_promote_too_often() -> None:
    """The control: without the days the same gate fails the rate, so the test above can."""
    world: dict[str, Any] = {"rows": 1500, "days": 10, "correlation": 0.0, "day_share": 0.5}
    assert outcomes(100, clustered=False, **world)["promote"] > 0.1 * 100
    assert outcomes(100, **world)["promote"] <= 0.05 * 100


def test_a_model_better_by_2_points_on_5000_rows_is_promoted_in_at_least_95_percent() -> None:
    found = outcomes(60, rows=5000, margin=0.02)
    assert found["promote"] >= 0.95 * 60, found


def test_a_slice_that_is_hurt_keeps_a_better_model_out() -> None:
    found = outcomes(20, rows=10_000, margin=0.05, hurt="c2", harm=0.15)
    assert found["slice"] >= 19, found


def test_thirteen_slices_of_equal_models_block_in_at_most_5_percent_all_together() -> None:
    """Nothing but slices decides, and no loss is put up with: 13 or more of 120 at 5 % have a chance of 0.8 %."""
    slices_alone = {"min_gain": -1.0, "slice_tolerance": 0.0, "min_slice_rows": 50, "min_class_rows": 10}
    found = outcomes(120, rows=2000, policy=slices_alone)
    assert found["slice"] <= 12, found
    assert found["promote"] >= 108, found


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(0, 20, 0, 0.1684), (20, 20, 0.8316, 1), (3, 50, 0.0125, 0.1655)]
)
def test_binomial_interval_is_clopper_and_pearsons(hits: int, trials: int, low: float, high: float) -> None:
    assert binomial_interval(hits, trials) == pytest.approx((low, high), abs=1e-4)
