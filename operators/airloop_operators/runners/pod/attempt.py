"""
One attempt's pod from its making to its end.

A thread watches the pod and another follows its log, while the task's own thread only logs what they bring and can be
interrupted at any time. Whatever is seen of a pod, the step is done if, and only if, its manifest is there.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from airloop.errors import AirloopError, BadConfiguration, InfrastructureFailure, NotStarted, PodLost
from airloop.redact import Redactor
from airloop_operators.runners.base import Ending, RunOutcome, RunRequest, conclude, read_record
from airloop_operators.runners.logs import LogStream
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.access import Connect
from airloop_operators.runners.pod.cluster import Abandoned, Away, Cluster, Refused, refusal, rest
from airloop_operators.runners.pod.ending import About, Object, Verdict
from airloop_operators.runners.pod.log import LogFollower
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import CONTAINER, make
from airloop_operators.runners.pod.teller import Teller
from airloop_operators.runners.records import record_end

log = logging.getLogger("airloop.runner")

LOOK_S = 20.0
"""Seconds after which a pod is looked at though nothing was told of it."""
SETTLE_S = 2.0
"""Seconds for a cluster to say why a container was ended by a signal."""
QUOTA_S = 5.0
"""Seconds between two tries of a pod that a quota keeps out."""
LOG_S = 30.0
"""Seconds to read the rest of an ended container's log."""
CLEAN_UP_S = 20.0
"""Seconds for an API server that is away while pods are removed."""
MARGIN_S = 5.0
"""Seconds that a pod's end may be confirmed late."""


