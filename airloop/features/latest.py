"""
The newest known row of each entity of a feature view, and entities that are served a row which is there no more.

A feature table may lose rows: one is withdrawn, or comes again with an earlier time. Nothing newer ever comes to
replace what is online of it, so such entities are looked for in the data files that the table had and has no more.

What it does not do: find them once the snapshot that is online has expired. It is kept as long as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airloop.errors import BadInput
from airloop.features.asof import columns_of, quote
from airloop.features.encode import encode_keys
from airloop.warehouse.read import files_gone, select, snapshot_schema
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from airloop.features.engine import FeastView
    from airloop.features.online import OnlineStore
    from airloop.warehouse.catalog import Warehouse

ROWS_PER_CHUNK = 50_000
"""Entities encoded at a time: some 100 bytes for each feature."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Entities whose value online is of a row that the feature table has no more, and has no newer one for."""

    keys: frozenset[bytes] = frozenset()
    """Serialised."""
    columns: pa.Table | None = None
    """Their key columns, ``k0``, ``k1``…"""


@dataclass(frozen=True, slots=True)
class LatestRows:
    """The newest known row of each entity, as a point-in-time join would choose it."""

    warehouse: Warehouse
    source: TableRef
    view: FeastView
    after_us: int | None
    """Only rows that count from later than this; None: all. All times are microseconds since 1970."""
    until_us: int
    """Only rows that are true and known by then."""
    oldest_us: int | None = None
    """Only rows whose event is not before this; None: all."""
    lost: Lost = Lost()
    """Entities of which all rows are looked at, whenever they count from."""

    def read(self, workdir: Path | None) -> Reading:
        """Rows ``k*, f*, e, r``: keys, features, event and arrival time."""
        connection = self.warehouse.duckdb({"source": self.source}, workdir=workdir)
        if self.lost.columns is not None:
            connection.register("lost", self.lost.columns)
        return Reading(connection, *self._statements(connection))

    def withdrawn(self, since: int, workdir: Path | None) -> Iterator[pa.RecordBatch]:
        """
        Rows ``k*, e, r`` that a snapshot had and this one has not, where they are newer than what it has.

        :param since: a snapshot of the same table.
        """
        table = self.warehouse.table(self.source.name)
        snapshot = self.source.snapshot or 0
        gone = files_gone(table, since, snapshot)
        if not gone:
            return
        with self.warehouse.duckdb({"source": self.source}, workdir=workdir) as connection:
            connection.execute(f"CREATE VIEW gone AS {select(gone, snapshot_schema(table, snapshot))}")
            keys, where = self._keys(), self._known()
            columns = ", ".join([*(f"{key} AS k{i}" for i, key in enumerate(keys)), *self._times()])
            names = ", ".join(f"k{i}" for i in range(len(keys)))
            # One number that orders rows by event, then arrival: to compare pairs takes DuckDB three times as long.
            when = "e::HUGEINT * 18446744073709551616 + r"
            query = (
                f"WITH was AS (SELECT {columns} FROM gone WHERE {where}),"
                f" is_now AS (SELECT {columns} FROM source WHERE {where}),"
                f" newest AS (SELECT {names}, max({when}) AS newest FROM is_now GROUP BY {names})"
                f" SELECT DISTINCT {names}, e, r FROM was LEFT JOIN newest USING ({names})"
                f" WHERE newest IS NULL OR {when} > newest"
            )
            yield from connection.execute(query).to_arrow_reader(ROWS_PER_CHUNK)

    def _keys(self) -> list[str]:
        from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

        # A view without entities has one value for everybody, under the key that Feast invents for it.
        return [quote(n) for n, _ in self.view.keys if n != DUMMY_ENTITY_ID] or [f"'{DUMMY_ENTITY_VAL}'"]

    def _times(self) -> list[str]:
        event, arrival = self._event_and_arrival()
        return [f"epoch_us({event}::TIMESTAMPTZ) AS e", f"epoch_us({arrival}::TIMESTAMPTZ) AS r"]

    def _event_and_arrival(self) -> tuple[str, str]:
        return quote(self.view.event_time), quote(self.view.arrival_time or self.view.event_time)

    def _known(self) -> str:
        """Whether a row is one of an entity, known by then and not too old."""
        event, arrival = self._event_and_arrival()
        until = f"make_timestamptz({self.until_us})"
        conditions = [f"{event} <= {until}", f"{arrival} <= {until}", *(f"{key} IS NOT NULL" for key in self._keys())]
        if self.oldest_us is not None:
            conditions.append(f"{event} >= make_timestamptz({self.oldest_us})")
        return " AND ".join(conditions)

    def _statements(self, connection: duckdb.DuckDBPyConnection) -> tuple[str, str]:
        self._refuse_missing(connection)
        where = self._known()
        keys = self._keys()
        names = ", ".join(f"k{i}" for i in range(len(keys)))
        if self.after_us is not None:
            new = f"greatest({', '.join(self._event_and_arrival())}) > make_timestamptz({self.after_us})"
            lost = f" OR ({', '.join(keys)}) IN (SELECT {names} FROM lost)" if self.lost.columns is not None else ""
            where += f" AND ({new}{lost})"
        columns = [f"{key} AS k{i}" for i, key in enumerate(keys)]
        values = [f"{quote(name)} AS f{i}" for i, (name, _) in enumerate(self.view.features)]
        # The same order between equals as airloop.features.asof.
        ties = ", ".join(f"f{i} DESC NULLS LAST" for i in range(len(values)))
        rows = f"SELECT {', '.join([*columns, *values, *self._times()])} FROM source WHERE {where}"
        latest = (
            f"SELECT * FROM ({rows})"
            f" QUALIFY row_number() OVER (PARTITION BY {names} ORDER BY e DESC, r DESC, {ties}) = 1 ORDER BY {names}"
        )
        return f"SELECT count(*) FROM (SELECT DISTINCT {', '.join(columns)} FROM source WHERE {where})", latest

    def _refuse_missing(self, connection: duckdb.DuckDBPyConnection) -> None:
        view = self.view
        present = columns_of(connection, "source")
        keys = [key for key in self._keys() if not key.startswith("'")]
        wanted = [*keys, *(quote(name) for name, _ in view.features), *self._event_and_arrival()]
        missing = [c for c in dict.fromkeys(wanted) if c not in map(quote, present)]
        if missing:
            raise BadInput(
                f"{self.source} has no column {', '.join(missing)}, which feature view {view.table.view} needs",
                f"it has {', '.join(present)}",
            )


