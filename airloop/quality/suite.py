"""
A Great Expectations suite, read and sorted by how each of its expectations can be evaluated exactly.

The document is Great Expectations' own (``ExpectationSuite`` as JSON or YAML), and each expectation is built and
checked by its own class there. What we add is one block in an expectation's ``meta``::

    {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "sched_dep"},
     "meta": {"airloop": {"quarantine": true}}}

``quarantine``: rows that break this rule may be taken out and the rest published; without it the rule, if broken,
rejects all. Only rules about rows can have it. ``severity`` is Great Expectations' own: ``critical`` (the default)
decides, ``warning`` and ``info`` are reported and decide nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airloop.errors import BadArgument
from airloop.quality.conditions import columns_of

ROW = "row"
"""Evaluated chunk by chunk: what a row is worth depends on this row alone."""
UNIQUE = "unique"
"""Evaluated over all rows at once; says of each row whether it is good."""
TOTAL = "total"
"""Evaluated over all rows at once; one figure for a column or the table."""

KINDS: Mapping[str, str] = {
    "expect_column_pair_values_a_to_be_greater_than_b": ROW,
    "expect_column_pair_values_to_be_equal": ROW,
    "expect_column_pair_values_to_be_in_set": ROW,
    "expect_column_value_lengths_to_be_between": ROW,
    "expect_column_value_lengths_to_equal": ROW,
    "expect_column_values_to_be_between": ROW,
    "expect_column_values_to_be_dateutil_parseable": ROW,
    "expect_column_values_to_be_in_set": ROW,
    "expect_column_values_to_be_json_parseable": ROW,
    "expect_column_values_to_be_null": ROW,
    "expect_column_values_to_match_json_schema": ROW,
    "expect_column_values_to_match_regex": ROW,
    "expect_column_values_to_match_regex_list": ROW,
    "expect_column_values_to_match_strftime_format": ROW,
    "expect_column_values_to_not_be_in_set": ROW,
    "expect_column_values_to_not_be_null": ROW,
    "expect_column_values_to_not_match_regex": ROW,
    "expect_column_values_to_not_match_regex_list": ROW,
    "expect_multicolumn_sum_to_equal": ROW,
    "expect_multicolumn_values_to_be_equal": ROW,
    "expect_select_column_values_to_be_unique_within_record": ROW,
    "expect_column_values_to_be_unique": UNIQUE,
    "expect_compound_columns_to_be_unique": UNIQUE,
    "expect_column_distinct_values_to_be_in_set": TOTAL,
    "expect_column_distinct_values_to_contain_set": TOTAL,
    "expect_column_distinct_values_to_equal_set": TOTAL,
    "expect_column_max_to_be_between": TOTAL,
    "expect_column_mean_to_be_between": TOTAL,
    "expect_column_median_to_be_between": TOTAL,
    "expect_column_min_to_be_between": TOTAL,
    "expect_column_most_common_value_to_be_in_set": TOTAL,
    "expect_column_proportion_of_non_null_values_to_be_between": TOTAL,
    "expect_column_proportion_of_unique_values_to_be_between": TOTAL,
    "expect_column_quantile_values_to_be_between": TOTAL,
    "expect_column_stdev_to_be_between": TOTAL,
    "expect_column_sum_to_be_between": TOTAL,
    "expect_column_to_exist": TOTAL,
    "expect_column_unique_value_count_to_be_between": TOTAL,
    "expect_table_column_count_to_be_between": TOTAL,
    "expect_table_column_count_to_equal": TOTAL,
    "expect_table_columns_to_match_ordered_list": TOTAL,
    "expect_table_columns_to_match_set": TOTAL,
    "expect_table_row_count_to_be_between": TOTAL,
    "expect_table_row_count_to_equal": TOTAL,
}
"""What can be evaluated, and how. Everything else is refused by name."""

REASONS: Mapping[str, str] = {
    "expect_column_values_to_be_increasing": "rows of a table have no order",
    "expect_column_values_to_be_decreasing": "rows of a table have no order",
    "expect_column_values_to_be_of_type": "the types are declared in the source's schema and checked there",
    "expect_column_values_to_be_in_type_list": "the types are declared in the source's schema and checked there",
    "expect_column_type_to_be": "the types are declared in the source's schema and checked there",
}


@dataclass(frozen=True)
class Rule:
    """One expectation of a suite."""

    number: int
    """Position in the suite, from 0."""
    name: str
    """``type(columns)``, with ``#2`` and so on where a suite says the same of the same columns again."""
    type: str
    kind: str
    expectation: Any
    """The Great Expectations object, which knows its result format and its verdict."""
    kwargs: Mapping[str, Any]
    """As Great Expectations hands them to its own metrics: typed, defaults left out."""
    columns: tuple[str, ...]
    """Columns that the expectation is about."""
    condition: Mapping[str, Any] | None
    """``row_condition``: only rows that meet it are looked at."""
    severity: str
    quarantine: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that must be there: its own and those of its condition."""
        own = () if self.type == "expect_column_to_exist" else self.columns
        return tuple(dict.fromkeys((*own, *columns_of(self.condition))))

    @property
    def decides(self) -> bool:
        """Whether breaking it keeps rows from being published."""
        return self.severity == "critical"

    def get(self, name: str, default: Any = None) -> Any:
        """An argument of the expectation, or its default there."""
        value = self.kwargs.get(name)
        if value is None:
            value = getattr(self.expectation, name, None)
        return default if value is None else value


@dataclass(frozen=True)
class Suite:
    """A checked suite."""

    name: str
    rules: tuple[Rule, ...]
    meta: Mapping[str, Any]


def import_expectations() -> Any:
    """Import Great Expectations with its telemetry off."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        # What it imports warns of its own deprecations; nobody here can mend them.
        warnings.simplefilter("ignore")
        # Building a page needs these; what is imported lazily later would warn then.
        importlib.import_module("great_expectations.render.view.view")
        return importlib.import_module("great_expectations")


