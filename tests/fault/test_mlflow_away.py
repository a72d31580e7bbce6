"""MLflow that cannot be reached, in three ways: said in bounded time, nothing half done, and done once it is back."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import TryAgain, Unreachable
from airloop.registry.ledger import Ledger
from airloop.registry.refs import DecisionRef
from airloop.training import tracking
from airloop.warehouse.artifacts import ArtifactStore, sha256
from airloop.warehouse.catalog import Warehouse
from tests.training_rows import make_rows, save_rows

RunStep = Callable[..., dict[str, Any]]
JANUARY = Interval(datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 2, 1, 5, tzinfo=UTC))
LIMIT_S = 240
"""Seconds in which a server that does not answer is given up; the machine may be busy."""


class Broken(BaseHTTPRequestHandler):
    """Answers everything with 500, as a server does whose database is gone."""

    def _fail(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = _fail

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def away(how: str) -> Iterator[str]:
    """Address of an MLflow server that is not what it should be."""
    if how == "broken":
        with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if how == "silent":
            listener.listen()
        # Bound and not listening: nobody else gets the port, and connections to it are refused.
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=["refused", "silent", "broken"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with away(request.param) as found:
        yield found


@contextmanager
def said(address: str) -> Iterator[None]:
    """The block ends with an error that a retry may cure, and that names the server."""
    began = time.monotonic()
    with pytest.raises(TryAgain) as caught:
        yield
    assert type(caught.value) is Unreachable
    assert caught.value.exit_code == 75
    assert address.removeprefix("http://") in caught.value.found
    assert caught.value.advice
    assert time.monotonic() - began < LIMIT_S


def manifests(config: Config) -> list[Path]:
    return sorted(config.artifacts.rglob("manifest.json"))


def test_train(address: str, run_step: RunStep, warehouse: Warehouse, config: Config) -> None:
    examples = str(save_rows(warehouse, make_rows(300)))
    arguments = {"examples": examples, "hyperparameters": {"n_estimators": 5}}
    with said(address):
        run_step("train", **arguments, config=replace(config, mlflow=address))
    assert manifests(config) == []

    made = run_step("train", **arguments)
    assert made["status"] == "done"
    undisturbed = replace(config, artifacts=config.home / "other", mlflow=f"sqlite:///{config.home}/other.db")
    assert run_step("train", **arguments, config=undisturbed)["metrics"] == made["metrics"]
    runs = tracking.client(config).search_runs([made["details"]["mlflow"]["experiment_id"]])
    assert [r.info.status for r in runs] == ["FINISHED"]


def test_register(address: str, run_step: RunStep, config: Config, tmp_path: Path) -> None:
    model = tmp_path / "bundle"
    model.mkdir()
    (model / "model.txt").write_text("a model")
    run_id, _ = tracking.log_run(
        config, experiment=tracking.experiment_id(config, "delay"), name="train", tags={"airloop.key": "k"},
        parameters={}, curves={}, metrics={}, datasets=[], model=model,
    )  # fmt: skip
    decision: dict[str, Any] = {
        "outcome": "promote", "reasons": ["better"], "metric": "roc_auc", "rows": 4000, "difference": None,
        "challenger_metrics": {"roc_auc": 0.7}, "champion_metrics": None, "floors": [],
    }  # fmt: skip
    candidate = f"model:/run/{run_id}"
    document = {"challenger": candidate, "champion": "model:/delay/none", "examples": "t.x@7", "decision": decision}
    content = json.dumps(document).encode()
    ArtifactStore(config.artifacts).publish_bytes("gate/decision.json", content)
    gate = str(DecisionRef("gate/decision.json", sha256(content)))
    arguments = {"model": candidate, "gate": gate, "name": "delay", "interval": JANUARY}

    with said(address):
        run_step("register", **arguments, config=replace(config, mlflow=address))
    assert manifests(config) == []
    assert Ledger(Warehouse.open(config)).entries() == []

    made = run_step("register", **arguments)
    assert made["outputs"]["champion"]["reference"] == "model:/delay/1"
    assert [e.state for e in Ledger(Warehouse.open(config)).entries()] == ["intent", "done"]
    assert tracking.client(config).get_registered_model("delay").aliases == {"champion": 1}
