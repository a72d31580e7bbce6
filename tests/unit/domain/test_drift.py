"""Drift statistics agree with SciPy, and alarm neither by chance nor by mere size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from airloop.domain.drift import (
    ColumnDrift,
    binned_kolmogorov_smirnov,
    chi_square_homogeneity,
    column_drift,
    design_effect,
    jensen_shannon_distance,
    judge,
    kolmogorov_smirnov,
    population_stability_index,
    tally,
)
from benchmarks.gates import drift_outcome


def reference_of(values: np.ndarray, bins: int = 10) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, present, side="right"), minlength=len(edges) + 1)
    return {
        "kind": "number",
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "missing": int(np.isnan(values).sum()),
    }


def drift(column: str, reference: dict[str, Any], values: np.ndarray) -> ColumnDrift:
    """In two chunks, as a large table is read."""
    half = len(values) // 2
    return column_drift(column, reference, tally(reference, values[:half]) + tally(reference, values[half:]))


def test_same_as_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(20, 90, (2, 8)).astype(float)
    statistic, p = chi_square_homogeneity(a, b)
    expected = stats.chi2_contingency([a, b], correction=False)
    assert (statistic, p) == pytest.approx((expected.statistic, expected.pvalue))
    assert jensen_shannon_distance(a, b) == pytest.approx(jensenshannon(a, b, base=2))
    x, y = generator.standard_normal(900), 0.1 + generator.standard_normal(700)
    distance, p = kolmogorov_smirnov(x, y)
    exact = stats.ks_2samp(x, y)
    assert distance == pytest.approx(exact.statistic)
    assert p == pytest.approx(exact.pvalue, rel=0.1)


def test_psi_by_hand() -> None:
    there, here = np.array([5000.0, 5000]), np.array([2500.0, 7500])
    assert population_stability_index(there, there) == 0
    expected = (0.25 - 0.5) * np.log(0.5) + (0.75 - 0.5) * np.log(1.5)
    assert population_stability_index(there, here) == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(population_stability_index(np.array([10.0, 0]), np.array([0.0, 10])))


def test_rare_bins_are_joined() -> None:
    there, here = np.array([1000.0, 1, 0, 2]), np.array([1000.0, 0, 1, 2])
    assert chi_square_homogeneity(there, here)[1] > 0.5
    assert chi_square_homogeneity(np.array([7.0]), np.array([9.0])) == (0.0, 1.0)


def test_binned_distance_is_never_above_the_exact() -> None:
    generator = np.random.default_rng(3)
    for shift in (0, 0.05, 0.5):
        x, y = generator.standard_normal(2000), shift + generator.standard_normal(1500)
        reference = reference_of(x)
        here = np.bincount(np.searchsorted(reference["edges"], y, side="right"), minlength=10).astype(float)
        binned = binned_kolmogorov_smirnov(np.array(reference["counts"], dtype=float), here)[0]
        assert binned <= kolmogorov_smirnov(x, y)[0] + 1e-12


def test_shift_of_a_number() -> None:
    generator = np.random.default_rng(1)
    reference = reference_of(generator.standard_normal(5000))
    same, moved = judge(
        [
            drift("same", reference, generator.standard_normal(4000)),
            drift("moved", reference, 1 + generator.standard_normal(4000)),
        ]
    )
    assert (same.outcome, moved.outcome) == ("ok", "drifted")
    assert moved.psi > 0.2 > same.psi
    assert moved.ks is not None
    assert moved.ks > 0.3
    assert moved.why.startswith("index 0.")
    assert sum(b["current"] for b in moved.bins) == pytest.approx(1)
    assert moved.bins[0]["bin"].startswith("< -1.2")


def test_values_that_stop_arriving() -> None:
    generator = np.random.default_rng(1)
    reference = reference_of(generator.standard_normal(5000))
    values = generator.standard_normal(1000)
    values[:500] = np.nan
    (gone,) = judge([drift("x", reference, values)])
    assert gone.outcome == "drifted"
    assert (gone.missing, gone.reference_missing) == (0.5, 0)
    (all_gone,) = judge([drift("x", reference, np.full(1000, np.nan))])
    assert all_gone.outcome == "drifted"
    assert all_gone.ks is None


def test_categories() -> None:
    reference = {"kind": "category", "counts": {"EWR": 4000, "JFK": 3000, "LGA": 3000}, "other": 0, "missing": 0}
    same = np.array(["EWR"] * 400 + ["JFK"] * 310 + ["LGA"] * 290, dtype=object)
    unseen = np.array(["EWR"] * 400 + ["SWF"] * 310 + [None] * 200 + [float("nan")] * 90, dtype=object)
    ok, drifted = judge([drift("origin", reference, same), drift("origin", reference, unseen)])
    assert (ok.outcome, drifted.outcome) == ("ok", "drifted")
    assert ok.ks is None
    assert drifted.missing == pytest.approx(0.29)
    assert {b["bin"]: b["current"] for b in drifted.bins}["(other)"] == pytest.approx(0.31)
    assert {b["bin"] for b in ok.bins} == {"EWR", "JFK", "LGA"}


def test_constant_and_boolean_columns() -> None:
    constant = {"kind": "number", "edges": [], "counts": [5000], "missing": 0}
    (same,) = judge([drift("c", constant, np.zeros(1000))])
    assert (same.outcome, same.psi, same.p) == ("ok", 0, 1)
    boolean = {"kind": "boolean", "edges": [0.5], "counts": [4000, 1000], "missing": 0}
    (flipped,) = judge([drift("b", boolean, np.array([True] * 700 + [False] * 300))])
    assert flipped.outcome == "drifted"


def test_few_rows_are_not_judged() -> None:
    reference = reference_of(np.random.default_rng(0).standard_normal(5000))
    (few,) = judge([drift("x", reference, np.full(50, 9.0))])
    assert few.outcome == "too few"
    assert few.why == "50 rows against 5,000, at least 200 are needed on both sides"
    (none,) = judge([drift("x", reference, np.empty(0))])
    assert none.outcome == "too few"


def test_size_alone_is_no_alarm() -> None:
    """A million rows make a shift of 0.05 significant; it is still no drift."""
    generator = np.random.default_rng(4)
    reference = reference_of(generator.standard_normal(500_000))
    (found,) = judge([drift("x", reference, 0.05 + generator.standard_normal(500_000))])
    assert found.p_adjusted < 1e-10
    assert found.outcome == "ok"


def test_an_effect_that_may_be_chance_says_so() -> None:
    generator = np.random.default_rng(0)
    reference = reference_of(generator.standard_normal(200))
    (found,) = judge([drift("x", reference, generator.standard_normal(200))], psi_limit=0.001)
    assert found.outcome == "ok"
    assert "may be chance" in found.why


def test_a_reference_that_does_not_fit_is_an_error() -> None:
    reference = {"kind": "number", "edges": [0.0], "counts": [1, 2, 3], "missing": 0}
    with pytest.raises(ValueError, match="x: 2 bins, 3 counts, 2 tallied"):
        drift("x", reference, np.zeros(9))


def test_false_alarms_of_1000_undrifted_windows_stay_under_the_stated_rate() -> None:
    """Thirty columns each, all together; 20 references with 50 windows each."""
    assert sum(bool(drift_outcome(i, rows=300, reference_rows=3000)) for i in range(1000)) <= 10


def test_it_is_the_significance_that_keeps_alarms_out() -> None:
    """With next to no limit to the index the rate is still kept: 6 or more of 150 at 1 % have a chance of 0.4 %."""
    assert sum(bool(drift_outcome(i, rows=500, reference_rows=5000, psi_limit=1e-4)) for i in range(150)) <= 5


def test_rows_of_a_day_count_for_what_they_are_worth() -> None:
    """The control: a window of 2,000 rows of which each comes ten times alarms, unless the gate is told the days."""
    world = {"rows": 2000, "repeats": 10, "reference_rows": 5000}
    assert sum(bool(drift_outcome(i, clustered=False, **world)) for i in range(30)) > 10
    assert sum(bool(drift_outcome(i, **world)) for i in range(30)) <= 1


FOUND = {
    "mean +0.75 sd": 300, "sd x2": 300, "missing 1% → 25%": 300, "category 30% → 55%": 1000, "new category 10%": 300,
    "boolean 20% → 45%": 1000,
}  # fmt: skip
"""Shifts and the rows on which they are found."""


@pytest.mark.parametrize("shift", FOUND)
def test_planted_shifts_are_found(shift: str) -> None:
    found = [drift_outcome(i, rows=FOUND[shift], reference_rows=5000, shift=shift) for i in range(20)]
    assert sum(any(name.endswith("_0") for name in names) for names in found) >= 19
    assert sum(len(names) for names in found) <= 21, "and nothing else"


def test_design_effect() -> None:
    generator = np.random.default_rng(0)
    independent = generator.multinomial(100, [0.5, 0.3, 0.2], 400).astype(float)
    assert design_effect(independent) == pytest.approx(1, abs=0.15)
    assert design_effect(7 * independent) == pytest.approx(7, rel=0.15)
    all_the_same = np.eye(3)[generator.integers(0, 3, 50)] * 40
    assert design_effect(all_the_same) == pytest.approx(40, rel=0.1)
    assert design_effect(np.tile([50.0, 30, 0], (9, 1))) == 1
    assert design_effect(np.ones((9, 1))) == 1


def test_tally_by_cluster() -> None:
    numbers = {"kind": "number", "edges": [0.0], "counts": [5, 5], "missing": 0}
    values = np.array([-1.0, 0, np.nan, 2, -1])
    days = np.array([0, 0, 1, 2, 2])
    assert tally(numbers, values, days, 4).tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    words = {"kind": "category", "counts": {"a": 1, "b": 1}, "other": 0, "missing": 0}
    texts = np.array(["a", "b", None, "z", float("nan")], dtype=object)
    assert tally(words, texts, days, 3).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert tally(words, texts).tolist() == [1, 1, 1, 2]


def test_few_clusters_are_not_judged() -> None:
    reference = reference_of(np.random.default_rng(0).standard_normal(5000))
    counts = tally(reference, np.full(900, 9.0), np.arange(900) // 300, 3)
    (few,) = judge([column_drift("x", reference, counts)])
    assert (few.outcome, few.why) == ("too few", "3 clusters, at least 5 are needed")