def load_suite(suite: str | Mapping[str, Any]) -> Suite:
    """
    Read a suite and refuse, by name, what cannot be evaluated exactly.

    :param suite: an ``ExpectationSuite`` as JSON or YAML text, or as a mapping.
    :raises BadArgument: not a suite, an expectation that Great Expectations refuses, or one that neither depends on
        single rows alone nor can be computed over all rows at once. All faults are named together.
    """
    document = _document(suite)
    name, expectations = document.get("name"), document.get("expectations")
    if not isinstance(name, str) or not name or not isinstance(expectations, list) or not expectations:
        raise BadArgument(
            "a suite needs a name and a list of at least one expectation",
            'write {"name": "flights", "expectations": [{"type": "expect_…", "kwargs": {…}}]}',
        )
    unknown = sorted(set(document) - {"name", "id", "expectations", "meta", "notes", "suite_parameters"})
    if unknown:
        raise BadArgument(f"suite {name} has {', '.join(unknown)}, which no Great Expectations suite has")
    if document.get("suite_parameters"):
        raise BadArgument(f"suite {name} has suite_parameters", "write the values into the expectations")
    import_expectations()
    rules: list[Rule] = []
    faults: list[str] = []
    names: Counter[str] = Counter()
    for number, item in enumerate(expectations):
        try:
            rules.append(_rule(number, item, names))
        except _Fault as fault:
            kind = item.get("type") if isinstance(item, Mapping) else item
            faults.append(f"expectation {number + 1} ({kind}): {fault}")
    if faults:
        raise BadArgument(f"suite {name}: " + "; ".join(faults))
    return Suite(name, tuple(rules), dict(document.get("meta") or {}))


class _Fault(Exception):
    """Why one expectation is refused."""


