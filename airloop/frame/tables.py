"""What a manifest says of the tables that a step handed over, for readers that cannot open them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airloop.config import Config
from airloop.errors import NotFound
from airloop.reference import Reference

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from airloop.warehouse.work import Work


def describe_tables(outputs: Mapping[str, Reference | str], config: Config) -> dict[str, dict[str, Any]]:
    """
    By reference: ``columns`` as (name, type) pairs, ``rows`` in all, and what the snapshot's commit added:
    ``rows_added``, ``files_added`` and ``bytes_added``.
    """
    refs = {str(value): value for value in outputs.values() if isinstance(value, Reference) and value.kind == "table"}
    if not refs:
        return {}
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(config)
    found = {}
    for text in refs:
        ref = TableRef.parse(text)
        try:
            found[text] = _describe(warehouse.table(ref.name), ref.snapshot or 0)
        except NotFound:
            continue  # a step of somebody's own may name a table that it did not make
    return found


def replaced_output(manifest: Mapping[str, Any], config: Config, work: Work) -> str:
    """Reference of the first table that holds this work no more, but what took its place; empty if all hold it."""
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    for output in manifest["outputs"].values():
        if output["kind"] == "table":
            ref = TableRef.parse(output["reference"])
            by = Warehouse.open(config).replaced(ref, work)
            if by:
                return f"{ref}, in whose place main has {by}"
    return ""


def _describe(table: Table, snapshot: int) -> dict[str, Any]:
    from airloop.warehouse.read import snapshot_schema

    at = table.metadata.snapshot_by_id(snapshot)
    summary = at.summary.additional_properties if at is not None and at.summary is not None else {}
    return {
        "columns": [[field.name, str(field.field_type)] for field in snapshot_schema(table, snapshot).fields],
        "rows": int(summary.get("total-records", 0)),
        "rows_added": int(summary.get("added-records", 0)),
        "files_added": int(summary.get("added-data-files", 0)),
        "bytes_added": int(summary.get("added-files-size", 0)),
    }
