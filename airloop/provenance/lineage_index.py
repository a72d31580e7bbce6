"""
An index of manifests: who made a reference, and who read it, without reading every manifest again.

It is a cache in SQLite below ``config.home``: what it lacks is read from the manifests, what is gone from them is
dropped, and removing the file costs one full read. Each question refreshes it, at one ``stat`` per manifest.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from airloop.errors import ContractBroken
from airloop.records import REDO, refuse_unknown
from airloop.warehouse.artifacts import ArtifactStore

FORMAT = 1
"""Raised when the tables below change; an index of another format is built anew."""
BUSY_S = 30
"""Seconds to wait for another process that refreshes the index."""

_TABLES = f"""
CREATE TABLE manifests (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, step TEXT NOT NULL, key TEXT NOT NULL,
    slim TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE refs (reference TEXT NOT NULL, made INTEGER NOT NULL, path TEXT NOT NULL, role TEXT NOT NULL,
    PRIMARY KEY (reference, made, path, role)) WITHOUT ROWID;
CREATE INDEX refs_of_manifest ON refs (path);
CREATE INDEX manifests_by_key ON manifests (key);
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference that a step took or made."""

    role: str
    """Path of the argument (``tables[0]``) or role of the output (``table``)."""
    kind: str
    reference: str


@dataclass(frozen=True)
class Record:
    """A manifest without what lineage does not need."""

    path: str
    """Name in the artifact store."""
    slim: Mapping[str, Any]

    @property
    def step(self) -> str:
        return str(self.slim["step"])

    @property
    def key(self) -> str:
        return str(self.slim["key"])

    @property
    def node(self) -> str:
        return f"step:{self.step}/{self.key}"

    @cached_property
    def inputs(self) -> list[Ref]:
        return [Ref(role, kind, reference) for role, kind, reference in self.slim["inputs"]]

    @cached_property
    def outputs(self) -> list[Ref]:
        return [Ref(role, kind, reference) for role, kind, reference in self.slim["outputs"]]

    @cached_property
    def made(self) -> list[Ref]:
        """Outputs that the step made; an input that it hands on is none."""
        return [r for r in self.outputs if _is_made(r, self.inputs)]

    @property
    def changed(self) -> bool:
        return bool(self.slim["changed"])

    @property
    def run(self) -> Mapping[str, Any]:
        run: Mapping[str, Any] = self.slim["run"]
        return run

    @property
    def finished_at(self) -> str:
        return str(self.slim["finished_at"])


def file_reference(name: str, sha256: str) -> str:
    """How lineage names a source file: the bytes decide, the name is for people."""
    return f"file:{name}#{sha256}"


class Index:
    """The index of one artifact store."""

    def __init__(self, store: ArtifactStore, file: Path) -> None:
        """
        :param file: where the index is kept; where its folder cannot be written, it is kept in memory.
        """
        self._store = store
        self._file = file

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        try:
            return self._refreshed(self._prepared())
        except (OSError, sqlite3.OperationalError):
            # Who cannot write there, or finds the disk full, still gets an answer: from every manifest.
            return self._refreshed(None)

    def makers(self, reference: str) -> list[Record]:
        """Manifests that say they made a reference, oldest first."""
        return self._records(reference, made=True)

    def readers(self, reference: str) -> list[Record]:
        """Manifests of steps that were given a reference, oldest first."""
        return self._records(reference, made=False)

    def by_key(self, prefix: str) -> list[Record]:
        """Manifests whose key begins so."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self._connection.execute(
            "SELECT path, slim FROM manifests WHERE key >= ? AND key < ? ORDER BY key LIMIT 100", (prefix, end)
        )
        return [_record(*row) for row in rows]

    def record(self, path: str) -> Record | None:
        """The manifest of a name in the store."""
        row = self._connection.execute("SELECT path, slim FROM manifests WHERE path = ?", (path,)).fetchone()
        return _record(*row) if row else None

    def references(self, prefix: str) -> list[str]:
        """References that begin so, sorted."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self._connection.execute(
            "SELECT DISTINCT reference FROM refs WHERE reference >= ? AND reference < ? ORDER BY 1", (prefix, end)
        )
        return [str(row[0]) for row in rows]

    def all(self, *steps: str) -> list[Record]:
        """Manifests of these steps, oldest first; of all without any."""
        where = f" WHERE step IN ({', '.join('?' * len(steps))})" if steps else ""
        rows = self._connection.execute(f"SELECT path, slim FROM manifests{where}", steps)
        return _in_order(_record(*row) for row in rows)

    def manifest(self, record: Record) -> dict[str, Any]:
        """The whole manifest. :raises NotFound: it was removed since."""
        manifest: dict[str, Any] = json.loads(self._store.read_bytes(record.path))
        return manifest

    def close(self) -> None:
        """Give the file back."""
        if "_connection" in self.__dict__:
            self._connection.close()
            del self.__dict__["_connection"]

    def _records(self, reference: str, *, made: bool) -> list[Record]:
        rows = self._connection.execute(
            "SELECT DISTINCT m.path, m.slim FROM refs r JOIN manifests m USING (path)"
            " WHERE r.reference = ? AND r.made = ?",
            (reference, int(made)),
        )
        return _in_order(_record(*row) for row in rows)

    # ---------------------------------------------------------------- keeping it up to date

    def _prepared(self) -> Path:
        """The index's file; what is there but is no index of this format is removed."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not _is_index(self._file):
            self._file.unlink()
        return self._file

    def _refreshed(self, file: Path | None) -> sqlite3.Connection:
        connection = _connect(file)
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                self._refresh(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refresh(self, connection: sqlite3.Connection) -> None:
        known = dict(connection.execute("SELECT path, stamp FROM manifests"))
        found = dict(_stamps(self._store))
        stale = [path for path, stamp in known.items() if found.get(path) != stamp]
        connection.executemany("DELETE FROM manifests WHERE path = ?", [(path,) for path in stale])
        connection.executemany("DELETE FROM refs WHERE path = ?", [(path,) for path in stale])
        for path, stamp in found.items():
            if known.get(path) == stamp:
                continue
            content = self._store.objects.read(path)
            if content is None:
                continue  # removed since it was listed
            record = _record(path, json.dumps(_slim(path, content)))
            connection.execute(
                "INSERT INTO manifests VALUES (?, ?, ?, ?, ?)",
                (path, stamp, record.step, record.key, json.dumps(record.slim)),
            )
            rows = [(r.reference, 1, path, r.role) for r in record.made]
            rows += [(r.reference, 0, path, r.role) for r in record.inputs]
            connection.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?)", rows)


