"""
From files to the rows that a run brings: those of its interval, late and corrected ones, each key once.

The rows are staged in one Arrow file of the step's own folder, so that every check is done before the first row
reaches the table, and memory is bounded by a chunk whatever the files' size. Keys are compared by DuckDB, which spills
to disk, and only if the table's writer has found that some come twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airloop.contract import Interval
from airloop.errors import BadInput
from airloop.sources.derive import Deriver, microseconds
from airloop.sources.files import SourceFile
from airloop.sources.read import Plan, plan, rows
from airloop.sources.spec import SourceSpec, duration
from airloop.sources.values import check, shown
from airloop.warehouse.ahead import ahead
from airloop.warehouse.store import storing

CHUNK = 131_072
"""Rows worked on at a time, at most: larger chunks are not faster."""


@dataclass(slots=True)
class Counts:
    """What became of the rows of the files."""

    rows_in: int = 0
    """Data rows read."""
    rows_outside: int = 0
    """Of other intervals: later ones, and earlier ones beyond the lateness."""
    rows_late: int = 0
    """Of earlier intervals, within the lateness; compared with the table."""
    rows_undated: int = 0
    """Without a value in the interval column, so that no run owns them; brought by every run."""
    rows_duplicate: int = 0
    """Dropped because another row of the files is the same in every column."""
    rows_superseded: int = 0
    """Dropped because a later file has another version of the row."""


@dataclass(slots=True)
class Selection:
    """Rows ready for the table, but that keys may come twice until :meth:`settle` was called."""

    schema: pa.Schema
    counts: Counts
    added: dict[str, str]
    """Canonical types of columns that the files have without the source declaring them."""
    report: tuple[str, ...]
    """Accepted differences from the declaration, for people."""
    staged: Path
    _batch: str
    _labels: list[str]
    """Names of the streams by their position."""
    _doubles: Callable[[], pa.Array] | None
    _dropped: pa.Array = field(default_factory=lambda: pa.array([], pa.int64()))

    @property
    def rows(self) -> int:
        c = self.counts
        return c.rows_in - c.rows_outside - c.rows_duplicate - c.rows_superseded

    @property
    def settled(self) -> bool:
        """Whether each key comes once."""
        return self._doubles is None

    def settle(self) -> None:
        """
        Leave out, and count, rows that give way to another one of the same key.

        :raises BadInput: two rows of one file have the same key and differ.
        """
        if self._doubles is not None:
            self._dropped = self._doubles()
            self._doubles = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in the order of the files, with the table's schema; can be asked for more than once."""
        with pa.OSFile(str(self.staged)) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                # A batch is of one stream.
                label = self._labels[batch.column("_file")[0].as_py()]
                if len(self._dropped):
                    keep = pc.invert(pc.is_in(batch.column("_place"), value_set=self._dropped))
                    batch = batch.filter(keep)
                columns = {name: batch.column(name) for name in batch.schema.names} | {
                    "_batch": pa.repeat(pa.scalar(self._batch, pa.string()), batch.num_rows),
                    "_source": pa.repeat(pa.scalar(label, pa.string()), batch.num_rows),
                }
                yield pa.record_batch([columns[f.name] for f in self.schema], schema=self.schema)


