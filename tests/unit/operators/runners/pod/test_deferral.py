"""Deferred tasks: their triggers over real HTTP, and what becomes of pods when tasks, triggers or triggerers end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.bases.operator import ExecutorSafeguard, TriggerFailureReason
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates
from airflow.sdk.serde import deserialize, serialize

from airloop import usage
from airloop.contract import RunInfo
from airloop.objects import open_objects
from airloop_operators import StepOperator, turn
from airloop_operators.attempts import MARGIN_S
from airloop_operators.deferral import MOST_TROUBLES
from airloop_operators.runners.pod import trigger as pod_trigger
from airloop_operators.runners.pod.left import Left
from tests.api_server import ApiServer, ScriptedPod, Start
from tests.unit.operators.test_turn import a_run

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

SECRET = "open/sesame-4711"


class Events(list[str]):
    """Stands for the outlet events of a task."""

    def __getitem__(self, alias: Any) -> Any:
        assert isinstance(alias, AssetAlias)
        return self

    def add(self, asset: Asset, extra: dict[str, Any]) -> None:
        self.append(extra["key"])


@dataclass
class Task:
    """One try of a deferrable task: each start is of a new operator, and what lies between went through a database."""

    arguments: dict[str, Any] = field(default_factory=dict)
    number: int = 1
    kept: list[str] = field(default_factory=list)
    """What Airflow keeps in its database, as JSON."""
    events: Events = field(default_factory=Events)
    began: Any = None

    def operator(self) -> StepOperator:
        with DAG("loop", schedule=None):
            usual: dict[str, Any] = {"runner": "pod", "deferrable": True, "infrastructure_retry_delay": 0}
            self.last = StepOperator(task_id="t", step="one", **{**usual, **self.arguments})
        return self.last

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(
            id=f"id-{self.number}", dag_id="loop", run_id="r2", task_id="t", map_index=-1, try_number=self.number,
            start_date=self.began, context_carrier=None,
        )  # fmt: skip
        return {"ti": ti, "dag_run": a_run(2), "outlet_events": self.events}

    def start(self) -> Any:
        """What it returns, or the trigger that it is deferred with."""
        return self._kept(lambda: self.operator().execute(self.context))

    def resume(self, event: Any, method: str = "resume") -> Any:
        """The same, with a trigger's event."""
        event = deserialize(json.loads(self._keep(serialize(event))))
        kwargs = {"event": event} if method == "resume" else event
        return self._kept(lambda: self.operator().resume_execution(method, kwargs, self.context))

    def end(self) -> dict[str, Any]:
        """What it returns, however often it is deferred."""
        found = self.start()
        while not isinstance(found, dict):
            found = self.resume(wake(found))
        return found

    def _kept(self, begin: Callable[[], Any]) -> Any:
        try:
            return begin()
        except TaskDeferred as deferred:
            from airflow.sdk._shared.module_loading import import_string

            classpath, kwargs = deferred.trigger.serialize()
            found = import_string(classpath)(**deserialize(json.loads(self._keep(serialize(kwargs)))))
            found.task_instance = self.context["ti"]
            found.timeout = deferred.timeout
            return found

    def _keep(self, value: Any) -> str:
        self.kept.append(json.dumps(value))
        return self.kept[-1]


def wake(trigger: Any, within_s: float = 20) -> Any:
    """A trigger's event."""

    async def first() -> Any:
        return (await anext(aiter(trigger.run()))).payload

    return asyncio.run(asyncio.wait_for(first(), within_s))


