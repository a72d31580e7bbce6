"""``airloop restore``: a home as it was at a point, in an empty place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from airloop import postgres
from airloop.config import Config, S3Address, own_catalog
from airloop.errors import BadArgument
from airloop.faults import point as fault_point
from airloop.locks import PostgresLocks, locks_of
from airloop.objects import Bulk
from airloop.upkeep.gc import alone
from airloop.upkeep.points import ROLES, Point, Vault
from airloop.upkeep.sweep import folders_below


def restore(source: Path, home: Path, *, point: str | None = None, config: Config | None = None) -> Point:
    """
    Lay a point's files below ``home``: all of them, checked, or none.

    Whatever lay elsewhere (``AIRLOOP_WAREHOUSE``…) comes below ``home`` too, unless ``config`` has a bucket or a
    database for it: then its files go there, and the catalog's rows, which make tables of them, at the end. If the
    place is another than it was, everything that says where it lies is written anew.

    All of it lies below the parent of ``home`` for a while: that disk needs the room.

    :param source: folder of backups.
    :param home: a folder that is empty or not there.
    :param point: default the newest.
    :param config: where artifacts, tables and catalog go that are not to lie below ``home``.
    :raises BadArgument: the folder, a place in a bucket, or the catalog is not empty.
    :raises BadConfiguration: the catalog is an Iceberg REST catalog.
    :raises StoreBusy: a gc or a backup works with the catalog.
    :raises NotFound: there is no such point, or a content is gone.
    :raises ContractBroken: a content was changed.
    """
    home = home.resolve()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BadArgument(f"{home} is not empty", "name a folder that is, or that is not there")
    if config is not None:
        own_catalog(config, "airloop restore")
    with ExitStack() as held:
        if config is not None and isinstance(locks_of(config), PostgresLocks):
            # Locks that are files would lie in the home, which has to be empty.
            held.enter_context(alone(config))
        return _lay(Vault(source), home, point, config)


def _lay(vault: Vault, home: Path, point: str | None, config: Config | None) -> Point:
    buckets = dict(_buckets(config)) if config else {}
    _refuse_what_is_there(config, buckets)
    made = vault.read(point)
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{home.name}.part-", dir=home.parent))
    try:
        for name, kept in made.files.items():
            role, _, rest = name.partition("/")
            vault.copy_out(kept, staging / _place(role) / rest)
        fault_point("restore:copied")
        finals = {role: buckets.get(role) or home / _place(role) for role in ROLES}
        roles = [role for role in ROLES if role in made.roots]
        if any(made.roots[role] != str(finals[role]) for role in roles):
            from airloop.upkeep.relocate import relocate

            moves = {made.roots[role]: _text(role, made.roots[role], finals[role]) for role in roles}
            relocate(staging, moves, {str(finals[role]): staging / _place(role) for role in ROLES})
        fault_point("restore:before")
        # All of it was copied since the first look: a loop may have begun meanwhile.
        _refuse_what_is_there(config, buckets)
        for role, place in buckets.items():
            _send(staging / _place(role), Bulk(place))
        if config is not None and postgres.is_address(config.catalog):
            from airloop.upkeep.exported import import_catalog

            # The last step: it is what makes tables of the files. To open a catalog makes folders, which stay apart.
            scratch = staging / ".catalog"
            warehouse = config.warehouse if isinstance(config.warehouse, S3Address) else scratch
            import_catalog(replace(config, home=scratch, warehouse=warehouse), staging / "catalog.db")
            shutil.rmtree(scratch)
            (staging / "catalog.db").unlink()
        staging.chmod(0o755)
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _buckets(config: Config) -> Iterator[tuple[str, S3Address]]:
    for role, place in (("artifacts", config.artifacts), ("warehouse", config.warehouse)):
        if isinstance(place, S3Address):
            yield role, place


def _refuse_what_is_there(config: Config | None, buckets: dict[str, S3Address]) -> None:
    for place in buckets.values():
        if next(Bulk(place).walk(), None) is not None:
            raise BadArgument(f"{place} is not empty", "name a prefix that is, or remove what is there")
    if config is not None and postgres.is_address(config.catalog):
        from airloop.upkeep.exported import is_empty, not_empty

        if not is_empty(config):
            raise not_empty(config)


def _text(role: str, old: str, final: Path | S3Address) -> str:
    """What is to stand where a place's old address stood."""
    if old.startswith("s3://") and isinstance(final, Path):
        # Addresses of artifacts are escaped, those of tables are not.
        return final.as_uri() if role == "artifacts" else f"file://{final}"
    return str(final)


def _send(folder: Path, bulk: Bulk) -> None:
    """Put what lies in a folder into a bucket, and take it away here. What is in the bucket stays."""
    if not folder.is_dir():
        return
    for path in folders_below(folder):
        # Not by folders: of one that is published nothing stays that was there before.
        bulk.publish_path(path.relative_to(folder).as_posix(), path)
    shutil.rmtree(folder)


def _place(role: str) -> str:
    return "" if role == "home" else role
