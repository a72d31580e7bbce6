-- How late a carrier's flights have been lately, one row per carrier and full hour T.
-- A flight counts in (T - window, T] by when its arrival became known, never by when it was planned.
-- event_time: T. arrival_time: T + 15 minutes, when the figures are published. Delays in minutes; late: 15 or more.
-- A correction of an older flight changes these figures when the SQL runs for its interval again.
-- Hours are counted from 1970, UTC: a flight belongs to the full hour at or after the moment it became known.
WITH arrivals AS (
    SELECT
        carrier,
        ceil(epoch(known_at) / 3600)::BIGINT AS hour,
        count(*)                             AS flights,
        count(*) FILTER (arr_delay >= 15)    AS late,
        sum(arr_delay::DOUBLE)               AS delay
    FROM flights
    WHERE status = 'arrived'
      AND known_at > $interval_start - INTERVAL 169 HOURS AND known_at < $interval_end
    GROUP BY ALL
), asked AS (                           -- the full hours of the interval
    SELECT unnest(range(
        ceil(epoch($interval_start) / 3600)::BIGINT, ceil(epoch($interval_end) / 3600)::BIGINT)) AS hour
), steps AS (                           -- the hours in which something happened, and beside them those asked for
    SELECT carrier, hour, flights, late, delay, false AS is_asked FROM arrivals
    UNION ALL
    SELECT carrier, hour, 0, 0, 0.0, true FROM (SELECT DISTINCT carrier FROM arrivals), asked
), rolling AS (
    SELECT
        carrier, hour, is_asked,
        sum(late)    OVER six_hours  AS late_6h,
        sum(delay)   OVER six_hours  AS delay_6h,
        sum(flights) OVER six_hours  AS flights_6h,
        sum(late)    OVER seven_days AS late_7d,
        sum(delay)   OVER seven_days AS delay_7d,
        sum(flights) OVER seven_days AS flights_7d
    FROM steps
    WINDOW
        six_hours  AS (PARTITION BY carrier ORDER BY hour RANGE BETWEEN 5 PRECEDING AND CURRENT ROW),
        seven_days AS (PARTITION BY carrier ORDER BY hour RANGE BETWEEN 167 PRECEDING AND CURRENT ROW)
)
SELECT
    carrier,
    late_6h / nullif(flights_6h, 0)                          AS late_rate_6h,
    delay_6h / nullif(flights_6h, 0)                         AS mean_delay_6h,
    flights_6h::BIGINT                                       AS flights_6h,
    late_7d / flights_7d                                     AS late_rate_7d,
    delay_7d / flights_7d                                    AS mean_delay_7d,
    flights_7d::BIGINT                                       AS flights_7d,
    make_timestamptz(hour * 3_600_000_000)                   AS event_time,
    make_timestamptz(hour * 3_600_000_000 + 900_000_000)     AS arrival_time
FROM rolling
WHERE is_asked AND flights_7d > 0;
