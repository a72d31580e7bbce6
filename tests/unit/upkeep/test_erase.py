"""What an erasure refuses, leaves and says; what it takes away is held to a real loop in tests/service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airloop.cli import main
from airloop.config import Config, RedisAddress
from airloop.contract import Call
from airloop.errors import BadArgument, ContractBroken, StoreBusy
from airloop.frame import StepContext, StepResult, step
from airloop.frame.running import Announced
from airloop.provenance.erasures import entries
from airloop.upkeep.erase import Request, erase
from airloop.upkeep.gc import collect
from airloop.upkeep.retention import Policy
from airloop.upkeep.subject import entity
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import shop as shops
from tests.places import ALONE_AND_TOGETHER, EVERYWHERE, IN_A_CLUSTER, table_files
from tests.shop import DAY, T0, Shop
from tests.unit.upkeep.conftest import ANY_AGE

ANNA = Request(entity(["person=anna-0"]), "asked", "A. Clerk")


@step()
def report_rows(ctx: StepContext, *, table: TableRef) -> StepResult:
    """Count what a person's number equals, and quote the person."""
    return StepResult(
        counts={"rows_in": 336776},
        metrics={"share": 0.336776},
        details={"offender": {"customer": 336776}, "says": "customer 336776 of 336776.5"},
    )


@pytest.fixture
def visits(warehouse: Warehouse) -> Warehouse:
    rows = pa.table({"visit": [1, 2], "person": ["anna-0", "berta-0"], "n": [1, 2]})
    warehouse.ensure("raw.visits", rows.schema, key=("visit",))
    warehouse.commit("raw.visits", rows, key="a")
    return warehouse


@ALONE_AND_TOGETHER
def test_no_step_may_run(config: Config, visits: Warehouse) -> None:
    with Announced(config, Call("count", {}, "0123456789abcdef")) as running:
        running.resolved()
        with pytest.raises(StoreBusy, match="1 steps run; pause the loops"):
            erase(config, ANNA)
        assert erase(config, ANNA, dry_run=True).tables["raw.visits"]["rows"] == 1
    assert visits.count(TableRef("raw.visits")) == 2


def test_who_and_why_are_needed(config: Config, visits: Warehouse) -> None:
    with pytest.raises(BadArgument, match="a reason and who asked"):
        erase(config, Request(ANNA.subject, " ", "A. Clerk"))


def test_nobody_is_no_erasure(config: Config, visits: Warehouse) -> None:
    assert not erase(config, Request(entity(["person=nobody-0"]), "asked", "A. Clerk"))
    assert entries(visits) == []


