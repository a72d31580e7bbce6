"""A pod watched to its end, and its log followed meanwhile; what becomes of it does not depend on its log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.case import MARGIN_S, Case
from airloop_operators.runners.pod.cluster import Abandoned, Refused, rest
from airloop_operators.runners.pod.ending import Object, Verdict
from airloop_operators.runners.pod.log import LogFollower, Mark
from airloop_operators.runners.pod.spec import CONTAINER

LOOK_S = 20.0
"""Seconds after which a pod is looked at though nothing was told of it."""
SETTLE_S = 2.0
"""Seconds for a cluster to say why a container was ended by a signal."""
LOG_S = 30.0
"""Seconds to read the rest of an ended container's log."""


class Watcher:
    """
    Waits for the end of one attempt's pod.

    :param feed: takes each line of the log once, in the watcher's threads.
    :param read: how far the log has been read before.
    """

    def __init__(self, case: Case, feed: Callable[[bytes], None], *, until: float | None, read: Mark) -> None:
        self._case = case
        self._feed = feed
        self._until = until
        """When its time is over, by the monotonic clock."""
        self._read = read
        self._follower: LogFollower | None = None

    def attend(self, first: Object, made_at: float) -> Verdict:
        """
        Wait for a pod's end.

        :param made_at: when it was made, by the monotonic clock.
        :raises AirloopError: it cannot be started, or was not in time.
        """
        case = self._case
        patience = case.pods.patience
        scheduled_at = going_at = ended_at = None
        said: tuple[str, str] | None = None
        for pod, gone in self._states(first):
            now = time.monotonic()
            case.last = pod
            case.tell.seen(pod)
            if gone:
                return self.judged(gone=True)
            if ending.has_started(pod):
                self._follow()
            if case.abandoned():
                raise Abandoned
            if ending.terminated(pod):
                ended_at = ended_at or now
            # A signal has a reason, which is told a little later.
            if ending.is_over(pod) or (ended_at and now - ended_at >= SETTLE_S):
                return self.judged()
            if ending.is_going(pod):
                going_at = going_at or now
                if now - going_at >= patience.grace_s + patience.lost_s:
                    return self.judged(lost_s=now - going_at)
                continue
            events = [] if ending.has_started(pod) else case.cluster.events(pod)
            why = ending.waiting(pod, events, case.about)
            case.tell.seen(pod, events)
            if why is None:
                continue
            case.tell.waits(why.what, why.reason)
            if why.hopeless is not None:
                raise why.hopeless
            if (why.what, why.reason) != said:
                said = (why.what, why.reason)
                case.say(logging.INFO, "pod %s waits for %s: %s", case.about.pod, why.what, why.reason)
            if why.what == "start" and scheduled_at is None:
                after_s = ending.scheduled_after_s(pod)
                scheduled_at = now if after_s is None else min(now, made_at + after_s)
            since = made_at if why.what == "node" else (scheduled_at or now)
            if now - since >= (patience.schedule_s if why.what == "node" else patience.start_s):
                raise ending.too_late(why, case.about, now - since)
        raise AssertionError("a pod's states end with its own end")

    def judged(self, *, gone: bool = False, lost_s: float = 0.0) -> Verdict:
        """How the pod that was last seen has ended; its log is read to the end."""
        case = self._case
        events = case.clean().events(case.last)
        if "status" in case.last:
            case.tell.seen(case.last, events, over=True)
        if self._follower is None and ending.has_started(case.last):
            self._follow()
        if self._follower is not None and not self._follower.finish(MARGIN_S if gone or lost_s else LOG_S):
            case.say(logging.WARNING, "the end of the log of pod %s could not be read", case.about.pod)
        return ending.judge(case.last, events, case.about, gone=gone, lost_s=lost_s)

    def catch_up(self) -> Mark:
        """Read the log of a pod that runs, as far as it goes; returns how far that is."""
        if not ending.has_started(self._case.last):
            return self._read
        follower = self._new_follower()
        follower.catch_up()
        self._read = follower.mark
        return self._read

    def finish(self, within_s: float) -> None:
        """Nothing more is wanted of the log than what can be read in so many seconds."""
        if self._follower is not None:
            self._follower.finish(within_s)

    def _states(self, pod: Object) -> Iterator[tuple[Object, bool]]:
        """A pod whenever it changes and every few seconds, and whether it is gone, which is the last."""
        case, uid = self._case, pod["metadata"]["uid"]
        version = ""
        while True:
            yield pod, False
            began = time.monotonic()
            for changed, gone in case.cluster.changes(pod, self._look_s(pod), version):
                if changed["metadata"]["uid"] != uid:
                    break
                pod, version = changed, changed["metadata"]["resourceVersion"]
                yield pod, gone
                if gone:
                    return
                if ending.terminated(pod):
                    break
            # A watch that is refused at once must not be asked for at once again.
            rest(began + 1 - time.monotonic(), case.abandoned)
            now, seen = case.cluster.look(case.made.name)
            if now is None or now["metadata"]["uid"] != uid:
                # How it was at its end has been told meanwhile.
                told = [changed for changed, _ in case.cluster.changes(pod, 1, version)]
                yield (told or [pod])[-1], True
                return
            # A pod that does not change has a version that its cluster soon forgets.
            pod, version = now, seen

    def _look_s(self, pod: Object) -> float:
        """How long nothing may be told before it is looked at again: less where something is due."""
        patience = self._case.pods.patience
        if ending.terminated(pod):
            return SETTLE_S / 2
        due = [LOOK_S, patience.schedule_s / 4, patience.start_s / 4] if not ending.has_started(pod) else [LOOK_S]
        if ending.is_going(pod):
            due.append((patience.grace_s + patience.lost_s) / 4)
        if self._until is not None:
            due.append(self._until - time.monotonic())
        return max(1.0, min(due))

    def _follow(self) -> None:
        if self._follower is None:
            self._follower = self._new_follower()
            self._follower.start()

    def _new_follower(self) -> LogFollower:
        from urllib3.exceptions import HTTPError

        return LogFollower(
            partial(self._case.clean().log, self._case.made.name, CONTAINER),
            self._feed,
            (Refused, HTTPError, OSError),
            read=self._read,
        )
