"""
``airloop backup``: one consistent point of everything, while loops run.

What names something is copied before what it names, so that a point holds no name of a thing that it lacks: records of
runs, then manifests, then their other artifacts; the online store, whose watermarks name snapshots; then the catalog,
and after it MLflow's database, whose versions the ledger names; last the files that these two name, which never
change. What is committed after its database was copied is not in the point, as if its task had been killed then: a
task that runs again takes it up from there.

Wherever the state is, a point looks the same: a catalog in PostgreSQL is read in one transaction and kept as a SQLite
file, files of a bucket are kept by their names below its prefix. What others own is not in it and is said in a note:
an MLflow with a server of its own, values in Redis, a Feast registry in a database.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from airloop import postgres
from airloop.config import Config, S3Address, without_password
from airloop.errors import BadConfiguration, StoreBusy
from airloop.faults import point as fault_point
from airloop.objects import Bulk
from airloop.records import INTERVALS
from airloop.upkeep.exported import export_catalog
from airloop.upkeep.gc import alone
from airloop.upkeep.owner import MARK
from airloop.upkeep.points import Kept, Point, Vault, safe
from airloop.upkeep.sweep import folders_below
from airloop.usage import FOLDER
from airloop.warehouse import tree

TRIES = 3
MANIFEST = "manifest.json"
BESIDE = ("format.json", "feast-registry.db", "feast-registry.applied.json", "feast-registry.definitions.json")
"""Small files of the home that are replaced whole."""


def backup(config: Config, target: Path) -> tuple[Point, Vault]:
    """
    Make a point of a home in ``target``, a folder of backups that is made if need be.

    :raises BadConfiguration: the catalog is neither in SQLite nor in PostgreSQL, MLflow has no server and keeps its
        files elsewhere, a table has files outside the warehouse, or the target is inside the home.
    :raises StoreBusy: a gc or another backup runs, or files kept vanishing.
    """
    catalog, mlflow = _databases(config)
    roots = roots_of(config)
    if any(isinstance(root, Path) and target.resolve().is_relative_to(root) for root in roots.values()):
        raise BadConfiguration(
            f"{target} is inside of what is to be copied", "name a folder elsewhere, on another disk"
        )
    vault = Vault(target)
    before = vault.read() if vault.points() else None
    made = Point(datetime.now(UTC).isoformat(timespec="seconds"), {role: str(root) for role, root in roots.items()})
    stayed = {role for role, root in made.roots.items() if before is not None and before.roots.get(role) == root}
    known = {n: kept for n, kept in before.files.items() if n.partition("/")[0] in stayed} if before else {}

    def keep(role: str, names: Iterable[str], *, may_vanish: bool) -> None:
        root = roots[role]
        for inner in names:
            name = safe(f"{role}/{inner}")
            if name in made.files:
                continue
            if role == "warehouse" and not isinstance(root, Path) and vault.has(known.get(name)):
                # Files of tables never change: there is nothing to ask the store for.
                made.files[name] = known[name]
                continue
            try:
                if isinstance(root, Path):
                    made.files[name] = vault.keep(root / inner, known.get(name))
                else:
                    made.files[name] = vault.keep_object(Bulk(root), inner, known.get(name))
            except FileNotFoundError:
                if not may_vanish:
                    raise

    with alone(config), tempfile.TemporaryDirectory(prefix="airloop-backup-") as scratch:
        for names in _artifacts(config):
            keep("artifacts", names, may_vanish=True)
        fault_point("backup:artifacts")
        keep("home", BESIDE, may_vanish=True)
        made.notes += _not_in_it(config, mlflow)
        if isinstance(config.online_store, Path) and config.online_store.is_file():
            made.files["home/online.db"] = _keep_database(vault, config.online_store, Path(scratch) / "online.db")
        for attempt in range(TRIES):
            copy = Path(scratch) / f"catalog-{attempt}.db"
            source = catalog or export_catalog(config, Path(scratch) / f"exported-{attempt}")
            made.files["home/catalog.db"] = _keep_database(vault, source, copy)
            fault_point("backup:catalog")
            with suppress(FileNotFoundError):
                for needed, may_vanish in _files_of(config, copy, Path(scratch)):
                    keep("warehouse", [needed], may_vanish=may_vanish)
                break
        else:
            raise StoreBusy(f"files of tables went {TRIES} times while they were copied", "run it again")
        if mlflow is not None and mlflow.is_file():
            made.files["home/mlflow.db"] = _keep_database(vault, mlflow, Path(scratch) / "mlflow.db")
            keep("mlflow", _names(roots["mlflow"]), may_vanish=True)
        vault.publish(made)
    return made, vault


def roots_of(config: Config) -> dict[str, Path | S3Address]:
    """Where the files of each role are; MLflow's only if it has no server."""
    found: dict[str, Path | S3Address] = {
        "home": config.home, "artifacts": config.artifacts, "warehouse": config.warehouse,
    }  # fmt: skip
    if config.mlflow.startswith("sqlite:"):
        mlflow = config.mlflow_artifacts.removeprefix("file://")
        if "://" in mlflow:
            raise BadConfiguration(f"MLflow's files are at {mlflow}, which is no local folder", _OWN_TOOLS)
        found["mlflow"] = Path(mlflow)
    return found


