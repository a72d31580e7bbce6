"""The command line: what people and scripts see, and how it exits."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from airloop.cli import doctor, main
from airloop.cli.doctor import _home, _online_store, _reachable, _sqlite
from airloop.config import Config, RedisAddress, S3Address
from airloop.contract import Call, Interval, RunInfo
from airloop.errors import BadConfiguration
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.objects import Bucket
from airloop.steps import load
from airloop.warehouse import mounts
from airloop.warehouse.catalog import Warehouse

Run = Callable[..., tuple[int, str, str]]
NIGHT = Interval.parse("2026-05-01T00:00Z/2026-05-02T00:00Z")


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


def test_the_catalogue_says_what_a_step_does_beside_its_results(run: Run) -> None:
    assert "never run again by a replay: it writes a backup" in run("steps", "backup")[1]
    effects = {s["step"]: s["effect"] for s in json.loads(run("steps", "--json")[1])}
    assert effects["train"] == ""
    # What reaches beyond tables, artifacts and MLflow says so, or at least looks whether it is still there.
    assert {name for name, effect in effects.items() if effect} == {
        "validate", "materialize", "check_parity", "register", "report", "upkeep", "backup",
    }  # fmt: skip


def test_a_replay_that_compared_nothing_is_no_success(run: Run, config: Config, tmp_path: Path) -> None:
    call = Call("backup", {"target": str(tmp_path / "vault")}, run=RunInfo("care", "night-1", "backup"), interval=NIGHT)
    assert execute(load("backup"), call, config, Redactor([]))[1] is None
    code, out, _ = run("replay", "care/night-1", "--task", "backup")
    assert (code, out.splitlines()[-1]) == (65, "Nothing compared.")


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
    assert "--at 2013-02-01 has no time zone" in err


@pytest.mark.parametrize("time", ["junk", "2013-02-01"])
def test_a_mistake_is_said_of_the_option_that_has_it(run: Run, time: str) -> None:
    code, _, err = run("promote", "delay", "1", "--reason", "why", "--effective", time)
    assert code == 65
    assert "--effective" in err
    assert "--at" not in err


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
    bad = [f for f in [*_sqlite(config), *_online_store(config)] if f.state == "bad"]
    assert [f.what for f in bad] == ["catalog", "MLflow store", "online store"]
    assert "set AIRLOOP_HOME to a local disk" in bad[0].mend
    with pytest.raises(BadConfiguration, match="SQLite's locks do not hold"):
        mounts.refuse_network(config.online_store, "the online store")


@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ("", r"s3://\S+ can be read and written"),
        ("IfNoneMatch", r"of 9 puts on an absent file 9 succeeded, not 1"),
        ("IfMatch", r"of 16 changes of a file, 4 at once, \d+ are in it"),
    ],
)
def test_the_doctor_tries_what_artifacts_need_of_a_store(
    config: Config, s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch, ignored: str, said: str
) -> None:
    put = Bucket._put

    def ignoring(self: Bucket, name: str, content: bytes, condition: Mapping[str, str]) -> bool:
        return put(self, name, content, {header: tag for header, tag in condition.items() if header != ignored})

    monkeypatch.setattr(Bucket, "_put", ignoring)
    (found,) = [f for f in _home(replace(config, artifacts=s3_bucket)) if f.what == "artifacts"]
    assert re.search(said, found.found)
    assert found.state == ("bad" if ignored else "ok")


def online(config: Config, address: str) -> tuple[str, str, str]:
    (found,) = _online_store(replace(config, online_store=RedisAddress(address)))
    assert found.what == "online store"
    return found.state, found.found, found.mend


def test_the_doctor_asks_the_redis_that_is_the_online_store(
    config: Config, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 60)
    state, found, _ = online(config, redis_url)
    assert state == "ok"
    assert re.fullmatch(r"(Redis|Valkey) \d+\.\d+\.\d+ at \S+/0 answers", found)
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("doctor", enabled=True, passwords=["+right"], categories=["+@all"])
        options = client.connection_pool.connection_kwargs
        path = options.get("path")
        address = f"unix://{{}}@{path}" if path else f"redis://{{}}@{options['host']}:{options['port']}"
        try:
            assert online(config, address.format("doctor:right"))[0] == "ok"
            state, found, mend = online(config, address.format("doctor:s3cret"))
        finally:
            client.acl_deluser("doctor")
    assert (state, mend) == ("bad", "correct AIRLOOP_ONLINE_STORE")
    assert "refused the user or password" in found
    assert "s3cret" not in found


def test_the_doctor_names_a_redis_that_is_away_at_once_and_without_its_password(config: Config, tmp_path: Path) -> None:
    state, found, mend = online(config, f"unix://{tmp_path}/nobody?password=s3cret")
    assert (state, "does not answer" in found, "s3cret" in found + mend) == ("bad", True, False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        state, found, _ = online(config, f"redis://:s3cret@127.0.0.1:{port}/2?socket_timeout=600")
    assert time.monotonic() - began < 60, "ten minutes, as the address says"
    assert (state, f"127.0.0.1:{port}/2 does not answer" in found, "s3cret" in found) == ("bad", True, False)
    assert online(config, "redis://:s3cret@127.0.0.1/x?db=y")[:2] == (
        "bad",
        "an address of a Redis that cannot be read",
    )


@pytest.mark.parametrize("address", ["postgresql://u:s3cret@h:x/db", "postgresql://127.0.0.1:1/db?password=s3cret"])
def test_the_doctor_keeps_passwords_of_addresses(address: str) -> None:
    found = _reachable("catalog", address)
    assert (found.state, "s3cret" in found.found + found.mend) == ("bad", False)
