-- What an aircraft's last flight brought, one row per landing that became known in the interval.
-- event_time: the landing (planned departure + departure delay + air time).
-- arrival_time: an hour later, when the delay is taken as known (room for taxiing and reporting). Delays in minutes.
SELECT
    tailnum,
    arr_delay::DOUBLE              AS prev_arr_delay,
    dep_delay::DOUBLE              AS prev_dep_delay,
    distance::DOUBLE               AS prev_distance,  -- miles
    known_at - INTERVAL 60 MINUTES AS event_time,
    known_at                       AS arrival_time
FROM flights
WHERE status = 'arrived' AND tailnum IS NOT NULL
  AND known_at >= $interval_start AND known_at < $interval_end
-- An aircraft lands once a minute at most; where the data says otherwise, the flight that left last counts.
QUALIFY row_number() OVER (PARTITION BY tailnum, known_at ORDER BY sched_dep DESC, carrier, flight, origin) = 1;
