"""Files below a local folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from urllib.parse import unquote

from airloop import atomic
from airloop.objects.base import ALL, Change, Listed, Stream, checked

PIECE_BYTES = 1 << 20
_NONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Folder:
    """Files below a local folder. One is written beside its final name, and appears after its bytes are on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    @property
    def address(self) -> str:
        return self.root.absolute().as_uri()

    def path(self, name: str) -> Path:
        """Where a file is. :raises BadArgument: the name leaves the folder."""
        return self.root / checked(name)

    def uri(self, name: str) -> str:
        return self.path(name).absolute().as_uri()

    def name_of(self, uri: str) -> str:
        root = f"{self.address}/"
        return unquote(uri.removeprefix(root)) if uri.startswith(root) else ""

    def read(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except _NONE:
            return None

    def stream(self, name: str) -> Stream | None:
        try:
            file = self.path(name).open("rb")
        except _NONE:
            return None

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

        return Stream(os.fstat(file.fileno()).st_size, pieces())

    def look(self, name: str) -> Listed | None:
        try:
            stat = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _listed(str(checked(name)), stat) if S_ISREG(stat.st_mode) else None

    def local(self, name: str, scratch: Path) -> Path | None:
        path = self.path(name)
        return path if path.exists() else None

    def publish(self, name: str, content: bytes, *, only_if_absent: bool = False) -> bool:
        return atomic.publish(self.path(name), content, only_if_absent=only_if_absent)

    def publish_path(self, name: str, source: Path) -> None:
        """Also a folder appears, or is replaced, in one step."""
        target = self.path(name)
        if source.is_file():
            self.publish(name, source.read_bytes())
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
        try:
            _copy(source, staging / "new")
            # A rename does not replace a folder. Without an exchange, readers may find none for a moment.
            if not target.exists() or not atomic.exchange(staging / "new", target):
                if target.exists():
                    os.rename(target, staging / "old")
                os.rename(staging / "new", target)
            atomic.sync_folder(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def change(self, name: str, to: Change) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock is the folder's: it leaves no file behind.
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = to(self.read(name))
            if content is not None:
                atomic.publish(path, content)
        finally:
            os.close(descriptor)

    def listed(self, prefix: str, pattern: str = ALL) -> Iterator[Listed]:
        folder = self.path(prefix)
        found = {path.relative_to(self.root).as_posix(): path for path in folder.glob(pattern)}
        below = len(folder.relative_to(self.root).as_posix())
        for name in sorted(n for n in found if ".part-" not in n[below:]):
            try:
                stat = found[name].stat()
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed since it was listed, or a link that leads nowhere
            if S_ISREG(stat.st_mode):
                yield _listed(name, stat)

    def folders(self, prefix: str) -> list[str]:
        return sorted(entry.name for entry in self._children(prefix) if entry.is_dir())

    def changed(self, prefix: str) -> dict[str, Listed]:
        name, found = checked(prefix), {}
        for entry in self._children(prefix):
            try:
                if entry.is_dir():
                    # A file that is published is a new entry of its folder.
                    found[entry.name] = _listed(f"{name}/{entry.name}", entry.stat())
            except FileNotFoundError:
                continue  # removed since it was listed
        return found

    def _children(self, prefix: str) -> list[os.DirEntry[str]]:
        # A folder may have an entry for each of thousands of runs: paths would take ten times as long.
        try:
            with os.scandir(self.path(prefix)) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)


def _listed(name: str, stat: os.stat_result) -> Listed:
    return Listed(name, stat.st_size, stat.st_mtime, f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}")


def _copy(source: Path, target: Path) -> None:
    """
    Copy a folder, its bytes onto the disk.

    ``shutil.copytree`` gathers errors as texts: a full disk could not be told from a bug.
    """
    target.mkdir()
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir():
            _copy(path, place)
            continue
        with path.open("rb") as content, place.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
