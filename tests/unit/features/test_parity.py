"""How many keys are drawn, and what counts as the same value."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pytest

from airloop.features.definitions import ViewDefinition
from airloop.features.parity import draw_sample, keys_to_sample, stored


@pytest.mark.parametrize(
    ("share", "confidence", "keys"),
    [(0.001, 0.95, 2995), (0.01, 0.95, 299), (0.01, 0.99, 459), (0.0, 0.95, 0), (1.0, 0.95, 1)],
)
def test_sample_size(share: float, confidence: float, keys: int) -> None:
    assert keys_to_sample(share, confidence) == keys


def test_the_sample_finds_the_share_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    keys, wrong = 10_000, 100
    drawn = keys_to_sample(wrong / keys, 0.95)
    seen = [generator.permutation(keys)[:drawn].min() < wrong for _ in range(1000)]
    assert 0.94 <= np.mean(seen) <= 0.97


@pytest.mark.parametrize(
    ("value", "kind", "kept"),
    [
        (None, "double", None),
        (float("nan"), "double", None),
        (0.1, "double", 0.1),
        (float("inf"), "double", float("inf")),
        ("", "string", ""),
        (False, "bool", False),
        (datetime(2013, 1, 1, 0, 0, 1, 900_000, UTC), "timestamp", 1356998401),
        (datetime(1969, 12, 31, 23, 59, 58, 500_000), "timestamp", -2),
        (1356998401, "timestamp", 1356998401),
    ],
)
def test_what_is_compared_of_a_value(value: object, kind: str, kept: object) -> None:
    assert stored(value, kind) == kept


def sampled(until_us: int, seed: int = 0) -> set[Any]:
    view = ViewDefinition("pace", "pace", ("driver",), ())
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE pace AS SELECT range AS driver FROM range(1000)")
        assert draw_sample(connection, view, sample=100, seed=seed, until_us=until_us) == 1000
        return {driver for (driver,) in connection.execute("SELECT driver FROM parity_sample").fetchall()}


def test_each_materialisation_is_compared_by_other_keys() -> None:
    """The same one by the same; a hundred daily ones leave hardly a key out, where each takes a tenth."""
    day = 86_400_000_000
    assert sampled(day) == sampled(day) != sampled(day, seed=1)
    assert len(sampled(day)) == 100
    assert 0 < len(sampled(day) & sampled(2 * day)) < 30
    assert len(set[Any]().union(*(sampled(i * day) for i in range(100)))) > 990