@pytest.fixture(autouse=True)
def task_runs_here(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes(tmp_path, state, monkeypatch)
    monkeypatch.setenv("AIRLOOP_HOME", str(state))
    monkeypatch.setenv("AIRFLOW_CONN_VAULT", json.dumps({"conn_type": "generic", "password": SECRET}))
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setattr(turn, "_previous", lambda *_: None)
    caplog.set_level(logging.INFO)


def sizes(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, **patience: float) -> None:
    document = {
        "namespace": "loops",
        "images": {"cpu": "airloop:1"},
        "volumes": [{"claim": "state", "path": str(state)}],
        "patience": {"schedule_s": 60, "start_s": 60, "api_s": 4, "grace_s": 1, "lost_s": 1, **patience},
    }
    (tmp_path / "sizes.yaml").write_text(json.dumps(document))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.yaml"))


def success(pod: ScriptedPod) -> None:
    pod.run()
    pod.say("first", "second")
    pod.succeed()


def slow(pod: ScriptedPod) -> None:
    """It ends when it is told to."""
    pod.run()
    pod.say("first")
    go(pod).wait(20)
    pod.say("second")
    pod.succeed()


def go(pod: ScriptedPod) -> threading.Event:
    found: threading.Event = vars(pod.server).setdefault("go", threading.Event())
    return found


def running(server: ApiServer) -> None:
    until = time.monotonic() + 5
    while [p["status"]["phase"] for p in list(server.pods.values())] != ["Running"]:
        assert time.monotonic() < until, server.pods
        time.sleep(0.02)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "payload"]


