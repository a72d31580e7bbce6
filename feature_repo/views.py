"""What is known about origin, carrier, route and aircraft at a scheduled departure. Delays are minutes."""

from datetime import timedelta

from entities import aircraft as aircraft_entity
from entities import carrier, dest, origin
from feast import FeatureView, Field
from feast.types import Float64, Int64, String
from sources import (
    aircraft_register,
    carrier_delays_hourly,
    landings,
    origin_delays_hourly,
    route_delays_daily,
    weather_hourly,
)

weather = FeatureView(
    name="weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    source=weather_hourly,
    schema=[
        Field(name="origin", dtype=String),
        Field(name="temp", dtype=Float64, description="°F"),
        Field(name="humid", dtype=Float64, description="relative humidity, %"),
        Field(name="wind_speed", dtype=Float64, description="mph"),
        Field(name="precip", dtype=Float64, description="inches in the hour"),
        Field(name="visib", dtype=Float64, description="miles"),
        Field(name="pressure", dtype=Float64, description="at sea level, millibar"),
    ],
)

carrier_delays = FeatureView(
    name="carrier_delays",
    entities=[carrier],
    ttl=timedelta(days=2),
    source=carrier_delays_hourly,
    schema=[
        Field(name="carrier", dtype=String),
        Field(name="late_rate_6h", dtype=Float64, description="share of flights 15 or more minutes late"),
        Field(name="mean_delay_6h", dtype=Float64),
        Field(name="flights_6h", dtype=Int64),
        Field(name="late_rate_7d", dtype=Float64),
        Field(name="mean_delay_7d", dtype=Float64),
        Field(name="flights_7d", dtype=Int64),
    ],
)

origin_delays = FeatureView(
    name="origin_delays",
    entities=[origin],
    ttl=timedelta(days=2),
    source=origin_delays_hourly,
    schema=[
        Field(name="origin", dtype=String),
        Field(name="late_rate_3h", dtype=Float64),
        Field(name="mean_dep_delay_3h", dtype=Float64),
        Field(name="late_rate_24h", dtype=Float64),
        Field(name="cancelled_share_24h", dtype=Float64),
    ],
)

route_delays = FeatureView(
    name="route_delays",
    entities=[origin, dest],
    ttl=timedelta(days=7),
    source=route_delays_daily,
    schema=[
        Field(name="origin", dtype=String),
        Field(name="dest", dtype=String),
        Field(name="late_rate_28d", dtype=Float64),
        Field(name="mean_delay_28d", dtype=Float64),
        Field(name="flights_28d", dtype=Int64),
    ],
)

previous_leg = FeatureView(
    name="previous_leg",
    entities=[aircraft_entity],
    # Only a landing of the last day says something about this departure.
    ttl=timedelta(hours=24),
    source=landings,
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="prev_arr_delay", dtype=Float64),
        Field(name="prev_dep_delay", dtype=Float64),
        Field(name="prev_distance", dtype=Float64, description="miles"),
    ],
)

aircraft = FeatureView(
    name="aircraft",
    entities=[aircraft_entity],
    ttl=None,
    source=aircraft_register,
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="built_year", dtype=Float64),
        Field(name="seats", dtype=Float64),
        Field(name="engines", dtype=Float64),
    ],
)
