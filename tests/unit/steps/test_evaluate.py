"""The gate as a step: two real models, one frozen training table, decisions as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Call
from airloop.errors import BadArgument, BadInput, NotFound, Rejected, SchemaMismatch
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.reference import Scope
from airloop.registry.refs import DecisionRef
from airloop.steps import load
from airloop.training import tracking
from airloop.warehouse.catalog import Warehouse

Runner = Callable[..., dict[str, Any]]

START = datetime(2013, 1, 1, 5, tzinfo=UTC)
NONE = "model:/delay/none"


def examples(warehouse: Warehouse, name: str = "training.delay", *, rows: int = 4000, **columns: Any) -> str:
    """Two weeks of flights whose lateness follows ``wind`` strongly and ``hour`` weakly; the last week is held out."""
    generator = np.random.default_rng(5)
    minutes = np.sort(generator.integers(0, 14 * 24 * 60, rows))
    wind, hour = generator.standard_normal(rows), generator.standard_normal(rows)
    late = (1.5 * wind + 0.5 * hour + generator.logistic(size=rows) > 1.2).astype(np.int64)
    split = np.where(minutes >= 7 * 24 * 60, "holdout", np.where(minutes >= 5 * 24 * 60, "validation", "train"))
    table = {
        "flight_id": [str(i) for i in range(rows)],
        "event_time": pa.array([START + timedelta(minutes=int(m)) for m in minutes], pa.timestamp("us", tz="UTC")),
        "split": split,
        "label": late,
        "wind": wind,
        "hour": hour,
        "carrier": np.array(["UA", "AA", "B6"])[np.arange(rows) % 3],
    } | columns
    data = pa.table(table)
    warehouse.ensure(name, data.schema, key=("flight_id",))
    return str(warehouse.commit(name, data, key=name).ref)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One home for the module: two trainings take longer than all the gates."""
    home = tmp_path_factory.mktemp("evaluate")
    return Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"})


@pytest.fixture(scope="module")
def table(config: Config) -> str:
    return examples(Warehouse.open(config))


@pytest.fixture(scope="module")
def models(config: Config, table: str) -> dict[str, str]:
    """A model that knows the wind, and one that does not."""
    return {name: train(config, table, f) for name, f in (("strong", ["wind", "hour"]), ("weak", ["hour"]))}


def train(config: Config, table: str, features: list[str], seed: int = 0) -> str:
    arguments = {
        "examples": table,
        "features": features,
        "hyperparameters": {"n_estimators": 25, "max_depth": 3},
        "seed": seed,
    }
    receipt, error = execute(load("train"), Call("train", arguments), config, Redactor([]))
    assert error is None, error
    manifest = json.loads(Path(receipt.manifest.removeprefix("file://")).read_bytes())
    return str(manifest["outputs"]["model"]["reference"])


def test_every_outcome_of_one_pair(run_step: Runner, models: dict[str, str], table: str) -> None:
    promoted = run_step(
        "evaluate", challenger=models["strong"], champion=models["weak"], examples=table, slices=["carrier", "month"],
        floors={"roc_auc": 0.6}, max_calibration_error=0.2,
    )  # fmt: skip
    details = promoted["details"]
    assert details["outcome"] == "promote"
    assert details["reasons"][0].startswith("roc_auc 0.8")
    assert promoted["counts"]["rows"] > 1500
    assert promoted["counts"]["clusters"] == 7
    assert promoted["metrics"]["gain_low"] > 0
    assert promoted["metrics"]["challenger_roc_auc"] - promoted["metrics"]["champion_roc_auc"] == pytest.approx(
        promoted["metrics"]["gain"]
    )
    found = {(s["column"], s["value"]): s["outcome"] for s in details["decision"]["slices"]}
    assert found == {
        ("carrier", "AA"): "ok",
        ("carrier", "B6"): "ok",
        ("carrier", "UA"): "ok",
        ("month", "2013-01"): "ok",
    }
    curves = details["curves"]["challenger"]
    assert curves["roc"][-1] == [1, 1]
    assert sum(b["rows"] for b in curves["reliability"]) == promoted["counts"]["rows"]
    assert sum(curves["scores"]["positive"]) == promoted["counts"]["positives"]
    outputs = {role: o["reference"] for role, o in promoted["outputs"].items()}
    assert outputs["model"] == models["strong"]
    assert outputs["champion"] == models["weak"]

    again = run_step(
        "evaluate", challenger=models["strong"], champion=models["weak"], examples=table, slices=["carrier", "month"],
        floors={"roc_auc": 0.6}, max_calibration_error=0.2, force=True,
    )  # fmt: skip
    assert again["status"] == "done"
    assert again["details"] == details
    assert again["outputs"] == promoted["outputs"]

    def gate(challenger: str, champion: str, **arguments: Any) -> dict[str, Any]:
        return run_step("evaluate", challenger=challenger, champion=champion, examples=table, **arguments)

    worse = gate(models["weak"], models["strong"])
    assert worse["details"]["outcome"] == "keep"
    assert worse["metrics"]["gain_high"] < 0
    same = gate(models["strong"], models["strong"])
    assert same["details"]["reasons"] == ["both models give the same scores on every held-out row"]
    first = gate(models["weak"], "delay@champion", floors={"roc_auc": 0.5})
    assert first["details"]["outcome"] == "promote"
    assert first["outputs"]["champion"]["reference"] == NONE
    assert "champion" not in first["details"]["curves"]
    unfit = gate(models["weak"], NONE, floors={"roc_auc": 0.9})
    assert unfit["details"]["outcome"] == "reject"
    with pytest.raises(
        Rejected, match=r"is not fit to be registered: the challenger breaks a floor: roc_auc 0\.\d+ < 0.9"
    ):
        gate(models["weak"], NONE, floors={"roc_auc": 0.9}, on_reject="fail")
    few = gate(models["strong"], models["weak"], min_rows=100_000)
    assert few["details"]["outcome"] == "keep"
    assert "at least 100,000 are needed" in few["details"]["reasons"][0]

    for cluster in ("hour", "carrier", ""):
        found = gate(models["strong"], models["weak"], cluster=cluster, min_rows=10)
        assert found["counts"]["clusters"] == {"hour": 168, "carrier": 3, "": found["counts"]["rows"]}[cluster]
    with pytest.raises(SchemaMismatch, match="has no column airport, tail"):
        gate(models["strong"], models["weak"], cluster="tail", slices=["airport"])
    with pytest.raises(BadArgument, match="is no model"):
        gate(NONE, NONE)
    with pytest.raises(BadArgument, match="metric"):
        gate(models["strong"], NONE, metric="f1")


