"""Deferred tasks: what becomes of their steps and pods while nobody, or only a trigger, looks."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airloop import usage
from airloop.contract import RunInfo
from airloop.objects import open_objects
from airloop_operators.deferral import MOST_TROUBLES
from tests.api_server import ScriptedPod, Start
from tests.unit.operators.runners.pod.deferred_task import (
    Task,
    an_hour_later,
    go,
    gone,
    running,
    said,
    sizes,
    slow,
    success,
    wake,
)

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

pytestmark = pytest.mark.usefixtures("task_runs_here")


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
        sizes(tmp_path, state, monkeypatch, log_s=60)

        def talks(pod: ScriptedPod) -> None:
            # First: once it runs, its log is looked at.
            pod.say("one", "two", "three")
            pod.run()
            go(pod).wait(120)
            pod.say("four")
            pod.succeed()

        server = start(talks)
        task = Task()
        found = task.start()
        running(server)
        event = wake(an_hour_later(found))
        assert "is looked at" in event["why"]
        found = task.resume(event)
        assert said(caplog) == ["one", "two"], "the last line may not be complete"
        go(server.handles[next(iter(server.pods))]).set()
        while not isinstance(found, dict):
            found = task.resume(wake(found))
        assert said(caplog) == ["one", "two", "three", "four"]

    def test_but_not_if_its_accelerators_are_counted(
        self, start: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While it is woken up another task could have them."""
        counted = {
            "images": {"cpu": "airloop:1", "cuda": "airloop:1-cuda"},
            "budgets": {"gpus": 1},
            "pools": {"gpu": {"accelerator": "nvidia", "budget": "gpus"}},
            "sizes": {"small": {}, "gpu": {"pool": "gpu", "accelerators": 1}},
        }
        sizes(tmp_path, state, monkeypatch, counted, log_s=60)
        start(slow)
        assert Task().start().deferral["state"]["wake_at"] is not None
        assert Task({"size": "gpu"}, number=2).start().deferral["state"]["wake_at"] is None


class TestAPodThatIsLost:
    def test_deleted(self, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
        def deleted(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(120)
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
        found = task.start_again(server)
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
            go(pod).wait(120)
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
            go(pod).wait(120)
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
            go(pod).wait(120)
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
            go(pod).wait(120)
            pod.end(65)

        server = start(rejected)
        task = Task()
        trigger = task.start()
        go(server.handles[next(iter(server.pods))]).set()
        with pytest.raises(AirflowFailException):
            task.resume(wake(trigger))


class TestWhatIsDue:
    def test_no_node_until_its_deadline(self, start: Start) -> None:
        why = "0/3 nodes are available: 3 Insufficient example.com/gpu"
        server = start(lambda pod: pod.condition("PodScheduled", "False", "Unschedulable", why))
        task = Task({"infrastructure_retries": 0})
        event = wake(an_hour_later(task.start()))
        assert "has no node yet" in event["why"]
        with pytest.raises(AirflowException, match="got no node in"):
            task.resume(event)
        gone(server)

    def test_an_image_that_cannot_be_pulled(self, start: Start) -> None:
        def backs_off(pod: ScriptedPod) -> None:
            pod.condition("PodScheduled", "True")
            pod.state("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}})
            backed_off.set()

        backed_off = threading.Event()
        start(backs_off)
        task = Task({"infrastructure_retries": 0})
        trigger = task.start()
        assert backed_off.wait(60)
        event = wake(an_hour_later(trigger))
        assert "has not started yet" in event["why"]
        with pytest.raises(AirflowException, match="could not be pulled"):
            task.resume(event)

    def test_the_clusters_words_are_told_without_passwords_of_addresses(
        self, start: Start, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def backs_off(pod: ScriptedPod) -> None:
            pod.condition("PodScheduled", "True")
            told = "Back-off: Get https://puller:pa55-of-registry@images.example/v2/?token=0f-the-layer: EOF"
            pod.state("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": told}})
            # A trigger says how a pod is before it watches it.
            while not pod.server.watches:
                time.sleep(0.02)
            pod.delete(grace_s=1)

        start(backs_off)
        wake(Task({"infrastructure_retries": 0}).start())
        told = capsys.readouterr().out
        assert (
            "waits for start: ImagePullBackOff: Back-off: Get https://puller:***@images.example/v2/?token=***" in told
        )
        assert "pa55" not in told

    def test_a_quota_is_waited_for_without_a_place(
        self, start: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airloop_operators.runners.pod.left.QUOTA_S", (0.5, 0.5))
        server = start(success)
        server.refusals = [(403, "Forbidden", "exceeded quota: team")] * 2
        assert Task().end()["status"] == "done"
        sizes(tmp_path, state, monkeypatch, schedule_s=3)
        server.refusals = [(403, "Forbidden", "exceeded quota: team")] * 100
        with pytest.raises(AirflowException, match="was kept out by a quota"):
            Task({"infrastructure_retries": 0}, number=2).end()

    def test_the_time_of_a_task_counts_over_its_deferral(self, start: Start) -> None:
        server = start(slow)
        task = Task({"execution_timeout": timedelta(hours=1), "infrastructure_retries": 1})
        trigger = task.start()
        running(server)
        assert trigger.timeout > timedelta(hours=1), "the scheduler wakes it up if the trigger does not"
        event = wake(an_hour_later(trigger))
        assert "has no more time" in event["why"]
        with pytest.raises(AirflowException, match=r"TimedOut: step one ran over its time limit of 3[,\d]+ s"):
            task.resume(event)
        gone(server)
        assert len(server.created) == 1

    def test_done_at_the_last_moment_is_done(self, start: Start) -> None:
        def late(pod: ScriptedPod) -> None:
            pod.run()
            go(pod).wait(120)
            pod.succeed()

        server = start(late)
        task = Task({"execution_timeout": timedelta(hours=1)})
        trigger = task.start()
        running(server)
        event = wake(an_hour_later(trigger))
        assert "has no more time" in event["why"]
        go(server.handles[next(iter(server.pods))]).set()
        until = time.monotonic() + 60
        while next(iter(server.pods.values()))["status"]["phase"] == "Running" and time.monotonic() < until:
            time.sleep(0.02)
        assert task.resume(event)["status"] == "done"


def test_a_task_that_cannot_go_on_leaves_no_pod(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(slow)
    task = Task({"secrets": {"TOKEN": "vault.password"}})
    trigger = task.start()
    running(server)
    monkeypatch.setenv("AIRFLOW_CONN_VAULT", json.dumps({"conn_type": "generic"}))
    with pytest.raises(AirflowException, match="connection vault has no password"):
        task.resume({"deferral": trigger.deferral, "why": "has ended", "trouble": False})
    gone(server)


class TestStopped:
    """The task's process is asked to end."""

    def test_just_after_it_left_its_pod(self, start: Start) -> None:
        server = start(slow)
        task = Task()
        task.start()
        running(server)
        task.last.on_kill()
        gone(server)

    def test_when_it_has_come_back(self, start: Start) -> None:
        server = start(slow)
        task = Task({"infrastructure_retries": 1})
        trigger = task.start()
        running(server)
        event = {"deferral": {**trigger.deferral, "troubles": MOST_TROUBLES}, "why": "no", "trouble": True}

        def kill() -> None:
            until = time.monotonic() + 60
            while not server.watches and time.monotonic() < until:
                time.sleep(0.02)
            task.last.on_kill()

        assert server.watches == [], "only who stays watches it"
        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(AirflowException, match="because its task was stopped"):
            task.resume(event)
        gone(server)
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
