"""What the demo asks of Airflow."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from demo import DAG_ID, Airflow, months
from stack import Stack


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


def test_what_airflow_refuses_while_its_database_is_busy_is_asked_again(tmp_path: Path) -> None:
    answers = {"/auth/token": [200], "/backfills": [503, 200], "/broken": [500]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers[self.path].pop(0))
            self.end_headers()
            self.wfile.write(json.dumps({"access_token": "t"}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack = Stack(tmp_path, airflow_port=server.server_port)
        stack.airflow_home.mkdir()
        stack.make_login()
        airflow = Airflow(stack)
        airflow.call("POST", "/backfills", {})
        assert answers["/backfills"] == []
        with pytest.raises(urllib.error.HTTPError) as refused:
            airflow.call("POST", "/broken", {})
        refused.value.close()
        server.shutdown()
