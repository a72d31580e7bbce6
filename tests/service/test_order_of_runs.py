"""
A year by Airflow's own scheduler and executor: eleven months backfilled at once, and two live runs of the twelfth
meanwhile. Everything ends as if the months had been run one after another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airloop.frame import history
from airloop.warehouse.artifacts import ArtifactStore
from demo import Airflow
from stack import Stack
from tests.year_world import DAG_ID, MONTHS, Year, month, write_world

REPOSITORY = Path(__file__).resolve().parents[2]

AT_ONCE = 4


@dataclass
class Loop:
    """The DAG of the year in an Airflow of its own."""

    airflow: Airflow
    year: Year

    def backfill(self, first: int, last: int) -> None:
        body = {
            "dag_id": DAG_ID,
            "from_date": month(first).start.isoformat(),
            "to_date": month(last).start.isoformat(),
            "max_active_runs": AT_ONCE,
        }
        self.post("/api/v2/backfills", body)

    def trigger(self, run_id: str, logical_date: str) -> None:
        body = {"dag_run_id": run_id, "logical_date": logical_date}
        self.post(f"/api/v2/dags/{DAG_ID}/dagRuns", body)

    def post(self, path: str, body: Any) -> None:
        """Ask for something; Airflow refuses with 503, and does nothing, while its SQLite is busy."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.airflow.call("POST", path, body)
                return
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error
            time.sleep(1)

    def ended(self, count: int, within_s: float) -> dict[str, str]:
        """State by run id, once so many runs have ended."""
        deadline = time.monotonic() + within_s
        while True:
            runs = self.airflow.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
            states = {r["dag_run_id"]: r["state"] for r in runs}
            if len(states) == count and set(states.values()) <= {"success", "failed"}:
                return states
            assert time.monotonic() < deadline, f"not ended after {within_s:.0f} s: {states}"
            time.sleep(0.5)

    def most_at_once(self) -> int:
        """How many runs were under way at one time."""
        runs = self.airflow.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
        return max(sum(r["start_date"] <= one["start_date"] < r["end_date"] for r in runs) for one in runs)

    def waited(self) -> set[str]:
        """Tasks whose log says that it was not yet their turn."""
        logs = self.year.config.home / "airflow" / "logs"
        return {p.parent.name for p in logs.rglob("*.log") if "Not yet its turn" in p.read_text(errors="replace")}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    folder = tmp_path / "world"
    folder.mkdir()
    write_world(folder)
    return folder


@pytest.fixture
def expected(world: Path, tmp_path: Path) -> Iterator[Any]:
    """The state after the months one by one; worked out while Airflow starts."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.year_world", str(world), str(tmp_path / "one-by-one")]
    file = tmp_path / "one-by-one.log"
    with file.open("wb") as log, subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log) as process:

        def state() -> dict[str, Any]:
            assert process.wait(300) == 0, file.read_text()[-3000:]
            return Year.at(tmp_path / "one-by-one", world).state()

        yield state
        process.kill()


@pytest.fixture
def loop(expected: Any, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setenv("AIRLOOP_TEST_YEAR", str(world))
    monkeypatch.setenv("AIRLOOP_FEATURE_REPO", str(world / "repo"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    stack = Stack(tmp_path / "home", dags=Path(__file__).with_name("year"))
    try:
        stack.up(everything=False)
        airflow = Airflow(stack)
        airflow.wait_for_dag(DAG_ID)
        yield Loop(airflow, Year.at(stack.home, world))
    finally:
        stack.down()


@pytest.mark.timeout(900)
def test_a_backfill_at_once_and_a_live_run_end_as_if_one_by_one(expected: Any, loop: Loop) -> None:
    loop.backfill(1, MONTHS - 1)
    # Both work on the last month: a run by hand takes the newest interval that is complete.
    live = {f"live-{n}": (month(MONTHS).end + timedelta(days=n)).isoformat() for n in (0, 1)}
    for run_id, logical_date in live.items():
        loop.trigger(run_id, logical_date)
    loop.airflow.call("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": False})
    states = loop.ended(MONTHS - 1 + len(live), within_s=800)
    assert set(states.values()) == {"success"}, states

    assert loop.most_at_once() > AT_ONCE, "the backfill's and the live runs were under way together"
    assert loop.waited(), "some had to wait for their turn"
    store = ArtifactStore(loop.year.config.artifacts)
    runs = {r.run_id: r for r in history.runs(store, DAG_ID)}
    assert {runs[run_id].interval for run_id in live} == {month(MONTHS)}
    for task in runs["live-0"].tasks:
        assert sorted(runs[run_id].tasks[task].status for run_id in live) == ["done", "reused"], task

    found, wanted = loop.year.state(), expected()
    assert found.keys() == wanted.keys()
    assert [e["outcome"] for e in wanted["ledger"]].count("promote") > 2, "a year in which something happens"
    for part in wanted:
        assert found[part] == wanted[part], part
