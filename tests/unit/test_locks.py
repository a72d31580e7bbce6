"""Locks between processes: the same behaviour, by files and by PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airloop.config import Config
from airloop.errors import BadConfiguration, StoreBusy, Unreachable
from airloop.locks import FileLocks, HeldInPostgres, Locks, PostgresLocks, check_needed, lock_key, locks_of

HOLDER = """
import os, sys, time
from dataclasses import replace
from airloop.config import Config
from airloop.locks import locks_of
name, shared = sys.argv[1:]
with locks_of(Config.from_environment()).hold(name, shared=shared == "shared"):
    print("held", flush=True)
    sys.stdin.readline()
print("freed", flush=True)
"""


@pytest.fixture(params=["files", "postgres"])
def config(config: Config, request: pytest.FixtureRequest) -> Config:
    if request.param == "files":
        return config
    return replace(config, catalog=request.getfixturevalue("postgres_url"))


@pytest.fixture
def locks(config: Config) -> Locks:
    return locks_of(config)


@pytest.fixture
def other(config: Config) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that wants a lock; it frees it when it is sent a line."""
    started = []

    def start(name: str, shared: str = "exclusive") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", HOLDER, name, shared],
            env={**os.environ, "AIRLOOP_HOME": str(config.home), "AIRLOOP_CATALOG": config.catalog},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_free(locks: Locks, name: str, *, shared: bool = False) -> bool:
    held = locks.take(name, timeout_s=0, shared=shared)
    if held is not None:
        held.release()
    return held is not None


def in_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_which_locks_they_are(config: Config, locks: Locks) -> None:
    on_postgres = config.catalog.startswith("postgresql")
    assert isinstance(locks, PostgresLocks if on_postgres else FileLocks)


def test_one_process_at_a_time(locks: Locks, other: Callable[..., subprocess.Popen[str]]) -> None:
    with locks.hold("a") as held:
        held.check()
        waiting = other("a")
        assert heard(other("b")) == "held"
        time.sleep(0.2)
        assert waiting.poll() is None
    assert heard(waiting) == "held"
    assert not is_free(locks, "a")
    with pytest.raises(StoreBusy, match=r"a was locked for 0\.1 s"), locks.hold("a", timeout_s=0.1):
        pass
    waiting.communicate("free it\n")
    assert is_free(locks, "a")


def test_those_who_share(locks: Locks, other: Callable[..., subprocess.Popen[str]]) -> None:
    with locks.hold("gate", shared=True):
        sharing = other("gate", "shared")
        assert heard(sharing) == "held"
        assert is_free(locks, "gate", shared=True)
        assert not is_free(locks, "gate")
    assert not is_free(locks, "gate")
    sharing.communicate("free it\n")
    with locks.hold("gate"):
        assert not is_free(locks, "gate", shared=True)


def test_a_turn_is_waited_for_and_not_needed(locks: Locks, other: Callable[..., subprocess.Popen[str]]) -> None:
    holder = other("tables/raw.a")
    assert heard(holder) == "held"
    began = time.monotonic()
    with locks.turn("tables/raw.a", timeout_s=0.3) as mine:
        assert not mine
    assert 0.3 <= time.monotonic() - began < 30
    holder.communicate("free it\n")
    with locks.turn("tables/raw.a", timeout_s=0.3) as mine:
        assert mine


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_goes_with_its_process(
    locks: Locks, other: Callable[..., subprocess.Popen[str]], how: signal.Signals
) -> None:
    holder = other("models/delay")
    assert heard(holder) == "held"
    holder.send_signal(how)
    with locks.hold("models/delay", timeout_s=60):
        pass


def test_a_process_that_is_killed_while_it_waits_gets_nothing(
    locks: Locks, other: Callable[..., subprocess.Popen[str]]
) -> None:
    with locks.hold("a"):
        waiting = other("a")
        time.sleep(0.5)
        waiting.kill()
        waiting.wait()
    with locks.hold("a", timeout_s=60):
        pass


def test_many_names_at_once(locks: Locks) -> None:
    names = [f"tables/raw.t{n}" for n in range(12)]
    held = [locks.take(name, timeout_s=0) for name in names]
    assert None not in held
    assert not any(is_free(locks, name) for name in names)
    for one in held:
        assert one is not None
        one.release()
        one.release()  # the second time nothing happens
    assert all(is_free(locks, name) for name in names)


def test_a_thread_does_not_wait_for_itself(locks: Locks) -> None:
    with locks.hold("a"):
        for shared in (True, False):
            with pytest.raises(RuntimeError, match="held by this thread already"):
                locks.take("a", shared=shared)
        assert locks.take("a", timeout_s=0) is None
    with locks.hold("a", shared=True), locks.hold("a", shared=True), locks.hold("b"):
        assert not is_free(locks, "a")
    assert is_free(locks, "a")


