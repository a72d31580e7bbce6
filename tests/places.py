"""
Where a test's state is: in a folder; its tables in a bucket of a real S3-compatible store; or, as in a cluster, tables
and artifacts in a bucket and catalog and locks in a real PostgreSQL.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airloop.config import Config

EVERYWHERE = pytest.mark.parametrize("config", ["folder", "bucket"], indirect=True)
"""For a test that has to hold in both; the fixture ``config`` says where."""
IN_A_CLUSTER = pytest.mark.parametrize("config", ["cluster"], indirect=True)
ALONE_AND_TOGETHER = pytest.mark.parametrize("config", ["folder", "cluster"], indirect=True)
"""For a test that has to hold with state of one machine, and with state that many share."""
AND_BY_REST = pytest.mark.parametrize("config", ["folder", "bucket", "rest"], indirect=True)
"""For one that also has to hold where an Iceberg REST catalog keeps the tables."""
IN_A_BUCKET = pytest.mark.parametrize("config", ["bucket"], indirect=True)


def data_files(config: Config) -> set[str]:
    """All Parquet files of a warehouse, whether a table names them or not."""
    if isinstance(config.warehouse, Path):
        return {str(path) for path in config.warehouse.rglob("*.parquet")}
    return {path for path in objects(config) if path.endswith(".parquet")}


def table_files(config: Config) -> set[str]:
    """All files of a warehouse but its owner's mark, as the metadata of tables write them."""
    from airloop.upkeep.owner import MARK
    from airloop.warehouse import tree

    return {file.path for file in tree.below(str(config.warehouse))} - {f"{config.warehouse}/{MARK}"}


def objects(config: Config) -> set[str]:
    """All files of a warehouse in a bucket."""
    from pyarrow.fs import FileSelector, FileType

    from airloop.warehouse.s3 import Access, filesystem

    place = str(config.warehouse).removeprefix("s3://")
    found = filesystem(Access.from_environment(), os.getpid()).get_file_info(
        FileSelector(place, recursive=True, allow_not_found=True)
    )
    return {info.path for info in found if info.type == FileType.File}
