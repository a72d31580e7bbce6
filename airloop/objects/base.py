"""What a place of files is, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from airloop.errors import BadArgument

Change = Callable[[bytes | None], bytes | None]
"""Given a file's content, or None if there is no file: what is to stand in its place; None: it stays as it is."""
ALL = "**/*"
"""Pattern of every file below a folder."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of a file, or of the files right in a folder, without reading them."""

    name: str
    bytes: int
    changed_at: float
    """Seconds since 1970; a bucket may count whole ones."""
    stamp: str
    """Another one once something is written again."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A file in pieces."""

    length: int
    """Bytes of the whole file."""
    pieces: Iterator[bytes]


class Objects(Protocol):
    """
    Files by name. As text: where they are.

    Where one has no access, or a store is away or full, every method raises what :mod:`airloop.errors` has for it, or
    an OSError that stands for it.
    """

    @property
    def address(self) -> str:
        """``file:///…`` or ``s3://bucket/prefix``, without a slash at its end."""
        ...

    def uri(self, name: str) -> str:
        """Address of a file, percent-encoded. :raises BadArgument: the name leaves the place."""
        ...

    def name_of(self, uri: str) -> str:
        """Name of the file at an address; empty if it is not in this place."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is no file of the name."""
        ...

    def stream(self, name: str) -> Stream | None:
        """A file's content in pieces; None if there is no file of the name."""
        ...

    def look(self, name: str) -> Listed | None:
        """What is known of a file; None if there is no file of the name."""
        ...

    def local(self, name: str, scratch: Path) -> Path | None:
        """
        A file, or a folder with all that is below it, on this machine; None if there is none of the name.

        :param scratch: folder for a copy, if it is not on this machine already; it is made if need be.
        """
        ...

    def publish(self, name: str, content: bytes, *, only_if_absent: bool = False) -> bool:
        """
        Make ``content`` visible in one step.

        :returns: False if ``only_if_absent`` and there is a file already, which stays.
        """
        ...

    def publish_path(self, name: str, source: Path) -> None:
        """
        Make a local file, or a folder with all that is in it, visible.

        In a bucket a folder's files appear one by one: name it in a file that comes after.
        """
        ...

    def change(self, name: str, to: Change) -> None:
        """
        Put what ``to`` makes of a file's content in its place; nobody changes it in between.

        :param to: it is called again if somebody else came first. Should an answer of the store get lost, it may be
            called on what it made itself: it has to be content with that.
        :raises StoreBusy: others kept coming first.
        """
        ...

    def listed(self, prefix: str, pattern: str = ALL) -> Iterator[Listed]:
        """
        Files below a folder, in the order of their names; those that are being written are left out.

        :param prefix: the folder's name.
        :param pattern: :data:`ALL`, or names below the folder in which ``*`` stands for any part of one component.
        """
        ...

    def folders(self, prefix: str) -> list[str]:
        """The last components of the names of the folders right below a folder, sorted."""
        ...

    def changed(self, prefix: str) -> dict[str, Listed]:
        """When the files right in each of the :meth:`folders` below a folder last changed."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


def checked(name: str) -> PurePosixPath:
    """A name's parts. :raises BadArgument: it is empty, absolute, or leaves the place."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\x00" in name or "\\" in name:
        raise BadArgument(f"artifact name {name!r} is not a relative path inside the store")
    return pure
