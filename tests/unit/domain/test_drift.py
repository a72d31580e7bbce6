"""Drift statistics agree with SciPy, and alarm neither by chance nor by mere size."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from airloop.domain.deals import least_p, p_of_deals
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


def by_day(reference: dict[str, Any], days: list[np.ndarray]) -> np.ndarray:
    return np.array([tally(reference, day) for day in days])


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
    """Thirty columns each, all together; ten windows against each reference."""
    assert sum(bool(drift_outcome(i, rows=300, reference_rows=3000)) for i in range(1000)) <= 10


@pytest.mark.parametrize(("days", "alike"), [(5, 0.9), (7, 0.5), (28, 0.9)])
def test_days_that_differ_raise_no_false_alarms(days: int, alike: float) -> None:
    """5 or more of 120 at 1 % have a chance of 0.8 %; a design effect and its chi-square test alarm in most windows."""
    world: dict[str, Any] = {"rows": 40 * days, "days": days, "alike": alike, "reference_rows": 3600}
    assert sum(bool(drift_outcome(i, **world)) for i in range(120)) <= 4


def test_it_is_the_significance_that_keeps_alarms_out() -> None:
    """With next to no limit to the index the rate is still kept: 6 or more of 150 at 1 % have a chance of 0.4 %."""
    world: dict[str, Any] = {"rows": 500, "reference_rows": 5000, "psi_limit": 1e-4}
    assert sum(bool(drift_outcome(i, **world)) for i in range(150)) <= 5
    assert sum(bool(drift_outcome(i, alike=0.5, **world)) for i in range(150)) <= 5


def test_days_of_other_sizes_raise_no_false_alarms() -> None:
    """A window of a tenth of the reference's rows a day, and one of four times as many."""
    for rows in (100, 4000):
        world: dict[str, Any] = {"rows": rows, "days": 10, "reference_rows": 9000, "alike": 0.3, "psi_limit": 1e-4}
        assert sum(bool(drift_outcome(i, **world)) for i in range(100)) <= 4


def test_the_control_alarms() -> None:
    """The gate that is not told the days takes rows for independent."""
    world: dict[str, Any] = {"rows": 700, "days": 7, "alike": 0.5, "reference_rows": 3600}
    assert sum(bool(drift_outcome(i, clustered=False, **world)) for i in range(20)) > 15


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
    """One day of 91 is the most extreme one by chance in 1 of 91 windows, however far it is."""
    generator = np.random.default_rng(0)
    reference = reference_of(generator.standard_normal(9000))
    before = by_day(reference, [generator.standard_normal(100) for _ in range(90)])
    for days, outcome in ((1, "too few"), (2, "drifted")):
        current = by_day(reference, [np.full(300, 9.0)] * days)
        (found,) = judge([column_drift("x", reference, current, before)])
        assert (found.outcome, found.clusters, found.reference_clusters) == (outcome, days, 90)
    current = by_day(reference, [np.full(300, 9.0)])
    (few,) = judge([column_drift("x", reference, current, before)], cluster="day")
    assert (
        few.why == "1 day against 90: whatever is in them, p is at least 0.011, and at most 0.01 would rule out chance"
    )
    # Two days are enough for one column, and not for a hundred.
    two = column_drift("x", reference, by_day(reference, [np.full(300, 9.0)] * 2), before)
    assert {c.outcome for c in judge([two] * 100)} == {"too few"}


def test_half_of_the_rate_is_the_predictions() -> None:
    generator = np.random.default_rng(0)
    reference = reference_of(generator.standard_normal(9000))
    before = by_day(reference, [generator.standard_normal(100) for _ in range(6)])
    current = by_day(reference, [3 + generator.standard_normal(100) for _ in range(7)])
    features = [column_drift(f"f{i}", reference, current, before) for i in range(30)]
    score = column_drift("(prediction)", reference, current, before, kind="score")
    *others, prediction = judge([*features, score])
    assert prediction.p_least == 1 / math.comb(13, 6)
    assert prediction.outcome == "drifted"
    assert prediction.p_adjusted == pytest.approx(2 * prediction.p)
    assert {c.outcome for c in others} == {"too few"}


def test_days_count_and_not_their_rows() -> None:
    """All rows of a day are the same: a million of them a day say no more than ten."""
    generator = np.random.default_rng(1)
    reference = {"kind": "number", "edges": [-0.5, 0.5], "counts": [3000] * 3, "missing": 0}
    days = [np.searchsorted([-0.5, 0.5], generator.standard_normal(g), side="right") for g in (90, 7)]
    few, many = ([np.eye(4)[d] * rows for d in days] for rows in (40, 1_000_000))
    found = [column_drift("x", reference, current, before) for before, current in (few, many)]
    assert found[0].p == pytest.approx(found[1].p, rel=0.3)
    assert found[1].p > 0.05
    assert column_drift("x", reference, many[1].sum(axis=0)).p < 1e-6


def test_both_sides_are_counted_alike() -> None:
    reference = {"kind": "number", "edges": [0.0], "counts": [5, 5], "missing": 0}
    with pytest.raises(ValueError, match="both sides are counted by cluster, or none"):
        column_drift("x", reference, np.ones((9, 3)))


def test_p_of_deals_is_that_of_all_deals() -> None:
    """Few days: all of their deals can be looked at."""
    generator = np.random.default_rng(5)
    days = generator.multinomial(30, [0.4, 0.3, 0.3], 9).astype(float)

    def index(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shares = (x / x.sum(axis=-1, keepdims=True) for x in (a, b))
        found: np.ndarray = np.abs(np.subtract(*shares)).sum(axis=-1)
        return found

    seen = index(days[:6].sum(axis=0), days[6:].sum(axis=0))
    deals = [list(chosen) for chosen in itertools.combinations(range(9), 3)]
    all_of_them = [index(days.sum(axis=0) - days[d].sum(axis=0), days[d].sum(axis=0)) >= seen - 1e-9 for d in deals]
    # Drawing stops when ten deals were as far apart, so the share is that of few draws.
    found = p_of_deals(days[:6], days[6:], index, draws=20_000)
    assert found == pytest.approx(np.mean(all_of_them), rel=0.5)
    assert least_p(6, 3, 20_000) == 1 / len(deals)
