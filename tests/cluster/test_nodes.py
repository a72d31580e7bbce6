"""Nodes that go, and pools of nodes: what needs the right to change nodes is left out where nobody gave it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from airloop.errors import NotStarted, PodLost
from airloop_operators.runners.pod.sizes import Patience
from tests.cluster.settings import Told, optional
from tests.cluster.world import World, started


def test_its_node_is_lost(world: World) -> None:
    """A taint stands in for it: what the cluster does to the pods of a node that is lost it does by one."""
    name = world.node()
    pods = world.pool(node_selector={"kubernetes.io/hostname": world.hostname(name)})
    with world.underway(world.request("wait", seconds=300), pods) as attempt:
        assert attempt.says("waiting")["spec"]["nodeName"] == name
        taint = {"key": "airloop.test/lost", "value": "yes", "effect": "NoExecute"}
        with world.changed_node(name, taints=[taint]):
            outcome = attempt.outcome()
    assert type(outcome.error) is PodLost, outcome.error
    assert "was evicted: its node has a taint that it does not tolerate" in str(outcome.error)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_node_is_really_lost(world: World, told: Told) -> None:
    """Kubernetes gives a node 40 s and its pods five minutes; nobody ever confirms the container's end."""
    optional(told.lose, "LOSE")
    optional(told.find, "FIND")
    name = world.node()
    pods = world.pool(node_selector={"kubernetes.io/hostname": world.hostname(name)})

    def do(command: str) -> None:
        subprocess.run(["sh", "-c", command], env={**os.environ, "NODE": name}, check=True, timeout=120)

    with world.underway(world.request("wait", seconds=3000), pods) as attempt:
        attempt.says("waiting")
        try:
            do(told.lose)
            outcome = attempt.outcome(900)
        finally:
            do(told.find)
    assert type(outcome.error) is PodLost, outcome.error
    assert "not ready" in str(outcome.error) or "was given up" in str(outcome.error)


@dataclass
class Accelerators:
    """A pool of nodes that have an accelerator."""

    nodes: list[str]
    """Any of which the scheduler may take."""
    resource: str
    count: int
    """The most that one of them has."""
    selector: dict[str, str]
    tolerations: list[dict[str, str]]

    def pool(self, **changes: Any) -> dict[str, Any]:
        """As a file of sizes has it."""
        return {
            "accelerator": "nvidia",
            "resource": self.resource,
            "node_selector": self.selector,
            "tolerations": self.tolerations,
            **changes,
        }


@contextmanager
def _accelerators(world: World) -> Iterator[Accelerators]:
    """The cluster's pool, known by the resource; without one a node becomes it for a while, if that is allowed."""
    found = _found(world)
    if found is not None:
        yield found
        return
    name = world.node()
    label = {"airloop.test/pool": "accelerators"}
    taint = {"key": "airloop.test/pool", "value": "accelerators", "effect": "NoSchedule"}
    with world.changed_node(name, taints=[taint], labels=label, capacity={world.accelerator: "2"}):
        made = world.until(lambda: _found(world), f"node {name} offers {world.accelerator}")
        yield made


def _found(world: World) -> Accelerators | None:
    def count(node: dict[str, Any]) -> int:
        return int((node["status"].get("allocatable") or {}).get(world.accelerator, 0))

    nodes = json.loads(world.core.list_node(_preload_content=False).data)["items"]
    node = max(nodes, key=count)
    if not count(node):
        return None
    labels = node["metadata"].get("labels") or {}
    own = {key: value for key, value in labels.items() if "kubernetes.io" not in key and "k8s.io" not in key}
    name = node["metadata"]["name"]
    taints = [t for t in node["spec"].get("taints") or [] if not t["key"].startswith("node.kubernetes.io/")]
    tolerations = [{key: t[key] for key in ("key", "value", "effect") if t.get(key)} for t in taints]
    selector = own or {"kubernetes.io/hostname": labels.get("kubernetes.io/hostname", name)}
    alike = [n for n in nodes if count(n) and selector.items() <= (n["metadata"].get("labels") or {}).items()]
    return Accelerators([n["metadata"]["name"] for n in alike], world.accelerator, count(node), selector, tolerations)


def _pods(world: World, pool: dict[str, Any], count: int) -> Any:
    size = {"cpu": "500m", "memory": "300Mi", "requests": {"cpu": "20m"}, "pool": "gpu", "accelerators": count}
    return world.pods(pools={"gpu": pool}, sizes={"small": {"memory": "300Mi"}, "gpu": size})


def test_an_accelerator_pool(world: World) -> None:
    with _accelerators(world) as found:
        pods = _pods(world, found.pool(), 1)
        request = replace(world.request("wait", seconds=3 if world.real else 0.5), size="gpu")
        with world.underway(request, pods) as attempt:
            pod = attempt.pod(started, "has started")
            outcome = attempt.outcome()
    assert outcome.error is None, outcome.error
    assert pod["spec"]["nodeName"] in found.nodes
    assert pod["spec"]["containers"][0]["resources"]["limits"][found.resource] == "1"
    assert outcome.resources[found.resource] == 1
    assert outcome.resources["pool"] == "gpu"
    environment = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
    assert environment["AIRLOOP_COLLECTIVE"] == "nccl"


def _impatient(world: World) -> Patience:
    return replace(world.pace.patience, schedule_s=15 if world.real else 1.5)


def test_more_accelerators_than_there_are(world: World) -> None:
    with _accelerators(world) as found:
        pods = replace(_pods(world, found.pool(), found.count + 1), patience=_impatient(world))
        outcome = world.run(replace(world.request("count"), size="gpu"), pods)
    assert type(outcome.error) is NotStarted, outcome.error
    assert f"Insufficient {found.resource}" in str(outcome.error)


def test_a_pool_without_its_toleration(world: World) -> None:
    with _accelerators(world) as found:
        if not found.tolerations:
            # Then the pool takes any pod, and there is nothing to see.
            pytest.skip(f"nodes {', '.join(found.nodes)} have no taint")
        pods = replace(_pods(world, found.pool(tolerations=[]), 1), patience=_impatient(world))
        outcome = world.run(replace(world.request("count"), size="gpu"), pods)
    assert type(outcome.error) is NotStarted, outcome.error
    assert "untolerated taint" in str(outcome.error)
