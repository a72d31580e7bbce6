"""Durations as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from airloop.errors import BadArgument

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes"}


def parse_duration(text: str, *, name: str) -> timedelta:
    """
    Read ``2w``, ``7d``, ``12h``, ``90m``; ``none`` is zero. A day is 24 hours.

    :param name: the argument it was given for, for the error.
    :raises BadArgument: anything else.
    """
    if text.strip() == "none":
        return timedelta(0)
    match = re.fullmatch(r"\s*(\d{1,6})\s*([wdhm])\s*", text)
    if match is None:
        raise BadArgument(f"{name}={text!r} is not a duration", "write 2w, 7d, 12h, 90m or none")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
