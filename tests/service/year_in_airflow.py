"""The loop of ``tests/year_world.py`` in an Airflow of its own, whose runs are under way at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from airloop.frame import history
from airloop.warehouse.artifacts import ArtifactStore
from demo import Airflow
from stack import Stack
from tests.profiles import EMBEDDED, Profile
from tests.year_world import DAG_ID, Year, month

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class YearInAirflow:
    """The DAG of the year, and its state as somebody sees it who looks at it."""

    airflow: Airflow
    year: Year
    logs: Path
    """Folder of the tasks' logs."""

    def end_together(self, last: int, *, at_once: int, within_s: float) -> None:
        """
        Run the months before the last by a backfill and, meanwhile, two live runs of the last one.

        :param at_once: how many months the backfill runs at once.
        """
        self._backfill(1, last - 1, at_once)
        # Both work on the last month: a run by hand takes the newest interval that is complete.
        live = {f"live-{n}": (month(last).end + timedelta(days=n)).isoformat() for n in (0, 1)}
        for run_id, logical_date in live.items():
            self._post(f"/api/v2/dags/{DAG_ID}/dagRuns", {"dag_run_id": run_id, "logical_date": logical_date})
        self.airflow.call("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": False})
        states = self._ended(last - 1 + len(live), within_s)
        assert set(states.values()) == {"success"}, states

        assert self._most_at_once() > at_once, "the backfill's and the live runs were under way together"
        assert self._waited(), "some had to wait for their turn"
        runs = {r.run_id: r for r in history.runs(ArtifactStore(self.year.config.artifacts), DAG_ID)}
        assert {runs[run_id].interval for run_id in live} == {month(last)}
        for task in runs["live-0"].tasks:
            ends = sorted(runs[run_id].tasks[task].status for run_id in live)
            assert ends == ["done", "reused"], f"{task}: {ends}"

    def _backfill(self, first: int, last: int, at_once: int) -> None:
        body = {
            "dag_id": DAG_ID,
            "from_date": month(first).start.isoformat(),
            "to_date": month(last).start.isoformat(),
            "max_active_runs": at_once,
        }
        self._post("/api/v2/backfills", body)

    def _post(self, path: str, body: Any) -> None:
        """Ask for something; Airflow refuses with 503, and does nothing, while its SQLite is busy."""
        deadline = time.monotonic() + 300
        while True:
            try:
                self.airflow.call("POST", path, body)
                return
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error
            time.sleep(1)

    def _ended(self, count: int, within_s: float) -> dict[str, str]:
        """State by run id, once so many runs have ended."""
        deadline = time.monotonic() + within_s
        while True:
            states = {r["dag_run_id"]: r["state"] for r in self._runs()}
            if len(states) == count and set(states.values()) <= {"success", "failed"}:
                return states
            assert time.monotonic() < deadline, f"not ended after {within_s:.0f} s: {states}"
            time.sleep(0.5)

    def _most_at_once(self) -> int:
        """How many runs were under way at one time."""
        runs = self._runs()
        return max(sum(r["start_date"] <= one["start_date"] < r["end_date"] for r in runs) for one in runs)

    def _waited(self) -> set[str]:
        """Tasks whose log says that it was not yet their turn."""
        return {p.parent.name for p in self.logs.rglob("*.log") if "Not yet its turn" in p.read_text(errors="replace")}

    def _runs(self) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.airflow.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
        return runs


@contextmanager
def year_in_airflow(home: Path, world: Path, profile: Profile = EMBEDDED) -> Iterator[YearInAirflow]:
    """
    An Airflow that has read the DAG.

    :param world: folder of the year's file and feature repository.
    :param profile: where all state is.
    """
    settings = {
        **profile.stack,
        "AIRLOOP_TEST_YEAR": str(world),
        "AIRLOOP_FEATURE_REPO": str(world / "repo"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    stack = Stack(home, dags=Path(__file__).with_name("year"), settings=settings)
    try:
        airflow = profile.start(stack, DAG_ID)
        reader = profile.reader(home)
        yield YearInAirflow(airflow, Year.at(Path(reader["AIRLOOP_HOME"]), world, reader), stack.airflow_home / "logs")
    finally:
        stack.down()


@contextmanager
def one_by_one(home: Path, world: Path, months: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """What tells the state after the months one by one, in a home of their own; they begin to run at once."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.year_world", str(world), str(home), str(months)]
    file = home.with_name(f"{home.name}.log")
    with file.open("wb") as log, subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log) as process:

        def state() -> dict[str, Any]:
            assert process.wait(1500) == 0, file.read_text()[-3000:]
            return Year.at(home, world).state()

        try:
            yield state
        finally:
            process.kill()
