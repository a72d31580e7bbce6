"""
What an AIRLOOP_HOME holds, without what differs from run to run; and readers that look at it all the while.

Imported by ``step_server.py``, in children that have the large libraries already.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

LEFT_OUT = {"_batch", "feature_snapshots", "entry", "key", "by", "run_id", "recorded_at", "evidence"}
"""Columns that carry ids of snapshots, keys made of those, or the time of day."""
LOOK_S = 0.01
"""Seconds between two looks of the readers."""
OF_THE_ATTEMPT = {
    "attempt", "run", "started_at", "finished_at", "seconds", "resources", "links", "code", "adopted", "bytes",
    "bytes_added",
}  # fmt: skip
"""
Parts of a manifest that tell who made it, when, where and how, not what was made; sizes of files, for files hold ids.
"""
BY_THE_ATTEMPT = {
    "materialize": {"rows", "rows_written", "rows_skipped", "rows_expired"},
    "register": {"versions_made"},
}
"""By step: figures of what the attempt itself still had to do."""
_IDS = re.compile(r"(?:\b[0-9a-f]{2}/)?(?:[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,})|\b[0-9]{10,}\b")
_NOW = re.compile(r"\b20(?!13)\d\d-\d\d-\d\dT[0-9:.+Z]*")

Cache = dict[str, Any]
"""Digests of what never changes, by its identity; kept from one look to the next."""


def state(environment: dict[str, str]) -> dict[str, Any]:
    """Tables, online values, models, manifests and pages."""
    from airloop.config import Config

    config = Config.from_environment(environment)
    return _published(config) | _tables(config, {}) | _online(config, {}) | _models(config, {})


def full_state(environment: dict[str, str], cache: Cache) -> dict[str, Any]:
    """
    :func:`state`, and also what manifests and records of tasks say and every state that ``main`` of each table has been
    in.
    """
    from airloop.config import Config

    config = Config.from_environment(environment)
    found = _published(config) | _tables(config, cache, logs=True) | _online(config, cache) | _models(config, cache)
    for path in sorted((config.artifacts / "steps").rglob("manifest.json")):
        step, text = _remembered(cache, "said", [path], lambda path=path: said(json.loads(path.read_text())))
        found.setdefault(f"said by {step}", []).append(text)
    for path in sorted((config.artifacts / "runs").rglob("*.json")):
        if not path.name.startswith(".part-"):
            record = json.loads(path.read_text())
            found.setdefault("said by records", []).append(f"{path.relative_to(config.artifacts)}: {ending(record)}")
    for path in sorted((config.artifacts / "intervals").rglob("*.json")):
        if not path.name.startswith(".part-"):
            names = {n: v for n, v in json.loads(path.read_text()).items() if n in ("run_id", "before")}
            found.setdefault("said by intervals", []).append(f"{path.relative_to(config.artifacts)}: {names}")
    return {name: sorted(value) if name.startswith("said by ") else value for name, value in found.items()}


def collected(environment: dict[str, str]) -> dict[str, list[str]]:
    """
    Have gc take away what killed processes left, however young: nobody writes meanwhile.

    :returns: files below the warehouse that no snapshot or metadata of a table names, ``before`` and ``after``.
    """
    from airloop.config import Config
    from airloop.upkeep import gc

    config = Config.from_environment(environment)
    before = _unnamed(config)
    gc.collect(config, grace_s=-60.0)
    return {"before": before, "after": _unnamed(config)}


def _unnamed(config: Any) -> list[str]:
    from airloop.warehouse import tree
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.references import References

    warehouse = Warehouse.open(config)
    named: set[str] = set()
    for name in warehouse.tables():
        named |= References(warehouse.table(name)).all()
    return sorted({file.path for file in tree.below(str(config.warehouse))} - named)


def _remembered(cache: Cache, what: str, files: Iterable[Path], work: Callable[[], Any]) -> Any:
    """What ``work`` finds in files, worked out once for the same bytes."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes() if file.exists() else b"")
    place = f"{what} {content.hexdigest()}"
    if place not in cache:
        cache[place] = work()
    return cache[place]


