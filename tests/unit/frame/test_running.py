"""Which attempts run: the same behaviour, by files and by PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Call
from airloop.frame import running
from airloop.frame.running import Announced
from tests.postgres_server import OwnServer, PostgresServer

KILLED = """
import os, signal
from airloop.config import Config
from airloop.contract import Call
from airloop.frame.running import Announced
with Announced(Config.from_environment(), Call("look", {"table": "a.b@7"}, "ef" * 8)) as announced:
    announced.resolved()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["files", "postgres"])
def config(config: Config, request: pytest.FixtureRequest) -> Config:
    if request.param == "files":
        return config
    return replace(config, catalog=request.getfixturevalue("postgres_url"))


def known(config: Config) -> list[tuple[str, str, bool]]:
    with running.closed(config):
        return [(a.attempt, a.arguments, a.alive) for a in running.attempts(config)]


def call(attempt: str, **arguments: Any) -> Call:
    return Call("look", arguments, attempt)


def test_an_attempt_is_known_while_it_runs(config: Config) -> None:
    assert known(config) == []
    with Announced(config, call("ab" * 4, table="a.b@7")) as first, Announced(config, call("cd" * 4)) as second:
        first.resolved()
        second.resolved()
        assert known(config) == [("abababab", '{"table": "a.b@7"}', True), ("cdcdcdcd", "{}", True)]
        with running.closed(config):
            earlier, later = (a.started_at for a in running.attempts(config))
        assert 1.6e9 < earlier <= later
    assert known(config) == []


def test_attempts_wait_at_the_gate(config: Config) -> None:
    entered = threading.Event()

    def attempt() -> None:
        with Announced(config, call("ab" * 4)):
            entered.set()

    with running.closed(config):
        thread = threading.Thread(target=attempt)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(60)
    thread.join()


def test_what_ended_since_upkeep_began_stays_known(config: Config) -> None:
    with running.deciding(config):
        with Announced(config, call("ab" * 4)):
            pass
        assert known(config) == [("abababab", "{}", False)]
    assert known(config) == [("abababab", "{}", False)]
    with running.deciding(config):
        assert known(config) == []


def test_an_attempt_that_was_killed_is_not_alive(config: Config) -> None:
    environment = {**os.environ, "AIRLOOP_HOME": str(config.home), "AIRLOOP_CATALOG": config.catalog}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert done.returncode == -9
    assert known(config) == [("efefefefefefefef", '{"table": "a.b@7"}', False)]
    with running.deciding(config):
        assert known(config) == []


def test_many_begin_at_once(config: Config) -> None:
    errors: list[BaseException] = []

    def attempt(number: int) -> None:
        try:
            with Announced(config, call(f"{number:08}")) as announced:
                announced.resolved()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert known(config) == []


@pytest.mark.parametrize("config", ["postgres"], indirect=True)
def test_a_server_that_forgot_its_locks(config: Config, postgres_server: PostgresServer) -> None:
    """Attempts from before its restart count as alive: upkeep cannot know that they are not."""
    if not isinstance(postgres_server, OwnServer):
        pytest.skip("the server is not ours")
    with Announced(config, call("ab" * 4)) as announced:
        announced.resolved()
        postgres_server.stop()
        postgres_server.start()
        assert known(config) == [("abababab", "{}", True)]
    # Its end could not be told to the server that it began with.
    assert known(config) == [("abababab", "{}", True)]
