"""
Point-in-time join of labels with 9 features of 3 views: Airloop's store, SQL by hand, and Feast's own DuckDB store.

    python -m benchmarks.join [--labels 1000000] [--rows 3300000] [--data regular] [--runs 3] [--check] [--quick]
    python -m benchmarks.join --labels 10000000 --no-feast --out benchmarks/results/join-10m.json

``--rows`` is of each view, 100 for each entity. Each way runs in a process of its own; imports and the opening of
stores are not counted. All must give the same rows. Two sets of data:

``regular``    values arrive ten minutes after their event; by hand that is DuckDB's ASOF JOIN on the arrival time
``late``       one value in fifty arrives up to a day late, so that a newer one may be known before it; by hand the rows
               that a newer one overtook are taken out by a window first

The peers read Parquet files; Airloop reads its Iceberg tables and keeps the entity rows' order.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Measured, finish, in_turn, own_process, parser_for, row, settled

EVENTS_PER_ENTITY = 100
LABELS = 1_000_000
BESIDE_MB = 1024
"""Memory of libraries and of rows on their way, besides what DuckDB may take."""
VIEWS = ("pace", "money", "rating")
FEATURES = [f"{view}__f{i}" for view in VIEWS for i in range(3)]
REFS = [f"{view}:f{i}" for view in VIEWS for i in range(3)]
DATA = ("regular", "late")
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)

def view(name, source):
    fields = [Field(name=f"f{{i}}", dtype=Float64) for i in range(3)]
    return FeatureView(
        name=name, entities=[driver], ttl=timedelta(days=3650), source=source,
        schema=[Field(name="driver", dtype=Int64), *fields],
    )

{sources}
"""
OURS = """
from airloop.features.source import IcebergSource
pace, money, rating = (view(n, IcebergSource(name=n)) for n in ("pace", "money", "rating"))
"""
FILES = """
pace, money, rating = (
    view(n, FileSource(name=n, path=f"{folder}/{{n}}.parquet", timestamp_field="event_time",
                       created_timestamp_column="arrival_time"))
    for n in ("pace", "money", "rating")
)
"""
STORE = """
project: bench
provider: local
registry: {registry}
offline_store: {{type: {offline}}}
online_store: {{type: sqlite, path: {online}}}
entity_key_serialization_version: 3
"""


