"""Small sources and files that tests of the readers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.reference import Scope
from airloop.sources.files import FileSet, SourceFile
from airloop.sources.read import plan, rows
from airloop.sources.spec import SourceSpec

SENSORS: dict[str, Any] = {
    "name": "sensors",
    "table": "raw.sensors",
    "format": "csv",
    "columns": {"id": {"type": "long", "nullable": False}, "at": "timestamptz", "value": "double", "note": "string"},
    "key": ["id"],
}


@pytest.fixture
def spec() -> Callable[..., SourceSpec]:
    """A source of sensor readings, with fields replaced."""

    def make(**changed: Any) -> SourceSpec:
        return SourceSpec.model_validate({**SENSORS, **changed})

    return make


@pytest.fixture
def resolved(config: Config, tmp_path: Path) -> Callable[..., tuple[SourceFile, ...]]:
    """Write files (text or bytes by name) and resolve them."""

    def make(**contents: str | bytes) -> tuple[SourceFile, ...]:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        paths = []
        for name, content in contents.items():
            paths.append(folder / name.replace("__", "."))
            paths[-1].write_bytes(content.encode() if isinstance(content, str) else content)
        return FileSet.parse([str(p) for p in paths]).resolve(Scope(config)).files

    return make


@pytest.fixture
def read(resolved: Callable[..., tuple[SourceFile, ...]]) -> Callable[..., pa.Table]:
    """Write one file and read it whole."""

    def make(spec: SourceSpec, content: str | bytes, name: str = "in.csv") -> pa.Table:
        planned = plan(spec, resolved(**{name: content}), {})
        batches = [batch for *_, batch in rows(spec, planned)]
        return pa.Table.from_batches(batches) if batches else pa.table({})

    return make
