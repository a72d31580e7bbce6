"""The paired cluster bootstrap: right width, right error rate, reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from airloop.domain.bootstrap import holm, metric_interval, paired_difference, seed_of
from airloop.domain.metrics import METRICS


def two_models(
    seed: int, *, days: int, per_day: int, gain: float = 0.0, day_effect: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, two models' scores and days; ``day_effect`` makes each model better on some days of its own."""
    generator = np.random.default_rng(seed)
    n = days * per_day
    day = np.repeat(np.arange(days), per_day)
    truth = generator.standard_normal(n)
    labels = (truth + generator.standard_normal(n) > 0.8).astype(float)
    shift = day_effect * generator.standard_normal((2, days))[:, day] * labels
    champion = truth + 0.8 * generator.standard_normal(n) + shift[0]
    challenger = truth + (0.8 - gain) * generator.standard_normal(n) + shift[1]
    squash = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return labels, squash(champion), squash(challenger), day


@pytest.mark.parametrize("name", METRICS)
def test_interval_holds_the_estimate_and_is_reproducible(name: str) -> None:
    labels, champion, challenger, day = two_models(0, days=10, per_day=80, gain=0.4)
    first, again = (
        paired_difference(labels, champion, challenger, metric=METRICS[name], clusters=day, resamples=300, seed=7)
        for _ in range(2)
    )
    assert first is not None
    assert first == again
    assert first.low < first.estimate < first.high
    assert first.clusters == 10


def test_row_interval_is_about_delongs() -> None:
    """Independent rows: the standard error of the paired AUC difference is DeLong's."""
    labels, champion, challenger, _ = two_models(3, days=1, per_day=3000, gain=0.2)

    def placements(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wins = scores[labels == 1][:, None] > scores[labels == 0][None, :]
        return wins.mean(axis=1), wins.mean(axis=0)

    (a_pos, a_neg), (b_pos, b_neg) = placements(challenger), placements(champion)
    delong = np.sqrt(np.var(a_pos - b_pos, ddof=1) / len(a_pos) + np.var(a_neg - b_neg, ddof=1) / len(a_neg))
    found = paired_difference(labels, champion, challenger, metric=METRICS["roc_auc"], resamples=1500)
    assert found is not None
    assert found.standard_error == pytest.approx(delong, rel=0.08)


def test_days_give_a_wider_interval_than_rows_when_days_differ() -> None:
    labels, champion, challenger, day = two_models(5, days=14, per_day=150, day_effect=0.6)
    rows, days = (
        paired_difference(labels, champion, challenger, metric=METRICS["roc_auc"], clusters=c, resamples=400)
        for c in (None, day)
    )
    assert rows is not None
    assert days is not None
    assert days.standard_error > 1.5 * rows.standard_error


@pytest.mark.parametrize("days", [7, 14])
def test_models_of_the_same_quality_are_rarely_told_apart(days: int) -> None:
    """Under the null the lower end is above 0 in about 2.5% of trials, never far above, even with seven days."""
    above = p_small = 0
    trials = 300
    for seed in range(trials):
        labels, champion, challenger, day = two_models(seed + 1000, days=days, per_day=40, day_effect=0.3)
        found = paired_difference(
            labels, champion, challenger, metric=METRICS["log_loss"], clusters=day, resamples=200, seed=seed
        )
        assert found is not None
        above += found.low > 0
        p_small += found.p_not_above(0) <= 0.05
    assert above <= 0.05 * trials
    assert p_small <= 0.1 * trials


def test_undefined_is_none() -> None:
    labels = np.zeros(50)
    labels[0] = 1
    scores = np.linspace(0, 1, 50)
    assert paired_difference(labels, scores, scores[::-1].copy(), metric=METRICS["roc_auc"], resamples=200) is None
    one_day = np.zeros(50, dtype=int)
    assert paired_difference(labels, scores, scores, metric=METRICS["brier"], clusters=one_day) is None


def test_same_scores_have_no_width() -> None:
    labels, champion, _, day = two_models(0, days=8, per_day=30)
    found = paired_difference(labels, champion, champion, metric=METRICS["roc_auc"], clusters=day, resamples=200)
    assert found is not None
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    assert found.p_not_above(0) == 1
    assert found.p_not_above(-0.1) == 0


def test_seed_follows_content() -> None:
    a, b = np.arange(5), np.arange(6)
    assert seed_of(0, a) == seed_of(0, a.copy())
    assert seed_of(0, a) != seed_of(0, b)
    assert seed_of(1, a) != seed_of(0, a)
    assert seed_of("ab", "c") != seed_of("a", "bc")


def test_holm_is_the_published_example() -> None:
    # Holm 1979: 0.01, 0.02, 0.04, 0.005 → 0.03, 0.04, 0.04, 0.02
    assert holm([0.01, 0.02, 0.04, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_interval_of_one_model() -> None:
    labels, champion, _, day = two_models(2, days=12, per_day=200)
    for name, metric in METRICS.items():
        found = metric_interval(labels, champion, metric=metric, clusters=day, resamples=300)
        assert found is not None
        assert found.estimate == pytest.approx(metric.function(labels, champion, None))
        assert 0 < found.high - found.low < (0.3 if name == "log_loss" else 0.12)
    assert metric_interval(labels, champion, metric=METRICS["brier"], clusters=np.zeros(len(labels), dtype=int)) is None
