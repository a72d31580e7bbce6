-- How late a route has been in the last 28 days, one row per route and day T (00:00 UTC).
-- A flight counts in (T - 28 days, T] by when its arrival became known.
-- event_time: T. arrival_time: T + 15 minutes, when the figures are published. Delays in minutes; late: 15 or more.
-- Days are counted from 1970, UTC: a flight belongs to the midnight at or after the moment it became known.
WITH arrivals AS (
    SELECT
        origin, dest,
        ceil(epoch(known_at) / 86400)::BIGINT AS day,
        count(*)                              AS flights,
        count(*) FILTER (arr_delay >= 15)     AS late,
        sum(arr_delay::DOUBLE)                AS delay
    FROM flights
    WHERE status = 'arrived'
      AND known_at > $interval_start - INTERVAL 29 DAYS AND known_at < $interval_end
    GROUP BY ALL
), asked AS (                           -- the midnights of the interval
    SELECT unnest(range(
        ceil(epoch($interval_start) / 86400)::BIGINT, ceil(epoch($interval_end) / 86400)::BIGINT)) AS day
), steps AS (                           -- the days on which something happened, and beside them those asked for
    SELECT origin, dest, day, flights, late, delay, false AS is_asked FROM arrivals
    UNION ALL
    SELECT origin, dest, day, 0, 0, 0.0, true FROM (SELECT DISTINCT origin, dest FROM arrivals), asked
), rolling AS (
    SELECT
        origin, dest, day, is_asked,
        sum(late)    OVER four_weeks AS late_28d,
        sum(delay)   OVER four_weeks AS delay_28d,
        sum(flights) OVER four_weeks AS flights_28d
    FROM steps
    WINDOW four_weeks AS (PARTITION BY origin, dest ORDER BY day RANGE BETWEEN 27 PRECEDING AND CURRENT ROW)
)
SELECT
    origin, dest,
    late_28d / flights_28d                                   AS late_rate_28d,
    delay_28d / flights_28d                                  AS mean_delay_28d,
    flights_28d::BIGINT                                      AS flights_28d,
    make_timestamptz(day * 86_400_000_000)                   AS event_time,
    make_timestamptz(day * 86_400_000_000 + 900_000_000)     AS arrival_time
FROM rolling
WHERE is_asked AND flights_28d > 0;
