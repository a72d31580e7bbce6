"""An interval of which the files hold no row: what each task of the loop makes of it, and says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airloop.contract import parse_log_line
from tests.fault.conftest import Prepared
from tests.fault.flights_loop import Home, Outcome, days, filled

JUNE = days(1, 5, month=6)
"""Later than all files, and than rows that came late could be."""
SQL = ("weather", "carrier_delays", "origin_delays", "route_delays", "previous_leg", "labels", "schedule")


def counts(outcome: Outcome, *names: str) -> list[int]:
    assert outcome.manifest is not None
    return [outcome.manifest["counts"][n] for n in names]


def details(outcome: Outcome) -> dict[str, Any]:
    assert outcome.manifest is not None
    found: dict[str, Any] = outcome.manifest["details"]
    return found


def warnings(outcome: Outcome) -> list[str]:
    lines = [parse_log_line(line) for line in outcome.log.splitlines()]
    return [line[2] for line in lines if line and line[0] == "WARNING"]


def says_that_nothing_came(outcomes: dict[str, Outcome]) -> None:
    """What holds for the tasks up to the features and labels, whatever was there before."""
    for name in ("flights", "weather"):
        extract = outcomes[f"{name}.extract"]
        assert counts(extract, "rows_new", "rows_corrected", "rows_unchanged") == [0, 0, 0]
        assert warnings(extract) == [f"{name}: the files hold no row of {JUNE}"]
    for name in SQL:
        assert counts(outcomes[name], "rows") == [0]
        assert warnings(outcomes[name])[0].endswith(f"the SQL gave no rows for {JUNE}")


def test_after_others(prepared: Prepared) -> None:
    """The loop runs through: nothing is lost, nothing new is promoted, and each decision says why."""
    home = prepared.back_to_first()
    outcomes = home.loop(JUNE)

    says_that_nothing_came(outcomes)
    for task, outcome in outcomes.items():
        if task in (*SQL, "flights.extract", "weather.extract", "examples", "score"):
            assert outcome.manifest is not None
            assert not outcome.manifest["changed"] or task == "examples", f"{task} announces something new"
    # Nothing new was brought, so what is published is what was validated before.
    assert outcomes["flights.validate"].status == "reused"
    assert counts(outcomes["examples"], "rows_validation", "rows_holdout") == [0, 0]
    assert "no validation rows: no early stopping" in warnings(outcomes["train"])[0]
    assert details(outcomes["gate"])["outcome"] == "keep"
    assert details(outcomes["gate"])["reasons"] == [
        "held-out rows cannot tell: 0 rows, at least 100 are needed, so the champion stays"
    ]
    assert details(outcomes["register"])["summary"].endswith("is not promoted")
    assert counts(outcomes["score"], "rows_scored") == [0]
    assert "has no row in the interval" in details(outcomes["score"])["reason"]
    assert {c["outcome"] for c in details(outcomes["monitor"])["drift"]["columns"]} == {"too few"}
    assert details(outcomes["monitor"])["crossed"] == []

    now, before = home.state(), prepared.after_first
    for name in ("raw.flights", "raw.weather", "raw.planes", "labels.arrivals", "entities.flights", *_features(before)):
        assert now[name] == before[name], name
    assert now["aliases"]["delay"]["champion"] == before["aliases"]["delay"]["champion"] == 1


def _features(state: dict[str, Any]) -> list[str]:
    return [name for name in state if name.startswith("features.")]


def test_before_any_other(make_home: Callable[..., Home]) -> None:
    """There is nothing to learn from: the training set says so, and what does not need it goes on."""
    home = make_home()
    outcomes: dict[str, Outcome] = {}
    results: dict[str, Any] = {}
    tasks = home.tasks()
    for task in list(tasks)[: list(tasks).index("examples") + 1]:
        step, arguments = tasks[task]
        outcomes[task] = home.run(step, filled(arguments, results), JUNE)
        if task != "examples":
            assert outcomes[task].code == 0, f"{task}: {outcomes[task].log}"
            results[task] = outcomes[task].result

    says_that_nothing_came(outcomes)
    assert counts(outcomes["flights.validate"], "rows_checked", "rows_published") == [0, 0]
    assert outcomes["examples"].code == 65
    assert outcomes["examples"].error.startswith("BadInput: no training rows: of labels.arrivals")
    assert "no labels in the whole window" in outcomes["examples"].error
    assert "wait for more labels" in outcomes["examples"].error

    step, arguments = tasks["score"]
    score = home.run(step, filled(arguments, results), JUNE)
    assert score.code == 0, score.log
    assert details(score)["reason"] == "there was no delay model yet when the interval began; nothing is scored"

    # The next interval has rows, and runs as if this one had never been.
    assert "training.delay" not in home.state()
