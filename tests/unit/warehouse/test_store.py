"""Opening the catalog, and the names of the surroundings' errors."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.errors import BadArgument, BadConfiguration, OutOfMemory, StoreBusy, StoreFull, StoreReadOnly
from airloop.warehouse import store
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.store import sqlite_path, storing


def test_opened_once_in_a_process(config: Config) -> None:
    warehouse = Warehouse.open(config)
    assert Warehouse.open(config) is warehouse
    assert Warehouse.open(replace(config, threads=1)) is not warehouse
    child = os.fork()
    if not child:
        os._exit(Warehouse.open(config) is warehouse)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a child uses its parent's connections"


def test_sqlite_is_in_wal_mode_and_waits(config: Config) -> None:
    warehouse = Warehouse.open(config)
    with warehouse._catalog.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == store.BUSY_S * 1000


def test_a_catalog_in_another_schema_than_its_locks(config: Config, postgres_url: str) -> None:
    import psycopg

    config = replace(config, catalog=postgres_url)
    Warehouse.open(config).ensure("raw.a", pa.schema([("id", pa.int64())]))
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")

    def opened(search_path: str) -> list[str]:
        address = f"{postgres_url}?options=-csearch_path%3D{search_path}"
        return Warehouse.open(replace(config, catalog=address)).tables()

    said = "iceberg_tables is in the schema public, and search_path begins with other; let search_path begin with"
    with pytest.raises(BadConfiguration, match=said):
        opened("other,public")
    assert opened("public,other") == ["raw.a"]
    assert opened("other") == [], "a catalog of its own"
    # Both have one now.
    assert opened("other,public") == []
    assert opened("public,other") == ["raw.a"]


def test_opening_is_quick(config: Config) -> None:
    Warehouse.open(config).ensure("raw.a", pa.schema([("id", pa.int64())]))
    again = replace(config, threads=1)
    seconds = []
    for threads in range(1, 6):
        again = replace(config, threads=threads)
        started = time.process_time()
        Warehouse.open(again).table("raw.a")
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.1


def test_opening_imports_no_pandas() -> None:
    script = "import sys, airloop.warehouse.catalog; print({'pandas', 'pyarrow.dataset'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("address", "path"),
    [("sqlite:////a/b c.db", "/a/b c.db"), ("sqlite:///x.db", "x.db"), ("postgresql+psycopg2://u:p@h/db", None)],
)
def test_sqlite_path(address: str, path: str | None) -> None:
    assert sqlite_path(address) == (Path(path) if path else None)


@pytest.mark.parametrize("address", ["nonsense", "nosuchengine://x"])
def test_an_address_that_is_none(config: Config, address: str) -> None:
    with pytest.raises(BadConfiguration, match="AIRLOOP_CATALOG"):
        Warehouse.open(replace(config, catalog=address))


def test_home_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadConfiguration, match="cannot be a folder"):
            Warehouse.open(Config.from_environment({"AIRLOOP_HOME": str(home)}))


def test_a_locked_catalog(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_S", 0.1)
    warehouse = Warehouse.open(config)
    rows = pa.table({"id": [1]})
    warehouse.ensure("raw.a", rows.schema)
    path = sqlite_path(config.catalog)
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match=r"writing raw\.a: SQLite is locked"):
        warehouse.commit("raw.a", rows, key="1")
    # Who only reads does not wait.
    assert warehouse.head("raw.a") == 0
    other.execute("ROLLBACK")
    other.close()
    assert warehouse.commit("raw.a", rows, key="1").changed


def test_spilled_files_of_killed_processes_go(config: Config) -> None:
    spill = config.home / "spill"
    gone = subprocess.Popen(["true"])
    gone.wait()
    folders = {name: spill / f"duckdb-{pid}-{n}" for n, (name, pid) in enumerate(
        {"own": os.getpid(), "dead, old": gone.pid, "dead, young": gone.pid, "dead, empty": gone.pid}.items()
    )}  # fmt: skip
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        if "empty" not in name:
            (folder / "storage.tmp").write_bytes(b"x")
        for path in (*folder.iterdir(), folder):
            os.utime(path, (0, time.time() if "young" in name else 0))
    Warehouse.open(config)
    assert {name for name, folder in folders.items() if folder.exists()} == {"own", "dead, young"}


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (duckdb.IOException("IO Error: Could not write file: No space left on device"), StoreFull),
        (duckdb.IOException("IO Error: Cannot open file: Read-only file system"), StoreReadOnly),
        (duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate"), OutOfMemory),
        (OSError(28, "No space left on device"), StoreFull),
        (OSError(30, "Read-only file system"), StoreReadOnly),
        (sqlite3.OperationalError("database is locked"), StoreBusy),
    ],
)
def test_errors_get_a_name(cause: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^writing: ") as caught, storing("writing"):
        raise cause
    assert caught.value.__cause__ is cause


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(KeyError), storing("writing"):
        raise KeyError("a bug")
    error = BadArgument("as it was")
    with pytest.raises(BadArgument) as caught, storing("writing"):
        raise error
    assert caught.value is error
