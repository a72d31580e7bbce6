"""
Values in files that are no tables: samples in manifests and errors, Data Docs, reports, logs.

Texts are redacted where they stand, and only whole words of them; what cannot be redacted without breaking it, a
database, a model, is named, so that a person can decide.
"""

from __future__ import annotations

import html
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from airloop.config import Config

REDACTED = "[erased]"
TEXTS = frozenset({".json", ".jsonl", ".html", ".htm", ".txt", ".log", ".csv", ".md", ".yaml", ".yml", ".svg", ""})
"""Suffixes of files in which a value may be replaced."""
JOURNALS = "erasures"
"""Folder of the home in which an erasure under way keeps its notes."""
MODEL_FILES = ("bundle", "mlflow")
"""Folders whose files belong to models: their bytes are what a digest promises."""


@dataclass
class Traces:
    """Files that hold a value, relative to the home where they are below it."""

    redacted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Files that still hold it."""


def search(config: Config, texts: Sequence[str], *, redact: bool) -> Traces:
    """
    Look for values in every file of the state but the tables' own.

    :param texts: values that tell a subject; see :meth:`airloop.upkeep.subject.Subject.texts`.
    :param redact: replace them where that is possible.
    """
    found = Traces()
    needles = sorted({form for text in texts for form in _forms(text)}, key=len, reverse=True)
    if not needles:
        return found
    either = b"|".join(re.escape(needle.encode()) for needle in needles)
    whole = re.compile(rb"(?<![A-Za-z0-9_])(?:" + either + rb")(?![A-Za-z0-9_])")
    for path in _files(config):
        if not _holds(path, whole):
            continue
        content = path.read_bytes()
        shown = str(path.relative_to(config.home) if path.is_relative_to(config.home) else path)
        if _can_be_redacted(config, path, content):
            if redact:
                _write(path, whole.sub(REDACTED.encode(), content))
            found.redacted.append(shown)
        else:
            found.left.append(shown)
    return found


def _holds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Whether a file, of whatever size, has a match."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return pattern.search(content) is not None
    except (FileNotFoundError, ValueError):
        # Gone meanwhile, or empty, which cannot be mapped.
        return False


def _forms(text: str) -> Iterator[str]:
    """The value as JSON, HTML and addresses write it."""
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield html.escape(text)
    yield html.escape(text, quote=False)
    yield quote(text)
    yield quote(text, safe="")


def _files(config: Config) -> Iterator[Path]:
    artifacts = urlsplit(config.mlflow_artifacts)
    roots = [config.home, config.artifacts]
    if artifacts.scheme in ("", "file"):
        roots.append(Path(artifacts.path))
    tables = config.warehouse.resolve()
    seen: set[Path] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            here = Path(folder).resolve()
            if here in (tables, config.home / JOURNALS) or here in seen:
                folders.clear()
                continue
            seen.add(here)
            yield from (p for p in (here / name for name in sorted(names)) if p.is_file() and not p.is_symlink())


def _can_be_redacted(config: Config, path: Path, content: bytes) -> bool:
    inside = path.relative_to(config.artifacts).parts if path.is_relative_to(config.artifacts) else path.parts
    if path.suffix.lower() not in TEXTS or set(MODEL_FILES) & set(inside[:-1]):
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    """Put the content in the file's place, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
