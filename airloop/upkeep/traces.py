"""
Values in files that are no tables: samples in manifests and errors, Data Docs, reports, logs.

Texts are redacted where they stand, and only whole words of them; what cannot be redacted without breaking it, a
database, a model, is named, so that a person can decide.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from airloop import atomic
from airloop.config import Config, local_folder
from airloop.upkeep.redaction import Redaction, Values

TEXTS = frozenset({".json", ".jsonl", ".html", ".htm", ".txt", ".log", ".csv", ".md", ".yaml", ".yml", ".svg", ""})
"""Suffixes of files in which a value may be replaced."""
PAGES = frozenset({".html", ".htm", ".svg"})
JOURNALS = "erasures"
"""Folder of the home in which an erasure under way keeps its notes."""
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
    """Files that hold a value, relative to the home where they are below it."""

    redacted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Files that cannot be redacted."""
    kept: list[str] = field(default_factory=list)
    """Files that hold it also as a name, or as a number that may be another one; see :mod:`.redaction`."""


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
    for path in _files(config):
        if not _holds(path, values.bytes):
            continue
        shown = str(path.relative_to(config.home) if path.is_relative_to(config.home) else path)
        redaction = Redaction(values)
        try:
            before = _text(config, path)
            after = _redacted(redaction, config, path, before)
        except ValueError:
            found.left.append(shown)
            continue
        if after != before:
            if redact:
                atomic.publish(path, after.encode(), mode=path.stat().st_mode & 0o777)
            found.redacted.append(shown)
        if redaction.kept:
            found.kept.append(shown)
    return found


def _holds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Whether a file, of whatever size, has a match."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return pattern.search(content) is not None
    except (FileNotFoundError, ValueError):
        # Gone meanwhile, or empty, which cannot be mapped.
        return False


def _files(config: Config) -> Iterator[Path]:
    artifacts = urlsplit(config.mlflow_artifacts)
    roots = [config.home, local_folder(config.artifacts, "airloop erase")]
    if artifacts.scheme in ("", "file"):
        roots.append(Path(artifacts.path))
    tables = local_folder(config.warehouse, "airloop erase").resolve()
    seen: set[Path] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            here = Path(folder).resolve()
            if here in (tables, config.home / JOURNALS) or here in seen:
                folders.clear()
                continue
            seen.add(here)
            yield from (p for p in (here / name for name in sorted(names)) if p.is_file() and not p.is_symlink())


def _text(config: Config, path: Path) -> str:
    """What is in a file. :raises ValueError: it is no text, or its bytes are promised."""
    inside = _inside(config, path)
    promised = set(MODEL_FILES) & set((inside or path.parts)[:-1]) or inside[:1] == CODE or inside[-1:] == DECISION
    if path.suffix.lower() not in TEXTS or promised:
        raise ValueError(f"{path} is not a text to be changed")
    return path.read_bytes().decode()


def _redacted(redaction: Redaction, config: Config, path: Path, content: str) -> str:
    """:raises ValueError: it is not what its suffix says."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        inside = _inside(config, path)
        return redaction.document(content, manifest=inside[:1] in RECORDS or inside[:1] + inside[-1:] == MANIFESTS)
    return redaction.page(content) if suffix in PAGES else redaction.lines(content)


def _inside(config: Config, path: Path) -> tuple[str, ...]:
    """Parts of a path within the artifacts; none if it is elsewhere."""
    artifacts = local_folder(config.artifacts, "airloop erase").resolve()
    return path.relative_to(artifacts).parts if path.is_relative_to(artifacts) else ()
