"""Register as a step: versions, aliases and ledger follow the gate; repeated, late, stale and unreachable."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Interval, RunInfo
from airloop.errors import BadArgument, StaleRun, Unreachable
from airloop.reference import Scope
from airloop.registry.ledger import Ledger
from airloop.registry.refs import DecisionRef, IncumbentRef, ModelRef
from airloop.training import tracking
from airloop.warehouse.artifacts import ArtifactStore, sha256
from airloop.warehouse.catalog import Warehouse

Runner = Callable[..., dict[str, Any]]

EDGES = [datetime(2013, month, 1, 5, tzinfo=UTC) for month in range(1, 6)]
JANUARY, FEBRUARY, MARCH, APRIL = (Interval(a, b) for a, b in pairwise(EDGES))
NONE = "model:/delay/none"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once."""
    home = tmp_path_factory.mktemp("mlflow")
    tracking.client(Config.from_environment({"AIRLOOP_HOME": str(home)}))
    return home / "mlflow.db"


@pytest.fixture
def config(config: Config, empty_mlflow: Path) -> Config:
    config.home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(empty_mlflow, config.home / "mlflow.db")
    return config


@pytest.fixture
def gated(config: Config, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """A candidate and the decision about it, as evaluate leaves them; returns the register step's arguments."""

    def make(key: str, *, champion: str = NONE, outcome: str = "promote", run_id: str = "") -> dict[str, str]:
        if not run_id:
            folder = tmp_path / f"bundle-{key}"
            folder.mkdir()
            (folder / "model.txt").write_text(key)
            run_id, _ = tracking.log_run(
                config, experiment=tracking.experiment_id(config, "delay"), name="train", tags={"airloop.key": key},
                parameters={}, curves={}, metrics={}, datasets=[], model=folder,
            )  # fmt: skip
        decision = {
            "outcome": outcome,
            "reasons": [f"because of {key}", "and more"],
            "metric": "roc_auc",
            "rows": 4000,
            "difference": None if champion == NONE else {"estimate": 0.01, "low": 0.002, "high": 0.018},
            "challenger_metrics": {"roc_auc": 0.71},
            "champion_metrics": None,
            "floors": [],
        }
        document = {
            "challenger": f"model:/run/{run_id}",
            "champion": champion,
            "examples": "training.delay@7",
            "decision": decision,
        }
        content = json.dumps(document).encode()
        name = f"steps/evaluate/{key}-{outcome}/decision.json"
        ArtifactStore(config.artifacts).publish_bytes(name, content)
        return {"model": f"model:/run/{run_id}", "gate": str(DecisionRef(name, sha256(content))), "name": "delay"}

    return make


def aliases(config: Config) -> dict[str, int]:
    return {a: int(v) for a, v in tracking.client(config).get_registered_model("delay").aliases.items()}


def champion(config: Config, interval: Interval | None = None) -> str:
    return str(ModelRef.parse("delay@champion").resolve(Scope(config, interval)))


def incumbent(config: Config, interval: Interval) -> str:
    return str(IncumbentRef.parse("delay@champion").resolve(Scope(config, interval)))


def test_three_months(run_step: Runner, gated: Callable[..., Any], config: Config) -> None:
    run = RunInfo("delay_retrain", "scheduled__2013-01", "register")
    first = run_step("register", interval=JANUARY, run=run, **gated("k1"))
    assert first["outputs"]["model"]["reference"] == first["outputs"]["champion"]["reference"] == "model:/delay/1"
    assert first["event"] == {
        "model": "model:/delay/1",
        "alias": "champion",
        "version": 1,
        "previous": None,
        "decision": first["outputs"]["decision"]["reference"],
    }
    assert first["details"]["summary"] == "delay@champion is now version 1, the first"
    assert first["details"]["mlflow"].keys() == {"run_id", "experiment_id"}

    second = run_step("register", interval=FEBRUARY, **gated("k2", champion="model:/delay/1", outcome="keep"))
    assert second["outputs"]["model"]["reference"] == "model:/delay/2"
    assert second["outputs"]["champion"]["reference"] == "model:/delay/1"
    assert second["event"] is None
    assert aliases(config) == {"champion": 1, "challenger": 2}

    third = run_step("register", interval=MARCH, **gated("k3", champion="model:/delay/1"))
    assert third["event"]["previous"] == 1
    assert aliases(config) == {"champion": 3, "challenger": 2}

    assert champion(config) == "model:/delay/3"
    assert [champion(config, i) for i in (JANUARY, FEBRUARY, MARCH, APRIL)] == [
        NONE, "model:/delay/1", "model:/delay/1", "model:/delay/3",
    ]  # fmt: skip
    entries = Ledger(Warehouse.open(config)).entries("delay")
    assert [(e.state, e.outcome, e.alias, e.version, e.previous) for e in entries if e.state != "intent"] == [
        ("done", "promote", "champion", 1, None),
        ("done", "keep", "challenger", 2, None),
        ("done", "promote", "champion", 3, 1),
    ]
    assert (entries[1].dag_id, entries[1].run_id) == ("delay_retrain", "scheduled__2013-01")
    assert entries[1].effective_at == JANUARY.end
    assert entries[1].evidence["examples"] == "training.delay@7"
    assert entries[-1].evidence["difference"]["low"] == 0.002
    version = tracking.client(config).get_model_version("delay", "3")
    assert version.description == "because of k3; and more"
    assert version.tags["airloop.decision"] == "promote"


def test_again_is_reused_and_undoes_no_rollback(run_step: Runner, gated: Callable[..., Any], config: Config) -> None:
    from airloop.registry.models import promote

    run_step("register", interval=JANUARY, **gated("k1"))
    arguments = gated("k2", champion="model:/delay/1")
    run_step("register", interval=FEBRUARY, **arguments)
    promote(config, "delay", 1, reason="2 is slow", by="ana")
    assert run_step("register", interval=FEBRUARY, **arguments)["status"] == "reused"
    forced = run_step("register", interval=FEBRUARY, force=True, **arguments)
    assert (forced["status"], forced["changed"]) == ("done", False)
    assert aliases(config) == {"champion": 1}
    assert forced["outputs"]["champion"]["reference"] == "model:/delay/1"
    assert len([e for e in Ledger(Warehouse.open(config)).entries() if e.state == "done"]) == 3


def test_what_is_gone_is_not_reused(run_step: Runner, gated: Callable[..., Any], config: Config) -> None:
    arguments = gated("k1")
    run_step("register", interval=JANUARY, **arguments)
    tracking.client(config).delete_model_version("delay", "1")
    again = run_step("register", interval=JANUARY, **arguments)
    assert again["status"] == "done"
    assert again["outputs"]["model"]["reference"] == "model:/delay/2"


def test_the_same_model_for_two_intervals_is_one_version(
    run_step: Runner, gated: Callable[..., Any], config: Config
) -> None:
    arguments = gated("k1")
    run_step("register", interval=JANUARY, **arguments)
    run_id = arguments["model"].rpartition("/")[2]
    kept = gated("k1", champion="model:/delay/1", outcome="keep", run_id=run_id)
    again = run_step("register", interval=FEBRUARY, **kept)
    assert again["counts"]["versions_made"] == 0
    assert again["details"]["moved"] is False
    assert aliases(config) == {"champion": 1}


def test_an_older_interval_moves_nothing(run_step: Runner, gated: Callable[..., Any], config: Config) -> None:
    run_step("register", interval=FEBRUARY, **gated("k2"))
    late = run_step("register", interval=JANUARY, **gated("k1"))
    assert late["event"] is None
    assert late["details"]["state"] == "superseded"
    assert "not moved: champion is version 1" in late["details"]["reason"]
    assert late["outputs"]["champion"]["reference"] == "model:/delay/1"
    assert aliases(config) == {"champion": 1}


def test_a_decision_about_another_champion_is_refused(
    run_step: Runner, gated: Callable[..., Any], config: Config
) -> None:
    run_step("register", interval=JANUARY, **gated("k1"))
    stale = gated("k2", champion=NONE)
    with pytest.raises(StaleRun, match=r"with model:/delay/none, but delay@champion just before .* is model:/delay/1"):
        run_step("register", interval=FEBRUARY, **stale)
    assert len(tracking.client(config).search_model_versions("name = 'delay'")) == 1
    assert run_step("register", interval=FEBRUARY, any_champion=True, **stale)["event"]["version"] == 2
    without_interval = gated("k3", champion="model:/delay/1")
    with pytest.raises(StaleRun, match="delay@champion now is model:/delay/2"):
        run_step("register", **without_interval)
    assert run_step("register", **gated("k4", champion="model:/delay/2"))["event"]["version"] == 3


def test_a_roll_back_within_an_interval_is_what_its_gate_compares_with(
    run_step: Runner, gated: Callable[..., Any], config: Config
) -> None:
    from airloop.registry.models import promote

    run_step("register", interval=JANUARY, **gated("k1"))
    run_step("register", interval=FEBRUARY, **gated("k2", champion="model:/delay/1"))
    within = MARCH.start + (MARCH.end - MARCH.start) / 2
    promote(config, "delay", 1, reason="2 is slow", by="ana", effective_at=within)
    assert incumbent(config, MARCH) == "model:/delay/1"
    assert champion(config, MARCH) == "model:/delay/2", "what scored March's first days"
    with pytest.raises(StaleRun, match=r"with model:/delay/2, but delay@champion just before .* is model:/delay/1"):
        run_step("register", interval=MARCH, **gated("k3", champion="model:/delay/2"))
    arguments = gated("k4", champion="model:/delay/1")
    assert run_step("register", interval=MARCH, **arguments)["event"]["previous"] == 1
    assert incumbent(config, MARCH) == "model:/delay/1", "a repetition finds what the first run found"
    assert incumbent(config, APRIL) == "model:/delay/3"


def test_arguments_that_do_not_fit(run_step: Runner, gated: Callable[..., Any]) -> None:
    one, other = gated("k1"), gated("k2")
    with pytest.raises(BadArgument, match="the gate decided about model:/run/"):
        run_step("register", interval=JANUARY, **one | {"gate": other["gate"]})
    with pytest.raises(BadArgument, match="for models that were not promoted"):
        run_step("register", interval=JANUARY, alias="challenger", **one)
    with pytest.raises(BadArgument, match="not the name of a model"):
        run_step("register", interval=JANUARY, **one | {"name": "a/b"})
    with pytest.raises(BadArgument, match="pass the result of an evaluate step"):
        run_step("register", interval=JANUARY, **one | {"gate": "yes"})


def test_unreachable_mlflow(run_step: Runner, gated: Callable[..., Any], config: Config) -> None:
    import dataclasses

    arguments = gated("k1")
    nobody = dataclasses.replace(config, mlflow="http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 does not answer"):
        run_step("register", interval=JANUARY, config=nobody, **arguments)
    assert time.monotonic() - started < 60
    assert Ledger(Warehouse.open(config)).entries() == []
