"""Workers and tasks that go while a pod runs, and pods that must not be mixed up."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airloop import usage
from airloop.contract import RunInfo
from airloop.errors import ProcessLost
from airloop_operators import sweep
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod.orphans import Known
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import make
from tests.cluster.world import ALIKE, World, started

WORKER = """
import pickle, sys
from pathlib import Path
from airloop_operators.runners.pod.runner import PodRunner
request, pods = pickle.loads(Path(sys.argv[1]).read_bytes())
PodRunner(pods).run(request)
"""


def _killed_worker(world: World, request: RunRequest, pods: Pods, folder: Path) -> str:
    """A worker in a process of its own that is ended by SIGKILL while its pod runs; the pod's uid."""
    from airloop_operators.runners.pod.names import pod_name

    given = folder / "request.pickle"
    given.write_bytes(pickle.dumps((request, pods)))
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(given)])
    try:

        def runs() -> str:
            assert worker.poll() is None, "the worker has ended before"
            pod = world.pod(pod_name(request.call))
            return str(pod["metadata"]["uid"]) if pod is not None and started(pod) else ""

        found: str = world.until(runs, "its pod runs", world.pace.within + 60)
        return found
    finally:
        worker.kill()
        worker.wait()


@ALIKE
def test_the_same_attempt_adopts_its_pod(world: World, tmp_path: Path) -> None:
    request, pods = world.request("wait", seconds=30 if world.real else 4), world.pods()
    uid = _killed_worker(world, request, pods, tmp_path)
    with world.underway(request, pods) as attempt:
        outcome = attempt.outcome()
    assert outcome.error is None, outcome.error
    assert outcome.resources["pods"] == 0, f"the very pod of before, {uid}"
    assert any("this attempt made it before" in line for line in world.heard)
    assert outcome.manifest is not None
    assert outcome.manifest["attempt"] == request.call.attempt


def test_another_try_ends_the_pod_of_the_one_before(world: World) -> None:
    pods = world.pods()
    run = RunInfo("cluster_tests", f"run-{time.time_ns()}", "wait", -1, 1)
    first = world.request("wait", run=run, seconds=300)
    # As the worker of the first try has left it.
    made = make(first, pods, namespace=world.namespace, spawned_at="2013-01-01T00:00:00.000+00:00")
    world.core.create_namespaced_pod(world.namespace, made.pod, _preload_content=False)
    world.until(lambda: started(world.pod(made.name) or {"status": {}}), "the pod of the first try runs")
    second = world.request("count", run=replace(run, try_number=2), rows=2)
    outcome = world.run(second, pods)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    assert outcome.manifest["attempt"] == second.call.attempt
    assert any("of an earlier try" in line for line in world.heard)
    world.until(lambda: not world.left(), "the pod of the first try is gone")


def test_a_pod_that_nobody_follows(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of its task's last try was killed."""
    pods = world.pods(patience=replace(world.pace.patience, run_s=15 if world.real else 2))
    request = world.request("wait", seconds=300)
    made = make(request, pods, namespace=world.namespace, spawned_at="2013-01-01T00:00:00.000+00:00")
    # What its worker had told until then.
    run, began = request.call.run, datetime.now(UTC).isoformat(timespec="milliseconds")
    told = usage.document(
        attempt=request.call.attempt, step=request.call.step, run=run, runner="pod", started_at=began,
        resources={"size": made.place.size_name}, reserved=made.reserved,
    )  # fmt: skip
    usage.publish(request.objects, told)
    world.core.create_namespaced_pod(world.namespace, made.pod, _preload_content=False)

    def over() -> dict[str, Any] | None:
        pod = world.pod(made.name)
        return pod if pod is not None and pod["status"]["phase"] == "Failed" else None

    assert world.until(over, "it is ended at its deadline")["status"]["reason"] == "DeadlineExceeded"
    task = (run.dag_id, run.run_id, run.task_id, -1)
    document = {"namespace": world.namespace, "instance": world.instance, "images": {"cpu": world.image}}
    (tmp_path / "sizes.yaml").write_text(json.dumps(document))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.yaml"))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__ARTIFACTS", str(request.artifacts))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setattr(sweep, "known_tasks", lambda _: {task: Known("failed", run.try_number)})
    assert sweep.main(["--apply"]) == 0
    assert made.name in world.left(), "its log is kept for a while"
    assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
    world.until(lambda: not world.left(), "it is gone")
    found = usage.read(request.objects, run, request.call.attempt)
    assert found is not None
    assert (found["status"], found["error"], found["resources"]["pods"]) == ("try_again", "TimedOut", 1)
    spent = usage.spent(found)
    assert spent.seconds is not None
    # Until its deadline, and not until it was removed.
    assert 0 < spent.seconds == spent.wasted_s


def test_a_task_that_is_stopped_leaves_no_pod(world: World) -> None:
    with world.underway(world.request("wait", seconds=300)) as attempt:
        attempt.says("waiting")
        attempt.stop()
        pod = world.pod(attempt.name)
        outcome = attempt.outcome()
    assert pod is None or "deletionTimestamp" in pod["metadata"], "it is gone when the task may end"
    assert type(outcome.error) is ProcessLost, outcome.error
    assert "because its task was stopped" in str(outcome.error)
    world.until(lambda: not world.left(), "its pod is gone")


@ALIKE
def test_names_of_over_63_characters(world: World) -> None:
    tasks = ("a_task_group." * 12 + "one", "a_task_group." * 12 + "two")
    found = []
    for task in tasks:
        run = RunInfo("d" * 150, "scheduled__2013-01-01T05:00:00+00:00", task)
        with world.underway(world.request("count", run=run)) as attempt:
            found.append(attempt.pod(lambda pod: True, "is there")["metadata"])
            outcome = attempt.outcome()
        assert outcome.error is None, outcome.error
    assert len({about["name"] for about in found}) == 2
    assert len({about["labels"]["airloop/task"] for about in found}) == 2
    assert [about["annotations"]["airloop/task-id"] for about in found] == list(tasks)
    assert all(len(value) <= 63 for about in found for value in [about["name"], *about["labels"].values()])


@pytest.mark.parametrize("mapped", [False, pytest.param(True, marks=ALIKE)], ids=["two runs", "two mapped tasks"])
def test_two_of_one_task_at_once(world: World, mapped: bool) -> None:
    runs = [RunInfo("cluster_tests", "run" if mapped else f"run-{n}", "wait", n if mapped else -1, 1) for n in range(2)]
    requests = [world.request("wait", run=run, seconds=5 if world.real else 1) for run in runs]
    outcomes = {}

    def one(request: RunRequest) -> None:
        outcomes[request.call.attempt] = PodRunner(world.pods()).run(request)

    threads = [threading.Thread(target=one, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(world.pace.within + 60)
    made = {attempt: outcome.manifest and outcome.manifest["attempt"] for attempt, outcome in outcomes.items()}
    assert made == {request.call.attempt: request.call.attempt for request in requests}
    assert all(outcome.resources["pods"] == 1 for outcome in outcomes.values())
