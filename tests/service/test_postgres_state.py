"""Catalog, locks and Feast's registry on a real PostgreSQL: steps end to end, several machines, and the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.cli.doctor import _sqlite as databases
from airloop.config import Config
from airloop.contract import Call
from airloop.errors import StoreBusy
from airloop.frame.running import Announced
from airloop.registry import models
from airloop.upkeep import gc
from airloop.upkeep.retention import Policy
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import shop as shops
from tests.shop import DAY, HOUR, T0, RunStep, Shop

APPLY = """
import json
from airloop.config import Config
from airloop.features import repo
calls = []
applying = repo._apply
repo._apply = lambda *arguments: (calls.append(1), applying(*arguments))
store = repo.open_store(Config.from_environment())
print(json.dumps([len(calls), sorted(view.name for view in store.list_feature_views())]))
"""


@pytest.fixture
def config(config: Config, tmp_path: Path, postgres_url: str) -> Config:
    """The shop's repository as it is for files; the configuration alone says PostgreSQL."""
    return shops.with_repository(replace(config, catalog=postgres_url, feast_registry=postgres_url), tmp_path / "repo")


@pytest.fixture
def shop(warehouse: Warehouse, config: Config, run_step: RunStep) -> Shop:
    return Shop(warehouse, config, run_step)


def test_features_end_to_end(shop: Shop, config: Config) -> None:
    shop.put("pace", [(1, 1.5, 3, T0, T0), (2, None, -4, T0, T0 + HOUR)])
    manifest = shop.run(T0 + DAY)
    assert (manifest["status"], manifest["counts"]["rows_written"]) == ("done", 3)
    assert shop.read(1, 2, 3) == [(1.5, 3), (None, -4), (None, None)]
    assert shop.run(T0 + DAY)["status"] == "reused"
    shop.put("pace", [(1, 2.5, 4, T0 + DAY + HOUR, T0 + DAY + HOUR)])
    assert shop.run(T0 + 2 * DAY)["status"] == "done"
    assert shop.read(1) == [(2.5, 4)]
    left = [p for p in config.home.rglob("*") if p.suffix in (".lock", ".db") and p.name != config.online_store.name]
    assert [p for p in left if "mlflow" not in p.name and "online" not in p.name] == [], "state that pods cannot see"
    written = "".join(p.read_text(errors="ignore") for p in config.artifacts.rglob("*.json"))
    assert "s3cret" not in written


def test_machines_apply_definitions_once(config: Config, tmp_path: Path) -> None:
    def machine(number: int) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "AIRLOOP_HOME": str(tmp_path / f"machine-{number}"),
            "AIRLOOP_CATALOG": config.catalog,
            "AIRLOOP_WAREHOUSE": str(config.warehouse),
            "AIRLOOP_FEAST_REGISTRY": str(config.feast_registry),
            "AIRLOOP_FEATURE_REPO": str(config.feature_repo),
            "AIRLOOP_ONLINE_STORE": str(tmp_path / "online.db"),
        }
        return subprocess.Popen([sys.executable, "-c", APPLY], env=environment, stdout=subprocess.PIPE, text=True)

    found = [json.loads(process.communicate(timeout=800)[0]) for process in [machine(n) for n in range(3)]]
    assert sorted(calls for calls, _ in found) == [0, 0, 1]
    assert [views for _, views in found] == [["pace", "route"]] * 3


def test_upkeep_leaves_what_an_attempt_elsewhere_reads(shop: Shop, config: Config) -> None:
    first = shop.put("pace", [(1, 1.5, 3, T0, T0)])
    shop.put("pace", [(2, 1.5, 3, T0, T0)])
    elsewhere = replace(config, home=config.home.parent / "elsewhere")
    with Announced(elsewhere, Call("look", {"table": str(first)}, "ab" * 8)) as announced:
        announced.resolved()
        gc.collect(config, Policy(keep_days=0), grace_s=0)
        assert Warehouse.open(config).count(first) == 1
    gc.collect(config, Policy(keep_days=0), grace_s=0)
    assert first.snapshot not in {s.id for s in Warehouse.open(config).history("features.pace")}
    assert Warehouse.open(config).count(TableRef("features.pace")) == 2


def test_one_writer_of_a_model_on_all_machines(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LOCK_TIMEOUT_S", 0.3)
    elsewhere = replace(config, home=config.home.parent / "elsewhere")
    one, two = (models.Registry(c, Warehouse.open(c)) for c in (config, elsewhere))
    with ThreadPoolExecutor(1) as pool, one.locked("delay"), two.locked("arrival"):

        def enter() -> None:
            with two.locked("delay"):
                pass

        with pytest.raises(StoreBusy, match="model delay was locked"):
            pool.submit(enter).result()
    with two.locked("delay"):
        pass


def asked(config: Config, **changed: Any) -> dict[str, tuple[str, str, str]]:
    return {f.what: (f.state, f.found, f.mend) for f in databases(replace(config, **changed))}


def test_the_doctor_asks_the_server(config: Config) -> None:
    found = asked(config)
    assert [found[name][0] for name in ("catalog", "Feast registry")] == ["ok", "ok"]
    assert "PostgreSQL 1" in found["catalog"][1]
    assert "answers, " in found["catalog"][1]
    wrong = config.catalog.replace("s3cret-of-tests", "s3cret-wrong")
    state, said, mend = asked(config, catalog=wrong)["catalog"]
    assert (state, "authentication failed" in said, "s3cret" in said + mend) == ("bad", True, False)
    away = "postgresql+psycopg://u:s3cret@127.0.0.1:1/airloop"
    state, said, mend = asked(config, feast_registry=away)["Feast registry"]
    assert (state, "127.0.0.1" in said, "s3cret" in said + mend) == ("bad", True, False)
