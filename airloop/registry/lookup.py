"""
Is a model still there? Asked before every reuse, so it must not cost the seconds that importing MLflow takes.

An SQLite registry is read directly, read-only; where its tables are not those of the MLflow versions that we know,
and for any other store, MLflow's own client answers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airloop.config import Config
from airloop.errors import NotFound

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VERSION = "SELECT run_id FROM model_versions WHERE name = ? AND version = ? AND current_stage <> 'Deleted_Internal'"
_RUN = """
SELECT m.artifact_location FROM runs AS r LEFT JOIN logged_models AS m
    ON m.source_run_id = r.run_uuid AND m.lifecycle_stage = 'active'
WHERE r.run_uuid = ? AND r.lifecycle_stage = 'active'
"""
_ALL = "SELECT name, version, run_id FROM model_versions WHERE current_stage <> 'Deleted_Internal'"
_TAGS = "SELECT name, version, key, value FROM model_version_tags"
PAGE = 1000
"""Models or versions that MLflow is asked for at a time."""


def version_run(config: Config, name: str, version: int) -> str | None:
    """The training run of a registered version; None if the version is not there or was deleted."""
    try:
        rows = _query(config, _VERSION, (name, version))
    except _NotReadable:
        from airloop.training import tracking

        client = tracking.client(config)
        try:
            with tracking.guarded(config):
                return str(client.get_model_version(name, str(version)).run_id or "")
        except NotFound:
            return None
    return str(rows[0][0] or "") if rows else None


def run_exists(config: Config, run_id: str) -> bool:
    """Whether a training run is there, not deleted, and so are its model's files as far as they are local."""
    try:
        rows = _query(config, _RUN, (run_id,))
    except _NotReadable:
        from airloop.training import tracking

        client = tracking.client(config)
        try:
            with tracking.guarded(config):
                run = client.get_run(run_id)
                if run.info.lifecycle_stage != "active":
                    return False
                outputs = run.outputs.model_outputs if run.outputs else []
                places = [client.get_logged_model(o.model_id).artifact_location for o in outputs]
        except NotFound:
            return False
        return all(_files_there(place) for place in places)
    return bool(rows) and all(place is None or _files_there(place) for (place,) in rows)


def registered(config: Config) -> list[tuple[str, int, str, dict[str, str]]]:
    """Every registered version: name, version, training run, tags."""
    try:
        versions = _query(config, _ALL, ())
        rows = _query(config, _TAGS, ())
    except _NotReadable:
        from airloop.training import tracking

        client = tracking.client(config)
        with tracking.guarded(config):
            found = [v for name in _names(client) for v in all_versions(client, name)]
        return [(v.name, int(v.version), str(v.run_id or ""), dict(v.tags)) for v in found]
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, version, key, value in rows:
        tags.setdefault((name, int(version)), {})[key] = value
    return [(name, int(v), str(run or ""), tags.get((name, int(v)), {})) for name, v, run in versions]


def is_absent(config: Config) -> bool:
    """Whether the registry is a SQLite file that is not there, so that every question is answered with nothing."""
    file = _file(config)
    return file is not None and not _is_there(file)


def all_versions(client: MlflowClient, name: str) -> list[Any]:
    """Every version of a registered model, page by page."""
    query = f"name = '{name}'"
    return _pages(lambda token: client.search_model_versions(query, max_results=PAGE, page_token=token))


def _names(client: MlflowClient) -> list[str]:
    models = _pages(lambda token: client.search_registered_models(max_results=PAGE, page_token=token))
    return [str(model.name) for model in models]


def _pages(ask: Callable[[str | None], Any]) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = ask(token)
        found += page
        token = page.token
        if not token:
            return found


class _NotReadable(Exception):
    """The store is not an SQLite file with the tables that we know."""


def _query(config: Config, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    file = _file(config)
    if file is None:
        raise _NotReadable
    if not _is_there(file):
        return []
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as cause:
            if "no such" in str(cause):
                raise _NotReadable from cause
            raise


def _file(config: Config) -> Path | None:
    """The registry's SQLite file; None if it is none."""
    if not config.mlflow.startswith("sqlite:///"):
        return None
    return Path(config.mlflow.removeprefix("sqlite:///").partition("?")[0])


def _is_there(file: Path) -> bool:
    return file.is_file() and bool(file.stat().st_size)


def _files_there(place: str) -> bool:
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return True
    return Path(unquote(parts.path) if parts.scheme else place).is_dir()
