"""
A digest of rows that says whether two tables hold the same, however they are stored.

SHA-256 over, in this order: ``airloop.rows.1``; the schema as JSON, ``[[name, type], …]``; blocks of 65,536 rows
(the last one may be shorter), each column after column; the number of rows. Neither files, chunks, compression nor
the way Arrow holds a column enter it:

=================  ================================================================================================
type               ``dictionary`` counts as its values' type, ``large_string`` as ``string``, and so on
missing            one bit for each value, least significant first; the value itself counts as zero
numbers, times     their bytes, little-endian; every NaN as one NaN, ``-0.0`` as it is
texts, bytes       lengths as 32-bit numbers, then all bytes
lists              lengths, then the elements of the block as one column
structs            the fields, one column after another
=================  ================================================================================================

The rows count in the order in which they are read, because training may depend on it. Sort them first to compare
tables whose order means nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from airloop.config import Config
    from airloop.warehouse.refs import TableRef

VERSION = b"airloop.rows.1"
ROWS_PER_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class RowsDigest:
    """What :func:`digest` found."""

    sha256: str
    """Hex."""
    rows: int
    columns: tuple[tuple[str, str], ...]
    """Name and canonical type."""


def digest(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> RowsDigest:
    """Digest of rows in the order given; memory for one block."""
    columns = tuple((f.name, str(_plain_type(f.type))) for f in schema)
    total = hashlib.sha256(VERSION)
    total.update(json.dumps(columns).encode())
    rows = 0
    for block in _blocks(batches):
        rows += block.num_rows
        for column in block.columns:
            _feed(total, _plain(column.combine_chunks()))
    total.update(rows.to_bytes(8, "little"))
    return RowsDigest(total.hexdigest(), rows, columns)


def digest_table(config: Config, ref: TableRef, *, in_order: bool = True) -> RowsDigest:
    """
    Digest of a table at a snapshot.

    :param in_order: as the rows were written; False: sorted by all columns, NULL last.
    :raises NotFound: the table or the snapshot is not there.
    """
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.sort import in_order as sorted_rows

    reader = Warehouse.open(config).scan(ref)
    if in_order:
        return digest(reader.schema, reader)
    tables = (pa.Table.from_batches([batch]) for batch in reader)
    ordered = sorted_rows(config, tables, reader.schema, reader.schema.names)
    return digest(reader.schema, (batch for table in ordered for batch in table.to_batches()))


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of :data:`ROWS_PER_BLOCK`, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        while count + table.num_rows >= ROWS_PER_BLOCK:
            taken = ROWS_PER_BLOCK - count
            yield pa.concat_tables([*held, table.slice(0, taken)])
            table, held, count = table.slice(taken), [], 0
        if table.num_rows:
            held.append(table)
            count += table.num_rows
    if held:
        yield pa.concat_tables(held)


def _plain_type(type_: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(type_):
        return _plain_type(type_.value_type)
    if types.is_large_string(type_) or types.is_string_view(type_):
        return pa.string()
    if types.is_large_binary(type_) or types.is_binary_view(type_):
        return pa.binary()
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return pa.list_(pa.field("element", _plain_type(type_.value_type)))
    if types.is_struct(type_):
        return pa.struct([pa.field(f.name, _plain_type(f.type)) for f in type_])
    return type_


def _plain(array: Any) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array if array.type == _plain_type(array.type) else array.cast(_plain_type(array.type))


def _feed(total: Any, array: pa.Array) -> None:
    """Add one column of a block."""
    type_, types = array.type, pa.types
    total.update(_bits(pc.is_valid(array)))
    if types.is_null(type_):
        return
    if types.is_struct(type_):
        for index in range(type_.num_fields):
            # With the struct's own gaps, which its children may fill with anything.
            _feed(total, pc.struct_field(array, [index]))
    elif types.is_list(type_):
        total.update(_numbers(pc.fill_null(pc.list_value_length(array), 0)))
        _feed(total, pc.list_flatten(array))
    elif types.is_string(type_) or types.is_binary(type_):
        filled = array.cast(pa.binary())
        total.update(_numbers(pc.fill_null(pc.binary_length(filled), 0)))
        total.update(b"".join(value for value in filled.to_pylist() if value))
    elif types.is_boolean(type_):
        total.update(_bits(pc.fill_null(array, False)))
    elif types.is_decimal(type_):
        _feed(total, array.cast(pa.string()))
    else:
        total.update(_numbers(_without_gaps(array)))


def _without_gaps(array: pa.Array) -> pa.Array:
    if pa.types.is_floating(array.type):
        nan = pa.scalar(float("nan"), array.type)
        array = pc.if_else(pc.is_nan(array), nan, array)
    zero = pa.array([0], pa.int64() if array.type.bit_width == 64 else pa.int32())
    if pa.types.is_temporal(array.type):
        array = array.view(zero.type) if array.offset == 0 else pa.concat_arrays([array]).view(zero.type)
    return pc.fill_null(array, pa.scalar(0, array.type))


def _numbers(array: pa.Array) -> memoryview | bytes:
    """The values' bytes; there is no gap among them."""
    return memoryview(array.to_numpy(zero_copy_only=False)).cast("B") if len(array) else b""


def _bits(array: pa.Array) -> bytes:
    import numpy as np

    return np.packbits(array.to_numpy(zero_copy_only=False).astype(bool), bitorder="little").tobytes()