_OWN_TOOLS = "back up databases and object stores by their own means, the catalog last"


def _databases(config: Config) -> tuple[Path | None, Path | None]:
    """SQLite files of the catalog and of MLflow; None: it is on a server."""
    from airloop.warehouse.store import sqlite_path

    catalog = sqlite_path(config.catalog)
    if catalog is None and not postgres.is_address(config.catalog):
        raise BadConfiguration("catalog is neither a SQLite file nor in a PostgreSQL", _OWN_TOOLS)
    return catalog, sqlite_path(config.mlflow)


def _not_in_it(config: Config, mlflow: Path | None) -> Iterator[str]:
    if not isinstance(config.online_store, Path):
        yield "the online store is not a file; materialise its values again after a restore"
    if not isinstance(config.feast_registry, Path):
        yield "Feast's registry is in a database; the next step that uses features applies the definitions again"
    if mlflow is None:
        yield (
            f"MLflow is at {without_password(config.mlflow)}: copy its database and then its files by their own means, "
            "after this point: the ledger names versions that have to be there"
        )


def _names(root: Path | S3Address, folder: str = "") -> Iterator[str]:
    """Names of all files, or of those below a folder."""
    if isinstance(root, S3Address):
        yield from (file.name for file in Bulk(root).walk(folder))
        return
    yield from (path.relative_to(root).as_posix() for path in folders_below(root / folder))


def _artifacts(config: Config) -> Iterator[list[str]]:
    """What names runs; records, which name manifests; manifests, which name artifacts; artifacts."""
    root = config.artifacts
    # Tables may be kept below the artifacts; they have their own turn. Artifacts below the tables have theirs here.
    tables = f"{config.warehouse}/".removeprefix(f"{root}/") if tree.is_below(config.warehouse, root) else ""

    def is_artifact(name: str) -> bool:
        # Of the catalog whose tables these are; that of a restored point is another one.
        mark = name.rpartition("/")[2] == MARK
        return ".part-" not in name and not mark and not (tables and name.startswith(tables))

    def names(folder: str = "") -> list[str]:
        return [name for name in _names(root, folder) if is_artifact(name)]

    yield names(INTERVALS)
    yield [*names("runs"), *names("attempts"), *names(FOLDER)]
    yield [n for n in names("steps") if n.count("/") == 4 and n.endswith(f"/{MANIFEST}")]
    # A manifest that came since may name what is not copied.
    yield [n for n in names() if n.rpartition("/")[2] != MANIFEST]


def _keep_database(vault: Vault, path: Path, copy: Path) -> Kept:
    """Copy a database as of one moment, whoever writes it."""
    with closing(sqlite3.connect(path, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return vault.keep(copy, None)


def _files_of(config: Config, catalog: Path, scratch: Path) -> Iterator[tuple[str, bool]]:
    """
    Names of files that the tables of a catalog name, and whether one may be gone: an older version of the metadata may.
    """
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.localio import local_path
    from airloop.warehouse.references import References
    from airloop.warehouse.store import open_catalog

    copied = replace(config, catalog=f"sqlite:///{catalog}", home=scratch / "home")
    root = f"{config.warehouse}/"
    with closing(open_catalog(copied)) as opened:
        warehouse = Warehouse(copied, opened)
        for name in warehouse.tables():
            table = warehouse.table(name)
            older = {local_path(entry.metadata_file) for entry in table.metadata.metadata_log}
            for path in sorted(References(table).all()):
                if not path.startswith(root):
                    raise BadConfiguration(
                        f"{name} has a file outside of {config.warehouse}: {path}",
                        "copy the table into the warehouse, or drop it",
                    )
                yield path.removeprefix(root), path in older
