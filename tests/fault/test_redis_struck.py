"""A materialisation into Redis, killed at points that it reaches there: old values or new ones, and then new ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.fault.flights_loop import SECOND, Home
from tests.fault.harness import Task, World

SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_REDIS_SAMPLE") or 6)


class Redis:
    """All that a Redis holds, to look at and to put back."""

    def __init__(self, url: str) -> None:
        import redis

        self.url = url
        self.client = redis.Redis.from_url(url)

    def values(self) -> dict[tuple[bytes, bytes], bytes]:
        """
        Values by entity and field: views of the same entity share its hash, and change one after the other.

        Watermarks name keys and snapshots, which differ; leases pass.
        """
        found = {}
        for key in self.client.scan_iter():
            if self.client.type(key) == b"hash":
                fields = self.client.hgetall(key).items()
                found |= {(key, name): value for name, value in fields if name not in (b"key", b"snapshot")}
        return found

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
    points = [p for p in trace.read_text().splitlines() if p.startswith(("redis:", "materialize:"))]
    assert any(p.startswith("redis:EXEC:before") for p in points)
    drawn = random.Random(SEED).sample(points, min(SAMPLE, len(points)))
    failures = []
    for point in drawn:
        world.back_to(second.before)
        redis.put_back(before)
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
    survived = len(drawn) - len(failures)
    tell(f"Redis points tried {len(drawn)} of {len(points)} / survived {survived}; seed {SEED}")
    assert not failures, "\n".join(failures)
