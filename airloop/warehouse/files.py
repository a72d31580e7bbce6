"""
Data files: chunks of rows become Parquet files with Iceberg's field ids and statistics, split by partition.

A file never holds more than ``rows_per_file`` rows, so that whatever rewrites one works in bounded memory.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg import types as ice
from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform, HourTransform, IdentityTransform, MonthTransform, YearTransform
from pyiceberg.typedef import Record
from pyiceberg.utils.truncate import truncate_upper_bound_binary_string, truncate_upper_bound_text_string

from airloop.errors import BadArgument, Unreachable, classify
from airloop.warehouse.schema import to_arrow

ROWS_PER_GROUP = 262_144
"""Rows of a Parquet row group: what a reader decodes, skips and gives to a thread at a time."""
ROWS_LOOKED_AT = 1_000
"""First rows of a file, by which it is chosen how its columns are written."""
BYTES_PER_GROUP = 64 << 20
"""Bytes in memory at which a row group ends early, for wide rows."""
OPEN_FILES = 32
"""Partitions written at once; the file of the one longest unused is closed. In a bucket each holds up to 10 MB."""
BOUND_LENGTH = 16
"""Characters or bytes of a text's bounds in the statistics."""

Rows: TypeAlias = pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch] | Iterable[pa.Table]


def chunks(rows: Rows, *, rows_per_chunk: int) -> Iterator[pa.Table]:
    """Cut and join rows into tables of at most ``rows_per_chunk`` rows, of :data:`BYTES_PER_GROUP` bytes at most."""
    held: list[pa.Table] = []
    count = size = 0
    for part in _tables(rows):
        start = 0
        while start < part.num_rows:
            piece = part.slice(start, rows_per_chunk - count)
            start += piece.num_rows
            held.append(piece)
            count += piece.num_rows
            size += piece.nbytes
            if count >= rows_per_chunk or size >= BYTES_PER_GROUP:
                yield pa.concat_tables(held)
                held, count, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def _tables(rows: Rows) -> Iterator[pa.Table]:
    if isinstance(rows, pa.Table):
        yield rows
        return
    if isinstance(rows, pa.RecordBatch):
        yield pa.Table.from_batches([rows])
        return
    for part in rows:
        if isinstance(part, pa.RecordBatch):
            yield pa.Table.from_batches([part])
        elif isinstance(part, pa.Table):
            yield part
        else:
            raise BadArgument(f"rows hold {type(part).__name__}", "give Arrow tables or record batches")


class DataFileWriter:
    """Write chunks that already have the table's schema; the files belong to nobody until they are committed."""

    def __init__(self, table: Table, *, rows_per_file: int, part: int = 1) -> None:
        """:param part: place of these files among those that other writers give to the same commit."""
        self._io: FileIO = table.io
        self._schema: Schema = table.schema()
        self._spec: PartitionSpec = table.spec()
        self._arrow = to_arrow(self._schema, ids=True)
        self._locations = table.location_provider()
        self._rows_per_file = rows_per_file
        self._part = part
        self._id = uuid.uuid4()
        self._open: OrderedDict[tuple[Any, ...], _OpenFile] = OrderedDict()
        self._done: list[DataFile] = []
        self.locations: list[str] = []
        self.rows = 0

    def write(self, chunk: pa.Table) -> None:
        """Add rows, in their order."""
        if not chunk.num_rows:
            return
        self.rows += chunk.num_rows
        # The same buffers under a schema that carries the field ids.
        chunk = pa.table([_with_ids(c, f.type) for c, f in zip(chunk.columns, self._arrow, strict=True)], self._arrow)
        for values, part in split(chunk, self._spec, self._schema):
            start = 0
            while start < part.num_rows:
                file = self._file(values, part.slice(start))
                piece = part.slice(start, self._rows_per_file - file.rows)
                file.write(piece)
                start += piece.num_rows
                if file.rows >= self._rows_per_file:
                    self._done.append(self._open.pop(values).close())

    def close(self) -> list[DataFile]:
        """Finish all files; they are on disk, or in the bucket."""
        while self._open:
            self._done.append(self._open.popitem(last=False)[1].close())
        self._done.sort(key=lambda f: f.file_path.rpartition("/")[2])
        return self._done

    def abort(self) -> None:
        """Remove whatever was written."""
        while self._open:
            self._open.popitem()[1].discard()
        remove(self._io, self.locations)
        self._done = []

    def _file(self, values: tuple[Any, ...], rows: pa.Table) -> _OpenFile:
        file = self._open.get(values)
        if file is not None:
            self._open.move_to_end(values)
            return file
        if len(self._open) >= OPEN_FILES:
            self._done.append(self._open.popitem(last=False)[1].close())
        key = None
        if self._spec.fields:
            pairs = zip(self._spec.fields, values, strict=True)
            key = PartitionKey([PartitionFieldValue(f, v) for f, v in pairs], self._spec, self._schema)
        # Readers order the files of one commit by name.
        name = f"{self._part}-{len(self.locations):05d}-{self._id}.parquet"
        location = self._locations.new_data_location(name, key)
        self.locations.append(location)
        file = self._open[values] = _OpenFile(self._io, location, self._schema, rows, self._spec.spec_id, key)
        return file


