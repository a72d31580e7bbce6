"""
The artifact store: files that are published whole or not at all.

A file is written beside its final name and appears by one rename, after its bytes are on disk. Names are relative,
forward-slashed paths below the store's root; a name that would leave the root is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from airloop import atomic
from airloop.errors import BadArgument, NotFound


class ArtifactStore:
    """Files below one local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Local path of a name. :raises BadArgument: the name is absolute or leaves the root."""
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\x00" in name or "\\" in name:
            raise BadArgument(f"artifact name {name!r} is not a relative path inside the store")
        return self.root / pure

    def uri(self, name: str) -> str:
        """Address of a name, for manifests and links."""
        return self.path(name).as_uri()

    def publish_bytes(self, name: str, content: bytes, *, only_if_absent: bool = False) -> bool:
        """
        Make ``content`` visible under ``name`` in one step.

        :param only_if_absent: leave an existing file as it is.
        :returns: False if the file existed and was left, else True.
        """
        return atomic.publish(self.path(name), content, only_if_absent=only_if_absent)

    def publish_path(self, name: str, source: Path) -> None:
        """Make a local file, or a folder with all that is in it, visible under ``name`` in one step."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            self.publish_bytes(name, source.read_bytes())
            return
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

    def read_bytes(self, name: str) -> bytes:
        """:raises NotFound: nothing is published under the name."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as cause:
            raise NotFound(f"nothing is published as {name} in {self.root}") from cause

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def names(self, prefix: str) -> list[str]:
        """Published names below a folder, sorted; files being written are left out."""
        folder = self.path(prefix)
        found = (p for p in folder.rglob("*") if p.is_file() and ".part-" not in str(p.relative_to(folder)))
        return sorted(p.relative_to(self.root).as_posix() for p in found)


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


def sha256(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()
