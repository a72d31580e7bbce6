"""What a model is given: the request's own columns first, then these views', in this order."""

from feast import FeatureService
from views import aircraft, carrier_delays, origin_delays, previous_leg, route_delays, weather

delay_v1 = FeatureService(
    name="delay_v1",
    features=[weather, carrier_delays, origin_delays, route_delays, previous_leg, aircraft],
    tags={"request_source": "schedule"},
    description="will this flight arrive 15 or more minutes late?",
)
