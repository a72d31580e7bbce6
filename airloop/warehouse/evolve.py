"""Make a table, or make an existing one hold what is declared: columns may be added, nothing else changes."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import parse_transform
from sqlalchemy.exc import IntegrityError

from airloop.errors import BadArgument, BadConfiguration, CommitConflict, SchemaMismatch
from airloop.warehouse.commit import TRIES
from airloop.warehouse.merging import PROPERTIES as MERGING
from airloop.warehouse.schema import difference, iceberg_type, normal_schema, shown, to_arrow, to_iceberg

TABLE_KEY = "airloop.key"
"""Table property: the key columns, comma-separated."""
OPTIONAL = "airloop.optional"
"""Table property: columns that rows may lack, comma-separated."""
FORMAT = "airloop.format"
"""Table property: version of the properties that Airloop relies on."""
TABLE_FORMAT = 1
PROPERTIES = {
    FORMAT: str(TABLE_FORMAT),
    # Its retry re-applies without looking for the key, and doubles rows.
    "commit.retry.num-retries": "0",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "50",
    # Other engines may not expire snapshots: they know nothing of models and runs that name them.
    "gc.enabled": "false",
    **MERGING,
}
"""What every table has; one that was made before is brought to it when it is next declared."""

_PARTITION = re.compile(r"(identity|year|month|day|hour|bucket|truncate)\((\w+)(?:,\s*(\d+))?\)")


def ensure(
    catalog: Catalog,
    name: str,
    load: Callable[[], Table],
    schema: pa.Schema,
    *,
    key: Sequence[str],
    partition_by: str,
    description: str,
    optional: Sequence[str],
) -> list[str]:
    """See ``Warehouse.ensure``."""
    declared = normal_schema(schema)
    missing = [c for c in key if c not in declared.names]
    if missing:
        raise BadArgument(f"{name}: key column {', '.join(missing)} is not in its schema")
    for attempt in range(TRIES):
        try:
            table = load()
        except NoSuchTableError:
            _create(catalog, name, declared, key, partition_by, description, optional)
            continue
        try:
            return _evolve(table, name, declared, key, partition_by, optional)
        except CommitFailedException:
            time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
    raise CommitConflict(f"{name}: other writers won {TRIES} times", "run the task again")


def _create(
    catalog: Catalog,
    name: str,
    declared: pa.Schema,
    key: Sequence[str],
    partition_by: str,
    description: str,
    optional: Sequence[str],
) -> None:
    namespace = name.partition(".")[0]
    # Another process may make it at the same time.
    with suppress(NamespaceAlreadyExistsError, IntegrityError):
        if not catalog.namespace_exists(namespace):
            catalog.create_namespace(namespace)
    schema = to_iceberg(declared)
    properties = dict(PROPERTIES)
    if key:
        properties[TABLE_KEY] = ",".join(key)
    if optional:
        properties[OPTIONAL] = ",".join(optional)
    if description:
        properties["comment"] = description
    # Another process may make it at the same time; the two are compared next.
    with suppress(TableAlreadyExistsError):
        catalog.create_table(name, schema, partition_spec=partition_spec(partition_by, schema), properties=properties)


def _evolve(
    table: Table, name: str, declared: pa.Schema, key: Sequence[str], partition_by: str, optional: Sequence[str]
) -> list[str]:
    check_format(table, name)
    added, wrong = difference(to_arrow(table.schema()), declared, optional)
    properties = table.metadata.properties
    old_key = [c for c in properties.get(TABLE_KEY, "").split(",") if c]
    if key and old_key and list(key) != old_key:
        wrong.append(f"key: ({', '.join(old_key)}) in the table, ({', '.join(key)}) declared")
    if partition_by:
        old, new = (
            _spec_text(table.spec(), table.schema()),
            _spec_text(partition_spec(partition_by, to_iceberg(declared)), to_iceberg(declared)),
        )
        if old != new:
            wrong.append(f"partition: {old or 'none'} in the table, {new} declared")
    if wrong:
        raise SchemaMismatch(
            f"{name} differs from what is declared: {'; '.join(wrong)}",
            "a nullable column may be added; for anything else make a new table and move the rows",
        )
    changed = {name: value for name, value in PROPERTIES.items() if name not in properties}
    if key and not old_key:
        changed[TABLE_KEY] = ",".join(key)
    if optional and properties.get(OPTIONAL, "") != ",".join(optional):
        changed[OPTIONAL] = ",".join(optional)
    if not added and not changed:
        return []
    with table.transaction() as transaction:
        if added:
            with transaction.update_schema() as update:
                for column in added:
                    update.add_column(column.name, iceberg_type(column.type, iter(range(1, 10_000))))
        if changed:
            transaction.set_properties(changed)
    return [f"added column {column.name} ({shown(column.type)})" for column in added]


def check_format(table: Table, name: str) -> None:
    """:raises BadConfiguration: a newer airloop made the table."""
    found = table.metadata.properties.get(FORMAT, "0")
    if not found.isdecimal() or int(found) > TABLE_FORMAT:
        raise BadConfiguration(
            f"{name} is of format {found}, this airloop knows formats up to {TABLE_FORMAT}",
            "use the newer airloop that made it",
        )


def bring_up(table: Table) -> dict[str, str]:
    """Set the properties that a table lacks; returns them."""
    missing = {name: value for name, value in PROPERTIES.items() if name not in table.metadata.properties}
    if missing:
        with table.transaction() as transaction:
            transaction.set_properties(missing)
    return missing


def partition_spec(text: str, schema: Schema) -> PartitionSpec:
    """
    Read ``month(event_time)``, ``identity(origin), day(event_time)``, ``bucket(tailnum, 16)``…

    :raises BadArgument: an unknown transform or column.
    """
    if not text.strip():
        return UNPARTITIONED_PARTITION_SPEC
    fields: list[PartitionField] = []
    for part in re.split(r",(?![^(]*\))", text):
        found = _PARTITION.fullmatch(part.strip())
        if found is None or (found[3] is None) == (found[1] in ("bucket", "truncate")):
            raise BadArgument(
                f"cannot read {part.strip()!r} as a partition",
                "write identity(c), year(t), month(t), day(t), hour(t), bucket(c, 16) or truncate(c, 4)",
            )
        kind, column, width = found.groups()
        try:
            source = schema.find_field(column)
        except ValueError as cause:
            raise BadArgument(f"partition {part.strip()}: there is no column {column}") from cause
        transform = parse_transform(kind if width is None else f"{kind}[{width}]")
        if not transform.can_transform(source.field_type):
            raise BadArgument(f"partition {part.strip()}: {column} is {source.field_type}")
        name = column if kind == "identity" else f"{column}_{kind}"
        fields.append(PartitionField(source.field_id, PARTITION_FIELD_ID_START + len(fields), transform, name))
    return PartitionSpec(*fields)


def _spec_text(spec: PartitionSpec, schema: Schema) -> str:
    return ", ".join(f"{f.transform}({schema.find_column_name(f.source_id)})" for f in spec.fields)
