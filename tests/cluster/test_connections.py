"""An API server that is away, and streams that are cut: neither decides what becomes of a step."""

from __future__ import annotations

import itertools
import math
import threading
import time

from tests.cluster.world import World


def _lines(world: World) -> list[str]:
    return [line for line in world.heard if line.startswith("line ")]


def test_the_api_server_is_away_for_a_while(world: World) -> None:
    """Longer than the payload takes: its end is learnt of afterwards."""
    pause_s = 1.0 if world.real else 0.05
    count = int(world.pace.away / pause_s * 0.75)
    with world.underway(world.request("talk", lines=count, pause_s=pause_s)) as attempt:
        attempt.says("line 1")
        world.way.away(math.inf)
        began = time.monotonic()
        try:
            # However busy this machine is, it is not back before it was missed.
            world.until(lambda: any("the API server does not answer" in line for line in world.heard), "it is missed")
            time.sleep(max(0.0, began + world.pace.away - time.monotonic()))
        finally:
            world.way.back()
        outcome = attempt.outcome(world.pace.away + world.pace.within)
    assert outcome.error is None, outcome.error
    assert _lines(world) == [f"line {n}" for n in range(count)], "none is lost, none comes twice"
    world.until(lambda: not world.left(), "its pod is gone")


def test_streams_are_cut_again_and_again(world: World) -> None:
    pause_s, count = (0.2, 100) if world.real else (0.03, 100)
    ended = threading.Event()

    def cut() -> None:
        # More and more seldom, in the end: on a busy machine nothing would be read between two of them.
        for number in itertools.count():
            if ended.wait((2.0 if world.real else 0.4) * 1.5 ** max(0, number - 10)):
                return
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
