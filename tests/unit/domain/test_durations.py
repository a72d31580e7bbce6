"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airloop.domain.durations import parse_duration
from airloop.errors import BadArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2w", timedelta(weeks=2)),
        ("7d", timedelta(days=7)),
        ("12h", timedelta(hours=12)),
        (" 90 m ", timedelta(minutes=90)),
        ("none", timedelta(0)),
    ],
)
def test_a_duration_is_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text, name="window") == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 days", "9999999d"])
def test_anything_else_is_named(text: str) -> None:
    with pytest.raises(BadArgument, match="window="):
        parse_duration(text, name="window")
