"""Points: named by the code, and made of every durable write without anybody listing them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airloop.errors import BadConfiguration
from airloop.faults import point

WRITES = """
import os, sqlite3
from pathlib import Path
from airloop.faults import instrument, point
instrument()
home = Path(os.environ["AIRLOOP_HOME"])
point("begun")
Path(home / ".part-1").write_text("x")
os.replace(home / ".part-1", home / "ab/0123456789abcdef0123".replace("/", "-"))
with sqlite3.connect(home / "a.db") as managed:
    managed.execute("CREATE TABLE IF NOT EXISTS t (a)")
    managed.execute("CREATE TABLE IF NOT EXISTS t (a)")
    managed.execute("INSERT INTO t VALUES (1)")
plain = sqlite3.connect(home / "a.db", isolation_level=None)
plain.execute("BEGIN")
plain.execute("SELECT * FROM t").fetchall()
plain.execute("COMMIT")
plain.execute("BEGIN IMMEDIATE")
plain.execute("INSERT INTO t VALUES (2)")
plain.execute("COMMIT")
plain.execute("DELETE FROM t WHERE a = 1")
sqlite3.connect(":memory:").execute("CREATE TABLE t (a)")
import sqlalchemy
engine = sqlalchemy.create_engine(f"sqlite:///{home}/a.db")
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("UPDATE t SET a = 3"))
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("SELECT * FROM t"))
"""


def run(home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AIRLOOP_HOME": str(home), **more}
    return subprocess.run([sys.executable, "-c", WRITES], env=environment, capture_output=True, text=True, check=False)


def traced(home: Path) -> list[str]:
    home.mkdir()
    done = run(home, AIRLOOP_FAULT_TRACE=str(home.with_suffix(".trace")))
    assert done.returncode == 0, done.stderr
    return home.with_suffix(".trace").read_text().splitlines()


def test_every_durable_write_is_a_point_before_and_after(tmp_path: Path) -> None:
    found = traced(tmp_path / "home")
    writes = [p.removesuffix(":1") for p in found if p.endswith("before:1") or p == "begun:1"]
    assert writes == ["begun", "rename:ab-*:before", "sql:a.db/t:before"]
    # Created, inserted by a context manager, by COMMIT, deleted on its own, by SQLAlchemy; reading is no point.
    assert [p for p in found if p.startswith("sql:")] == [
        f"sql:a.db/t:{when}:{n}" for n in range(1, 6) for when in ("before", "after")
    ]


def test_the_same_code_gives_the_same_points(tmp_path: Path) -> None:
    assert traced(tmp_path / "one") == traced(tmp_path / "two")


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("kill@sql:a.db/t:before:3", ""),
        ("full@sql:a.db/t:before:2", "database or disk is full"),
        ("locked@sql:a.db/t:before:4", "database is locked"),
        ("full@rename:ab-*:before:1", "No space left on device"),
    ],
)
def test_a_fault_strikes_where_it_is_asked_to(tmp_path: Path, fault: str, ends: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    trace = tmp_path / "trace"
    done = run(home, AIRLOOP_FAULT=fault, AIRLOOP_FAULT_TRACE=str(trace))
    assert done.returncode == (1 if ends else -signal.SIGKILL), done.stderr
    assert ends in done.stderr
    assert trace.read_text().splitlines()[-1] == fault.partition("@")[2]


IN_POSTGRES = """
import os, psycopg, sqlalchemy
from airloop.faults import instrument
instrument()
address = os.environ["AIRLOOP_CATALOG"]
with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as alone:
    alone.execute("CREATE TABLE t (a int)")
engine = sqlalchemy.create_engine(address)
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
with engine.connect() as connection:
    connection.execute(sqlalchemy.text("SELECT * FROM t"))
with engine.connect() as connection:
    connection.execute(sqlalchemy.text("UPDATE t SET a = 2"))
    connection.commit()
"""


@pytest.mark.parametrize(("fault", "left"), [("", 2), ("kill@sql:postgresql:before:2", 1)])
def test_the_end_of_a_transaction_in_postgresql_is_a_point(
    tmp_path: Path, postgres_url: str, fault: str, left: int
) -> None:
    import psycopg

    trace = tmp_path / "trace"
    more = {"AIRLOOP_CATALOG": postgres_url, "AIRLOOP_FAULT": fault, "AIRLOOP_FAULT_TRACE": str(trace)}
    environment = {**os.environ, "AIRLOOP_HOME": str(tmp_path), **more}
    done = subprocess.run([sys.executable, "-c", IN_POSTGRES], env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == (-signal.SIGKILL if fault else 0), done.stderr
    expected = [f"sql:postgresql:{when}:{n}" for n in (1, 2) for when in ("before", "after")]
    assert trace.read_text().splitlines() == expected[: 3 if fault else 4]
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT a FROM t").fetchall() == [(left,)]


def test_nothing_is_hooked_without_a_fault(tmp_path: Path) -> None:
    check = "import os, sqlite3; from airloop.faults import instrument; b = os.replace, sqlite3.connect;"
    check += "instrument(); assert b == (os.replace, sqlite3.connect)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_FAULT")}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)


def test_a_fault_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOOP_FAULT", "kill")
    with pytest.raises(BadConfiguration, match="ACTION@POINT"):
        point("run")
