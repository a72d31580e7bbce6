"""Formats: a newer home is refused, an older one migrated, and new keys are announced."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import RunInfo
from airloop.errors import BadConfiguration, ContractBroken
from airloop.frame import Step
from airloop.frame.key import KEY_FORMAT
from airloop.frame.manifest import MANIFEST_FORMAT
from airloop.upkeep.formats import key_changes, upgrade
from airloop.warehouse import evolve
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.home import HOME_FORMAT, home_format
from airloop.warehouse.store import open_catalog
from tests.places import IN_A_CLUSTER
from tests.unit.upkeep.conftest import SCHEMA, TABLE
from tests.unit.upkeep.test_gc import look


def test_a_new_home_says_its_format(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    assert home_format(config.home) == HOME_FORMAT
    assert warehouse.table(TABLE).properties[evolve.FORMAT] == str(evolve.TABLE_FORMAT)
    assert upgrade(config) == []


def test_a_newer_home_is_refused(config: Config, warehouse: Warehouse) -> None:
    (config.home / "format.json").write_text(json.dumps({"format": HOME_FORMAT + 1}))
    with pytest.raises(BadConfiguration, match=rf"of format {HOME_FORMAT + 1}, this airloop .* knows formats up to"):
        open_catalog(config)
    with pytest.raises(BadConfiguration, match="knows formats up to"):
        upgrade(config)


def test_a_format_that_cannot_be_read_is_no_old_one(config: Config, warehouse: Warehouse) -> None:
    (config.home / "format.json").write_text("{")
    with pytest.raises(BadConfiguration, match="cannot be read"):
        open_catalog(config)


@pytest.fixture
def old(config: Config, warehouse: Warehouse, history: list[int]) -> Config:
    """A home from before there were formats."""
    (config.home / "format.json").unlink()
    with warehouse.table(TABLE).transaction() as transaction:
        transaction.remove_properties(*(name for name in evolve.PROPERTIES if name != "commit.retry.num-retries"))
    return config


@IN_A_CLUSTER
def test_tables_that_pods_share_are_migrated_from_any_home(old: Config, tmp_path: Path) -> None:
    pod = replace(old, home=tmp_path / "a new pod")
    assert upgrade(pod, dry_run=True)[0].startswith("every table of an older format: tables carry a format")
    assert re.match(rf"{TABLE}: set airloop.format, .*gc.enabled", upgrade(pod)[0])
    assert upgrade(pod) == []


def test_an_older_home_is_migrated(old: Config, warehouse: Warehouse) -> None:
    open_catalog(old)
    planned = upgrade(old, dry_run=True)
    assert planned[0].startswith("from format 0 to 1: tables carry a format")
    assert home_format(old.home) == 0
    done = upgrade(old)
    assert re.match(rf"{TABLE}: set airloop.format, .*gc.enabled", done[0])
    assert home_format(old.home) == HOME_FORMAT
    assert evolve.PROPERTIES.items() <= warehouse.table(TABLE).properties.items()
    assert upgrade(old) == []


def test_a_table_is_migrated_when_it_is_declared(old: Config, warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA)
    assert evolve.PROPERTIES.items() <= warehouse.table(TABLE).properties.items()


def test_a_newer_table_is_refused(warehouse: Warehouse, history: list[int]) -> None:
    with warehouse.table(TABLE).transaction() as transaction:
        transaction.set_properties({evolve.FORMAT: str(evolve.TABLE_FORMAT + 1)})
    with pytest.raises(BadConfiguration, match="this airloop knows formats up to"):
        warehouse.ensure(TABLE, SCHEMA)
    with pytest.raises(BadConfiguration, match="this airloop knows formats up to"):
        warehouse.bring_up(TABLE)


def test_new_keys_are_announced(
    config: Config, history: list[int], run_step: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Step:
        assert name == "look"
        return look

    run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    assert key_changes(config, load) == []
    path = next((config.artifacts / "steps").glob("*/*/*/manifest.json"))
    manifest = json.loads(path.read_text())
    own = look.module
    manifest["code"] = {"fingerprint": "0" * 64, "modules": {**manifest["code"]["modules"], own: "0", "gone.away": "1"}}
    manifest["code"]["libraries"] = {"duckdb": "0.1"}
    path.write_text(json.dumps(manifest))
    (change,) = key_changes(config, load)
    assert change.modules == sorted([own, "gone.away"])
    assert change.libraries == ["duckdb 0.1 -> none"]
    assert str(change).startswith("look: 1 results would be made again, because of duckdb 0.1 -> none, ")


def test_keys_that_are_made_in_another_way_are_announced(
    config: Config, history: list[int], run_step: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    assert made["key_format"] == KEY_FORMAT
    for module in ("key", "execute"):
        monkeypatch.setattr(f"airloop.frame.{module}.KEY_FORMAT", KEY_FORMAT + 1)
    monkeypatch.setattr("airloop.upkeep.formats.KEY_FORMAT", KEY_FORMAT + 1)
    (change,) = key_changes(config, lambda _: look)
    assert str(change) == (
        f"look: 1 results would be made again, because of keys of format {KEY_FORMAT + 1}: theirs are of {KEY_FORMAT}"
    )
    again = run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    assert (again["status"], again["key_format"]) == ("done", KEY_FORMAT + 1)
    assert again["key"] != made["key"]
    assert key_changes(config, lambda _: look) == [], "its newest result has such a key"


def test_a_manifest_of_a_newer_airloop_announces_nothing(
    config: Config, history: list[int], run_step: Callable[..., dict[str, Any]]
) -> None:
    run_step(look, table=f"{TABLE}@main")
    path = next((config.artifacts / "steps").glob("*/*/*/manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": MANIFEST_FORMAT + 1}))
    with pytest.raises(ContractBroken, match="; update airloop here"):
        key_changes(config, lambda _: look)


@pytest.mark.parametrize(
    ("format_", "said", "advice"),
    [
        (MANIFEST_FORMAT + 1, f"is of format {MANIFEST_FORMAT + 1}, this airloop knows", "update airloop"),
        (MANIFEST_FORMAT - 1, f"is of format {MANIFEST_FORMAT - 1}, this airloop knows", "remove the file"),
        (None, "cannot be read", "remove the file"),
    ],
)
def test_a_manifest_of_another_format_is_refused_and_not_redone(
    config: Config,
    history: list[int],
    run_step: Callable[..., dict[str, Any]],
    format_: int | None,
    said: str,
    advice: str,
) -> None:
    run_step(look, table=f"{TABLE}@main")
    path = next((config.artifacts / "steps").glob("*/*/*/manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": format_}))
    before = path.read_bytes()
    with pytest.raises(ContractBroken, match=f"{path} {said}") as caught:
        run_step(look, table=f"{TABLE}@main")
    assert str(caught.value.advice).startswith(advice)
    assert path.read_bytes() == before
