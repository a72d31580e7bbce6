"""
The artifact store: files that are published whole or not at all, below a folder or a prefix of a bucket.

Names are relative, forward-slashed paths; a name that would leave the store is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from airloop.config import S3Address
from airloop.errors import BadConfiguration, NotFound
from airloop.objects import Folder, Listed, Objects, Stream, open_objects


class ArtifactStore:
    """Artifacts, manifests and records by name."""

    def __init__(self, place: Path | S3Address | Objects) -> None:
        self.objects: Objects = open_objects(place) if isinstance(place, Path | S3Address) else place

    def __str__(self) -> str:
        return str(self.objects)

    @property
    def root(self) -> Path:
        """The folder. :raises BadConfiguration: the store is in a bucket."""
        if isinstance(self.objects, Folder):
            return self.objects.root
        raise BadConfiguration(f"the artifacts are in {self.objects}, not in a folder", "set AIRLOOP_ARTIFACTS to one")

    def path(self, name: str) -> Path:
        """
        Local path of a name.

        :raises BadArgument: the name is absolute or leaves the root.
        :raises BadConfiguration: the store is in a bucket.
        """
        return Folder(self.root).path(name)

    @property
    def address(self) -> str:
        """Address of the store, without a slash at its end."""
        return self.objects.address

    def uri(self, name: str) -> str:
        """Address of a name, for manifests and links."""
        return self.objects.uri(name)

    def name_of(self, uri: str) -> str:
        """Name of what is at an address; empty if it is not in this store."""
        return self.objects.name_of(uri)

    def publish_bytes(self, name: str, content: bytes, *, only_if_absent: bool = False) -> bool:
        """
        Make ``content`` visible under ``name`` in one step.

        :param only_if_absent: leave an existing file as it is.
        :returns: False if the file existed and was left, else True.
        """
        return self.objects.publish(name, content, only_if_absent=only_if_absent)

    def publish_path(self, name: str, source: Path) -> None:
        """
        Make a local file, or a folder with all that is in it, visible under ``name``.

        In a folder that is one step. In a bucket its files appear one by one: name it in what is published after.
        """
        self.objects.publish_path(name, source)

    def read_bytes(self, name: str) -> bytes:
        """:raises NotFound: nothing is published under the name."""
        content = self.objects.read(name)
        if content is None:
            raise NotFound(f"nothing is published as {name} in {self}")
        return content

    def stream(self, name: str) -> Stream:
        """A file in pieces. :raises NotFound: nothing is published under the name."""
        found = self.objects.stream(name)
        if found is None:
            raise NotFound(f"nothing is published as {name} in {self}")
        return found

    def exists(self, name: str) -> bool:
        """Whether a file is published under the name."""
        return self.objects.look(name) is not None

    def names(self, prefix: str) -> list[str]:
        """Published names below a folder, sorted; files being written are left out."""
        return [found.name for found in self.objects.listed(prefix)]

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted."""
        return self.objects.folders(prefix)

    def changed(self, prefix: str) -> dict[str, Listed]:
        """The same folders, each with when the files right in it last changed."""
        return self.objects.changed(prefix)


def sha256(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()
