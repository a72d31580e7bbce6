"""Whom features are about."""

from feast import Entity, ValueType

origin = Entity(
    name="origin", join_keys=["origin"], value_type=ValueType.STRING, description="airport of departure, IATA code"
)
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING, description="airport of arrival, IATA code")
carrier = Entity(
    name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="airline, two-letter code"
)
aircraft = Entity(
    name="tailnum", join_keys=["tailnum"], value_type=ValueType.STRING, description="aircraft, tail number"
)
