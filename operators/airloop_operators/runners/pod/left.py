"""
A pod that was left to itself, and when its task has to be woken up: pure, for workers and the trigger.

What a task needs to know when it comes back travels through Airflow's database, in the trigger's arguments: names,
times and how far the log was read; nothing of what the step is given, and so no secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.ending import About, Object
from airloop_operators.runners.pod.log import UNREAD, Mark

QUOTA_S = (15.0, 300.0)
"""Seconds between two tries of a pod that a quota keeps out: at first, and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """All times are Unix times by the clocks of workers, in seconds."""

    connection: str
    """Airflow connection to the cluster."""
    namespace: str
    in_cluster: bool = False
    """The cluster is the one in which Airflow runs."""
    pod: str
    """Name."""
    uid: str = ""
    """Empty: there is no pod yet, for a quota keeps it out."""
    version: str = ""
    """Of the cluster's objects when the pod was last seen; what has become of it since can be asked for."""
    began_at: float
    """When the attempt began."""
    made_at: float
    """When the pod was made."""
    until: float | None = None
    """When the attempt's time is over."""
    wake_at: float | None = None
    """When the task wants to look at it, whatever has happened."""
    times_made: int = 0
    times_kept_out: int = 0
    log: Mark = UNREAD
    schedule_s: float
    start_s: float
    api_s: float
    grace_s: float

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From :meth:`as_json`, of this release or another one."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known} | {"log": Mark(*given["log"])})

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "log": list(self.log)}

    def seen(self, pod: Object, version: str = "") -> Left:
        """With the pod as it is now."""
        about = pod["metadata"]
        return replace(self, uid=about["uid"], version=version or str(about.get("resourceVersion") or ""))

    def kept_out(self, now: float) -> Left:
        """A quota is used up: when to ask again."""
        pause_s = min(QUOTA_S[1], QUOTA_S[0] * 2**self.times_kept_out)
        at = min(now + pause_s, max(now + 1, self.began_at + self.schedule_s))
        return replace(self, uid="", wake_at=at, times_kept_out=self.times_kept_out + 1)

    def resting(self, log_s: float, now: float) -> Left:
        """The pod runs or will run. :param log_s: seconds after which its log is to be looked at; infinite: never."""
        return replace(self, wake_at=now + log_s if math.isfinite(log_s) else None)


def why_wake(left: Left, pod: Object | None, now: float) -> tuple[str, float]:
    """
    Why the task has to be woken up, and when next something is due if it has not.

    :param pod: as it is now; None: it is not there.
    :returns: empty: it has not; and a Unix time, which may be infinite.
    """
    if left.uid:
        if pod is None or pod["metadata"]["uid"] != left.uid:
            return "is gone", now
        if ending.is_over(pod) or ending.terminated(pod):
            return "has ended", now
        if ending.is_going(pod):
            return "is being deleted", now
    due = {"has no more time": left.until, "is looked at": left.wake_at}
    if left.uid and pod is not None and not ending.has_started(pod):
        why = ending.waiting(pod, [], About(step="", pod=left.pod, size="", memory=""))
        if why is not None and why.hopeless is not None:
            return "cannot be started", now
        after_s = ending.scheduled_after_s(pod)
        if why is not None and why.what == "node":
            due["has no node yet"] = left.made_at + left.schedule_s
        else:
            # Where nobody tells when it got its node, it had all the time for that.
            due["has not started yet"] = left.made_at + (left.schedule_s if after_s is None else after_s) + left.start_s
    first = min(((at, what) for what, at in due.items() if at is not None), default=(math.inf, ""))
    return (first[1], now) if now >= first[0] else ("", first[0])
