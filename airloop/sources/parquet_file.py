"""Parquet, streamed as Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as parquet

from airloop.errors import BadInput
from airloop.sources.spec import SourceSpec
from airloop.sources.streams import Data
from airloop.sources.types import name_of
from airloop.sources.values import cast

ROWS = 131_072
"""Rows decoded at a time."""


def inspect(data: Data, spec: SourceSpec) -> dict[str, str]:
    """Canonical types by column; ``nested`` where a table cannot hold it."""
    with _open(data) as file:
        schema = file.schema_arrow
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise BadInput(f"{data.label} has columns {', '.join(doubled)} more than once", "names must be different")
    return {field.name: name_of(field.type) or "nested" for field in schema}


def infer(data: Data, spec: SourceSpec, names: list[str]) -> dict[str, str]:
    found = inspect(data, spec)
    return {name: found[name] for name in names}


def read(data: Data, spec: SourceSpec, wanted: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """
    Batches with the columns asked for.

    :param wanted: canonical type by name in the file.
    :raises BadInput: the file is damaged, or a value does not fit its type exactly.
    """
    row = 1
    with _open(data) as file:
        batches = file.iter_batches(batch_size=ROWS, columns=list(wanted), use_threads=True)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as cause:
                if getattr(cause, "errno", None) is not None:
                    raise
                raise BadInput(f"{data.label} is damaged after row {row - 1:,}: {cause}", "send it again") from cause
            if batch is None:
                return
            yield pa.RecordBatch.from_pydict(
                {
                    name: cast(batch.column(name), kind, label=data.label, column=name, first_row=row)
                    for name, kind in wanted.items()
                }
            )
            row += batch.num_rows


@contextmanager
def _open(data: Data) -> Iterator[parquet.ParquetFile]:
    try:
        file = parquet.ParquetFile(data.path, memory_map=False, pre_buffer=False)
    except (pa.ArrowException, OSError) as cause:
        if getattr(cause, "errno", None) is not None:
            raise
        raise BadInput(f"{data.label} is a damaged or truncated Parquet file: {cause}", "send it again") from cause
    with file:
        yield file
