"""
Schemas: which Arrow types a table can hold, how they map to Iceberg and DuckDB, and how a table may evolve.

Times are instants: microseconds, UTC. A time without a zone is refused, since nobody can tell what it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg import types as ice
from pyiceberg.schema import Schema

from airloop.errors import BadInput, SchemaMismatch

FIELD_ID = b"PARQUET:field_id"
UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")

_PLAIN: list[tuple[pa.DataType, ice.PrimitiveType, str]] = [
    (pa.bool_(), ice.BooleanType(), "BOOLEAN"),
    (pa.int32(), ice.IntegerType(), "INTEGER"),
    (pa.int64(), ice.LongType(), "BIGINT"),
    (pa.float32(), ice.FloatType(), "FLOAT"),
    (pa.float64(), ice.DoubleType(), "DOUBLE"),
    (pa.date32(), ice.DateType(), "DATE"),
    (pa.time64("us"), ice.TimeType(), "TIME"),
    (UTC_MICROSECONDS, ice.TimestamptzType(), "TIMESTAMP WITH TIME ZONE"),
    (pa.string(), ice.StringType(), "VARCHAR"),
    (pa.binary(), ice.BinaryType(), "BLOB"),
]
_ICEBERG_OF_ARROW = {arrow: iceberg for arrow, iceberg, _ in _PLAIN}
_ARROW_OF_ICEBERG: dict[ice.IcebergType, pa.DataType] = {iceberg: arrow for arrow, iceberg, _ in _PLAIN}
_DUCKDB_OF_ICEBERG: dict[ice.IcebergType, str] = {iceberg: duckdb for _, iceberg, duckdb in _PLAIN}


def normal_type(column: str, type_: pa.DataType) -> pa.DataType:
    """
    The type in which a table holds values of ``type_``.

    :raises SchemaMismatch: no table can hold it.
    """
    types = pa.types
    if types.is_timestamp(type_):
        if type_.tz is None:
            raise SchemaMismatch(
                f"column {column} is a time without a zone ({type_})",
                "say which zone it is in and convert it to UTC, in SQL: x AT TIME ZONE 'UTC'",
            )
        return UTC_MICROSECONDS
    if types.is_dictionary(type_):
        return normal_type(column, type_.value_type)
    if types.is_int8(type_) or types.is_int16(type_) or types.is_uint8(type_) or types.is_uint16(type_):
        return pa.int32()
    if types.is_uint32(type_):
        return pa.int64()
    if types.is_float16(type_):
        return pa.float32()
    if types.is_date64(type_):
        return pa.date32()
    if types.is_time(type_):
        return pa.time64("us")
    if types.is_large_string(type_) or types.is_string_view(type_):
        return pa.string()
    if types.is_large_binary(type_) or types.is_binary_view(type_):
        return pa.binary()
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return pa.list_(pa.field("element", normal_type(column, type_.value_type), type_.value_field.nullable))
    if types.is_struct(type_):
        return pa.struct([pa.field(f.name, normal_type(f"{column}.{f.name}", f.type), f.nullable) for f in type_])
    if types.is_decimal128(type_) and type_.scale >= 0:
        return type_
    if type_ in _ICEBERG_OF_ARROW:
        return type_
    raise SchemaMismatch(f"column {column} has type {type_}, which no table can hold", "cast it to another type")


def normal_schema(schema: pa.Schema) -> pa.Schema:
    """
    The schema as a table holds it, without any metadata.

    :raises SchemaMismatch: a type that no table can hold, no column, or two of one name.
    """
    names = [name.casefold() for name in schema.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        # DuckDB, Spark and Trino do not tell Names from names.
        raise SchemaMismatch(f"columns named twice, but for case: {', '.join(twice)}", "rename them")
    if not names:
        raise SchemaMismatch("the schema has no column")
    return pa.schema([pa.field(f.name, normal_type(f.name, f.type), f.nullable) for f in schema])


def to_iceberg(schema: pa.Schema) -> Schema:
    """Iceberg schema of a normal Arrow schema; the ids are preliminary, the table assigns its own."""
    ids = iter(range(1, 1_000_000))
    return Schema(
        *(ice.NestedField(next(ids), f.name, iceberg_type(f.type, ids), required=not f.nullable) for f in schema)
    )


def iceberg_type(type_: pa.DataType, ids: Iterator[int]) -> ice.IcebergType:
    """Iceberg type of a normal Arrow type."""
    if pa.types.is_list(type_):
        return ice.ListType(
            element_id=next(ids),
            element_type=iceberg_type(type_.value_type, ids),
            element_required=not type_.value_field.nullable,
        )
    if pa.types.is_struct(type_):
        return ice.StructType(
            *(ice.NestedField(next(ids), f.name, iceberg_type(f.type, ids), required=not f.nullable) for f in type_)
        )
    if pa.types.is_decimal128(type_):
        return ice.DecimalType(type_.precision, type_.scale)
    return _ICEBERG_OF_ARROW[type_]


def to_arrow(schema: Schema, *, ids: bool = False) -> pa.Schema:
    """
    Arrow schema of a table's schema.

    :param ids: carry Iceberg's field ids, as Parquet files have to.
    """
    return pa.schema([_arrow_field(f.name, f.field_id, f.field_type, f.required, ids) for f in schema.fields])


def _arrow_field(name: str, field_id: int, type_: ice.IcebergType, required: bool, ids: bool) -> pa.Field:
    metadata = {FIELD_ID: str(field_id).encode()} if ids else None
    return pa.field(name, _arrow_type(type_, ids), not required, metadata)


def _arrow_type(type_: ice.IcebergType, ids: bool) -> pa.DataType:
    if isinstance(type_, ice.ListType):
        return pa.list_(_arrow_field("element", type_.element_id, type_.element_type, type_.element_required, ids))
    if isinstance(type_, ice.StructType):
        return pa.struct([_arrow_field(f.name, f.field_id, f.field_type, f.required, ids) for f in type_.fields])
    if isinstance(type_, ice.DecimalType):
        return pa.decimal128(type_.precision, type_.scale)
    if type_ not in _ARROW_OF_ICEBERG:
        raise SchemaMismatch(f"Iceberg type {type_} is not supported", "read this table with another engine")
    return _ARROW_OF_ICEBERG[type_]


def duckdb_type(type_: ice.IcebergType) -> str:
    """DuckDB's name of an Iceberg type."""
    if isinstance(type_, ice.ListType):
        return f"{duckdb_type(type_.element_type)}[]"
    if isinstance(type_, ice.StructType):
        return "STRUCT(" + ", ".join(f"{quoted(f.name)} {duckdb_type(f.field_type)}" for f in type_.fields) + ")"
    if isinstance(type_, ice.DecimalType):
        return f"DECIMAL({type_.precision}, {type_.scale})"
    if type_ not in _DUCKDB_OF_ICEBERG:
        raise SchemaMismatch(f"Iceberg type {type_} is not supported", "read this table with another engine")
    return _DUCKDB_OF_ICEBERG[type_]


