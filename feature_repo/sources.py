"""
Where features come from: tables made by the SQL in ``dags/flights/sql``.

Each has ``event_time``, what its values speak about, and ``arrival_time``, when they became known.
"""

from feast import Field, RequestSource
from feast.types import Float64, Int64

from airloop.features.source import IcebergSource

weather_hourly = IcebergSource(name="weather", description="observed at the hour, published an hour later")
carrier_delays_hourly = IcebergSource(name="carrier_delays", description="published 15 minutes after the hour")
origin_delays_hourly = IcebergSource(name="origin_delays", description="published 15 minutes after the hour")
route_delays_daily = IcebergSource(name="route_delays", description="published 15 minutes after midnight UTC")
landings = IcebergSource(name="previous_leg", description="one row per landing, known an hour after it")
aircraft_register = IcebergSource(name="aircraft", description="one row per aircraft, known since it was built")

schedule = RequestSource(
    name="schedule",
    description="known from the timetable; comes with each flight",
    schema=[
        Field(name="hour", dtype=Int64, description="scheduled hour of departure, local, 0 to 23"),
        Field(name="weekday", dtype=Int64, description="local, 1 is Monday"),
        Field(name="month", dtype=Int64, description="local, 1 to 12"),
        Field(name="distance", dtype=Float64, description="miles"),
        Field(name="sched_minutes", dtype=Float64, description="scheduled arrival minus departure by the clocks"),
    ],
)