def select(
    spec: SourceSpec,
    files: Sequence[SourceFile],
    interval: Interval | None,
    *,
    batch: str,
    known: Mapping[str, str],
    workdir: Path,
    rows_per_chunk: int,
    memory_mb: int,
    threads: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Selection:
    """
    Read the files and keep what a run of the interval brings.

    :param interval: None for a snapshot source, all of whose rows are kept.
    :param batch: value of ``_batch``.
    :param known: canonical types of undeclared columns that the table has already.
    :param memory_mb: of DuckDB, MiB.
    :param progress: called with the number of rows read since the last call.
    :raises BadInput: a file, row, value, key or date that cannot be used.
    :raises SchemaMismatch: the files' columns differ from the declared ones in a way that no rule allows.
    """
    planned = plan(spec, files, known)
    counts = Counts()
    schema = spec.table_schema(planned.added)
    staged = workdir / "rows.arrow"
    own = [f for f in schema if f.name not in ("_batch", "_source")]
    stage = pa.schema([*own, pa.field("_file", pa.int32()), pa.field("_place", pa.int64())])
    window = _Window(spec, interval) if interval and spec.interval_column else None
    labels = [data.label for data, _ in planned.parts]
    place = 0
    with (
        Deriver(spec, planned.added, memory_mb=memory_mb, threads=threads) as deriver,
        pa.OSFile(str(staged), "wb") as file,
        pa.ipc.new_file(file, stage, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
    ):
        for position, label, first_row, chunk in ahead(_chunks(spec, planned, min(rows_per_chunk, CHUNK))):
            counts.rows_in += chunk.num_rows
            progress(chunk.num_rows)
            numbers = _count_from(first_row, chunk.num_rows)
            if window is not None:
                moments = deriver.moments(chunk, label=label, first_row=first_row)
                kept = window.mask(moments, counts, label=label, first_row=first_row)
                if kept.true_count < len(kept):
                    chunk, numbers = chunk.filter(kept), numbers.filter(kept)
            if not chunk.num_rows:
                continue
            done = deriver.derived(chunk, label=label, first_row=first_row).combine_chunks()
            for part in done.to_batches():
                _check_derived(spec, part, label, numbers)
            count = done.num_rows
            metadata = {
                "_row": numbers,
                "_file": pa.repeat(pa.scalar(position, pa.int32()), count),
                "_place": _count_from(place, count),
            }
            place += count
            columns = {name: done.column(name) for name in done.column_names} | metadata
            writer.write_table(pa.table([columns[n] for n in stage.names], names=stage.names).cast(stage))
    for source in files:
        source.check_unchanged()
    doubles = partial(_without_doubles, spec, staged, schema, labels, counts, workdir, memory_mb, threads)
    return Selection(schema, counts, planned.added, planned.report, staged, batch, labels, doubles)


def _count_from(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))


def _chunks(spec: SourceSpec, planned: Plan, most: int) -> Iterator[tuple[int, str, int, pa.Table]]:
    """Batches of one stream joined or cut to about ``most`` rows: each chunk costs a query or two."""
    held: list[pa.RecordBatch] = []
    count = first = 0
    at, label = -1, ""
    for position, data, row, batch in rows(spec, planned):
        for start in range(0, batch.num_rows, most):
            piece = batch.slice(start, most)
            if held and (position != at or count + piece.num_rows > most):
                yield at, label, first, pa.Table.from_batches(held)
                held, count = [], 0
            if not held:
                first = row + start
            at, label = position, data.label
            held.append(piece)
            count += piece.num_rows
    if held:
        yield at, label, first, pa.Table.from_batches(held)


class _Window:
    """Which rows a run of an interval brings, and which dates cannot be right."""

    def __init__(self, spec: SourceSpec, interval: Interval) -> None:
        self._spec = spec
        self._start = microseconds(interval.start)
        self._end = microseconds(interval.end)
        late_from = spec.late_from(interval)
        self._late_from = microseconds(late_from) if late_from else None
        bounds = [] if spec.not_after is None else [(spec.not_after, f"not_after {spec.not_after.isoformat()}")]
        ahead = duration(spec.max_future)
        if ahead is not None:
            # The clock decides only whether the file is refused, never what is made of it.
            bounds.append((datetime.now(UTC) + ahead, f"now by {spec.max_future} (max_future) or more"))
        self._limit: datetime | None = None
        self._limit_name = ""
        if bounds:
            self._limit, self._limit_name = min(bounds)

    def mask(self, moments: pa.Array, counts: Counts, *, label: str, first_row: int) -> pa.Array:
        """
        True for the rows to keep.

        :raises BadInput: a date that cannot be right.
        """
        self._refuse_impossible(moments, label, first_row)
        undated = pc.is_null(moments)
        inside = pc.less(moments, self._end)
        if self._late_from is not None:
            inside = pc.and_(inside, pc.greater_equal(moments, self._late_from))
        kept = pc.or_(pc.fill_null(inside, False), undated)
        late = pc.and_(pc.fill_null(inside, False), pc.fill_null(pc.less(moments, self._start), False))
        counts.rows_undated += undated.true_count
        counts.rows_late += late.true_count
        counts.rows_outside += len(kept) - kept.true_count
        return kept

    def _refuse_impossible(self, moments: pa.Array, label: str, first_row: int) -> None:
        if self._limit is None:
            return
        beyond = pc.fill_null(pc.greater_equal(moments, microseconds(self._limit)), False)
        if beyond.true_count:
            index = pc.index(beyond, pa.scalar(True)).as_py()
            raise BadInput(
                f"{label}: row {first_row + index:,}: {self._spec.interval_column} "
                f"{moments[index].as_py().isoformat()} is after {self._limit_name}",
                "correct the file, or the limit in the source if such dates are right",
            )


def _check_derived(spec: SourceSpec, part: pa.RecordBatch, label: str, numbers: pa.Array) -> None:
    names = [*spec.derive, *(name for name, column in spec.columns.items() if column.zone)]
    if names:
        required = {name for name in names if spec.required(name)}
        nan_allowed = {name for name, derived in spec.derive.items() if derived.allow_nan}
        check(part.select(names), required, nan_allowed, label=label, first_row=0, rows=numbers)


def _without_doubles(
    spec: SourceSpec,
    staged: Path,
    schema: pa.Schema,
    labels: Sequence[str],
    counts: Counts,
    workdir: Path,
    memory_mb: int,
    threads: int,
) -> pa.Array:
    """
    Places of the rows that give way to another row of the same key.

    Rows that are the same in every column: the one in the last file, and there the first, stays. A later file's
    version of a row supersedes an earlier file's.

    :raises BadInput: two rows of one file have the same key and differ.
    """
    from pyarrow.dataset import dataset

    key = ", ".join(f'"{name}"' for name in spec.key)
    content = ", ".join(f'"{name}" := "{name}"' for name in schema.names if not name.startswith("_"))
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MB",
        "threads": threads,
        "temp_directory": str(workdir / "spill"),
    }
    with storing(f"comparing the keys of {spec.name}"), duckdb.connect(config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("staged", dataset(staged, format="ipc"))
        connection.execute(f"CREATE TEMP TABLE twice AS SELECT {key} FROM staged GROUP BY ALL HAVING count(*) > 1")
        if not connection.execute("SELECT count(*) FROM twice").fetchall()[0][0]:
            return pa.array([], pa.int64())
        connection.execute(
            f"CREATE TEMP TABLE double AS "
            f"SELECT *, struct_pack({content}) AS content FROM staged SEMI JOIN twice USING ({key})"
        )
        conflicts = connection.execute(
            f"SELECT {key}, _file, list(_row ORDER BY _row) FROM double "
            f"GROUP BY {key}, _file HAVING count(DISTINCT content) > 1 ORDER BY min(_place)"
        ).fetchall()
        if conflicts:
            raise _conflict(spec, labels, conflicts)
        dropped = connection.execute(
            "SELECT _place, content IS NOT DISTINCT FROM first_value(content) OVER best AS identical FROM double "
            f"WINDOW best AS (PARTITION BY {key} ORDER BY _file DESC, _place) "
            "QUALIFY row_number() OVER best > 1 ORDER BY _place"
        ).to_arrow_table()
    identical = dropped.column("identical").combine_chunks().true_count
    counts.rows_duplicate += identical
    counts.rows_superseded += dropped.num_rows - identical
    return dropped.column("_place").combine_chunks()


def _conflict(spec: SourceSpec, labels: Sequence[str], conflicts: list[tuple[Any, ...]]) -> BadInput:
    *values, position, row_numbers = conflicts[0]
    key = ", ".join(f"{name}={shown(str(value))}" for name, value in zip(spec.key, values, strict=True))
    numbers = list(row_numbers)
    named = ", ".join(f"{number:,}" for number in numbers[:5]) + (" …" if len(numbers) > 5 else "")
    more = f"; {len(conflicts) - 1:,} more keys are like it" if len(conflicts) > 1 else ""
    return BadInput(
        f"{labels[position]}: rows {named} have the same key ({key}) and differ{more}",
        "keep one of them; a corrected row belongs into a later file",
    )
