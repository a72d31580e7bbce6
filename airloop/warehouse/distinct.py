"""Whether rows differ from one another, without holding more of them than a number each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from airloop.warehouse.read import execute

if TYPE_CHECKING:
    import duckdb

ROWS_PER_PASS = 16_000_000
"""Rows whose identities are compared at a time, 8 bytes each."""
ROWS_PER_BATCH = 250_000


def all_distinct(connection: duckdb.DuckDBPyConnection, identity: str, source: str, rows: int) -> bool:
    """
    Whether no two rows have the same identity. Sorting outside of DuckDB takes a fifth of what its DISTINCT takes.

    :param identity: SQL of an unsigned 64-bit number; of a hash, equal ones by chance are possible and different ones
        prove different rows. NULL stands for a row that is like another.
    :param source: ``FROM …`` with its conditions.
    :param rows: how many there are at most.
    """
    passes = -(-rows // ROWS_PER_PASS)
    for number in range(passes):
        part = f" WHERE id % {passes} = {number} OR id IS NULL" if passes > 1 else ""
        found = execute(connection, f"SELECT id FROM (SELECT {identity} AS id {source}){part}")
        # Memory that is not written to is not taken.
        held, count = np.empty(rows, np.uint64), 0
        for batch in found.to_arrow_reader(ROWS_PER_BATCH):
            if batch.column(0).null_count:
                return False
            held[count : count + batch.num_rows] = batch.column(0).to_numpy()
            count += batch.num_rows
        seen = held[:count]
        seen.sort()
        if (seen[1:] == seen[:-1]).any():
            return False
    return True
