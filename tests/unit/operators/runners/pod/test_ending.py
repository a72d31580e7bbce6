"""What happened to a pod, from states as clusters tell them."""

from __future__ import annotations

from typing import Any

import pytest

from airloop.errors import (
    AirloopError,
    BadConfiguration,
    InfrastructureFailure,
    NotStarted,
    OutOfMemory,
    PodLost,
    StoreFull,
    TimedOut,
)
from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.ending import About

ABOUT = About(step="train", pod="loops/train-0123", size="small", memory="1Gi", image="airloop:1", origin="sizes.yaml")
STARTED, FINISHED = "2013-01-01T00:00:10Z", "2013-01-01T00:01:10Z"


def pod(
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    *,
    conditions: tuple[dict[str, Any], ...] = (),
    going: bool = False,
    node: str = "node-1",
    last: dict[str, Any] | None = None,
    **status: Any,
) -> dict[str, Any]:
    metadata = {"name": "train-0123", "uid": "u", "creationTimestamp": "2013-01-01T00:00:00Z"}
    if going:
        metadata["deletionTimestamp"] = FINISHED
    statuses = [{"name": "side-car", "state": {"running": {}}}]
    if state is not None:
        statuses.append({"name": "step", "state": state, "lastState": last or {}, "imageID": "airloop@sha256:ab"})
    return {
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses, **status},
    }


def ended(exit_code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    about = {"exitCode": exit_code, "reason": reason, "message": message}
    return {"terminated": {**about, "startedAt": STARTED, "finishedAt": FINISHED}}


# As a kubelet gives each container of a pod that goes, whether it was made or not.
NOT_FOUND = ended(137, "ContainerStatusUnknown", "The container could not be located when the pod was terminated")


def event(reason: str, message: str, at: str = STARTED) -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at}


def disrupted(reason: str, message: str = "") -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


@pytest.mark.parametrize("code", [0, 65, 75, 99])
def test_a_payloads_own_codes_are_its_own_word(code: int) -> None:
    seen = pod("Failed" if code else "Succeeded", ended(code, message="the receipt"), conditions=(disrupted("X"),))
    verdict = ending.judge(seen, [], ABOUT, gone=True)
    assert verdict.ending.exit_code == code
    assert verdict.ending.cause is None
    assert verdict.receipt == "the receipt"
    assert verdict.started


@pytest.mark.parametrize("code", [1, 137, 143, 139])
def test_an_end_without_a_reason_has_no_cause(code: int) -> None:
    verdict = ending.judge(pod("Failed", ended(code)), [], ABOUT)
    assert verdict.ending.exit_code == code
    assert verdict.ending.cause is None


