"""
``airloop backup``: one consistent point of everything, while loops run.

What names something is copied before what it names, so that a point holds no name of a thing that it lacks: records of
runs, then manifests, then their other artifacts; the online store, whose watermarks name snapshots; then the catalog,
and after it MLflow's database, whose versions the ledger names; last the files that these two name, which never
change. What is committed after its database was copied is not in the point, as if its task had been killed then: a
task that runs again takes it up from there.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from airloop.config import Config, local_folder
from airloop.errors import BadConfiguration, StoreBusy
from airloop.faults import point as fault_point
from airloop.upkeep.gc import alone
from airloop.upkeep.points import Kept, Point, Vault
from airloop.upkeep.sweep import folders_below
from airloop.usage import FOLDER

TRIES = 3
MANIFEST = "manifest.json"
BESIDE = ("format.json", "feast-registry.db", "feast-registry.applied.json", "feast-registry.definitions.json")
"""Small files of the home that are replaced whole."""


def backup(config: Config, target: Path) -> tuple[Point, Vault]:
    """
    Make a point of a home in ``target``, a folder of backups that is made if need be.

    :raises BadConfiguration: the catalog or MLflow is not a local SQLite file, files are in a bucket, or the target is
        inside the home.
    :raises StoreBusy: a gc or another backup runs, or files kept vanishing.
    """
    databases = _databases(config)
    roots = roots_of(config)
    if any(target.resolve().is_relative_to(root) for root in roots.values()):
        raise BadConfiguration(
            f"{target} is inside of what is to be copied", "name a folder elsewhere, on another disk"
        )
    vault = Vault(target)
    before = vault.read() if vault.points() else None
    made = Point(datetime.now(UTC).isoformat(timespec="seconds"), {role: str(root) for role, root in roots.items()})
    known = before.files if before is not None and before.roots == made.roots else {}

    def keep(role: str, paths: Iterable[Path], *, may_vanish: bool) -> None:
        for path in paths:
            name = f"{role}/{path.relative_to(roots[role]).as_posix()}"
            if name in made.files:
                continue
            try:
                made.files[name] = vault.keep(path, known.get(name))
            except FileNotFoundError:
                if not may_vanish:
                    raise

    with alone(config), tempfile.TemporaryDirectory(prefix="airloop-backup-") as scratch:
        for paths in _artifacts(config):
            keep("artifacts", paths, may_vanish=True)
        fault_point("backup:artifacts")
        keep("home", (config.home / name for name in BESIDE), may_vanish=True)
        if not isinstance(config.online_store, Path):
            made.notes.append("the online store is not a file; materialise its values again after a restore")
        elif config.online_store.is_file():
            made.files["home/online.db"] = _keep_database(vault, config.online_store, Path(scratch) / "online.db")
        for attempt in range(TRIES):
            copy = Path(scratch) / f"catalog-{attempt}.db"
            made.files["home/catalog.db"] = _keep_database(vault, databases["catalog.db"], copy)
            fault_point("backup:catalog")
            with suppress(FileNotFoundError):
                for needed, may_vanish in _files_of(config, copy, Path(scratch)):
                    keep("warehouse", [needed], may_vanish=may_vanish)
                break
        else:
            raise StoreBusy(f"files of tables went {TRIES} times while they were copied", "run it again")
        if databases["mlflow.db"].is_file():
            mlflow = Path(scratch) / "mlflow.db"
            made.files["home/mlflow.db"] = _keep_database(vault, databases["mlflow.db"], mlflow)
            keep("mlflow", folders_below(roots["mlflow"]), may_vanish=True)
        vault.publish(made)
    return made, vault


def roots_of(config: Config) -> dict[str, Path]:
    """Folder of each role."""
    mlflow = config.mlflow_artifacts.removeprefix("file://")
    if "://" in mlflow:
        raise BadConfiguration(f"MLflow's files are at {mlflow}, which is no local folder", _OWN_TOOLS)
    return {
        "home": config.home,
        "artifacts": local_folder(config.artifacts, "airloop backup"),
        "warehouse": local_folder(config.warehouse, "airloop backup"),
        "mlflow": Path(mlflow),
    }


_OWN_TOOLS = "back up databases and object stores by their own means, the catalog last"


def _databases(config: Config) -> dict[str, Path]:
    from airloop.warehouse.store import sqlite_path

    found = {}
    for name, address in {"catalog.db": config.catalog, "mlflow.db": config.mlflow}.items():
        path = sqlite_path(address)
        if path is None:
            raise BadConfiguration(f"{name.removesuffix('.db')} is not a SQLite file", _OWN_TOOLS)
        found[name] = path
    return found


def _artifacts(config: Config) -> Iterator[list[Path]]:
    """Records, which name manifests; manifests, which name artifacts; artifacts."""
    root = local_folder(config.artifacts, "airloop backup")
    yield [p for name in ("runs", "attempts", FOLDER) for p in folders_below(root / name) if ".part-" not in str(p)]
    yield list((root / "steps").glob(f"*/*/*/{MANIFEST}"))
    # A manifest that came since may name what is not copied.
    yield [p for p in folders_below(root) if p.name != MANIFEST and ".part-" not in str(p.relative_to(root))]


def _keep_database(vault: Vault, path: Path, copy: Path) -> Kept:
    """Copy a database as of one moment, whoever writes it."""
    with closing(sqlite3.connect(path, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return vault.keep(copy, None)


def _files_of(config: Config, catalog: Path, scratch: Path) -> Iterator[tuple[Path, bool]]:
    """Files that the tables of a catalog name, and whether one may be gone: an older version of the metadata may."""
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.localio import local_path
    from airloop.warehouse.references import References
    from airloop.warehouse.store import open_catalog

    copied = replace(config, catalog=f"sqlite:///{catalog}", home=scratch / "home")
    warehouse = Warehouse(copied, open_catalog(copied))
    for name in warehouse.tables():
        table = warehouse.table(name)
        older = {local_path(entry.metadata_file) for entry in table.metadata.metadata_log}
        for path in sorted(References(table).all()):
            yield Path(path), path in older
