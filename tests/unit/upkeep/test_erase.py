"""What an erasure refuses, leaves and says; what it takes away is held to a real loop in tests/service."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from airloop.cli import main
from airloop.config import Config
from airloop.contract import Call
from airloop.errors import BadArgument, StoreBusy
from airloop.frame.running import Announced
from airloop.provenance.erasures import entries
from airloop.upkeep.erase import Request, erase
from airloop.upkeep.subject import entity
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

ANNA = Request(entity(["person=anna-0"]), "asked", "A. Clerk")


@pytest.fixture
def visits(warehouse: Warehouse) -> Warehouse:
    rows = pa.table({"visit": [1, 2], "person": ["anna-0", "berta-0"], "n": [1, 2]})
    warehouse.ensure("raw.visits", rows.schema, key=("visit",))
    warehouse.commit("raw.visits", rows, key="a")
    return warehouse


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