def make(folder: Path, labels: int, rows: int, data: str) -> None:
    """Labels and views as Parquet files and as Iceberg tables, the same at every call."""
    import duckdb

    from airloop.warehouse.catalog import Warehouse

    entities = max(rows // EVENTS_PER_ENTITY, 1)
    day = 86_400_000_000
    late = "CASE WHEN hash(i, 'l') % 50 = 0 THEN hash(i, 'd') % 86400 ELSE 0 END" if data == "late" else "0"
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for view in VIEWS:
            # No two events of an entity are at one time: then it is open by hand which of them is chosen.
            features = ", ".join(
                f"CASE WHEN hash(i, '{view}{n}') % 20 > 0 THEN (hash(i, '{view}{n}') % 1000000) / 7.0 END AS f{n}"
                for n in range(3)
            )
            connection.execute(
                f"""COPY (SELECT i % {entities} AS driver, {features},
                make_timestamptz(({day * 365} + (i // {entities}) * {day} * 90 // {EVENTS_PER_ENTITY}
                  + hash(i, '{view}') % 1296 * 60000000)::BIGINT) AS event_time,
                event_time + INTERVAL 10 MINUTE + to_seconds({late}) AS arrival_time
                FROM range({rows}) t(i)) TO '{folder / view}.parquet' (ROW_GROUP_SIZE 122880)"""
            )
        connection.execute(
            f"""COPY (SELECT i AS label_id, (hash(i, 'k') % {entities})::BIGINT AS driver,
            make_timestamptz({day * 365} + (hash(i, 't') % {day * 98})::BIGINT) AS event_timestamp
            FROM range({labels}) t(i)) TO '{folder}/labels.parquet'"""
        )
        warehouse = Warehouse.open(_config(folder))
        for table in (*VIEWS, "labels"):
            source = connection.execute(f"SELECT * FROM '{folder / table}.parquet'")
            reader = source.to_arrow_reader(1_000_000)
            warehouse.ensure(f"features.{table}", reader.schema)
            warehouse.commit(f"features.{table}", reader, key=table)
    for name, sources, offline in (
        ("ours", OURS, "airloop.features.store.IcebergOfflineStore"),
        ("files", FILES.format(folder=folder), "duckdb"),
    ):
        repository = folder / name
        repository.mkdir()
        (repository / "views.py").write_text(DEFINITIONS.format(sources=sources))
        (repository / "feature_store.yaml").write_text(
            STORE.format(registry=repository / "registry.db", offline=offline, online=repository / "online.db")
        )


def _config(folder: Path) -> Any:
    from airloop.config import Config

    return Config.from_environment({"AIRLOOP_HOME": str(folder / "home"), "AIRLOOP_FEATURE_REPO": str(folder / "ours")})


def checksum(table: Any) -> int:
    """Of the labels and their features, the same in whatever order the rows come."""
    import numpy as np
    import pyarrow as pa

    odd = np.uint64(0x9E3779B97F4A7C15)
    label = (table["label_id"].to_numpy().astype(np.uint64) + np.uint64(1)) * odd
    label ^= label >> np.uint64(29)
    total = len(label)
    for number, name in enumerate(("driver", *FEATURES)):
        column = table[name].cast(pa.float64())
        bits = column.fill_null(float("inf")).to_numpy().view(np.uint64) + np.uint64(number)
        total += int((label * (bits * odd)).sum(dtype=np.uint64))
    return total % 2**64


def by_feast(folder: str, repository: str) -> dict[str, Any]:
    """``get_historical_features(…).to_arrow()`` of a Feast repository."""
    import numpy as np
    import pandas as pd

    if repository == "ours":
        from airloop.features.repo import open_store

        store = open_store(_config(Path(folder)))
    else:
        from feast import FeatureStore

        from airloop.features.repo import objects_of

        store = FeatureStore(f"{folder}/{repository}")
        store.apply(objects_of(Path(folder) / repository))
    rows = pd.read_parquet(f"{folder}/labels.parquet")
    seconds, table = _timed(
        lambda: store.get_historical_features(
            rows, REFS, full_feature_names=True, filter_by_created_timestamp=True
        ).to_arrow()
    )
    ordered = bool(np.array_equal(table["label_id"].to_numpy(), rows["label_id"].to_numpy()))
    return {"seconds": seconds, "rows": table.num_rows, "checksum": checksum(table), "ordered": ordered}


def in_the_loop(folder: str) -> dict[str, Any]:
    """What the steps do: labels from their Iceberg table, each value with its evidence, streamed in order of time."""
    from airloop.features.definitions import Field, ServiceDefinition, ViewDefinition
    from airloop.features.offline import features_for
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(_config(Path(folder)))
    views = tuple(
        ViewDefinition(
            view, f"features.{view}", ("driver",), tuple(Field(f"f{i}", "double") for i in range(3)),
            ttl_s=3650 * 86400.0, arrival_time="arrival_time",
        )
        for view in VIEWS
    )  # fmt: skip
    tables = [TableRef(f"features.{view}", warehouse.head(f"features.{view}")) for view in VIEWS]
    labels = TableRef("features.labels", warehouse.head("features.labels"))
    rows, total, spent = 0, 0, 0.0
    began = time.perf_counter()
    with features_for(
        warehouse, entities=labels, service=ServiceDefinition("bench", views), tables=tables,
        time_column="event_timestamp", columns=["label_id"],
    ) as reader:  # fmt: skip
        for batch in reader:
            checking = time.perf_counter()
            rows += batch.num_rows
            total += checksum(batch) - batch.num_rows
            spent += time.perf_counter() - checking
    seconds = time.perf_counter() - began - spent
    return {"seconds": seconds, "rows": rows, "checksum": (total + rows) % 2**64}


def by_hand(folder: str, data: str) -> dict[str, Any]:
    """One statement that a person would write who knows how the data arrives."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")

    def timeline(view: str) -> str:
        rows = f"'{folder}/{view}.parquet'"
        if data == "regular":
            return rows
        return (
            f"(SELECT * FROM {rows} QUALIFY event_time >= max(event_time) OVER"
            " (PARTITION BY driver ORDER BY arrival_time, event_time ROWS UNBOUNDED PRECEDING)"
            " AND lead(arrival_time) OVER (PARTITION BY driver ORDER BY arrival_time, event_time)"
            " IS DISTINCT FROM arrival_time)"
        )

    joins = " ".join(
        f"ASOF LEFT JOIN {timeline(v)} {v} ON l.driver = {v}.driver AND l.event_timestamp >= {v}.arrival_time"
        for v in VIEWS
    )
    features = ", ".join(f'{view}.f{i} AS "{view}__f{i}"' for view in VIEWS for i in range(3))
    sql = f"SELECT label_id, l.driver, event_timestamp, {features} FROM '{folder}/labels.parquet' l {joins}"
    seconds, table = _timed(lambda: connection.sql(sql).to_arrow_table())
    return {"seconds": seconds, "rows": table.num_rows, "checksum": checksum(table)}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def compare(folder: str, data: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """
    All ways on one set of data.

    :raises SystemExit: they give different rows.
    """
    ways: dict[str, Callable[[], Measured]] = {
        "hand": lambda: own_process("benchmarks.join:by_hand", folder=folder, data=data),
        "ours": lambda: own_process("benchmarks.join:by_feast", folder=folder, repository="ours"),
        "loop": lambda: own_process("benchmarks.join:in_the_loop", folder=folder),
    }
    if arguments.feast:
        ways["feast"] = lambda: own_process("benchmarks.join:by_feast", folder=folder, repository="files")
    found = in_turn(arguments.runs, ways)
    answers = {way: (m.more["rows"], m.more["checksum"]) for way, m in found.items()}
    if set(answers.values()) != {(arguments.labels, answers["hand"][1])} or not found["ours"].more["ordered"]:
        raise SystemExit(f"{data}: the ways differ in rows, values or order: {answers}")
    size, ours, hand = f"{arguments.labels:,} labels, {data}", found["ours"], found["hand"]
    steps_mb = _config(Path(folder)).memory_mb + BESIDE_MB
    # Through Feast's API the answer is one table in memory; what the steps do keeps to the memory that they are given.
    million = arguments.labels <= LABELS
    rows = [
        row("join, through Feast's API", size, ours, hand, peer="DuckDB's SQL by hand",
            target="at most 1.5 times" if million else "", limit_s=1.5 * hand.seconds if million else None),
        row("join, as the steps do it, with evidence", size, found["loop"], hand, peer="DuckDB's SQL by hand",
            target="" if million else f"in {steps_mb:,} MB", limit_mb=None if million else steps_mb),
    ]  # fmt: skip
    if arguments.feast:
        feast = found["feast"]
        rows.append(
            row("join, through Feast's API", size, ours, feast, peer="Feast's DuckDB store",
                target="15 times as fast, a third of its memory",
                limit_s=feast.seconds / 15, limit_mb=feast.peak_mb / 3)
        )  # fmt: skip
    return rows


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    parser.add_argument("--labels", type=int, default=0, help="default 1,000,000")
    parser.add_argument("--rows", type=int, default=0, help="of each view; default 3,300,000")
    parser.add_argument("--data", choices=DATA, action="append", help="default: both")
    parser.add_argument("--no-feast", dest="feast", action="store_false", help="it takes nearly all of the time")
    arguments = settled(parser.parse_args())
    arguments.labels = arguments.labels or (20_000 if arguments.quick else LABELS)
    arguments.rows = arguments.rows or (66_000 if arguments.quick else 3_300_000)
    rows = []
    for data in arguments.data or DATA:
        with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
            make(Path(folder), arguments.labels, arguments.rows, data)
            rows += compare(folder, data, arguments)
    return finish("join", arguments, rows)


if __name__ == "__main__":
    raise SystemExit(main())
