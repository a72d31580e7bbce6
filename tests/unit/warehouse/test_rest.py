"""An Iceberg REST catalog: how it is named, what it needs beside it, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg import exceptions

from airloop.cli import main
from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadConfiguration, Unreachable, classify
from airloop.locks import FileLocks, PostgresLocks, locks_of
from airloop.upkeep.erase import Request, erase
from airloop.upkeep.formats import upgrade
from airloop.upkeep.gc import collect
from airloop.warehouse import rest
from airloop.warehouse.catalog import Warehouse

LAKE = {"AIRLOOP_CATALOG": "rest+https://catalog.example/iceberg?warehouse=lake", "AIRLOOP_WAREHOUSE": "s3://lake"}
POSTGRES = "postgresql+psycopg://u:s3cret@db.example/locks"


def config_of(tmp_path: Path, **changed: str) -> Config:
    return Config.from_environment({"AIRLOOP_HOME": str(tmp_path), **LAKE, **changed})


def test_what_pyiceberg_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__AIRLOOP__TOKEN", "t0ken")
    monkeypatch.setenv("PYICEBERG_CATALOG__AIRLOOP__REST__SIGV4_ENABLED", "true")
    assert rest.properties(config_of(tmp_path)) == {
        "uri": "https://catalog.example/iceberg",
        "warehouse": "lake",
        "py-io-impl": "airloop.warehouse.s3io.BucketFileIO",
        "token": "t0ken",
        "rest.sigv4-enabled": "true",
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"AIRLOOP_CATALOG": "rest+https://"}, "no address of an Iceberg REST catalog"),
        ({"AIRLOOP_CATALOG": "rest+https://u:s3cret@catalog.example"}, "no address of an Iceberg REST catalog"),
        ({"AIRLOOP_CATALOG": "rest+https://catalog.example?token=s3cret"}, "no address of an Iceberg REST catalog"),
        ({"AIRLOOP_WAREHOUSE": "/srv/tables"}, "catalog is at catalog.example, and the tables' files in /srv/tables"),
    ],
)
def test_what_it_cannot_be(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(BadConfiguration, match=said) as caught:
        rest.properties(config_of(tmp_path, **changed))
    assert "s3cret" not in str(caught.value)


def test_locks_are_said_to_be_somewhere(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="AIRLOOP_LOCKS is not set, and an Iceberg REST catalog has no locks"):
        Warehouse.open(config_of(tmp_path))
    assert isinstance(locks_of(config_of(tmp_path, AIRLOOP_LOCKS="local")), FileLocks)
    found = locks_of(config_of(tmp_path, AIRLOOP_LOCKS=POSTGRES))
    assert isinstance(found, PostgresLocks)
    assert found.place == POSTGRES
    with pytest.raises(BadConfiguration, match="AIRLOOP_LOCKS cannot be read") as caught:
        locks_of(config_of(tmp_path, AIRLOOP_LOCKS="redis://:s3cret@redis"))
    assert "s3cret" not in str(caught.value)


def test_upkeep_leaves_it_alone(tmp_path: Path) -> None:
    request = Request(subject=None, table="raw.a", where="id = 1", reason="asked", asked_by="me")
    for what, work in (("gc", collect), ("erase", lambda config: erase(config, request))):
        with pytest.raises(BadConfiguration, match=f"airloop {what} does not know what else an Iceberg REST catalog"):
            work(config_of(tmp_path, AIRLOOP_LOCKS="local"))


def test_what_works_on_all_tables_leaves_those_of_others_alone(
    tmp_path: Path, run_step: Callable[..., Any], interval: Interval, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, AIRLOOP_LOCKS="local")
    with pytest.raises(BadConfiguration, match="airloop upgrade does not know what else an Iceberg REST catalog"):
        upgrade(config)
    (said,) = upgrade(config, dry_run=True)
    assert said.startswith("none of the tables, which may be others'")
    with pytest.raises(BadConfiguration, match="the step upkeep does not know what else an Iceberg REST catalog"):
        run_step("upkeep", interval=interval, config=config)


@pytest.mark.parametrize("config", ["rest"], indirect=True)
def test_a_catalog_that_others_use(
    config: Config,
    warehouse: Warehouse,
    rest_catalog: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = pa.schema([("id", pa.int64())])
    warehouse.ensure("raw.a", schema)
    catalog: Any = warehouse._catalog
    list_tables = catalog.list_tables
    monkeypatch.setattr(catalog, "list_tables", lambda space: [*list_tables(space), (*space, "my-table")])
    assert warehouse.tables() == ["raw.a"]
    for name, value in rest_catalog.items():
        monkeypatch.setenv(name, value)
    assert main(["--home", str(config.home), "compact"]) == 65
    assert "name those that are yours: airloop compact NAMESPACE.TABLE" in capsys.readouterr().err
    assert main(["--home", str(config.home), "compact", "raw.a"]) == 0
    assert "raw.a: 0 files, nothing to compact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.UnauthorizedError("no"), BadConfiguration),
        (exceptions.ForbiddenError("no"), BadConfiguration),
        (exceptions.ServiceUnavailableError("later"), Unreachable),
        (exceptions.CommitStateUnknownException("?"), Unreachable),
        (exceptions.BadRequestError("a bug"), None),
    ],
)
def test_what_errors_mean(error: Exception, kind: Any) -> None:
    found = classify(error)
    assert found is None if kind is None else type(found) is kind


def test_one_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "CONNECT_S", 1)
    with pytest.raises(Unreachable, match="does not answer"):
        Warehouse.open(config_of(tmp_path, AIRLOOP_CATALOG="rest+http://127.0.0.1:1", AIRLOOP_LOCKS="local"))
