"""
The files of tables as they lie there, whether a table names them or not.

A path is written as the metadata of tables write it: a local path, or ``s3://bucket/key`` with nothing escaped.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airloop.config import Config, S3Address
from airloop.objects.bulk import CLOCK_STEP_S, Bulk
from airloop.warehouse.localio import local_path

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Warehouse

SCHEME = "s3://"
REPLAYS = ".replays"
"""Folder of a warehouse in a bucket for tables of replays; no namespace of a catalog can have such a name."""


@dataclass(frozen=True, slots=True)
class File:
    """One file."""

    path: str
    bytes: int
    changed_at: float
    """Seconds since 1970, by the clock of where it lies."""


def below(place: str) -> Iterator[File]:
    """
    Every file below a folder or a prefix, in no order; none if there is nothing.

    In a folder links are files, and not followed. Of a bucket no more than a page of names is held.
    """
    if place.startswith(SCHEME):
        bucket, key = split(place)
        for found in Bulk(S3Address(bucket, "")).walk(key):
            yield File(f"{SCHEME}{bucket}/{found.name}", found.bytes, found.changed_at)
        return
    with suppress(FileNotFoundError), os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from below(entry.path)
                continue
            with suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                yield File(entry.path, stat.st_size, stat.st_mtime)


def of_tables(config: Config, place: str) -> Iterator[File]:
    """Likewise, but for the artifacts, where these are kept below the warehouse: they are no files of tables."""
    if not is_below(config.artifacts, config.warehouse):
        return below(place)
    here, artifacts = real(place), real(str(config.artifacts))
    if is_within(here, artifacts):
        return iter(())
    if not is_within(artifacts, here):
        return below(place)
    without = f"{place.rstrip('/')}{artifacts.removeprefix(here)}"
    return (file for file in below(place) if not is_within(file.path, without))


def remove(paths: Collection[str]) -> None:
    """Remove files; those that are gone already are no matter."""
    keys: dict[str, list[str]] = {}
    for path in paths:
        if path.startswith(SCHEME):
            bucket, key = split(path)
            keys.setdefault(bucket, []).append(key)
        else:
            Path(path).unlink(missing_ok=True)
    for bucket, names in keys.items():
        Bulk(S3Address(bucket, "")).remove_all(names)


def read(path: str) -> bytes | None:
    """What is in a file; None if it is not there."""
    if not path.startswith(SCHEME):
        return Path(path).read_bytes() if Path(path).exists() else None
    bucket, key = split(path)
    return Bulk(S3Address(bucket, "")).read(key)


def exists(path: str) -> bool:
    """Whether a file is there."""
    if not path.startswith(SCHEME):
        return Path(path).exists()
    bucket, key = split(path)
    return Bulk(S3Address(bucket, "")).look(key) is not None


def those_there(paths: Iterable[str], place: str) -> list[str]:
    """Those of some files that are there, sorted. What is below ``place`` is listed, the others are asked for."""
    here = {file.path for file in below(place)}
    return sorted(path for path in paths if path in here or exists(path))


def ahead_s(path: str) -> float:
    """What to add to a time of this machine's clock to compare a file's with it: no file looks older than it is."""
    if not path.startswith(SCHEME):
        return 0.0
    bucket, key = split(path)
    return Bulk(S3Address(bucket, key.rpartition("/")[0])).clock_ahead_s() - CLOCK_STEP_S


def real(place: str) -> str:
    """A place without links in it."""
    return place.rstrip("/") if place.startswith(SCHEME) else str(Path(place).resolve())


def is_within(place: str, root: str) -> bool:
    """Whether a place, without links in it, is below another one, or the same."""
    return place == root or place.startswith(f"{root.rstrip('/')}/")


def is_below(place: Path | S3Address, other: Path | S3Address) -> bool:
    """Whether one of two places that a configuration names is below the other, and not the same."""
    return is_within(real(str(place)), real(str(other))) and real(str(place)) != real(str(other))


def real_places(warehouse: Warehouse) -> set[str]:
    """Where the tables of a catalog have their files, without links."""
    return {real(local_path(warehouse.table(name).location())) for name in warehouse.tables()}


def split(path: str) -> tuple[str, str]:
    """Bucket and key of an address."""
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    return bucket, key.rstrip("/")
