-- Examples for "will it rain in the next hour?": one row per airport and hour, split by time.
-- What is known at the full hour is the hour before it; the label is whether the hour after it brings rain.
SELECT
    now.origin,
    now.known_at AS event_time,
    now.temp, now.dewp, now.humid, now.wind_dir, now.wind_speed, now.precip, now.pressure, now.visib,
    now.pressure - earlier.pressure AS pressure_change_3h,
    CAST(later.precip > 0 AS BIGINT) AS label,
    CASE
        WHEN now.known_at >= $interval_end - INTERVAL 7 DAY THEN 'holdout'
        WHEN now.known_at >= $interval_end - INTERVAL 12 DAY THEN 'validation'
        ELSE 'train'
    END AS split
FROM weather AS now
JOIN weather AS later ON later.origin = now.origin AND later.observed_at = now.observed_at + INTERVAL 1 HOUR
LEFT JOIN weather AS earlier ON earlier.origin = now.origin AND earlier.observed_at = now.observed_at - INTERVAL 3 HOUR
WHERE later.precip IS NOT NULL AND later.known_at <= $interval_end
