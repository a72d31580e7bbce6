"""Rows put aside for the online store come back as they were, in the order of their keys."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from airloop.features import staging
from airloop.features.online import Chunk, OnlineTable
from airloop.features.staging import Staging

TABLE = OnlineTable("shop_pace", "pace", ("speed",), "shop", ("driver",))


@pytest.mark.parametrize(("per_part", "most_parts"), [(250_000, 16), (7, 100), (7, 3), (1_000, 1)])
@pytest.mark.parametrize("rows", [0, 1, 95])
def test_in_the_order_of_keys_part_by_part(
    monkeypatch: pytest.MonkeyPatch, per_part: int, most_parts: int, rows: int
) -> None:
    monkeypatch.setattr(staging, "ROWS_PER_PART", per_part)
    monkeypatch.setattr(staging, "MOST_PARTS", most_parts)
    keys = [b"%04d" % n for n in range(rows)]
    random.Random(3).shuffle(keys)
    staged = Staging(TABLE, lambda chunk: {"event_us": pa.array(chunk.event_us)})
    for at in range(0, rows, 20):
        some = keys[at : at + 20]
        times = np.array([int(key) for key in some], np.int64)
        staged.add(Chunk(pa.array(some, pa.binary()), times, times, [pa.array([b"v" + k for k in some])], ()))
    staged.verify(rows)
    found = [row for part in staged.by_key(8) for row in part.to_pylist()]
    assert found == [{"key": key, "v0": b"v" + key, "event_us": int(key)} for key in sorted(keys)]
    staged.close()
