-- Did the flight arrive 15 or more minutes late? One row per flight that arrived, once that is known.
-- event_time: the planned departure, when the question is asked. arrival_time: an hour after the landing.
-- Cancelled and diverted flights have no arrival delay, so they get no label: the model answers for flights that
-- take place. They still count in the airports' cancellation rates.
-- Reaches back 35 days, so that flights which came late or were corrected get their labels too.
SELECT
    concat_ws('/', make_date(year, month, day), carrier, flight, origin) AS flight_id,
    carrier, origin, dest, tailnum,
    (sched_dep_time // 100)::BIGINT                          AS hour,      -- by the local clock, 0 to 23
    isodow(make_date(year, month, day))::BIGINT              AS weekday,   -- local, 1 is Monday
    month::BIGINT                                            AS month,
    distance::DOUBLE                                         AS distance,  -- miles
    -- Difference of the two clocks, which may be in different zones and on different days.
    ((sched_arr_time // 100 * 60 + sched_arr_time % 100 - sched_dep_time // 100 * 60 - sched_dep_time % 100 + 1440)
        % 1440)::DOUBLE                                      AS sched_minutes,
    (arr_delay >= 15)::BIGINT                                AS label,
    sched_dep                                                AS event_time,
    known_at                                                 AS arrival_time
FROM flights
WHERE status = 'arrived'
  AND known_at >= $interval_start - INTERVAL 35 DAYS AND known_at < $interval_end;
