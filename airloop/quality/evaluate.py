"""
Evaluate a suite on the rows of one DuckDB relation, and keep which row broke which rule.

Row rules read the rows once, in chunks; uniqueness and figures are computed over all rows by DuckDB. The verdict and
the form of each result are Great Expectations' own: it gets our metrics in place of those of its execution engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadArgument
from airloop.quality.conditions import as_sql, quoted
from airloop.quality.rows import Check, make_check
from airloop.quality.suite import ROW, TOTAL, UNIQUE, Rule, Suite
from airloop.quality.totals import Totals
from airloop.quality.values import Unfit, fit

if TYPE_CHECKING:
    import duckdb

OFFENDERS = 20
"""Offenders that are named per rule; all of them are in the quarantine."""

_CLEAN = "airloop_clean"
_BROKEN = "airloop_broken"


@dataclass
class Outcome:
    """What became of one rule."""

    rule: Rule
    success: bool = False
    """False also where the rule could not be evaluated."""
    error: str = ""
    """Why it could not be evaluated; empty if it was."""
    result: dict[str, Any] = field(default_factory=dict)
    """Great Expectations' result."""
    unexpected: int = 0
    """Rows that break the rule; 0 for rules that are not about rows."""
    considered: int = 0
    """Rows that the rule looked at."""
    offenders: list[dict[str, Any]] = field(default_factory=list)
    """The first rows that break it: their identity and the values that the rule is about."""

    @property
    def failed(self) -> bool:
        """Evaluated, broken, and of a severity that decides."""
        return not self.success and not self.error and self.rule.decides


