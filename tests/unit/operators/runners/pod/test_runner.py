"""Pods by the real client, against an API server whose pods do what a script says."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import ExecutorSafeguard

from airloop import usage
from airloop.contract import RECEIPT_LIMIT, RunInfo, attempt_record_path
from airloop.errors import (
    AirloopError,
    BadConfiguration,
    InfrastructureFailure,
    NotStarted,
    OutOfMemory,
    PodLost,
    ProcessLost,
    Rejected,
    ResultLost,
    StepSkipped,
    TimedOut,
    TryAgain,
    Unreachable,
)
from airloop.objects import open_objects
from airloop_operators import StepOperator, turn
from airloop_operators.runners import get_runner
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.pod import attempt, keeper, names, watcher
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.sizes import Patience, Pods, SecretKey
from airloop_operators.runners.pod.spec import make
from airloop_operators.settings import Settings
from tests.api_server import ApiServer, Script, ScriptedPod, Start, answers
from tests.unit.operators.test_turn import a_run

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")


PATIENT = Patience(schedule_s=60, start_s=60, api_s=60, grace_s=60, lost_s=1)
"""The machine may be busy. A test in which some of it comes to an end has less of that, and of nothing else."""
NOT_HEEDED = replace(PATIENT, grace_s=2)
"""For pods that do not go when they are deleted."""


@pytest.fixture
def pods(pods: Pods) -> Pods:
    """The Secret that is only named is not on this server."""
    return replace(pods, patience=PATIENT, secrets={})


@pytest.fixture
def run(pods: Pods, request_of: RunRequest, caplog: pytest.LogCaptureFixture) -> Callable[..., RunOutcome]:
    def once(*, patience: Patience = pods.patience, **changes: Any) -> RunOutcome:
        caplog.set_level(logging.INFO)
        return PodRunner(replace(pods, patience=patience)).run(replace(request_of, **changes))

    return once


Run = Callable[..., RunOutcome]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once it is set, an hour has passed for who waits for a pod. What is to be seen before has to be told before."""
    passed = threading.Event()
    monkeypatch.setattr(watcher, "LOOK_S", 1.0)
    for module in (keeper, watcher):
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * passed.is_set(), sleep=time.sleep)
        monkeypatch.setattr(module, "time", clock)
    return passed


def told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the runner has said something."""
    until = time.monotonic() + 50
    while text not in caplog.text and time.monotonic() < until:
        time.sleep(0.02)


def success(pod: ScriptedPod) -> None:
    pod.run()
    pod.say("hello", '{"airloop_log":1,"level":"WARNING","logger":"airloop.step","message":"careful"}')
    pod.succeed()


def ends(code: int, reason: str = "", message: str = "", **status: Any) -> Script:
    def script(pod: ScriptedPod) -> None:
        pod.run()
        pod.say("working")
        pod.end(code, reason, message, **status)

    return script


def record(request: RunRequest) -> dict[str, Any]:
    path = Path(str(request.artifacts)) / attempt_record_path(request.call.attempt)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_done_step(start: Start, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    server = start(success)
    outcome = run()
    assert outcome.error is None
    assert outcome.manifest is not None
    assert outcome.manifest["counts"] == {"rows": 1}
    assert server.pods == server.secrets == {}, "nothing is left behind"
    logged = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert ("payload", "INFO", "hello") in logged
    assert ("airloop.step", "WARNING", "careful") in logged
    assert outcome.resources["node"] == "node-1"
    assert outcome.resources["image_id"] == "airloop@sha256:0123"
    assert outcome.resources["pods"] == 1
    assert outcome.resources["size"] == "small"
    assert {"queue_s", "pod_s", "wall_s"} <= outcome.resources.keys()


def test_a_real_payload_does_not_know_that_it_is_in_a_pod(
    start: Start, run: Run, tmp_path: Path, request_of: RunRequest
) -> None:
    def node(pod: ScriptedPod) -> None:
        """Start the container's command as a process of this machine."""
        pod.run()
        receipt = tmp_path / "termination-log"
        environment = {**pod.environment(), "AIRLOOP_RECEIPT": str(receipt), "HOME": str(tmp_path)}
        command = pod.object["spec"]["containers"][0]["command"]
        done = subprocess.run(
            [sys.executable, *command[1:]], env={"PATH": os.environ["PATH"], "PYTHONPATH": "tests", **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        pod.say(*(done.stdout + done.stderr).splitlines())
        pod.end(done.returncode, message=receipt.read_text() if receipt.exists() else "")

    server = start(node)
    call = replace(request_of.call, step="steps_for_tests:count", arguments={"rows": 7})
    state = {"AIRLOOP_HOME": request_of.environment["AIRLOOP_HOME"]}
    outcome = run(call=call, environment=state)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    assert outcome.manifest["attempt"] == call.attempt
    assert outcome.manifest["counts"] == {"rows": 7}
    assert len(server.created) == 1


class TestGreenOnlyWithItsManifest:
    """What a pod says of itself is not enough."""

    def test_exit_0_and_nothing(self, start: Start, run: Run) -> None:
        start(ends(0))
        assert isinstance(run().error, ResultLost)

    def test_exit_0_and_the_receipt_of_another(self, start: Start, run: Run) -> None:
        def other(pod: ScriptedPod) -> None:
            pod.run()
            pod.end(0, message=pod.publish().replace("0123456789abcdef0123", "f" * 20))

        start(other)
        assert isinstance(run().error, ResultLost)

    def test_a_receipt_that_was_cut(self, start: Start, run: Run) -> None:
        def cut(pod: ScriptedPod) -> None:
            pod.run()
            pod.end(0, message=pod.publish()[:100])

        start(cut)
        assert isinstance(run().error, ResultLost)

    def test_sigterm_in_the_middle(self, start: Start, run: Run) -> None:
        start(ends(143))
        error = run().error
        assert isinstance(error, ProcessLost)
        assert "SIGTERM" in str(error)

    def test_sigterm_that_the_payload_took_for_its_end(self, start: Start, run: Run) -> None:
        def deleted(pod: ScriptedPod) -> None:
            pod.run()
            pod.delete(grace_s=1)

        server = start(deleted)
        server.on_delete = lambda pod: (pod.end(0), pod.remove())[0]
        assert isinstance(run().error, ResultLost)

    def test_lost_after_its_manifest_it_is_done(self, start: Start, run: Run) -> None:
        def late(pod: ScriptedPod) -> None:
            pod.run()
            pod.end(137, message=pod.publish())

        start(late)
        assert run().error is None


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        (ends(65), Rejected, "working"),
        (ends(75), TryAgain, "working"),
        (ends(99), StepSkipped, ""),
        (ends(1), AirloopError, "step train failed (exit code 1)"),
        (ends(3), AirloopError, "exit code 3"),
        (
            ends(137, "OOMKilled"),
            OutOfMemory,
            "at its memory limit of 1Gi (OOMKilled, size small); raise memory",
        ),
        (ends(137, reason="Error"), ProcessLost, "SIGKILL"),
        (ends(128, "StartError", "no such file"), NotStarted, "could not be started (StartError: no such file)"),
    ],
    ids=["rejected", "try again", "skipped", "failed", "exit 3", "oom", "killed", "start error"],
)
def test_each_exit_is_what_it_says(start: Start, run: Run, script: Script, kind: type[AirloopError], says: str) -> None:
    server = start(script)
    error = run().error
    assert type(error) is kind
    assert says in str(error)
    assert server.pods == {}