def test_values_under_other_names_are_left_and_said(
    config: Config, visits: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    visits.ensure("crm.people", pa.schema([("who", pa.string())]))
    visits.commit("crm.people", pa.table({"who": ["anna-0", "cleo-0"]}), key="p")
    monkeypatch.setenv("AIRLOOP_HOME", str(config.home))
    asked = ["--json", "erase", "--entity", "person=anna-0", "--reason", "asked", "--by", "A. Clerk"]

    assert main(asked) == 65
    said = json.loads(capsys.readouterr().out)
    assert said["left"] == ["crm.people.who: add --column crm.people.who=person"]
    assert visits.count(TableRef("raw.visits")) == 1

    assert main([*asked, "--column", "crm.people.who=person"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["left"], list(said["tables"])) == ([], ["crm.people"])
    assert visits.count(TableRef("crm.people")) == 1


@EVERYWHERE
def test_a_value_in_another_column_is_said_whatever_its_type_branch_or_snapshot(
    config: Config, warehouse: Warehouse
) -> None:
    def table(name: str, column: str, values: pa.Array, **where: Any) -> None:
        rows = pa.table({column: values})
        warehouse.ensure(name, rows.schema)
        warehouse.commit(name, rows, key=f"{name}:{column}:{where}", **where)

    table("raw.orders", "customer", pa.array([7654321, 1]))
    table("raw.sales", "buyer", pa.array([7654321, 2]))
    table("raw.rates", "who", pa.array([7654321.0, 2.5]))
    table("raw.codes", "code", pa.array([Decimal("7654321.00")]))
    table("raw.lists", "seen", pa.array([["1", "7654321"]]))
    table("raw.audited", "one", pa.array([1]))
    table("raw.audited", "one", pa.array([7654321]), branch="audit-1")
    table("raw.past", "one", pa.array([7654321]))
    table("raw.past", "one", pa.array([3]), mode="replace")
    table("raw.others", "one", pa.array([17654321, 0]))
    table("raw.times", "at", pa.array([7654321], pa.timestamp("us", tz="UTC")))
    done = erase(config, Request(entity(["customer=7654321"]), "asked", "A. Clerk"))
    assert list(done.tables) == ["raw.orders"]
    assert done.left == [
        f"raw.{place}: add --column raw.{place}=customer"
        for place in ("audited.one", "codes.code", "lists.seen", "past.one", "rates.who", "sales.buyer")
    ]


def test_a_partition_leaves_no_folder_that_bears_the_value(config: Config, warehouse: Warehouse) -> None:
    rows = pa.table({"visit": [1, 2], "person": ["anna-0", "berta-0"]})
    warehouse.ensure("raw.visits", rows.schema, key=("visit",), partition_by="identity(person)")
    warehouse.commit("raw.visits", rows, key="a")
    assert erase(config, ANNA).left == []
    names = {path.name for path in config.warehouse.rglob("*")}
    assert "person=berta-0" in names
    assert "person=anna-0" not in names
    warehouse.commit("raw.visits", rows, key="b")
    assert warehouse.count(TableRef("raw.visits")) == 3


def test_values_too_short_to_be_looked_for_are_said(config: Config, visits: Warehouse) -> None:
    visits.ensure("crm.people", pa.schema([("who", pa.int64())]))
    visits.commit("crm.people", pa.table({"who": [1, 2]}), key="p")
    done = erase(config, Request(entity(["visit=1", "visit=12345678"]), "asked", "A. Clerk"))
    assert done.tables["raw.visits"]["rows"] == 1
    assert done.left == ["visit: 1 value is too short to be looked for in files and other columns"]


def test_tables_that_were_dropped_are_searched(config: Config, visits: Warehouse) -> None:
    rows = pa.table({"visit": [1, 2], "who": ["anna-0", "berta-0"]})
    for name in ("old.visits", "old.others"):
        visits.ensure(name, rows.schema)
        visits.commit(name, rows if name == "old.visits" else rows.slice(1), key="a")
        visits._catalog.drop_table(name)
    stray = config.warehouse / "copies" / "visits.parquet"
    stray.parent.mkdir()
    pq.write_table(rows, stray)
    pq.write_table(rows.slice(1), stray.with_name("others.parquet"))

    done = erase(config, Request(ANNA.subject, "asked", "A. Clerk", renamed={"old.visits": {"person": "who"}}))

    assert {name: here["files"] for name, here in done.tables.items()} == {"raw.visits": 1, "old.visits": 1}
    assert done.left == [f"{stray}: it belongs to no table of this catalog; remove it if nobody reads it"]
    files = [p for p in config.warehouse.rglob("*") if p.suffix in (".parquet", ".avro")]
    assert not [p for p in files if p.is_relative_to(config.warehouse / "old" / "visits")]
    assert [p.suffix for p in files if p.is_relative_to(config.warehouse / "old" / "others")].count(".parquet") == 1
    assert stray.exists(), "nobody knows whose it is"


@ALONE_AND_TOGETHER
def test_an_erasure_of_a_number_breaks_no_manifest(
    config: Config, warehouse: Warehouse, run_step: Callable[..., dict[str, Any]]
) -> None:
    rows = pa.table({"customer": [336776, 1], "n": [1, 2]})
    warehouse.ensure("raw.orders", rows.schema, key=("customer",))
    warehouse.commit("raw.orders", rows, key="a")
    run_step(report_rows, table="raw.orders")
    store = ArtifactStore(config.artifacts)
    name = next(name for name in store.names("steps") if name.endswith("/manifest.json"))
    made = json.loads(store.read_bytes(name))
    request = Request(entity(["customer=336776"]), "asked", "A. Clerk")
    done = erase(config, request)
    assert done.runs == ["test/run/report_rows"]
    now = json.loads(store.read_bytes(name))
    assert now == {**made, "details": {"offender": {"customer": None}, "says": "customer [erased] of 336776.5"}}
    assert done.left == []
    assert not erase(config, request), "it can be asked again"
    collect(config, Policy(keep_days=0), grace_s=0)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_what_was_online_is_gone_and_stays_gone(
    config: Config,
    warehouse: Warehouse,
    run_step: Callable[..., dict[str, Any]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    store: str,
) -> None:
    config = shops.with_repository(config, tmp_path / "repo")
    if store == "redis":
        config = replace(config, online_store=RedisAddress(request.getfixturevalue("redis_url")))
    shop = Shop(warehouse, config, lambda *a, **k: run_step(*a, config=config, **k))
    shop.put("pace", [(7654321, 1.0, 1, T0, T0), (2, 2.0, 2, T0, T0)])
    shop.run(T0 + DAY)
    assert shop.read(7654321, 2) == [(1.0, 1), (2.0, 2)]
    asked = Request(entity(["driver=7654321"]), "asked", "A. Clerk")
    assert erase(config, asked, dry_run=True).online
    assert shop.read(7654321) == [(1.0, 1)], "it was only asked what would go"

    done = erase(config, asked)

    assert done.online == ({"shop_pace": 1} if store == "sqlite" else {"redis driver": 1})
    assert (list(done.tables), done.left) == (["features.pace"], [])
    assert entries(warehouse)[-1].removed["online"] == done.online
    assert shop.read(7654321, 2) == [(None, None), (2.0, 2)]
    shop.run(T0 + 2 * DAY)
    assert shop.read(7654321, 2) == [(None, None), (2.0, 2)], "a materialisation brings nothing back"


def test_a_manifest_that_cannot_be_read_is_named_before_anything_goes(
    config: Config, visits: Warehouse, run_step: Callable[..., dict[str, Any]]
) -> None:
    run_step(report_rows, table="raw.visits")
    path = next((config.artifacts / "steps").glob("*/*/*/manifest.json"))
    path.write_text('{"rows_in": [erased]}')
    with pytest.raises(ContractBroken, match=f"{path} cannot be read"):
        erase(config, ANNA)
    assert entries(visits) == []
    assert visits.count(TableRef("raw.visits")) == 2


def test_aggregates_stay_and_are_said(
    config: Config, visits: Warehouse, run_step: Callable[..., dict[str, Any]]
) -> None:
    run_step(
        "sql",
        sql="SELECT 1 AS one, sum(n)::BIGINT AS n FROM v",
        inputs={"v": "raw.visits"},
        table="features.sums",
        key=["one"],
    )
    (config.home / "work" / "replay-kept").mkdir(parents=True)
    done = erase(config, ANNA)
    assert (done.derived, done.runs) == (["features.sums"], ["test/run/sql"])
    assert not (config.home / "work").exists()
    assert visits.count(TableRef("features.sums")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "raw.visits"], "--table and --where go together"),
        (["--entity", "person"], "write --entity column=value"),
        (["--entity", "person=x", "--column", "person"], "write --column namespace.table.name=column"),
        (["--table", "raw.visits", "--where", "nonsense ="], "SQL"),
    ],
)
def test_what_cannot_be_understood(
    config: Config,
    visits: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("AIRLOOP_HOME", str(config.home))
    assert main(["erase", *arguments, "--reason", "asked"]) == 65
    assert said in capsys.readouterr().err


@IN_A_CLUSTER
def test_what_one_pod_began_another_one_ends(
    config: Config, warehouse: Warehouse, tmp_path: Path, run_step: Callable[..., dict[str, Any]]
) -> None:
    """Rows, paths and texts in a bucket; the pod that began is killed, and nothing of its folders is left."""
    table = pa.table({"visit": [1, 2], "person": ["anna-0", "berta-0"], "n": [1, 2]})
    warehouse.ensure("raw.visits", table.schema, key=("visit",), partition_by="identity(person)")
    warehouse.commit("raw.visits", table, key="a")
    warehouse.commit("raw.visits", pa.table({"visit": [1], "person": ["anna-0"], "n": [3]}), key="b", mode="upsert")
    run_step("sql", sql="SELECT person, n FROM v", inputs={"v": "raw.visits"}, table="features.n", key=["person"])
    # Its note names the partition.
    collect(config, Policy(keep_days=0), grace_s=0)
    store = ArtifactStore(config.artifacts)
    store.publish_bytes("reports/shop/r.html", b"<p>anna-0 and berta-0</p>")
    environment = {
        "AIRLOOP_HOME": config.home, "AIRLOOP_WAREHOUSE": config.warehouse, "AIRLOOP_ARTIFACTS": config.artifacts,
        "AIRLOOP_CATALOG": config.catalog, "AIRLOOP_FAULT": "kill@erase:committed",
    }  # fmt: skip
    command = [sys.executable, "-m", "airloop", "erase", "--entity", "person=anna-0", "--reason", "asked", "--by", "A."]
    killed = subprocess.run(
        command, env=os.environ | {name: str(value) for name, value in environment.items()}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert store.names("erasures")

    elsewhere = replace(config, home=tmp_path / "another pod")
    done = erase(elsewhere, ANNA)

    assert (done.left, done.runs) == ([], ["test/run/sql"])
    assert {name: here["rows"] for name, here in done.tables.items()} == {"raw.visits": 1, "features.n": 1}
    assert done.redacted == [f"{config.artifacts}/reports/shop/r.html"]
    assert store.read_bytes("reports/shop/r.html") == b"<p>[erased] and berta-0</p>"
    assert store.names("erasures") == []
    assert not [path for path in table_files(config) if "anna-0" in path]
    assert not erase(elsewhere, ANNA), "nothing of it is found"
    for name in ("raw.visits", "features.n"):
        assert warehouse.scan(TableRef(name)).read_all()["person"].to_pylist() == ["berta-0"]
        for snapshot in warehouse.history(name):
            assert "anna-0" not in warehouse.scan(TableRef(name, snapshot.id)).read_all()["person"].to_pylist()
    # An open transaction or a lock of the killed pod would stop it.
    assert collect(elsewhere, Policy(keep_days=0), grace_s=ANY_AGE).waiting == 0


@IN_A_CLUSTER
def test_tables_in_a_bucket_that_were_dropped_are_searched(config: Config, warehouse: Warehouse) -> None:
    table = pa.table({"visit": [1, 2], "person": ["anna-0", "berta-0"]})
    for name in ("raw.visits", "raw.old", "raw.unseen"):
        if name == "raw.unseen":
            collect(config)
        warehouse.ensure(name, table.schema)
        warehouse.commit(name, table, key="a")
    unseen = warehouse.table("raw.unseen").location()
    for name in ("raw.old", "raw.unseen"):
        warehouse._catalog.drop_table(name)
    done = erase(config, ANNA)
    assert {name: here["files"] for name, here in done.tables.items()} == {"raw.visits": 1, "raw.old": 1}
    stray = next(p for p in table_files(config) if p.startswith(unseen) and p.endswith(".parquet"))
    assert done.left == [f"{stray}: it belongs to no table of this catalog; remove it if nobody reads it"]
    assert not [p for p in table_files(config) if "/raw/old/" in p and p.endswith((".parquet", ".avro"))]
