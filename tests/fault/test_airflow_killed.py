"""
A real Airflow whose task process or scheduler is killed, or whose tasks a person clears: each row is there once.

It happens while the payload is at points drawn from those that an undisturbed one reaches; ``AIRLOOP_TEST_FAULT_SEED``
repeats a draw.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from airloop.config import Config
from airloop.warehouse.catalog import Warehouse
from demo import Airflow as Api
from stack import Stack
from tests.fault.watching import all_the_while

TESTS = Path(__file__).resolve().parents[1]

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
PATIENCE_S = 600
"""Seconds until a run has to be over; the machine may be busy."""
SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
TASKS_KILLED = 3
LOOK_S = 0.1
"""Seconds between two looks of the reader."""
UNDISTURBED = "undisturbed"
STATES = (None, (0, 0), (3, 1))
"""What somebody may see of a table, in this order: nothing, a table without rows, its rows and its one snapshot."""


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
    ask: Callable[..., Any]
    """Method, path and body of a request; while Airflow's SQLite is busy it is put again."""

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

    def is_at(self, table: str, point: str) -> bool:
        """Whether the payload of the first try has reached a point."""
        trace = self.stack.home / f"{table}.1.trace"
        return trace.exists() and point in trace.read_text().splitlines()

    def payload(self, table: str) -> psutil.Process:
        """The payload that is at work on a table."""
        for process in self.stack.members():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-2:] == ["run", "steps_for_tests:write_rows"]:
                    trace = Path(process.environ().get("AIRLOOP_FAULT_TRACE", ""))
                    if trace.name.partition(".")[0] == table:
                        return process
        raise AssertionError(f"no payload is at work on {table}")

    def table(self, name: str) -> tuple[int, int] | None:
        """Rows and snapshots of a table; None if it is not there."""
        warehouse = Warehouse.open(Config.from_environment({"AIRLOOP_HOME": str(self.stack.home)}))
        if not warehouse.exists(f"raw.{name}"):
            return None
        history = warehouse.history(f"raw.{name}")
        return (history[-1].rows_total, len(history)) if history else (0, 0)

    @contextlib.contextmanager
    def read_all_the_while(self, *names: str) -> Iterator[dict[str, list[tuple[int, int] | None]]]:
        """While the block runs, somebody reads tables again and again: what each was seen to be, one after another."""
        seen: dict[str, list[tuple[int, int] | None]] = {name: [] for name in names}

        def look() -> None:
            for name, states in seen.items():
                state = self.table(name)
                if states[-1:] != [state]:
                    states.append(state)

        with all_the_while(look, every_s=LOOK_S):
            yield seen

    def manifests(self, name: str) -> int:
        """How many manifests say that they wrote a table."""
        found = (self.stack.home / "artifacts" / "steps").glob("*/*/*/manifest.json")
        return sum(json.loads(path.read_text())["arguments"].get("table") == f"raw.{name}" for path in found)

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
        api = Api(stack)
        api.wait_for_dag("struck", PATIENCE_S)
        api.call("PATCH", "/api/v2/dags/struck", {"is_paused": False})
        yield Airflow(stack, api.call)
    finally:
        stack.down()


@pytest.fixture(scope="module")
def cleared(airflow: Airflow) -> str:
    """The first run of all: its step is killed after its commit, is started again and finds it."""
    run = airflow.start("cleared", "kill@commit:after")
    airflow.finish(run)
    assert airflow.table("cleared") == (3, 1)
    assert airflow.statuses(run)["write"] == "done"
    return run


@pytest.fixture(scope="module")
def points(airflow: Airflow, cleared: str) -> list[str]:
    """All that an undisturbed payload reaches, in a home in which what is made once has been made."""
    airflow.finish(airflow.start(UNDISTURBED))
    assert airflow.table(UNDISTURBED) == (3, 1)
    found = (airflow.stack.home / f"{UNDISTURBED}.1.trace").read_text().splitlines()
    assert {"start:1", "commit:before:1", "manifest:1", "receipt:1"} <= set(found)
    assert any(point.startswith("sql:catalog.db/iceberg_tables:after") for point in found)
    return found


def drawn(points: list[str], name: str, draw: random.Random) -> str:
    """One of them, as a run of this name reaches it."""
    return draw.choice(points).replace(UNDISTURBED, name)


def seen_in_order(states: list[tuple[int, int] | None]) -> bool:
    return states == [state for state in STATES if state in states]


@pytest.mark.timeout(1800)
def test_a_killed_task_process_takes_its_payload_with_it_and_is_retried(
    airflow: Airflow, points: list[str], tell: Callable[[str], None]
) -> None:
    draw = random.Random(SEED)
    struck = {name: drawn(points, name, draw) for name in (f"task{n}" for n in range(TASKS_KILLED))}
    tell(f"task process killed while its payload was at {', '.join(struck.values())}; seed {SEED}")
    waiting = dict(struck)

    def kill_who_is_there() -> bool:
        # At once: one that hangs within a transaction holds up the others.
        for name, point in struck.items():
            if name in waiting and airflow.is_at(name, point):
                payload = airflow.payload(name)
                minder = payload.parent()
                assert minder is not None
                task = minder.parent()
                assert task is not None
                task.kill()
                wait_for(lambda: gone(payload, minder, task))  # noqa: B023 - it is called here
                del waiting[name]
        return not waiting

    with airflow.read_all_the_while(*struck) as seen:
        for name, point in struck.items():
            airflow.start(name, f"hang@{point}")
        wait_for(kill_who_is_there)
        for name in struck:
            airflow.finish(name)
    for name, point in struck.items():
        assert airflow.tries(name) == {"write": 2, "after": 1}, point
        assert airflow.table(name) == (3, 1), point
        assert airflow.manifests(name) == 1, point
        assert set(airflow.statuses(name).values()) <= {"done", "reused"}, point
        assert seen_in_order(seen[name]), (point, seen[name])


@pytest.mark.timeout(1800)
def test_a_killed_scheduler_is_started_again_and_goes_on(
    airflow: Airflow, points: list[str], tell: Callable[[str], None]
) -> None:
    point = drawn(points, "scheduler", random.Random(SEED + 1))
    tell(f"scheduler killed while its payload was at {point}; seed {SEED}")
    with airflow.read_all_the_while("scheduler") as seen:
        run = airflow.start("scheduler", f"slow@{point}")
        wait_for(lambda: airflow.is_at("scheduler", point))
        scheduler = next(s for s in airflow.stack.services if s.name == "scheduler")
        psutil.Process(scheduler.pid).kill()
        wait_for(lambda: not airflow.stack.running("scheduler"))
        airflow.stack.up(everything=False)
        airflow.finish(run)
    assert airflow.table("scheduler") == (3, 1)
    assert airflow.manifests("scheduler") == 1
    assert set(airflow.statuses(run).values()) <= {"done", "reused"}
    assert seen_in_order(seen["scheduler"]), seen


@pytest.mark.timeout(1800)
def test_a_person_clears_what_is_done_and_nothing_is_doubled(airflow: Airflow, cleared: str) -> None:
    airflow.ask(
        "POST",
        "/api/v2/dags/struck/clearTaskInstances",
        {"dry_run": False, "only_failed": False, "dag_run_id": cleared, "task_ids": ["write", "after"]},
    )
    wait_for(lambda: airflow.run_state(cleared) != "success")
    airflow.finish(cleared)
    assert airflow.statuses(cleared) == {"write": "reused", "after": "reused"}
    assert airflow.table("cleared") == (3, 1)
