-- How an airport of departure is doing, one row per airport and full hour T.
-- Arrivals, cancellations and diversions count by when they became known, departures by when the aircraft left.
-- A cancellation or diversion is taken as known 24 hours after the planned departure: the data does not say when.
-- event_time: T. arrival_time: T + 15 minutes, when the figures are published. Delays in minutes; late: 15 or more.
-- Hours are counted from 1970, UTC: an event belongs to the full hour at or after it.
WITH events AS (                        -- when something became known, and what
    SELECT
        origin, known_at AS moment,
        1 AS outcomes, (status = 'cancelled')::INT AS cancelled, (status = 'arrived')::INT AS arrived,
        (status = 'arrived' AND arr_delay >= 15)::INT AS late, 0 AS departed, 0.0::DOUBLE AS dep_delay
    FROM flights
    WHERE known_at > $interval_start - INTERVAL 25 HOURS AND known_at < $interval_end
    UNION ALL
    SELECT
        origin, actual_dep,
        0, 0, 0, 0, 1, dep_delay::DOUBLE
    FROM flights
    WHERE actual_dep > $interval_start - INTERVAL 4 HOURS AND actual_dep < $interval_end
), hourly AS (
    SELECT
        origin, ceil(epoch(moment) / 3600)::BIGINT AS hour,
        sum(outcomes) AS outcomes, sum(cancelled) AS cancelled, sum(arrived) AS arrived, sum(late) AS late,
        sum(departed) AS departed, sum(dep_delay) AS dep_delay
    FROM events
    GROUP BY ALL
), asked AS (                           -- the full hours of the interval
    SELECT unnest(range(
        ceil(epoch($interval_start) / 3600)::BIGINT, ceil(epoch($interval_end) / 3600)::BIGINT)) AS hour
), steps AS (                           -- the hours in which something happened, and beside them those asked for
    SELECT *, false AS is_asked FROM hourly
    UNION ALL
    SELECT origin, hour, 0, 0, 0, 0, 0, 0.0, true FROM (SELECT DISTINCT origin FROM hourly), asked
), rolling AS (
    SELECT
        origin, hour, is_asked,
        sum(late)      OVER three_hours AS late_3h,
        sum(arrived)   OVER three_hours AS arrived_3h,
        sum(dep_delay) OVER three_hours AS dep_delay_3h,
        sum(departed)  OVER three_hours AS departed_3h,
        sum(late)      OVER one_day     AS late_24h,
        sum(arrived)   OVER one_day     AS arrived_24h,
        sum(cancelled) OVER one_day     AS cancelled_24h,
        sum(outcomes)  OVER one_day     AS outcomes_24h
    FROM steps
    WINDOW
        three_hours AS (PARTITION BY origin ORDER BY hour RANGE BETWEEN 2 PRECEDING AND CURRENT ROW),
        one_day     AS (PARTITION BY origin ORDER BY hour RANGE BETWEEN 23 PRECEDING AND CURRENT ROW)
)
SELECT
    origin,
    late_3h / nullif(arrived_3h, 0)                          AS late_rate_3h,
    dep_delay_3h / nullif(departed_3h, 0)                    AS mean_dep_delay_3h,
    late_24h / nullif(arrived_24h, 0)                        AS late_rate_24h,
    cancelled_24h / outcomes_24h                             AS cancelled_share_24h,
    make_timestamptz(hour * 3_600_000_000)                   AS event_time,
    make_timestamptz(hour * 3_600_000_000 + 900_000_000)     AS arrival_time
FROM rolling
WHERE is_asked AND outcomes_24h > 0;
