"""An API server that is away, and streams that are cut: neither decides what becomes of a step."""

from __future__ import annotations

import threading

from tests.cluster.world import World


def _lines(world: World) -> list[str]:
    return [line for line in world.heard if line.startswith("line ")]


def test_the_api_server_is_away_for_a_while(world: World) -> None:
    """Longer than the payload takes: its end is learnt of afterwards."""
    pause_s = 1.0 if world.real else 0.05
    count = int(world.pace.away / pause_s * 0.75)
    with world.underway(world.request("talk", lines=count, pause_s=pause_s)) as attempt:
        attempt.says("line 1")
        world.way.away(world.pace.away)
        outcome = attempt.outcome(world.pace.away + world.pace.within)
    assert outcome.error is None, outcome.error
    assert _lines(world) == [f"line {n}" for n in range(count)], "none is lost, none comes twice"
    assert any("the API server does not answer" in line for line in world.heard)
    world.until(lambda: not world.left(), "its pod is gone")


def test_streams_are_cut_again_and_again(world: World) -> None:
    pause_s, count = (0.2, 100) if world.real else (0.03, 100)
    ended = threading.Event()

    def cut() -> None:
        while not ended.wait(2.0 if world.real else 0.4):
            world.way.cut()

    with world.underway(world.request("talk", lines=count, pause_s=pause_s)) as attempt:
        attempt.says("line 3")
        scissors = threading.Thread(target=cut)
        scissors.start()
        try:
            outcome = attempt.outcome()
        finally:
            ended.set()
            scissors.join()
    assert outcome.error is None, outcome.error
    assert _lines(world) == [f"line {n}" for n in range(count)], "none is lost, none comes twice"