def test_threads_take_turns(locks: Locks) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locks.hold("a"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    for thread in [in_a_thread(work) for _ in range(4)]:
        thread.join()
    assert most == 1


def test_a_forked_child_has_no_effect_on_the_locks_of_its_parent(locks: Locks) -> None:
    with locks.hold("a") as held:

        def work() -> None:
            held.release()
            # A child takes locks of its own, and waits for those of its parent like anybody else.
            with locks.hold("b", timeout_s=60):
                sys.exit(locks.take("a", timeout_s=0) is not None)

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(60)
        assert child.exitcode == 0
        held.check()
        assert not is_free(locks, "a")
        assert is_free(locks, "b")
    assert is_free(locks, "a")


def test_errors_inside_free_the_lock_and_stay_as_they_are(locks: Locks) -> None:
    with pytest.raises(KeyError), locks.hold("a"):
        raise KeyError("a bug")
    assert is_free(locks, "a")


def test_a_file_that_upkeep_removed_keeps_nobody_in(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    entered: list[str] = []

    def work() -> None:
        with locks.hold("steps/ab", timeout_s=60):
            entered.append("second")
            assert not is_free(locks, "steps/ab")

    with locks.hold("steps/ab"):
        thread = in_a_thread(work)
        time.sleep(0.1)
        (tmp_path / "steps" / "ab.lock").unlink()
        assert entered == []
    thread.join()
    assert entered == ["second"]
    assert (tmp_path / "steps" / "ab.lock").exists()


def test_a_key_is_the_same_everywhere() -> None:
    assert lock_key("public", "models/delay") == -2533377798186369574
    keys = {lock_key(schema, f"t{n}") for schema in ("public", "other") for n in range(1000)}
    assert len(keys) == 2000
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_catalogs_in_schemas_of_one_database_do_not_lock_each_other(config: Config, postgres_url: str) -> None:
    import psycopg

    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    one = PostgresLocks(postgres_url, "AIRLOOP_CATALOG")
    two = PostgresLocks(f"{postgres_url}?options=-csearch_path%3Dother", "AIRLOOP_CATALOG")
    with one.hold("a"):
        assert is_free(two, "a")


def test_a_connection_that_is_lost(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    import psycopg

    locks = PostgresLocks(postgres_url, "AIRLOOP_CATALOG")
    with locks.hold("a") as held:
        assert isinstance(held, HeldInPostgres)
        with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 60000)", (held.connection.info.backend_pid,))
        with pytest.raises(Unreachable, match="lock a was lost: holding a: PostgreSQL: "):
            held.check()
        # Another one has it before we notice by ourselves.
        with locks.hold("b", timeout_s=60):
            pass
    assert "lock a was lost" in caplog.text
    assert is_free(locks, "a")


def test_a_lock_that_the_connection_does_not_hold(postgres_url: str) -> None:
    with PostgresLocks(postgres_url, "AIRLOOP_CATALOG").hold("a") as held:
        assert isinstance(held, HeldInPostgres)
        held.check()
        # What a pooler does that gives the connection to somebody else for a while.
        held.connection.execute("SELECT pg_advisory_unlock_all()")
        with pytest.raises(Unreachable, match="lock a was lost: the server does not know of it; run the task again"):
            held.check()


def test_what_is_needed_is_asked_for(tmp_path: Path, postgres_url: str) -> None:
    servers = PostgresLocks(postgres_url, "AIRLOOP_CATALOG")
    with FileLocks(tmp_path).hold("a") as file, servers.hold("a") as held, servers.hold("b") as other:
        assert isinstance(held, HeldInPostgres)
        assert isinstance(other, HeldInPostgres)
        file.needed()
        held.needed()
        check_needed()
        assert in_a_child(check_needed) == "", "a child asks after what its parent holds"
        check_needed()
        other.connection.close()
        check_needed()
        held.connection.execute("SELECT pg_advisory_unlock_all()")
        said = "not done, since lock a was lost: the server does not know of it; run the task again"
        with pytest.raises(Unreachable, match=said):
            check_needed()
        assert in_a_child(check_needed) == said
    check_needed()


def in_a_child(work: Callable[[], None]) -> str:
    """What a forked child's work raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read) as answer:
        return answer.read()


def test_the_server_ends_a_connection_whose_other_side_says_nothing(postgres_url: str) -> None:
    with PostgresLocks(postgres_url, "AIRLOOP_CATALOG").hold("a") as held:
        assert isinstance(held, HeldInPostgres)

        def setting(name: str) -> str:
            found = held.connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            assert found is not None
            return str(found[0])

        idle, every, times = (int(setting(f"tcp_keepalives_{name}")) for name in ("idle", "interval", "count"))
        assert idle + every * times <= 60
        assert setting("statement_timeout") == "0"
        with held.connection.cursor() as cursor:
            cursor.execute("SELECT state FROM pg_stat_activity WHERE pid = pg_backend_pid()")
            assert cursor.fetchone() == ("active",)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (("s3cret-of-tests", "s3cret-that-is-wrong"), BadConfiguration, "authentication failed"),
        (("airloop:", "nobody-here:"), BadConfiguration, "authentication failed"),
        (("127.0.0.1:", "127.0.0.1:1"), Unreachable, "Connection refused"),
        (("/airloop_", "/not_airloop_"), BadConfiguration, "does not exist"),
    ],
)
def test_a_server_that_is_not_to_be_had(
    postgres_url: str, change: tuple[str, str], kind: type[Exception], said: str
) -> None:
    address = postgres_url.replace(*change)
    if "127.0.0.1:1" in change:
        address = postgres_url.partition("@")[0] + "@127.0.0.1:1/airloop"
    with pytest.raises(kind, match=said) as caught, PostgresLocks(address, "AIRLOOP_CATALOG").hold("a"):
        pass
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error} {error!r}"
        error = error.__cause__
