"""
Correct one row in a hundred of a large table by key: ours, and PyIceberg's own upsert.

    python -m benchmarks.upsert [--sizes 5000000,50000000] [--runs 3] [--peer-up-to 5000000] [--check]

``recent``: the corrected rows are the last ones, as late outcomes are; ``spread``: they are all over the table, so that
every data file has some and is written anew. Both write the same rows into tables that were written the same way, and
must leave the same rows behind. Beyond ``--peer-up-to`` rows PyIceberg is not asked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Measured, finish, middle, own_process, parser_for, row, settled, sizes_of

TABLE = "raw.flights"
PATTERNS = ("recent", "spread")
MEMORY_MB = 1024
"""``AIRLOOP_MEMORY_MB``, what DuckDB may take."""
FLAT_MB = 512
"""Memory beyond the smallest size's that a larger one may take, MiB."""
_ROWS = """
SELECT i AS id, ['EWR', 'JFK', 'LGA'][1 + h(i, 1) % 3] AS origin, 'N' || (10000 + h(i, 2) % 4000) AS tailnum,
    TIMESTAMPTZ '2013-01-01 00:00:00+00' + INTERVAL 1 SECOND * i AS sched_dep,
    (h(i, 3) % 3000)::DOUBLE / 10 AS dep_delay, (h(i, 4) % 3000)::DOUBLE / 10 + {more} AS arr_delay
FROM range({begin}, {end}, {step}) t(i)
"""


def _batches(begin: int, end: int, step: int, *, more: float = 0.0) -> Iterator[Any]:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone='UTC'")
        connection.execute("CREATE MACRO h(i, n) AS (hash(i, n) >> 1)::BIGINT")
        sql = _ROWS.format(begin=begin, end=end, step=step, more=more)
        yield from connection.execute(sql).to_arrow_reader(250_000)


def _corrected(rows: int, pattern: str) -> Iterator[Any]:
    begin, step = (rows - rows // 100, 1) if pattern == "recent" else (0, 100)
    return _batches(begin, rows, step, more=1000.0)


def _warehouse(home: str) -> Any:
    from airloop.config import Config
    from airloop.warehouse.catalog import Warehouse

    return Warehouse.open(Config.from_environment({"AIRLOOP_HOME": home, "AIRLOOP_MEMORY_MB": str(MEMORY_MB)}))


def make(home: str, rows: int) -> dict[str, Any]:
    """The table, in files of a million rows."""
    warehouse = _warehouse(home)
    began = time.perf_counter()
    first = next(_batches(0, 1, 1))
    warehouse.ensure(TABLE, first.schema, key=["id"])
    warehouse.commit(TABLE, _batches(0, rows, 1), key="make", mode="append")
    return {"seconds": time.perf_counter() - began, "first": warehouse.head(TABLE)}


def _back(warehouse: Any, snapshot: int) -> None:
    """Make ``main`` the table as it was made, whatever was written since."""
    warehouse.table(TABLE).manage_snapshots().set_current_snapshot(snapshot_id=snapshot).commit()


def ours(home: str, rows: int, pattern: str, first: int) -> dict[str, Any]:
    """As a step does it."""
    warehouse = _warehouse(home)
    _back(warehouse, first)
    began = time.perf_counter()
    commit = warehouse.commit(TABLE, _corrected(rows, pattern), key=f"{time.time_ns()}", mode="upsert", on=["id"])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "updated": commit.updated, "added": commit.added, **_sums(warehouse)}


def pyiceberg(home: str, rows: int, pattern: str, first: int) -> dict[str, Any]:
    """PyIceberg's own, which takes a table in memory."""
    import pyarrow as pa

    warehouse = _warehouse(home)
    _back(warehouse, first)
    given = pa.Table.from_batches(_corrected(rows, pattern))
    table = warehouse.table(TABLE)
    given = given.cast(table.schema().as_arrow())
    began = time.perf_counter()
    result = table.upsert(given, join_cols=["id"])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "updated": result.rows_updated, "added": result.rows_inserted, **_sums(warehouse)}


def _sums(warehouse: Any) -> dict[str, Any]:
    from airloop.warehouse.refs import TableRef

    with warehouse.duckdb({"t": TableRef(TABLE, warehouse.head(TABLE))}) as connection:
        sql = (
            "SELECT count(*), sum(hash(id, origin, tailnum, sched_dep, dep_delay, arr_delay)::HUGEINT)::VARCHAR FROM t"
        )
        count, total = connection.execute(sql).fetchone()
    return {"count": count, "sum": total}


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    sizes_of(parser, (5_000_000, 50_000_000))
    parser.add_argument("--peer-up-to", type=int, default=5_000_000, help="rows; default 5,000,000")
    arguments = settled(parser.parse_args(), quick=(20_000,))
    rows: list[dict[str, Any]] = []
    least: dict[str, Measured] = {}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
            home = str(Path(folder) / "home")
            first = own_process("benchmarks.upsert:make", home=home, rows=size).more["first"]
            for pattern in PATTERNS:
                given = {"home": home, "rows": size, "pattern": pattern, "first": first}
                mine = middle(arguments.runs, lambda g=given: own_process("benchmarks.upsert:ours", **g))
                peer = None
                if size <= arguments.peer_up_to:
                    peer = middle(arguments.runs, lambda g=given: own_process("benchmarks.upsert:pyiceberg", **g))
                    if mine.more != peer.more:
                        raise SystemExit(f"{pattern}: ours left {mine.more}, PyIceberg {peer.more}")
                if (mine.more["updated"], mine.more["count"]) != (size // 100, size):
                    raise SystemExit(f"{pattern}: {size // 100} of {size} rows should have changed: {mine.more}")
                smallest = least.setdefault(pattern, mine)
                rows.append(_row(size, pattern, mine, peer, smallest))
    return finish("upsert", arguments, rows, memory_mb=MEMORY_MB)


def _row(size: int, pattern: str, mine: Measured, peer: Measured | None, smallest: Measured) -> dict[str, Any]:
    return row(
        f"upsert of 1%, {pattern}",
        f"{size:,} rows",
        mine,
        peer,
        peer="PyIceberg's upsert" if peer else "",
        target="3 times as fast, memory flat" if peer else "memory flat; PyIceberg was not asked",
        limit_s=peer.seconds / 3 if peer else None,
        limit_mb=smallest.peak_mb + FLAT_MB,
    )


if __name__ == "__main__":
    raise SystemExit(main())