def quoted(identifier: str) -> str:
    """An identifier in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def shown(type_: pa.DataType) -> str:
    """A normal type's name for people: Iceberg's."""
    return str(iceberg_type(type_, iter(range(1, 10_000))))


def difference(table: pa.Schema, declared: pa.Schema, optional: Sequence[str]) -> tuple[list[pa.Field], list[str]]:
    """
    What it takes to make a table hold what is declared.

    :param table: the table's normal schema.
    :param declared: the declared normal schema.
    :param optional: columns of the table that the declaration may lack.
    :returns: the nullable columns to add, and one line for each difference that no rule allows.
    """
    added, wrong = [], []
    for field in declared:
        if field.name not in table.names:
            if field.nullable:
                added.append(field)
            else:
                wrong.append(f"{field.name}: new and required ({shown(field.type)}); a new column has to be nullable")
            continue
        old = table.field(field.name)
        if _bare(old.type) != _bare(field.type):
            wrong.append(f"{field.name}: {shown(old.type)} in the table, {shown(field.type)} declared")
        elif old.nullable != field.nullable:
            words = {True: "nullable", False: "required"}
            wrong.append(f"{field.name}: {words[old.nullable]} in the table, {words[field.nullable]} declared")
    for field in table:
        if field.name not in declared.names and field.name not in optional:
            wrong.append(f"{field.name}: {shown(field.type)} in the table, not declared")
    return added, wrong


def _bare(type_: pa.DataType) -> pa.DataType:
    """The type without the nullability of what is nested in it, which engines do not keep."""
    if pa.types.is_list(type_):
        return pa.list_(pa.field("element", _bare(type_.value_type)))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, _bare(f.type)) for f in type_])
    return type_


class Conform:
    """Bring chunks of rows to a table's schema: columns in its order, values losslessly in its types."""

    def __init__(self, table: str, target: pa.Schema, *, optional: Sequence[str] = ()) -> None:
        self._table = table
        self._target = target
        self._optional = frozenset(optional)
        self._checked: pa.Schema | None = None

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """
        :raises SchemaMismatch: columns are missing or unknown, or of a type that the table's does not cover.
        :raises BadInput: a value does not fit, or a required one is missing.
        """
        if self._checked is None or not self._checked.equals(chunk.schema):
            self._check(chunk.schema)
            self._checked = chunk.schema
        return pa.table([self._column(field, chunk) for field in self._target], schema=self._target)

    def _check(self, given: pa.Schema) -> None:
        wrong = []
        for name in sorted({n for n in given.names if given.names.count(n) > 1}):
            wrong.append(f"{name}: given twice")
        for field in self._target:
            if field.name not in given.names:
                if not (field.nullable and field.name in self._optional):
                    wrong.append(f"{field.name}: {shown(field.type)} in the table, missing in the rows")
            elif not _covers(field.type, given.field(given.names.index(field.name)).type):
                found = given.field(given.names.index(field.name)).type
                wrong.append(f"{field.name}: {shown(field.type)} in the table, {found} in the rows")
        for name in given.names:
            if name not in self._target.names:
                wrong.append(f"{name}: not in the table, in the rows")
        if wrong:
            raise SchemaMismatch(
                f"rows for {self._table} differ from its schema: {'; '.join(wrong)}",
                "mend the source or the declared schema; a new column has to be nullable",
            )

    def _column(self, field: pa.Field, chunk: pa.Table) -> Any:
        if field.name not in chunk.column_names:
            return pa.nulls(chunk.num_rows, field.type)
        column = chunk.column(field.name)
        if column.type != field.type:
            if pa.types.is_dictionary(column.type):
                column = pc.cast(column, column.type.value_type)
            try:
                column = pc.cast(column, field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as cause:
                raise BadInput(
                    f"{self._table}: a value of {field.name} ({column.type}) does not fit {shown(field.type)}: {cause}"
                ) from cause
        if not field.nullable and column.null_count:
            raise BadInput(
                f"{self._table}: {column.null_count:,} of {chunk.num_rows:,} rows have no {field.name}, "
                "which the table requires",
                "drop or quarantine them before they are committed",
            )
        return column


def _covers(target: pa.DataType, given: pa.DataType) -> bool:
    """Whether values of ``given`` may be cast to ``target``, each checked to lose nothing."""
    types = pa.types
    if types.is_null(given):
        return True
    if types.is_dictionary(given):
        return _covers(target, given.value_type)
    if types.is_integer(target):
        return bool(types.is_integer(given) or (types.is_decimal(given) and given.scale == 0))
    if types.is_floating(target):
        narrower = not (types.is_float32(target) and types.is_float64(given))
        return bool((types.is_floating(given) and narrower) or types.is_integer(given) or types.is_decimal(given))
    if types.is_timestamp(target):
        return bool(types.is_timestamp(given) and given.tz is not None)
    if types.is_list(target):
        if not (types.is_list(given) or types.is_large_list(given) or types.is_fixed_size_list(given)):
            return False
        return _covers(target.value_type, given.value_type)
    if types.is_struct(target):
        return bool(types.is_struct(given) and _bare(given) == _bare(target))
    if types.is_decimal(target):
        return bool(types.is_decimal(given) or types.is_integer(given))
    try:
        return bool(normal_type("", given) == target)
    except SchemaMismatch:
        return False