def said(document: dict[str, Any]) -> tuple[str, str]:
    """Step of a manifest, and what it says of what was made."""
    step = str(document["step"])
    return step, _NOW.sub("now", _IDS.sub("*", json.dumps(_made(document, step), sort_keys=True)))


def ending(record: dict[str, Any]) -> str:
    """How a task ended; whether it is done by its own work or by that of an attempt before does not count."""
    status = str(record["status"])
    return "done" if status == "reused" else status


def _made(value: Any, step: str) -> Any:
    left_out = OF_THE_ATTEMPT | BY_THE_ATTEMPT.get(step, set())
    if isinstance(value, dict):
        return {name: _made(part, step) for name, part in value.items() if name not in left_out}
    return [_made(part, step) for part in value] if isinstance(value, list) else value


def _published(config: Any) -> dict[str, Any]:
    manifests = Counter(p.parents[2].name for p in (config.artifacts / "steps").rglob("manifest.json"))
    pages = (p for p in (config.artifacts / "reports").rglob("*") if p.is_file() and not p.name.startswith(".part-"))
    return {
        "manifests": dict(sorted(manifests.items())),
        "pages": sorted(str(p.relative_to(config.artifacts)) for p in pages),
    }


def _tables(config: Any, cache: Cache, *, logs: bool = False) -> dict[str, Any]:
    from airloop.warehouse.catalog import Warehouse

    if not _catalog_file(config).exists():
        return {}
    warehouse = Warehouse.open(config)
    found: dict[str, Any] = {}
    for name in warehouse.tables():
        table = warehouse.table(name)
        place = f"table {table.metadata_location} {logs}"
        if place not in cache:
            cache[place] = table_state(config, table, cache, logs=logs)
        found[name] = cache[place]
    return found


def table_state(config: Any, table: Any, cache: Cache, *, logs: bool) -> dict[str, Any]:
    """Rows and columns of ``main``, branches, how many snapshots; with ``logs`` every state that ``main`` was in."""
    found = {
        **content(config, table, table.metadata.current_snapshot_id or 0, cache),
        "branches": sorted(table.metadata.refs),
        "snapshots": len(table.metadata.snapshots),
    }
    if logs:
        was = [entry.snapshot_id for entry in table.metadata.snapshot_log]
        found["main was"] = [content(config, table, snapshot, cache)["content"] for snapshot in was]
    return found


def content(config: Any, table: Any, snapshot: int, cache: Cache) -> dict[str, Any]:
    """Rows of a snapshot, whole and by column."""
    place = f"{table.metadata.table_uuid} {snapshot} {table.metadata.current_schema_id}"
    if place not in cache:
        from airloop.warehouse import read

        rows = read.scan(config, table, snapshot).read_all()
        kept = [c for c in rows.column_names if c not in LEFT_OUT]
        cache[place] = {
            "rows": rows.num_rows,
            "content": digest(repr(list(row.values())) for row in rows.select(kept).to_pylist()),
            "by column": {c: digest(map(repr, rows.column(c).to_pylist())) for c in kept},
        }
    found: dict[str, Any] = cache[place]
    return found


def _online(config: Any, cache: Cache) -> dict[str, Any]:
    file = config.online_store
    if not file.exists():
        return {}

    def work() -> dict[str, Any]:
        with closing(sqlite3.connect(file)) as store:
            return {f"online {name}": value for name, value in online_values(store).items()}

    found: dict[str, Any] = _remembered(cache, "online", [file, _wal(file)], work)
    return found


