"""Every outcome of the gate, with its reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from airloop.domain.gates import Decision, Policy, decide
from airloop.errors import BadArgument, BadInput

N = 3000
DAYS = np.repeat(np.arange(10), N // 10)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """Labels, scores of a weak and of a strong model, and a carrier whose rows the strong model may get wrong."""
    generator = np.random.default_rng(11)
    rate = generator.beta(1, 3, N)
    labels = (generator.random(N) < rate).astype(float)
    weak = np.clip(rate + 0.25 * generator.standard_normal(N), 0.01, 0.99)
    strong = np.clip(rate + 0.02 * generator.standard_normal(N), 0.01, 0.99)
    return {"labels": labels, "weak": weak, "strong": strong, "carrier": np.array(["AA", "UA", "B6"])[np.arange(N) % 3]}


def gate(
    rows: dict[str, np.ndarray],
    challenger: str = "strong",
    champion: str | None = "weak",
    *,
    keep: slice = slice(None),
    slices: dict[str, Any] | None = None,
    clusters: bool = True,
    **policy: Any,
) -> Decision:
    decision = decide(
        labels=rows["labels"][keep],
        challenger=rows[challenger][keep],
        champion=None if champion is None else rows[champion][keep],
        clusters=DAYS[keep] if clusters else None,
        slices=slices,
        policy=Policy(resamples=400, **policy),
    )
    json.dumps(decision.as_json(), allow_nan=False)
    return decision


def test_better_challenger_is_promoted(rows: dict[str, np.ndarray]) -> None:
    decision = gate(rows, floors={"roc_auc": 0.6, "ece": 0.1}, slices={"carrier": rows["carrier"]})
    assert decision.outcome == "promote"
    assert decision.difference is not None
    assert decision.difference.low > 0
    assert decision.reasons[0].startswith("roc_auc 0.7")
    assert decision.reasons[0].endswith("above 0")
    assert "holds every floor: ece" in decision.reasons[1]
    assert "3 tested, 0 with too few rows" in decision.reasons[2]
    assert [s.outcome for s in decision.slices] == ["ok"] * 3
    assert decision.calibration["challenger"]["error"] < decision.calibration["champion"]["error"]


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "log_loss", "brier", "accuracy"])
def test_every_metric_knows_which_way_is_better(rows: dict[str, np.ndarray], metric: str) -> None:
    assert gate(rows, metric=metric).outcome == "promote"
    worse = gate(rows, "weak", "strong", metric=metric)
    assert worse.outcome == "keep"
    assert worse.difference is not None
    assert worse.difference.high < 0


def test_same_content_gives_the_same_decision(rows: dict[str, np.ndarray]) -> None:
    slices = {"carrier": rows["carrier"]}
    assert gate(rows, slices=slices).as_json() == gate(rows, slices=slices).as_json()
    assert gate(rows, seed=1).difference != gate(rows).difference


def test_gain_below_what_is_asked(rows: dict[str, np.ndarray]) -> None:
    decision = gate(rows, min_gain=0.3)
    assert decision.outcome == "keep"
    assert "not shown to be above 0.3" in decision.reasons[0]


def test_no_champion_yet(rows: dict[str, np.ndarray]) -> None:
    decision = gate(rows, champion=None, floors={"roc_auc": 0.6})
    assert decision.outcome == "promote"
    assert decision.reasons[0] == "there is no champion yet to compare with"
    assert "roc_auc 0.7" in decision.reasons[1]
    assert decision.champion_metrics is None
    assert decision.difference is None
    assert set(decision.calibration) == {"challenger"}
    assert gate(rows, champion=None).reasons[1] == "no floors are set"


@pytest.mark.parametrize("champion", ["weak", None])
def test_broken_floor_rejects(rows: dict[str, np.ndarray], champion: str | None) -> None:
    decision = gate(rows, champion=champion, floors={"roc_auc": 0.99, "log_loss": 0.1, "brier": 0.9})
    assert decision.outcome == "reject"
    assert len(decision.reasons) == 2
    assert "log_loss 0." in decision.reasons[0]
    assert decision.reasons[1].endswith("< 0.99")
    assert [f.held for f in decision.floors] == [True, False, False]


def test_bad_calibration_rejects(rows: dict[str, np.ndarray]) -> None:
    inflated = rows | {"strong": np.sqrt(rows["strong"])}
    decision = gate(inflated, floors={"ece": 0.1})
    assert decision.outcome == "reject"
    assert "ece 0.2" in decision.reasons[0]
    assert gate(inflated, floors={}).outcome == "promote"


@pytest.mark.parametrize("champion", ["weak", None])
@pytest.mark.parametrize(
    ("keep", "policy", "why"),
    [
        (slice(0, 0), {}, "0 rows, at least 500 are needed"),
        (slice(0, 400), {}, "400 rows, at least 500 are needed"),
        (slice(0, 900), {}, "3 clusters (cluster), at least 5 are needed"),
        (slice(None), {"min_class_rows": 2000}, "rows of the rarer class, at least 2000 are needed"),
    ],
)
def test_too_few_rows_keep_what_is(
    rows: dict[str, np.ndarray], champion: str | None, keep: slice, policy: dict[str, Any], why: str
) -> None:
    decision = gate(rows, champion=champion, keep=keep, **policy)
    assert decision.outcome == "keep"
    assert why in decision.reasons[0]
    assert ("the champion stays" if champion else "there is no champion yet") in decision.reasons[0]


@pytest.mark.parametrize(("label", "word"), [(0.0, "negative"), (1.0, "positive")])
def test_one_class(rows: dict[str, np.ndarray], label: float, word: str) -> None:
    decision = gate(rows | {"labels": np.full(N, label)})
    assert decision.outcome == "keep"
    assert f"all 3,000 rows are of one class, {word}" in decision.reasons[0]
    assert "roc_auc" not in decision.challenger_metrics


def test_identical_models(rows: dict[str, np.ndarray]) -> None:
    decision = gate(rows, "strong", "strong")
    assert decision.outcome == "keep"
    assert decision.reasons == ["both models give the same scores on every held-out row"]
    rounding = rows | {"strong2": rows["strong"] * (1 + 1e-12)}
    assert gate(rounding, "strong2", "strong", metric="log_loss").outcome == "keep"


def test_a_slice_that_gets_worse_blocks(rows: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(2)
    hurt = rows["carrier"] == "B6"
    mixed = np.where(hurt, generator.random(N), rows["strong"])
    champion = np.where(hurt, rows["strong"], rows["weak"])
    decision = gate(rows | {"mixed": mixed, "old": champion}, "mixed", "old", slices={"carrier": rows["carrier"]},
                    metric="log_loss", min_gain=-9.0)  # fmt: skip
    assert decision.outcome == "keep"
    assert decision.reasons[0].startswith("slice carrier=B6 loses 0.")
    assert {s.value: s.outcome for s in decision.slices} == {"B6": "worse", "AA": "ok", "UA": "ok"}
    tolerant = gate(rows | {"mixed": mixed, "old": champion}, "mixed", "old", slices={"carrier": rows["carrier"]},
                    metric="log_loss", min_gain=-9.0, slice_tolerance=5.0)  # fmt: skip
    assert tolerant.outcome == "promote"


def test_small_and_empty_slices_are_listed_not_tested(rows: dict[str, np.ndarray]) -> None:
    carrier = rows["carrier"].astype(object)
    carrier[:50] = "HA"
    carrier[50:55] = None
    decision = gate(rows, slices={"carrier": carrier, "origin": np.full(N, "EWR")})
    found = {(s.column, s.value): s for s in decision.slices}
    assert found["carrier", "HA"].outcome == "too few"
    assert found["carrier", "HA"].why == "50 rows, at least 200 are needed"
    assert found["carrier", "(none)"].rows == 5
    assert found["origin", "EWR"].outcome == "ok"
    assert decision.outcome == "promote"
    assert "4 tested, 2 with too few rows (carrier=HA, carrier=(none))" in decision.reasons[2]


def test_every_slice_with_rows_enough_is_tested(rows: dict[str, np.ndarray]) -> None:
    """The one that gets worse is the rarest of 80."""
    labels, weak, strong = (np.tile(rows[name], 8) for name in ("labels", "weak", "strong"))
    tail = np.arange(len(labels)) * 7 % 80
    tail[np.flatnonzero(tail == 79)[:40]] = 0
    found = {
        name: decide(
            labels=labels,
            challenger=challenger,
            champion=weak,
            clusters=np.arange(len(labels)) * 20 // len(labels),
            slices={"tail": tail},
            policy=Policy(resamples=400),
        )
        for name, challenger in {"fine": strong, "worse": np.where(tail == 79, 1 - strong, strong)}.items()
    }
    assert found["worse"].outcome == "keep"
    assert found["worse"].reasons[0].startswith("slice tail=79 loses 0.")
    assert [(s.value, s.rows) for s in found["worse"].slices if s.outcome == "worse"] == [("79", 260)]
    assert "80 tested, 0 with too few rows" in found["fine"].reasons[-1]


def test_each_slice_has_its_own_rows(rows: dict[str, np.ndarray]) -> None:
    numbers = np.minimum(np.arange(N), 2500)
    decision = gate(rows, slices={"row": numbers})
    assert len(decision.slices) == 2501
    assert (decision.slices[0].value, decision.slices[0].rows) == ("2500", 500)
    for found in decision.slices[::100]:
        assert found.positives == rows["labels"][numbers == int(found.value)].sum()


def test_scores_that_are_not_finite_are_an_error(rows: dict[str, np.ndarray]) -> None:
    bad = rows["strong"].copy()
    bad[[3, 8]] = np.nan, np.inf
    with pytest.raises(BadInput, match=r"the challenger gave 2 scores of 3,000 that are not finite \(first: row 3\)"):
        gate(rows | {"strong": bad})
    with pytest.raises(BadInput, match="the champion gave"):
        gate(rows | {"weak": bad})
    with pytest.raises(BadInput, match="1 of 3,000 labels are not 0 or 1"):
        gate(rows | {"labels": np.append(rows["labels"][1:], 0.5)})
    with pytest.raises(BadInput, match="2,999 scores for 3,000 rows"):
        gate(rows | {"weak": bad[1:]})


@pytest.mark.parametrize(
    "policy",
    [
        {"metric": "f1"},
        {"floors": {"roc": 0.5}},
        {"confidence": 1.0},
        {"confidence": 0.05},
        {"resamples": 5},
        {"min_gain": float("nan")},
        {"floors": {"ece": float("inf")}},
        {"slice_tolerance": -0.1},
    ],
)
def test_senseless_policies_are_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(BadArgument):
        Policy(**policy)
