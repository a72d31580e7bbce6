"""A real Airflow whose task process or scheduler is killed, or whose tasks a person clears: each row is there once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from airloop.config import Config
from airloop.warehouse.catalog import Warehouse

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS.parent / "scripts"))
from stack import Stack  # noqa: E402

DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airloop_operators import StepOperator

with DAG("struck", schedule=None):
    strike = "{{ dag_run.conf.get('fault', '') if ti.try_number == 1 else '' }}"
    StepOperator(
        task_id="write",
        step="steps_for_tests:write_rows",
        arguments={"table": "raw.{{ dag_run.conf['table'] }}", "rows": 3},
        environment={
            "PYTHONPATH": "TESTS",
            "AIRLOOP_FAULT": strike,
            "AIRLOOP_FAULT_SLOW_S": "12",
            "AIRLOOP_FAULT_TRACE": "HOME/{{ dag_run.conf['table'] }}.{{ ti.try_number }}.trace",
        },
        retries=2,
        retry_delay=timedelta(0),
    ) >> StepOperator(task_id="after", step="steps_for_tests:count", environment={"PYTHONPATH": "TESTS"})
"""
PATIENCE_S = 240
"""Seconds until a run has to be over; the machine may be busy."""


class SmallStack(Stack):
    """Airflow alone, with a DAG folder of its own, that finds out soon that a scheduler is gone."""

    __slots__ = ()

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__AIRLOOP__WARM": "False",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
        }


@dataclass
class Airflow:
    """The stack, by its REST API, and the state that its tasks write."""

    stack: SmallStack
    token: str = ""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.stack.airflow_url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def log_in(self) -> None:
        user, password = self.stack.login()
        self.token = self.ask("POST", "/auth/token", {"username": user, "password": password})["access_token"]

    def start(self, table: str, fault: str = "") -> str:
        body = {"dag_run_id": table, "logical_date": None, "conf": {"table": table, "fault": fault}}
        return str(self.ask("POST", "/api/v2/dags/struck/dagRuns", body)["dag_run_id"])

    def run_state(self, run: str) -> str:
        return str(self.ask("GET", f"/api/v2/dags/struck/dagRuns/{run}")["state"])

    def tries(self, run: str) -> dict[str, int]:
        found = self.ask("GET", f"/api/v2/dags/struck/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: task["try_number"] for task in found}

    def finish(self, run: str) -> None:
        wait_for(lambda: self.run_state(run) in ("success", "failed"))
        assert self.run_state(run) == "success", self.tries(run)

    def payload_at(self, table: str, point: str) -> psutil.Process:
        """The payload of the first try, once it has reached a point."""
        trace = self.stack.home / f"{table}.1.trace"
        wait_for(lambda: trace.exists() and point in trace.read_text().splitlines())
        return next(p for p in self.stack.members() if p.cmdline()[-2:] == ["run", "steps_for_tests:write_rows"])

    def table(self, name: str) -> tuple[int, int]:
        """Rows and snapshots of a table."""
        warehouse = Warehouse.open(Config.from_environment({"AIRLOOP_HOME": str(self.stack.home)}))
        history = warehouse.history(f"raw.{name}")
        return history[-1].rows_total, len(history)

    def statuses(self, run: str) -> dict[str, str]:
        """How the newest attempt of each task ended."""
        folder = self.stack.home / "artifacts" / "runs" / "struck" / run
        return {path.stem: json.loads(path.read_text())["status"] for path in folder.iterdir()}


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def gone(*processes: psutil.Process) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "struck.py").write_text(DAG.replace("TESTS", str(TESTS)).replace("HOME", str(home)))
    stack = SmallStack(home)
    try:
        stack.up(everything=False)
        found = Airflow(stack)
        found.log_in()

        def unpaused() -> bool:
            with contextlib.suppress(urllib.error.HTTPError):
                found.ask("PATCH", "/api/v2/dags/struck", {"is_paused": False})
                return True
            return False

        wait_for(unpaused)
        yield found
    finally:
        stack.down()


@pytest.mark.timeout(400)
def test_a_killed_task_process_takes_its_payload_with_it_and_is_retried(airflow: Airflow) -> None:
    run = airflow.start("task", "hang@commit:before")
    payload = airflow.payload_at("task", "commit:before:1")
    minder = payload.parent()
    assert minder is not None
    task = minder.parent()
    assert task is not None
    task.kill()
    wait_for(lambda: gone(payload, minder, task))
    airflow.finish(run)
    assert airflow.tries(run) == {"write": 2, "after": 1}
    assert airflow.table("task") == (3, 1)


@pytest.mark.timeout(400)
def test_a_killed_scheduler_is_started_again_and_goes_on(airflow: Airflow) -> None:
    run = airflow.start("scheduler", "slow@commit:before")
    airflow.payload_at("scheduler", "commit:before:1")
    scheduler = next(s for s in airflow.stack.services if s.name == "scheduler")
    psutil.Process(scheduler.pid).kill()
    wait_for(lambda: not airflow.stack.running("scheduler"))
    airflow.stack.up(everything=False)
    airflow.finish(run)
    assert airflow.table("scheduler") == (3, 1)
    assert airflow.statuses(run)["after"] in ("done", "reused")


@pytest.mark.timeout(400)
def test_a_person_clears_what_is_done_and_nothing_is_doubled(airflow: Airflow) -> None:
    run = airflow.start("cleared", "kill@commit:after")
    airflow.finish(run)
    # The step was killed after its commit; it was started again and found it.
    assert airflow.table("cleared") == (3, 1)
    assert airflow.statuses(run)["write"] == "done"
    airflow.ask(
        "POST",
        "/api/v2/dags/struck/clearTaskInstances",
        {"dry_run": False, "only_failed": False, "dag_run_id": run, "task_ids": ["write", "after"]},
    )
    wait_for(lambda: airflow.run_state(run) != "success")
    airflow.finish(run)
    assert airflow.statuses(run) == {"write": "reused", "after": "reused"}
    assert airflow.table("cleared") == (3, 1)
