-- Hourly weather at the airports of departure, one row per airport and hour.
-- event_time: the hour that was observed. arrival_time: its end, when the report is out.
SELECT
    origin,
    temp::DOUBLE       AS temp,        -- °F
    humid::DOUBLE      AS humid,       -- relative humidity, %
    wind_speed::DOUBLE AS wind_speed,  -- mph
    precip::DOUBLE     AS precip,      -- inches in the hour
    visib::DOUBLE      AS visib,       -- miles
    pressure::DOUBLE   AS pressure,    -- at sea level, millibar
    observed_at        AS event_time,
    known_at           AS arrival_time
FROM weather
WHERE observed_at >= $interval_start AND observed_at < $interval_end;