class Attempt:
    """Runs once."""

    def __init__(self, request: RunRequest, pods: Pods, connect: Connect) -> None:
        self._request = request
        self._pods = pods
        self._connect = connect
        self._mask = Redactor(request.secrets.values(), request.environment)
        self._stream = LogStream(logging.getLogger("airloop.payload"), self._mask)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._until: float | None = None
        """When its time is over, by the monotonic clock."""
        self._stopped = False
        self._finished = False
        self._adopted = False
        self._made_times = 0
        self._asked = False
        """There may be a pod to remove."""
        self._verdict: Verdict | None = None
        self._error: BaseException | None = None
        self._last: Object = {}
        """The pod as it was last seen."""
        self._follower: LogFollower | None = None
        self._killer: Cluster | None = None
        self._teller: Teller | None = None

    def run(self) -> RunOutcome:
        request = self._request
        started_at = time.time()
        try:
            return self._run(started_at)
        except BaseException as cause:
            record_end(request.objects, request.call, cause, self._mask, started_at=started_at)
            if self._teller is not None:
                self._teller.fail(cause, alone=self._finished)
            raise

    def _run(self, started_at: float) -> RunOutcome:
        request, pods = self._request, self._pods
        if request.timeout_s is not None:
            self._until = time.monotonic() + request.timeout_s
        access = self._connect(pods)
        spawned_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        made = make(request, pods, namespace=access.namespace, spawned_at=spawned_at)
        about = About(
            step=request.call.step,
            pod=f"{access.namespace}/{made.name}",
            size=made.place.size_name,
            memory=made.memory,
            image=made.place.image,
            origin=pods.origin,
        )
        self._made, self._about = made, about
        before = read_record(request)
        self._tell = self._teller = Teller(
            request, made, self._say, self._mask, namespace=access.namespace, started_at=started_at
        )
        self._clean = partial(Cluster, access.apis[0], access.namespace, patience_s=CLEAN_UP_S, redact=self._mask)
        self._cluster = Cluster(
            access.apis[0],
            access.namespace,
            patience_s=pods.patience.api_s,
            abandoned=self._abandoned,
            redact=self._mask,
        )
        self._killer = Cluster(access.apis[1], access.namespace, patience_s=MARGIN_S, redact=self._mask)
        thread = threading.Thread(target=self._work, name="airloop-pod", daemon=True)
        thread.start()
        try:
            self._listen()
        except BaseException:
            # Airflow's time-out, a signal: nothing may go on without its task.
            self.stop()
            with contextlib.suppress(queue.Empty):
                while (item := self._inbox.get_nowait()) is not None:
                    item()
            raise
        if self._error is not None:
            raise self._error
        assert self._verdict is not None
        last_error = self._stream.last_error or self._stream.last_plain
        ended = replace(self._verdict.ending, last_error=last_error)
        if self._stopped:
            ended = replace(ended, reason="stopped")
        place = made.place
        resources: dict[str, float | int | str] = {
            "start": "pod",
            "wall_s": round(time.time() - started_at, 3),
            "size": place.size_name,
            "pool": place.pool_name,
            "memory_limit_bytes": made.memory_bytes,
            **({place.resource: place.size.accelerators} if place.resource else {}),
            **ending.usage(self._last),
            **self._tell.totals(),
            "pods": self._made_times,
        }
        outcome = conclude(
            request,
            ended,
            self._verdict.receipt,
            # What an adopted pod's payload recorded, it recorded as this attempt.
            before=None if self._adopted else before,
            resources=resources,
            started_at=started_at,
        )
        self._tell.conclude(outcome)
        if outcome.note:
            log.warning("step %s: %s", request.call.step, outcome.note)
        return outcome

    def stop(self) -> None:
        """End the pod; returns when it is gone or its grace is over. Safe in a signal handler."""
        self._stopped = True
        killer = self._killer
        if killer is None:
            return
        grace_s = self._pods.patience.grace_s
        try:
            killer.delete_by_name(self._made.name, grace_s)
        except (Refused, Away) as no:
            log.warning("pod %s could not be asked to end: %s", self._about.pod, no)
        until = time.monotonic() + grace_s + MARGIN_S
        while not self._finished and time.monotonic() < until:
            time.sleep(0.05)

    def _listen(self) -> None:
        """Do in this thread what the others ask for, which is to log, until they have ended."""
        while (item := self._inbox.get()) is not None:
            item()

    def _say(self, level: int, text: str, *values: object) -> None:
        # The cluster's words may hold anything.
        self._inbox.put(partial(log.log, level, "%s", self._mask(text % values)))

    def _work(self) -> None:
        try:
            self._verdict = self._through()
        except Refused as no:
            self._verdict = _never(refusal(no, f"what pod {self._about.pod} needs"))
        except AirloopError as error:
            self._verdict = _never(error)
        except BaseException as error:  # noqa: BLE001  the task's own thread raises it
            self._error = error
        finally:
            try:
                self._remove()
            finally:
                self._finished = True
                self._inbox.put(None)

    def _through(self) -> Verdict:
        """The attempt's verdict; a pod that was lost before it began is made again."""
        until = time.monotonic() + self._pods.patience.schedule_s
        try:
            self._sweep()
            while True:
                verdict = self._attend(self._ensure(until))
                lost = isinstance(verdict.ending.cause, PodLost) and not verdict.started
                if not lost or self._abandoned() or time.monotonic() >= until:
                    return verdict
                self._say(logging.WARNING, "%s; it had not begun: making it again", verdict.ending.cause)
                self._await_gone(self._last)
        except Abandoned:
            self._farewell()
            if self._last:
                self._tell.seen(self._last, over=True)
            reason = "stopped" if self._stopped else "timeout"
            return Verdict(ending=Ending(reason=reason), receipt=self._receipt(), started=True)
        except Away as away:
            # The step may be done all the same: its manifest tells.
            cause = InfrastructureFailure(f"{self._about}: {away.found}", "see that the cluster's API server runs")
            return Verdict(ending=Ending(cause=cause), receipt="", started=bool(self._last))

    def _sweep(self) -> None:
        """End what earlier tries of this task have left."""
        call, instance = self._request.call, self._pods.instance
        if not call.run.dag_id:
            return
        for pod in self._cluster.pods(f"{names.TASK_INSTANCE}={names.task_instance(call, instance)}"):
            if not names.is_of(pod["metadata"], call, instance) and not ending.is_going(pod):
                self._say(logging.WARNING, "ending pod %s of an earlier try", pod["metadata"]["name"])
                self._cluster.delete_pod(pod, self._pods.patience.grace_s)
                self._tell.swept(pod)

    def _ensure(self, until: float) -> Object:
        """
        The attempt's pod: a new one, or its own that is there.

        :raises NotStarted: a quota was used up for too long.
        """
        began, said = time.monotonic(), ""
        self._tell.asked()
        while True:
            try:
                self._asked = True
                pod = self._cluster.create_pod(self._made.pod)
                self._made_times += 1
                self._adopted = False
                self._say(logging.INFO, "pod %s is made", self._about.pod)
            except Refused as no:
                if no.exists:
                    found = self._own()
                    if found is None:
                        continue
                    pod = found
                elif no.quota:
                    if time.monotonic() >= until:
                        waited_s = time.monotonic() - began
                        raise NotStarted(
                            f"{self._about} was kept out by a quota for {waited_s:,.0f} s: {no.message}",
                            "raise the quota, run fewer tasks at once (a pool), or raise patience.schedule_s in "
                            f"{self._pods.origin}",
                        ) from None
                    if no.message != said:
                        said = no.message
                        self._say(logging.WARNING, "pod %s waits: %s", self._about.pod, said)
                        self._tell.waits("quota", said)
                    rest(min(QUOTA_S, max(0.1, until - time.monotonic())), self._abandoned)
                    if self._abandoned():
                        raise Abandoned from None
                    continue
                else:
                    raise refusal(no, f"pod {self._about.pod}") from None
            self._last = pod
            self._tell.seen(pod)
            self._give_secret(pod)
            return pod

    def _own(self) -> Object | None:
        """This attempt's pod, if it is worth waiting for; None: there is none any more."""
        pod = self._cluster.pod(self._made.name)
        if pod is None:
            return None
        if not names.is_of(pod["metadata"], self._request.call, self._pods.instance):
            self._asked = False
            raise BadConfiguration(
                f"there is a pod {self._about.pod} that is not of this attempt", "give each Airflow its own `instance`"
            )
        cause = ending.judge(pod, [], self._about).ending.cause if ending.is_over(pod) else None
        if ending.is_going(pod) or isinstance(cause, PodLost | NotStarted):
            self._say(logging.INFO, "pod %s of this attempt is of no use any more", self._about.pod)
            self._tell.seen(pod, over=True)
            self._await_gone(pod)
            return None
        self._adopted = True
        self._say(logging.INFO, "pod %s is there: this attempt made it before", self._about.pod)
        return pod

    def _give_secret(self, pod: Object) -> None:
        """Make the Secret, which goes with its pod. The pod comes first, so that no Secret is left without one."""
        if self._made.secret is None or ending.has_started(pod):
            return
        about = pod["metadata"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}
        secret = dict(self._made.secret)
        secret["metadata"] = {**secret["metadata"], "ownerReferences": [owner]}
        while True:
            try:
                self._cluster.create_secret(secret)
                return
            except Refused as no:
                if not no.exists:
                    raise refusal(no, f"the Secret of pod {self._about.pod}") from None
                # Of a pod of this name that is gone, or this one's: it has not been read yet.
                self._cluster.delete_secret(self._made.name)

    def _attend(self, first: Object) -> Verdict:
        """
        Wait for a pod's end.

        :raises AirloopError: it cannot be started, or was not in time.
        """
        patience = self._pods.patience
        made_at = time.monotonic()
        scheduled_at = going_at = ended_at = None
        said: tuple[str, str] | None = None
        for pod, gone in self._states(first):
            now = time.monotonic()
            self._last = pod
            self._tell.seen(pod)
            if gone:
                return self._judged(gone=True)
            if ending.has_started(pod):
                self._follow()
            if self._abandoned():
                raise Abandoned
            if ending.terminated(pod):
                ended_at = ended_at or now
            # A signal has a reason, which is told a little later.
            if ending.is_over(pod) or (ended_at and now - ended_at >= SETTLE_S):
                return self._judged()
            if ending.is_going(pod):
                going_at = going_at or now
                if now - going_at >= patience.grace_s + patience.lost_s:
                    return self._judged(lost_s=now - going_at)
                continue
            events = [] if ending.has_started(pod) else self._cluster.events(pod)
            why = ending.waiting(pod, events, self._about)
            self._tell.seen(pod, events)
            if why is None:
                continue
            self._tell.waits(why.what, why.reason)
            if why.hopeless is not None:
                raise why.hopeless
            if (why.what, why.reason) != said:
                said = (why.what, why.reason)
                self._say(logging.INFO, "pod %s waits for %s: %s", self._about.pod, why.what, why.reason)
            if why.what == "start":
                scheduled_at = scheduled_at or now
            since = made_at if why.what == "node" else (scheduled_at or now)
            if now - since >= (patience.schedule_s if why.what == "node" else patience.start_s):
                raise ending.too_late(why, self._about, now - since)
        raise AssertionError("a pod's states end with its own end")

    def _states(self, pod: Object) -> Iterator[tuple[Object, bool]]:
        """A pod whenever it changes and every few seconds, and whether it is gone, which is the last."""
        uid = pod["metadata"]["uid"]
        while True:
            yield pod, False
            began = time.monotonic()
            for changed, gone in self._cluster.changes(pod, self._look_s(pod)):
                if changed["metadata"]["uid"] != uid:
                    break
                pod = changed
                yield pod, gone
                if gone:
                    return
                if ending.terminated(pod):
                    break
            # A watch that is refused at once must not be asked for at once again.
            rest(began + 1 - time.monotonic(), self._abandoned)
            now = self._cluster.pod(self._made.name)
            if now is None or now["metadata"]["uid"] != uid:
                # How it was at its end has been told meanwhile.
                told = [changed for changed, _ in self._cluster.changes(pod, 1)]
                yield (told or [pod])[-1], True
                return
            pod = now

    def _look_s(self, pod: Object) -> float:
        """How long nothing may be told before it is looked at again: less where something is due."""
        patience = self._pods.patience
        if ending.terminated(pod):
            return SETTLE_S / 2
        due = [LOOK_S, patience.schedule_s / 4, patience.start_s / 4] if not ending.has_started(pod) else [LOOK_S]
        if ending.is_going(pod):
            due.append((patience.grace_s + patience.lost_s) / 4)
        if self._until is not None:
            due.append(self._until - time.monotonic())
        return max(1.0, min(due))

    def _judged(self, *, gone: bool = False, lost_s: float = 0.0) -> Verdict:
        pod = self._last
        events = self._clean().events(pod)
        self._tell.seen(pod, events, over=True)
        if self._follower is None and ending.has_started(pod):
            self._follow()
        if self._follower is not None and not self._follower.finish(MARGIN_S if gone or lost_s else LOG_S):
            self._say(logging.WARNING, "the end of the log of pod %s could not be read", self._about.pod)
        return ending.judge(pod, events, self._about, gone=gone, lost_s=lost_s)

    def _follow(self) -> None:
        if self._follower is not None:
            return
        from urllib3.exceptions import HTTPError

        self._follower = LogFollower(
            partial(self._clean().log, self._made.name, CONTAINER),
            lambda line: self._inbox.put(partial(self._stream.feed, line)),
            (Refused, HTTPError, OSError),
        )
        self._follower.start()

    def _abandoned(self) -> bool:
        """Whether the task was stopped, or its time is over."""
        return self._stopped or (self._until is not None and time.monotonic() >= self._until)

    def _receipt(self) -> str:
        """What a payload left that was asked to end."""
        return ending.judge(self._last, [], self._about).receipt if self._last else ""

    def _farewell(self) -> None:
        """Ask the pod to end, and wait for as long as it has for that; see what it leaves."""
        cluster, grace_s = self._clean(), self._pods.patience.grace_s
        # What is under way when a task is stopped may have been made without being seen.
        with contextlib.suppress(Refused, Away):
            cluster.delete_by_name(self._made.name, grace_s)
            until = time.monotonic() + grace_s + 1
            while time.monotonic() < until and (pod := cluster.pod(self._made.name)) is not None:
                self._last = pod
                if ending.terminated(pod) or ending.is_over(pod):
                    break
                time.sleep(0.2)
        if self._follower is not None:
            self._follower.finish(MARGIN_S)

    def _await_gone(self, pod: Object) -> None:
        """
        Remove a pod, so that its name is free.

        :raises NotStarted: it is still there when its grace is over.
        """
        patience = self._pods.patience
        if not ending.is_going(pod):
            self._cluster.delete_pod(pod, 0 if ending.is_over(pod) else patience.grace_s)
        until = time.monotonic() + patience.grace_s + patience.lost_s
        while (there := self._cluster.pod(self._made.name)) is not None:
            if there["metadata"]["uid"] != pod["metadata"]["uid"]:
                return
            if time.monotonic() >= until:
                raise NotStarted(f"{self._about} cannot be made: the one before does not go", "see its node")
            rest(0.2, self._abandoned)

    def _remove(self) -> None:
        """Leave nothing behind; the pod's Secret goes with it."""
        if self._follower is not None:
            self._follower.finish(0)
        if not self._asked:
            return
        with_grace_s = 0.0 if ending.is_over(self._last) or ending.terminated(self._last) else 1.0
        try:
            self._clean().delete_by_name(self._made.name, with_grace_s)
        except (Refused, Away) as no:
            self._say(logging.WARNING, "pod %s could not be removed: %s", self._about.pod, no)


def _never(error: AirloopError) -> Verdict:
    """Of a pod that did not get to run its payload."""
    return Verdict(ending=Ending(cause=error), receipt="", started=False)
