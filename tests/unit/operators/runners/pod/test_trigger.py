"""Triggers of deferred tasks over real HTTP: what fails in them, and whom they end when they are ended."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates

from airloop_operators.deferral import MOST_TROUBLES
from airloop_operators.runners.pod import trigger as pod_trigger
from airloop_operators.runners.pod.left import Left
from tests.api_server import ScriptedPod, Start, answers
from tests.unit.operators.runners.pod.deferred_task import Task, go, gone, running, sizes, slow, success, wake

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

pytestmark = pytest.mark.usefixtures("task_runs_here")


class TestATriggerThatFails:
    """Never makes a task green: the pod is looked at."""

    @pytest.mark.parametrize("kube_config", ["kube_config_path", "kube_config"])
    def test_a_kubeconfig_of_the_environment_is_no_trouble(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kube_config: str
    ) -> None:
        """With both, the provider's own trigger fails, and its operator takes that for a success."""

        def fails(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(120)
            pod.end(3)

        server = start(fails)
        path = server.kubeconfig(tmp_path / "another")
        monkeypatch.setenv("KUBECONFIG", str(path))
        extra = {kube_config: str(path) if kube_config.endswith("path") else path.read_text()}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
        task = Task()
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        event = wake(trigger)
        assert not event["trouble"]
        with pytest.raises(AirflowException, match="exit code 3"):
            task.resume(event)

    def test_in_the_cluster_of_its_own_account_it_looks_there(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The asynchronous client does not do so by itself."""
        start(slow)
        found = Task().start()
        left = Left.of(found.deferral["state"])
        assert not left.in_cluster
        assert pod_trigger._hook(left).in_cluster is None
        assert pod_trigger._hook(replace(left, in_cluster=True)).in_cluster is True

    def test_is_replaced_a_few_times_and_then_the_worker_waits(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("airloop_operators.deferral.PAUSE_S", 0.01)

        def fails(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(120)
            pod.end(3)

        server = start(fails)
        extra = {
            "kube_config_path": str(server.kubeconfig(tmp_path / "one")),
            "kube_config": server.kubeconfig(tmp_path / "two").read_text(),
        }
        task = Task()
        found = task.start()
        good = os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"]
        for _ in range(MOST_TROUBLES):
            bad = json.dumps({"conn_type": "kubernetes", "extra": extra})
            monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", bad)
            event = wake(found)
            assert event["trouble"]
            assert "mutually exclusive" in event["why"]
            monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", good)
            found = task.resume(event)
            assert not isinstance(found, dict)
        threading.Timer(1.0, go(server.handles[next(iter(server.pods))]).set).start()
        with pytest.raises(AirflowException, match="exit code 3"):
            task.resume({**event, "deferral": {**event["deferral"], "troubles": MOST_TROUBLES}})
        assert "the trigger could not watch" in capsys.readouterr().out
        assert len(server.created) == 1

    @pytest.mark.parametrize("event", [None, "success", {"status": "success"}, {"deferral": {}}])
    def test_or_lies(self, start: Start, event: Any) -> None:
        def fails(pod: ScriptedPod) -> None:
            pod.run()
            pod.end(3)

        server = start(fails)
        task = Task()
        task.start()
        with pytest.raises(AirflowException, match="exit code 3"):
            task.resume(event)
        assert len(server.created) == 1
        gone(server)

    def test_or_says_that_a_pod_has_ended_that_runs(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)
        found = task.resume({"deferral": trigger.deferral, "why": "has ended", "trouble": False})
        assert not isinstance(found, dict), "it is deferred again"

    def test_and_is_lost(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        """As Airflow tells it of a trigger that cannot be loaded; in the second of a task's attempts."""

        def evicted(pod: ScriptedPod) -> None:
            pod.run()
            pod.change(phase="Failed", reason="Evicted", message="low on memory")

        server = start(evicted, slow)
        task = Task({"infrastructure_retries": 1})
        task.start_again(server)
        threading.Timer(1.0, go(server.handles[next(iter(server.pods))]).set).start()
        told = {"error": TriggerFailureReason.TRIGGER_FAILURE.value, "traceback": ["ImportError: no\n"]}
        result = task.resume(told, method="__fail__")
        assert result["status"] == "done"
        assert "ImportError: no" in capsys.readouterr().out
        assert len(server.created) == 2

    def test_and_nobody_wakes_the_task_in_time(self, start: Start) -> None:
        server = start(slow)
        task = Task({"execution_timeout": timedelta(hours=1)})
        task.start()
        running(server)
        with pytest.raises(AirflowException, match="TimedOut"):
            task.resume({"error": TriggerFailureReason.TRIGGER_TIMEOUT.value}, method="__fail__")
        gone(server)

    def test_an_api_server_that_is_away_for_a_while(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)
        server.away_until = time.monotonic() + 2
        threading.Timer(3.0, go(server.handles[next(iter(server.pods))]).set).start()
        event = wake(trigger)
        assert not event["trouble"]
        assert task.resume(event)["status"] == "done"

    def test_an_api_server_that_is_away_for_too_long(
        self, start: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes(tmp_path, state, monkeypatch, api_s=4)
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)
        server.away_until = time.monotonic() + 60
        assert wake(trigger)["trouble"]

    def test_a_watch_that_is_refused(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        monkeypatch.setattr(server, "other", answers("GET", "watch=", 403, "Forbidden", "pods is forbidden: no watch"))
        event = wake(trigger)
        assert event["trouble"]
        assert "no watch" in event["why"]

    def test_a_version_that_is_forgotten_is_no_trouble(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)

        def forgets(method: str, path: str, body: str) -> None:
            if "watch=" in path and not server.too_old:
                server.forget()

        monkeypatch.setattr(server, "other", forgets)
        threading.Timer(2.0, go(server.handles[next(iter(server.pods))]).set).start()
        event = wake(trigger)
        assert not event["trouble"]
        assert server.too_old, "the server was not asked for a version that it has forgotten"
        assert task.resume(event)["status"] == "done"


@pytest.mark.parametrize("connection", ["good", "bad"])
def test_who_was_deferred_just_now_is_not_woken_up_yet(
    start: Start, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    """Airflow would take it for killed."""
    monkeypatch.setattr(pod_trigger, "SETTLE_S", 1.5)
    server = start(slow)
    trigger = Task().start()
    go(server.handles[next(iter(server.pods))]).set()
    if connection == "bad":
        monkeypatch.setenv(
            "AIRFLOW_CONN_KUBERNETES_DEFAULT", '{"conn_type": "kubernetes", "extra": {"kube_config": "{}"}}'
        )
    began = time.monotonic()
    assert wake(trigger)["trouble"] == (connection == "bad")
    assert time.monotonic() - began >= 1.5


class TestKilledWhileDeferred:
    """Through Airflow's own triggerer code."""

    def in_triggerer(
        self, trigger: Any, then: Callable[[asyncio.Task[Any]], Awaitable[None]], state: str | None
    ) -> list[Any]:
        from airflow.jobs.triggerer_job_runner import TriggerRunner

        asked: list[Any] = []

        async def asend(message: Any) -> Any:
            if not isinstance(message, GetTaskStates):
                return None
            asked.append(message)
            await asyncio.sleep(0.3)
            return SimpleNamespace(task_states={"r2": {"t": state}})

        async def both() -> None:
            runner = TriggerRunner()
            runner.triggers[1] = {"task": None, "is_watcher": False, "name": "t", "events": 0}  # type: ignore[typeddict-item]
            task = asyncio.create_task(runner.run_trigger(1, trigger))
            await asyncio.sleep(1)
            await then(task)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not runner.events
            await asyncio.gather(*pod_trigger._killing)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
            asyncio.run(asyncio.wait_for(both(), 120))
        return asked

    @staticmethod
    async def by_somebody(task: asyncio.Task[Any]) -> None:
        from airflow.jobs.triggerer_job_runner import _USER_ACTION_CANCEL_MSG

        # As Airflow does it each second, until the trigger has ended.
        for _ in range(3):
            task.cancel(_USER_ACTION_CANCEL_MSG)
            await asyncio.sleep(0.1)

    @staticmethod
    async def by_a_restart(task: asyncio.Task[Any]) -> None:
        task.cancel()

    @pytest.mark.parametrize("task_is", ["failed", "success", "skipped", None, "removed"])
    def test_marked_or_cleared_its_pod_is_gone(self, start: Start, task_is: str | None) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        (asked,) = self.in_triggerer(trigger, self.by_somebody, task_is)
        assert (asked.dag_id, asked.task_ids, asked.run_ids) == ("loop", ["t"], ["r2"])
        gone(server)
        assert server.secrets == {}

    def test_a_cluster_that_is_overloaded_is_asked_again(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        monkeypatch.setattr(server, "other", answers("DELETE", "/pods/", 503, "", "overloaded", times=2))
        self.in_triggerer(trigger, self.by_somebody, "failed")
        gone(server)

    def test_a_pod_that_may_not_be_ended_is_told(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        monkeypatch.setattr(server, "other", answers("DELETE", "/pods/", 403, "Forbidden", "no right to delete"))
        self.in_triggerer(trigger, self.by_somebody, "failed")
        running(server)
        told = capsys.readouterr().out
        assert "could not be ended; a next try of its task ends it" in told
        assert "no right to delete" in told

    @pytest.mark.parametrize("task_is", ["deferred", "queued", "running"])
    def test_a_trigger_that_moved_leaves_its_pod(self, start: Start, task_is: str) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        self.in_triggerer(trigger, self.by_somebody, task_is)
        running(server)

    def test_a_restart_leaves_its_pod_and_the_next_trigger_watches_it(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)
        assert self.in_triggerer(trigger, self.by_a_restart, "deferred") == []
        running(server)
        go(server.handles[next(iter(server.pods))]).set()
        again = type(trigger)(**trigger.serialize()[1])
        assert task.resume(wake(again))["status"] == "done"
        assert len(server.created) == 1

    def test_what_was_missed_is_ended_by_the_next_try(self, start: Start) -> None:
        server = start(slow, success)
        Task().start()
        running(server)
        assert Task(number=2).end()["status"] == "done"
        gone(server)

    def test_the_pod_of_another_is_left_alone(self, start: Start) -> None:
        server = start(slow)
        trigger = Task().start()
        running(server)
        trigger.deferral["state"]["uid"] = "another"

        async def kill() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(trigger), "_state_of_task", lambda self: asyncio.sleep(0, "failed"))
                await trigger.on_kill()

        asyncio.run(kill())
        running(server)
