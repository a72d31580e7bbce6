"""How attempts end: only a manifest makes one green, and everything else is called by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airloop.errors import (
    AirloopError,
    OutOfMemory,
    PodLost,
    ProcessLost,
    Rejected,
    ResultLost,
    StepSkipped,
    TimedOut,
    TryAgain,
)
from tests.cluster.world import ALIKE, World


def test_a_done_step(world: World) -> None:
    request = world.request("count", rows=7)
    outcome = world.run(request)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    assert outcome.manifest["attempt"] == request.call.attempt
    assert outcome.manifest["counts"] == {"rows": 7}
    assert {"queue_s", "pod_s", "node", "image_id"} <= outcome.resources.keys()
    assert outcome.resources["pods"] == 1
    assert "counting 7 rows" in world.heard
    world.until(lambda: not world.left(), "its pod is gone")


def test_dollars_reach_the_step(world: World) -> None:
    """A node puts other variables in the place of $(NAME), and takes $$ for $."""
    text = "SELECT $$it's$$, $1, '$(HOME)', '$$(HOME)'"
    outcome = world.run(world.request("echo", text=text))
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    assert outcome.manifest["details"]["text"] == text


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("rejected", Rejected, "214 rows are bad"),
        pytest.param("try again", TryAgain, "127.0.0.1:1 does not answer", marks=ALIKE),
        pytest.param("skipped", StepSkipped, "nothing to do on a Sunday", marks=ALIKE),
        pytest.param("bug", AirloopError, "rows by zero", marks=ALIKE),
        pytest.param("3", AirloopError, "exit code 3", marks=ALIKE),
        ("0", ResultLost, "ended well, but"),
    ],
    ids=["65", "75", "99", "a bug", "another code", "0 without a manifest"],
)
def test_an_own_exit_code(world: World, how: str, kind: type[AirloopError], says: str) -> None:
    outcome = world.run(world.request("end", how=how))
    assert outcome.error is not None
    assert isinstance(outcome.error, kind)
    assert kind is not AirloopError or type(outcome.error) is AirloopError
    assert says in str(outcome.error)
    assert outcome.manifest is None
    world.until(lambda: not world.left(), "its pod is gone")


def test_sigterm_in_the_middle(world: World) -> None:
    outcome = world.run(world.request("end", how="sigterm"))
    assert type(outcome.error) is ProcessLost
    assert "SIGTERM" in str(outcome.error)
    assert outcome.manifest is None


@pytest.mark.parametrize("stubborn", [False, True], ids=["heeded", "not heeded"])
def test_its_pod_is_deleted(world: World, stubborn: bool) -> None:
    with world.underway(world.request("wait", seconds=300, stubborn=stubborn)) as attempt:
        attempt.says("waiting")
        attempt.delete()
        outcome = attempt.outcome()
    assert type(outcome.error) is PodLost, outcome.error
    assert "was deleted" in str(outcome.error)


def test_it_is_evicted(world: World) -> None:
    with world.underway(world.request("wait", seconds=300)) as attempt:
        attempt.says("waiting")
        about = {"name": attempt.name, "namespace": world.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
        world.core.create_namespaced_pod_eviction(attempt.name, world.namespace, eviction, _preload_content=False)
        outcome = attempt.outcome()
    assert type(outcome.error) is PodLost, outcome.error
    assert "was evicted, as when its node is drained" in str(outcome.error)


def test_it_runs_out_of_memory(world: World) -> None:
    outcome = world.run(replace(world.request("allocate", mb=600), memory_mb=220))
    assert type(outcome.error) is OutOfMemory, outcome.error
    assert "at its memory limit of 220Mi (OOMKilled, size small)" in str(outcome.error)
    assert "raise memory of size small" in str(outcome.error)


@ALIKE
def test_it_runs_over_its_time(world: World) -> None:
    seconds = 15.0 if world.real else 2.5
    outcome = world.run(replace(world.request("wait", seconds=300), timeout_s=seconds))
    assert type(outcome.error) is TimedOut, outcome.error
    assert f"its time limit of {seconds:,.0f} s" in str(outcome.error)
    world.until(lambda: not world.left(), "its pod is gone")
