"""
A materialisation into Redis, killed at points that it reaches there: old values or new ones, and then new ones, also to
somebody who reads all the while.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.fault.flights_loop import SECOND, Home
from tests.fault.harness import Task, World
from tests.fault.watching import all_the_while

SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_REDIS_SAMPLE") or 6)
LOOK_S = 0.005
"""Seconds between two looks of the reader."""

Values = dict[tuple[bytes, bytes], bytes]
"""By key and field."""
Hashes = dict[bytes, dict[bytes, bytes]]
"""By key, its fields."""
OF_THE_ATTEMPT = (b"key", b"snapshot")
"""Fields of a watermark that differ from run to run."""


def _counted(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if name not in OF_THE_ATTEMPT}


def of_views(values: Values, others: Values) -> dict[bytes, Hashes]:
    """By view, the hashes that it alone has, in either of two states, and its watermark: they change at one instant."""
    views: dict[bytes, set[bytes]] = {}
    for key, name in values.keys() | others.keys():
        if name.startswith(b"_ts:"):
            views.setdefault(key, set()).add(name)
    found: dict[bytes, Hashes] = {view: {} for names in views.values() for view in names}
    for (key, name), value in values.items():
        if len(views.get(key, ())) == 1:
            (view,) = views[key]
            found[view].setdefault(key, {})[name] = value
    return found


class Redis:
    """All that a Redis holds, to look at and to put back."""

    def __init__(self, url: str) -> None:
        import redis

        self.url = url
        self.client = redis.Redis.from_url(url)

    def values(self) -> Values:
        """
        Values by entity and field: views of the same entity share its hash, and change one after the other.

        Watermarks name keys and snapshots, which differ; leases pass.
        """
        found = {}
        for key in self.client.scan_iter():
            if self.client.type(key) == b"hash":
                found |= {(key, name): value for name, value in _counted(self.client.hgetall(key)).items()}
        return found

    @contextmanager
    def read_all_the_while(self, places: Mapping[bytes, list[bytes]]) -> Iterator[dict[bytes, list[Hashes]]]:
        """
        While the block runs, somebody looks at all of these hashes at one instant, again and again.

        :param places: keys of hashes by view.
        :returns: by view, the states that were seen, one after the other, each once in a row.
        """
        seen: dict[bytes, list[Hashes]] = {view: [] for view in places}

        def look() -> None:
            with self.client.pipeline(transaction=True) as pipe:
                for keys in places.values():
                    for key in keys:
                        pipe.hgetall(key)
                answers = iter(pipe.execute())
            for view, keys in places.items():
                there = {key: _counted(fields) for key in keys if (fields := next(answers))}
                if seen[view][-1:] != [there]:
                    seen[view].append(there)

        with all_the_while(look, every_s=LOOK_S):
            yield seen

    def keep(self) -> dict[bytes, bytes]:
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def end_leases(self) -> None:
        """Let the leases of ended processes, which run out by themselves, run out now."""
        for key in self.client.scan_iter():
            if self.client.type(key) == b"string":
                self.client.delete(key)

    def put_back(self, kept: dict[bytes, bytes]) -> None:
        self.client.flushall()
        for key, value in kept.items():
            self.client.restore(key, 0, value)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    found = Redis(redis_url)
    yield found
    found.client.close()


def put_online(home: Home, task: Task, redis: Redis, **more: str) -> Any:
    return home.run(task.step, task.call, task.interval, online_store=redis.url, **more)


def test_killed_at_points_of_a_materialisation(
    world: World, redis: Redis, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    first, second = (task for task in world.tasks if task.step == "materialize")
    assert second.interval == SECOND
    world.back_to(second.before)
    # Keys are those of the SQLite run: its manifests are there, and what they put online is not.
    assert put_online(world.home, first, redis).code == 0
    before, values_before = redis.keep(), redis.values()
    trace = tmp_path / "trace"
    assert put_online(world.home, second, redis, fault_trace=str(trace)).code == 0
    values_after = redis.values()
    assert values_before != values_after
    old, new = of_views(values_before, values_after), of_views(values_after, values_before)
    places = {view: sorted(old[view].keys() | new[view].keys()) for view in old}
    changing = [view for view in old if old[view] != new[view] and len(places[view]) > 1]
    assert changing, "some view has entities of its own, and they change"
    points = [p for p in trace.read_text().splitlines() if p.startswith(("redis:", "materialize:"))]
    assert any(p.startswith("redis:EXEC:before") for p in points)
    drawn = random.Random(SEED).sample(points, min(SAMPLE, len(points)))
    failures = []
    for point in drawn:
        world.back_to(second.before)
        redis.put_back(before)
        with redis.read_all_the_while(places) as seen:
            struck = put_online(world.home, second, redis, fault=f"kill@{point}")
            assert struck.code == -SIGKILL, struck.log
            half = [
                key
                for key, fields in redis.values().items()
                if fields not in (values_before.get(key), values_after.get(key))
            ]
            redis.end_leases()
            again = put_online(world.home, second, redis)
        if half or again.code != 0 or redis.values() != values_after:
            failures.append(f"{point}: half written {half[:3]}, then {again.code} {again.error}")
        # A reader sees a view whole: all of the old one, then all of the new one, watermark included.
        allowed = {view: [old[view], new[view]] if old[view] != new[view] else [new[view]] for view in seen}
        wrong = [view.decode() for view, states in seen.items() if states != allowed[view]]
        if wrong:
            failures.append(f"{point}: a reader saw {', '.join(wrong)} as it never was, or not in its order")
    survived = len(drawn) - len(failures)
    tell(f"Redis points tried {len(drawn)} of {len(points)} / survived {survived}; seed {SEED}")
    assert not failures, "\n".join(failures)
