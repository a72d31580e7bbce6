"""Read what the care of the state depends on: a document that cannot be read stops it, and is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from airloop.errors import ContractBroken
from airloop.objects import Folder, Objects

READ_AT_ONCE = 8
"""Files of a bucket that are read at a time: each is a wait."""
PIECE = 256
"""Files whose contents are held at a time."""


def read_records(objects: Objects, prefix: str, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Name and content of manifests, or of records of attempts, in the order of their names.

    :param prefix: folder.
    :param pattern: of names below it.
    :raises ContractBroken: one is no JSON object; nobody knows what it needs.
    """
    names = (found.name for found in objects.listed(prefix, pattern))
    if isinstance(objects, Folder):
        contents: Iterator[tuple[str, bytes | None]] = ((name, objects.read(name)) for name in names)
        yield from _parsed(objects, contents)
        return
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while piece := list(islice(names, PIECE)):
            yield from _parsed(objects, zip(piece, pool.map(objects.read, piece), strict=True))


def read_record(objects: Objects, name: str) -> dict[str, Any] | None:
    """One of them; None if it is not there. :raises ContractBroken: it is no JSON object."""
    return next((found for _, found in _parsed(objects, iter([(name, objects.read(name))]))), None)


def _parsed(objects: Objects, contents: Iterator[tuple[str, bytes | None]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, content in contents:
        if content is None:
            continue  # removed since it was listed
        try:
            document = json.loads(content)
        except ValueError as cause:
            raise unreadable(objects, name, cause) from cause
        if not isinstance(document, dict):
            raise unreadable(objects, name, f"it is a {type(document).__name__}")
        yield name, document


def unreadable(objects: Objects, name: str, cause: object) -> ContractBroken:
    """What is said of a document that lacks what it has to have."""
    return ContractBroken(f"{objects}/{name} cannot be read: {cause}", "remove the file to have the step done again")
