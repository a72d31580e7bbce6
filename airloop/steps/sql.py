"""SQL over named snapshots into a table: features, and labels with their contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from airloop.contract import Interval
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.features.query import Query

Mode = Literal["upsert", "replace", "append"]


def without_unused_interval(bound: dict[str, Any]) -> dict[str, Any]:
    """
    SQL that names no interval makes the same table for every interval: a run of another one reuses it.

    :raises BadArgument: the SQL is not one SELECT.
    :raises BadInterval: it names the interval and the run has none.
    """
    from airloop.features.query import Query

    query = Query.parse(bound["sql"])
    query.bind(bound["interval"])
    return bound if query.parameters else {**bound, "interval": None}


@step(libraries=("duckdb", "pyarrow"), prepare=without_unused_interval)
def sql(
    ctx: StepContext,
    *,
    sql: str,
    inputs: dict[str, TableRef],
    table: str,
    key: list[str],
    mode: Mode = "upsert",
    partition_by: str = "",
    known: dict[str, str] = {},
    interval: Interval | None = None,
) -> StepResult:
    """
    Write the result of one SELECT over named snapshots to a table, in one snapshot or none.

    :param sql: one SELECT in DuckDB's dialect. It sees the inputs by their names and, as bound parameters,
        $interval_start and $interval_end; no files, no clock, no random numbers.
    :param inputs: tables by the name that the SQL uses, each read at one snapshot.
    :param table: namespace.table to write.
    :param key: columns that tell rows apart, never NULL.
    :param mode: upsert (rows with new keys are added, changed ones replaced), replace (the table becomes the result)
        or append.
    :param partition_by: month(column), day(column) or identity(column); used when the table is created.
    :param known: by input, its timestamptz column that says when a row became known. The SQL then runs again on what
        was known at earlier times; if a row that had arrived by then comes out otherwise, it is refused.
    :param interval: the run's; counts only if the SQL uses it.
    """
    return _write(ctx, sql, inputs, table, key, mode, partition_by, interval, known=known)


@step(libraries=("duckdb", "pyarrow"), prepare=without_unused_interval)
def build_labels(
    ctx: StepContext,
    *,
    sql: str,
    inputs: dict[str, TableRef],
    table: str,
    key: list[str],
    mode: Mode = "upsert",
    partition_by: str = "",
    known: dict[str, str] = {},
    interval: Interval | None = None,
) -> StepResult:
    """
    Write labels: as step sql, and each row says what was true, about when, and when that became known.

    Rows that break the contract (a NULL key, time or label, a label other than 0 or 1, known before it happened)
    reject the step, and nothing is written.

    :param sql: one SELECT with the key columns, event_time, arrival_time (timestamptz) and label.
    :param inputs: tables by the name that the SQL uses, each read at one snapshot.
    :param table: namespace.table to write.
    :param key: columns that tell labels apart, never NULL.
    :param mode: upsert, replace or append.
    :param partition_by: month(column), day(column) or identity(column); used when the table is created.
    :param known: by input, its timestamptz column that says when a row became known: as in step sql, a label must be
        what it was when it arrived.
    :param interval: the run's; counts only if the SQL uses it.
    """
    return _write(ctx, sql, inputs, table, key, mode, partition_by, interval, known=known, labels=True)


def _write(
    ctx: StepContext,
    text: str,
    inputs: dict[str, TableRef],
    table: str,
    key: list[str],
    mode: Mode,
    partition_by: str,
    interval: Interval | None,
    *,
    known: Mapping[str, str],
    labels: bool = False,
) -> StepResult:
    from airloop.errors import BadArgument
    from airloop.features.hindsight import refuse_hindsight
    from airloop.features.outcomes import check_labels, describe_labels
    from airloop.features.query import Query, run
    from airloop.warehouse.work import Work

    if not key:
        raise BadArgument("key is empty", "name the columns that tell rows apart")
    query: Query = Query.parse(text)
    with run(ctx.warehouse, query, inputs=inputs, key=key, interval=interval, workdir=ctx.workdir) as result:
        details: dict[str, Any] = {}
        if labels:
            check_labels(result, table=table)
            details["labels"] = describe_labels(result)
        result.check_key()
        rows = result.count()
        if known:
            details["hindsight"] = refuse_hindsight(result, query, interval, known=known, table=table)
        evolution = ctx.warehouse.ensure(table, result.schema(), key=key, partition_by=partition_by)
        work = Work.of(ctx.call, ctx.key, interval)
        commit = ctx.warehouse.commit(
            table, result.read(), key=ctx.warehouse.key_for(table, work), mode=mode, on=key, properties=work.properties
        )
    for line in evolution:
        ctx.log.info("%s: %s", table, line)
    if rows == 0:
        ctx.log.warning("%s: the SQL gave no rows%s", table, f" for {interval}" if interval else "")
    ctx.log.info("%s: %s rows, %s new, %s changed", table, f"{rows:,}", f"{commit.added:,}", f"{commit.updated:,}")
    return StepResult(
        outputs={"table": commit.ref},
        counts={"rows": rows, "rows_new": commit.added, "rows_changed": commit.updated, "rows_deleted": commit.deleted},
        details={**details, "evolution": evolution, "adopted": commit.adopted},
        changed=ctx.is_news(commit),
        event={"table": str(commit.ref)} if ctx.is_news(commit) else None,
    )
