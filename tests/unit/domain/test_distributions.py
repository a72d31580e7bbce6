"""Tail probabilities agree with SciPy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from airloop.domain.distributions import chi_square_sf, kolmogorov_sf, student_t_quantile, student_t_sf


@given(st.floats(-30, 30), st.integers(1, 5000))
def test_student_t_tail(t: float, df: int) -> None:
    assert student_t_sf(t, df) == pytest.approx(float(stats.t.sf(t, df)), rel=1e-8, abs=1e-14)


@given(st.floats(0.001, 0.999), st.integers(1, 5000))
def test_student_t_quantile(probability: float, df: int) -> None:
    assert student_t_quantile(probability, df) == pytest.approx(float(stats.t.ppf(probability, df)), rel=1e-7, abs=1e-7)


@given(st.floats(0, 3000), st.integers(1, 500))
def test_chi_square_tail(statistic: float, df: int) -> None:
    assert chi_square_sf(statistic, df) == pytest.approx(float(stats.chi2.sf(statistic, df)), rel=1e-7, abs=1e-13)


@given(st.floats(0, 8))
def test_kolmogorov_tail(x: float) -> None:
    assert kolmogorov_sf(x) == pytest.approx(float(stats.kstwobign.sf(x)), rel=1e-7, abs=1e-11)


def test_extremes_are_finite() -> None:
    assert student_t_sf(float("inf"), 3) == 0
    assert student_t_sf(float("-inf"), 3) == 1
    assert chi_square_sf(0, 4) == 1
    assert chi_square_sf(1e9, 4) == 0
    with pytest.raises(ValueError, match="not between"):
        student_t_quantile(1.0, 4)
