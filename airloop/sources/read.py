"""Files to rows: compare what is there with what is declared, then stream it, typed and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa

from airloop.errors import SchemaMismatch
from airloop.sources import csv_file, json_lines, parquet_file
from airloop.sources.files import SourceFile
from airloop.sources.spec import NAME, SourceSpec
from airloop.sources.streams import Data, data_of
from airloop.sources.types import LOCAL, widens
from airloop.sources.values import check, conform

READERS: Mapping[str, ModuleType] = {"csv": csv_file, "jsonl": json_lines, "parquet": parquet_file}


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be read, known before the first row is."""

    parts: tuple[tuple[Data, frozenset[str]], ...]
    """Streams in their order, each with the names of the columns that it has."""
    added: dict[str, str]
    """Canonical type of each column that is in a file without being declared."""
    report: tuple[str, ...]
    """What differs from the declaration and was accepted, for people."""


def plan(spec: SourceSpec, files: Sequence[SourceFile], known: Mapping[str, str]) -> Plan:
    """
    Look at the files' columns.

    :param known: canonical type by name of undeclared columns that the table has already.
    :raises SchemaMismatch: with the complete difference of every file.
    """
    reader = READERS[spec.format]
    parts: list[tuple[Data, frozenset[str]]] = []
    added: dict[str, str] = {}
    report: list[str] = []
    faults: list[str] = []
    for data in (data for file in files for data in data_of(file, spec)):
        columns: dict[str, str] = reader.inspect(data, spec)
        undeclared, missing, wrong = _difference(spec, columns)
        if wrong:
            faults.append(f"{data.label}: {'; '.join(wrong)}")
            continue
        report += [f"{data.label}: optional column {name} is missing, its values are null" for name in missing]
        new = [name for name in undeclared if name not in known]
        for name, kind in (reader.infer(data, spec, new) if new else {}).items():
            added[name], clash = _united(added.get(name, kind), kind)
            if clash:
                faults.append(f"{data.label}: {name}, which is not declared, is {kind} here and {clash} elsewhere")
            report.append(f"{data.label}: column {name} ({kind}) is not declared; kept as a nullable column")
        for name in undeclared:
            if name in known:
                added[name] = known[name]
                if columns[name] and not widens(columns[name], known[name]):
                    faults.append(f"{data.label}: {name} is {columns[name]}, the table has it as {known[name]}")
        parts.append((data, frozenset(columns)))
    if faults:
        raise SchemaMismatch(
            f"source {spec.name}: {' | '.join(faults)}",
            "declare the columns as they are, mark those that may be missing `optional`, or list them in `ignore`",
        )
    return Plan(tuple(parts), added, tuple(report))


def _difference(spec: SourceSpec, columns: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """``(undeclared, missing though optional, faults)`` of one file."""
    in_file = spec.in_file
    taken = {name.lower() for name in spec.order}
    undeclared = [name for name in columns if name not in in_file.values() and name not in spec.ignore]
    missing = []
    faults = []
    for name, column in spec.columns.items():
        kind = columns.get(in_file[name])
        if kind is None and column.optional:
            missing.append(in_file[name])
        elif kind is None:
            faults.append(f"lost column {in_file[name]!r} ({column.type})")
        elif kind == LOCAL and column.type == "timestamptz" and not column.zone:
            faults.append(f"column {in_file[name]!r} is a time without a zone; declare the `zone` that it is in")
        elif kind and not widens(kind, column.kind):
            faults.append(f"column {in_file[name]!r} changed its type: declared {column.type}, found {kind}")
    for name in undeclared:
        if not spec.evolve:
            faults.append(f"column {name!r} is not declared and evolve is false")
        elif columns[name] == "nested":
            faults.append(f"column {name!r} is not declared and nested, which a table of rows cannot hold")
        elif columns[name] == LOCAL:
            faults.append(f"column {name!r} is not declared and a time without a zone; declare it with its `zone`")
        elif not NAME.fullmatch(name) or name.lower() in taken:
            faults.append(f"column {name!r} is not declared and cannot be the name of a column here (use `source`)")
        taken.add(name.lower())
    return undeclared, missing, faults


def _united(one: str, other: str) -> tuple[str, str]:
    """``(type that holds both, the clashing one)``."""
    if widens(other, one):
        return one, ""
    if widens(one, other) or {one, other} == {"long", "double"}:
        return other if widens(one, other) else "double", ""
    return one, one


def rows(spec: SourceSpec, plan: Plan) -> Iterator[tuple[int, Data, int, pa.RecordBatch]]:
    """
    ``(position of the stream, stream, data row of the first row, batch)``; columns are the declared and added ones.

    :raises BadInput: a row or value that cannot be used, named.
    """
    reader = READERS[spec.format]
    declared = {name: (spec.in_file[name], column.kind) for name, column in spec.columns.items()}
    wanted = declared | {name: (name, kind) for name, kind in plan.added.items()}
    required = {name for name in spec.columns if spec.required(name)}
    nan_allowed = {name for name, column in spec.columns.items() if column.allow_nan}
    for position, (data, present) in enumerate(plan.parts):
        row = 1
        kinds = {in_file: kind for in_file, kind in wanted.values() if in_file in present}
        for raw in reader.read(data, spec, kinds):
            batch = conform(raw, wanted, label=data.label, first_row=row)
            check(batch, required, nan_allowed, label=data.label, first_row=row)
            yield position, data, row, batch
            row += batch.num_rows