class _OpenFile:
    def __init__(
        self, io: FileIO, location: str, schema: Schema, rows: pa.Table, spec_id: int, key: PartitionKey | None
    ) -> None:
        """:param rows: those that come first; they are looked at, and not written."""
        self.rows = 0
        self._location = location
        self._schema = schema
        self._spec_id = spec_id
        self._key = key
        self._stream = io.new_output(location).create()
        self._writer = pq.ParquetWriter(
            self._stream,
            rows.schema,
            compression="zstd",
            store_decimal_as_integer=True,
            write_page_index=True,
            **_encodings(rows),
        )

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
        self.rows += rows.num_rows

    def close(self) -> DataFile:
        self._writer.close()
        size = self._stream.tell()
        self._stream.close()
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=self._location,
            file_format=FileFormat.PARQUET,
            partition=self._key.partition if self._key else Record(),
            file_size_in_bytes=size,
            sort_order_id=None,
            spec_id=self._spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics(self._writer.writer.metadata, self._schema),
        )

    def discard(self) -> None:
        # The disk may be full: closing fails again, and the file goes away anyway.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._stream.close()


def _encodings(rows: pa.Table) -> dict[str, Any]:
    """
    Whole numbers and times that grow from row to row, as places and ids do, are written plain, all others by
    dictionary: of values that never come twice a dictionary takes three times as long, and is in vain. Differences
    would be faster still (``DELTA_BINARY_PACKED``), but many releases of Iceberg's own reader in Spark refuse them.
    """
    if rows.num_rows < ROWS_LOOKED_AT or any(pa.types.is_nested(field.type) for field in rows.schema):
        return {}
    first = rows.slice(0, ROWS_LOOKED_AT)
    return {"use_dictionary": [name for name in rows.column_names if not _grows(first.column(name))]}


def _grows(column: pa.ChunkedArray) -> bool:
    if not (pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type)) or column.null_count:
        return False
    numbers = column.cast(pa.int64()).to_numpy()
    return bool((numbers[1:] > numbers[:-1]).all())


def remove(io: FileIO, locations: Iterable[str]) -> None:
    """Remove files that no snapshot names; one that is not there is fine, one that cannot be removed stays."""
    for location in locations:
        try:
            io.delete(location)
        except OSError as error:
            if isinstance(classify(error), Unreachable):
                break  # each of the others would be waited for too


