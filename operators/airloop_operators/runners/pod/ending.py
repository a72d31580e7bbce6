"""
What happened to a pod, read from its object and its events: pure, so that every state can be tested as it was seen.

It says how the payload's process ended and what ended it. Whether the step is done is not decided here: that takes its
manifest, and is :func:`airloop_operators.runners.base.conclude`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from airloop.contract import Exit
from airloop.errors import AirloopError, BadConfiguration, NotStarted, OutOfMemory, PodLost, StoreFull, TimedOut
from airloop_operators.runners.base import Ending
from airloop_operators.runners.pod.queues import KUEUE_QUEUE
from airloop_operators.runners.pod.spec import CONTAINER

Object = Mapping[str, Any]
"""As the API server tells it, in JSON."""

_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted: a pod of higher priority took its place",
    "DeletionByTaintManager": "was evicted: its node has a taint that it does not tolerate (one that is not ready has)",
    "EvictionByEvictionAPI": "was evicted, as when its node is drained",
    "DeletionByPodGC": "was removed because its node is gone",
    "TerminationByKubelet": "was ended by its node",
}
"""By the reason of the condition ``DisruptionTarget``."""
_QUEUES = {
    "WorkloadEvictedDueToPreempted": "was preempted by its queue: a workload of higher priority took its place",
    "WorkloadEvictedDueToPodsReadyTimeout": "was taken back by its queue: it was not ready in time",
}
"""By the reason of the condition ``TerminationTarget``, which Kueue sets before it deletes a pod."""
_POD_REASONS = {
    "Evicted": "was evicted by its node",
    "Preempting": "was preempted by its node",
    "Preempted": "was preempted by its node",
    "NodeLost": "was lost with its node",
    "NodeShutdown": "was ended because its node is shutting down",
    "Shutdown": "was ended because its node is shutting down",
    "Terminated": "was ended because its node is shutting down",
}
"""By a failed pod's reason."""
_OWN_LIMITS = ("exceeds the limit", "exceeds the total limit", "exceeded its local ephemeral storage limit")
"""What a node says that evicts a pod for its own limits, and not because the node itself is short of something."""
_START_REASONS = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError", "ErrorDuringStart")
"""Of a container that ended before its command began; its message is the node's, not the payload's."""
_UNKNOWN = "ContainerStatusUnknown"
"""
Of a container that its node does not find when the pod ends, and so also of one that was never made: a kubelet tells an
end of every container before a pod goes (its ``TerminatePod``), with exit code 137.
"""
_PULLING = "Pulling image"
"""So begins a node's event when it pulls one; in the pod itself nothing says so until that has failed."""
_BAD_IMAGE = ("InvalidImageName", "ErrImageNeverPull")
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed")
MORE_TIME = "raise its task's execution_timeout"
_OWN_CODES = frozenset({Exit.DONE, Exit.REJECTED, Exit.TRY_AGAIN, Exit.SKIPPED})
"""By which a payload itself says how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an error about a pod names."""

    step: str
    pod: str
    """``NAMESPACE/NAME``."""
    size: str
    memory: str
    """Its limit, as Kubernetes writes it."""
    image: str = ""
    origin: str = "[airloop] sizes"
    """Where sizes are configured."""
    more_time: str = MORE_TIME
    """What to do about a deadline that was too early."""

    @property
    def namespace(self) -> str:
        """Where the pod is."""
        return self.pod.partition("/")[0]

    @property
    def name(self) -> str:
        """The pod's own."""
        return self.pod.rpartition("/")[2]

    def __str__(self) -> str:
        return f"step {self.step}: pod {self.pod}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a pod ended."""

    ending: Ending
    receipt: str
    """What the payload left as its receipt; empty if nothing."""
    started: bool
    """Whether the payload ever ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why a pod does not run yet."""

    what: Literal["node", "start"]
    """What it waits for: a node, or what its node needs to start it."""
    reason: str
    """In the cluster's words."""
    hopeless: AirloopError | None = None
    """No use in waiting: what is wrong."""


