"""Read what the care of the state depends on: a document that cannot be read stops it, and is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from airloop.errors import ContractBroken
from airloop.objects import Folder, Objects
from airloop.records import FORGET, REDO, refuse_unknown

READ_AT_ONCE = 8
"""Files of a bucket that are read at a time: each is a wait."""
PIECE = 256
"""Files whose contents are held at a time."""
WAYS_OUT = {"steps": REDO, "code": "remove the file: what ran by its code cannot be replayed then"}
"""What to do about a document that cannot be read, by its folder; a record anywhere else."""


def read_records(objects: Objects, prefix: str, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Name and content of manifests, or of records of attempts, in the order of their names.

    :param prefix: folder.
    :param pattern: of names below it.
    :raises ContractBroken: one is no JSON object, or of a format that this airloop does not know: nobody knows what it
        needs.
    """
    names = (found.name for found in objects.listed(prefix, pattern))
    if isinstance(objects, Folder):
        contents: Iterator[tuple[str, bytes | None]] = ((name, objects.read(name)) for name in names)
        yield from _known(objects, contents)
        return
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while piece := list(islice(names, PIECE)):
            yield from _known(objects, zip(piece, pool.map(objects.read, piece), strict=True))


def read_listing(objects: Objects, name: str) -> dict[str, Any] | None:
    """What a tree of code consists of; None if it is not there. :raises ContractBroken: it is no JSON object."""
    return next((found for _, found in _parsed(objects, iter([(name, objects.read(name))]))), None)


def _known(objects: Objects, contents: Iterator[tuple[str, bytes | None]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in _parsed(objects, contents):
        refuse_unknown(document, f"{objects}/{name}", _way_out(name))
        yield name, document


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
    return ContractBroken(f"{objects}/{name} cannot be read: {cause}", _way_out(name))


def _way_out(name: str) -> str:
    return WAYS_OUT.get(name.partition("/")[0], FORGET)
