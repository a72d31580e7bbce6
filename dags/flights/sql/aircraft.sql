-- What is known of an aircraft from the register, one row per aircraft; the same for every interval.
-- event_time and arrival_time: 1 January of the year in which it was built, 1970 where that is not known.
SELECT
    tailnum,
    year::DOUBLE    AS built_year,
    seats::DOUBLE   AS seats,
    engines::DOUBLE AS engines,
    make_timestamptz(coalesce(year, 1970), 1, 1, 0, 0, 0, 'UTC') AS event_time,
    make_timestamptz(coalesce(year, 1970), 1, 1, 0, 0, 0, 'UTC') AS arrival_time
FROM planes;
