"""
Where backups lie: every content once, and one small file for each point in time.

``objects/AB/SHA256``            a file's bytes
``points/20261121T220501Z.json`` which file of the home has which content; written last, by rename

A point that is there is complete. Files that did not change since the point before are not read again (same size and
time), and bytes that are there already are not copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath

from airloop.errors import BadArgument, ContractBroken, NotFound
from airloop.faults import point as fault_point
from airloop.objects import Objects
from airloop.warehouse.artifacts import ArtifactStore

FORMAT = 1
ROLES = ("home", "artifacts", "warehouse", "mlflow")
"""What a file belongs to: the first part of its name in a point."""
_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a point."""

    sha256: str
    size: int
    mtime_ns: int
    """Of a file in a bucket: a number that is another one once it is written again."""


@dataclass(slots=True)
class Point:
    """A home at one moment."""

    made_at: str
    roots: dict[str, str]
    """Where the files lay, by role: a path, or an address in a bucket. One that is not in the point is missing."""
    files: dict[str, Kept] = field(default_factory=dict)
    """By ``ROLE/path``."""
    notes: list[str] = field(default_factory=list)
    """What is not in it."""
    name: str = ""

    @property
    def bytes(self) -> int:
        return sum(kept.size for kept in self.files.values())


class Vault:
    """A folder of backups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.copied = 0
        self.copied_bytes = 0

    def points(self) -> list[str]:
        """Names of all points, oldest first."""
        folder = self.root / "points"
        return sorted(p.stem for p in folder.glob("*.json")) if folder.is_dir() else []

    def read(self, name: str | None = None) -> Point:
        """
        A point, or the newest.

        :raises NotFound: there is none (of that name).
        :raises ContractBroken: it cannot be read, or holds a name that would leave the home.
        """
        names = self.points()
        if not names or (name is not None and name not in names):
            found = f"points: {', '.join(names)}" if names else "a backup that did not end leaves no point"
            raise NotFound(f"{self.root} has no backup {name or ''}".rstrip(), found)
        name = name or names[-1]
        try:
            document = json.loads((self.root / "points" / f"{name}.json").read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this airloop reads {FORMAT}")
            files = {safe(path): Kept(*kept) for path, kept in document["files"].items()}
            if not all(re.fullmatch("[0-9a-f]{64}", kept.sha256) for kept in files.values()):
                raise ValueError("a digest is none")
            return Point(document["made_at"], dict(document["roots"]), files, list(document["notes"]), name)
        except (ValueError, KeyError, TypeError) as cause:
            raise ContractBroken(
                f"backup {name} in {self.root} cannot be read: {cause}", "use another point"
            ) from cause

    def publish(self, made: Point) -> str:
        """Make a point visible; its objects are there. Returns its name."""
        made.name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        document = {"format": FORMAT, **asdict(made)}
        document["files"] = {n: [k.sha256, k.size, k.mtime_ns] for n, k in sorted(made.files.items())}
        content = json.dumps(document, indent=0).encode()
        fault_point("backup:point")
        ArtifactStore(self.root).publish_bytes(f"points/{made.name}.json", content)
        return made.name

    def keep(self, path: Path, known: Kept | None) -> Kept:
        """
        Bring a file's content in, unless it is known to be there.

        :raises FileNotFoundError: the file is gone.
        """
        stat = path.stat()
        if known is not None and self.has(known) and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known
        with path.open("rb") as source:
            return self._bring(iter(partial(source.read, _BYTES), b""), stat.st_mtime_ns)

    def keep_object(self, objects: Objects, name: str, known: Kept | None) -> Kept:
        """
        Likewise for a file of a bucket.

        :raises FileNotFoundError: the file is gone.
        """
        listed, found, stamp = objects.look(name), None, 0
        if listed is not None:
            # Times are told in whole seconds, within which a file may change twice; what stands for it does not lie.
            stamp = int.from_bytes(hashlib.sha256(listed.stamp.encode()).digest()[:7])
            if known is not None and self.has(known) and (known.size, known.mtime_ns) == (listed.bytes, stamp):
                return known
            found = objects.stream(name)
        if listed is None or found is None:
            raise FileNotFoundError(f"{objects}/{name} is gone")
        return self._bring(found.pieces, stamp)

    def has(self, kept: Kept | None) -> bool:
        """Whether a content is there."""
        return kept is not None and self.object(kept.sha256).exists()

    def _bring(self, pieces: Iterator[bytes], mtime_ns: int) -> Kept:
        digest = hashlib.sha256()
        size = 0
        folder = self.root / "objects"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".part-", dir=folder)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as copy:
                for block in pieces:
                    digest.update(block)
                    copy.write(block)
                    size += len(block)
                copy.flush()
                os.fsync(copy.fileno())
            target = self.object(digest.hexdigest())
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                temporary.replace(target)
                self.copied += 1
                self.copied_bytes += size
                fault_point("backup:object")
        finally:
            temporary.unlink(missing_ok=True)
        return Kept(digest.hexdigest(), size, mtime_ns)

    def object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def copy_out(self, kept: Kept, target: Path) -> None:
        """
        Write a content to a new file.

        :raises NotFound: the content is not there.
        :raises ContractBroken: it is not what it was.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            source = self.object(kept.sha256).open("rb")
        except FileNotFoundError as cause:
            raise NotFound(f"{target.name}: its content {kept.sha256} is not in {self.root}", _OTHER) from cause
        with source, target.open("xb") as copy:
            while block := source.read(_BYTES):
                digest.update(block)
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
        if digest.hexdigest() != kept.sha256:
            raise ContractBroken(f"{target.name}: the content {kept.sha256} in {self.root} was changed", _OTHER)

    def verify(self, made: Point) -> int:
        """Read every content of a point; returns how many. :raises ContractBroken: one is gone or changed."""
        wrong = []
        for sha256 in sorted({kept.sha256 for kept in made.files.values()}):
            digest = hashlib.sha256()
            try:
                with self.object(sha256).open("rb") as source:
                    while block := source.read(_BYTES):
                        digest.update(block)
            except FileNotFoundError:
                wrong.append(sha256)
                continue
            if digest.hexdigest() != sha256:
                wrong.append(sha256)
        if wrong:
            names = sorted(n for n, kept in made.files.items() if kept.sha256 in wrong)
            raise ContractBroken(
                f"backup {made.name} in {self.root}: {len(names):,} files are gone or changed, first {names[0]}", _OTHER
            )
        return len({kept.sha256 for kept in made.files.values()})


_OTHER = "use another point, or make a new backup"


def safe(name: str) -> str:
    """A name of a file in a point. :raises BadArgument: it would leave the home."""
    pure = PurePosixPath(name)
    if (
        len(pure.parts) < 2 or pure.is_absolute() or ".." in pure.parts or "\x00" in name or "\\" in name
        or pure.parts[0] not in ROLES or str(pure) != name
    ):  # fmt: skip
        raise BadArgument(f"{name!r} is not the name of a file in a backup")
    return name
