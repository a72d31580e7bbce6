"""A small table with a history, and steps that leave manifests behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.warehouse.catalog import Warehouse

TABLE = "shop.orders"
ANY_AGE = -5.0
"""A grace period with which nothing is too young, for tests in which nobody writes: a store tells whole seconds."""
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("amount", pa.float64())])


def rows(ids: Iterable[int], amount: float = 1.0) -> pa.Table:
    ids = list(ids)
    return pa.table({"id": ids, "amount": [amount] * len(ids)}, schema=SCHEMA)


@pytest.fixture
def history(warehouse: Warehouse) -> list[int]:
    """Six snapshots, one row each, by the keys ``key-0`` to ``key-5``."""
    warehouse.ensure(TABLE, SCHEMA, key=("id",))
    return [warehouse.commit(TABLE, rows([i]), key=f"key-{i}").snapshot for i in range(6)]


@pytest.fixture
def age(config: Config) -> Callable[[Path], None]:
    """Make a file, or all files below a folder, two days old."""

    def make_old(path: Path) -> None:
        past = time.time() - 2 * 86_400
        for place in (path, *path.rglob("*")) if path.is_dir() else (path,):
            os.utime(place, (past, past))

    return make_old