def _with_ids(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    # Types that differ only in a nested field's metadata compare as equal; a cast then keeps the old one.
    return column if not pa.types.is_nested(type_) else pa.chunked_array([a.cast(type_) for a in column.chunks], type_)


def split(rows: pa.Table, spec: PartitionSpec, schema: Schema) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
    """Rows by partition: the partition's values as Iceberg keeps them, in their order, and its rows in theirs."""
    if not spec.fields:
        yield (), rows
        return
    codes = np.zeros(rows.num_rows, dtype=np.int64)
    values: list[tuple[Any, ...]] = [()]
    for field in spec.fields:
        source = schema.find_field(field.source_id)
        found, index = _transformed(rows.column(schema.find_column_name(field.source_id)), field.transform, source)
        codes = codes * len(found) + index
        values = [(*head, value) for head in values for value in found]
        # Renumber, so that the product over many fields stays small.
        used, codes = np.unique(codes, return_inverse=True)
        values = [values[i] for i in used]
    if len(values) == 1:
        yield values[0], rows
        return
    for code in sorted(range(len(values)), key=lambda i: [(v is not None, v) for v in values[i]]):
        yield values[code], rows.take(pa.array(np.flatnonzero(codes == code)))


def _transformed(column: pa.ChunkedArray, transform: Any, source: ice.NestedField) -> tuple[list[Any], Any]:
    """Distinct partition values of a column, and for each row which one it has."""
    if isinstance(transform, YearTransform | MonthTransform | DayTransform | HourTransform):
        unit = {"year": "Y", "month": "M", "day": "D", "hour": "h"}[str(transform)]
        # NumPy's units count from 1970 and round down, as Iceberg's do.
        moments = column.cast(pa.timestamp("us")) if pa.types.is_date(column.type) else column
        known = moments.is_valid().to_numpy(zero_copy_only=False)
        micros = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy()
        counts = micros.view("M8[us]").astype(f"M8[{unit}]").astype(np.int64)
        found, index = np.unique(counts, return_inverse=True)
        values: list[Any] = [int(v) for v in found]
        if not known.all():
            index = np.where(known, index, len(values))
            values.append(None)
        return values, index
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    function = transform.transform(source.field_type)
    # Iceberg keeps dates and times as numbers since 1970.
    dictionary = encoded.dictionary
    if pa.types.is_temporal(dictionary.type):
        dictionary = dictionary.cast(pa.int32() if pa.types.is_date(dictionary.type) else pa.int64())
    mapped = dictionary.to_pylist()
    if not isinstance(transform, IdentityTransform):
        mapped = [function(value) for value in mapped]
    distinct = list(dict.fromkeys(mapped))
    place = {value: i for i, value in enumerate(distinct)}
    return distinct, np.array([place[v] for v in mapped], dtype=np.int64)[encoded.indices.to_numpy()]


def statistics(parquet: Any, schema: Schema) -> dict[str, Any]:
    """Iceberg's statistics of one file from its Parquet footer; bounds of top-level columns only."""
    by_path = {f.name: f for f in schema.fields if isinstance(f.field_type, ice.PrimitiveType)}
    sizes: dict[int, int] = {}
    counts: dict[int, int] = {}
    nulls: dict[int, int] = {}
    lows: dict[int, Any] = {}
    highs: dict[int, Any] = {}
    unknown: set[int] = set()
    offsets = []
    for g in range(parquet.num_row_groups):
        group = parquet.row_group(g)
        first = group.column(0)
        offsets.append(min(first.dictionary_page_offset or first.data_page_offset, first.data_page_offset))
        for c in range(parquet.num_columns):
            column = group.column(c)
            field = by_path.get(column.path_in_schema)
            if field is None:
                continue
            key = field.field_id
            sizes[key] = sizes.get(key, 0) + column.total_compressed_size
            counts[key] = counts.get(key, 0) + column.num_values
            found = column.statistics
            if found is None or not found.has_null_count:
                unknown.add(key)
                continue
            nulls[key] = nulls.get(key, 0) + found.null_count
            if found.null_count == column.num_values:
                continue
            if not found.has_min_max or isinstance(field.field_type, ice.DecimalType):
                unknown.add(key)
                continue
            low, high = _plain(found.min_raw), _plain(found.max_raw)
            lows[key] = low if key not in lows else min(low, lows[key])
            highs[key] = high if key not in highs else max(high, highs[key])
    types = {f.field_id: f.field_type for f in by_path.values()}
    lower = {k: _bound(types[k], v, upper=False) for k, v in lows.items() if k not in unknown}
    upper = {k: _bound(types[k], v, upper=True) for k, v in highs.items() if k not in unknown}
    return {
        "record_count": parquet.num_rows,
        "column_sizes": sizes,
        "value_counts": counts,
        "null_value_counts": {k: v for k, v in nulls.items() if k not in unknown},
        "nan_value_counts": {},
        "lower_bounds": {k: v for k, v in lower.items() if v is not None},
        "upper_bounds": {k: v for k, v in upper.items() if v is not None},
        "split_offsets": sorted(offsets),
    }


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else value


def _bound(type_: Any, value: Any, *, upper: bool) -> bytes | None:
    if isinstance(type_, ice.StringType):
        text = value.decode() if isinstance(value, bytes) else value
        cut = truncate_upper_bound_text_string(text, BOUND_LENGTH) if upper else text[:BOUND_LENGTH]
        try:
            return None if cut is None else to_bytes(type_, cut)
        except UnicodeEncodeError:
            return None  # the next character would be half of a surrogate pair
    if isinstance(type_, ice.BinaryType):
        cut = truncate_upper_bound_binary_string(value, BOUND_LENGTH) if upper else value[:BOUND_LENGTH]
        return None if cut is None else to_bytes(type_, cut)
    return to_bytes(type_, value)
