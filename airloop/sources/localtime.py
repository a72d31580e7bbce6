"""
Local wall-clock times to instants, right across daylight saving; DuckDB macros for derived columns.

``local_to_utc(timestamp, zone)``
    The instant of a local date and time. A time that the clocks skipped (New York, 2013-03-10 02:30) names no
    instant: NULL. A time that they showed twice (2013-11-03 01:30) is taken for the first of the two.

``local_hhmm(date, hhmm, zone)``
    The same for a local date and a time written as a number: 517 is 05:17, 2400 the midnight at the day's end. What
    is no time of day (2360, 175, -5) is NULL, as are a NULL date and a NULL number.

A NULL lets the data gate name and quarantine the row, where a guess would silently move it by an hour. Clocks that
were set back by 30, 60 or 120 minutes are covered, which is every daylight saving since 1970.
"""

from __future__ import annotations

import duckdb

MACROS = (
    """
    CREATE OR REPLACE TEMP MACRO _instant(local, zone, instant) AS
        CASE
            -- Clocks go back: DuckDB takes the second of two instants with the same wall clock.
            WHEN timezone(zone, instant - INTERVAL 60 MINUTE) = local THEN instant - INTERVAL 60 MINUTE
            WHEN timezone(zone, instant - INTERVAL 30 MINUTE) = local THEN instant - INTERVAL 30 MINUTE
            WHEN timezone(zone, instant - INTERVAL 120 MINUTE) = local THEN instant - INTERVAL 120 MINUTE
            -- Clocks go forward: the way back ends at another time than it came from.
            WHEN timezone(zone, instant) = local THEN instant
        END
    """,
    "CREATE OR REPLACE TEMP MACRO local_to_utc(local, zone) AS _instant(local, zone, timezone(zone, local))",
    """
    CREATE OR REPLACE TEMP MACRO _local_hhmm(day, hhmm) AS
        CASE
            WHEN hhmm BETWEEN 0 AND 2400 AND hhmm % 100 < 60
            THEN CAST(day AS TIMESTAMP) + to_minutes(CAST(hhmm // 100 * 60 + hhmm % 100 AS BIGINT))
        END
    """,
    "CREATE OR REPLACE TEMP MACRO local_hhmm(day, hhmm, zone) AS local_to_utc(_local_hhmm(day, hhmm), zone)",
)


def add_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the macros known to a connection; times without a zone are UTC in it from then on."""
    connection.execute("SET TimeZone = 'UTC'")
    for macro in MACROS:
        connection.execute(macro)
