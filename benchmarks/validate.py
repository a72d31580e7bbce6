"""
Twenty-five expectations on flights-like rows: ours, and Great Expectations on pandas.

    python -m benchmarks.validate [--sizes 1000000,10000000,50000000] [--runs 3] [--check]

Ours reads an Iceberg table, and that counts; Great Expectations' clock starts when its data frame is in memory. One row
in ten thousand breaks each of five rules; the verdicts, the counts and the failing keys must be the same, else the
benchmark fails. Great Expectations is asked up to ``--peer-up-to`` rows: beyond that its data frame does not fit.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Measured,
    finish,
    middle,
    own_process,
    parser_for,
    peak_mb,
    row,
    settled,
    sizes_of,
)

MEMORY_MB = 1024
"""``AIRLOOP_MEMORY_MB``, what DuckDB may take."""
BESIDE_MB = 1024
"""What the process may take beside it: libraries and the chunk of a million rows that it looks at."""
TABLE = "raw.flights"
_ROWS = """
SELECT i AS id,
    ['EWR', 'JFK', 'LGA'][1 + h(i, 1) % 3] AS origin,
    CASE WHEN i % 10000 = 17 THEN '??' ELSE chr(65 + (h(i, 2) % 16)::INTEGER) || 'A' END AS carrier,
    CASE WHEN h(i, 3) % 100 = 0 THEN NULL ELSE 'N' || (10000 + h(i, 4) % 4000) END AS tailnum,
    TIMESTAMPTZ '2013-01-01 00:00:00+00' + INTERVAL 1 SECOND * (h(i, 5) % 31000000) AS sched_dep,
    CASE WHEN i % 10000 = 18 THEN 99999.0 ELSE (h(i, 6) % 3000)::DOUBLE / 10 - 20 END AS dep_delay,
    CASE WHEN h(i, 7) % 50 = 0 THEN NULL ELSE (h(i, 8) % 4000)::DOUBLE / 10 - 60 END AS arr_delay,
    CASE WHEN i % 10000 = 19 THEN -1 ELSE 17 + h(i, 9) % 4900 END::INTEGER AS distance,
    CASE WHEN i % 10000 = 20 THEN NULL ELSE 1 + h(i, 10) % 12 END::INTEGER AS month,
    20.0 + h(i, 11) % 600 AS air_time,
    CASE WHEN i % 10000 = 21 THEN 10 ELSE 1000 + h(i, 12) % 600 END::INTEGER AS scheduled_minutes