@dataclass
class Evaluation:
    """What became of a suite."""

    suite: Suite
    rows: int
    """Rows that were read."""
    outcomes: list[Outcome]
    identity: tuple[str, ...]
    """Columns that tell rows apart."""
    _connection: duckdb.DuckDBPyConnection
    _relation: str

    @property
    def errors(self) -> list[Outcome]:
        """Rules that could not be evaluated; their severity does not matter."""
        return [o for o in self.outcomes if o.error]

    @property
    def failed(self) -> list[Outcome]:
        """Rules that are broken and decide."""
        return [o for o in self.outcomes if o.failed]

    @property
    def success(self) -> bool:
        """Every rule that decides holds."""
        return not self.errors and not self.failed

    def broken(self) -> int:
        """Rows that break at least one rule that failed."""
        row = self._connection.execute(
            f"SELECT count(*) FROM (SELECT DISTINCT {self._ids()} FROM {_BROKEN})"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def broken_rows(self, *, rows_per_chunk: int) -> Iterator[pa.RecordBatch]:
        """
        The broken rows as they are in the table, each once, with ``_rules``: the names of the rules that it breaks.

        Sorted by identity.
        """
        sql = (
            f"WITH b AS (SELECT {self._ids()}, list(name ORDER BY rule) AS _rules "
            f"FROM {_BROKEN} GROUP BY ALL) "
            f"SELECT r.*, b._rules FROM {self._relation} r JOIN b ON {self._joined('r', 'b')} "
            f"ORDER BY {', '.join(f'r.{quoted(c)}' for c in self.identity)}"
        )
        yield from self._connection.execute(sql).to_arrow_reader(rows_per_chunk)

    def broken_ids(self) -> pa.Table:
        """Identity of the broken rows, each once, sorted."""
        return self._connection.execute(f"SELECT DISTINCT {self._ids()} FROM {_BROKEN} ORDER BY ALL").to_arrow_table()

    def _ids(self) -> str:
        return ", ".join(quoted(c) for c in self.identity)

    def _joined(self, left: str, right: str) -> str:
        return " AND ".join(f"{left}.{quoted(c)} IS NOT DISTINCT FROM {right}.{quoted(c)}" for c in self.identity)


def evaluate(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    suite: Suite,
    *,
    identity: Sequence[str],
    rows_per_chunk: int,
    hidden: Iterable[str] = (),
) -> Evaluation:
    """
    Evaluate a suite.

    :param connection: a connection of this evaluation alone; tables and views of ours are made in it.
    :param relation: name of the table or view to read, as SQL; it is read several times.
    :param identity: columns that tell its rows apart.
    :param rows_per_chunk: rows that row rules hold in memory at a time.
    :param hidden: columns that expectations about the table's columns do not see.
    :raises BadArgument: an identity column is not there.
    """
    schema = connection.execute(f"SELECT * FROM {relation} LIMIT 0").to_arrow_table().schema
    types = {f.name: f.type for f in schema}
    if strange := sorted(set(identity) - set(types)):
        raise BadArgument(f"no column {', '.join(strange)} to tell the rows apart", f"there are {', '.join(types)}")
    # Great Expectations takes NaN for missing, as pandas does.
    columns = ", ".join(
        f"CASE WHEN isnan({quoted(n)}) THEN NULL ELSE {quoted(n)} END AS {quoted(n)}"
        if pa.types.is_floating(t)
        else quoted(n)
        for n, t in types.items()
    )
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {_CLEAN} AS SELECT {columns} FROM {relation}")
    ids = ", ".join(quoted(c) for c in identity)
    connection.execute(
        f"CREATE OR REPLACE TABLE {_BROKEN} AS SELECT 0::INTEGER AS rule, '' AS name, {ids} FROM {relation} LIMIT 0"
    )
    run = _Run(connection, suite, types, tuple(identity), frozenset(hidden))
    run.row_rules(rows_per_chunk)
    run.unique_rules()
    run.total_rules()
    rows = run.finish()
    return Evaluation(suite, rows, run.outcomes, tuple(identity), connection, relation)


class _Run:
    """One evaluation while it goes on."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        suite: Suite,
        types: Mapping[str, pa.DataType],
        identity: tuple[str, ...],
        hidden: frozenset[str],
    ) -> None:
        self.connection = connection
        self.types = types
        self.identity = identity
        self.totals = Totals(connection, _CLEAN, types, hidden=hidden)
        self.outcomes = [Outcome(rule) for rule in suite.rules]
        self.metrics: dict[int, dict[str, Any]] = {}
        for outcome in self.outcomes:
            if lost := [c for c in outcome.rule.needs if c not in types]:
                there = ", ".join(c for c in types if c not in hidden)
                outcome.error = f"no column {', '.join(lost)}; there are {there}"
            elif outcome.rule.condition is not None:
                self._guarded(outcome, lambda o: self._check_condition(o.rule.condition))

    def _open(self, kind: str) -> list[Outcome]:
        return [o for o in self.outcomes if o.rule.kind == kind and not o.error]

    def _guarded(self, outcome: Outcome, step: Any) -> Any:
        """
        Do a step for one rule; what its data or arguments do to it is the rule's error.

        A full disk, exhausted memory and the like concern the task, not the rule, and go up.
        """
        import duckdb

        try:
            return step(outcome)
        except Unfit as cause:
            outcome.error = str(cause)
        except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException, duckdb.FatalException):
            raise
        except (duckdb.Error, ValueError, TypeError, KeyError, NotImplementedError, RecursionError) as cause:
            # Arrow's errors are ValueError, TypeError, KeyError and NotImplementedError too.
            outcome.error = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        return None

    def _check_condition(self, condition: Any) -> None:
        if "conditions" in condition:
            for inner in condition["conditions"]:
                self._check_condition(inner)
        elif condition["type"] == "comparison":
            parameter = condition["parameter"]
            for value in parameter if isinstance(parameter, list | tuple | set) else [parameter]:
                fit(value, self.types[condition["column"]["name"]])
            as_sql(condition)

    # ---------------------------------------------------------------- rules about rows

    def row_rules(self, rows_per_chunk: int) -> None:
        """Read the rows once, chunk by chunk, and put each check's verdict on each row."""
        checks: list[tuple[Outcome, Check, str]] = []
        conditions: dict[str, str] = {}
        for outcome in self._open(ROW):
            check = self._guarded(outcome, lambda o: make_check(o.rule, self.types))
            if check is not None:
                place = ""
                if outcome.rule.condition is not None:
                    place = conditions.setdefault(as_sql(outcome.rule.condition), f"#{len(conditions)}")
                checks.append((outcome, check, place))
                self.metrics[outcome.rule.number] = {"table.row_count": 0}
        if not checks:
            return
        names = dict.fromkeys((*(c for o, _, _ in checks for c in o.rule.columns), *self.identity))
        listed = [quoted(n) for n in names] + [f"{sql} AS {quoted(p)}" for sql, p in conditions.items()]
        reader = self.connection.execute(f"SELECT {', '.join(listed)} FROM {_CLEAN}").to_arrow_reader(rows_per_chunk)
        # A cursor of its own: a query on the same connection would end the stream.
        writer = self.connection.cursor()
        for batch in reader:
            chunk = {n: batch.column(i) for i, n in enumerate(batch.schema.names)}
            for outcome, check, place in checks:
                if not outcome.error:
                    self._guarded(outcome, lambda o, c=check, p=place, k=chunk: self._judge(o, c, k, p, writer))
        writer.close()

    def _judge(
        self,
        outcome: Outcome,
        check: Check,
        chunk: Mapping[str, pa.Array],
        place: str,
        writer: duckdb.DuckDBPyConnection,
    ) -> None:
        considered, good = check(chunk)
        if place:
            met = chunk[place]
            considered = pc.and_(considered, met)
            self.metrics[outcome.rule.number]["table.row_count"] += met.true_count
        else:
            self.metrics[outcome.rule.number]["table.row_count"] += len(considered)
        outcome.considered += considered.true_count
        bad = pc.and_not(considered, good)
        count = bad.true_count
        if count:
            outcome.unexpected += count
            broken = pa.table({c: chunk[c].filter(bad) for c in self.identity})
            writer.register("airloop_chunk", broken)
            self._record(writer, outcome.rule, "SELECT * FROM airloop_chunk")
            writer.unregister("airloop_chunk")

    def _record(self, connection: duckdb.DuckDBPyConnection, rule: Rule, rows: str) -> None:
        connection.execute(f"INSERT INTO {_BROKEN} SELECT ?, ?, * FROM ({rows})", [rule.number, rule.name])

    def unique_rules(self) -> None:
        """Duplicates over all rows; every row of a group of equals breaks the rule."""
        for outcome in self._open(UNIQUE):
            self._guarded(outcome, self._duplicates)

    def _duplicates(self, outcome: Outcome) -> None:
        rule = outcome.rule
        looked_at, repeated = self.totals.duplicates(rule)
        ids = ", ".join(f"r.{quoted(c)}" for c in self.identity)
        same = " AND ".join(f"r.{quoted(c)} IS NOT DISTINCT FROM d.{quoted(c)}" for c in rule.columns)
        where = as_sql(rule.condition) if rule.condition else "TRUE"
        total, considered = self.totals.compute(
            [f"count(*) FILTER (WHERE {where})", f"count(*) FILTER (WHERE {looked_at})"]
        )
        self.metrics[rule.number] = {"table.row_count": total}
        outcome.considered = considered
        mine = f"SELECT * FROM {_CLEAN} WHERE {looked_at}"
        self._record(self.connection, rule, f"SELECT {ids} FROM ({mine}) r JOIN ({repeated}) d ON {same}")
        (outcome.unexpected,) = self._row(f"SELECT count(*) FROM {_BROKEN} WHERE rule = {rule.number}")

    # ---------------------------------------------------------------- figures

    def total_rules(self) -> None:
        """All that one scan can serve in one scan, the others one by one."""
        import duckdb

        together: dict[int, dict[str, str]] = {}
        for outcome in self._open(TOTAL):
            aggregates = self._guarded(outcome, lambda o: self.totals.aggregates(o.rule))
            if aggregates is not None:
                together[outcome.rule.number] = aggregates
            elif not outcome.error:
                found = self._guarded(outcome, lambda o: self.totals.metrics(o.rule))
                self.metrics[outcome.rule.number] = found or {}
        if not together:
            return
        try:
            figures = iter(self.totals.compute([sql for a in together.values() for sql in a.values()]))
            for number, aggregates in together.items():
                self.metrics[number] = {metric: next(figures) for metric in aggregates}
        except (
            duckdb.ConversionException,
            duckdb.OutOfRangeException,
            duckdb.BinderException,
            duckdb.InvalidInputException,
        ):
            # One of them fails: find out which.
            for number, aggregates in together.items():
                values = self._guarded(
                    self.outcomes[number], lambda o, a=aggregates: self.totals.compute([*a.values()])
                )
                self.metrics[number] = dict(zip(aggregates, values or [], strict=False))

    # ---------------------------------------------------------------- verdicts

    def finish(self) -> int:
        """Let Great Expectations judge, and forget the rows of rules that hold or do not decide."""
        for outcome in self.outcomes:
            if not outcome.error:
                if outcome.unexpected:
                    outcome.offenders = self._offenders(outcome.rule)
                self._guarded(outcome, self._verdict)
        kept = [str(o.rule.number) for o in self.outcomes if o.failed]
        self.connection.execute(f"DELETE FROM {_BROKEN} WHERE rule NOT IN ({', '.join(kept) or -1})")
        (rows,) = self._row(f"SELECT count(*) FROM {_CLEAN}")
        return int(rows)

    def _verdict(self, outcome: Outcome) -> None:
        rule = outcome.rule
        metrics = self.metrics[rule.number]
        if rule.kind != TOTAL:
            name = rule.expectation.map_metric
            total = metrics["table.row_count"]
            if len(rule.columns) == 1:
                values: list[Any] = [o[rule.columns[0]] for o in outcome.offenders]
                if "nonnull" not in name:
                    metrics["column_values.nonnull.unexpected_count"] = total - outcome.considered
            elif "column_A" in rule.kwargs:
                values = [tuple(o[c] for c in rule.columns) for o in outcome.offenders]
            else:
                values = [{c: o[c] for c in rule.columns} for o in outcome.offenders]
            metrics[f"{name}.unexpected_count"] = outcome.unexpected
            metrics[f"{name}.unexpected_values"] = values
            metrics[f"{name}.unexpected_index_list"] = outcome.offenders
            metrics[f"{name}.filtered_row_count"] = outcome.considered
        wanted = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": OFFENDERS,
            "include_unexpected_rows": False,
            "unexpected_index_column_names": list(self.identity),
        }
        answer = rule.expectation._validate(metrics=metrics, runtime_configuration={"result_format": wanted})
        outcome.success = bool(answer["success"])
        outcome.result = answer.get("result", {})

    def _offenders(self, rule: Rule) -> list[dict[str, Any]]:
        """The first rows, in the order of their identity, that break a rule."""
        ids = ", ".join(quoted(c) for c in self.identity)
        first = f"SELECT {ids} FROM {_BROKEN} WHERE rule = {rule.number} ORDER BY ALL LIMIT {OFFENDERS}"
        names = dict.fromkeys((*rule.columns, *self.identity))
        same = " AND ".join(f"r.{quoted(c)} IS NOT DISTINCT FROM f.{quoted(c)}" for c in self.identity)
        sql = (
            f"SELECT {', '.join(f'r.{quoted(c)}' for c in names)} FROM {_CLEAN} r JOIN ({first}) f ON {same} "
            f"ORDER BY {', '.join(f'r.{quoted(c)}' for c in self.identity)}"
        )
        found: list[dict[str, Any]] = self.connection.execute(sql).to_arrow_table().to_pylist()
        return found

    def _row(self, sql: str) -> tuple[Any, ...]:
        row = self.connection.execute(sql).fetchone()
        assert row is not None, "an aggregate without groups has one row"
        return tuple(row)
