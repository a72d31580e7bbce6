"""
Where Feast's registry is, and beside it what says whether the definitions have to be applied again.

A file, for processes of one machine, with its lock and two documents beside it; or a PostgreSQL for processes on many,
with advisory locks and a table of documents of its own in the same database. Feast's tables are Feast's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from airloop import postgres
from airloop.locks import FileLocks, Held, PostgresLocks

SETTING = "AIRLOOP_FEAST_REGISTRY"

CREATE = "CREATE TABLE IF NOT EXISTS airloop_features (name text PRIMARY KEY, document text NOT NULL)"
WRITE = (
    "INSERT INTO airloop_features (name, document) VALUES (%s, %s)"
    " ON CONFLICT (name) DO UPDATE SET document = EXCLUDED.document"
)


class Registry(Protocol):
    """A place of Feast's registry."""

    def locked(self) -> Any:
        """A block in which nobody else applies definitions."""
        ...

    def exists(self) -> bool:
        """Whether definitions were ever applied to it."""
        ...

    def read(self, what: str) -> dict[str, Any]:
        """A document, or an empty one if there is none that can be read: it can always be made again."""
        ...

    def write(self, what: str, document: Mapping[str, Any]) -> None:
        """Put a document in the place of the one before."""
        ...


class FileRegistry:
    """A file, and others beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def locked(self) -> Iterator[Held]:
        with FileLocks(self._path.parent).hold(self._path.stem) as held:
            yield held

    def exists(self) -> bool:
        return self._path.is_file()

    def read(self, what: str) -> dict[str, Any]:
        try:
            return _document(self._beside(what).read_text())
        except FileNotFoundError:
            return {}

    def write(self, what: str, document: Mapping[str, Any]) -> None:
        path = self._beside(what)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(document, sort_keys=True))
        part.replace(path)

    def _beside(self, what: str) -> Path:
        return self._path.with_name(f"{self._path.stem}.{what}.json")


class PostgresRegistry:
    """A project in a PostgreSQL."""

    def __init__(self, address: str, project: str) -> None:
        self._address = address
        self._project = project

    @contextmanager
    def locked(self) -> Iterator[Held]:
        # One for all projects: Feast makes its tables for all of them.
        with PostgresLocks(self._address, SETTING).hold("feast-registry") as held:
            with self._connected() as connection:
                connection.execute(CREATE)
            yield held

    def exists(self) -> bool:
        with self._connected() as connection:
            if self._lacks(connection, "feature_views"):
                return False
            # `feast teardown` takes away the views and leaves the project.
            query = "SELECT EXISTS (SELECT FROM feature_views WHERE project_id = %s)"
            found = connection.execute(query, (self._project,)).fetchone()
            return bool(found and found[0])

    def read(self, what: str) -> dict[str, Any]:
        with self._connected() as connection:
            if self._lacks(connection, "airloop_features"):
                return {}
            query = "SELECT document FROM airloop_features WHERE name = %s"
            found = connection.execute(query, (self._name(what),)).fetchone()
            return _document(found[0]) if found else {}

    def write(self, what: str, document: Mapping[str, Any]) -> None:
        with self._connected() as connection:
            connection.execute(WRITE, (self._name(what), json.dumps(document, sort_keys=True)))

    def _name(self, what: str) -> str:
        return f"{self._project}/{what}"

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        with (
            closing(postgres.connect(self._address, SETTING)) as connection,
            postgres.understood("Feast's registry"),
        ):
            yield connection

    @staticmethod
    def _lacks(connection: Any, table: str) -> bool:
        return connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()[0] is None


def feast_section(address: str) -> dict[str, Any]:
    """The ``registry`` section of ``feature_store.yaml`` for a PostgreSQL."""
    return {
        "registry_type": "sql",
        "path": postgres.for_sqlalchemy(address, SETTING),
        # A connection that the server has closed since its last use is replaced by a new one.
        "sqlalchemy_config_kwargs": {"echo": False, "pool_pre_ping": True},
    }


def _document(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
