"""The rows of a training table that a model may see, checked before anything is fitted to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from airloop.errors import BadArgument, BadInput, SchemaMismatch
from airloop.training.features import FeatureSpec, check_columns, encode, kind_of, learn_features
from airloop.training.trainers import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

SPLIT = "split"
"""Column that says what a row is for: ``train``, ``validation`` or ``holdout``. The last is for the gate alone."""
FEATURES_PROPERTY = "airloop.features"
"""Snapshot summary property: the features in the model's order, as JSON."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a trainer gets."""

    features: tuple[FeatureSpec, ...]
    left_out: tuple[str, ...]
    """Features without any value in the training rows."""
    train: Split
    validation: Split
    warnings: tuple[str, ...]


def feature_names(warehouse: Warehouse, ref: TableRef, *, target: str, named: Sequence[str] | None) -> list[str]:
    """
    Which columns of a training table are features: those named, else those that the snapshot's builder recorded.
    Never guessed: a column that is there by chance may hold the answer.

    :raises BadArgument: a column is not there or nothing that a model can use, or nobody says which ones to use.
    :raises BadInput: the table is empty and so records nothing.
    :raises SchemaMismatch: the table has no target or split column.
    """
    schema = warehouse.schema(ref)
    for column, advice in ((target, "name it: target=…"), (SPLIT, "build the table with build_training_set")):
        if column not in schema.names:
            raise SchemaMismatch(f"{ref.name} has no column {column!r}, only {', '.join(schema.names)}", advice)
    if named is not None:
        if target in named:
            raise BadArgument(f"the target {target} is among the features", "a model must not see its answer")
        names = list(named)
    else:
        if not ref.snapshot:
            raise BadInput(f"{ref.name} has no training rows: nothing was ever written", "did any label arrive yet?")
        names = _recorded(warehouse, ref)
        if not names:
            raise BadArgument(
                f"{ref} does not say which columns are features",
                "build it with build_training_set, or name them: features=[…]",
            )
    check_columns(schema, names, where=ref.name)
    return names


def read_examples(warehouse: Warehouse, ref: TableRef, *, target: str, features: Sequence[str]) -> Examples:
    """
    Read the training and validation rows of a training table.

    :param ref: the table at a snapshot.
    :param features: columns, in the model's order, from :func:`feature_names`.
    :raises BadInput: no training rows, a label is missing or neither 0 nor 1, training rows of one class only, an
        infinite value, or no feature has a value.
    """
    columns = [*features, target, SPLIT]
    reader = warehouse.scan(ref, columns=columns, where=f"{SPLIT} IN ('train', 'validation')")
    rows = reader.read_all()
    split = np.asarray(rows.column(SPLIT).to_numpy(zero_copy_only=False), dtype=object)
    train, validation = rows.filter(pa.array(split == "train")), rows.filter(pa.array(split == "validation"))
    if not train.num_rows:
        raise BadInput(
            f"{ref.name} has no training rows ({rows.num_rows:,} validation rows)",
            "did any label arrive yet? widen the lookback or start with a later interval",
        )
    train_labels = read_labels(train, target, where=f"{ref.name}, training rows")
    validation_labels = read_labels(validation, target, where=f"{ref.name}, validation rows")
    positives = int(train_labels.sum())
    if positives in (0, len(train_labels)):
        raise BadInput(
            f"all {len(train_labels):,} training rows of {ref.name} have {target}={int(positives > 0)}",
            "a classifier needs both classes; widen the lookback",
        )
    specs, left_out, warnings = learn_features(train, features)
    if not specs:
        raise BadInput(f"none of the {len(features)} features of {ref.name} has a value in the training rows")
    return Examples(
        specs,
        left_out,
        Split(encode(train, specs, where=f"{ref.name}, training rows"), train_labels),
        Split(encode(validation, specs, where=f"{ref.name}, validation rows"), validation_labels),
        warnings,
    )


def read_labels(rows: pa.Table, target: str, *, where: str) -> NDArray[np.float64]:
    """
    Labels as 0.0 and 1.0, shape ``(n,)``.

    :raises BadInput: one is missing, or not of a binary question.
    """
    column = rows.column(target)
    if kind_of(column.type) not in ("number", "boolean"):
        raise BadInput(
            f"{where}: target {target} has type {column.type}",
            "only binary classification is supported so far: give a boolean, or 0 and 1",
        )
    labels = np.asarray(
        column.cast(pa.float64(), safe=False).to_numpy()
        if not pa.types.is_boolean(column.type)
        else column.cast(pa.int8()).cast(pa.float64()).to_numpy(),
        dtype=np.float64,
    )
    missing = int(np.isnan(labels).sum())
    if missing:
        raise BadInput(
            f"{where}: {missing:,} of {len(labels):,} have no {target}",
            "leave rows out of the training set until their label is known",
        )
    others = labels[(labels != 0) & (labels != 1)]
    if len(others):
        some = ", ".join(f"{v:g}" for v in np.unique(others)[:5])
        raise BadInput(
            f"{where}: {len(others):,} of {len(labels):,} values of {target} are neither 0 nor 1 ({some})",
            "only binary classification is supported so far, no regression and no more classes",
        )
    return labels


def _recorded(warehouse: Warehouse, ref: TableRef) -> list[str]:
    """Features recorded by the snapshot or, if it is another's small change, by the nearest one before it."""
    snapshots = {s.id: s for s in warehouse.history(ref.name)}
    current = snapshots.get(ref.snapshot or 0)
    while current is not None:
        if FEATURES_PROPERTY in current.summary:
            return [feature["name"] for feature in json.loads(current.summary[FEATURES_PROPERTY])]
        current = snapshots.get(current.parent or 0)
    return []
