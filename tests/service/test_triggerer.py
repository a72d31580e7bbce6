"""Deferred steps in Airflow's own scheduler and triggerer, against the API server double."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from airloop_operators.runners.pod import ending, names
from demo import Airflow
from stack import Stack
from tests.api_server import ApiServer, ScriptedPod

LOOP = """
from airflow.sdk import DAG
from airloop_operators import StepOperator

def deferred(task, **more):
    StepOperator(task_id=task, step="one", runner="pod", deferrable=True, order="none", **more)

with DAG("deferred", schedule=None, catchup=False):
    deferred("t")

with DAG("counted", schedule=None, catchup=False):
    # What weighs more is looked at first, also when it is woken up.
    deferred("one", size="one", priority_weight=2)
    deferred("another", size="one", priority_weight=2)
    deferred("both", size="both")
"""
TASK = "/api/v2/dags/deferred/dagRuns/r/taskInstances/t"
SIZES = {
    "namespace": "loops",
    "images": {"cpu": "airloop:1", "cuda": "airloop:1-cuda"},
    "budgets": {"gpus": 2},
    "pools": {"gpu": {"accelerator": "nvidia", "budget": "gpus"}},
    "sizes": {
        "small": {"cpu": 1, "memory": "1Gi"},
        "one": {"pool": "gpu", "accelerators": 1},
        "both": {"pool": "gpu", "accelerators": 2},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as found:
        yield found


@pytest.fixture(scope="module")
def stack(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("triggerer")
    dags, home, sizes = folder / "dags", folder / "home", folder / "sizes.yaml"
    dags.mkdir()
    (dags / "deferred.py").write_text(LOOP)
    sizes.write_text(json.dumps({**SIZES, "volumes": [{"claim": "state", "path": str(home)}]}))
    extra = {"kube_config_path": str(server.kubeconfig(folder / "kubeconfig"))}
    settings = {
        "AIRFLOW__AIRLOOP__SIZES": str(sizes),
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": extra}),
    }
    found = Stack(home, dags=dags, settings=settings)
    try:
        found.up(everything=False)
        found.start("triggerer")
        yield found
    finally:
        found.down()


def until(what: Callable[[], Any], within_s: float = 300) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(1800)
def test_restarted_marked_cleared_and_done(server: ApiServer, stack: Stack) -> None:
    go = threading.Event()

    def slow(pod: ScriptedPod) -> None:
        pod.run()
        pod.say("begins")
        go.wait(1500)
        pod.say("ends")
        pod.succeed()

    server.scripts = [slow]
    airflow = Airflow(stack)
    airflow.wait_for_dag("deferred")

    def state() -> str | None:
        found: str | None = airflow.call("GET", TASK)["state"]
        return found

    airflow.call("PATCH", "/api/v2/dags/deferred", {"is_paused": False})
    airflow.call("POST", "/api/v2/dags/deferred/dagRuns", {"dag_run_id": "r", "logical_date": None})
    until(lambda: state() == "deferred" and server.watches)
    (first,) = server.pods

    # A triggerer that is restarted leaves its pods alone, and goes on.
    asked = len(server.watches)
    (service,) = (s for s in stack.services if s.name == "triggerer")
    psutil.Process(service.pid).terminate()
    until(lambda: not service.alive())
    stack.start("triggerer")
    until(lambda: len(server.watches) > asked)
    assert list(server.pods) == [first]

    # Marked as failed: its pod is gone.
    airflow.call("PATCH", TASK, {"new_state": "failed"})
    until(lambda: not server.pods)
    assert state() == "failed"

    # Cleared: another try with a pod of its own, which is done; its log has each line once.
    airflow.call(
        "POST", "/api/v2/dags/deferred/clearTaskInstances",
        {"dag_run_id": "r", "task_ids": ["t"], "dry_run": False, "only_failed": False, "reset_dag_runs": True},
    )  # fmt: skip
    until(lambda: state() == "deferred" and server.pods)
    (second,) = server.pods
    assert second != first
    go.set()
    until(lambda: state() == "success")
    assert server.pods == {}
    assert len(server.created) == 2
    number = airflow.call("GET", TASK)["try_number"]
    log = json.dumps(airflow.call("GET", f"{TASK}/logs/{number}"))
    assert (log.count('"begins"'), log.count('"ends"')) == (1, 1)


@pytest.mark.timeout(1800)
def test_accelerators_of_deferred_tasks_are_counted(server: ApiServer, stack: Stack) -> None:
    go: dict[str, threading.Event] = defaultdict(threading.Event)

    def slow(pod: ScriptedPod) -> None:
        pod.run()
        go[pod.object["metadata"]["labels"][f"{names.PREFIX}task"]].wait(1500)
        pod.succeed()

    server.scripts = [slow]
    began = len(server.history)
    airflow = Airflow(stack)
    airflow.wait_for_dag("counted")
    # As `python -m airloop_operators.budget --apply` makes it.
    airflow.call("POST", "/api/v2/pools", {"name": "gpus", "slots": 2, "include_deferred": True})

    def states() -> dict[str, str | None]:
        return {task["task_id"]: task["state"] for task in airflow.tasks("counted", "r")}

    airflow.call("PATCH", "/api/v2/dags/counted", {"is_paused": False})
    airflow.call("POST", "/api/v2/dags/counted/dagRuns", {"dag_run_id": "r", "logical_date": None})
    until(lambda: states() == {"one": "deferred", "another": "deferred", "both": "scheduled"})

    # Before it started this one again the scheduler has looked at all that wait, and one slot is too few for the other.
    go["one"].set()
    until(lambda: states()["one"] == "success")
    assert states() == {"one": "success", "another": "deferred", "both": "scheduled"}

    go["another"].set()
    until(lambda: states() == {"one": "success", "another": "success", "both": "deferred"})
    assert most_at_once(server, began) == 2


def most_at_once(server: ApiServer, since: int) -> int:
    """How many accelerators pods have had at once. :param since: where in the server's history to begin."""
    have: dict[str, int] = {}
    most = 0
    for _, kind, pod, _ in server.history[since:]:
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        over = kind == "DELETED" or ending.is_over(pod)
        have[pod["metadata"]["uid"]] = 0 if over else int(limits.get("nvidia.com/gpu", 0))
        most = max(most, sum(have.values()))
    return most
