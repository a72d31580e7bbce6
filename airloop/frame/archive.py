"""
The code archive: the exact source that a step ran, kept in the artifact store by content.

``code/trees/TREE.json`` says which file lies where, with its SHA-256, and which pack holds it:

=====================  =========================================================================================
``python/…``           all of the package airloop, and every module outside the installed packages that the step or
                       an estimator among its arguments reaches by import
``feature_repo/…``     the feature repository, if the step was given a feature service
=====================  =========================================================================================

``code/packs/SHA256.zip`` holds the files of one package, so that a change to a team's own code is a small new pack.

A manifest names its tree (``code.tree``), which is complete before the manifest is there. The tree is no part of the
key. What it does not hold: installed libraries, which the manifest names by version, and data files beside a team's
own modules.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.errors import ContractBroken, NotFound, TryAgain
from airloop.frame.key import reach, source_path
from airloop.frame.step import Step
from airloop.reference import Reference
from airloop.warehouse.artifacts import ArtifactStore, sha256

TREE_FORMAT = 1
TRIES = 3
PYTHON, FEATURES = "python", "feature_repo"
"""Folders of a tree: what goes on the module path, and the feature repository."""
_PACKAGE = Path(__file__).parents[1]


class _Changed(TryAgain):
    """A file is not what it was a moment ago."""


def archive(store: ArtifactStore, step: Step, arguments: Mapping[str, Any], config: Config) -> str:
    """
    Keep the source that an attempt runs; what is kept already is not written again.

    :param arguments: bound and resolved.
    :returns: the tree's id, SHA-256 of its listing.
    :raises TryAgain: a file keeps changing.
    """
    for _ in range(TRIES):
        # A deployment or an editor may replace files at this very moment.
        with suppress(_Changed):
            return _archive(store, step, arguments, config)
    return _archive(store, step, arguments, config)


def _archive(store: ArtifactStore, step: Step, arguments: Mapping[str, Any], config: Config) -> str:
    files = dict(sorted(_files(step, arguments, config)))
    digests = {place: _digest(path) for place, path in files.items()}
    packs = {home: _pack_id(listed) for home, listed in _by_package(digests).items()}
    listing = {"format": TREE_FORMAT, "packs": packs, "files": digests}
    content = json.dumps(listing, indent=0).encode() + b"\n"
    tree = sha256(content)
    if store.exists(tree_name(tree)):
        return tree
    for home, listed in _by_package(digests).items():
        if not store.exists(pack_name(packs[home])):
            store.publish_bytes(pack_name(packs[home]), _pack(files, listed), only_if_absent=True)
    # The listing comes last: a tree that is there is complete.
    store.publish_bytes(tree_name(tree), content, only_if_absent=True)
    return tree


def tree_name(tree: str) -> str:
    """Name of a tree's listing in the artifact store."""
    return f"code/trees/{tree}.json"


def pack_name(pack: str) -> str:
    """Name of a pack in the artifact store."""
    return f"code/packs/{pack}.zip"


def read_tree(store: ArtifactStore, tree: str) -> dict[str, Any]:
    """
    The listing of a tree: ``files``, the SHA-256 of each by its place, and ``packs``, that of each package.

    :raises NotFound: there is no such tree.
    :raises ContractBroken: its listing was changed.
    """
    content = store.read_bytes(tree_name(tree))
    if sha256(content) != tree:
        raise ContractBroken(f"{store.uri(tree_name(tree))} was changed", "restore it from a backup")
    found: dict[str, Any] = json.loads(content)
    return found


def unpack(store: ArtifactStore, tree: str, folder: Path) -> None:
    """
    Lay a tree out in a folder.

    :raises NotFound: the tree or one of its packs is not there.
    :raises ContractBroken: a file was changed.
    """
    listing = read_tree(store, tree)
    for home, listed in _by_package(listing["files"]).items():
        name = pack_name(listing["packs"][home])
        with zipfile.ZipFile(io.BytesIO(store.read_bytes(name))) as pack:
            for place, digest in listed.items():
                content = pack.read(place)
                if sha256(content) != digest:
                    raise ContractBroken(f"{place} in {store.uri(name)} was changed", "restore it from a backup")
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def read_source(store: ArtifactStore, tree: str, module: str) -> str | None:
    """Source of a module as a tree holds it; None if it does not, or if the tree is gone."""
    inner = f"{PYTHON}/{module.replace('.', '/')}"
    try:
        listing = read_tree(store, tree)
        place = next((p for p in (f"{inner}.py", f"{inner}/__init__.py") if p in listing["files"]), None)
        if place is None:
            return None
        pack = listing["packs"]["/".join(place.split("/")[:2])]
        with zipfile.ZipFile(io.BytesIO(store.read_bytes(pack_name(pack)))) as archived:
            return archived.read(place).decode()
    except NotFound:
        return None


def _by_package(digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The files of each pack: by top-level package below ``python``, and the feature repository."""
    found: dict[str, dict[str, str]] = {}
    for place, digest in digests.items():
        parts = place.split("/")
        home = "/".join(parts[:2]) if parts[0] == PYTHON else parts[0]
        found.setdefault(home, {})[place] = digest
    return found


def _pack_id(listed: Mapping[str, str]) -> str:
    return sha256("".join(f"{digest} {place}\n" for place, digest in listed.items()).encode())


def _pack(files: Mapping[str, Path], listed: Mapping[str, str]) -> bytes:
    """A zip file whose bytes follow from the files' names and contents alone."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
        for place, digest in listed.items():
            source = files[place].read_bytes()
            if sha256(source) != digest:
                raise _Changed(f"{files[place]} changed while it was archived", "run the task again")
            pack.writestr(zipfile.ZipInfo(place), source, zipfile.ZIP_DEFLATED, compresslevel=1)
    return content.getvalue()


def prime() -> None:
    """Digest this package once, for attempts in children of this process; a file that changes is read again."""
    for path in _below(_PACKAGE):
        _digest(path)


def _files(step: Step, arguments: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Path]]:
    for path in _below(_PACKAGE):
        yield f"{PYTHON}/{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}", path
    modules = set(reach(step.module))
    for value in arguments.values():
        # An argument that stands for code says which modules it is made of.
        modules |= set(getattr(value, "code", {}))
    for name in modules:
        source = source_path(name)
        if source is not None and name.partition(".")[0] != _PACKAGE.name:
            inner = name.replace(".", "/") + ("/__init__.py" if source.name == "__init__.py" else ".py")
            yield f"{PYTHON}/{inner}", source
    if config.feature_repo is not None and any(_of_features(value) for value in arguments.values()):
        for path in _below(config.feature_repo):
            yield f"{FEATURES}/{path.relative_to(config.feature_repo).as_posix()}", path


def _of_features(value: Any) -> bool:
    return isinstance(value, Reference) and value.kind == "feature_service"


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder, those of caches and hidden folders left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        yield from (Path(root, name) for name in names if not name.startswith(".") and not name.endswith(".pyc"))


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
