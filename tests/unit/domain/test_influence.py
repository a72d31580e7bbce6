"""Influences are the metrics' derivatives, and their standard error is the bootstrap's."""

from __future__ import annotations

import numpy as np
import pytest

from airloop.domain import bootstrap
from airloop.domain.influence import influence
from airloop.domain.metrics import METRICS
from benchmarks.worlds import two_models


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_derivative_by_the_rows_weight(name: str, ties: bool) -> None:
    generator = np.random.default_rng(5)
    labels = (generator.random(60) < 0.4).astype(float)
    scores = generator.random(60)
    if ties:
        scores = np.round(scores, 1)
    metric = METRICS[name]
    found = influence(metric, labels, scores)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    step = 1e-6
    for i in range(60):
        up, down = np.ones(60), np.ones(60)
        up[i], down[i] = 1 + step, 1 - step
        slope = (metric.function(labels, scores, up) - metric.function(labels, scores, down)) / (2 * step)
        assert found[i] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", METRICS)
def test_the_standard_error_is_the_bootstraps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = two_models((0,), rows=1200, days=120, day_share=0.3)

    def error(many: int) -> bootstrap.Difference:
        monkeypatch.setattr(bootstrap, "MANY", many)
        found = bootstrap.paired_difference(
            rows.labels, rows.champion, rows.challenger, metric=METRICS[name], clusters=rows.days, resamples=4000
        )
        assert found is not None
        return found

    linear, drawn = error(100), error(1000)
    assert (linear.resamples, drawn.resamples) == (0, 4000)
    assert linear.standard_error == pytest.approx(drawn.standard_error, rel=0.06)


def test_a_class_in_too_few_clusters_is_undefined() -> None:
    labels = np.zeros(2000)
    labels[:4] = 1
    scores = np.linspace(0, 1, 2000)
    both = scores, scores[::-1].copy()
    assert bootstrap.paired_difference(labels, *both, metric=METRICS["roc_auc"]) is None
    labels[:6] = 1
    assert bootstrap.paired_difference(labels, *both, metric=METRICS["roc_auc"]) is not None
