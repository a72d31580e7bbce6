"""
Reading features online: Feast's ``get_online_features`` and Airloop's reader, from SQLite and from Redis.

    python -m benchmarks.online [--rows 100000] [--calls 300] [--runs 3] [--check] [--quick]

Latency of one call for 1, 10 and 100 entities, median and 99th percentile, ``to_dict`` included; both give the same
answers. There is no limit to compare with but the store's own answer: that of one ready-made query is shown beside.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import online_world as world
from benchmarks.common import Measured, finish, own_process, parser_for, row, settled

ENTITIES = (1, 10, 100)


def fill(folder: str, online: str, rows: int) -> dict[str, Any]:
    from benchmarks.materialize import ours

    return ours(folder, online, rows)


def latencies(folder: str, online: str, rows: int, calls: int, entities: int) -> dict[str, Any]:
    """Seconds of each call, of all ways in turn in one process."""
    from airloop.features.read import OnlineReader
    from airloop.features.repo import open_store

    config = world.config_of(Path(folder), online)
    store, reader = open_store(config), OnlineReader(config)
    bare = _bare(online)
    ways: dict[str, Callable[[list[int]], Any]] = {
        "stock": lambda drivers: store.get_online_features(world.REFS, [{"driver": d} for d in drivers]).to_dict(),
        "ours": lambda drivers: reader.read(world.REFS, {"driver": drivers}),
        "bare": bare,
    }
    chance = random.Random(entities)
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(calls + 20):
        drivers = [chance.randrange(rows) for _ in range(entities)]
        answers = {}
        for way, call in ways.items():
            began = time.perf_counter()
            answers[way] = call(drivers)
            if number >= 20:
                seen[way].append(time.perf_counter() - began)
        if answers["stock"] != answers["ours"]:
            raise RuntimeError(f"the answers differ: {answers}")
    return {"seconds": sum(map(sum, seen.values())), **{way: sorted(times) for way, times in seen.items()}}


def _bare(online: str) -> Callable[[list[int]], Any]:
    """The store's answer to a query that is ready, not made into values."""
    from airloop.features.encode import entity_key
    from airloop.features.online_redis import field_name

    if "://" not in online:
        connection = sqlite3.connect(online)

        def in_sqlite(drivers: list[int]) -> Any:
            keys = [entity_key(["driver"], [d]) for d in drivers]
            places = ", ".join("?" * len(keys))
            query = f"SELECT entity_key, feature_name, value FROM bench_pace WHERE entity_key IN ({places})"
            return connection.execute(query, keys).fetchall()

        return in_sqlite
    import redis

    client: Any = redis.Redis.from_url(online)
    fields = [field_name("pace", feature) for feature in world.FEATURES]

    def in_redis(drivers: list[int]) -> Any:
        with client.pipeline(transaction=False) as pipe:
            for driver in drivers:
                pipe.hmget(entity_key(["driver"], [driver]) + b"bench", fields)
            return pipe.execute()

    return in_redis


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    parser.add_argument("--rows", type=int, default=0, help="entities online; default 100,000")
    parser.add_argument("--calls", type=int, default=0, help="of each way; default 300")
    arguments = settled(parser.parse_args())
    size = arguments.rows or (2_000 if arguments.quick else 100_000)
    calls = arguments.calls or (30 if arguments.quick else 300)
    rows = []
    with world.redis_server() as redis, tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
        world.make(Path(folder), size)
        for where, online in (("SQLite", f"{folder}/online.db"), ("Redis", redis)):
            own_process("benchmarks.online:fill", folder=folder, online=online, rows=size)
            for entities in ENTITIES:
                rows += _rows(folder, where, online, size, calls, entities, arguments.runs)
    return finish("online", arguments, rows)


def _rows(
    folder: str, where: str, online: str, size: int, calls: int, entities: int, runs: int
) -> list[dict[str, Any]]:
    found = [
        own_process(
            "benchmarks.online:latencies", folder=folder, online=online, rows=size, calls=calls, entities=entities
        )
        for _ in range(runs)
    ]
    peak = max(m.peak_mb for m in found)

    def at(way: str, share: float) -> Measured:
        values = sorted(m.more[way][min(int(share * calls), calls - 1)] for m in found)
        return Measured(values[len(values) // 2], peak, all_s=tuple(round(v, 6) for v in values))

    lines = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, stock, bare = (at(way, share) for way in ("ours", "stock", "bare"))
        lines.append(
            row(f"read online from {where}, {name}", f"{entities} entities", ours, stock, peer="get_online_features",
                target="faster than Feast", limit_s=stock.seconds,
                note=f"the store's bare answer: {bare.seconds * 1000:.3g} ms")
        )  # fmt: skip
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
