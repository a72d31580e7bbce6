"""A register step that is killed: whatever the point, one version and one promotion come of it in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import ENV_CALL, ENV_FAULT, ENV_RECEIPT, Call, Interval, RunInfo
from airloop.registry.ledger import Ledger
from airloop.registry.refs import DecisionRef
from airloop.training import tracking
from airloop.warehouse.artifacts import ArtifactStore, sha256
from airloop.warehouse.catalog import Warehouse

JANUARY = Interval(datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 2, 1, 5, tzinfo=UTC))


@pytest.fixture
def arguments(config: Config, tmp_path: Path) -> dict[str, str]:
    """A candidate, and a gate that promotes it."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.txt").write_text("a model")
    run_id, _ = tracking.log_run(
        config, experiment=tracking.experiment_id(config, "delay"), name="train", tags={"airloop.key": "k"},
        parameters={}, curves={}, metrics={}, datasets=[], model=folder,
    )  # fmt: skip
    decision: dict[str, Any] = {
        "outcome": "promote", "reasons": ["better"], "metric": "roc_auc", "rows": 4000, "difference": None,
        "challenger_metrics": {"roc_auc": 0.7}, "champion_metrics": None, "floors": [],
    }  # fmt: skip
    model = f"model:/run/{run_id}"
    document = {"challenger": model, "champion": "model:/delay/none", "examples": "t.x@7", "decision": decision}
    content = json.dumps(document).encode()
    ArtifactStore(config.artifacts).publish_bytes("gate/decision.json", content)
    return {"model": model, "gate": str(DecisionRef("gate/decision.json", sha256(content))), "name": "delay"}


@pytest.mark.parametrize("where", ["register:before", "register:after", "promote:intent", "promote:alias", "manifest"])
def test_killed_anywhere_and_run_again(
    run_step: Callable[..., dict[str, Any]], arguments: dict[str, str], config: Config, tmp_path: Path, where: str
) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_")},
        "AIRLOOP_HOME": str(config.home),
        ENV_CALL: Call("register", arguments, run=RunInfo("d", "r", "t"), interval=JANUARY).to_json(),
        ENV_RECEIPT: str(tmp_path / "receipt"),
        ENV_FAULT: f"kill@{where}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "airloop", "run", "register"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    again = run_step("register", interval=JANUARY, **arguments)
    assert again["status"] == "done"
    # The killed attempt never told anybody, so the event is still to come.
    assert again["changed"]
    assert again["event"]["version"] == 1
    client = tracking.client(config)
    assert client.get_registered_model("delay").aliases == {"champion": 1}
    assert len(client.search_model_versions("name = 'delay'")) == 1
    assert [e.state for e in Ledger(Warehouse.open(config)).entries()] == ["intent", "done"]
