"""Planted copies of the label are each found; of 100 clean sets none is refused."""

from __future__ import annotations

import numpy as np
import pytest

from airloop.domain.target_leakage import giveaways
from benchmarks.worlds import LEAKS, examples


def test_none_of_100_clean_sets_is_refused() -> None:
    strongest = []
    for seed in range(100):
        columns, labels = examples(seed)
        found, areas = giveaways(columns, labels)
        assert found == [], f"seed {seed}, {len(labels)} rows"
        strongest.append(max(areas.values()))
    assert sum(area > 0.9 for area in strongest) > 25, "honest features may be strong"


@pytest.mark.parametrize("leak", LEAKS)
def test_every_planted_copy_is_found(leak: str) -> None:
    looked_at = 0
    for seed in range(10):
        columns, labels = examples(seed, leak)
        if min(labels.sum(), (1 - labels).sum()) < 400:
            continue
        looked_at += 1
        found, _ = giveaways(columns, labels)
        assert [g.feature for g in found] == ["leak"], f"seed {seed}, {len(labels)} rows"
        assert found[0].why
    assert looked_at >= 2


def test_the_evidence_names_the_value_that_decides() -> None:
    columns, labels = examples(0, "status")
    (found,), _ = giveaways(columns, labels)
    assert (found.value, found.value_share) == ("closed", 1.0)
    assert found.auc_low < 0.9
    assert f"of {found.value_rows:,} rows with the value closed, {found.value_rows:,} have label 1" in found.why


def test_a_limit_that_is_set_lower_refuses_more() -> None:
    columns, labels = examples(0)
    found, areas = giveaways(columns, labels, max_auc=0.7)
    assert "strong" in {g.feature for g in found}
    assert {g.feature for g in found} <= {name for name, area in areas.items() if area > 0.7}


def test_too_few_of_one_class_says_nothing() -> None:
    labels = np.zeros(500)
    labels[:19] = 1
    assert giveaways({"copy": labels}, labels) == ([], {})
    assert giveaways({}, np.zeros(0)) == ([], {})