def online_values(store: sqlite3.Connection) -> dict[str, Any]:
    """Rows by table of the online store, all of one moment."""
    found = {}
    store.execute("BEGIN")
    tables = [n for (n,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    for name in tables:
        columns = [c[1] for c in store.execute(f'PRAGMA table_info("{name}")')]
        kept = [f'"{c}"' for c in columns if c not in ("key", "snapshot")]
        rows = store.execute(f'SELECT {", ".join(kept)} FROM "{name}"').fetchall()
        # Tables of ours hold something of every view, and each view changes on its own.
        views = {row[0] for row in rows} if kept[0] == '"view"' else {None}
        for view in views:
            its = [repr(row) for row in rows if view in (None, row[0])]
            found[name if view is None else f"{name} {view}"] = {"rows": len(its), "content": digest(its)}
    store.execute("COMMIT")
    return found


def _models(config: Any, cache: Cache) -> dict[str, Any]:
    from airloop.training import tracking

    file = _mlflow_file(config)
    if not file.exists():
        return {}

    def work() -> dict[str, Any]:
        client = tracking.client(config)
        runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
        return {
            "finished runs": sum(r.info.status == "FINISHED" for r in runs),
            "running runs": sum(r.info.status == "RUNNING" for r in runs),
            "versions": sorted([v.name, int(v.version), sorted(v.aliases)] for v in client.search_model_versions()),
            "aliases": {m.name: m.aliases for m in client.search_registered_models()},
        }

    found: dict[str, Any] = _remembered(cache, "models", [file, file.with_name(f"{file.name}-journal")], work)
    return found


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _catalog_file(config: Any) -> Path:
    return Path(config.catalog.removeprefix("sqlite:///"))


def _mlflow_file(config: Any) -> Path:
    return Path(config.mlflow.removeprefix("sqlite:///"))


class Readers:
    """
    Reads tables, online values and aliases again and again, as anybody may while steps run.

    Of each thing it keeps the states that it saw, one after the other, each once in a row.
    """

    def __init__(self, environment: dict[str, str], cache: Cache) -> None:
        from airloop.config import Config

        self.config = Config.from_environment(environment)
        self.cache = cache
        self.seen: dict[str, list[Any]] = {}
        self.looks = 0
        self._at: dict[str, Any] = {}

    def until(self, stop: Path, ready: Path) -> dict[str, Any]:
        """Read until a file is there; for nobody, if who asked is gone."""
        asked_by = os.getppid()
        while os.getppid() == asked_by:
            for look in (self._tables, self._online, self._aliases):
                look()
            self.looks += 1
            ready.touch()
            if stop.exists():
                return {"looks": self.looks, "seen": self.seen}
            time.sleep(LOOK_S)
        return {}

    def _saw(self, name: str, what: Any) -> None:
        states = self.seen.setdefault(name, [])
        if not states or states[-1] != what:
            states.append(what)

    def _tables(self) -> None:
        file = _catalog_file(self.config)
        if not file.exists() or not file.stat().st_size:
            return
        sql = "SELECT table_namespace || '.' || table_name, metadata_location FROM iceberg_tables"
        for name, location in self._query(file, sql):
            if self._at.get(name) != location:
                self._at[name] = location
                self._saw(name, self._content(location))

    def _content(self, location: str) -> Any:
        from pyiceberg.table import StaticTable

        from airloop.warehouse.localio import LocalFileIO

        py_io = f"{LocalFileIO.__module__}.{LocalFileIO.__name__}"
        table = StaticTable.from_metadata(location, {"py-io-impl": py_io})
        main = table.metadata.current_snapshot_id
        return content(self.config, table, main, self.cache)["content"] if main else None

    def _online(self) -> None:
        file = self.config.online_store
        if not file.exists():
            return
        changed = tuple((p.stat().st_mtime_ns, p.stat().st_size) for p in (file, _wal(file)) if p.exists())
        if self._at.get("online") == changed:
            return
        self._at["online"] = changed
        with closing(sqlite3.connect(file, timeout=240, isolation_level=None)) as store:
            for name, value in online_values(store).items():
                self._saw(f"online {name}", value["content"] if value["rows"] else None)

    def _aliases(self) -> None:
        from airloop.registry.lookup import version_run

        file = _mlflow_file(self.config)
        if file.exists():
            for name, alias, version in self._query(file, "SELECT name, alias, version FROM registered_model_aliases"):
                self._saw(f"{name}@{alias}", version)
                # As a step looks before it reuses what an earlier one made: without the right to write.
                self._saw(f"{name}@{alias} is there", version_run(self.config, name, version) is not None)

    def _query(self, file: Path, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(file, timeout=240)) as store:
            try:
                return store.execute(sql).fetchall()
            except sqlite3.OperationalError as error:
                # The first process is still making the file's tables.
                if "no such table" in str(error):
                    return []
                raise


def _wal(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")
