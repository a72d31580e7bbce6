"""
A real MLflow server behind a proxy that answers one changing request with 500, loses its answer, cuts it off, or
answers too late; and one whose client is killed just before or after such a request: in the end there is one finished
run, one version, one promotion.

All of train's and register's changing requests, times these faults, are drawn from; the seed is printed.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL
from typing import Any
from urllib.parse import urlsplit

import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import TryAgain
from airloop.registry.ledger import Ledger
from airloop.registry.refs import DecisionRef
from airloop.training import tracking
from airloop.warehouse.artifacts import ArtifactStore, sha256
from airloop.warehouse.catalog import Warehouse
from tests.fault.flights_loop import Home, StepServer
from tests.mlflow_server import mlflow_server
from tests.training_rows import make_rows, save_rows

RunStep = Callable[..., dict[str, Any]]
FAULTS = ("500", "lost", "cut", "late")
"""An error instead of the work; the work without an answer; neither; an answer after the client gave up."""
SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_MLFLOW_SAMPLE") or 5)
KILLS = int(os.environ.get("AIRLOOP_TEST_MLFLOW_KILLS") or 2)
"""Of each step."""
JANUARY = Interval(datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 2, 1, 5, tzinfo=UTC))
CLIENT_PATIENCE_S = 4
"""Seconds after which an answer is too late, where it is to be."""


def only_looks(path: str) -> bool:
    """Whether a request that could change something does not: MLflow's searches are POSTs."""
    return path.endswith("/search") or "/search-" in path


@dataclass
class Proxy:
    """Passes requests on to a server, but for the one that it is to strike."""

    target: str
    address: str = ""
    changing: list[str] = field(default_factory=list)
    """Requests that change something, since :meth:`strike`."""
    at: int = -1
    fault: str = ""
    struck: bool = False

    def strike(self, at: int, fault: str) -> None:
        self.changing, self.at, self.fault, self.struck = [], at, fault, False

    def fault_of(self, method: str, path: str) -> str:
        if method == "GET" or only_looks(path):
            return ""
        self.changing.append(f"{method} {path}")
        if self.struck or len(self.changing) - 1 != self.at:
            return ""
        self.struck = True
        return self.fault