def test_evicted(start: Start, run: Run, request_of: RunRequest) -> None:
    def evicted(pod: ScriptedPod) -> None:
        pod.run()
        pod.change(phase="Failed", reason="Evicted", message="The node was low on resource: memory. ")

    start(evicted)
    error = run().error
    assert type(error) is PodLost
    assert "was evicted by its node (The node was low on resource: memory)" in str(error)
    assert record(request_of)["error"]["class"] == "PodLost"
    assert "was evicted" in record(request_of)["error"]["message"]


def test_evicted_though_its_container_ends_first(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def evicted(pod: ScriptedPod) -> None:
        pod.run()
        pod.state("Running", {"terminated": {"exitCode": 143, "reason": "Error"}})
        time.sleep(0.1)
        pod.change(phase="Failed", reason="Evicted", message="low on disk")

    start(evicted)
    monkeypatch.setattr(watcher, "SETTLE_S", 60.0)
    assert "was evicted by its node (low on disk)" in str(run().error)


def test_deleted(start: Start, run: Run) -> None:
    def deleted(pod: ScriptedPod) -> None:
        pod.run()
        pod.delete(grace_s=1)

    start(deleted)
    error = run().error
    assert type(error) is PodLost
    assert "was deleted" in str(error)


def test_a_node_that_is_lost(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(pod: ScriptedPod) -> None:
        pod.run()
        pod.condition("Ready", "False", "NodeNotReady")
        pod.condition("DisruptionTarget", "True", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute")
        pod.delete(grace_s=1)

    server = start(lost)
    server.on_delete = lambda pod: None
    monkeypatch.setattr("airloop_operators.runners.pod.watcher.LOOK_S", 1.0)
    began = time.monotonic()
    error = run(patience=NOT_HEEDED).error
    assert type(error) is PodLost
    assert "has a taint that it does not tolerate" in str(error)
    assert time.monotonic() - began < 120


def test_preempted_before_it_began_it_is_made_again(start: Start, run: Run) -> None:
    def preempted(pod: ScriptedPod) -> None:
        pod.schedule()
        pod.condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting")
        pod.delete(grace_s=1)

    server = start(preempted, success)
    outcome = run()
    assert outcome.error is None
    assert outcome.resources["pods"] == 2
    assert len(server.created) == 2


@pytest.mark.parametrize("how", ["deleted", "evicted"])
def test_lost_before_it_began_it_is_made_again(start: Start, run: Run, how: str) -> None:
    def lost(pod: ScriptedPod) -> None:
        pod.schedule()
        if how == "deleted":
            pod.delete(grace_s=1)
        else:
            pod.lose_sight(reason="Evicted", message="The node was low on resource: memory.")

    server = start(lost, success)
    outcome = run()
    assert outcome.error is None
    assert outcome.resources["pods"] == len(server.created) == 2


def test_what_ran_and_was_lost_is_not_made_again(start: Start, run: Run) -> None:
    def lost(pod: ScriptedPod) -> None:
        pod.run()
        pod.lose_sight()

    server = start(lost, success)
    error = run().error
    assert type(error) is PodLost
    assert "was lost with its node" in str(error)
    assert len(server.created) == 1


def test_an_image_that_cannot_be_pulled(
    start: Start, run: Run, caplog: pytest.LogCaptureFixture, later: threading.Event
) -> None:
    def backs_off(pod: ScriptedPod) -> None:
        pod.condition("PodScheduled", "True")
        pod.state("Pending", {"waiting": {"reason": "ErrImagePull", "message": "not found"}})
        told(caplog, "waits for start: ErrImagePull")
        pod.state("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
        told(caplog, "waits for start: ImagePullBackOff")
        later.set()

    server = start(backs_off)
    error = run().error
    assert type(error) is NotStarted
    assert "image airloop:1-cpu could not be pulled" in str(error)
    assert "Back-off pulling image" in str(error)
    assert_gone(server)


def test_an_image_name_that_is_none_is_not_waited_for(start: Start, run: Run) -> None:
    start(lambda pod: pod.state("Pending", {"waiting": {"reason": "InvalidImageName", "message": "bad"}}, conditions=[
        {"type": "PodScheduled", "status": "True"}]))  # fmt: skip
    began = time.monotonic()
    assert isinstance(run().error, BadConfiguration)
    assert time.monotonic() - began < 30


def test_unschedulable_until_its_deadline(
    start: Start, run: Run, caplog: pytest.LogCaptureFixture, later: threading.Event
) -> None:
    def unschedulable(pod: ScriptedPod) -> None:
        pod.condition("PodScheduled", "False", "Unschedulable", why)
        told(caplog, why)
        later.set()

    why = "0/3 nodes are available: 3 Insufficient example.com/gpu"
    server = start(unschedulable)
    error = run().error
    assert type(error) is NotStarted
    assert "got no node in" in str(error)
    assert why in str(error)
    assert f"waits for node: {why}" in caplog.text
    assert_gone(server)


QUOTA = (403, "Forbidden", 'pods "train" is forbidden: exceeded quota: team, requested: cpu=1, used: cpu=4')


def test_a_quota_is_waited_for(start: Start, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    server = start(success)
    server.refusals = [QUOTA] * 3
    assert run().error is None
    assert caplog.text.count("exceeded quota") == 1
    server.refusals = [QUOTA] * 100
    error = run(patience=replace(PATIENT, schedule_s=2)).error
    assert type(error) is NotStarted
    assert "was kept out by a quota" in str(error)
    assert "used: cpu=4" in str(error)


@pytest.mark.parametrize("message", ["exceeded quota: team", "status unknown for quota: team, resources: pods"])
def test_a_quota_of_secrets_or_one_that_is_not_known_yet_is_waited_for(start: Start, run: Run, message: str) -> None:
    server = start(success)
    server.refusals = [(403, "Forbidden", f'pods "train" is forbidden: {message}')]
    server.secret_refusals = [
        (403, "Forbidden", f'secrets "train" is forbidden: {message}'),
        (409, "Conflict", "again"),
    ]
    assert run().error is None
    assert len(server.created) == len(server.secrets_created) == 1


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((403, "Forbidden", 'User "system:sa" cannot create resource "pods"'), "cannot create resource"),
        ((404, "NotFound", 'namespaces "loops" not found'), "make the namespace"),
        ((422, "Invalid", "spec.containers[0].image: Required value"), "Required value"),
    ],
)
def test_what_is_refused_for_good_is_not_tried_again(
    start: Start, run: Run, refusal: tuple[int, str, str], says: str
) -> None:
    server = start(success)
    server.refusals = [refusal]
    error = run().error
    assert isinstance(error, BadConfiguration)
    assert says in str(error)
    assert server.created == []


def test_an_api_server_that_is_overloaded_is_asked_again(start: Start, run: Run) -> None:
    server = start(success)
    server.refusals = [(500, "InternalError", "etcd leader changed"), (429, "TooManyRequests", "later")]
    assert run().error is None


def test_an_api_server_that_is_away_for_a_while(start: Start, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def away(pod: ScriptedPod) -> None:
        pod.run()
        pod.say("before")
        time.sleep(0.3)
        pod.server.away_until = time.monotonic() + 60
        pod.say("meanwhile")
        receipt = pod.publish()
        told(caplog, "the API server does not answer")
        pod.server.away_until = 0.0
        pod.say("after")
        pod.end(0, message=receipt)

    start(away)
    assert run().error is None
    assert [r.getMessage() for r in caplog.records if r.name == "payload"] == ["before", "meanwhile", "after"]
    assert "the API server does not answer" in caplog.text


class TestAwayForTooLong:
    """The manifest tells even then."""

    PATIENCE = replace(PATIENT, api_s=1)

    @staticmethod
    def away(publish: bool) -> Script:
        def script(pod: ScriptedPod) -> None:
            pod.run()
            time.sleep(0.3)
            if publish:
                _with_record(pod)
            pod.server.away_until = math.inf

        return script

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attempt, "CLEAN_UP_S", 1.0)

    def test_with_its_manifest(self, start: Start, run: Run) -> None:
        start(self.away(publish=True))
        assert run(patience=self.PATIENCE).error is None

    def test_without(self, start: Start, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        start(self.away(publish=False))
        error = run(patience=self.PATIENCE).error
        assert type(error) is InfrastructureFailure
        assert "the API server has not answered for" in str(error)
        assert "could not be removed" in caplog.text


class TestOutOfTimeAtOnce:
    """An earlier start of the same attempt made its pod, and nobody saw its end: the manifest tells even then."""

    @pytest.fixture
    def left(self, start: Start, pods: Pods, request_of: RunRequest) -> ScriptedPod:
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server = start()
        server.secrets[made.name] = made.secret or {}
        found = server.add(made.pod)
        found.run()
        return found

    @pytest.mark.parametrize("there", [True, False], ids=["its pod is there", "its pod is gone"])
    def test_it_is_done(self, run: Run, left: ScriptedPod, there: bool) -> None:
        left.end(0, message=_with_record(left))
        if not there:
            left.remove()
        outcome = run(timeout_s=1e-6)
        assert outcome.error is None, outcome.error
        assert left.server.created == []
        assert_gone(left.server)

    def test_it_runs_or_is_gone_and_is_not_done(self, run: Run, left: ScriptedPod) -> None:
        assert isinstance(run(timeout_s=1e-6).error, TimedOut)
        assert_gone(left.server)
        assert isinstance(run(timeout_s=1e-6).error, TimedOut)


def test_a_pod_that_is_made_anew_proves_nothing_by_what_the_one_before_recorded(
    start: Start, run: Run, pods: Pods, request_of: RunRequest
) -> None:
    made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
    server = start(ends(0))
    server.secrets[made.name] = made.secret or {}
    before = server.add(made.pod)
    before.run()
    _with_record(before)
    before.remove()
    assert isinstance(run().error, ResultLost)


@pytest.mark.parametrize("backwards_s", [0.0, 0.7], ids=["in the order of time", "with times that go backwards"])
def test_a_log_whose_stream_is_cut_loses_and_doubles_nothing(
    start: Start, run: Run, caplog: pytest.LogCaptureFixture, backwards_s: float
) -> None:
    texts = [f"line {n}" for n in range(60)]

    def talks(pod: ScriptedPod) -> None:
        pod.run()
        for n in range(0, 60, 10):
            for text in texts[n : n + 10]:
                pod.say(text, ago_s=backwards_s * (len(pod.log) % 3))
            time.sleep(0.3)
        pod.succeed()

    server = start(talks)
    server.log_cuts = [0, 105, 777, 333]
    assert run().error is None
    assert [r.getMessage() for r in caplog.records if r.name == "payload"] == texts


class TestItsOwnPod:
    """A worker that was killed, and who comes after it."""

    def test_is_adopted_while_it_lives(
        self, start: Start, run: Run, pods: Pods, request_of: RunRequest, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = start()
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        assert made.secret is not None
        server.secrets[made.name] = made.secret

        def runs(pod: ScriptedPod) -> None:
            pod.run()
            time.sleep(1)
            pod.succeed()

        server.add(made.pod, runs)
        outcome = run()
        assert outcome.error is None
        assert outcome.resources["pods"] == 0
        assert server.created == []
        assert "this attempt made it before" in caplog.text

    def test_is_adopted_after_its_worker_was_killed(
        self, start: Start, run: Run, state: Path, tmp_path: Path, request_of: RunRequest
    ) -> None:
        """A worker in a process of its own, by SIGKILL: it can tell nobody."""
        goes_on = threading.Event()

        def slow(pod: ScriptedPod) -> None:
            pod.run()
            pod.say("working")
            goes_on.wait(240)
            pod.succeed()

        server = start(slow)
        (tmp_path / "request.pickle").write_bytes(pickle.dumps(request_of))
        sizes = tmp_path / "sizes.json"
        volumes = [{"claim": "state", "path": str(state)}]
        document = {"namespace": "loops", "images": {"cpu": "airloop:1-cpu"}, "volumes": volumes}
        sizes.write_text(json.dumps(document))
        code = (
            "import pickle, sys; from pathlib import Path\n"
            "from airloop_operators.runners.pod.runner import PodRunner\n"
            "from airloop_operators.runners.pod.sizes import read_pods\n"
            "PodRunner(read_pods(Path(sys.argv[1]))).run(pickle.loads(Path(sys.argv[2]).read_bytes()))"
        )
        worker = subprocess.Popen([sys.executable, "-c", code, str(sizes), str(tmp_path / "request.pickle")])
        try:
            until = time.monotonic() + 180
            while not (_phase(server) == "Running" and server.secrets) and time.monotonic() < until:
                assert worker.poll() is None
                time.sleep(0.05)
        finally:
            worker.kill()
            worker.wait()
        (pod,) = server.pods.values()
        threading.Timer(1, goes_on.set).start()
        outcome = run()
        assert outcome.error is None
        assert outcome.manifest is not None
        assert outcome.manifest["attempt"] == request_of.call.attempt
        assert len(server.created) == 1, "the very pod of before"
        assert server.created[0]["metadata"]["name"] == pod["metadata"]["name"]
        assert server.pods == server.secrets == {}

    def test_is_judged_when_it_has_ended(self, start: Start, run: Run, pods: Pods, request_of: RunRequest) -> None:
        server = start()
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server.secrets[made.name] = made.secret or {}
        success(server.add(made.pod))
        assert run().error is None
        assert server.created == []

    def test_that_was_evicted_is_not_adopted(self, start: Start, run: Run, pods: Pods, request_of: RunRequest) -> None:
        server = start(success)
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server.add(made.pod).change(phase="Failed", reason="Evicted", message="low on memory")
        assert run().error is None
        assert len(server.created) == 1

    def test_that_does_not_go_is_named_with_what_to_do(
        self, start: Start, run: Run, pods: Pods, request_of: RunRequest
    ) -> None:
        server = start(success)
        server.on_delete = lambda pod: None
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server.add(made.pod).delete(grace_s=1)
        error = run(patience=replace(PATIENT, grace_s=0)).error
        assert isinstance(error, NotStarted)
        assert "cannot be made: the one of this name before is still Terminating after 1 s; see why" in str(error)
        assert f"(kubectl -n loops describe pod {made.name})" in str(error)
        assert server.created == []

    def test_is_not_one_of_its_name_only(self, start: Start, run: Run, pods: Pods, request_of: RunRequest) -> None:
        server = start()
        made = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        made.pod["metadata"]["labels"][names.ATTEMPT] = "another"
        made.pod["metadata"]["labels"][names.TASK_INSTANCE] = "another"
        server.add(made.pod)
        error = run().error
        assert isinstance(error, BadConfiguration)
        assert "is not of this attempt" in str(error)

    def test_of_an_earlier_try_is_ended_and_not_adopted(
        self, start: Start, run: Run, pods: Pods, request_of: RunRequest
    ) -> None:
        server = start(success)
        earlier = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server.add(earlier.pod).run()
        mapped = replace(request_of.call, run=replace(request_of.call.run, map_index=3), attempt="cd" * 10)
        other = make(
            replace(request_of, call=mapped), pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00"
        )
        server.add(other.pod).run()
        call = replace(request_of.call, attempt="ab" * 10, run=replace(request_of.call.run, try_number=2))
        outcome = run(call=call)
        assert outcome.error is None
        assert outcome.manifest is not None
        assert outcome.manifest["attempt"] == "ab" * 10
        assert list(server.pods) == [other.name], "another task's pod is left alone"


class TestStopped:
    """The task is asked to end, in a signal handler as by Airflow: its pod is gone when on_kill() returns."""

    def killed(self, runner_of: PodRunner, server: ApiServer, request: RunRequest, when: Callable[[], bool]) -> Any:
        left: list[dict[str, Any]] = []

        def on_signal(*_: object) -> None:
            runner_of.on_kill()
            left.append(dict(server.pods))

        def kill() -> None:
            until = time.monotonic() + 60
            while not when() and time.monotonic() < until:
                time.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, on_signal)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            return runner_of.run(request), left
        finally:
            killer.join()
            signal.signal(signal.SIGUSR1, before)

    def test_while_it_runs(self, start: Start, pods: Pods, request_of: RunRequest) -> None:
        server = start(lambda pod: pod.run())
        began = time.monotonic()
        outcome, left = self.killed(PodRunner(pods), server, request_of, lambda: _phase(server) == "Running")
        assert isinstance(outcome.error, ProcessLost)
        assert "because its task was stopped" in str(outcome.error)
        assert left == [{}]
        assert time.monotonic() - began < 120
        assert record(request_of)["status"] == "try_again"

    def test_while_it_waits_for_a_node(self, start: Start, pods: Pods, request_of: RunRequest) -> None:
        server = start(lambda pod: pod.condition("PodScheduled", "False", "Unschedulable", "no"))
        outcome, left = self.killed(PodRunner(pods), server, request_of, lambda: bool(server.pods))
        assert isinstance(outcome.error, ProcessLost)
        assert left == [{}]

    def test_while_it_waits_for_a_quota(self, start: Start, pods: Pods, request_of: RunRequest) -> None:
        server = start(success)
        server.refusals = [QUOTA] * 100
        outcome, left = self.killed(PodRunner(pods), server, request_of, lambda: len(server.refusals) < 100)
        assert isinstance(outcome.error, ProcessLost)
        assert left == [{}]
        assert server.created == []

    def test_that_does_not_heed_it(self, start: Start, pods: Pods, request_of: RunRequest) -> None:
        server = start(lambda pod: pod.run())
        server.on_delete = lambda pod: None
        began = time.monotonic()
        runner = PodRunner(replace(pods, patience=NOT_HEEDED))
        outcome, _ = self.killed(runner, server, request_of, lambda: _phase(server) == "Running")
        assert isinstance(outcome.error, ProcessLost)
        assert time.monotonic() - began < 120

    def test_before_it_starts(self, start: Start, pods: Pods, request_of: RunRequest) -> None:
        server = start(success)
        stopped = PodRunner(pods)
        stopped.on_kill()
        with pytest.raises(ProcessLost, match="not started because its task was stopped"):
            stopped.run(request_of)
        assert server.created == []

    def test_by_an_exception_in_its_own_thread(
        self, start: Start, pods: Pods, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Airflow's time-out comes, from a signal handler."""
        server = start(lambda pod: (pod.run(), pod.say("now"))[0])

        class TimeOut(BaseException):
            pass

        def feed(self: Any, chunk: bytes) -> None:
            raise TimeOut

        monkeypatch.setattr("airloop_operators.runners.logs.LogStream.feed", feed)
        with pytest.raises(TimeOut):
            PodRunner(pods).run(request_of)
        assert server.pods == {}
        assert "was ended with its task" in record(request_of)["error"]["message"]


def test_a_step_that_runs_over_its_time(start: Start, run: Run) -> None:
    server = start(lambda pod: pod.run())
    error = run(timeout_s=2.0).error
    assert isinstance(error, TimedOut)
    assert "its time limit of 2 s" in str(error)
    assert server.pods == {}


def test_a_deadline_that_its_task_did_not_ask_for_is_named(start: Start, run: Run) -> None:
    """The cluster ends what nobody else has an end for."""

    def over(pod: ScriptedPod) -> None:
        pod.run()
        pod.change(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node for too long")

    start(over)
    error = run().error
    assert isinstance(error, TimedOut)
    assert "ran over its deadline (Pod was active on the node for too long)" in str(error)
    assert "give its task an execution_timeout, in the place of patience.run_s, 604,800 s in sizes.yaml" in str(error)


def test_no_secret_is_anywhere(
    start: Start, run: Run, request_of: RunRequest, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def tells(pod: ScriptedPod) -> None:
        secret = pod.environment()["TOKEN"]
        assert secret == "open/sesame-4711"
        pod.run()
        pod.say(f"the token is {secret}", "and the catalog's pa55-of-catalog")
        pod.end(1, message=f"with {secret}")

    server = start(tells)
    server.refusals = [(403, "Forbidden", "exceeded quota: open/sesame-4711")]
    outcome = run()
    for hidden in ("sesame", "pa55-of-catalog"):
        assert hidden not in json.dumps(server.created)
        assert hidden not in caplog.text
        assert hidden not in str(outcome.error)
        assert hidden not in json.dumps(record(request_of))
        assert hidden not in repr(outcome)
        asked = zip(server.requests, server.bodies, strict=True)
        assert hidden not in "".join(body for what, body in asked if "secrets" not in what)
    assert "the token is ***" in caplog.text
    (secret,) = server.secrets_created
    owner = secret["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"]) == ("Pod", secret["metadata"]["name"]), "it goes with its pod"


def test_what_pods_get_by_reference_is_masked_where_the_worker_knows_it(
    start: Start, pods: Pods, request_of: RunRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tells(pod: ScriptedPod) -> None:
        pod.run()
        pod.say("connecting with of-the-store-4711")
        pod.end(1)

    caplog.set_level(logging.INFO)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-store-4711")
    start(tells)
    named = {"AWS_SECRET_ACCESS_KEY": SecretKey(secret="s3", key="k")}
    PodRunner(replace(pods, secrets={})).run(request_of)
    assert "of-the-store" in caplog.text
    caplog.clear()
    pod_of = replace(request_of, call=replace(request_of.call, attempt="ef" * 8))
    # The server has no such Secret, and needs none: nothing asks for its value.
    PodRunner(replace(pods, secrets=named)).run(pod_of)
    assert "connecting with ***" in caplog.text
    assert "of-the-store" not in caplog.text


def test_dollars_reach_the_payload_as_they_are(start: Start, run: Run, request_of: RunRequest) -> None:
    """A node puts other variables in the place of $(NAME), and takes $$ for $."""
    told: list[dict[str, str]] = []

    def looks(pod: ScriptedPod) -> None:
        told.append(pod.environment())
        success(pod)

    start(looks)
    arguments = {"sql": "SELECT $$it's$$, $1, '$(HOME)', '$$(HOME)'"}
    environment = {**request_of.environment, "PLAIN": "a$$b$(USER)"}
    assert run(call=replace(request_of.call, arguments=arguments), environment=environment).error is None
    assert json.loads(told[0]["AIRLOOP_CALL"])["arguments"] == arguments
    assert told[0]["PLAIN"] == "a$$b$(USER)"


def test_what_earlier_tries_left_is_ended_while_a_task_waits_for_its_turn(
    start: Start, pods: Pods, request_of: RunRequest
) -> None:
    server = start()
    first = replace(request_of.call, attempt="aa" * 8)
    second = replace(request_of.call, attempt="bb" * 8, run=replace(request_of.call.run, try_number=2))
    for call in (first, second):
        made = make(replace(request_of, call=call), pods, namespace="loops", spawned_at="2013-01-01T00:00:00+00:00")
        server.add(made.pod, lambda pod: pod.run())
    PodRunner(pods).end_earlier([second])
    assert list(server.pods) == [names.pod_name(second)], "its own stays, for it may be adopted"


@pytest.mark.parametrize("asks", ["under_way", "end_earlier"])
def test_who_may_not_list_pods_is_told(
    start: Start, pods: Pods, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    monkeypatch.setattr(start(), "other", answers("GET", "/pods?", 403, "Forbidden", "cannot list resource pods"))
    with pytest.raises(BadConfiguration, match=r"looking for the pods of a task.*cannot list resource pods"):
        getattr(PodRunner(pods), asks)([request_of.call])


def test_a_pod_that_may_not_be_ended_is_told(
    start: Start, pods: Pods, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def waits(pod: ScriptedPod) -> None:
        pod.run()
        ended.wait(120)
        pod.succeed()

    ended = threading.Event()
    server = start(waits)
    runner = PodRunner(replace(pods, patience=replace(pods.patience, grace_s=1)))
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(runner.run, request_of)
        while "GET pods" not in server.requests:
            time.sleep(0.02)
        # All of them: the runner's own thread may ask for the pod's end before the task's does.
        monkeypatch.setattr(server, "other", answers("DELETE", "/pods/", 403, "Forbidden", "no right to"))
        runner.on_kill()
        assert "could not be asked to end" in caplog.text
        assert "no right to" in caplog.text
        ended.set()
        outcome.result(60)


def test_an_operator_starts_what_was_lost_again_and_renders_no_secret(
    start: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def evicted(pod: ScriptedPod) -> None:
        pod.run()
        pod.change(phase="Failed", reason="Evicted", message="low on memory")

    def tells(pod: ScriptedPod) -> None:
        pod.run()
        pod.say(f"the token is {pod.environment()['TOKEN']}")
        pod.succeed()

    server = start(evicted, tells)
    sizes = tmp_path / "sizes.yaml"
    document = {
        "namespace": "loops",
        "images": {"cpu": "airloop:1"},
        "volumes": [{"claim": "state", "path": str(state)}],
        "sizes": {"small": {}, "large": {"cpu": 4, "memory": "16Gi"}},
    }
    sizes.write_text(json.dumps(document))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(sizes))
    monkeypatch.setenv("AIRLOOP_HOME", str(state))
    monkeypatch.setenv("AIRFLOW_CONN_VAULT", json.dumps({"conn_type": "generic", "password": "open/sesame-4711"}))
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setattr(turn, "_previous", lambda *_: None)
    caplog.set_level(logging.INFO)
    with DAG("loop", schedule=None):
        operator = StepOperator(
            task_id="t", step="one", runner="pod", size="large", infrastructure_retries=1,
            infrastructure_retry_delay=0, secrets={"TOKEN": "vault.password"},
        )  # fmt: skip
    links: dict[str, str] = {}
    ti = SimpleNamespace(
        id="an-id", dag_id="loop", run_id="r2", task_id="t", map_index=-1, try_number=1,
        xcom_push=lambda key, value: links.update({key: value}),
    )  # fmt: skip
    context: Any = {"ti": ti, "dag_run": a_run(2)}
    result = operator.execute(context)
    assert result["status"] == "done"
    assert links == {"_link_PodLink": "/plugin/airloop/airloop/pods?dag_id=loop&run_id=r2&task_id=t&map_index=-1"}, (
        "there while it runs"
    )
    by_attempt = usage.of_task(open_objects(Settings.read().artifacts), RunInfo("loop", "r2", "t"))
    assert [one["error"] for one in by_attempt] == ["PodLost", ""]
    assert len({pod["metadata"]["name"] for pod in server.created}) == 2, "each attempt has a pod of its own"
    assert server.created[0]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    assert "sesame" not in repr(rendered) + json.dumps(result) + caplog.text + json.dumps(server.created)


class TestWhatItTook:
    """The runner's side of an attempt, in the store, from the first asking for a pod on."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airloop_operators.runners.usage.EVERY_S", 0.05)

    @staticmethod
    def told(request: RunRequest) -> dict[str, Any]:
        return usage.read(request.objects, request.call.run, request.call.attempt) or {}

    def test_of_a_done_step(
        self, start: Start, run: Run, request_of: RunRequest, caplog: pytest.LogCaptureFixture
    ) -> None:
        def script(pod: ScriptedPod) -> None:
            pod.event("Scheduled", "Successfully assigned loops/train to node-1")
            pod.run()
            pod.event("Pulled", "Container image is already present")
            time.sleep(1.2)
            pod.succeed()

        start(script)
        outcome = run(size="gpu")
        found = self.told(request_of)
        assert (found["status"], found["error"], found["runner"]) == ("done", "", "pod")
        assert found["reserved"] == {"cpu": 8.0, "memory": 32.0 * 2**30, "example.com/gpu": 2.0}
        used = found["resources"]
        assert (used["pool"], used["size"], used["pods"], used["lost_s"]) == ("gpu", "gpu", 1, 0)
        assert 1 <= used["pod_s"] <= 60
        assert outcome.resources["pod_s"] == used["pod_s"]
        (pod,) = found["pods"]
        assert (pod["namespace"], pod["node"], pod["image_id"]) == ("loops", "node-1", "airloop@sha256:0123")
        assert (pod["phase"], pod["exit_code"], pod["over"]) == ("Succeeded", 0, True)
        assert {"Scheduled", "Pulled"} == {event["reason"] for event in pod["events"]}
        spent = usage.spent(found)
        assert spent.amounts is not None
        assert spent.amounts["example.com/gpu"] == 2 * (spent.seconds or 0)
        for text in ("has node node-1", "has image airloop@sha256:0123", "Pulled: Container image is already"):
            assert caplog.text.count(text) == 1

    def test_while_it_waits_it_says_why(
        self, start: Start, run: Run, request_of: RunRequest, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[dict[str, Any]] = []

        def said() -> bool:
            """With the scheduler's words, which come after those for a pod that none has looked at."""
            newest = seen[-1]["pods"][-1] if seen else {}
            return "events" in newest and "nodes" in newest.get("waits", [{"reason": ""}])[-1]["reason"]

        def script(pod: ScriptedPod) -> None:
            # Events are looked for when the pod has changed.
            pod.event("FailedScheduling", "0/3 nodes are available: open/sesame-4711")
            pod.condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available: open/sesame-4711")
            until = time.monotonic() + 50
            while time.monotonic() < until and not said():
                found = self.told(request_of)
                seen.extend([found] if found.get("pods") else [])
                time.sleep(0.05)
            pod.run()
            pod.succeed()

        start(script)
        assert run().error is None
        waiting = seen[-1]
        assert (waiting["status"], waiting["finished_at"]) == ("open", None)
        (pod,) = waiting["pods"]
        assert pod["phase"] == "Pending"
        assert pod["waits"][-1] | {"at": ""} == {"at": "", "for": "node", "reason": "0/3 nodes are available: ***"}
        assert pod["events"][0]["message"] == "0/3 nodes are available: ***"
        assert "waits for node: 0/3 nodes are available: ***" in caplog.text

    def test_of_one_that_was_lost_and_made_again(self, start: Start, run: Run, request_of: RunRequest) -> None:
        def preempted(pod: ScriptedPod) -> None:
            pod.schedule()
            time.sleep(1.1)
            pod.condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting")
            pod.delete(grace_s=1)

        start(preempted, success)
        assert run().error is None
        found = self.told(request_of)
        assert found["resources"]["pods"] == len(found["pods"]) == 2
        assert 1 <= found["resources"]["lost_s"] <= found["resources"]["pod_s"]
        assert usage.spent(found).wasted_s == Decimal(str(found["resources"]["lost_s"]))

    def test_of_one_that_failed(self, start: Start, run: Run, request_of: RunRequest) -> None:
        start(ends(137, "OOMKilled"))
        run()
        found = self.told(request_of)
        assert (found["status"], found["error"]) == ("try_again", "OutOfMemory")
        assert (found["pods"][0]["reason"], found["pods"][0]["exit_code"]) == ("OOMKilled", 137)
        spent = usage.spent(found)
        assert spent.wasted_s == spent.seconds is not None

    def test_of_one_that_a_quota_kept_out(
        self, start: Start, run: Run, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch, later: threading.Event
    ) -> None:
        def refused(pod: dict[str, Any]) -> tuple[int, str, str]:
            asked.append(pod)
            if len(asked) == 3:
                later.set()
            return QUOTA

        asked: list[dict[str, Any]] = []
        monkeypatch.setattr(keeper, "QUOTA_S", 0.5)
        monkeypatch.setattr(start(success), "admit", refused)
        run()
        found = self.told(request_of)
        assert (found["error"], found["resources"]["pods"]) == ("NotStarted", 0)
        assert found["resources"]["queue_s"] >= 0.9, "twice half a second"
        assert "exceeded quota" in found["pods"][0]["waits"][0]["reason"]
        assert usage.spent(found).seconds == 0

    def test_of_one_that_was_broken_off(
        self, start: Start, pods: Pods, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start(lambda pod: (pod.run(), pod.say("now"))[0])

        def feed(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("airloop_operators.runners.logs.LogStream.feed", feed)
        with pytest.raises(KeyboardInterrupt):
            PodRunner(pods).run(request_of)
        found = self.told(request_of)
        assert (found["status"], found["error"]) == ("try_again", "KeyboardInterrupt")
        assert found["pods"][0]["over"] is True

    def test_of_an_earlier_try_whose_runner_was_lost(
        self, start: Start, run: Run, pods: Pods, request_of: RunRequest
    ) -> None:
        server = start(success)
        earlier = make(request_of, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")
        server.add(earlier.pod).run()
        open_record = usage.document(
            attempt=request_of.call.attempt, step="train", run=request_of.call.run, runner="pod",
            started_at="2013-01-01T00:00:00.000+00:00", resources={"pool": "gpu"}, reserved=earlier.reserved,
        )  # fmt: skip
        usage.publish(request_of.objects, open_record)
        call = replace(request_of.call, attempt="ab" * 10, run=replace(request_of.call.run, try_number=2))
        assert run(call=call).error is None
        found = self.told(request_of)
        assert (found["status"], found["error"], found["run"]["try_number"]) == ("try_again", "ProcessLost", 1)
        assert found["resources"]["pods"] == 1
        assert found["resources"]["pool"] == "gpu"
        both = usage.of_task(request_of.objects, call.run)
        assert sorted(one["status"] for one in both) == ["done", "try_again"]

    def test_a_store_that_cannot_be_written_fails_nothing(
        self, start: Start, run: Run, pods: Pods, request_of: RunRequest, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        def away(*_: Any, **__: Any) -> None:
            raise Unreachable("the store is away")

        monkeypatch.setattr(usage, "publish", away)
        monkeypatch.setattr(usage, "end", away)
        server = start(success)
        earlier = replace(request_of, call=replace(request_of.call, attempt="ab" * 10))
        server.add(make(earlier, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00").pod).run()
        assert run().error is None
        assert "takes cannot be recorded: the store is away" in caplog.text
        assert "of an earlier try took cannot be recorded: the store is away" in caplog.text

    def test_no_secret_is_in_it(self, start: Start, run: Run, request_of: RunRequest) -> None:
        def tells(pod: ScriptedPod) -> None:
            pod.event("Failed", "with open/sesame-4711")
            pod.state("Pending", {"waiting": {"reason": "Odd", "message": "open/sesame-4711"}})
            pod.run()
            pod.change(phase="Failed", reason="Evicted", message="pa55-of-catalog")

        start(tells)
        run()
        text = json.dumps(self.told(request_of))
        assert "sesame" not in text
        assert "pa55" not in text


def test_a_kubeconfig_of_the_environment_changes_nothing(
    start: Start, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both, the provider's own operator takes a failed trigger for a success."""
    server = start(ends(3))
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "another")))
    assert isinstance(run().error, AirloopError)


def test_a_token_that_runs_out_is_waited_for(start: Start, run: Run) -> None:
    server = start(success)
    server.refusals = [(401, "Unauthorized", "Unauthorized")]
    assert run().error is None


def test_a_watch_that_is_refused_is_made_up_for(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(pod: ScriptedPod) -> None:
        pod.run()
        time.sleep(2)
        pod.succeed()

    server = start(slow)
    monkeypatch.setattr("airloop_operators.runners.pod.cluster.Cluster.changes", lambda *_: iter(()))
    began = time.monotonic()
    assert run().error is None
    # One for earlier tries' pods, then one each second.
    assert server.requests.count("GET pods") <= 3 + (time.monotonic() - began)


def test_a_pod_that_does_not_change_for_long_is_not_asked_for_all_the_time(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own version is soon too old to watch from."""

    def slow(pod: ScriptedPod) -> None:
        pod.run()
        server.forget()
        time.sleep(4)
        pod.succeed()

    server = start(slow)
    monkeypatch.setattr("airloop_operators.runners.pod.watcher.LOOK_S", 1.0)
    assert run().error is None
    assert len(server.too_old) <= 1


def test_two_runs_of_one_task_at_once(start: Start, pods: Pods, request_of: RunRequest) -> None:
    def slow(pod: ScriptedPod) -> None:
        pod.run()
        time.sleep(1)
        pod.succeed()

    server = start(slow)
    outcomes: dict[str, RunOutcome] = {}

    def one(attempt: str, run_id: str) -> None:
        call = replace(request_of.call, attempt=attempt, run=replace(request_of.call.run, run_id=run_id))
        outcomes[attempt] = PodRunner(pods).run(replace(request_of, call=call))

    threads = [threading.Thread(target=one, args=(a * 20, f"run-{a}")) for a in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a: o.manifest and o.manifest["attempt"] for a, o in outcomes.items()} == {a * 20: a * 20 for a in "ab"}
    assert len(server.created) == 2


def test_the_runner_is_found_by_its_name(tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("images: {cpu: 'airloop:1'}")
    settings = Settings(
        runner="pod", environment={}, artifacts=tmp_path, mlflow_ui="", memory_mb=0, warm=False, preload=None,
        sizes=sizes,
    )  # fmt: skip
    assert isinstance(get_runner("pod", settings), PodRunner)


@pytest.mark.parametrize("size", ["small", "gpu"])
def test_the_client_knows_every_field(pods: Pods, request_of: RunRequest, size: str) -> None:
    from kubernetes.client import ApiClient

    made = make(
        replace(request_of, size=size, timeout_s=9.0, cwd=Path("/srv")), pods, namespace="loops", spawned_at="now"
    )
    client = ApiClient()
    for kind, wanted in (("V1Pod", made.pod), ("V1Secret", made.secret)):
        answer = SimpleNamespace(data=json.dumps(wanted))
        understood = client.sanitize_for_serialization(client.deserialize(answer, kind))
        assert understood == wanted


def test_it_is_found_without_what_it_does_not_need() -> None:
    code = (
        "import sys; import airloop_operators.runners.pod.runner; "
        "sys.exit(', '.join({'kubernetes', 'airflow', 'yaml', 'urllib3'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_receipt_fits_into_a_termination_message(start: Start, run: Run) -> None:
    sizes: list[int] = []

    def script(pod: ScriptedPod) -> None:
        pod.run()
        receipt = pod.publish()
        sizes.append(len(receipt.encode()))
        pod.end(0, message=receipt)

    start(script)
    run()
    assert sizes[0] <= RECEIPT_LIMIT


def assert_gone(server: ApiServer) -> None:
    until = time.monotonic() + 60
    while server.pods and time.monotonic() < until:
        time.sleep(0.02)
    assert server.pods == {}


def _with_record(pod: ScriptedPod) -> str:
    """Publish a manifest and the attempt's record; returns the receipt."""
    text = pod.publish()
    receipt = json.loads(text)
    fields = {name: receipt[name] for name in ("attempt", "status", "key", "manifest", "digest")}
    path = Path(pod.environment()["AIRLOOP_ARTIFACTS"]) / attempt_record_path(receipt["attempt"])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": 1, **fields, "started_at": "2013-01-01T00:00:00+00:00"}))
    return text


def _phase(server: ApiServer) -> str:
    return next((str(pod["status"]["phase"]) for pod in list(server.pods.values())), "")
