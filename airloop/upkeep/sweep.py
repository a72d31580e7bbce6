"""What lies beside the tables and is of no use any more: parts of files, working folders, records, locks, code."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from airloop.config import Config
from airloop.objects import Bulk, Listed, Objects, open_objects
from airloop.objects.bulk import CLOCK_STEP_S
from airloop.upkeep.records import read_listing
from airloop.upkeep.retention import Told
from airloop.usage import FOLDER

UNFINISHED = "unfinished artifacts"


def folders_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; links are files, and not followed."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from folders_below(Path(entry.path))
            else:
                yield Path(entry.path)


def leftovers(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """
    Kind and path of what may go on this machine.

    :param cutoff: seconds since 1970; nothing younger goes.
    """
    if isinstance(config.artifacts, Path):
        yield from _parts(config.artifacts, cutoff)
        yield from _unfinished(config.artifacts, cutoff)
    yield from _work(config, cutoff)
    yield from _locks(config, cutoff)


def _parts(artifacts: Path, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Files and folders that a killed process was publishing."""
    for path in list(artifacts.rglob(".part-*")):
        if _older(path, cutoff):
            yield UNFINISHED, path


def _work(config: Config, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Working folders of killed attempts that nobody took up again."""
    for name in ("work", "spill"):
        folder = config.home / name
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if _older(path, cutoff):
                yield "working folders", path


def _unfinished(artifacts: Path, cutoff: float) -> Iterator[tuple[str, Path]]:
    """Artifacts of steps that never published a manifest."""
    for path in list((artifacts / "steps").glob("*/*/*")):
        if path.is_dir() and not (path / "manifest.json").exists() and _older(path, cutoff):
            yield UNFINISHED, path


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


def _older(path: Path, cutoff: float) -> bool:
    """Whether a file, or all that is in a folder, was last written before the cutoff."""
    with suppress(FileNotFoundError):
        if path.lstat().st_mtime >= cutoff:
            return False
        return not path.is_dir() or all(p.lstat().st_mtime < cutoff for p in folders_below(path))
    return False


class Published:
    """What may go of the files in the artifact store, wherever that is."""

    def __init__(self, config: Config, told: Told, cutoff: float) -> None:
        """
        :param told: what manifests and records say.
        :param cutoff: seconds since 1970, by this machine's clock; nothing younger goes.
        """
        self.objects: Objects = open_objects(config.artifacts)
        self._told = told
        ahead_s = self.objects.clock_ahead_s() - CLOCK_STEP_S if isinstance(self.objects, Bulk) else 0.0
        self.cutoff = cutoff + ahead_s
        """By the clock of where the files are."""
        self._now = time.time() + ahead_s

    def unfinished(self) -> Iterator[Listed]:
        """Artifacts in a bucket of steps that never published a manifest; in a folder :func:`leftovers` has them."""
        if not isinstance(self.objects, Bulk):
            return
        below = (file for file in self.objects.walk("steps") if file.name.count("/") >= 4)
        for folder, files in groupby(below, key=lambda file: "/".join(file.name.split("/")[:4])):
            left = []
            for file in files:
                if file.changed_at >= self.cutoff or file.name == f"{folder}/manifest.json":
                    break
                left.append(file)
            else:
                # Asked for: whether a listing gives all of a folder in a row is the store's affair.
                if self.objects.look(f"{folder}/manifest.json") is None:
                    yield from left

    def is_same(self, file: Listed) -> bool:
        """Whether nobody wrote a file, which was old, since it was seen."""
        now = self.objects.look(file.name)
        # Some stores list parts of seconds and tell whole ones of a single file.
        return now is not None and (now.bytes, int(now.changed_at)) == (file.bytes, int(file.changed_at))

    def attempts(self, keep_s: float) -> Iterator[Listed]:
        """
        Records of attempts that are not the newest of their task in their run.

        :param keep_s: seconds for which they are kept.
        """
        return self._of_attempts("attempts", keep_s, self._told.attempts)

    def usage(self, keep_s: float) -> Iterator[Listed]:
        """
        What attempts took: it goes with their records.

        What a manifest's own attempt took stays with the manifest, what a task's last attempt took with its record.

        :param keep_s: seconds for which it is kept in any case.
        """
        return self._of_attempts(FOLDER, keep_s, self._told.attempts | {made.attempt for made in self._told.manifests})

    def _of_attempts(self, folder: str, keep_s: float, stay: Set[str]) -> Iterator[Listed]:
        cutoff = min(self.cutoff, self._now - keep_s)
        for file in self._files(folder):
            attempt = file.name.rpartition("/")[2].removesuffix(".json")
            if file.changed_at < cutoff and file.name.endswith(".json") and attempt not in stay:
                yield file

    def code(self) -> Iterator[Listed]:
        """Archived code that no manifest names; only to be asked for while no attempt may be about to name some."""
        named = {made.code for made in self._told.manifests}
        packs: set[str] = set()
        gone = []
        for file in self._files("code/trees"):
            if self._id(file) in named or file.changed_at >= self.cutoff:
                packs |= set((read_listing(self.objects, file.name) or {"packs": {}})["packs"].values())
            else:
                gone.append(file)
        if gone or packs:
            yield from gone
            for file in self._files("code/packs"):
                if self._id(file) not in packs and file.changed_at < self.cutoff:
                    yield file

    def remove(self, names: Sequence[str]) -> None:
        """Remove what was found."""
        if isinstance(self.objects, Bulk):
            self.objects.remove_all(names)
            return
        for name in names:
            self.objects.remove(name)

    def _files(self, folder: str) -> Iterator[Listed]:
        return self.objects.walk(folder) if isinstance(self.objects, Bulk) else self.objects.listed(folder)

    @staticmethod
    def _id(file: Listed) -> str:
        return file.name.rpartition("/")[2].partition(".")[0]
