"""Several processes on one warehouse whose catalog is a PostgreSQL, and a server that goes away."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Call, RunInfo
from airloop.errors import BadConfiguration, TryAgain, Unreachable
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.frame.step import StepContext, StepResult, step
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.fault.forks import Fork, Forks
from tests.fault.test_warehouse_processes import content, outcome, writing
from tests.fault.warehouse_process import NAME, SCHEMA, rows
from tests.postgres_server import OwnServer, PostgresServer


@pytest.fixture
def config(config: Config, postgres_url: str) -> Config:
    return replace(config, catalog=postgres_url)


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[OwnServer]:
    """One that tests may stop; it runs again afterwards."""
    if not isinstance(postgres_server, OwnServer):
        pytest.skip("the server is not ours")
    yield postgres_server
    if not postgres_server.runs():
        postgres_server.start()


def start(forks: Forks, config: Config, machine: str, *actions: tuple[str, dict[str, Any]]) -> Fork:
    """A process of another machine: it shares the catalog and the tables' files, and has a home of its own."""
    words = [word for name, arguments in actions for word in (name, json.dumps(arguments))]
    return forks.start(
        words,
        {
            **os.environ,
            "AIRLOOP_HOME": str(config.home.parent / machine),
            "AIRLOOP_WAREHOUSE": str(config.warehouse),
            "AIRLOOP_CATALOG": config.catalog,
            "AIRLOOP_THREADS": "1",
            "AIRLOOP_MEMORY_MB": "512",
        },
    )


def at_once(forks: Forks, config: Config, go: Path, *actions: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    processes = [
        start(forks, config, f"machine-{n}", ("shell", {"script": "true"}), action) for n, action in enumerate(actions)
    ]
    for process in processes:
        assert process.stdout.readline(), process.communicate()[1]
    go.touch()
    return [outcome(process) for process in processes]


def test_eight_create_and_append_at_once(forks: Forks, config: Config, tmp_path: Path) -> None:
    go = tmp_path / "go"
    keys = [[f"w{w}-{n}" for n in range(3)] for w in range(8)]
    # Nothing is there yet: no table of the catalog's, no namespace, no table.
    found = at_once(
        forks,
        config,
        go,
        *(writing(mine, [[1000 * w + n] for n in range(3)], "append", go) for w, mine in enumerate(keys)),
    )
    assert found == [{"changed": [True] * 3, "adopted": [False] * 3}] * 8
    assert content(config) == [(1000 * w + n, keys[w][n]) for w in range(8) for n in range(3)]
    assert Counter(s.key for s in Warehouse.open(config).history(NAME)) == Counter(k for mine in keys for k in mine)


def test_the_same_keys_at_once(forks: Forks, config: Config, tmp_path: Path) -> None:
    go = tmp_path / "go"
    keys, ids = [f"k{n}" for n in range(4)], [[10 * n, 10 * n + 1] for n in range(4)]
    outcomes = at_once(forks, config, go, *[writing(keys, ids, "append", go)] * 4)
    assert [sum(o["changed"][n] for o in outcomes) for n in range(4)] == [1] * 4
    assert [sum(o["adopted"][n] for o in outcomes) for n in range(4)] == [3] * 4
    assert content(config) == [(i, key) for key, which in zip(keys, ids, strict=True) for i in which]


@pytest.mark.parametrize("moment", ["commit:before", "commit:after"])
def test_killed_around_the_commit(forks: Forks, config: Config, moment: str) -> None:
    work: dict[str, Any] = {"keys": ["k1"], "ids": [[3, 4]], "mode": "append"}
    victim = start(
        forks,
        config,
        "one",
        writing(["k0"], [[1, 2]], "append"),
        ("fault", {"fault": f"kill@{moment}:1"}),
        writing(**work),
    )
    err = victim.communicate()[1]
    assert victim.returncode == -signal.SIGKILL, err
    landed = moment == "commit:after"
    # The lock of the killed process is free: another machine goes on at once.
    began = time.monotonic()
    again = outcome(start(forks, config, "two", writing(**work)))
    assert time.monotonic() - began < 60
    assert again == {"changed": [not landed], "adopted": [landed]}
    assert content(config) == [(1, "k0"), (2, "k0"), (3, "k1"), (4, "k1")]


def test_a_forked_child_opens_connections_of_its_own(config: Config) -> None:
    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, SCHEMA, key=["id"])

    def backend(opened: Warehouse) -> int:
        with opened._catalog.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

    def work() -> None:
        # By the very object that its parent opened.
        warehouse.commit(NAME, rows([1], 0.0, "child"), key="child")
        sys.exit(backend(warehouse) == mine)

    mine = backend(warehouse)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(240)
    assert child.exitcode == 0
    assert backend(warehouse) == mine
    assert content(config) == [(1, "child")]


