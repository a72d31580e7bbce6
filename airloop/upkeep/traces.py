"""
Values in files that are no tables: samples in manifests and errors, Data Docs, reports, logs.

Texts are redacted where they stand, and only whole words of them; what cannot be redacted without breaking it, a
database, a model, is named, so that a person can decide.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from airloop import atomic
from airloop.config import Config, S3Address
from airloop.objects import Bulk
from airloop.upkeep.records import READ_AT_ONCE
from airloop.upkeep.redaction import Redaction, Values
from airloop.warehouse import tree

TEXTS = frozenset({".json", ".jsonl", ".html", ".htm", ".txt", ".log", ".csv", ".md", ".yaml", ".yml", ".svg", ""})
"""Suffixes of files in which a value may be replaced."""
PAGES = frozenset({".html", ".htm", ".svg"})
JOURNALS = "erasures"
"""Folder of the home, or of artifacts in a bucket, in which an erasure under way keeps its notes."""
MODEL_FILES = ("bundle", "mlflow")
"""Folders whose files belong to models: their bytes are what a digest promises."""
CODE = ("code",)
"""Folder of the artifacts whose files are named by their digest."""
DECISION = ("decision.json",)
"""File of a gate's decision, which the ledger names with its digest."""
RECORDS = {("runs",), ("attempts",), ("usage",)}
MANIFESTS = ("steps", "manifest.json")


@dataclass
class Traces:
    """Files that hold a value: relative to the home where they are below it, else as paths or addresses."""

    redacted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Files that cannot be redacted."""
    kept: list[str] = field(default_factory=list)
    """Files that hold it also as a name, or as a number that may be another one; see :mod:`.redaction`."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file, whose content is on this machine."""

    content: Path
    shown: str
    """How people find it."""
    inside: tuple[str, ...]
    """Parts of its name within the artifacts; none if it is elsewhere."""
    replace: Callable[[bytes], object]

    @property
    def name(self) -> PurePosixPath:
        """Its name, with the folders that say what it is."""
        return PurePosixPath(*self.inside) if self.inside else PurePosixPath(self.content)


def search(config: Config, texts: Sequence[str], *, columns: Iterable[str] = (), redact: bool) -> Traces:
    """
    Look for values in every file of the state but the tables' own.

    :param texts: values that tell a subject; see :meth:`airloop.upkeep.subject.Subject.texts`.
    :param columns: names of the subject's columns: a number under such a name is its value.
    :param redact: replace them where that is possible.
    """
    found = Traces()
    values = Values(texts, columns)
    if values.bytes is None:
        return found
    for file in _files(config):
        if not _holds(file.content, values.bytes):
            continue
        redaction = Redaction(values)
        try:
            before = _text(file)
            after = _redacted(redaction, file, before)
        except ValueError:
            found.left.append(file.shown)
            continue
        if after != before:
            if redact:
                file.replace(after.encode())
            found.redacted.append(file.shown)
        if redaction.kept:
            found.kept.append(file.shown)
    return found


def _holds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Whether a file, of whatever size, has a match."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return pattern.search(content) is not None
    except (FileNotFoundError, ValueError):
        # Gone meanwhile, or empty, which cannot be mapped.
        return False


def _files(config: Config) -> Iterator[_File]:
    artifacts = _artifacts(config)
    for path in _local_files(config):
        shown = path.relative_to(config.home) if path.is_relative_to(config.home) else path
        inside = path.relative_to(artifacts).parts if path.is_relative_to(artifacts) else ()
        yield _File(path, str(shown), inside, partial(_replace, path))
    if isinstance(config.artifacts, S3Address):
        yield from _files_in_bucket(config, config.artifacts)


def _local_files(config: Config) -> Iterator[Path]:
    mlflow = urlsplit(config.mlflow_artifacts)
    roots = [config.home, _artifacts(config)]
    if mlflow.scheme in ("", "file"):
        roots.append(Path(mlflow.path))
    without = {config.home / JOURNALS}
    if isinstance(config.warehouse, Path):
        without.add(config.warehouse.resolve())
    seen: set[Path] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            here = Path(folder).resolve()
            if here in without or here in seen:
                folders.clear()
                continue
            seen.add(here)
            yield from (p for p in (here / name for name in sorted(names)) if p.is_file() and not p.is_symlink())


def _files_in_bucket(config: Config, place: S3Address) -> Iterator[_File]:
    """The artifacts of a bucket, brought here a few at a time; tables below them are no artifacts."""
    bulk = Bulk(place)
    without = [f"{place}/{JOURNALS}/"]
    if tree.is_below(config.warehouse, place):
        without.append(f"{config.warehouse}/")
    names = (file.name for file in bulk.walk() if not f"{place}/{file.name}".startswith(tuple(without)))
    with tempfile.TemporaryDirectory(prefix="airloop-erase-") as scratch, ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while piece := list(islice(names, READ_AT_ONCE)):
            folders = [Path(scratch, str(number)) for number in range(len(piece))]
            for name, content in zip(piece, pool.map(bulk.local, piece, folders), strict=True):
                if content is not None:
                    parts = PurePosixPath(name).parts
                    yield _File(content, f"{place}/{name}", parts, partial(bulk.publish, name))
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)


def _artifacts(config: Config) -> Path:
    """Folder of the artifacts; where they are in a bucket, one that nothing is in."""
    return config.artifacts.resolve() if isinstance(config.artifacts, Path) else config.home / "artifacts"


def _replace(path: Path, content: bytes) -> None:
    atomic.publish(path, content, mode=path.stat().st_mode & 0o777)


def _text(file: _File) -> str:
    """What is in a file. :raises ValueError: it is no text, or its bytes are promised."""
    name, inside = file.name, file.inside
    promised = set(MODEL_FILES) & set(name.parts[:-1]) or inside[:1] == CODE or inside[-1:] == DECISION
    if name.suffix.lower() not in TEXTS or promised:
        raise ValueError(f"{file.shown} is not a text to be changed")
    return file.content.read_bytes().decode()


def _redacted(redaction: Redaction, file: _File, content: str) -> str:
    """:raises ValueError: it is not what its suffix says."""
    suffix = file.name.suffix.lower()
    if suffix == ".json":
        manifest = file.inside[:1] in RECORDS or file.inside[:1] + file.inside[-1:] == MANIFESTS
        return redaction.document(content, manifest=manifest)
    return redaction.page(content) if suffix in PAGES else redaction.lines(content)
