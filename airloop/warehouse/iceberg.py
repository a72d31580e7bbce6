"""
PyIceberg, so that the work of a commit does not grow with a table's history.

As it comes, it reads a table's whole metadata whenever the table is loaded, and copies all of it in depth some fifteen
times in a commit: seconds, once there are a thousand snapshots. Here a file of metadata, which never changes, is read
once, a transaction works its metadata out once, what is immutable is not copied, and a snapshot's text is made once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog import Catalog as AnyCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table import Transaction as StockTransaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import MetadataLogEntry, Snapshot, SnapshotLogEntry
from pyiceberg.table.update import TableRequirement, TableUpdate

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import IcebergTables
    from pyiceberg.io import FileIO

KNOWN = 32
"""Files of metadata that a process keeps, about one of each table."""
TEXTS = 20_000
"""Snapshots whose JSON a process keeps, about 0.8 KB each."""


def _itself(self: Any, memo: dict[int, Any]) -> Any:
    return self


# Frozen models, one for each commit in the table's history.
for _model in (Snapshot, SnapshotLogEntry, MetadataLogEntry):
    _model.__deepcopy__ = _itself  # type: ignore[assignment]


_texts: OrderedDict[int, tuple[Snapshot, str]] = OrderedDict()


def _text(snapshot: Snapshot) -> str:
    """A snapshot as JSON, made once."""
    known = _texts.get(id(snapshot))
    if known is None or known[0] is not snapshot:
        known = _texts[id(snapshot)] = (snapshot, snapshot.model_dump_json(exclude_none=True))
        if len(_texts) > TEXTS:
            _texts.popitem(last=False)
    return known[1]


class Catalog(SqlCatalog):
    """A catalog that reads a file of metadata once, and makes the text of each snapshot in it once."""

    def __init__(self, name: str, **properties: str) -> None:
        super().__init__(name, **properties)
        self._known: OrderedDict[str, TableMetadata] = OrderedDict()

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = orm_table.metadata_location or ""
        metadata = self._known.get(location)
        if metadata is None:
            table = super()._convert_orm_to_iceberg(orm_table)
            self._keep(location, table.metadata)
            return table
        return Table(
            identifier=(*AnyCatalog.identifier_to_tuple(orm_table.table_namespace), orm_table.table_name),
            metadata=metadata,
            metadata_location=location,
            io=self._load_file_io(metadata.properties, location),
            catalog=self,
        )

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        done = super().commit_table(table, requirements, updates)
        self._keep(done.metadata_location, done.metadata)
        return done

    @staticmethod
    def _write_metadata(metadata: TableMetadata, io: FileIO, metadata_path: str) -> None:
        """The JSON that PyIceberg writes."""
        head = metadata.model_dump_json(exclude_none=True, exclude={"snapshots"})
        snapshots = ",".join(map(_text, metadata.snapshots))
        with io.new_output(metadata_path).create() as file:
            file.write(f'{head[:-1]},"snapshots":[{snapshots}]}}'.encode())

    def _keep(self, location: str, metadata: TableMetadata) -> None:
        self._known[location] = metadata
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)


class Transaction(StockTransaction):
    """A transaction that works its metadata out once for each change."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._worked_out: tuple[int, TableMetadata] = (0, table.metadata)

    @property
    def table_metadata(self) -> TableMetadata:
        if self._worked_out[0] != len(self._updates):
            self._worked_out = (len(self._updates), super().table_metadata)
        return self._worked_out[1]
