"""
Great Expectations' ``row_condition`` in its structured form, as SQL.

NULL and NaN are missing, as on pandas: a comparison with a missing value is false, so ``!=`` and ``NOT_IN`` hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPARISONS = {"==": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """
    A scalar in SQL.

    :raises TypeError: the value is none of text, number, truth value.
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value!r}::DOUBLE" if value == value and abs(value) != float("inf") else f"'{value!r}'::DOUBLE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise TypeError(f"{value!r} is neither text nor number")


def columns_of(condition: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Columns that a condition reads."""
    if condition is None:
        return ()
    if "conditions" in condition:
        return tuple(name for inner in condition["conditions"] for name in columns_of(inner))
    return (str(condition["column"]["name"]),)


def as_sql(condition: Mapping[str, Any]) -> str:
    """
    A predicate that is true or false, never NULL.

    :raises TypeError: a parameter is of a type that has no literal.
    """
    kind = condition["type"]
    if kind in ("and", "or"):
        return "(" + f" {kind} ".join(as_sql(inner) for inner in condition["conditions"]) + ")"
    column = quoted(condition["column"]["name"])
    if kind == "nullity":
        return f"({column} IS NULL)" if condition["is_null"] else f"({column} IS NOT NULL)"
    operator, parameter = str(condition["operator"]), condition["parameter"]
    if operator in _COMPARISONS:
        return f"coalesce({column} {_COMPARISONS[operator]} {literal(parameter)}, FALSE)"
    if operator == "!=":
        return f"({column} IS DISTINCT FROM {literal(parameter)})"
    values = ", ".join(map(literal, parameter))
    inside = f"coalesce({column} IN ({values}), FALSE)" if values else "FALSE"
    return inside if operator == "IN" else f"(NOT {inside})"
