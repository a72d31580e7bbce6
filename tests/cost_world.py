"""What the attempts of a loop took: told by runners that do not run here, beside what its payloads told."""

from __future__ import annotations

import json
from typing import Any

from airloop import usage
from airloop.contract import RunInfo
from airloop.frame import history
from airloop.objects import Objects, open_objects
from tests.lineage_world import LineageWorld

BEFORE, LONG_BEFORE, AFTER = (f"{year}-01-01T00:00:00.000+00:00" for year in (2020, 2019, 2099))
"""Of the attempt that made what is there."""
GPU: dict[str, Any] = {"cpu": 2.0, "memory": 4 * 2**30, "nvidia.com/gpu": 1}


def told(
    objects: Objects, run: RunInfo, attempt: str, started_at: str, status: str = "done", *, step: str = "train",
    pool: str = "gpu", size: str = "large", pod_s: float = 3600.0, lost_s: float = 0.0, queue_s: float = 60.0,
    pods: int = 1, reserved: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """One attempt as a pod."""
    resources = {"pool": pool, "size": size, "pods": pods, "pod_s": pod_s, "lost_s": lost_s, "queue_s": queue_s}
    document = usage.document(
        attempt=attempt, step=step, run=run, runner="pod", started_at=started_at, status=status,
        resources=resources, reserved=GPU if reserved is None else reserved,
    )  # fmt: skip
    usage.publish(objects, document, last=True)


def training_costs(world: LineageWorld) -> str:
    """
    The model of run 1 was trained at the fourth try of its task, on an hour of a GPU; returns the attempt.

    The first try made something else, the second and third failed after 15 and 30 minutes. A later try failed, too,
    and has nothing to do with it. Run 2 found the result of the first one's labels made.
    """
    objects = open_objects(world.config.artifacts)
    manifest = json.loads(world.store.read_bytes(world.store.name_of(world.results["1", "train"]["manifest"])))
    maker = str(manifest["attempt"])

    def run(try_number: int) -> RunInfo:
        return RunInfo("small", "1", "train", -1, try_number)

    told(objects, run(1), "aaaa0000", LONG_BEFORE)
    told(objects, run(2), "aaaa0001", BEFORE, "try_again", pod_s=900.0)
    told(objects, run(3), "aaaa0002", BEFORE.replace("01-01", "01-02"), "failed", pod_s=1800.0)
    told(objects, run(4), maker, BEFORE.replace("01-01", "01-03"), pods=2, lost_s=360.0)
    told(objects, run(5), "aaaa0003", AFTER, "failed")
    newest = history.run(world.store, "small", "2").tasks["labels"].record
    told(
        objects, RunInfo("small", "2", "labels"), newest["attempt"], BEFORE, step="sql", pool="", size="small",
        pod_s=36.0, reserved={"cpu": 1.0, "memory": 2**30},
    )  # fmt: skip
    return maker
