"""An erasure that is killed anywhere: the same request again does the rest, once, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.provenance.erasures import entries
from airloop.upkeep.erase import Request, erase
from airloop.upkeep.forget import find
from airloop.upkeep.subject import entity, types_of
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.references import References, folder
from airloop.warehouse.refs import TableRef

SUBJECT = entity(["person=anna-0"])
TABLES = ("raw.visits", "training.visits")
DROPPED = "old.visits"
ROWS = dict.fromkeys(TABLES, 1) | {DROPPED: 0}
POINTS = (
    "erase:intent",
    "erase:commit",
    "erase:commit:2",
    "erase:committed",
    "erase:table",
    "erase:dropped",
    "erase:online",
    "erase:redacted",
    "erase:done",
)


@pytest.fixture
def filled(config: Config, warehouse: Warehouse) -> Config:
    """Two tables with a past, one that was dropped, and a page that quotes the person."""
    for name in (*TABLES, DROPPED):
        warehouse.ensure(name, pa.schema([("visit", pa.int64()), ("person", pa.string())]), key=("visit",))
        for batch, people in enumerate((["berta-0"], ["anna-0", "cleo-0"], ["dora-0"])):
            visits = [10 * batch + n for n in range(len(people))]
            warehouse.commit(name, pa.table({"visit": visits, "person": people}), key=str(batch), mode="upsert")
    warehouse._catalog.drop_table(DROPPED)
    (config.artifacts / "reports").mkdir(parents=True)
    (config.artifacts / "reports" / "r.html").write_text("<p>anna-0</p>")
    return config


def request(reason: str = "asked") -> Request:
    return Request(SUBJECT, reason, "A. Clerk")


@pytest.mark.parametrize("point", POINTS)
def test_the_same_request_again_does_the_rest(filled: Config, point: str) -> None:
    before = [p for p in filled.warehouse.rglob("*") if p.suffix in (".avro", ".parquet")]
    killed = subprocess.run(
        [
            sys.executable,
            "-m",
            "airloop",
            "erase",
            "--entity",
            "person=anna-0",
            "--reason",
            "asked",
            "--by",
            "A. Clerk",
        ],
        env={**os.environ, "AIRLOOP_HOME": str(filled.home), "AIRLOOP_FAULT": f"kill@{point}"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]

    done = erase(filled, request())

    warehouse = Warehouse.open(filled)
    rows = entries(warehouse)
    closing = [e for e in rows if e.state == "done"]
    assert len({e.erasure for e in rows}) == len(closing) == 1
    if point != "erase:done":
        assert done.erasure == closing[0].erasure
        assert {n: t["rows"] for n, t in done.tables.items()} == ROWS
    assert {n: t["rows"] for n, t in closing[0].removed["tables"].items()} == ROWS
    for name in TABLES:
        table = warehouse.table(name)
        where = SUBJECT.rows(types_of(table), {})
        assert where is not None
        assert not find(filled, table, where)
        people = [row["person"] for row in warehouse.scan(TableRef(name)).read_all().to_pylist()]
        assert sorted(people) == ["berta-0", "cleo-0", "dora-0"]
        named = References(table).all()
        for path in (p for p in before if p.is_relative_to(folder(table)) and p.exists()):
            # What the killed attempt wrote anew never held the person and is for gc.
            assert str(path) in named, path
    left = [p for p in (filled.warehouse / "old").rglob("*") if p.suffix in (".parquet", ".avro")]
    assert len(left) == 2, "the files of the others"
    assert (filled.artifacts / "reports" / "r.html").read_text() == "<p>[erased]</p>"
    assert not list((filled.home / "erasures").glob("*")), "no note is left"


def test_a_later_request_for_the_same_person_is_another_erasure(filled: Config) -> None:
    first = erase(filled, request())
    warehouse = Warehouse.open(filled)
    warehouse.commit("raw.visits", pa.table({"visit": [77], "person": ["anna-0"]}), key="again", mode="upsert")
    second = erase(filled, request("asked again"))
    assert first.erasure != second.erasure
    assert [e.reason for e in entries(warehouse) if e.state == "done"] == ["asked", "asked again"]


def test_rows_of_a_table_and_their_kin(filled: Config) -> None:
    by_rows = Request(None, "asked", "A. Clerk", table="raw.visits", where="person = 'anna-0'")
    planned = erase(filled, by_rows, dry_run=True)
    assert set(planned.tables) == {*TABLES, DROPPED}, "the other tables have the key too"
    done = erase(filled, by_rows)
    assert done.tables == planned.tables
    warehouse = Warehouse.open(filled)
    for name in TABLES:
        assert warehouse.count(TableRef(name)) == 3
