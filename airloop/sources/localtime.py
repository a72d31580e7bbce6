"""
Local wall-clock times to instants, right across daylight saving; DuckDB functions for derived columns.

``local_to_utc(timestamp, zone)``
    The instant of a local date and time. A time that the clocks skipped (New York, 2013-03-10 02:30) names no
    instant: NULL. A time that they showed twice (2013-11-03 01:30) is taken for the first of the two.

``local_hhmm(date, hhmm, zone)``
    The same for a local date and a time written as a number: 517 is 05:17, 2400 the midnight at the day's end. What
    is no time of day (2360, 175, -5) is NULL, as are a NULL date and a NULL number.

A NULL lets the data gate name and quarantine the row, where a guess would silently move it by an hour. The rules are
those of :mod:`zoneinfo`. DuckDB's own ``AT TIME ZONE`` takes the second of two instants and moves skipped times.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from airloop.errors import BadArgument

_DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1)
_SKIPPED = np.iinfo(np.int64).min
_HHMM = """
    CREATE OR REPLACE TEMP MACRO local_hhmm(day, hhmm, zone) AS
        local_to_utc(
            CASE
                WHEN hhmm BETWEEN 0 AND 2400 AND hhmm % 100 < 60
                THEN CAST(day AS TIMESTAMP) + to_minutes(CAST(hhmm // 100 * 60 + hhmm % 100 AS BIGINT))
            END,
            zone
        )
"""


def add_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions known to a connection; in it, times without a zone are UTC from then on."""
    connection.execute("SET TimeZone = 'UTC'")
    clocks: dict[str, _Clock] = {}

    def local_to_utc(local: pa.ChunkedArray, zone: pa.ChunkedArray) -> pa.Array:
        local, zone = _whole(local), _whole(zone)
        names = zone.unique().to_pylist()
        micros = local.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        found = np.full(len(local), _SKIPPED, dtype=np.int64)
        for name in filter(None, names):
            clock = clocks.setdefault(name, _Clock(name))
            here = slice(None) if len(names) == 1 else np.asarray(zone.to_pylist()) == name
            found[here] = clock.instants(micros[here])
        missing = (found == _SKIPPED) | np.asarray(local.is_null())
        return pa.array(found, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC"))

    connection.create_function(
        "local_to_utc",
        local_to_utc,
        ["timestamp", "varchar"],
        "timestamp with time zone",
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )
    connection.execute(_HHMM)


class _Clock:
    """The wall clock of a zone. Most days have one offset; on the others each time is looked up."""

    def __init__(self, name: str) -> None:
        try:
            self._zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as cause:
            raise BadArgument(f"there is no time zone {name!r}", "write America/New_York, UTC…") from cause
        self._offsets: dict[int, int | None] = {}

    def instants(self, local: np.ndarray) -> np.ndarray:
        """
        Microseconds UTC of microseconds local, both from 1970; the least integer where there is none.

        :param local: shape ``(n,)``.
        """
        found = np.empty_like(local)
        days = local // _DAY
        for day in np.unique(days).tolist():
            of_day = days == day if len(days) else days
            offset = self._offset(day)
            if offset is not None:
                found[of_day] = local[of_day] - offset
            else:
                values, places = np.unique(local[of_day], return_inverse=True)
                found[of_day] = np.array([self._instant(value) for value in values.tolist()], dtype=np.int64)[places]
        return found

    def _offset(self, day: int) -> int | None:
        """Microseconds ahead of UTC of a local day, if it is the same from the day before to the day after."""
        if day not in self._offsets:
            try:
                around = {self._ahead(_EPOCH + timedelta(days=day + d), fold) for d in (-1, 0, 1, 2) for fold in (0, 1)}
            except OverflowError:  # next to the first or the last year that Python knows
                around = set()
            self._offsets[day] = around.pop() if len(around) == 1 else None
        return self._offsets[day]

    def _instant(self, value: int) -> int:
        try:
            local = _EPOCH + timedelta(microseconds=value)
            first = local.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
        except OverflowError:
            return _SKIPPED
        if first.astimezone(self._zone).replace(tzinfo=None) != local:
            return _SKIPPED
        return value - self._ahead(local, 0)

    def _ahead(self, local: datetime, fold: int) -> int:
        offset = local.replace(tzinfo=self._zone, fold=fold).utcoffset()
        assert offset is not None
        return offset // timedelta(microseconds=1)


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
