"""Steps as pods of a Kubernetes cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from airloop.contract import Call
from airloop.errors import BadArgument, ProcessLost
from airloop_operators.runners.base import RunOutcome, RunRequest, Underway
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.access import Connect, connect
from airloop_operators.runners.pod.attempt import CLEAN_UP_S, Attempt
from airloop_operators.runners.pod.cluster import Cluster, Refused, refusal
from airloop_operators.runners.pod.left import Left
from airloop_operators.runners.pod.sizes import Pods

log = logging.getLogger("airloop.runner")


class PodRunner:
    """
    Runs each attempt in a pod of its own.

    It never takes another attempt's pod for its own. Those of earlier tries of the same task, whose worker was lost,
    are ended first.

    :param pods: sizes, pools and the rest of the configuration.
    """

    def __init__(self, pods: Pods, *, connect: Connect = connect) -> None:
        self._pods = pods
        self._connect = connect
        self._attempts: set[Attempt] = set()
        self._stopped = False

    def run(self, request: RunRequest) -> RunOutcome | Underway:
        """
        Run an attempt to its end, or until it may be left.

        :raises BadArgument: its call has no attempt.
        :raises BadConfiguration: its size, its state's places or the access to the cluster are wrong, or it asks for
            several ranks.
        :raises ProcessLost: the task was stopped before.
        """
        if not request.call.attempt:
            raise BadArgument(f"the call of step {request.call.step} has no attempt", "see airloop.contract.attempt_id")
        request.alone("pod")
        attempt = Attempt(request, self._pods, self._connect)
        self._attempts.add(attempt)
        outcome: RunOutcome | Underway | None = None
        try:
            if self._stopped:
                raise ProcessLost(f"step {request.call.step} was not started because its task was stopped")
            outcome = attempt.run()
            return outcome
        finally:
            # What was left is this task's to end until its process is gone.
            if not isinstance(outcome, Underway):
                self._attempts.discard(attempt)

    def under_way(self, calls: Sequence[Call]) -> int:
        """
        Which of a try's attempts has a pod; 0 if none has.

        :raises BadConfiguration: pods may not be listed.
        :raises InfrastructureFailure: the API server is away.
        """
        access = self._connect(self._pods)
        cluster = Cluster(access.apis[0], access.namespace, patience_s=self._pods.patience.api_s)
        instance = self._pods.instance
        try:
            pods = cluster.pods(f"{names.TASK_INSTANCE}={names.task_instance(calls[0], instance)}")
        except Refused as no:
            raise refusal(no, "looking for the pods of a task") from None
        there = [n for n, call in enumerate(calls) if any(names.is_of(p["metadata"], call, instance) for p in pods)]
        return there[-1] if there else 0

    def end_earlier(self, calls: Sequence[Call]) -> None:
        """
        End the pods of a task's other tries.

        :raises BadConfiguration: pods may not be listed.
        :raises InfrastructureFailure: the API server is away.
        """
        access = self._connect(self._pods)
        cluster = Cluster(access.apis[0], access.namespace, patience_s=CLEAN_UP_S)
        instance = self._pods.instance
        try:
            for pod in cluster.pods(f"{names.TASK_INSTANCE}={names.task_instance(calls[0], instance)}"):
                ours = any(names.is_of(pod["metadata"], call, instance) for call in calls)
                if not ours and not ending.is_going(pod):
                    log.warning("ending pod %s of an earlier try", pod["metadata"]["name"])
                    cluster.delete_pod(pod, self._pods.patience.grace_s)
        except Refused as no:
            raise refusal(no, "looking for the pods of a task") from None

    def abandon(self, state: Mapping[str, Any]) -> None:
        """End the pod of an attempt that was left and will not be run again."""
        left = Left.of(state)
        try:
            access = self._connect(self._pods)
            cluster = Cluster(access.apis[0], left.namespace, patience_s=CLEAN_UP_S)
            cluster.delete_by_name(left.pod, left.grace_s)
        except Exception as no:  # noqa: BLE001  the error because of which it is abandoned counts
            log.warning("pod %s/%s could not be asked to end: %s", left.namespace, left.pod, no)

    def on_kill(self) -> None:
        """End all pods that run, and start nothing more; returns when they are gone, or their grace is over."""
        self._stopped = True
        for attempt in list(self._attempts):
            attempt.stop()