def _document(suite: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(suite, Mapping):
        return suite
    import yaml

    try:
        # YAML 1.2 is a superset of JSON, PyYAML's 1.1 is not quite: 1e5 is a string there.
        document = json.loads(suite) if suite.lstrip().startswith("{") else yaml.safe_load(suite)
    except (ValueError, yaml.YAMLError) as cause:
        raise BadArgument(f"the suite is neither JSON nor YAML: {cause}", "pass the text of a suite file") from cause
    if not isinstance(document, Mapping):
        raise BadArgument(f"the suite is {type(document).__name__}, not a mapping", "pass the text of a suite file")
    return document


def _rule(number: int, item: Any, names: Counter[str]) -> Rule:
    from great_expectations.exceptions.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        raise _Fault("not a mapping with a type")
    kind = item["type"]
    fields = {"type", "kwargs", "meta", "notes", "description", "severity", "id", "rendered_content"}
    if extra := sorted(set(item) - fields):
        raise _Fault(f"unknown {', '.join(extra)}")
    if isinstance((item.get("kwargs") or {}).get("row_condition"), str):
        raise _Fault(
            "a row_condition as text depends on pandas; write it as Great Expectations serialises a condition, "
            'e.g. {"type": "nullity", "column": {"name": "dep_time"}, "is_null": false}'
        )
    try:
        configuration = ExpectationConfiguration(
            type=kind,
            kwargs=dict(item.get("kwargs") or {}),
            meta=item.get("meta"),
            notes=item.get("notes"),
            description=item.get("description"),
            severity=FailureSeverity(item.get("severity") or "critical"),
        )
        expectation = configuration.to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError, KeyError) as cause:
        # Its own text spans several lines and begins with the class.
        text = " ".join(str(cause).split())
        raise _Fault(f"Great Expectations refuses it: {text}") from cause
    if kind not in KINDS:
        reason = REASONS.get(kind, "it neither depends on single rows alone nor is computed here over all rows")
        raise _Fault(f"cannot be evaluated exactly, {reason}; supported: {', '.join(sorted(KINDS))}")
    kwargs = expectation.configuration.kwargs
    _refuse_parameters(kwargs)
    condition = kwargs.get("row_condition")
    if condition is not None and _passes_through(condition):
        raise _Fault("a pass_through condition depends on pandas; write comparisons and nullity")
    severity = str(FailureSeverity(expectation.severity).value)
    if getattr(expectation, "windows", None):
        raise _Fault("its windows look at other runs, which are not read here")
    columns = _columns(kind, kwargs)
    quarantine = _quarantine(item.get("meta"), kind, severity)
    name = f"{kind}({', '.join(columns)})" if columns else kind
    names[name] += 1
    if names[name] > 1:
        name += f" #{names[name]}"
    return Rule(number, name, kind, KINDS[kind], expectation, kwargs, columns, condition, severity, quarantine)


def _quarantine(meta: Any, kind: str, severity: str) -> bool:
    ours = (meta or {}).get("airloop", {})
    if (
        not isinstance(ours, Mapping)
        or set(ours) - {"quarantine"}
        or not isinstance(ours.get("quarantine", False), bool)
    ):
        raise _Fault(f"meta.airloop is {ours!r}; it may hold quarantine: true or false")
    quarantine = bool(ours.get("quarantine", False))
    if quarantine and KINDS[kind] == TOTAL:
        raise _Fault("it says nothing about single rows, so none can be quarantined for it")
    if quarantine and severity != "critical":
        raise _Fault(f"severity {severity} decides nothing, so it cannot send rows to quarantine")
    return quarantine


def _columns(kind: str, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    if "column" in kwargs:
        return (str(kwargs["column"]),)
    if "column_A" in kwargs:
        return (str(kwargs["column_A"]), str(kwargs["column_B"]))
    # The list of expect_table_columns_to_match_ordered_list names what ought to be there, not what is read.
    return tuple(map(str, kwargs["column_list"])) if "column_list" in kwargs and KINDS[kind] != TOTAL else ()


def _passes_through(condition: Mapping[str, Any]) -> bool:
    return condition["type"] == "pass_through" or any(map(_passes_through, condition.get("conditions", ())))


def _refuse_parameters(value: Any) -> None:
    if isinstance(value, Mapping):
        if "$PARAMETER" in value:
            raise _Fault("it uses a suite parameter; write the value itself")
        for inner in value.values():
            _refuse_parameters(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            _refuse_parameters(inner)
