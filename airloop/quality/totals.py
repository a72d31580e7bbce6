"""
Figures over all rows at once, by DuckDB: what does not merge over chunks is never computed on a chunk.

Distinct values, sorting and duplicates spill to disk, so memory is bounded by DuckDB's limit. Each function returns
Great Expectations' metrics by their names there; its own expectation turns them into a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airloop.quality.conditions import as_sql, quoted
from airloop.quality.suite import Rule
from airloop.quality.values import Unfit, family, fit, value_set

if TYPE_CHECKING:
    import duckdb

SAMPLE = 20
"""Values that are listed where a set is wrong; Great Expectations' own number."""
MODES = 1000
"""Most common values that are listed where many share the first place."""


class Totals:
    """Figures of one relation of one DuckDB connection."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        relation: str,
        types: Mapping[str, pa.DataType],
        *,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        """
        :param relation: name of the view to read; NaN is NULL in it.
        :param types: its columns.
        :param hidden: columns that are not the table's own and that no expectation about its columns sees.
        """
        self._connection = connection
        self._relation = relation
        self._types = types
        self._columns = [c for c in types if c not in hidden]

    def aggregates(self, rule: Rule) -> dict[str, str] | None:
        """
        SQL aggregates by metric, for rules that one scan can serve together; None for the others.

        :raises Unfit: the figure makes no sense for the column's type.
        """
        short = rule.type.removeprefix("expect_").removesuffix("_to_be_between").removesuffix("_to_equal")
        if short == "table_row_count":
            found = {"table.row_count": "count(*)"}
        elif short in _AGGREGATES:
            (column,) = rule.columns
            found = _AGGREGATES[short](quoted(column), self._types[column])
        else:
            return None
        where = as_sql(rule.condition) if rule.condition else ""
        both, alone = (f" AND {where}", f" FILTER (WHERE {where})") if where else ("", "")
        return {
            metric: (sql if "{filter}" in sql or "{and}" in sql else sql + "{filter}")
            .replace("{and}", both)
            .replace("{filter}", alone)
            for metric, sql in found.items()
        }

    def compute(self, aggregates: Sequence[str]) -> list[Any]:
        """Several aggregates in one scan."""
        row = self._connection.execute(f"SELECT {', '.join(aggregates)} FROM {self._relation}").fetchone()
        assert row is not None, "an aggregate without groups has one row"
        return list(row)

    def metrics(self, rule: Rule) -> dict[str, Any]:
        """
        The metrics of a rule that has a query of its own.

        :raises Unfit: it makes no sense for the column's type.
        """
        short = rule.type.removeprefix("expect_")
        if not rule.columns or short == "column_to_exist":
            return {"table.columns": list(self._columns), "table.column_count": len(self._columns)}
        (column,) = rule.columns
        query: Callable[[Rule, str, str, pa.DataType], dict[str, Any]]
        if short.startswith("column_distinct_values"):
            query = self._distinct_sets
        else:
            query = {
                "column_median_to_be_between": self._median,
                "column_quantile_values_to_be_between": self._quantiles,
                "column_most_common_value_to_be_in_set": self._modes,
                "column_unique_value_count_to_be_between": self._distinct_count,
                "column_proportion_of_unique_values_to_be_between": self._distinct_count,
            }[short]
        name = quoted(column)
        where = f"{name} IS NOT NULL" + (f" AND {as_sql(rule.condition)}" if rule.condition else "")
        return query(rule, name, where, self._types[column])

    def duplicates(self, rule: Rule) -> tuple[str, str]:
        """
        SQL of a uniqueness rule: which rows it looks at, and a subquery with the values that more than one has.

        :raises Unfit: an argument is not one that Great Expectations knows.
        """
        names = [quoted(c) for c in rule.columns]
        if rule.type == "expect_column_values_to_be_unique":
            present = f"{names[0]} IS NOT NULL"
        else:
            ignore = rule.get("ignore_row_if", "all_values_are_missing")
            joint = {"all_values_are_missing": " OR ", "any_value_is_missing": " AND ", "never": ""}[ignore]
            present = joint.join(f"{n} IS NOT NULL" for n in names) if joint else "TRUE"
        looked_at = f"({present})" + (f" AND {as_sql(rule.condition)}" if rule.condition else "")
        listed = ", ".join(names)
        repeated = f"SELECT {listed} FROM {self._relation} WHERE {looked_at} GROUP BY {listed} HAVING count(*) > 1"
        return looked_at, repeated

    # ---------------------------------------------------------------- figures with a query of their own

    def _scalar(self, sql: str, *parameters: Any) -> Any:
        row = self._connection.execute(sql, list(parameters)).fetchone()
        return row[0] if row else None

    def _column(self, sql: str, *parameters: Any) -> list[Any]:
        return [row[0] for row in self._connection.execute(sql, list(parameters)).fetchall()]

    def _distinct_count(self, rule: Rule, name: str, where: str, kind: pa.DataType) -> dict[str, Any]:
        distinct = self._scalar(f"SELECT count(*) FROM (SELECT DISTINCT {name} FROM {self._relation} WHERE {where})")
        present = self._scalar(f"SELECT count(*) FROM {self._relation} WHERE {where}")
        return {
            "column.distinct_values.count": distinct,
            "column.unique_proportion": distinct / present if present else 0,
        }

    def _distinct_sets(self, rule: Rule, name: str, where: str, kind: pa.DataType) -> dict[str, Any]:
        wanted = list(rule.get("value_set", ()))
        values = value_set(wanted, kind).to_pylist()
        # A list as parameter: NOT IN over it has no NULL in it and is a hash probe.
        strange = f"FROM {self._relation} WHERE {where} AND NOT list_contains(?, {name})"
        if values:
            found = set(
                self._column(
                    f"SELECT DISTINCT {name} FROM {self._relation} WHERE {where} AND list_contains(?, {name})", values
                )
            )
            count = self._scalar(f"SELECT count(*) FROM (SELECT DISTINCT {name} {strange})", values)
            sample = self._column(f"SELECT DISTINCT {name} {strange} ORDER BY 1 LIMIT {SAMPLE}", values)
        else:
            found = set()
            count = self._distinct_count(rule, name, where, kind)["column.distinct_values.count"]
            sample = self._column(
                f"SELECT DISTINCT {name} FROM {self._relation} WHERE {where} ORDER BY 1 LIMIT {SAMPLE}"
            )
        comparable = {v: v if v is None else fit(v, kind).as_py() for v in wanted}
        missing = sorted((v for v in comparable if comparable[v] not in found), key=lambda v: (v is None, v))
        return {
            "column.distinct_values.not_in_set.count": count,
            "column.distinct_values.not_in_set": sample,
            "column.distinct_values.missing_from_column.count": len(missing),
            "column.distinct_values.missing_from_column": missing[:SAMPLE],
        }

    def _modes(self, rule: Rule, name: str, where: str, kind: pa.DataType) -> dict[str, Any]:
        if family(kind) not in ("number", "text", "truth"):
            raise Unfit(f"the most common value of type {kind} has no spelling in a suite")
        values = value_set(list(rule.get("value_set", ())), kind).to_pylist()
        counted = f"WITH c AS (SELECT {name} AS v, count(*) AS n FROM {self._relation} WHERE {where} GROUP BY 1) "
        first = "SELECT v FROM c WHERE n = (SELECT max(n) FROM c)"
        modes = self._column(f"{counted} {first} ORDER BY v LIMIT {MODES}")
        if values and len(modes) == MODES:
            modes += [
                v for v in self._column(f"{counted} {first} AND list_contains(?, v)", values) if v not in set(modes)
            ]
        return {"column.most_common_value": modes}

    def _median(self, rule: Rule, name: str, where: str, kind: pa.DataType) -> dict[str, Any]:
        (value,) = self._at(name, where, kind, [0.5], "midpoint")
        return {"column.median": value}

    def _quantiles(self, rule: Rule, name: str, where: str, kind: pa.DataType) -> dict[str, Any]:
        how = rule.get("allow_relative_error", False) or "nearest"
        if how not in ("linear", "lower", "higher", "midpoint", "nearest"):
            raise Unfit(f"allow_relative_error is {how!r}, not linear, lower, higher, midpoint or nearest")
        return {"column.quantile_values": self._at(name, where, kind, rule.kwargs["quantile_ranges"]["quantiles"], how)}

    def _at(self, name: str, where: str, kind: pa.DataType, quantiles: Sequence[float], how: str) -> list[Any]:
        """Quantiles: one sort, which DuckDB may do on disk, then the wanted places of the sorted stream."""
        _need_number(kind)
        name = _as_number(name, kind)
        count = self._scalar(f"SELECT count(*) FROM {self._relation} WHERE {where}")
        if not count:
            return [None] * len(quantiles)
        exact = [(count - 1) * float(q) for q in quantiles]
        if any(not 0 <= q <= 1 for q in quantiles):
            raise Unfit(f"quantiles {list(quantiles)} are not all between 0 and 1")
        wanted = sorted({place for x in exact for place in (math.floor(x), math.ceil(x))})
        values = dict(zip(wanted, self._sorted(name, where, wanted), strict=True))
        return [_interpolate(x, values[math.floor(x)], values[math.ceil(x)], how) for x in exact]

    def _sorted(self, name: str, where: str, places: Sequence[int]) -> Iterator[Any]:
        reader = self._connection.execute(
            f"SELECT {name} FROM {self._relation} WHERE {where} ORDER BY 1"
        ).to_arrow_reader(100_000)
        waiting = iter(places)
        place = next(waiting)
        start = 0
        for batch in reader:
            while place < start + batch.num_rows:
                yield batch.column(0)[place - start].as_py()
                try:
                    place = next(waiting)
                except StopIteration:
                    return
            start += batch.num_rows


def _interpolate(x: float, low: Any, high: Any, how: str) -> Any:
    share = x - math.floor(x)
    match how:
        case "lower":
            return low
        case "higher":
            return high
        case "midpoint":
            return low if low == high else (low + high) / 2
        case "linear":
            return low if low == high else low + (high - low) * share
    # Nearest; in the middle the even place, as numpy has it.
    if share == 0.5:
        return low if math.floor(x) % 2 == 0 else high
    return low if share < 0.5 else high


def _need_number(kind: pa.DataType) -> None:
    if family(kind) != "number":
        raise Unfit(f"it is about numbers, the column has type {kind}")


def _as_number(name: str, kind: pa.DataType) -> str:
    if family(kind) == "truth":
        return f"{name}::INTEGER"
    _need_number(kind)
    # A bound is a binary fraction: 1.10 has to be as great as the 1.1 of a suite.
    return f"{name}::DOUBLE" if pa.types.is_decimal(kind) else name


def _sum(name: str, kind: pa.DataType) -> dict[str, str]:
    x = _as_number(name, kind)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return {"column.sum": f"coalesce(sum({x}){{filter}}, 0)"}
    # The compensated sum does not depend on the order of rows and threads, but makes NaN of infinity.
    finite = f"fsum({x}) FILTER (WHERE isfinite({x}){{and}})"
    return {
        "column.sum": f"coalesce(CASE WHEN bool_or(isinf({x})){{filter}} THEN sum({x}){{filter}} ELSE {finite} END, 0)"
    }


def _mean(name: str, kind: pa.DataType) -> dict[str, str]:
    x = _as_number(name, kind)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return {"column.mean": f"avg({x})"}
    finite = f"favg({x}) FILTER (WHERE isfinite({x}){{and}})"
    return {"column.mean": f"CASE WHEN bool_or(isinf({x})){{filter}} THEN avg({x}){{filter}} ELSE {finite} END"}


def _deviation(name: str, kind: pa.DataType) -> dict[str, str]:
    x = f"{_as_number(name, kind)}::DOUBLE"
    finite = f"stddev_samp({x}) FILTER (WHERE isfinite({x}){{and}})"
    return {"column.standard_deviation": f"CASE WHEN bool_or(isinf({x})){{filter}} THEN NULL ELSE {finite} END"}


def _extreme(which: str) -> Callable[[str, pa.DataType], dict[str, str]]:
    def extreme(name: str, kind: pa.DataType) -> dict[str, str]:
        return {f"column.{which}": f"{which}({_as_number(name, kind) if pa.types.is_decimal(kind) else name})"}

    return extreme


def _present(name: str, kind: pa.DataType) -> dict[str, str]:
    return {
        "column.non_null_proportion": (
            f"CASE WHEN count(*){{filter}} = 0 THEN 0.0 ELSE count({name}){{filter}}::DOUBLE / count(*){{filter}} END"
        )
    }


_AGGREGATES: Mapping[str, Callable[[str, pa.DataType], dict[str, str]]] = {
    "column_max": _extreme("max"),
    "column_min": _extreme("min"),
    "column_mean": _mean,
    "column_sum": _sum,
    "column_stdev": _deviation,
    "column_proportion_of_non_null_values": _present,
}
