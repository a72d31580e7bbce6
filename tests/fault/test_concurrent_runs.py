"""Two runs of one interval at once, as processes of their own: one makes it, the other finds it made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airloop.contract import Interval
from tests.fault.conftest import Prepared
from tests.fault.flights_loop import FIRST, SECOND, Home, filled

Homes = Callable[..., Home]


def twice(home: Home, step: str, arguments: dict[str, Any], interval: Interval = FIRST) -> dict[str, str]:
    """Run a step twice at once; the result."""
    first, second = home.at_once(*(home.start(step, arguments, interval) for _ in range(2)))
    assert (first.code, second.code) == (0, 0), first.log + second.log
    assert first.manifest == second.manifest
    assert sorted((first.status, second.status)) in (["done", "reused"], ["reused", "reused"])
    return first.result


def test_two_runs_of_one_interval(prepared: Prepared, make_home: Homes) -> None:
    """All tasks of the loop, from an empty home: catalog, tables, databases are made by both at once too."""
    home = make_home()
    results: dict[str, dict[str, str]] = {}
    for task, (step, arguments) in home.tasks().items():
        results[task] = twice(home, step, filled(arguments, results))
    assert home.state() == prepared.after_first


def test_two_runs_of_one_interval_by_different_code(make_home: Homes) -> None:
    """Another description gives the task another key, as another release would: no lock keeps the two apart."""
    home, undisturbed = make_home(), make_home("undisturbed")
    one = home.extraction("flights")
    other = one | {"source": one["source"].replace("description: >-", "description: >-\n  Flights.", 1)}
    assert one != other

    extracted = home.at_once(*(home.start("extract", each, FIRST) for each in (one, other)))
    assert [e.code for e in extracted] == [0, 0], [e.log for e in extracted]
    assert extracted[0].result["key"] != extracted[1].result["key"]
    validated = home.at_once(*(home.start("validate", home.validation("flights", e.result), FIRST) for e in extracted))
    assert [v.code for v in validated] == [0, 0], [v.log for v in validated]

    undisturbed.done("validate", home.validation("flights", undisturbed.done("extract", one)))
    table, expected = (each.state()["raw.flights"] for each in (home, undisturbed))
    for of in (table, expected):
        del of["snapshots"]
    assert table == expected


def test_two_intervals_at_once(make_home: Homes) -> None:
    """The later one may be first; both end on main, and no row is lost or there twice."""
    home, undisturbed = make_home(), make_home("undisturbed")
    call = home.extraction("flights")
    for each in (FIRST, SECOND):
        undisturbed.done("validate", home.validation("flights", undisturbed.done("extract", call, each)), each)
    extracted = home.at_once(*(home.start("extract", call, each) for each in (SECOND, FIRST)))
    assert [e.code for e in extracted] == [0, 0], [e.log for e in extracted]
    validated = home.at_once(
        *(
            home.start("validate", home.validation("flights", e.result), each)
            for e, each in zip(extracted, (SECOND, FIRST), strict=True)
        )
    )
    assert [v.code for v in validated] == [0, 0], [v.log for v in validated]
    table, expected = (each.state()["raw.flights"] for each in (home, undisturbed))
    assert (table["rows"], table["content"]) == (expected["rows"], expected["content"])
    assert table["branches"] == ["main"]
