"""The command line: what people and scripts see, and how it exits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.cli import main
from airloop.cli.doctor import _sqlite
from airloop.config import Config
from airloop.errors import BadConfiguration
from airloop.warehouse import mounts
from airloop.warehouse.catalog import Warehouse

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(config: Config, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output, standard error of a command on the test's own home."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["--home", str(config.home), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def trips(warehouse: Warehouse) -> list[int]:
    """A table with two snapshots; returns their ids."""
    schema = pa.schema([pa.field("trip", pa.int64()), pa.field("carrier", pa.string())])
    warehouse.ensure("raw.trips", schema, key=["trip"])
    first = warehouse.commit("raw.trips", pa.table({"trip": [1, 2], "carrier": ["AA", None]}, schema), key="k1")
    second = warehouse.commit("raw.trips", pa.table({"trip": [3], "carrier": ["UA"]}, schema), key="k2")
    return [first.snapshot, second.snapshot]


def test_tables_are_listed_and_described(run: Run, trips: list[int]) -> None:
    code, out, _ = run("tables")
    assert code == 0
    assert "raw.trips" in out
    code, out, _ = run("tables", "raw.trips", "--json")
    document = json.loads(out)
    assert [c["column"] for c in document["columns"]] == ["trip", "carrier"]
    assert [s["snapshot"] for s in document["snapshots"]] == [str(s) for s in trips]


def test_an_empty_home_says_what_to_do(run: Run) -> None:
    assert run("tables")[:2] == (0, "No tables yet; `make demo` or a first run makes some.\n")


def test_sql_answers_on_any_snapshot(run: Run, trips: list[int]) -> None:
    code, out, _ = run("sql", "select count(*) as n from raw.trips", "--json")
    assert (code, json.loads(out)) == (0, [{"n": 3}])
    _, out, _ = run("sql", "--json", "--at", f"raw.trips@{trips[0]}", "select count(*) as n from raw.trips")
    assert json.loads(out) == [{"n": 2}]
    _, out, _ = run("sql", "select * from raw.trips order by trip", "--limit", "2")
    assert "more than 2 rows" in out


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("selec 1", "syntax error"),
        ("select * from raw.nothing", "raw.nothing"),
        ("create table x as select 1", "only SELECT works"),
        ("select 1; select 2", "2 statements"),
    ],
)
def test_sql_that_cannot_be_answered_is_refused(run: Run, trips: list[int], query: str, said: str) -> None:
    code, out, err = run("sql", query)
    assert (code, out) == (65, "")
    assert err.startswith("error: ")
    assert said in err


def test_an_error_is_json_for_scripts(run: Run) -> None:
    code, _, err = run("tables", "raw.nothing", "--json")
    assert code == 65
    assert json.loads(err)["error"] == "NotFound"
    assert json.loads(err)["exit_code"] == 65


def test_no_colour_reaches_a_pipe(run: Run, trips: list[int]) -> None:
    for arguments in (["tables"], ["steps"], ["sql", "select 1 as a"], ["tables", "raw.nothing"], ["doctor"]):
        _, out, err = run(*arguments)
        assert "\033" not in out + err


def test_a_wrong_command_line_exits_with_2() -> None:
    with pytest.raises(SystemExit) as left:
        main(["no-such-command"])
    assert left.value.code == 2


def test_the_catalogue_shows_typed_arguments(run: Run) -> None:
    code, out, _ = run("steps", "train")
    assert code == 0
    assert "examples: TableRef" in out
    _, out, _ = run("steps", "--json")
    steps = {s["step"]: s for s in json.loads(out)}
    assert {"extract", "report"} <= set(steps)
    assert all(a["description"] for s in steps.values() for a in s["arguments"] if a["name"] != "interval")
    assert run("steps", "nothing")[0] == 65


def test_a_step_is_run_by_hand_and_reused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "trips.csv").write_text("trip,carrier\n1,AA\n2,UA\n")
    source = tmp_path / "trips.yaml"
    source.write_text(
        "{name: trips, table: raw.trips, format: csv, key: [trip], columns: {trip: {type: int, nullable: false}, "
        "carrier: {type: string}}}"
    )
    arguments = ("run", "extract", f"source=@{source}", f"files={tmp_path}/trips.csv", "--json")
    code, out, _ = run(*arguments)
    made: dict[str, Any] = json.loads(out)
    assert (code, made["status"], made["counts"]["rows_new"]) == (0, "done", 2)
    assert json.loads(run(*arguments)[1])["status"] == "reused"


def test_a_step_that_says_no_exits_with_65(run: Run, tmp_path: Path) -> None:
    code, _, err = run("run", "extract", "source={}", f"files={tmp_path}/nothing.csv")
    assert code == 65
    assert "error: " in err
    assert run("run", "extract", "nonsense")[0] == 65


def test_nobody_was_champion_yet(run: Run) -> None:
    assert run("live") == (0, "Nothing was champion now.\n", "")
    assert run("live", "--at", "2013-02-01T00:00Z", "--json")[:2] == (0, "[]\n")
    code, _, err = run("live", "--at", "2013-02-01")
    assert code == 65
    assert "no time zone" in err


def test_the_doctor_says_what_is_there_and_what_to_mend(
    run: Run, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, _ = run("doctor", "--json")
    found = {f["what"]: f for f in json.loads(out)}
    assert (code, found["duckdb"]["state"], found["home"]["state"]) == (0, "ok", "ok")

    (tmp_path / "mounts").write_text(f"36 35 98:0 / {tmp_path} rw - nfs4 server:/export rw\n")
    lines = (tmp_path / "mounts").read_text().splitlines()
    monkeypatch.setattr(
        mounts, "file_system", lambda path, _=None: "nfs4" if lines and tmp_path in path.parents else "ext4"
    )
    bad = [f for f in _sqlite(config) if f.state == "bad"]
    assert [f.what for f in bad] == ["catalog", "MLflow store"]
    assert "set AIRLOOP_HOME to a local disk" in bad[0].mend
    with pytest.raises(BadConfiguration, match="SQLite's locks do not hold"):
        mounts.refuse_network(config.online_store, "the online store")
