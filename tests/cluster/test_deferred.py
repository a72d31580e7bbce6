"""Pods whose task has given its worker's place back: their triggers, and what becomes of them meanwhile."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner

from airloop.errors import PodLost
from airloop_operators.deferral import Deferral
from airloop_operators.runners.base import RunOutcome, RunRequest, Underway
from airloop_operators.runners.pod import trigger as pod_trigger
from airloop_operators.runners.pod.names import pod_name
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.trigger import PodTrigger
from tests.cluster.world import World, started


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triggers wake up who was left just now: there is no Airflow that would take it ill."""
    monkeypatch.setattr(pod_trigger, "SETTLE_S", 0.0)


def left(world: World, request: RunRequest) -> PodTrigger:
    """The trigger of an attempt that a worker has left; its pod runs."""
    found = PodRunner(world.pods()).run(replace(request, may_leave=True))
    assert isinstance(found, Underway), found
    world.until(lambda: started(world.pod(pod_name(request.call)) or {"status": {}}), "its pod runs")
    trigger = PodTrigger(Deferral(attempt=0, timeout_s=None, until=None, state=found.state).as_json())
    run = request.call.run
    trigger.task_instance = SimpleNamespace(  # type: ignore[assignment]
        dag_id=run.dag_id, run_id=run.run_id, task_id=run.task_id, map_index=run.map_index
    )
    return trigger


def woken(world: World, trigger: PodTrigger) -> dict[str, Any]:
    """What it says, once it says something."""

    async def first() -> Any:
        return (await anext(aiter(trigger.run()))).payload

    found: dict[str, Any] = asyncio.run(asyncio.wait_for(first(), world.pace.within + 60))
    gc.collect()  # a connection that was left open is an error of this test, and not of a later one
    return found


def judged(world: World, request: RunRequest, event: dict[str, Any]) -> RunOutcome:
    """How the attempt ended, as another worker sees it."""
    found = PodRunner(world.pods()).run(replace(request, left=event["deferral"]["state"]))
    assert isinstance(found, RunOutcome)
    return found


def test_a_step_is_done_while_nobody_looks(world: World) -> None:
    request = world.request("wait", seconds=20 if world.real else 2)
    trigger = left(world, request)
    event = woken(world, trigger)
    assert not event["trouble"], event["why"]
    outcome = judged(world, request, event)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    assert outcome.manifest["attempt"] == request.call.attempt
    assert world.heard.count("waiting") == 1, "no line is lost, none comes twice"
    world.until(lambda: not world.left(), "its pod is gone")


def test_its_pod_is_deleted_meanwhile(world: World) -> None:
    request = world.request("wait", seconds=300)
    trigger = left(world, request)
    world.core.delete_namespaced_pod(pod_name(request.call), world.namespace, _preload_content=False)
    outcome = judged(world, request, woken(world, trigger))
    assert type(outcome.error) is PodLost, outcome.error
    assert outcome.manifest is None
    world.until(lambda: not world.left(), "its pod is gone")


@pytest.mark.parametrize("task_is", ["failed", None], ids=["marked as failed", "cleared"])
def test_its_task_is_marked_or_cleared(world: World, task_is: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    request = world.request("wait", seconds=300)
    trigger = left(world, request)
    run = request.call.run

    async def asend(message: Any) -> Any:
        return SimpleNamespace(task_states={run.run_id: {run.task_id: task_is}})

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    asyncio.run(trigger.on_kill())
    world.until(lambda: not world.left(), "its pod is gone")


def test_its_trigger_cannot_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a success by that; the attempt is looked at, and goes on."""
    request = world.request("wait", seconds=20 if world.real else 4)
    trigger = left(world, request)
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", '{"conn_type": "kubernetes", "extra": {"kube_config": "{}"}}')
        event = woken(world, trigger)
    assert event["trouble"], event
    outcome = judged(world, request, event)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None


def test_a_kubeconfig_of_the_environment_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both, the provider's own operator takes its trigger's failure for a success."""
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig))
    request = world.request("wait", seconds=300)
    trigger = left(world, request)
    world.core.delete_namespaced_pod(pod_name(request.call), world.namespace, _preload_content=False)
    outcome = judged(world, request, woken(world, trigger))
    assert type(outcome.error) is PodLost, outcome.error
