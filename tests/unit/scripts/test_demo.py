"""What the demo asks of Airflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from demo import DAG_ID, Airflow, months


class Recorded(Airflow):
    """An Airflow whose demo was interrupted in the second of three months."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.states = {"backfill__1": "success", "backfill__2": "running", "backfill__3": "queued"}

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        path = unquote(path.removeprefix("/api/v2"))
        if method == "GET" and path.startswith("/backfills"):
            return {"backfills": [{"id": 7, "completed_at": None}]}
        if method == "GET":
            assert "run_type=backfill" in path, "a person's own runs are left alone"
            return {"dag_runs": [{"dag_run_id": name, "state": state} for name, state in self.states.items()]}
        if body == {"state": "failed"}:
            self.states[path.rpartition("/")[2]] = "failed"
        self.asked.append((method, path))
        return None


def test_what_an_interrupted_demo_left_under_way_is_ended_before_a_new_backfill() -> None:
    airflow = Recorded()
    first, last = months(1, 2)
    airflow.backfill(DAG_ID, first, last)
    assert airflow.states == {"backfill__1": "success", "backfill__2": "failed", "backfill__3": "failed"}
    assert airflow.asked == [
        ("PUT", "/backfills/7/cancel"),
        ("PATCH", f"/dags/{DAG_ID}/dagRuns/backfill__2"),
        ("PATCH", f"/dags/{DAG_ID}/dagRuns/backfill__3"),
        ("PATCH", f"/dags/{DAG_ID}"),
        ("POST", "/backfills"),
    ]
