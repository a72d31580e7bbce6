"""
The loop struck at points drawn at random, of all that an undisturbed run reaches; then a whole loop of kills.

``AIRLOOP_TEST_FAULT_SEED`` repeats a draw, ``AIRLOOP_TEST_FAULT_SAMPLE`` sizes it; ``python -m tests.fault.harness
--all`` tries every point.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.fault.compare import differences, seen_wrong
from tests.fault.harness import Strike, Tally, World, draw_sample

SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_FAULT_SAMPLE") or 26)


def held(tally: Tally, tell: Callable[[str], None]) -> None:
    tell(f"{tally}; seed {SEED}")
    assert not tally.failures, "\n".join(map(str, tally.failures))


def test_a_sample_of_all_points(world: World, tell: Callable[[str], None]) -> None:
    tally = Tally()
    for strike in draw_sample(world.strikes(), SAMPLE, SEED):
        tally.add(world.strike(strike))
    assert all(verdict.looks > 0 for verdict in tally.verdicts)
    held(tally, tell)


def test_a_loop_of_kills_ends_as_if_nothing_had_happened(world: World, tell: Callable[[str], None]) -> None:
    tally = Tally(world.journey(SEED, kills=1))
    assert len(tally.verdicts) >= len(world.tasks)
    held(tally, tell)
    # What the killed left is garbage: no snapshot names it, and gc finds all of it and nothing else. How much it is
    # follows from the draw.
    before = _without_history(world.home.state())
    files = world.home.collect()
    tell(f"files of killed steps: {len(files['before'])}, after gc {len(files['after'])}")
    assert files["after"] == []
    assert _without_history(world.home.state()) == before


def _without_history(state: dict[str, Any]) -> dict[str, Any]:
    """A state without the snapshots and audit branches of killed attempts, which gc may take away."""
    left_out = ("branches", "snapshots")
    return {
        name: {k: v for k, v in value.items() if k not in left_out} if isinstance(value, dict) else value
        for name, value in state.items()
    }


def test_every_task_has_points_around_its_durable_writes(world: World) -> None:
    for task in world.tasks:
        writes = [p for p in task.points if p.startswith(("sql:", "rename:"))]
        assert any("/manifest.json:before" in p for p in writes) or task.state_after == task.state_before, task.name
        before = [p.replace(":before:", ":") for p in writes if ":before:" in p]
        after = [p.replace(":after:", ":") for p in writes if ":after:" in p]
        assert set(after) <= set(before), task.name
    stores = {p.partition("/")[0] for task in world.tasks for p in task.points if p.startswith("sql:")}
    assert {"sql:catalog.db", "sql:mlflow.db", "sql:online.db"} <= stores


@pytest.mark.parametrize("action", ["kill", "full"])
def test_a_fault_that_never_happens_is_no_survival(world: World, action: str) -> None:
    strike = Strike(world.tasks[0], action, "rename:no/such/file:before:1")
    verdict = world.strike(strike)
    assert (verdict.survived, verdict.missed) == (False, "not reached: ended with 0")
    assert str(verdict).startswith(f"first flights.extract: {action}@rename:no/such/file:before:1: not reached")


STATE = {"a.b": {"rows": 2, "content": "x", "main was": ["x"]}, "aliases": {"delay": {"champion": 1}}}


@pytest.mark.parametrize(
    ("after", "lost", "doubled"),
    [
        (STATE, 0, 0),
        ({**STATE, "a.b": {"rows": 3, "content": "y", "main was": ["x", "y"]}}, 1, 2),
        ({**STATE, "a.b": {"rows": 1, "content": "y", "main was": ["y"]}}, 3, 0),
        ({**STATE, "aliases": {}}, 1, 0),
        ({**STATE, "more": 1}, 0, 1),
    ],
)
def test_a_difference_is_lost_or_doubled(after: Any, lost: int, doubled: int) -> None:
    found = differences(STATE, after)
    assert (len(found[0]), len(found[1])) == (lost, doubled)


@pytest.mark.parametrize(
    ("seen", "right"),
    [
        ({"a.b": ["x", "y"]}, True),
        ({"a.b": ["y"]}, True),
        ({"a.b": ["x", "half", "y"]}, False),
        ({"a.b": ["y", "x"]}, False),
        ({"delay@champion": [1, 2]}, True),
        ({"delay@champion": [2, 1]}, False),
        ({"delay@champion is there": [True, False]}, False),
        ({"online values": [None, "new"]}, True),
        ({"online values": ["half", "new"]}, False),
    ],
)
def test_a_reader_that_sees_what_never_was_is_heard(seen: dict[str, Any], right: bool) -> None:
    after = {
        "a.b": {"rows": 3, "content": "y", "main was": ["x", "y"]},
        "aliases": {"delay": {"champion": 2}},
        "online values": {"rows": 1, "content": "new"},
    }
    assert (seen_wrong(STATE, after, {"seen": seen}) == []) == right