def test_connections_that_the_server_closed_are_replaced(config: Config) -> None:
    import psycopg

    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, SCHEMA, key=["id"])
    with psycopg.connect(config.catalog.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert warehouse.commit(NAME, rows([1], 0.0, "a"), key="a").changed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_goes_away_and_comes_back(config: Config, server: OwnServer, how: signal.Signals) -> None:
    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, SCHEMA, key=["id"])
    warehouse.commit(NAME, rows([1], 0.0, "a"), key="a")

    def batches() -> Iterator[pa.Table]:
        yield rows([2], 0.0, "b")
        server.stop(how)

    with pytest.raises(TryAgain, match=r"PostgreSQL") as caught:
        warehouse.commit(NAME, batches(), key="b")
    assert isinstance(caught.value, Unreachable)
    with pytest.raises(Unreachable, match=r"reading raw\.a|opening raw\.a"):
        warehouse.count(TableRef(NAME))
    with pytest.raises(Unreachable, match="connecting to 127"):
        Warehouse.open(replace(config, threads=7))
    server.start()
    assert warehouse.commit(NAME, rows([2], 0.0, "b"), key="b").changed
    assert content(config) == [(1, "a"), (2, "b")]


def test_a_refused_password_is_in_no_message(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadConfiguration, match="authentication failed") as caught, caplog.at_level(logging.DEBUG):
        Warehouse.open(replace(config, catalog=config.catalog.replace("s3cret-of-tests", "s3cret-wrong")))
    assert "s3cret" not in str(caught.value) + str(caught.value.__cause__) + caplog.text


@step()
def slowly(ctx: StepContext, *, seconds: float, log: str) -> StepResult:
    """Say when it works."""
    with open(log, "a") as file:
        file.write(f"begin {os.getpid()}\n")
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write(f"end {os.getpid()}\n")
    return StepResult(counts={"n": 1})


def attempt(config: Config, machine: str, log: Path, statuses: Any) -> None:
    call = Call(slowly.name, {"seconds": 1.5, "log": str(log)}, "", RunInfo("d", machine, "t"))
    receipt, error = execute(slowly, call, replace(config, home=config.home.parent / machine), Redactor([]))
    statuses.put((receipt.status, str(error)))


def test_attempts_at_one_key_on_two_machines_wait_for_each_other(config: Config, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log, statuses = tmp_path / "log", context.Queue()
    processes = [context.Process(target=attempt, args=(config, f"m{n}", log, statuses)) for n in range(2)]
    for process in processes:
        process.start()
    found = sorted(statuses.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    assert found == [("done", "None"), ("reused", "None")]
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["begin", "end"]


@step()
def put(ctx: StepContext, *, ids: list[int]) -> StepResult:
    """Write rows."""
    warehouse = ctx.warehouse
    warehouse.ensure(NAME, SCHEMA, key=["id"])
    done = warehouse.commit(NAME, rows(ids, 0.0, "put"), key=ctx.key)
    return StepResult(outputs={"table": done.ref}, counts={"rows": done.added})


def test_a_step_whose_server_goes_away(config: Config, server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(put.name, {"ids": [1, 2]}, "", RunInfo("d", "r", "t"))
    commit = Warehouse.commit

    def struck(self: Warehouse, *arguments: Any, **more: Any) -> Any:
        server.stop(signal.SIGQUIT)
        return commit(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "commit", struck)
        receipt, error = execute(put, call, config, Redactor([]))
    assert (receipt.status, type(error)) == ("try_again", Unreachable)
    receipt, error = execute(put, call, config, Redactor([]))
    assert (receipt.status, type(error)) == ("try_again", Unreachable)
    server.start()
    receipt, error = execute(put, call, config, Redactor([]))
    assert (receipt.status, error) == ("done", None)
    records = list((ArtifactStore(config.artifacts).root / "attempts").rglob("*.json"))
    assert len(records) == 3
    assert not any("s3cret" in path.read_text() for path in records)
    assert content(config) == [(1, "put"), (2, "put")]
