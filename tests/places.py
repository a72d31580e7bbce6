"""Where a test's tables are: in a folder, or in a bucket of a real S3-compatible store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airloop.config import Config

EVERYWHERE = pytest.mark.parametrize("config", ["folder", "bucket"], indirect=True)
"""For a test that has to hold in both; the fixture ``config`` says where."""
AND_BY_REST = pytest.mark.parametrize("config", ["folder", "bucket", "rest"], indirect=True)
"""For one that also has to hold where an Iceberg REST catalog keeps the tables."""
IN_A_BUCKET = pytest.mark.parametrize("config", ["bucket"], indirect=True)


def data_files(config: Config) -> set[str]:
    """All Parquet files of a warehouse, whether a table names them or not."""
    if isinstance(config.warehouse, Path):
        return {str(path) for path in config.warehouse.rglob("*.parquet")}
    return {path for path in objects(config) if path.endswith(".parquet")}


def objects(config: Config) -> set[str]:
    """All files of a warehouse in a bucket."""
    from pyarrow.fs import FileSelector, FileType

    from airloop.warehouse.s3 import Access, filesystem

    place = str(config.warehouse).removeprefix("s3://")
    found = filesystem(Access.from_environment(), os.getpid()).get_file_info(
        FileSelector(place, recursive=True, allow_not_found=True)
    )
    return {info.path for info in found if info.type == FileType.File}
