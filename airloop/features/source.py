"""A Feast data source for the warehouse's tables. Importing it imports Feast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from feast import RepoConfig, ValueType
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from airloop.errors import SchemaMismatch

FEAST_TYPES = {
    "bool": ValueType.BOOL,
    "int32": ValueType.INT32,
    "int64": ValueType.INT64,
    "float": ValueType.FLOAT,
    "double": ValueType.DOUBLE,
    "string": ValueType.STRING,
    "large_string": ValueType.STRING,
    "binary": ValueType.BYTES,
    "large_binary": ValueType.BYTES,
    "date32[day]": ValueType.UNIX_TIMESTAMP,
    "timestamp[us]": ValueType.UNIX_TIMESTAMP,
    "timestamp[us, tz=UTC]": ValueType.UNIX_TIMESTAMP,
    "list<element: string>": ValueType.STRING_LIST,
    "list<element: int64>": ValueType.INT64_LIST,
    "list<element: double>": ValueType.DOUBLE_LIST,
}
"""Feast's type by the Arrow type of a column."""


class IcebergSource(DataSource):
    """
    A table of the warehouse. It names no snapshot: which one is read is said where it is read.

    Columns bear the features' names: there is no ``field_mapping``; rename in the SQL that makes the table.

    :param name: unique in the project.
    :param table: ``namespace.table``; default ``features.<name>``.
    :param timestamp_field: the values' event time.
    :param created_timestamp_column: when the values became known; an empty string declares none.
    """

    def __init__(
        self,
        *,
        name: str,
        table: str = "",
        timestamp_field: str = "event_time",
        created_timestamp_column: str = "arrival_time",
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        super().__init__(
            name=name,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            description=description,
            tags=tags,
            owner=owner,
        )
        self.table = table or f"features.{name}"

    def __eq__(self, other: object) -> bool:
        same = super().__eq__(other)  # type: ignore[no-untyped-call]
        return isinstance(other, IcebergSource) and bool(same) and self.table == other.table

    def __hash__(self) -> int:
        return hash((self.name, self.table))

    def source_type(self) -> Any:
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> IcebergSource:
        options = json.loads(data_source.custom_options.configuration.decode())
        return IcebergSource(
            name=data_source.name,
            table=options["table"],
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type="airloop.features.source.IcebergSource",
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps({"table": self.table}).encode()
            ),
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """
        Look for the time columns. A table that is not there yet is no fault: a loop defines its features first.

        :raises SchemaMismatch: the table is there without them.
        """
        from airloop.features.store import warehouse_of

        if not warehouse_of(config).exists(self.table):
            return
        present = {name for name, _ in self.get_table_column_names_and_types(config)}
        missing = [c for c in (self.timestamp_field, self.created_timestamp_column) if c and c not in present]
        if missing:
            raise SchemaMismatch(
                f"source {self.name}: table {self.table} has no column {', '.join(missing)}",
                f"it has {', '.join(sorted(present))}; name the right columns in the source",
            )

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        from airloop.features.store import warehouse_of

        return [(field.name, str(field.type)) for field in warehouse_of(config).schema(self.table)]

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return lambda name: FEAST_TYPES.get(name, ValueType.UNKNOWN)

    def get_table_query_string(self) -> str:
        from airloop.features.asof import quote_path

        return quote_path(self.table)
