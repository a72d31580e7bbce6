"""
A process that works on a warehouse, for tests that run several of them, end them, or take their disk away.

``python warehouse_process.py ACTION ARGUMENTS [ACTION ARGUMENTS]…``, arguments as JSON; each outcome is one line of
JSON on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from airloop.config import Config
from airloop.errors import AirloopError
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), False),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("x", pa.float64()),
        pa.field("batch", pa.string()),
    ]
)
NAME = "raw.a"
START_US = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def rows(ids: range | list[int], x: float, batch: str) -> pa.Table:
    values = pa.array(list(ids), pa.int64())
    at = pa.array([START_US + (i % 100) * 86_400_000_000 for i in ids], SCHEMA.field("at").type)
    return pa.table([values, at, pa.array([x] * len(ids)), pa.array([batch] * len(ids))], schema=SCHEMA)


def open_table(partition_by: str = "month(at)") -> Warehouse:
    warehouse = Warehouse.open(Config.from_environment())
    warehouse.ensure(NAME, SCHEMA, key=["id"], partition_by=partition_by)
    return warehouse


def wait_for(go: str) -> None:
    """Wait until the file is there, so that all processes start at once."""
    while go and not Path(go).exists():
        time.sleep(0.005)


def write(
    keys: list[str], ids: list[list[int]], mode: Any, go: str = "", branch: str = "main", ranges: bool = False
) -> dict[str, Any]:
    """Commit once for each key, with the ids given for it, or with the range whose bounds are given."""
    wait_for(go)
    warehouse = open_table()
    done = [
        warehouse.commit(
            NAME, rows(range(*which) if ranges else which, float(n), key), key=key, mode=mode, branch=branch
        )
        for n, (key, which) in enumerate(zip(keys, ids, strict=True))
    ]
    return {"changed": [c.changed for c in done], "adopted": [c.adopted for c in done]}


def publish(key: str, ids: list[int], go: str) -> dict[str, Any]:
    """Write, audit and publish on a branch of one's own, as often as it takes."""
    from airloop.errors import NotDescendant

    wait_for(go)
    warehouse = open_table()
    for attempt in range(50):
        branch = f"audit-{key}-{attempt}"
        made = warehouse.commit(NAME, rows(ids, 1.0, key), key=f"{key}/{attempt}", mode="upsert", branch=branch)
        try:
            warehouse.publish(NAME, made.snapshot, drop_branch=branch)
            return {"attempts": attempt + 1}
        except NotDescendant:
            warehouse.drop_branch(NAME, branch)
    return {"attempts": -1}


def watch(until: str, size: int) -> dict[str, Any]:
    """
    Read until a file is there: every batch has to be whole or absent.

    :param until: the file; when it has looked once, one beside it says so.
    """
    warehouse = open_table()
    looks, broken = 0, []
    while not Path(until).exists():
        with warehouse.duckdb({"t": TableRef(NAME)}) as connection:
            found = connection.sql("SELECT batch, count(*) FROM t GROUP BY batch").fetchall()
        looks += 1
        broken += [f"{batch}: {count}" for batch, count in found if count != size]
        Path(until).with_suffix(".looked").touch()
    return {"looks": looks, "broken": broken}


def append_big(count: int, partition_by: str = "") -> dict[str, Any]:
    """Append many rows from a generator; peak memory over what the process had before."""
    import threading

    import numpy as np
    import psutil

    warehouse = open_table(partition_by)
    process = psutil.Process()

    def batches() -> Iterator[pa.RecordBatch]:
        generator = np.random.default_rng(0)
        for start in range(0, count, 100_000):
            ids = np.arange(start, min(start + 100_000, count))
            yield pa.record_batch(
                [
                    pa.array(ids),
                    pa.array(START_US + ids * 6_000_000, SCHEMA.field("at").type),
                    pa.array(generator.random(len(ids))),
                    pa.array(np.char.add("batch", (ids % 1000).astype(str))),
                ],
                schema=SCHEMA,
            )

    warehouse.commit(NAME, rows([-1], 0.0, "warm"), key="warm")
    before, peak, stop = process.memory_info().rss, 0, threading.Event()

    def measure() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=measure)
    watcher.start()
    started = time.perf_counter()
    made = warehouse.commit(NAME, batches(), key="big")
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    return {"rows": warehouse.count(made.ref), "peak_mb": (peak - before) >> 20, "seconds": round(seconds, 2)}


def read_all() -> dict[str, Any]:
    warehouse = Warehouse.open(Config.from_environment())
    found = warehouse.scan(TableRef(NAME), columns=["id"]).read_all()["id"].to_pylist()
    return {"ids": sorted(found)}


def shell(script: str) -> dict[str, Any]:
    """What has to happen between two actions of one process."""
    return {"out": subprocess.run(["sh", "-euc", script], check=True, capture_output=True, text=True).stdout.split()}


def fault(fault: str) -> dict[str, Any]:
    """Set the fault for what follows."""
    os.environ["AIRLOOP_FAULT"] = fault
    return {"fault": fault}


ACTIONS: dict[str, Any] = {f.__name__: f for f in (write, publish, watch, append_big, read_all, shell, fault)}


def main(*actions: str) -> None:
    """:param actions: name and arguments, in turn."""
    for action, arguments in zip(actions[::2], actions[1::2], strict=True):
        try:
            outcome = ACTIONS[action](**json.loads(arguments))
        except AirloopError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