CASES: list[tuple[str, dict[str, Any], dict[str, Any], type[AirloopError], str]] = [
    ("oom", pod("Failed", ended(137, "OOMKilled")), {}, OutOfMemory, "at its memory limit of 1Gi (OOMKilled, size sma"),
    (
        "evicted",
        pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
        {},
        PodLost,
        "was evicted by its node (The node was low on resource: memory)",
    ),
    (
        "evicted for what it wrote",
        pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '),
        {},
        StoreFull,
        "for what it wrote (size small) (Usage of EmptyDir volume",
    ),
    (
        "evicted, as its container saw it",
        pod("Failed", ended(137), reason="Evicted", message="Pod ephemeral local storage usage exceeds"),
        {},
        PodLost,
        "was evicted by its node (Pod ephemeral",
    ),
    (
        "preempted",
        pod("Running", ended(143), conditions=(disrupted("PreemptionByScheduler", "preempting for big"),), going=True),
        {"gone": True},
        PodLost,
        "was preempted: a pod of higher priority took its place (preempting for big)",
    ),
    ("drained", pod(conditions=(disrupted("EvictionByEvictionAPI"),)), {"gone": True}, PodLost, "its node is drained"),
    (
        "node not ready",
        pod(conditions=(disrupted("DeletionByTaintManager"),), going=True),
        {"lost_s": 70.0},
        PodLost,
        "has a taint that it does not tolerate",
    ),
    ("node gone", pod(conditions=(disrupted("DeletionByPodGC"),)), {"gone": True}, PodLost, "its node is gone"),
    ("another disruption", pod(conditions=(disrupted("Whim"),)), {"gone": True}, PodLost, "was ended: Whim"),
    ("node silent", pod(going=True), {"lost_s": 70.0}, PodLost, "node-1 has not confirmed its end for 70 s"),
    ("node shut down", pod("Failed", reason="Terminated"), {}, PodLost, "its node is shutting down"),
    ("node lost", pod("Failed", reason="NodeLost"), {}, PodLost, "was lost with its node"),
    (
        "status unknown",
        pod("Failed", ended(137, "ContainerStatusUnknown", "could not be located")),
        {},
        PodLost,
        "was lost with its node (could not be located)",
    ),
    (
        "deleted before its container was made",
        pod("Failed", NOT_FOUND, going=True),
        {"gone": True},
        PodLost,
        "was deleted; somebody or something in the cluster deleted it",
    ),
    (
        "preempted before its container was made",
        pod("Failed", NOT_FOUND, conditions=(disrupted("PreemptionByScheduler"),), going=True),
        {},
        PodLost,
        "was preempted: a pod of higher priority took its place",
    ),
    ("deleted", pod(), {"gone": True}, PodLost, "was deleted; somebody or something in the cluster deleted it"),
    ("deleted while it ran", pod("Running", ended(143), going=True), {}, PodLost, "was deleted"),
    (
        "deadline",
        pod("Failed", ended(143), reason="DeadlineExceeded"),
        {},
        TimedOut,
        "ran over its deadline; raise its task's execution_timeout",
    ),
    (
        "no command",
        pod("Failed", ended(128, "StartError", 'exec: "python": not found')),
        {},
        NotStarted,
        "could not be started (StartError: exec",
    ),
    (
        "refused by its node",
        pod("Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
        {},
        NotStarted,
        "was refused by its node (OutOfcpu: Node didn't have",
    ),
]


@pytest.mark.parametrize(("seen", "how", "kind", "says"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_end_has_its_error(seen: dict[str, Any], how: dict[str, Any], kind: type[AirloopError], says: str) -> None:
    verdict = ending.judge(seen, [], ABOUT, **how)
    assert type(verdict.ending.cause) is kind
    # A limit of its own that was hit once will be hit again.
    assert isinstance(verdict.ending.cause, InfrastructureFailure) == (kind is not StoreFull)
    assert says in str(verdict.ending.cause)
    assert "loops/train-0123" in str(verdict.ending.cause)


def test_oom_says_what_to_raise() -> None:
    cause = ending.judge(pod("Failed", ended(137, "OOMKilled")), [], ABOUT).ending.cause
    assert "raise memory of size small in sizes.yaml or the task's memory_mb" in str(cause)


def test_events_tell_what_the_object_does_not() -> None:
    events = [event("Killing", "Stopping container step", "2013-01-01T00:00:05Z"), event("Evicted", "low on memory")]
    assert "was deleted (low on memory)" in str(ending.judge(pod(), events, ABOUT, gone=True).ending.cause)


def test_what_stopped_it_explains_more_than_that_it_was_stopped() -> None:
    events = [
        event("Killing", "Stopping container step", FINISHED),
        event("Evict", "Pod is evicted, because of preempt"),
    ]
    cause = ending.judge(pod(), events, ABOUT, gone=True).ending.cause
    assert "was deleted (Pod is evicted, because of preempt)" in str(cause)


def test_a_queue_that_preempts_is_named() -> None:
    target = {
        "type": "TerminationTarget", "status": "True", "reason": "WorkloadEvictedDueToPreempted",
        "message": "Preempted to accommodate a higher priority Workload",
    }  # fmt: skip
    cause = ending.judge(pod(conditions=(target,), going=True), [], ABOUT, gone=True).ending.cause
    assert isinstance(cause, PodLost)
    assert "was preempted by its queue" in str(cause)
    assert "higher priority Workload" in str(cause)
    other = {**target, "reason": "WorkloadEvictedDueToDeactivated", "message": ""}
    cause = ending.judge(pod(conditions=(other,)), [], ABOUT, gone=True).ending.cause
    assert "was ended by its queue: WorkloadEvictedDueToDeactivated" in str(cause)


def test_a_pod_in_a_queue_says_in_which() -> None:
    seen = pod("Pending", node="", conditions=(GATED,))
    seen["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team"}
    why = ending.waiting(seen, [], ABOUT)
    assert why is not None
    assert why.reason == "queue team (its Workload says why: kubectl get workloads) has not admitted it: kueue"
    late = ending.too_late(why, ABOUT, 60)
    assert "got no node in 60 s: queue team" in str(late)


def test_a_scheduler_that_is_not_there_is_named() -> None:
    seen = pod("Pending", node="")
    seen["spec"]["schedulerName"] = "volcano"
    why = ending.waiting(seen, [], ABOUT)
    assert why is not None
    assert why.reason.startswith("scheduler volcano has not looked at it")


def test_a_nodes_message_is_no_receipt() -> None:
    for reason in ("StartError", "ContainerCannotRun", "ContainerStatusUnknown"):
        verdict = ending.judge(pod("Failed", ended(0, reason, "of the node")), [], ABOUT)
        assert verdict.receipt == ""
        assert verdict.ending.cause is not None


def test_a_success_without_a_container_is_no_more_than_exit_0() -> None:
    verdict = ending.judge(pod("Succeeded"), [], ABOUT)
    assert (verdict.ending.exit_code, verdict.receipt) == (0, "")


def test_what_was_lost_before_it_began_did_not_start() -> None:
    assert not ending.judge(pod("Pending", node=""), [], ABOUT, gone=True).started
    assert not ending.judge(pod("Failed", ended(128, "StartError")), [], ABOUT).started
    assert not ending.judge(pod("Failed", NOT_FOUND), [], ABOUT).started
    assert ending.judge(pod("Running", {"running": {"startedAt": STARTED}}), [], ABOUT, gone=True).started


def test_what_ran_and_was_lost_did_start() -> None:
    seen = pod("Failed", NOT_FOUND)
    seen["status"]["containerStatuses"][-1]["containerID"] = "containerd://0123"
    assert ending.judge(seen, [], ABOUT, gone=True).started
    verdict = ending.judge(pod("Failed", NOT_FOUND, last=NOT_FOUND, going=True), [], ABOUT, gone=True)
    assert verdict.started
    assert "was lost with its node" in str(verdict.ending.cause)


NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "kueue"}


@pytest.mark.parametrize(
    ("seen", "events", "what", "reason"),
    [
        (pod("Pending", node=""), [], "node", "no scheduler has looked at it"),
        (pod("Pending", node=""), [event("FailedScheduling", "no room")], "node", "no room"),
        (pod("Pending", node="", conditions=(NO_NODE,)), [], "node", "0/3 nodes are available"),
        (pod("Pending", node="", conditions=(GATED,)), [], "node", "its queue has not admitted it: kueue"),
        (pod("Pending"), [], "start", "its node has not begun to start it"),
        (pod("Pending", {"waiting": {"reason": "ContainerCreating"}}), [], "start", "ContainerCreating"),
        (
            pod("Pending", {"waiting": {"reason": "ContainerCreating"}}),
            [event("FailedMount", "no volume")],
            "start",
            "ContainerCreating: no volume",
        ),
        (
            pod("Pending", {"waiting": {"reason": "ContainerCreating"}}),
            [event("Pulling", 'Pulling image "airloop:1"')],
            "start",
            'ContainerCreating: Pulling image "airloop:1"',
        ),
        (
            pod("Pending", {"waiting": {"reason": "ContainerCreating"}}),
            [event("Pulling", 'Pulling image "airloop:1"'), event("Pulled", "Successfully pulled image", FINISHED)],
            "start",
            "ContainerCreating",
        ),
        (
            pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}),
            [],
            "start",
            "ImagePullBackOff: Back-off",
        ),
    ],
)
def test_a_pod_that_waits_says_for_what(seen: dict[str, Any], events: list[Any], what: str, reason: str) -> None:
    why = ending.waiting(seen, events, ABOUT)
    assert why is not None
    assert (why.what, why.reason, why.hopeless) == (what, reason, None)