class Reading:
    """The number of entities and their rows, batch by batch; closes its connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, count: str, latest: str) -> None:
        self._connection = connection
        self._count = count
        self._latest = latest

    def __enter__(self) -> tuple[int, Iterator[pa.RecordBatch]]:
        row = self._connection.execute(self._count).fetchone()
        reader = self._connection.execute(self._latest).to_arrow_reader(ROWS_PER_CHUNK)
        return int(row[0]) if row else 0, iter(reader)

    def __exit__(self, *error: object) -> None:
        self._connection.close()


def find_lost(online: OnlineStore, view: FeastView, rows: LatestRows, *, since: int, workdir: Path | None) -> Lost:
    """
    Find the entities that are served a row which is there no more.

    :param rows: of the table as it is now.
    :param since: the snapshot that is online.
    """
    import pyarrow as pa

    keys: set[bytes] = set()
    found: list[pa.Table] = []
    for batch in rows.withdrawn(since, workdir):
        columns = [batch.column(f"k{i}") for i in range(len(view.keys))]
        encoded = encode_keys([(key, kind, c) for c, (key, kind) in zip(columns, view.keys, strict=True)]).to_pylist()
        served = online.served(view.table, encoded)
        times = zip(batch.column("e").to_pylist(), batch.column("r").to_pylist(), strict=True)
        lost = [served.get(key) == time for key, time in zip(encoded, times, strict=True)]
        keys.update(key for key, is_lost in zip(encoded, lost, strict=True) if is_lost)
        found.append(pa.Table.from_batches([batch]).drop_columns(["e", "r"]).filter(pa.array(lost, pa.bool_())))
    return Lost(frozenset(keys), pa.concat_tables(found)) if keys else Lost()