def is_over(pod: Object) -> bool:
    """Whether the whole pod has ended."""
    return _status(pod).get("phase") in ("Succeeded", "Failed")


def terminated(pod: Object) -> Object | None:
    """State of the payload's container, if it has ended; side-cars may still run."""
    found: Object | None = (_container(pod).get("state") or {}).get("terminated")
    return found


def has_started(pod: Object) -> bool:
    """Whether the payload runs or has run."""
    container = _container(pod)
    state = container.get("state") or {}
    ended = state.get("terminated")
    if not ended:
        return state.get("running") is not None
    if ended.get("reason") == _UNKNOWN:
        # One that was made has its id, or is told to have run before.
        return bool(container.get("containerID") or (container.get("lastState") or {}).get("terminated"))
    return ended.get("reason") not in _START_REASONS


def is_going(pod: Object) -> bool:
    """Whether somebody deletes it."""
    return bool(pod.get("metadata", {}).get("deletionTimestamp"))


def judge(pod: Object, events: Sequence[Object], about: About, *, gone: bool = False, lost_s: float = 0.0) -> Verdict:
    """
    How a pod ended.

    :param pod: as it was last seen.
    :param gone: it is not there any more.
    :param lost_s: seconds for which nothing was heard of its end, after which it was given up; 0: it has ended.
    """
    state = terminated(pod) or {}
    exit_code: int | None = state.get("exitCode")
    if exit_code is None and _status(pod).get("phase") == "Succeeded":
        exit_code = 0
    by_node = state.get("reason") in (*_START_REASONS, _UNKNOWN)
    cause = None if exit_code in _OWN_CODES and not by_node else _cause(pod, state, events, about, gone, lost_s)
    return Verdict(
        ending=Ending(exit_code=exit_code, signal=state.get("signal") or None, cause=cause),
        receipt="" if by_node else str(state.get("message") or ""),
        started=has_started(pod),
    )


