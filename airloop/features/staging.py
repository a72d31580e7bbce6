"""Rows of one view between the engine and the online store: put aside in columns, read back and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadInput
from airloop.faults import point
from airloop.features.online import Chunk, OnlineTable

ROWS_PER_PART = 250_000
"""Rows in the order of their keys that are held in memory, unless that would be more than :data:`MOST_PARTS` parts."""
MOST_PARTS = 16
"""How often all rows are read to be put in order."""

Columns = Callable[[Chunk], dict[str, pa.Array]]
Places = np.ndarray[Any, np.dtype[np.uint64]]
Sample = tuple[bytes, tuple[bytes, ...]]


class Staging:
    """
    Staged rows, in a file that is gone with its process.

    Columns are ``key`` and ``v0``, ``v1``… by feature, then those that the store wants.
    """

    def __init__(self, table: OnlineTable, more: Columns, *, key_suffix: bytes = b"") -> None:
        """
        :param more: the store's own columns of a chunk.
        :param key_suffix: what the store writes behind each entity key.
        """
        self.table = table
        self.rows = 0
        self.bytes = 0
        self._more = more
        self._suffix = key_suffix
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the store has taken the rows over
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._samples: list[list[Sample]] = []

    def add(self, chunk: Chunk) -> None:
        """Stage a chunk."""
        keys = pc.binary_join_element_wise(chunk.keys, self._suffix, b"") if self._suffix else chunk.keys
        columns = {"key": keys, **{f"v{i}": values for i, values in enumerate(chunk.values)}, **self._more(chunk)}
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)
        self._samples.append([(key + self._suffix, values) for key, values in chunk.samples])
        self.rows += batch.num_rows
        self.bytes += batch.nbytes

    def verify(self, expected: int) -> None:
        """
        Read back what was staged: its count, and the samples byte by byte.

        :raises BadInput: something differs, or an entity is staged twice.
        """
        if self._writer is not None:
            self._writer.close()
        rows = 0
        hashes = [np.empty(0, np.int64)]
        for batch, samples in zip(self.batches(), self._samples, strict=True):
            rows += batch.num_rows
            keys = batch.column(0)
            hashes.append(np.fromiter(map(hash, keys.to_pylist()), np.int64, len(keys)))
            for key, values in samples:
                at = pc.index(keys, pa.scalar(key, pa.binary())).as_py()
                found = () if at < 0 else tuple(c[at].as_py() for c in batch.columns[1 : 1 + len(values)])
                if found != values:
                    raise BadInput(
                        f"{self.table.view}: what was staged for entity {key!r} is not what Feast would serve",
                        "report this; the old values are still served",
                    )
        if rows != expected:
            raise BadInput(
                f"{self.table.view}: {rows:,} rows were staged, the feature table has {expected:,}",
                "run the task again; the old values are still served",
            )
        # Two keys of one hash by chance: once in ten million runs of a million entities, and not again in the next.
        together = np.sort(np.concatenate(hashes))
        if (together[1:] == together[:-1]).any():
            raise BadInput(
                f"{self.table.view}: two of the rows to be served have the same entity key",
                "the feature table has two spellings of one entity; see the view's entity columns",
            )
        point("materialize:staged")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The staged rows, as often as they are asked for."""
        if self._writer is None:
            return iter(())
        self._file.seek(0)
        return iter(pa.ipc.open_stream(self._file))

    def by_key(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The staged rows in the order of their keys, so many at a time; a part of them is held in memory."""
        # A copy of each batch's keys: a slice of it would keep the batch.
        keys = pa.chunked_array([pa.concat_arrays([batch.column(0)]) for batch in self.batches()], pa.binary())
        order = pc.sort_indices(keys).to_numpy()
        place = np.empty_like(order)
        place[order] = np.arange(len(order), dtype=order.dtype)
        del keys, order
        size = max(ROWS_PER_PART, -(-self.rows // MOST_PARTS))
        for first in range(0, self.rows, size):
            part, places = self._part(place, first, first + size)
            order = pa.array(np.argsort(places))
            for at in range(0, len(order), rows):
                yield part.take(order.slice(at, rows))

    def _part(self, place: Places, first: int, end: int) -> tuple[pa.RecordBatch, Places]:
        """Rows whose place in the order is in a range, and their places."""
        found, places, at = [], [], 0
        for batch in self.batches():
            there = place[at : at + batch.num_rows]
            at += batch.num_rows
            mine = np.flatnonzero((there >= first) & (there < end))
            found.append(batch.take(pa.array(mine)))
            places.append(there[mine])
        # In one piece: rows are taken from several three times as slowly.
        return pa.concat_batches(found), np.concatenate(places)

    def close(self) -> None:
        """Remove the rows."""
        self._file.close()