def _is_index(file: Path) -> bool:
    """Whether a file is an index of this format, or there is none yet."""
    if not file.exists():
        return True
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as connection:
        try:
            return connection.execute("PRAGMA user_version").fetchone()[0] in (0, FORMAT)
        except sqlite3.DatabaseError:
            return False


def _connect(file: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(file or ":memory:", timeout=BUSY_S, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("PRAGMA user_version").fetchone()[0]:
        for statement in _TABLES.split(";")[:-1]:
            connection.execute(statement)
    connection.execute("COMMIT")
    return connection


def _stamps(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    """Every manifest's name, and what changes when it is written again."""
    for manifest in store.objects.listed("steps", "*/*/*/manifest.json"):
        yield manifest.name, manifest.stamp


def _slim(path: str, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        refuse_unknown(manifest, f"manifest {path}", REDO)
        code = manifest["code"]
        inputs = []
        for role, given in manifest["inputs"].items():
            if given["kind"] == "files":
                # The input names all files in one text, with digests cut short; the argument has them whole.
                named = manifest["arguments"][role]
                inputs += [[role, "file", file_reference(name, digest)] for name, digest in named]
            else:
                inputs.append([role, given["kind"], given["reference"]])
        sizes = {f["sha256"]: f["bytes"] for f in manifest["details"].get("files", [])}
        return {
            **{name: manifest[name] for name in ("step", "key", "attempt", "run", "interval", "finished_at", "python")},
            "inputs": inputs,
            "outputs": [[role, v["kind"], v["reference"]] for role, v in manifest["outputs"].items()],
            "counts": manifest["counts"],
            "changed": manifest["changed"],
            "seconds": round(sum(manifest["seconds"].values()), 3),
            "bytes": sizes,
            "code": {
                **{name: value for name, value in code.items() if isinstance(value, str)},
                "modules": len(code["modules"]),
                "libraries": code["libraries"],
            },
            "links": manifest["links"],
        }
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ContractBroken(f"manifest {path} cannot be read: {cause!r}", REDO) from cause


def _is_made(output: Ref, inputs: Iterable[Ref]) -> bool:
    return bool(output.kind) and all(output.reference != given.reference for given in inputs)


def _record(path: str, slim: str) -> Record:
    return Record(path, json.loads(slim))


def _in_order(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda r: (r.finished_at, r.path))