def waiting(pod: Object, events: Sequence[Object], about: About) -> Waiting | None:
    """Why it does not run yet; None: it does, or has."""
    state = _container(pod).get("state") or {}
    if is_over(pod) or state.get("running") is not None or state.get("terminated"):
        return None
    scheduled = _condition(pod, "PodScheduled")
    if not pod.get("spec", {}).get("nodeName") and scheduled.get("status") != "True":
        reason = scheduled.get("message") or _told(events, "FailedScheduling")
        if scheduled.get("reason") == "SchedulingGated":
            reason = f"{_queue(pod)} has not admitted it: {reason}"
        return Waiting(what="node", reason=reason or _unseen(pod))
    waits = state.get("waiting") or {}
    reason, message = waits.get("reason") or "", waits.get("message") or ""
    trouble = _told(events, "Failed", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
    pull = _told(events, "Pulling", "Pulled")
    told = message or trouble or (pull if pull.startswith(_PULLING) else "")
    text = ": ".join(filter(None, (reason, told))) or "its node has not begun to start it"
    hopeless: AirloopError | None = None
    if reason in _BAD_IMAGE:
        hopeless = BadConfiguration(
            f"{about} cannot be started: image {about.image}: {text}", f"correct images in {about.origin}"
        )
    return Waiting(what="start", reason=text, hopeless=hopeless)


def scheduled_after_s(pod: Object) -> float | None:
    """Seconds from its making until it had a node, by the cluster's clock; None: it has none, or nobody tells."""
    condition = _condition(pod, "PodScheduled")
    made, scheduled = _time(pod["metadata"].get("creationTimestamp")), _time(condition.get("lastTransitionTime"))
    if condition.get("status") != "True" or made is None or scheduled is None:
        return None
    return max(0.0, (scheduled - made).total_seconds())


def too_late(why: Waiting, about: About, waited_s: float) -> AirloopError:
    """The error of a pod that was waited for in vain."""
    if why.what == "node":
        return NotStarted(
            f"{about} got no node in {waited_s:,.0f} s: {why.reason}",
            f"free such a node, make size {about.size} smaller, or raise patience.schedule_s in {about.origin}",
        )
    if why.reason.startswith("CreateContainerConfigError"):
        return BadConfiguration(
            f"{about} cannot be started: {why.reason}",
            f"make the Secret or ConfigMap that it names in namespace {about.namespace}, or correct {about.origin}",
        )
    if why.reason.startswith(_IMAGE) or _PULLING in why.reason:
        return NotStarted(
            f"{about}: image {about.image} could not be pulled in {waited_s:,.0f} s: {why.reason}",
            f"see that it is there and that the nodes may pull it (images, pull_secrets in {about.origin})",
        )
    return NotStarted(
        f"{about} was not started in {waited_s:,.0f} s: {why.reason}",
        f"see what its node says (kubectl -n {about.namespace} describe pod {about.name}), or raise patience.start_s "
        f"in {about.origin}",
    )


def usage(pod: Object) -> dict[str, float | int | str]:
    """
    What a pod used, as the cluster tells it: ``node``, ``image_id``, ``queue_s`` without a node, ``pod_s`` with one.
    """
    found: dict[str, float | int | str] = {"pod": str(pod.get("metadata", {}).get("name", ""))}
    node, image = pod.get("spec", {}).get("nodeName"), _container(pod).get("imageID")
    if node:
        found["node"] = str(node)
    if image:
        found["image_id"] = str(image)
    when = times(pod)
    if when.made and when.began:
        found["queue_s"] = max(0.0, ((when.scheduled or when.began) - when.made).total_seconds())
    if when.began and when.ended:
        found["pod_s"] = max(0.0, (when.ended - (when.scheduled or when.began)).total_seconds())
    return found


@dataclass(frozen=True, slots=True)
class Times:
    """When what happened to a pod, by the clocks of the cluster; None: it did not, or it was not told."""

    made: datetime | None
    scheduled: datetime | None
    """It has a node since: what it asks for is taken from others."""
    began: datetime | None
    """Its payload."""
    ended: datetime | None
    """Its payload."""


def times(pod: Object) -> Times:
    """When what happened to a pod."""
    state = _container(pod).get("state") or {}
    ended = state.get("terminated") or {}
    scheduled = _condition(pod, "PodScheduled")
    return Times(
        made=_time(pod.get("metadata", {}).get("creationTimestamp")),
        scheduled=_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        began=_time(ended.get("startedAt") or (state.get("running") or {}).get("startedAt")),
        ended=_time(ended.get("finishedAt")),
    )


def last_dated(pod: Object) -> datetime | None:
    """The last of what is dated in a pod: one that is over was not over before; None: nothing is."""
    when = times(pod)
    conditions = (_time(condition.get("lastTransitionTime")) for condition in _status(pod).get("conditions") or [])
    return max(filter(None, (when.made, when.scheduled, when.began, when.ended, *conditions)), default=None)


def summary(pod: Object) -> dict[str, str | int]:
    """What a page tells of a pod: ``phase``, ``node``, ``image_id``, ``exit_code``, ``reason``, ``message``."""
    state = _container(pod).get("state") or {}
    at = state.get("terminated") or state.get("waiting") or {}
    phase = "Terminating" if is_going(pod) and not is_over(pod) else _status(pod).get("phase")
    found = {
        "phase": phase or "",
        "node": pod.get("spec", {}).get("nodeName") or "",
        "image_id": _container(pod).get("imageID") or "",
        "reason": _status(pod).get("reason") or at.get("reason") or "",
        # A container's own message is the payload's receipt, unless its node could not start it.
        "message": _status(pod).get("message") or ("" if state.get("terminated") else at.get("message") or ""),
    }
    told: dict[str, str | int] = {name: str(value) for name, value in found.items() if value}
    if state.get("terminated"):
        told["exit_code"] = int(at.get("exitCode", 0))
    return told


def _cause(
    pod: Object, state: Object, events: Sequence[Object], about: About, gone: bool, lost_s: float
) -> AirloopError | None:
    status = _status(pod)
    reason, said = str(status.get("reason") or ""), str(status.get("message") or "")
    ended_as, by_node = str(state.get("reason") or ""), str(state.get("message") or "")
    if ended_as == "OOMKilled":
        return OutOfMemory(
            f"{about} was ended by the kernel at its memory limit of {about.memory} (OOMKilled, size {about.size})",
            f"raise memory of size {about.size} in {about.origin} or the task's memory_mb, take a larger size, "
            "or lower AIRLOOP_ROWS_PER_CHUNK",
        )
    if reason == "DeadlineExceeded":
        return TimedOut(_sentence(about, "ran over its deadline", said), about.more_time)
    queue = _condition(pod, "TerminationTarget")
    if queue.get("status") == "True":
        why = str(queue.get("reason") or "")
        return PodLost(
            _sentence(about, _QUEUES.get(why, f"was ended by its queue: {why}"), queue.get("message") or said)
        )
    disruption = _condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True":
        why = str(disruption.get("reason") or "")
        return PodLost(_sentence(about, _DISRUPTIONS.get(why, f"was ended: {why}"), disruption.get("message") or said))
    if reason == "Evicted" and any(limit in said for limit in _OWN_LIMITS):
        return StoreFull(
            _sentence(about, f"was evicted by its node for what it wrote (size {about.size})", said),
            f"raise scratch of size {about.size} in {about.origin}, or take a larger size",
        )
    if reason in _POD_REASONS:
        return PodLost(_sentence(about, _POD_REASONS[reason], said or _told(events, "Evicted", "Preempting")))
    if ended_as in _START_REASONS:
        return NotStarted(_sentence(about, "could not be started", f"{ended_as}: {by_node}"))
    deleted = gone or is_going(pod)
    if ended_as == _UNKNOWN and (has_started(pod) or not deleted):
        return PodLost(_sentence(about, "was lost with its node", by_node))
    if status.get("phase") == "Failed" and not state:
        # A node refused it: OutOfcpu, OutOfmemory, NodeAffinity, UnexpectedAdmissionError, …
        return NotStarted(_sentence(about, "was refused by its node", f"{reason}: {said}"))
    if lost_s:
        node = pod.get("spec", {}).get("nodeName") or "its node"
        return PodLost(_sentence(about, f"was given up: {node} has not confirmed its end for {lost_s:,.0f} s", ""))
    if deleted:
        return PodLost(
            # Volcano says Evict. That its container is stopped is told last, and explains least.
            _sentence(
                about,
                "was deleted",
                _told(events, "Evicted", "Evict", "Preempted", "TaintManagerEviction") or _told(events, "Killing"),
            ),
            "somebody or something in the cluster deleted it",
        )
    return None


def _queue(pod: Object) -> str:
    """Who holds a gated pod back, and who knows why."""
    name = (pod.get("metadata", {}).get("labels") or {}).get(KUEUE_QUEUE)
    return f"queue {name} (its Workload says why: kubectl get workloads)" if name else "its queue"


def _unseen(pod: Object) -> str:
    name = pod.get("spec", {}).get("schedulerName") or ""
    if name in ("", "default-scheduler"):
        return "no scheduler has looked at it"
    return f"scheduler {name} has not looked at it: see that it runs, and that its queue is there and open"


def _sentence(about: About, what: str, said: str) -> str:
    said = said.strip().rstrip(".")
    return f"{about} {what}" + (f" ({said})" if said else "")


def _told(events: Iterable[Object], *reasons: str) -> str:
    """What the newest event of some reasons says; empty: there is none."""
    found = [event for event in events if event.get("reason") in reasons and event.get("message")]
    found.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or e.get("firstTimestamp") or ""))
    return str(found[-1]["message"]).strip() if found else ""


def _status(pod: Object) -> Object:
    status: Object = pod.get("status") or {}
    return status


def _container(pod: Object) -> Object:
    """Status of the payload's container; empty if it has none yet."""
    statuses = _status(pod).get("containerStatuses") or []
    return next((status for status in statuses if status.get("name") == CONTAINER), {})


def _condition(pod: Object, kind: str) -> Object:
    return next((c for c in _status(pod).get("conditions") or [] if c.get("type") == kind), {})


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None
