"""A PostgreSQL of the tests' own, from the programs of Debian's package; it ends with the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

PASSWORD = "s3cret-of-tests"


class PostgresServer:
    """A server whose address was given: its databases are ours, it is not."""

    ours = False

    def __init__(self, address: str) -> None:
        self._server = address.partition("?")[0].rpartition("/")[0]

    def url(self, database: str) -> str:
        """Address of a database."""
        return f"{self._server}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Address of a database that is new, and goes afterwards with all connections to it."""
        address = self.url(f"airloop_{uuid.uuid4().hex[:12]}")
        self._do(f"CREATE DATABASE {_name(address)}")
        try:
            yield address
        finally:
            self.drop(address)

    def drop(self, address: str) -> None:
        """Take a database away with all connections to it, if it is there."""
        self._do(f"DROP DATABASE IF EXISTS {_name(address)} WITH (FORCE)")

    def copy(self, source: str, target: str) -> None:
        """Fill an empty database with what another one holds now, by PostgreSQL's own ``pg_dump``."""
        found = programs()
        if found is None:
            assert not os.environ.get("CI"), "the tests need pg_dump"
            pytest.skip("pg_dump is not installed")
        dumped = subprocess.run([found / "pg_dump", "--format=custom", plain(source)], capture_output=True, check=True)
        into = [found / "pg_restore", "--exit-on-error", f"--dbname={plain(target)}"]
        subprocess.run(into, input=dumped.stdout, check=True)

    def _do(self, statement: str) -> None:
        import psycopg

        with closing(psycopg.connect(plain(self.url("postgres")), autocommit=True)) as connection:
            connection.execute(statement)


class OwnServer(PostgresServer):
    """A server that tests may stop and start."""

    ours = True

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="airloop-postgres-"))
        self._port = free_port()
        super().__init__(f"postgresql+psycopg://airloop:{PASSWORD}@127.0.0.1:{self._port}/postgres")
        self._as_user = ["setpriv", "--pdeathsig=INT"]
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            self._as_user += ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(self._folder, "nobody")
        (self._folder / "password").write_text(PASSWORD)
        self._run(
            "initdb", "-D", "data", "-U", "airloop", "--pwfile=password", "-A", "scram-sha-256", "-E", "UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "max_connections": 100,
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, self._programs / "postgres", "-D", "data", *words],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 240
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT closes all connections first, SIGQUIT is as if its machine had gone."""
        self._process.send_signal(how)
        self._process.wait(240)

    def runs(self) -> bool:
        """Whether it was not stopped."""
        return self._process.poll() is None

    def remove(self) -> None:
        """End it and leave nothing."""
        if self.runs():
            self.stop()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        command = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, program: str, *words: str) -> None:
        command = [*self._as_user, self._programs / program, *words]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def plain(address: str) -> str:
    """An address as PostgreSQL's own programs and its driver take it."""
    return address.replace("postgresql+psycopg://", "postgresql://")


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def programs() -> Path | None:
    """Folder of PostgreSQL's programs: on the path, or where Debian has the newest version's."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((p.parent for p in versions), key=lambda p: int(p.parent.name), default=None)
