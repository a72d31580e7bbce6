"""
Tail probabilities of Student's t, chi-square and Kolmogorov's distribution, to about ten digits.

Here because importing SciPy costs a step more than all its arithmetic. Proven against SciPy in the tests.
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300


def student_t_sf(t: float, df: float) -> float:
    """Probability that a Student's t variable with ``df`` degrees of freedom exceeds ``t``."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    # Both forms are equal; each keeps its digits where the other's argument would round to 1.
    square = t * t
    if square < df:
        tail = 0.5 * (1 - beta_regularized(0.5, df / 2, square / (df + square)))
    else:
        tail = 0.5 * beta_regularized(df / 2, 0.5, df / (df + square))
    return tail if t >= 0 else 1 - tail


@lru_cache(maxsize=1024)
def student_t_quantile(probability: float, df: float) -> float:
    """
    The t below which a share ``probability`` lies.

    :param probability: strictly between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability {probability} is not between 0 and 1")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, df)
    low, high = 0.0, 1.0
    while 1 - student_t_sf(high, df) < probability:
        high *= 2
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        if 1 - student_t_sf(middle, df) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def chi_square_sf(statistic: float, df: float) -> float:
    """Probability that a chi-square variable with ``df`` degrees of freedom exceeds ``statistic``."""
    if df <= 0 or statistic <= 0:
        return 1.0
    return gamma_upper_regularized(df / 2, statistic / 2)


def kolmogorov_sf(x: float) -> float:
    """Probability that Kolmogorov's variable, the limit of ``sqrt(n) · D``, exceeds ``x``."""
    if x <= 0.2:
        return 1.0  # 1 - sf is below 1e-12 there, and the series converges slowly
    total = 2.0 * sum((-1.0) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(1.0, max(0.0, total))


def beta_regularized(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function, by Lentz's continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, 1 - x) / b


def binomial_lower(hits: int, trials: int, tail: float) -> float:
    """
    The rate below which the true one lies with a chance of at most ``tail``.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, 1934.
    """
    return _beta_quantile(tail, hits, trials - hits + 1) if hits else 0.0


def binomial_upper(hits: int, trials: int, tail: float) -> float:
    """The rate above which the true one lies with a chance of at most ``tail``; see :func:`binomial_lower`."""
    return _beta_quantile(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_regularized(a, b, middle) < probability else (low, middle)
    return low


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    result = d
    for m in range(1, 1000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + step / c
            c = c if abs(c) > _TINY else _TINY
            result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return result


def gamma_upper_regularized(a: float, x: float) -> float:
    """Regularized upper incomplete gamma function (Numerical Recipes, 6.2)."""
    if x <= 0:
        return 1.0
    front = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while abs(term) > abs(total) * 1e-16:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - total * front)
    b = x + 1 - a
    c = 1 / _TINY
    d = 1 / b
    result = d
    for i in range(1, 100_000):
        step = -i * (i - a)
        b += 2
        d = step * d + b
        d = 1 / (d if abs(d) > _TINY else _TINY)
        c = b + step / c
        c = c if abs(c) > _TINY else _TINY
        result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * result