@contextmanager
def proxy_of(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.fault_of(self.command, urlsplit(self.path).path)
            if fault == "500":
                self._answer(500, b"{}")
                return
            if fault == "cut":
                self.close_connection = True
                return
            status, answer = self._forward(body)
            if fault == "lost":
                self.close_connection = True
                return
            if fault == "late":
                time.sleep(CLIENT_PATIENCE_S + 1)
            self._answer(status, answer)

        def _forward(self, body: bytes) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(urlsplit(proxy.target).netloc, timeout=240)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body, headers | {"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read()

        def _answer(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # the client has given up: that was the fault

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield proxy
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as (address, _):
        yield address


@dataclass
class Loop:
    """Train and register a model of its own, as often as it takes."""

    run_step: RunStep
    config: Config
    examples: str

    def once(self, name: str, seed: int) -> None:
        arguments = {"examples": self.examples, "hyperparameters": {"n_estimators": 5}, "seed": seed}
        model = self._until_done("train", experiment=name, **arguments)["outputs"]["model"]["reference"]
        gate = self._gate(name, model)
        self._until_done("register", model=model, gate=gate, name=name, interval=JANUARY)

    def _until_done(self, step: str, **arguments: Any) -> dict[str, Any]:
        for _ in range(3):
            try:
                return self.run_step(step, config=self.config, **arguments)
            except TryAgain:
                continue
        raise AssertionError(f"{step} did not end in three attempts")

    def _gate(self, name: str, model: str) -> str:
        decision: dict[str, Any] = {
            "outcome": "promote", "reasons": ["better"], "metric": "roc_auc", "rows": 4000, "difference": None,
            "challenger_metrics": {"roc_auc": 0.7}, "champion_metrics": None, "floors": [],
        }  # fmt: skip
        document = {"challenger": model, "champion": f"model:/{name}/none", "examples": "t.x@7", "decision": decision}
        content = json.dumps(document).encode()
        ArtifactStore(self.config.artifacts).publish_bytes(f"gates/{name}.json", content)
        return str(DecisionRef(f"gates/{name}.json", sha256(content)))

    def state(self, name: str) -> dict[str, Any]:
        """Counted by another client than the struck one."""
        client = tracking.client(self.config)
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        runs = [run.info.status for run in client.search_runs([experiment.experiment_id])]
        ledger = Ledger(Warehouse.open(self.config))
        return {
            "finished": runs.count("FINISHED"),
            "running": runs.count("RUNNING"),
            "versions": [int(v.version) for v in client.search_model_versions(f"name = '{name}'")],
            "aliases": {k: str(v) for k, v in client.get_registered_model(name).aliases.items()},
            "ledger": [entry.state for entry in ledger.entries(name)],
        }


ONCE = {"finished": 1, "running": 0, "versions": [1], "aliases": {"champion": "1"}, "ledger": ["intent", "done"]}


def test_each_changing_request_may_fail_in_four_ways(
    server: str,
    run_step: RunStep,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[str], None],
) -> None:
    # What is not to be late may take as long as a busy machine needs.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    examples = str(save_rows(Warehouse.open(config), make_rows(300)))
    failures = []
    with proxy_of(server) as proxy:
        loop = Loop(run_step, replace(config, mlflow=proxy.address), examples)
        loop.once("undisturbed", 0)
        requests = proxy.changing
        assert len(requests) >= 10, requests
        assert loop.state("undisturbed") == ONCE
        strikes = [(at, fault) for at in range(len(requests)) for fault in FAULTS]
        drawn = random.Random(SEED).sample(strikes, min(SAMPLE, len(strikes)))
        for number, (at, fault) in enumerate(drawn, start=1):
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(CLIENT_PATIENCE_S if fault == "late" else 120))
            proxy.strike(at, fault)
            name = f"struck{number}"
            loop.once(name, number)
            assert proxy.struck
            proxy.strike(-1, "")
            found = loop.state(name)
            if found != ONCE:
                failures.append(f"{fault} at {requests[at]}: {found}")
                print(failures[-1], flush=True)
    survived = len(drawn) - len(failures)
    tell(f"MLflow requests struck {len(drawn)} of {len(strikes)} / survived {survived}; seed {SEED}")
    assert not failures, "\n".join(failures)


@dataclass
class Processes:
    """Runs each step in a process of its own; before one of them, in one that is killed."""

    home: Home
    trace: Path
    strike: tuple[str, str] = ("", "")
    """Step, and the point at which it is killed."""
    reached: list[tuple[str, str]] = field(default_factory=list)
    """Step and point, of processes that ended by themselves."""

    def run_step(self, step: str, *, config: Config, interval: Interval = JANUARY, **arguments: Any) -> dict[str, Any]:
        if step == self.strike[0]:
            fault = f"kill@{self.strike[1]}"
            struck = self.home.run(step, arguments, interval, mlflow=config.mlflow, fault=fault)
            assert struck.code == -SIGKILL, f"{self.strike} is not reached: {struck.code} {struck.log}"
        self.trace.write_text("")
        ended = self.home.run(step, arguments, interval, mlflow=config.mlflow, fault_trace=str(self.trace))
        assert ended.code == 0, f"{self.strike}: {step} ended with {ended.code}: {ended.log}"
        assert ended.manifest is not None
        self.reached += [(step, point) for point in self.trace.read_text().splitlines()]
        return ended.manifest


def test_killed_around_requests_that_change_something(
    server: str, steps: StepServer, config: Config, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    processes = Processes(Home(steps, config.home, tmp_path, tmp_path), tmp_path / "trace")
    examples = str(save_rows(Warehouse.open(config), make_rows(300)))
    loop = Loop(processes.run_step, replace(config, mlflow=server), examples)
    loop.once("alive", 0)
    assert loop.state("alive") == ONCE
    requests = [(step, point) for step, point in processes.reached if point.startswith("http:")]
    points = [(step, point) for step, point in requests if not only_looks(point.rsplit(":", 2)[0])]
    drawn = []
    for step in ("train", "register"):
        of_step = [strike for strike in points if strike[0] == step]
        assert len(of_step) >= 6, requests
        drawn += random.Random(SEED).sample(of_step, min(KILLS, len(of_step)))
    failures = []
    for number, strike in enumerate(drawn, start=1):
        processes.strike = strike
        name = f"killed{number}"
        loop.once(name, number)
        found = loop.state(name)
        if found != ONCE:
            failures.append(f"killed at {strike}: {found}")
    survived = len(drawn) - len(failures)
    tell(f"MLflow requests: killed at {len(drawn)} of {len(points)} points / survived {survived}; seed {SEED}")
    assert not failures, "\n".join(failures)
