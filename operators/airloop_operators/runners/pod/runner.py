"""Steps as pods of a Kubernetes cluster."""

from __future__ import annotations

from airloop.errors import BadArgument, ProcessLost
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.pod.access import Connect, connect
from airloop_operators.runners.pod.attempt import Attempt
from airloop_operators.runners.pod.sizes import Pods


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

    def run(self, request: RunRequest) -> RunOutcome:
        """
        Run an attempt to its end.

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
        try:
            if self._stopped:
                raise ProcessLost(f"step {request.call.step} was not started because its task was stopped")
            return attempt.run()
        finally:
            self._attempts.discard(attempt)

    def on_kill(self) -> None:
        """End all pods that run, and start nothing more; returns when they are gone, or their grace is over."""
        self._stopped = True
        for attempt in list(self._attempts):
            attempt.stop()
