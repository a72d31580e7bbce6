"""What models and the ledger name is kept for ever, with all that led there; what is online is kept too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import RunInfo
from airloop.errors import BadConfiguration, ContractBroken
from airloop.frame import StepContext, StepResult, step
from airloop.records import FORGET, RECORD_FORMAT, REDO
from airloop.registry import lookup
from airloop.registry.ledger import TABLE as LEDGER
from airloop.registry.ledger import Entry, Ledger
from airloop.upkeep import gc
from airloop.upkeep.retention import Policy, protected
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.unit.upkeep.conftest import SCHEMA, TABLE

RunStep = Callable[..., dict[str, Any]]
NOTHING_ELSE = Policy(keep_days=0)
EXAMPLES = "training.orders"


@step()
def examples(ctx: StepContext, *, table: TableRef) -> StepResult:
    """Replace the training set by a table."""
    ctx.warehouse.ensure(EXAMPLES, SCHEMA)
    commit = ctx.warehouse.commit(EXAMPLES, ctx.warehouse.scan(table), key=ctx.key, mode="replace")
    return StepResult(outputs={"table": commit.ref})


@step()
def materialize(ctx: StepContext, *, table: TableRef) -> StepResult:
    """Say what the step of this name says."""
    return StepResult(outputs={"feature_service": "drivers_v1"})


@step()
def publish_model(ctx: StepContext, *, table: TableRef) -> StepResult:
    """Say that a model was registered."""
    return StepResult(outputs={"champion": "model:/delay/3"})


def decide(warehouse: Warehouse, key: str, evidence: dict[str, Any], version: int = 1) -> None:
    at = datetime(2013, 1, version, tzinfo=UTC)
    Ledger(warehouse).append(
        Entry(
            entry=key, seq=0, model="delay", alias="champion", version=version, previous=None, state="done", moved=True,
            outcome="promote", reason="test", by="test", key=key, recorded_at=at, effective_at=at, evidence=evidence,
        )
    )  # fmt: skip


def train(run_step: RunStep, snapshot: int, run_id: str) -> dict[str, Any]:
    return run_step(examples, table=f"{TABLE}@{snapshot}", run=RunInfo("shop", run_id, "examples"))


def test_what_the_ledger_names_stays_with_all_that_led_there(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    kept = train(run_step, history[1], "kept")
    other = train(run_step, history[3], "other")
    last = train(run_step, history[5], "last")
    named = kept["outputs"]["table"]["reference"]
    decide(warehouse, "k" * 64, {"examples": named})
    decide(warehouse, last["key"], {}, version=2)
    reasons = protected(config, NOTHING_ELSE)
    assert reasons[EXAMPLES][TableRef.parse(named).snapshot] == ["ledger entry delay 1"]
    # The entry's own step, and what it read.
    assert "ledger entry delay 2" in reasons[TABLE][history[5]]
    assert history[3] not in reasons[TABLE]
    gc.collect(config, NOTHING_ELSE, grace_s=0)
    left = {s.id for s in warehouse.history(EXAMPLES)}
    assert TableRef.parse(named).snapshot in left
    assert TableRef.parse(other["outputs"]["table"]["reference"]).snapshot not in left
    # The ledger itself needs but its newest snapshot.
    assert len(warehouse.history(LEDGER)) == 1
    assert len(Ledger(warehouse).entries()) == 2


def test_the_step_that_decided_leads_to_its_inputs(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    made = train(run_step, history[2], "r")
    decide(
        warehouse, "k" * 64, {"decision": f"decision:steps/examples/{made['key'][:2]}/{made['key']}/d.json#{'0' * 64}"}
    )
    assert protected(config, NOTHING_ELSE)[TABLE][history[2]] == ["ledger entry delay 1"]


def test_a_registered_version_is_a_reason(config: Config, history: list[int]) -> None:
    database = config.mlflow.removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        connection.executescript(
            "CREATE TABLE model_versions (name TEXT, version INTEGER, run_id TEXT, current_stage TEXT);"
            "CREATE TABLE model_version_tags (name TEXT, version INTEGER, key TEXT, value TEXT);"
            "INSERT INTO model_versions VALUES ('delay', 3, 'abc', 'None'), ('delay', 4, 'x', 'Deleted_Internal');"
            f"INSERT INTO model_version_tags VALUES ('delay', 3, 'airloop.examples', '{TABLE}@{history[0]}');"
        )
    assert protected(config, NOTHING_ELSE)[TABLE][history[0]] == ["model delay version 3"]


def test_a_registry_that_is_not_there_protects_nothing_and_stops_everything(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    run_step(publish_model, table=f"{TABLE}@{history[0]}", run=RunInfo("shop", "r", "register"))
    with pytest.raises(BadConfiguration, match="runs registered model:/delay/3, and AIRLOOP_MLFLOW names a database"):
        gc.collect(config, NOTHING_ELSE, grace_s=0)
    assert len(warehouse.history(TABLE)) == 6
    from airloop.training import tracking

    tracking.client(config).search_registered_models()
    assert history[0] not in protected(config, NOTHING_ELSE)[TABLE], "it is there, and says that the model is not"


def test_a_registry_of_many_models_is_read_to_its_end(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from airloop.training import tracking

    client = tracking.client(config)
    for name in "abc":
        client.create_registered_model(name)
        for _ in range(3):
            client.create_model_version(name, "file:///nowhere")
    monkeypatch.setattr(lookup, "PAGE", 2)
    expected = [(name, version) for name in "abc" for version in (1, 2, 3)]
    assert sorted(found[:2] for found in lookup.registered(config)) == expected

    def not_readable(*_: object) -> None:
        raise lookup._NotReadable

    monkeypatch.setattr(lookup, "_query", not_readable)
    assert sorted(found[:2] for found in lookup.registered(config)) == expected


def test_a_run_is_kept_from_its_last_use(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    train(run_step, history[1], "r")
    now = datetime.now(UTC)
    assert history[1] in protected(config, Policy(3), now=now + timedelta(days=2))[TABLE]
    assert history[1] not in protected(config, Policy(3), now=now + timedelta(days=4))[TABLE]


def test_what_is_online_stays(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    with sqlite3.connect(str(config.online_store)) as connection:
        connection.execute("CREATE TABLE airloop_watermark (view TEXT, snapshot INTEGER)")
        connection.execute("INSERT INTO airloop_watermark VALUES ('pace', ?)", (history[2],))
    assert protected(config, NOTHING_ELSE)[TABLE][history[2]] == ["online values of pace"]


def test_what_was_materialised_last_stays_whatever_the_store(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    for snapshot in history[1:3]:
        run_step(materialize, table=f"{TABLE}@{snapshot}", run=RunInfo("shop", str(snapshot), "online"))
    reasons = protected(config, NOTHING_ELSE)[TABLE]
    assert set(reasons) == {history[2], history[5]}
    assert reasons[history[2]] == ["online values of drivers_v1"]


def test_a_tag_protects(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    warehouse.table(TABLE).manage_snapshots().create_tag(history[4], "audit-0123456789ab").commit()
    gc.collect(config, NOTHING_ELSE, grace_s=0)
    assert [s.id for s in warehouse.history(TABLE)] == history[4:]


def test_a_manifest_that_cannot_be_read_stops_everything(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    train(run_step, history[1], "r")
    next((config.artifacts / "steps").glob("*/*/*/manifest.json")).write_text("{")
    with pytest.raises(ContractBroken, match=f"cannot be read.*; {REDO}"):
        gc.collect(config, NOTHING_ELSE, grace_s=0)
    assert len(warehouse.history(TABLE)) == 6


def test_a_record_that_cannot_be_read_stops_everything(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep
) -> None:
    train(run_step, history[1], "r")
    record = next((config.artifacts / "runs").glob("*/*/*.json"))
    record.write_text(record.read_text().replace('"finished_at": "', '"finished_at": "?'))
    with pytest.raises(ContractBroken, match=f"{record} cannot be read"):
        gc.collect(config, NOTHING_ELSE, grace_s=0)
    record.write_text("{")
    with pytest.raises(ContractBroken, match=f"{record} cannot be read.*; {FORGET}"):
        gc.collect(config, NOTHING_ELSE, grace_s=0)
    assert len(warehouse.history(TABLE)) == 6


@pytest.mark.parametrize("kind", ["manifest", "record"])
def test_one_of_a_newer_airloop_stops_everything(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep, kind: str
) -> None:
    train(run_step, history[1], "r")
    pattern = "steps/*/*/*/manifest.json" if kind == "manifest" else "runs/*/*/*.json"
    path = next(config.artifacts.glob(pattern))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": RECORD_FORMAT + 1}))
    before = {p for p in config.home.rglob("*") if p.is_file() and "locks" not in p.parts}
    said = f"{path} is of format {RECORD_FORMAT + 1}, this airloop knows format {RECORD_FORMAT}; update airloop here"
    with pytest.raises(ContractBroken, match=said):
        gc.collect(config, NOTHING_ELSE, grace_s=0)
    assert len(warehouse.history(TABLE)) == 6
    assert before <= {p for p in config.home.rglob("*") if p.is_file()}


@pytest.mark.parametrize("by", ["a snapshot", "the ledger"])
def test_another_artifact_store_says_nothing_of_what_is_needed(
    config: Config, warehouse: Warehouse, history: list[int], run_step: RunStep, tmp_path: Path, by: str
) -> None:
    other = replace(config, artifacts=tmp_path / "empty")
    assert gc.collect(other, NOTHING_ELSE).snapshots == [], "no step wrote anything"
    if by == "a snapshot":
        train(run_step, history[1], "kept")
        warehouse.branch(TABLE, "audit-0123456789ab", at=history[0])
    else:
        decide(warehouse, "0f" * 32, {})
    run_step(materialize, table=f"{TABLE}@main", run=RunInfo("shop", "r", "m"), config=other)
    before = {name: warehouse.table(name).metadata for name in warehouse.tables()}
    for dry_run in (True, False):
        with pytest.raises(BadConfiguration, match=r"/empty has no manifest or record.*set AIRLOOP_ARTIFACTS"):
            gc.collect(other, NOTHING_ELSE, grace_s=0, dry_run=dry_run)
    assert {name: warehouse.table(name).metadata for name in warehouse.tables()} == before
    if by == "a snapshot":
        assert gc.collect(config, NOTHING_ELSE, grace_s=0).snapshots
