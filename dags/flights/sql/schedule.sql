-- The flights to predict: all that are planned in the interval, with what the timetable says of them.
-- event_time: the planned departure. No column tells how the flight went.
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
    sched_dep                                                AS event_time
FROM flights
WHERE sched_dep >= $interval_start AND sched_dep < $interval_end;
