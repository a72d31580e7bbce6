"""What keeps a pod from starting: it is waited for, for so long, and called by the cluster's own words."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from airloop.errors import BadConfiguration, NotStarted
from airloop_operators.runners.pod import names
from tests.cluster.world import ALIKE, World, gone_is_fine, started


def test_an_image_that_cannot_be_pulled(world: World) -> None:
    # It refuses at once; a name that no DNS server knows may take it half a minute to say so.
    image = "127.0.0.1:1/airloop/none:1"
    patience = replace(world.pace.patience, start_s=40 if world.real else 1.5)
    pods = world.pods(images={"cpu": image}, pull_policy="IfNotPresent", patience=patience)
    outcome = world.run(world.request("count"), pods)
    assert type(outcome.error) is NotStarted, outcome.error
    assert f"image {image} could not be pulled in" in str(outcome.error)
    assert "Pull" in str(outcome.error)
    world.until(lambda: not world.left(), "its pod is gone")


def test_an_image_that_is_not_there_and_must_not_be_pulled(world: World) -> None:
    began = time.monotonic()
    pods = world.pods(images={"cpu": "airloop/none:1"}, pull_policy="Never")
    outcome = world.run(world.request("count"), pods)
    assert type(outcome.error) is BadConfiguration, outcome.error
    assert "ErrImageNeverPull" in str(outcome.error)
    assert time.monotonic() - began < world.pace.patience.start_s, "it is of no use to wait"


def test_no_node_for_it(world: World) -> None:
    patience = replace(world.pace.patience, schedule_s=10 if world.real else 1.5)
    pods = replace(world.pool(node_selector={"airloop.test/nowhere": "yes"}), patience=patience)
    outcome = world.run(world.request("count"), pods)
    assert type(outcome.error) is NotStarted, outcome.error
    assert "got no node in" in str(outcome.error)
    assert "nodes are available" in str(outcome.error), "the scheduler's own reason"
    assert any("waits for node" in line for line in world.heard)
    world.until(lambda: not world.left(), "its pod is gone")


def _quota(world: World) -> None:
    """No more pods; it counts as soon as the cluster has looked at it."""
    body = {"metadata": world.about("quota"), "spec": {"hard": {"pods": "0"}}}
    world.core.create_namespaced_resource_quota(world.namespace, body)
    world.until(
        lambda: world.core.read_namespaced_resource_quota(world.name("quota"), world.namespace).status.hard is not None,
        "the quota is known",
    )


def _no_quota(world: World) -> None:
    with gone_is_fine():
        world.core.delete_namespaced_resource_quota(world.name("quota"), world.namespace, _preload_content=False)


def test_a_quota_that_is_used_up(world: World) -> None:
    patience = replace(world.pace.patience, schedule_s=10 if world.real else 1.0)
    _quota(world)
    try:
        outcome = world.run(world.request("count"), world.pods(patience=patience))
    finally:
        _no_quota(world)
    assert type(outcome.error) is NotStarted, outcome.error
    assert "was kept out by a quota" in str(outcome.error)
    assert f"exceeded quota: {world.name('quota')}" in str(outcome.error)


@ALIKE
def test_a_quota_that_becomes_free(world: World) -> None:
    _quota(world)
    try:
        with world.underway(world.request("count")) as attempt:
            world.until(lambda: any("exceeded quota" in line for line in world.heard), "it waits")
            _no_quota(world)
            outcome = attempt.outcome()
    finally:
        _no_quota(world)
    assert outcome.error is None, outcome.error


def test_preempted_before_it_began(world: World) -> None:
    """It has a node and no container yet, since a volume is not there, when a pod of higher priority comes."""
    _priorities(world, low=-10, high=10)
    late = {"config_map": world.name("late"), "path": "/etc/airloop/late"}
    pods = world.pool(priority_class=world.name("low"))
    pods = replace(pods, volumes=[*pods.volumes, replace(pods.volumes[-1], **late)])
    rival = world.name("rival")
    try:
        with world.underway(world.request("count", rows=5), pods) as attempt:
            first = attempt.pod(lambda pod: pod["spec"].get("nodeName") and not started(pod), "waits for its volume")
            world.core.create_namespaced_pod(world.namespace, _rival(world, first), _preload_content=False)
            second = attempt.pod(lambda pod: pod["metadata"]["uid"] != first["metadata"]["uid"], "is made again")
            _delete_pod(world, rival)
            world.core.create_namespaced_config_map(world.namespace, {"metadata": world.about("late"), "data": {}})
            outcome = attempt.outcome()
    finally:
        _delete_pod(world, rival)
        for what in ("low", "high"):
            world.scheduling.delete_priority_class(world.name(what), _preload_content=False)
    assert outcome.error is None, outcome.error
    assert outcome.resources["pods"] == 2
    assert second["metadata"]["name"] == first["metadata"]["name"]
    assert any("was preempted" in line and "making it again" in line for line in world.heard)


def _priorities(world: World, **values: int) -> None:
    """Classes of priority, which belong to the whole cluster."""
    from kubernetes.client.exceptions import ApiException

    for what, value in values.items():
        try:
            world.scheduling.create_priority_class({"metadata": world.about(what), "value": value})
        except ApiException as error:
            if error.status != 403:
                raise
            pytest.skip("who runs the tests may not make PriorityClasses")


def _delete_pod(world: World, name: str) -> None:
    with gone_is_fine():
        world.core.delete_namespaced_pod(name, world.namespace, grace_period_seconds=0, _preload_content=False)


def _rival(world: World, pod: dict[str, object]) -> dict[str, object]:
    """A pod that cannot be on a node together with another, and goes before it."""
    spec = pod["spec"]
    assert isinstance(spec, dict)
    limits = {"cpu": "10m", "memory": "64Mi"}
    container = {
        "name": "rival", "image": world.image, "imagePullPolicy": world.pull, "env": [],
        "command": ["python", "-c", "import time; time.sleep(600)"],
        "resources": {"limits": limits, "requests": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    term = {
        "labelSelector": {"matchLabels": {f"{names.PREFIX}instance": world.instance}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "metadata": {"name": world.name("rival"), "labels": {"airloop.test/rival": world.instance}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "priorityClassName": world.name("high"),
            "nodeSelector": {"kubernetes.io/hostname": world.hostname(str(spec["nodeName"]))},
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }  # fmt: skip