@pytest.mark.parametrize("state", [{"running": {}}, ended(0)])
def test_one_that_has_begun_waits_for_nothing(state: dict[str, Any]) -> None:
    assert ending.waiting(pod(state=state), [], ABOUT) is None


def test_a_name_that_is_no_images_is_hopeless() -> None:
    why = ending.waiting(pod("Pending", {"waiting": {"reason": "InvalidImageName"}}), [], ABOUT)
    assert why is not None
    assert isinstance(why.hopeless, BadConfiguration)
    assert "image airloop:1: InvalidImageName; correct images in sizes.yaml" in str(why.hopeless)


@pytest.mark.parametrize(
    ("what", "reason", "kind", "says"),
    [
        ("node", "0/3 nodes are available", NotStarted, "got no node in 900 s: 0/3 nodes are available"),
        ("start", "ErrImagePull: not found", NotStarted, "image airloop:1 could not be pulled in 900 s: ErrImagePull"),
        (
            "start",
            'ContainerCreating: Pulling image "airloop:1"',
            NotStarted,
            "image airloop:1 could not be pulled in 900 s: ContainerCreating: Pulling image",
        ),
        (
            "start",
            'CreateContainerConfigError: secret "x" not found',
            BadConfiguration,
            '"x" not found; make the Secret or ConfigMap that it names in namespace loops, or correct sizes.yaml',
        ),
        (
            "start",
            "ContainerCreating: no volume",
            NotStarted,
            "was not started in 900 s: ContainerCreating: no volume; see what its node says (kubectl -n loops describe "
            "pod train-0123), or raise patience.start_s in sizes.yaml",
        ),
    ],
)
def test_what_was_waited_for_in_vain_is_named(what: Any, reason: str, kind: type[AirloopError], says: str) -> None:
    error = ending.too_late(ending.Waiting(what=what, reason=reason), ABOUT, 900.0)
    assert type(error) is kind
    assert says in str(error)


def test_use_is_told_in_seconds() -> None:
    assert ending.usage(pod("Succeeded", ended(0))) == {
        "pod": "train-0123",
        "node": "node-1",
        "image_id": "airloop@sha256:ab",
        "queue_s": 10.0,
        "pod_s": 60.0,
    }
    assert ending.usage(pod("Pending", node="")) == {"pod": "train-0123"}
    assert ending.usage({}) == {"pod": ""}