def test_the_decision_is_a_document_of_its_own(
    run_step: Runner, models: dict[str, str], table: str, config: Any
) -> None:
    manifest = run_step("evaluate", challenger=models["strong"], champion=NONE, examples=table)
    reference = DecisionRef.parse(manifest["outputs"]["decision"]["reference"])
    document = reference.read(Scope(config))
    assert document["challenger"] == models["strong"]
    assert document["champion"] == NONE
    assert document["examples"] == table
    assert document["decision"] == manifest["details"]["decision"]
    json.dumps(document, allow_nan=False)
    reused = run_step("evaluate", challenger=models["strong"], champion=NONE, examples=table)
    assert reused["status"] == "reused"
    (config.artifacts / reference.name).unlink()
    assert run_step("evaluate", challenger=models["strong"], champion=NONE, examples=table)["status"] == "done"


def test_held_out_rows_that_tell_nothing(run_step: Runner, warehouse: Warehouse, models: dict[str, str]) -> None:
    one_class = examples(warehouse, "training.one_class", label=np.zeros(4000, dtype=np.int64))
    found = run_step("evaluate", challenger=models["strong"], champion=models["weak"], examples=one_class)
    assert found["details"]["outcome"] == "keep"
    assert "of one class, negative" in found["details"]["reasons"][0]
    empty = examples(warehouse, "training.empty", split=np.full(4000, "train"))
    for cluster in ("day", "", "carrier"):
        found = run_step("evaluate", challenger=models["strong"], champion=NONE, examples=empty, cluster=cluster)
        assert found["details"]["outcome"] == "keep"
        assert "0 rows, at least 500 are needed and there is no champion yet" in found["details"]["reasons"][0]
        assert found["metrics"] == {}


def test_rows_that_cannot_be_compared_are_errors(
    run_step: Runner, warehouse: Warehouse, models: dict[str, str]
) -> None:
    unlabelled = examples(warehouse, "training.unlabelled", label=pa.array([None] * 4000, pa.int64()))
    with pytest.raises(BadInput, match="held-out rows have no label"):
        run_step("evaluate", challenger=models["strong"], champion=models["weak"], examples=unlabelled)
    renamed = examples(warehouse, "training.renamed", wind=pa.array(["strong"] * 4000))
    with pytest.raises(
        SchemaMismatch, match=r"champion model:/run/\w+ cannot score the held-out rows.*any_champion=True"
    ):
        run_step("evaluate", challenger=models["weak"], champion=models["strong"], examples=renamed)


def test_a_model_that_is_gone_is_not_reused(run_step: Runner, table: str, config: Config) -> None:
    model = train(config, table, ["hour"], seed=3)
    run_step("evaluate", challenger=model, champion=NONE, examples=table)
    tracking.client(config).delete_run(model.rpartition("/")[2])
    with pytest.raises(NotFound, match="not in the model registry"):
        run_step("evaluate", challenger=model, champion=NONE, examples=table)
