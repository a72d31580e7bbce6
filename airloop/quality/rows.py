"""
Row rules, one chunk at a time, as vectorised Arrow predicates.

A check is made once per rule for the table's types and then called for each chunk. It answers with two masks: which
rows it looks at (Great Expectations leaves out missing values) and which of them are good. NaN has become NULL
before. Anything that Great Expectations evaluates by calling Python on each value (regular expressions, formats, JSON)
is called here too, but on the distinct values of the chunk only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airloop.quality.suite import Rule
from airloop.quality.values import Unfit, family, fit, value_set

Chunk = Mapping[str, pa.Array]
Masks = tuple[pa.Array, pa.Array]
Check = Callable[[Chunk], Masks]


def make_check(rule: Rule, types: Mapping[str, pa.DataType]) -> Check:
    """
    The check of a row rule for columns of the given types.

    :returns: from a chunk, by column name, to ``(looked at, good)``, two masks without NULL.
    :raises Unfit: the rule makes no sense for these types.
    """
    short = rule.type.removeprefix("expect_")
    if short in _COLUMN:
        (column,) = rule.columns
        good = _COLUMN[short](rule, types[column])
        return lambda chunk: (pc.is_valid(chunk[column]), _sure(good(chunk[column])))
    if short in _NULLITY:
        (column,) = rule.columns
        test = _NULLITY[short]
        return lambda chunk: (_all(chunk[column]), test(chunk[column]))
    if short.startswith("column_pair"):
        ignore = rule.get("ignore_row_if", "both_values_are_missing")
        together = {"both_values_are_missing": "any", "either_value_is_missing": "all", "neither": ""}[ignore]
    else:
        ignore = rule.get("ignore_row_if", "all_values_are_missing")
        together = {"all_values_are_missing": "any", "any_value_is_missing": "all", "never": ""}[ignore]
    check = _RECORD[short](rule, [types[c] for c in rule.columns])

    def masks(chunk: Chunk) -> Masks:
        arrays = [chunk[c] for c in rule.columns]
        return present(arrays, together), _sure(check(arrays))

    return masks


def present(arrays: Sequence[pa.Array], together: str) -> pa.Array:
    """Rows where ``any`` or ``all`` of the values are there; every row if ``together`` is empty."""
    if not together:
        return _all(arrays[0])
    return reduce(pc.or_ if together == "any" else pc.and_, [pc.is_valid(a) for a in arrays])


def _all(array: pa.Array) -> pa.Array:
    return pa.repeat(pa.scalar(True), len(array))


def _sure(mask: pa.Array) -> pa.Array:
    """A comparison with NULL is not good."""
    return pc.fill_null(mask, False)


# ---------------------------------------------------------------- one column


def _between(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    low, high = rule.get("min_value"), rule.get("max_value")
    if low is not None and high is not None:
        _refuse_crossed(low, high)
    return _bounds(
        None if low is None else fit(low, kind),
        None if high is None else fit(high, kind),
        bool(rule.get("strict_min")),
        bool(rule.get("strict_max")),
    )


def _refuse_crossed(low: Any, high: Any) -> None:
    try:
        crossed = low > high
    except TypeError as cause:
        raise Unfit(f"min_value {low!r} and max_value {high!r} cannot be compared") from cause
    if crossed:
        raise Unfit(f"min_value {low!r} is greater than max_value {high!r}")


def _bounds(
    low: pa.Scalar | None, high: pa.Scalar | None, strict_low: bool, strict_high: bool
) -> Callable[[pa.Array], pa.Array]:
    def good(array: pa.Array) -> pa.Array:
        parts = []
        if low is not None:
            parts.append((pc.greater if strict_low else pc.greater_equal)(array, low))
        if high is not None:
            parts.append((pc.less if strict_high else pc.less_equal)(array, high))
        return reduce(pc.and_, parts)

    return good


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """In the type in which values are looked up. Arrow tells -0.0 from 0.0 there."""
    cast = array if array.type == kind else array.cast(kind)
    return pc.add(cast, 0.0) if pa.types.is_floating(kind) else cast


def _looked_up(array: pa.Array, values: pa.Array) -> pa.Array:
    return pc.is_in(_as(array, values.type), value_set=_as(values, values.type))


def _in_set(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    if rule.get("value_set") is None:
        return _all
    values = value_set(rule.get("value_set"), kind)
    if "not_be" in rule.type:
        return lambda array: pc.invert(_looked_up(array, values))
    return lambda array: _looked_up(array, values)


def _lengths(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    _need_text(kind)
    low, high = rule.get("min_value"), rule.get("max_value")
    if rule.type == "expect_column_value_lengths_to_equal":
        low = high = rule.get("value")
    good = _bounds(
        None if low is None else fit(low, pa.int32()),
        None if high is None else fit(high, pa.int32()),
        bool(rule.kwargs.get("strict_min")),
        bool(rule.kwargs.get("strict_max")),
    )
    return lambda array: good(pc.utf8_length(array))


def _need_text(kind: pa.DataType) -> None:
    if family(kind) != "text":
        raise Unfit(f"it looks at text, the column has type {kind}, whose spelling as text is not defined")


def _distinct(test: Callable[[str], bool]) -> Callable[[pa.Array], pa.Array]:
    """Call a Python predicate once per distinct value."""

    def good(array: pa.Array) -> pa.Array:
        encoded = array.dictionary_encode()
        verdicts = pa.array([test(v) for v in encoded.dictionary.to_pylist()], pa.bool_())
        return verdicts.take(encoded.indices)

    return good


def _pattern(text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as cause:
        raise Unfit(f"{text!r} is not a regular expression: {cause}") from cause


def _regex(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    _need_text(kind)
    pattern = _pattern(rule.get("regex"))
    wanted = "not_match" not in rule.type
    return _distinct(lambda value: (pattern.search(value) is not None) == wanted)


def _regex_list(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    _need_text(kind)
    patterns = [_pattern(text) for text in rule.get("regex_list", ())]
    if "not_match" in rule.type:
        return _distinct(lambda value: not any(p.search(value) for p in patterns))
    combine = {"any": any, "all": all}[rule.get("match_on", "any")]
    return _distinct(lambda value: combine(p.search(value) is not None for p in patterns))


def _strftime(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    _need_text(kind)
    pattern = str(rule.get("strftime_format"))

    def test(value: str) -> bool:
        try:
            datetime.strptime(value, pattern)
        except ValueError:
            return False
        return True

    return _distinct(test)


def _dateutil(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    from dateutil.parser import parse  # type: ignore[import-untyped]

    _need_text(kind)

    def test(value: str) -> bool:
        try:
            parse(value)
        except (ValueError, OverflowError):
            return False
        return True

    return _distinct(test)


def _json(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    _need_text(kind)

    def test(value: str) -> bool:
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return False
        return True

    return _distinct(test)


def _json_schema(rule: Rule, kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    import jsonschema  # type: ignore[import-untyped]

    _need_text(kind)
    schema = rule.get("json_schema")
    validator = jsonschema.validators.validator_for(schema)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as cause:
        raise Unfit(f"json_schema is not a JSON schema: {cause.message}") from cause
    check = validator(schema)

    def test(value: str) -> bool:
        try:
            document = json.loads(value)
        except ValueError as cause:
            raise Unfit(f"value {value[:80]!r} is not JSON: {cause}") from cause
        return bool(check.is_valid(document))

    return _distinct(test)


# ---------------------------------------------------------------- several columns of a row


def _comparable(kinds: Sequence[pa.DataType]) -> None:
    if len({family(k) for k in kinds}) > 1:
        raise Unfit(f"columns of types {', '.join(map(str, kinds))} cannot be compared with each other")
    zones = {k.tz is None for k in kinds if pa.types.is_timestamp(k)}
    if len(zones) > 1:
        raise Unfit("times with and without a time zone cannot be compared")


def _pair_greater(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    _comparable(kinds)
    compare = pc.greater_equal if rule.get("or_equal", False) else pc.greater
    return lambda arrays: compare(arrays[0], arrays[1])


def _pair_equal(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    _comparable(kinds)
    return lambda arrays: pc.equal(arrays[0], arrays[1])


def _pair_in_set(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    pairs = rule.get("value_pairs_set")
    if pairs is None:
        return lambda arrays: _all(arrays[0])
    sides: list[list[Any]] = []
    for side, kind in enumerate(kinds):
        sides.append([None if p[side] is None else fit(p[side], kind).as_py() for p in pairs])
    places = [list(dict.fromkeys(side)) for side in sides]
    width = len(places[1]) or 1
    known = pa.array(
        sorted({places[0].index(a) * width + places[1].index(b) for a, b in zip(*sides, strict=True)}), pa.int64()
    )
    types = [_common(kind, values) for kind, values in zip(kinds, places, strict=True)]
    sets = [pa.array(values, kind) for kind, values in zip(types, places, strict=True)]

    def good(arrays: list[pa.Array]) -> pa.Array:
        # A pair becomes one number; a value that is in no pair has no place, and NULL has one only if a pair has it.
        place = [
            pc.index_in(_as(a, s.type), value_set=_as(s, s.type)).cast(pa.int64())
            for a, s in zip(arrays, sets, strict=True)
        ]
        return pc.is_in(pc.add(pc.multiply(place[0], width), place[1]), value_set=known)

    return good


def _common(kind: pa.DataType, values: Sequence[Any]) -> pa.DataType:
    """The type in which numbers of a column and of a set are equal where they are equal as numbers."""
    return pa.float64() if family(kind) == "number" and any(isinstance(v, float) for v in values) else kind


def _sum_equal(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    if any(family(k) != "number" for k in kinds):
        raise Unfit(f"columns of types {', '.join(map(str, kinds))} cannot be summed")
    total = rule.get("sum_total")
    floating = any(pa.types.is_floating(k) for k in kinds)

    def good(arrays: list[pa.Array]) -> pa.Array:
        wide = [a.cast(pa.float64()) if floating else a for a in arrays]
        return pc.equal(reduce(pc.add_checked, wide), fit(total, wide[0].type))

    return good


def _same(left: pa.Array, right: pa.Array) -> pa.Array:
    """Equal, or both missing."""
    return pc.or_(_sure(pc.equal(left, right)), pc.and_(pc.is_null(left), pc.is_null(right)))


def _values_equal(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    _comparable(kinds)
    return lambda arrays: reduce(pc.and_, [_same(a, arrays[0]) for a in arrays])


def _unique_within(rule: Rule, kinds: Sequence[pa.DataType]) -> Callable[[list[pa.Array]], pa.Array]:
    _comparable(kinds)

    def good(arrays: list[pa.Array]) -> pa.Array:
        pairs = [(a, b) for i, a in enumerate(arrays) for b in arrays[:i]]
        return reduce(pc.and_, [pc.invert(_same(a, b)) for a, b in pairs], _all(arrays[0]))

    return good


_COLUMN: Mapping[str, Callable[[Rule, pa.DataType], Callable[[pa.Array], pa.Array]]] = {
    "column_values_to_be_between": _between,
    "column_values_to_be_in_set": _in_set,
    "column_values_to_not_be_in_set": _in_set,
    "column_value_lengths_to_be_between": _lengths,
    "column_value_lengths_to_equal": _lengths,
    "column_values_to_match_regex": _regex,
    "column_values_to_not_match_regex": _regex,
    "column_values_to_match_regex_list": _regex_list,
    "column_values_to_not_match_regex_list": _regex_list,
    "column_values_to_match_strftime_format": _strftime,
    "column_values_to_be_dateutil_parseable": _dateutil,
    "column_values_to_be_json_parseable": _json,
    "column_values_to_match_json_schema": _json_schema,
}
_NULLITY: Mapping[str, Callable[[pa.Array], pa.Array]] = {
    "column_values_to_be_null": pc.is_null,
    "column_values_to_not_be_null": pc.is_valid,
}
_RECORD: Mapping[str, Callable[[Rule, Sequence[pa.DataType]], Callable[[list[pa.Array]], pa.Array]]] = {
    "column_pair_values_a_to_be_greater_than_b": _pair_greater,
    "column_pair_values_to_be_equal": _pair_equal,
    "column_pair_values_to_be_in_set": _pair_in_set,
    "multicolumn_sum_to_equal": _sum_equal,
    "multicolumn_values_to_be_equal": _values_equal,
    "select_column_values_to_be_unique_within_record": _unique_within,
}