FROM range({rows}) t(i)
"""
ORIGINS = ["EWR", "JFK", "LGA"]
CARRIERS = [f"{chr(65 + n)}A" for n in range(16)]


def suite() -> list[dict[str, Any]]:
    """Sixteen rules about rows, one about uniqueness, eight about figures."""

    def rule(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"type": f"expect_{kind}", "kwargs": kwargs}

    def not_null(column: str) -> dict[str, Any]:
        return rule("column_values_to_not_be_null", column=column)

    def between(column: str, low: float, high: float) -> dict[str, Any]:
        return rule("column_values_to_be_between", column=column, min_value=low, max_value=high)

    return [
        *(not_null(c) for c in ("id", "origin", "carrier", "sched_dep", "dep_delay", "distance", "month")),
        between("dep_delay", -100, 2000),
        between("arr_delay", -100, 2000),
        between("distance", 0, 10000),
        between("month", 1, 12),
        between("air_time", 0, 1000),
        rule("column_values_to_be_in_set", column="origin", value_set=ORIGINS),
        rule("column_values_to_be_in_set", column="carrier", value_set=CARRIERS),
        rule("column_values_to_match_regex", column="tailnum", regex="^N[0-9]{5}$"),
        rule("column_pair_values_a_to_be_greater_than_b", column_A="scheduled_minutes", column_B="air_time"),
        rule("column_values_to_be_unique", column="id"),
        rule("column_mean_to_be_between", column="dep_delay", min_value=-60, max_value=200),
        rule("column_stdev_to_be_between", column="arr_delay", min_value=0, max_value=500),
        rule("column_max_to_be_between", column="air_time", min_value=100, max_value=1000),
        rule("column_min_to_be_between", column="air_time", min_value=0, max_value=100),
        rule("column_distinct_values_to_be_in_set", column="origin", value_set=ORIGINS),
        rule("column_unique_value_count_to_be_between", column="carrier", min_value=3, max_value=50),
        rule("table_row_count_to_be_between", min_value=1, max_value=1_000_000_000),
        rule("column_sum_to_be_between", column="distance", min_value=0),
    ]


def make(home: str, rows: int) -> dict[str, Any]:
    """The table, written in pieces."""
    import duckdb

    warehouse = _warehouse(home)
    began = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone='UTC'")
        connection.execute("CREATE MACRO h(i, n) AS (hash(i, n) >> 1)::BIGINT")
        sql = _ROWS.format(rows=rows)
        warehouse.ensure(TABLE, connection.execute(sql).to_arrow_reader(1).schema, key=["id"])
        warehouse.commit(TABLE, connection.execute(sql).to_arrow_reader(250_000), key="make", mode="append")
    return {"seconds": time.perf_counter() - began}


def ours(home: str) -> dict[str, Any]:
    """As the step does it."""
    from airloop.quality.evaluate import evaluate
    from airloop.quality.suite import load_suite
    from airloop.warehouse.refs import TableRef

    warehouse = _warehouse(home)
    rules = load_suite({"name": "flights", "expectations": suite()})
    before_mb = peak_mb()
    began = time.perf_counter()
    with warehouse.duckdb({"audited": TableRef(TABLE, warehouse.head(TABLE))}, workdir=Path(home)) as connection:
        found = evaluate(connection, "audited", rules, identity=["id"], rows_per_chunk=warehouse.config.rows_per_chunk)
        seconds = time.perf_counter() - began
        keys: dict[int, list[int]] = {}
        sql = "SELECT rule, list(id ORDER BY id) FROM airloop_broken GROUP BY rule"
        keys.update(connection.execute(sql).fetchall())
    verdicts = [
        _verdict(o.success, o.result.get("unexpected_count"), keys.get(o.rule.number, [])) for o in found.outcomes
    ]
    if found.errors:
        raise RuntimeError(str([o.error for o in found.errors]))
    return {"seconds": seconds, "verdicts": verdicts, "libraries_mb": before_mb}


def great_expectations(home: str) -> dict[str, Any]:
    """Great Expectations itself on a data frame, with all failing keys."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    from airloop.warehouse.refs import TableRef

    warehouse = _warehouse(home)
    frame = warehouse.scan(TableRef(TABLE, warehouse.head(TABLE))).read_pandas()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
    rules = [ExpectationConfiguration(**e, meta={"n": n}) for n, e in enumerate(suite())]
    expectations = gx.ExpectationSuite(name="s", expectations=rules)
    wanted = {"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]}
    batch = asset.add_batch_definition_whole_dataframe("b").get_batch({"dataframe": frame})
    began = time.perf_counter()
    answer = batch.validate(expectations, result_format=wanted)
    seconds = time.perf_counter() - began
    verdicts: list[Any] = [None] * len(rules)
    for one in answer.results:
        keys = sorted(row["id"] for row in one.result.get("unexpected_index_list") or [])
        verdicts[one.expectation_config.meta["n"]] = _verdict(one.success, one.result.get("unexpected_count"), keys)
    return {"seconds": seconds, "verdicts": verdicts}


def _verdict(success: bool, count: int | None, keys: list[int]) -> list[Any]:
    return [success, count or 0, hashlib.sha256(",".join(map(str, keys)).encode()).hexdigest()[:16]]


def _warehouse(home: str) -> Any:
    from airloop.config import Config
    from airloop.warehouse.catalog import Warehouse

    return Warehouse.open(Config.from_environment({"AIRLOOP_HOME": home, "AIRLOOP_MEMORY_MB": str(MEMORY_MB)}))


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    sizes_of(parser, (1_000_000, 10_000_000, 50_000_000))
    parser.add_argument("--peer-up-to", type=int, default=1_000_000, help="rows; default 1,000,000")
    arguments = settled(parser.parse_args(), quick=(20_000,))
    rows = []
    first: Measured | None = None
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="airloop-bench-") as home:
            own_process("benchmarks.validate:make", home=home, rows=size)
            mine = middle(arguments.runs, lambda home=home: own_process("benchmarks.validate:ours", home=home))
            peer = None
            if size <= arguments.peer_up_to:
                peer = middle(
                    arguments.runs, lambda home=home: own_process("benchmarks.validate:great_expectations", home=home)
                )
                if mine.more["verdicts"] != peer.more["verdicts"]:
                    pairs = zip(suite(), mine.more["verdicts"], peer.more["verdicts"], strict=True)
                    raise SystemExit(f"the verdicts differ: {[p for p in pairs if p[1] != p[2]]}")
        rows.append(_row(size, arguments.sizes[0], mine, peer, first))
        first = first or mine
    return finish("validate", arguments, rows, expectations=len(suite()), memory_mb=MEMORY_MB)


def _row(size: int, least: int, mine: Measured, peer: Measured | None, first: Measured | None) -> dict[str, Any]:
    name, rows = "25 expectations", f"{size:,} rows"
    limit_mb = MEMORY_MB + BESIDE_MB
    broken = sum(not v[0] for v in mine.more["verdicts"])
    if peer is not None:
        return row(
            name, rows, mine, peer, peer="Great Expectations on pandas",
            target="at most 1.3 times", limit_s=1.3 * peer.seconds, limit_mb=limit_mb,
            note=f"{broken} rules broken; verdicts, counts and failing keys are the same",
        )  # fmt: skip
    if first is None:
        return row(name, rows, mine, limit_mb=limit_mb, target=f"at most {limit_mb:,} MB")
    share = size / least
    linear = Measured(first.seconds * share, first.peak_mb)
    return row(
        name, rows, mine, linear, peer=f"ours on {least:,} rows, times {share:g}",
        target=f"at most 1.3 times, and {limit_mb:,} MB", limit_s=1.3 * linear.seconds, limit_mb=limit_mb,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
