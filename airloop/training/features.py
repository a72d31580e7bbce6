"""
From table columns to the numbers that a trainer sees, the same way at training and at scoring.

A feature is a number, a boolean or a category. A category's vocabulary is fixed by the training rows and kept in the
model's bundle; a category that training has not seen is missing, like NULL and NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadArgument, BadInput, SchemaMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["number", "boolean", "category"]

MAX_CATEGORIES = 1000
"""Most frequent categories of a feature that get their own code; rarer ones are missing values."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One input of a model."""

    name: str
    kind: Kind
    type: str
    """Arrow type of the column in the training table."""
    categories: tuple[str, ...] = ()
    """Vocabulary in code order, for ``kind="category"``."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "type": self.type, "categories": list(self.categories)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> FeatureSpec:
        return cls(document["name"], document["kind"], document["type"], tuple(document["categories"]))


def kind_of(type_: pa.DataType) -> Kind | None:
    """What a column of this Arrow type can be used as; None if a model cannot use it."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_boolean(type_):
        return "boolean"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "category"
    return None


def check_columns(schema: pa.Schema, names: Sequence[str], *, where: str) -> None:
    """
    :param where: name of the table, for the error.
    :raises BadArgument: a name is not a column, is named twice, or its type is nothing that a model can use.
    """
    if not names:
        raise BadArgument(f"{where} has no feature column", "name the features: features=[…]")
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise BadArgument(f"features named twice: {', '.join(twice)}")
    for name in names:
        if name not in schema.names:
            near = get_close_matches(name, schema.names, n=1)
            raise BadArgument(f"{where} has no column {name!r}", f"did you mean {near[0]!r}?" if near else "")
        if kind_of(schema.field(name).type) is None:
            raise BadArgument(
                f"feature {name} of {where} has type {schema.field(name).type}",
                "a model takes numbers, booleans and strings; turn it into one of these or leave it out of features",
            )


def learn_features(
    rows: pa.Table, names: Sequence[str], *, max_categories: int = MAX_CATEGORIES
) -> tuple[tuple[FeatureSpec, ...], tuple[str, ...], tuple[str, ...]]:
    """
    What the training rows say about the features.

    :param rows: the training split; :func:`check_columns` holds.
    :param names: columns to use, in the model's order.
    :param max_categories: vocabulary size; the most frequent are kept, ties by name.
    :returns: the specs, the names of features without any value (to be left out: a model can learn nothing from them),
        and warnings for people.
    """
    specs, empty, warnings = [], [], []
    for name in names:
        column = rows.column(name)
        kind = kind_of(column.type)
        assert kind is not None
        categories: tuple[str, ...] = ()
        if kind == "category":
            counts = pc.value_counts(_strings(column).drop_null())
            found = sorted((-c["counts"].as_py(), c["values"].as_py()) for c in counts)
            if len(found) > max_categories:
                warnings.append(
                    f"feature {name} has {len(found):,} categories: the {max_categories:,} most frequent are used, "
                    "the others count as missing"
                )
            categories = tuple(sorted(value for _, value in found[:max_categories]))
            no_value = not categories
        else:
            no_value = bool(np.isnan(_numbers(column)).all())
        if no_value:
            empty.append(name)
            warnings.append(f"feature {name} has no value in the {rows.num_rows:,} training rows: left out")
            continue
        specs.append(FeatureSpec(name, kind, str(column.type), categories))
    return tuple(specs), tuple(empty), tuple(warnings)


def encode(rows: pa.Table | pa.RecordBatch, features: Sequence[FeatureSpec], *, where: str) -> NDArray[np.float64]:
    """
    The matrix that a model sees, shape ``(rows, features)``: numbers as they are, booleans 0 and 1, categories their
    place in the vocabulary; missing is NaN.

    :param where: what the rows are, for errors.
    :raises SchemaMismatch: columns are missing or of another kind; the text names all of them.
    :raises BadInput: a number is infinite.
    """
    _check_schema(rows.schema, features, where)
    matrix = np.empty((rows.num_rows, len(features)), dtype=np.float64, order="F")
    for index, spec in enumerate(features):
        column = rows.column(spec.name)
        if pa.types.is_null(column.type):
            matrix[:, index] = np.nan
        elif spec.kind == "category":
            codes = pc.index_in(_strings(column), value_set=pa.array(spec.categories, pa.string()))
            matrix[:, index] = _numbers(codes)
        else:
            matrix[:, index] = _numbers(column)
    infinite = np.isinf(matrix).sum(axis=0)
    if infinite.any():
        found = ", ".join(f"{s.name} in {n:,}" for s, n in zip(features, infinite, strict=True) if n)
        raise BadInput(
            f"{where}: infinite values of {found} of {rows.num_rows:,} rows",
            "a division by zero upstream? write NULL for what is not known",
        )
    return matrix


def _check_schema(schema: pa.Schema, features: Sequence[FeatureSpec], where: str) -> None:
    faults = []
    for spec in features:
        if spec.name not in schema.names:
            faults.append(f"{spec.name} ({spec.type}) is missing")
            continue
        type_ = schema.field(spec.name).type
        kind = kind_of(type_)
        numeric = {"number", "boolean"}
        # A boolean with gaps arrives as a number from some engines, and 0 and 1 mean the same.
        if kind != spec.kind and not pa.types.is_null(type_) and not {kind, spec.kind} <= numeric:
            faults.append(f"{spec.name} is {type_}, the model learned from {spec.type}")
    if faults:
        raise SchemaMismatch(
            f"{where} does not have the {len(features)} features of the model: {'; '.join(faults)}",
            "use the feature service that the model was trained with",
        )


def _strings(column: Any) -> Any:
    return column.cast(pa.string()) if column.type != pa.string() else column


def _numbers(column: Any) -> NDArray[np.float64]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
    return np.asarray(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy())
