"""What the warm server is told to import."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from airloop_operators.runners.warm import _STORES, WarmServer, modules_for

SHARED = {
    "AIRLOOP_CATALOG": "postgresql+psycopg://air:s3cret@db/lake",
    "AIRLOOP_ARTIFACTS": "s3://lake/artifacts",
    "AIRLOOP_WAREHOUSE": "s3://lake/warehouse",
    "AIRLOOP_ONLINE_STORE": "redis://:s3cret@redis",
    "AIRLOOP_MLFLOW": "http://mlflow:5000",
}


def test_clients_of_shared_stores_are_imported_where_they_are_used(tmp_path: Path) -> None:
    assert modules_for({"AIRLOOP_HOME": "/srv/airloop", "AIRLOOP_ONLINE_STORE": "/srv/online.db"}) == ()
    found = modules_for(SHARED)
    assert found[:3] == ("psycopg", "sqlalchemy.dialects.postgresql", "boto3")
    assert "feast.infra.registry.sql" not in found
    assert "cret" not in repr(found)


@pytest.mark.parametrize("name", sorted({name for names in _STORES.values() for name in names}))
def test_they_are_there(name: str) -> None:
    # Looked for as files: to find a module of a package imports the package.
    first, *rest = name.split(".")
    package = importlib.util.find_spec(first)
    assert package is not None
    place = Path(package.origin or "").parent.joinpath(*rest)
    assert place.is_dir() or place.with_suffix(".py").is_file()


def test_a_server_is_of_its_stores(tmp_path: Path) -> None:
    here = {"XDG_RUNTIME_DIR": str(tmp_path)}
    paths = {WarmServer(sys.executable, here | more).path for more in ({}, SHARED)}
    assert len(paths) == 2
    # Who names modules gets these alone.
    named = {WarmServer(sys.executable, here | more, preload=("pandas",)).path for more in ({}, SHARED)}
    assert len(named) == 1
