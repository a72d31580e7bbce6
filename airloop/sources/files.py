"""
Files as a step's input: named by path, glob or package, resolved to names and SHA-256.

The bytes decide, not the place: a key holds each file's name and digest, never a local folder. Digests are cached by
path, size, times and inode, so that a large file that did not change is not read again.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, ClassVar, Self

from airloop.errors import AirloopError, BadInput, NotFound, TryAgain
from airloop.reference import Reference, Scope
from airloop.warehouse.store import storing

PACKAGE = "package:"
SETTLED_S = 2.0
"""A file changed more recently than this may change again within one tick of the clock; its digest is not cached."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as it was when it was resolved."""

    name: str
    """Name for people and rows: without the folder, or relative to a glob's fixed part."""
    sha256: str
    path: Path = field(compare=False)
    stamp: tuple[int, ...] = field(compare=False)
    """Size, change times and inode, to see whether the file is still the same."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp[0]

    def check_unchanged(self) -> None:
        """:raises TryAgain: the file is not the one that was resolved; what was read of it may be of both."""
        try:
            now = _stamp(self.path.stat())
        except OSError as cause:
            raise TryAgain(f"{self.path} went away while it was read", "run the task again") from cause
        if now != self.stamp:
            raise TryAgain(f"{self.path} changed while it was read", "run the task again once it is complete")


@dataclass(frozen=True, slots=True)
class FileSet(Reference):
    """
    Files to read, in order.

    Written as a path, a glob (``*``, ``?``, ``[…]``, ``**``), ``package:NAME/data/file.csv`` for a file inside an
    installed Python package, or a list of these. They are read in the order given, those of a glob by name. ``~`` is
    the home folder; a relative path starts at the current folder of the payload.
    """

    kind: ClassVar[str] = "files"
    patterns: tuple[str, ...]
    files: tuple[SourceFile, ...] = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        patterns = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(patterns, Sequence) or not patterns:
            raise ValueError(f"files are a path, a glob or a list of them, not {value!r}")
        if not all(isinstance(p, str | os.PathLike) and str(p).strip() for p in patterns):
            raise ValueError(f"files are paths or globs, each a text that is not empty, not {value!r}")
        texts = tuple(str(p) for p in patterns)
        if any("\x00" in text for text in texts):
            raise ValueError("a path cannot hold a NUL character")
        return cls(texts)

    def resolve(self, scope: Scope) -> Self:
        """
        :raises NotFound: a path or package is not there, or a glob matches nothing.
        :raises BadInput: a path is a folder or a device, cannot be read, or two files have one name.
        """
        if self.files:
            return self
        cache = DigestCache(scope.config.home / "file-digests.db")
        files: dict[Path, SourceFile] = {}
        for pattern in self.patterns:
            for name, path in _matches(pattern):
                if path not in files:
                    files[path] = cache.describe(name, path)
        by_name: dict[str, SourceFile] = {}
        for file in files.values():
            other = by_name.setdefault(file.name, file)
            if other is not file:
                raise BadInput(
                    f"{other.path} and {file.path} are both named {file.name}, so rows could not be traced to them",
                    "name both by one glob, e.g. folder/*/file.csv, which keeps the varying part",
                )
        return type(self)(self.patterns, tuple(files.values()))

    def canonical(self) -> Any:
        return [[file.name, file.sha256] for file in self.files] if self.files else list(self.patterns)

    def __str__(self) -> str:
        if not self.files:
            return ", ".join(self.patterns)
        return ", ".join(f"{file.name}@sha256:{file.sha256[:16]}" for file in self.files)


class DigestCache:
    """SHA-256 of files, remembered in SQLite; processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self, name: str, path: Path) -> SourceFile:
        """
        :raises NotFound: no such file.
        :raises BadInput: not a regular file, or not readable.
        """
        try:
            with open(path, "rb", opener=_open_regular) as file:
                stamp = _stamp(os.fstat(file.fileno()))
                digest = self._remembered(path, stamp)
                if digest is None:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    if _stamp(os.fstat(file.fileno())) != stamp:
                        raise TryAgain(f"{path} is being written", "run the task again once it is complete")
                    self._remember(path, stamp, digest)
        except AirloopError:
            raise
        except FileNotFoundError as cause:
            raise NotFound(f"there is no file {path}", _nearest(path)) from cause
        except PermissionError as cause:
            raise BadInput(f"{path} cannot be read: permission denied", _reader()) from cause
        return SourceFile(name, digest, path, stamp)

    def _remembered(self, path: Path, stamp: tuple[int, ...]) -> str | None:
        with self._connected() as connection:
            row = connection.execute(
                "SELECT sha256 FROM digests WHERE path = ? AND stamp = ?", (str(path), repr(stamp))
            ).fetchone()
        return str(row[0]) if row else None

    def _remember(self, path: Path, stamp: tuple[int, ...], digest: str) -> None:
        if time.time() - max(stamp[1], stamp[2]) / 1e9 < SETTLED_S:
            return
        with self._connected() as connection:
            connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (str(path), repr(stamp), digest))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with storing(f"remembering digests in {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)"
                )
                yield connection


def _open_regular(path: str, flags: int) -> int:
    # Opening a FIFO would wait for a writer for ever; a device may have no end.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path} is a folder", f"name the files in it: {path}/*.csv")
        raise BadInput(f"{path} is not a regular file", "write the data to a file first")
    return descriptor


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def _matches(pattern: str) -> Iterator[tuple[str, Path]]:
    """``(name, absolute path)`` of every file that a pattern names, by name."""
    if pattern.startswith(PACKAGE):
        pattern = _in_package(pattern)
    path = Path(pattern).expanduser()
    if not glob.has_magic(pattern) or os.path.lexists(path):
        yield path.name, path.absolute()
        return
    fixed = _fixed_part(path)
    found = sorted(p for p in glob.glob(str(path), recursive=True) if not os.path.isdir(p))
    if not found:
        raise NotFound(f"no file matches {pattern}", _nearest(path) if not fixed.is_dir() else "check the pattern")
    for text in found:
        yield Path(text).relative_to(fixed).as_posix(), Path(text).absolute()


def _fixed_part(path: Path) -> Path:
    """The folder above the first part of a glob that varies."""
    fixed = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _in_package(address: str) -> str:
    """Path or glob of ``package:NAME/inner/path``, without importing the package."""
    package, _, inner = address.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not inner or ".." in PurePath(inner).parts or PurePath(inner).is_absolute():
        raise BadInput(f"{address!r} does not name a file in a package", "write package:NAME/folder/file.csv")
    try:
        found = importlib.util.find_spec(package)
    except ValueError as cause:
        raise NotFound(f"{address}: package {package} has no place on disk", "name the file by path") from cause
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise NotFound(f"{address}: package {package} is not installed", f"install it: pip install {package}")
    candidates = [os.path.join(glob.escape(folder) if glob.has_magic(inner) else folder, inner) for folder in folders]
    return next((c for c in candidates if glob.glob(c, recursive=True) or os.path.lexists(c)), candidates[0])


def _nearest(path: Path) -> str:
    """What to look at when a path is not there."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"the folder {path.parent} is not there either, {folder} is"
    alike = sorted(p.name for p in folder.iterdir() if p.stem.split(".")[0] == path.stem.split(".")[0])[:5]
    return f"did you mean {', '.join(alike)}?" if alike else f"the folder {folder} is there, the file is not"


def _reader() -> str:
    return f"give the user with id {os.geteuid()}, who runs the task, read access to it and its folders"
