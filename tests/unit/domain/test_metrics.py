"""Metrics agree with scikit-learn, with and without weights and ties."""

from __future__ import annotations

import numpy as np
import pytest

from airloop.domain.calibration import calibration, expected_calibration_error, reliability
from airloop.domain.metrics import METRICS, all_metrics, resampled, roc_curve, score_histogram


def scikit(name: str, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    from sklearn import metrics

    match name:
        case "accuracy":
            return metrics.accuracy_score(labels, scores >= 0.5, sample_weight=weights)
        case "brier":
            return metrics.brier_score_loss(labels, scores, sample_weight=weights)
        case "average_precision" | "roc_auc":
            return getattr(metrics, f"{name}_score")(labels, scores, sample_weight=weights)
        case _:
            return getattr(metrics, name)(labels, scores, sample_weight=weights)


def rows(seed: int, n: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(float)
    labels[:2] = 0, 1
    scores = np.clip(0.3 + 0.2 * labels + 0.25 * generator.standard_normal(n), 0, 1)
    return labels, np.round(scores, 1) if ties else scores, generator.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 17, 800])
def test_same_as_scikit(name: str, ties: bool, n: int) -> None:
    labels, scores, weights = rows(n, n, ties=ties)
    weights[:2] = 1
    assert METRICS[name].function(labels, scores, None) == pytest.approx(scikit(name, labels, scores), abs=1e-12)
    expected = scikit(name, labels, scores, weights)
    assert METRICS[name].function(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("clusters", [9, 700])
def test_resampled_is_the_weighted_metric(name: str, clusters: int) -> None:
    labels, scores, _ = rows(4, 800, ties=True)
    cluster = np.arange(800) % clusters
    draws = np.random.default_rng(1).multinomial(clusters, np.full(clusters, 1 / clusters), size=5).astype(float)
    found = resampled(METRICS[name], labels, scores, cluster, draws)
    expected = [METRICS[name].function(labels, scores, draw[cluster]) for draw in draws]
    assert found == pytest.approx(expected, abs=1e-12)


def test_resamples_are_made_in_chunks() -> None:
    labels, scores, _ = rows(4, 4000, ties=False)
    clusters = np.arange(4000) % 50
    draws = np.random.default_rng(1).poisson(1.0, (3000, 50)).astype(float)
    found = resampled(METRICS["average_precision"], labels, scores, clusters, draws)
    assert len(np.unique(scores[labels == 1])) * len(draws) > 2_000_000, "one chunk would do"
    for i in (0, 2999):
        assert found[i] == pytest.approx(scikit("average_precision", labels, scores, draws[i][clusters]))


def test_undefined_is_left_out() -> None:
    one_class = all_metrics(np.zeros(5), np.full(5, 0.4))
    assert set(one_class) == {"log_loss", "brier", "accuracy"}
    assert all_metrics(np.empty(0), np.empty(0)) == {}
    none_drawn = resampled(METRICS["brier"], np.ones(2), np.ones(2), np.array([0, 1]), np.zeros((1, 2)))
    assert np.isnan(none_drawn).all()


def test_gain_is_positive_for_better() -> None:
    assert METRICS["roc_auc"].gain(0.8, 0.7) == pytest.approx(0.1)
    assert METRICS["log_loss"].gain(0.3, 0.5) == pytest.approx(0.2)


def test_roc_curve_has_the_same_area() -> None:
    labels, scores, _ = rows(7, 5000, ties=False)
    curve = np.array(roc_curve(labels, scores, points=400))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert len(curve) <= 400
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(scikit("roc_auc", labels, scores), abs=2e-3)
    assert roc_curve(np.ones(4), np.ones(4)) == []


def test_histogram_counts_every_row() -> None:
    found = score_histogram(np.array([1.0, 0, 0]), np.array([1.0, 0.0, 0.52]))
    assert sum(found["positive"]) == 1
    assert found["positive"][-1] == 1
    assert sum(found["negative"]) == 2


def test_reliability_is_scikits_calibration_curve() -> None:
    from sklearn.calibration import calibration_curve

    labels, scores, _ = rows(3, 4000, ties=False)
    rate, mean = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    found = reliability(labels, scores)
    assert [b["rate"] for b in found] == pytest.approx(rate.tolist())
    assert [b["mean_score"] for b in found] == pytest.approx(mean.tolist())
    assert sum(b["rows"] for b in found) == 4000
    by_hand = sum(b["rows"] * abs(b["rate"] - b["mean_score"]) for b in found) / 4000
    assert expected_calibration_error(labels, scores) == pytest.approx(by_hand)


def test_calibration_of_perfect_constant_and_empty() -> None:
    generator = np.random.default_rng(5)
    scores = generator.random(20000)
    labels = (generator.random(20000) < scores).astype(float)
    perfect = calibration(labels, scores)
    assert perfect["error"] < 0.02
    assert abs(perfect["in_the_large"]) < 0.01
    constant = calibration(labels, np.full(20000, 0.9))
    assert len(constant["bins"]) == 1
    assert constant["error"] == pytest.approx(0.9 - labels.mean())
    assert calibration(np.empty(0), np.empty(0)) == {"error": None, "in_the_large": None, "bins": []}