class TestAStepThatIsDone:
    def test_while_its_task_was_deferred(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        server = start(slow)
        task = Task({"secrets": {"TOKEN": "vault.password"}, "announces": Asset("made")})
        trigger = task.start()
        assert len(server.pods) == 1, "the pod goes on without its task"
        running(server)
        go(server.handles[next(iter(server.pods))]).set()
        result = task.resume(wake(trigger))
        assert result["status"] == "done"
        assert task.events == ["ab" * 32]
        assert said(caplog) == ["first", "second"], "no line is lost, none comes twice"
        assert server.pods == server.secrets == {}
        assert len(server.created) == 1
        outcome = task.last._outcome
        assert outcome.resources["pods"] == 1
        assert outcome.resources["node"] == "node-1"
        assert "Manifest" in task.last.step_links
        assert "sesame" not in "".join(task.kept) + json.dumps(result) + caplog.text

    def test_what_it_took_is_told_in_one_record(
        self, start: Start, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airloop_operators.runners.usage.EVERY_S", 0.05)
        server = start(slow)
        task = Task()
        trigger = task.start()
        objects, run = open_objects(state / "artifacts"), RunInfo("loop", "r2", "t")
        (left,) = usage.of_task(objects, run)
        assert (left["status"], left["resources"]["pods"]) == ("open", 1), "there while nobody is"
        running(server)
        time.sleep(1.1)
        go(server.handles[next(iter(server.pods))]).set()
        task.resume(wake(trigger))
        (found,) = usage.of_task(objects, run)
        assert (found["status"], found["resources"]["pods"], len(found["pods"])) == ("done", 1, 1)
        assert found["started_at"] == left["started_at"]
        assert found["resources"]["pod_s"] >= 1
        assert (found["pods"][0]["node"], found["pods"][0]["exit_code"]) == ("node-1", 0)

    def test_before_it_could_be_deferred(self, start: Start) -> None:
        server = start(success)
        assert Task().end()["status"] == "done"
        assert len(server.created) == 1

    def test_when_it_was_deferred_by_default(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        start(slow)
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
        assert not isinstance(Task({"deferrable": None}).start(), dict)

    def test_and_whose_log_was_looked_at_meanwhile(
        self, start: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        sizes(tmp_path, state, monkeypatch, log_s=1.5)

        def talks(pod: ScriptedPod) -> None:
            pod.run()
            pod.say("one", "two", "three")
            go(pod).wait(20)
            pod.say("four")
            pod.succeed()

        server = start(talks)
        task = Task()
        found = task.start()
        running(server)
        event = wake(found)
        assert "is looked at" in event["why"]
        found = task.resume(event)
        assert said(caplog) == ["one", "two"], "the last line may not be complete"
        go(server.handles[next(iter(server.pods))]).set()
        while not isinstance(found, dict):
            found = task.resume(wake(found))
        assert said(caplog) == ["one", "two", "three", "four"]


class TestAPodThatIsLost:
    def test_deleted(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        def deleted(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
            pod.delete(grace_s=1)

        server = start(deleted, success)
        task = Task({"infrastructure_retries": 1})
        trigger = task.start()
        running(server)
        go(server.handles[next(iter(server.pods))]).set()
        found = task.resume(wake(trigger))
        assert "PodLost" in capsys.readouterr().out
        while not isinstance(found, dict):
            found = task.resume(wake(found))
        assert found["status"] == "done"
        assert len({pod["metadata"]["name"] for pod in server.created}) == 2, "each attempt has a pod of its own"

    def test_and_fewer_attempts_are_allowed_by_then(self, start: Start) -> None:
        """The DAG was changed while it was deferred."""

        def deleted(pod: ScriptedPod) -> None:
            pod.run()
            pod.delete(grace_s=1)

        server = start(deleted, slow)
        task = Task({"infrastructure_retries": 1})
        found = task.start()
        while len(server.created) < 2:
            found = task.resume(wake(found))
        running(server)
        task.arguments["infrastructure_retries"] = 0
        go(server.handles[next(iter(server.pods))]).set()
        assert task.resume(wake(found))["status"] == "done"

    def test_gone_without_a_trace(self, start: Start) -> None:
        server = start(slow)
        task = Task({"infrastructure_retries": 0})
        trigger = task.start()
        running(server)
        server.handles[next(iter(server.pods))].remove()
        server.history.clear()
        event = wake(trigger)
        assert "is gone" in event["why"]
        with pytest.raises(AirflowException, match="PodLost"):
            task.resume(event)
        assert len(server.created) == 1

    def test_evicted(self, start: Start) -> None:
        def evicted(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
            pod.change(phase="Failed", reason="Evicted", message="low on memory")

        server = start(evicted)
        task = Task({"infrastructure_retries": 0})
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        with pytest.raises(AirflowException, match="was evicted by its node"):
            task.resume(wake(trigger))
        assert server.pods == {}

    def test_preempted_before_it_began_it_is_made_again(self, start: Start) -> None:
        def preempted(pod: ScriptedPod) -> None:
            pod.schedule()
            go(pod).wait(20)
            pod.condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting")
            pod.delete(grace_s=1)

        server = start(preempted, success)
        task = Task({"infrastructure_retries": 0})
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        found = task.resume(wake(trigger))
        while not isinstance(found, dict):
            found = task.resume(wake(found))
        assert len({pod["metadata"]["name"] for pod in server.created}) == 1
        assert task.last._outcome.resources["pods"] == 2

    def test_out_of_memory_is_no_matter_of_infrastructure(self, start: Start) -> None:
        def oom(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
            pod.end(137, "OOMKilled")

        server = start(oom)
        task = Task()
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        with pytest.raises(AirflowException, match="OutOfMemory"):
            task.resume(wake(trigger))

    def test_rejected(self, start: Start) -> None:
        def rejected(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
            pod.end(65)

        server = start(rejected)
        task = Task()
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        with pytest.raises(AirflowFailException):
            task.resume(wake(trigger))


class TestWhatIsDue:
    @pytest.fixture(autouse=True)
    def little_patience(self, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes(tmp_path, state, monkeypatch, schedule_s=3, start_s=2)

    def test_no_node_until_its_deadline(self, start: Start) -> None:
        why = "0/3 nodes are available: 3 Insufficient example.com/gpu"
        server = start(lambda pod: pod.condition("PodScheduled", "False", "Unschedulable", why))
        task = Task({"infrastructure_retries": 0})
        event = wake(task.start())
        assert "has no node yet" in event["why"]
        with pytest.raises(AirflowException, match="got no node in"):
            task.resume(event)
        assert server.pods == {}

    def test_an_image_that_cannot_be_pulled(self, start: Start) -> None:
        def backs_off(pod: ScriptedPod) -> None:
            pod.condition("PodScheduled", "True")
            pod.state("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}})

        start(backs_off)
        task = Task({"infrastructure_retries": 0})
        event = wake(task.start())
        assert "has not started yet" in event["why"]
        with pytest.raises(AirflowException, match="could not be pulled"):
            task.resume(event)

    def test_a_quota_is_waited_for_without_a_place(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airloop_operators.runners.pod.left.QUOTA_S", (0.5, 0.5))
        server = start(success)
        server.refusals = [(403, "Forbidden", "exceeded quota: team")] * 2
        assert Task().end()["status"] == "done"
        server.refusals = [(403, "Forbidden", "exceeded quota: team")] * 100
        with pytest.raises(AirflowException, match="was kept out by a quota"):
            Task({"infrastructure_retries": 0}, number=2).end()

    def test_the_time_of_a_task_counts_over_its_deferral(self, start: Start) -> None:
        server = start(slow)
        task = Task({"execution_timeout": timedelta(seconds=4), "infrastructure_retries": 1})
        began = time.monotonic()
        trigger = task.start()
        assert trigger.timeout > timedelta(seconds=4), "the scheduler wakes it up if the trigger does not"
        event = wake(trigger)
        assert "has no more time" in event["why"]
        with pytest.raises(AirflowException, match=r"TimedOut: step one ran over its time limit of [34] s"):
            task.resume(event)
        assert time.monotonic() - began < 4 + MARGIN_S
        assert server.pods == {}
        assert len(server.created) == 1

    def test_done_at_the_last_moment_is_done(self, start: Start) -> None:
        def late(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
            pod.succeed()

        server = start(late)
        task = Task({"execution_timeout": timedelta(seconds=2)})
        event = wake(task.start())
        assert "has no more time" in event["why"]
        go(server.handles[next(iter(server.pods))]).set()
        until = time.monotonic() + 5
        while next(iter(server.pods.values()))["status"]["phase"] == "Running" and time.monotonic() < until:
            time.sleep(0.02)
        assert task.resume(event)["status"] == "done"


class TestATriggerThatFails:
    """Never makes a task green: the pod is looked at."""

    @pytest.mark.parametrize("kube_config", ["kube_config_path", "kube_config"])
    def test_a_kubeconfig_of_the_environment_is_no_trouble(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kube_config: str
    ) -> None:
        """With both, the provider's own trigger fails, and its operator takes that for a success."""

        def fails(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(20)
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
            go(pod).wait(20)
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
        assert server.pods == {}

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
        found = task.start()
        while len(server.created) < 2:
            found = task.resume(wake(found))
        running(server)
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
        assert server.pods == {}

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

    def test_an_api_server_that_is_away_for_too_long(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        trigger = task.start()
        running(server)
        server.away_until = time.monotonic() + 60
        assert wake(trigger)["trouble"]


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
            asyncio.run(asyncio.wait_for(both(), 20))
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
        until = time.monotonic() + 3
        while server.pods and time.monotonic() < until:
            time.sleep(0.02)
        assert server.pods == server.secrets == {}

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
        assert server.pods == {}

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


def test_a_task_that_cannot_go_on_leaves_no_pod(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(slow)
    task = Task({"secrets": {"TOKEN": "vault.password"}})
    trigger = task.start()
    running(server)
    monkeypatch.setenv("AIRFLOW_CONN_VAULT", json.dumps({"conn_type": "generic"}))
    with pytest.raises(AirflowException, match="connection vault has no password"):
        task.resume({"deferral": trigger.deferral, "why": "has ended", "trouble": False})
    until = time.monotonic() + 3
    while server.pods and time.monotonic() < until:
        time.sleep(0.02)
    assert server.pods == {}


class TestStopped:
    """The task's process is asked to end."""

    def test_just_after_it_left_its_pod(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        task.start()
        running(server)
        task.last.on_kill()
        until = time.monotonic() + 3
        while server.pods and time.monotonic() < until:
            time.sleep(0.02)
        assert server.pods == {}

    def test_when_it_has_come_back(self, start: Start) -> None:
        server = start(slow)
        task = Task({"infrastructure_retries": 1})
        trigger = task.start()
        running(server)
        event = {"deferral": {**trigger.deferral, "troubles": MOST_TROUBLES}, "why": "no", "trouble": True}
        threading.Timer(1.0, lambda: task.last.on_kill()).start()
        with pytest.raises(AirflowException, match="because its task was stopped"):
            task.resume(event)
        assert server.pods == {}
        assert len(server.created) == 1


def test_a_local_run_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Stop(Exception):
        pass

    def run(*_: Any, may_leave: bool, **__: Any) -> Any:
        asked.append(may_leave)
        raise Stop

    monkeypatch.setattr("airloop_operators.attempts.run_step", run)
    for runner, deferrable in (("local", True), ("pod", True), ("pod", False)):
        with pytest.raises(Stop):
            Task({"runner": runner, "deferrable": deferrable}).start()
    assert asked == [False, True, False]
