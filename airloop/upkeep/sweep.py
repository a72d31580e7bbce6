"""What lies beside the tables and is of no use any more: parts of files, working folders, records, locks, code."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from airloop.config import Config, local_folder
from airloop.upkeep.records import read_record
from airloop.usage import FOLDER


def folders_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; links are files, and not followed."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from folders_below(Path(entry.path))
            else:
                yield Path(entry.path)


def leftovers(config: Config, cutoff: float, *, keep_s: float, busy: bool) -> Iterator[tuple[str, Path]]:
    """
    Kind and path of what may go.

    :param cutoff: seconds since 1970; nothing younger goes.
    :param keep_s: seconds for which records of attempts are kept that a later attempt of the same task has followed.
    :param busy: whether attempts run: code that one may be about to name stays.
    """
    yield from _parts(config, cutoff)
    yield from _work(config, cutoff)
    yield from _unfinished(config, cutoff)
    yield from _attempts(config, min(cutoff, time.time() - keep_s))
    yield from _usage(config, min(cutoff, time.time() - keep_s))
    if not busy:
        yield from _code(config, cutoff)
    yield from _locks(config, cutoff)


def _parts(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Files and folders that a killed process was publishing."""
    for path in list(_artifacts(config).rglob(".part-*")):
        if _older(path, cutoff):
            yield "unfinished artifacts", path


def _work(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Working folders of killed attempts that nobody took up again."""
    for name in ("work", "spill"):
        folder = config.home / name
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if _older(path, cutoff):
                yield "working folders", path


def _unfinished(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Artifacts of steps that never published a manifest."""
    for path in list((_artifacts(config) / "steps").glob("*/*/*")):
        if path.is_dir() and not (path / "manifest.json").exists() and _older(path, cutoff):
            yield "unfinished artifacts", path


def _attempts(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Records of attempts that are not the newest of their task in their run."""
    newest = set()
    for path in (_artifacts(config) / "runs").glob("*/*/*.json"):
        newest.add(read_record(path)["attempt"])
    for path in list((_artifacts(config) / "attempts").glob("*/*.json")):
        if path.stem not in newest and _older(path, cutoff):
            yield "attempts' records", path


def _usage(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """
    What attempts took: it goes with their records.

    What a manifest's own attempt took stays with the manifest, and what its task's last attempt took with its record.
    """
    stay = {read_record(path)["attempt"] for path in (_artifacts(config) / "runs").glob("*/*/*.json")}
    stay |= {read_record(path).get("attempt") for path in (_artifacts(config) / "steps").glob("*/*/*/manifest.json")}
    for path in list((_artifacts(config) / FOLDER).glob("*/*/*/*.json")):
        if path.stem not in stay and _older(path, cutoff):
            yield "records of use", path


def _code(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Archived code that no manifest names."""
    folder = _artifacts(config) / "code"
    trees = list((folder / "trees").glob("*.json"))
    if not trees:
        return
    named = set()
    for path in (_artifacts(config) / "steps").glob("*/*/*/manifest.json"):
        named.add(read_record(path).get("code", {}).get("tree", ""))
    packs = set()
    for tree in trees:
        if tree.stem in named or not _older(tree, cutoff):
            packs |= set(read_record(tree)["packs"].values())
        else:
            yield "code", tree
    for pack in list((folder / "packs").glob("*.zip")):
        if pack.stem not in packs and _older(pack, cutoff):
            yield "code", pack


def _locks(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """
    Lock files of keys that nobody holds.

    They go while we hold them: who opened one before and gets it after sees that it is gone and makes a new one.
    """
    for path in list((config.home / "locks" / "steps").glob("*.lock")):
        if not _older(path, cutoff):
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield "locks", path
            finally:
                os.close(descriptor)


def _artifacts(config: Config) -> Path:
    return local_folder(config.artifacts, "airloop gc")


def _older(path: Path, cutoff: float) -> bool:
    """Whether a file, or all that is in a folder, was last written before the cutoff."""
    with suppress(FileNotFoundError):
        if path.lstat().st_mtime >= cutoff:
            return False
        return not path.is_dir() or all(p.lstat().st_mtime < cutoff for p in folders_below(path))
    return False
