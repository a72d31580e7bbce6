"""Deferred steps in Airflow's own scheduler and triggerer, against the API server double."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo import Airflow
from stack import Stack
from tests.api_server import ApiServer, ScriptedPod

LOOP = """
from airflow.sdk import DAG
from airloop_operators import StepOperator

with DAG("deferred", schedule=None, catchup=False):
    StepOperator(task_id="t", step="one", runner="pod", deferrable=True, order="none")
"""
TASK = "/api/v2/dags/deferred/dagRuns/r/taskInstances/t"


class PodStack(Stack):
    """With settings of its own, and a triggerer."""

    more: dict[str, str]

    def environment(self) -> dict[str, str]:
        return super().environment() | self.more

    def triggerer(self) -> None:
        self._start("triggerer", [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"])


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as found:
        yield found


@pytest.fixture
def stack(server: ApiServer, tmp_path: Path) -> Iterator[PodStack]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "deferred.py").write_text(LOOP)
    found = PodStack(tmp_path / "home", dags=dags)
    document = {
        "namespace": "loops",
        "images": {"cpu": "airloop:1"},
        "volumes": [{"claim": "state", "path": str(found.home)}],
    }
    (tmp_path / "sizes.yaml").write_text(json.dumps(document))
    extra = {"kube_config_path": str(server.kubeconfig(tmp_path / "kubeconfig"))}
    found.more = {
        "AIRFLOW__AIRLOOP__SIZES": str(tmp_path / "sizes.yaml"),
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": extra}),
    }
    try:
        found.up(everything=False)
        found.triggerer()
        yield found
    finally:
        found.down()


def until(what: Callable[[], Any], within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(600)
def test_restarted_marked_cleared_and_done(server: ApiServer, stack: PodStack) -> None:
    go = threading.Event()

    def slow(pod: ScriptedPod) -> None:
        pod.run()
        pod.say("begins")
        go.wait(120)
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
    stack.triggerer()
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
