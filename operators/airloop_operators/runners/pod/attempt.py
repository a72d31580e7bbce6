"""
One attempt's pod from its making to its end, or until the task may leave it to itself.

A thread looks after the pod and another follows its log, while the task's own thread only logs what they bring and can
be interrupted at any time. Whatever is seen of a pod, the step is done if, and only if, its manifest is there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from airloop.errors import AirloopError, InfrastructureFailure, PodLost
from airloop.redact import Redactor
from airloop_operators.runners.base import Ending, RunOutcome, RunRequest, Underway, conclude, read_record
from airloop_operators.runners.logs import LogStream
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.access import Connect
from airloop_operators.runners.pod.case import MARGIN_S, Case
from airloop_operators.runners.pod.cluster import Abandoned, Away, Cluster, Refused, refusal
from airloop_operators.runners.pod.ending import About, Object, Verdict
from airloop_operators.runners.pod.keeper import Keeper
from airloop_operators.runners.pod.left import Left, why_wake
from airloop_operators.runners.pod.log import UNREAD
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import make
from airloop_operators.runners.pod.teller import Teller
from airloop_operators.runners.pod.watcher import Watcher
from airloop_operators.runners.records import record_end

log = logging.getLogger("airloop.runner")

CLEAN_UP_S = 20.0
"""Seconds for an API server that is away while pods are removed."""


class Attempt:
    """Runs once, or goes on with what was left."""

    def __init__(self, request: RunRequest, pods: Pods, connect: Connect) -> None:
        self._request = request
        self._pods = pods
        self._connect = connect
        self._name = names.pod_name(request.call)
        # Of what pods get by reference the worker may have the values, too, as in the chart.
        named = [os.environ[name] for name in pods.secrets if os.environ.get(name)]
        self._mask = Redactor([*request.secrets.values(), *named], {**request.environment, **pods.environment})
        self._stream = LogStream(logging.getLogger("airloop.payload"), self._mask)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._until: float | None = None
        """When its time is over, by the monotonic clock."""
        self._stopped = False
        self._finished = True
        """Nothing is done for it."""
        self._verdict: Verdict | Left | None = None
        self._error: BaseException | None = None
        self._killer: Cluster | None = None
        self._left = Left.of(request.left) if request.left else None
        """As an earlier start of the task left it."""
        self._teller: Teller | None = None
        self._began_at = self._left.began_at if self._left else time.time()

    def run(self) -> RunOutcome | Underway:
        """See :meth:`.runner.PodRunner.run`."""
        request = self._request
        try:
            return self._run()
        except BaseException as cause:
            record_end(request.objects, request.call, cause, self._mask, started_at=self._began_at)
            if self._teller is not None:
                self._teller.fail(cause, alone=self._finished)
            raise

    def _run(self) -> RunOutcome | Underway:
        request = self._request
        if request.timeout_s is not None:
            # For all starts of the task together.
            self._until = _monotonic(self._began_at + request.timeout_s)
        try:
            case = self._begin()
            before = None if self._left else read_record(request)
        except BaseException:
            # Nobody would look after what was left.
            if self._left is not None and self._killer is not None:
                with contextlib.suppress(Refused, Away):
                    self._killer.delete_by_name(self._name, self._pods.patience.grace_s)
            raise
        thread = threading.Thread(target=self._work, args=(case,), name="airloop-pod", daemon=True)
        self._finished = False
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
        found = self._verdict
        assert found is not None
        if isinstance(found, Left):
            if not self._stopped:
                case.tell.leave()
                return Underway(state=found.as_json())
            found = Verdict(ending=Ending(reason="stopped"), receipt="", started=True)
        outcome = conclude(
            request,
            self._ending(found),
            found.receipt,
            # Where this start of the task made no pod, one of this very attempt has left what is there.
            before=before if case.times_made else None,
            resources=self._resources(case),
            started_at=self._began_at,
        )
        case.tell.conclude(outcome)
        if outcome.note:
            log.warning("step %s: %s", request.call.step, outcome.note)
        return outcome

    def _begin(self) -> Case:
        request, pods = self._request, self._pods
        access = self._connect(pods)
        self._in_cluster = access.in_cluster
        # What was left is where it was made, whatever is configured since.
        namespace = self._left.namespace if self._left else access.namespace
        cluster = partial(Cluster, namespace=namespace, redact=self._mask)
        self._killer = cluster(access.apis[1], patience_s=MARGIN_S)
        spawned_at = datetime.fromtimestamp(self._began_at, UTC).isoformat(timespec="milliseconds")
        made = make(request, pods, namespace=namespace, spawned_at=spawned_at)
        about = About(
            step=request.call.step,
            pod=f"{namespace}/{made.name}",
            size=made.place.size_name,
            memory=made.memory,
            image=made.place.image,
            origin=pods.origin,
            more_time=_more_time(request, pods),
        )
        tell = Teller(request, made, self._say, self._mask, namespace=namespace, started_at=self._began_at)
        self._teller = tell
        case = Case(
            request=request,
            pods=pods,
            made=made,
            about=about,
            cluster=cluster(access.apis[0], patience_s=pods.patience.api_s, abandoned=self._abandoned),
            clean=partial(cluster, access.apis[0], patience_s=CLEAN_UP_S, known=True),
            say=self._say,
            tell=tell,
            abandoned=self._abandoned,
            times_made=self._left.times_made if self._left else 0,
        )
        self._keeper = Keeper(case)
        self._watcher = Watcher(
            case,
            lambda line: self._inbox.put(partial(self._stream.feed, line)),
            until=self._until,
            read=self._left.log if self._left else UNREAD,
        )
        return case

    def stop(self) -> None:
        """End the pod, left or not; returns when it is gone or its grace is over. Safe in a signal handler."""
        self._stopped = True
        killer = self._killer
        if killer is None:
            return
        grace_s = self._pods.patience.grace_s
        try:
            killer.delete_by_name(self._name, grace_s)
        except (Refused, Away) as no:
            log.warning("pod %s could not be asked to end: %s", self._name, no)
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

    def _work(self, case: Case) -> None:
        try:
            self._verdict = self._through(case)
        except Refused as no:
            self._verdict = _never(refusal(no, f"what pod {case.about.pod} needs"))
        except AirloopError as error:
            self._verdict = _never(error)
        except BaseException as error:  # noqa: BLE001  the task's own thread raises it
            self._error = error
        finally:
            try:
                self._watcher.finish(0)
                if isinstance(self._verdict, Left) and not self._stopped:
                    self._keeper.leave()
                self._keeper.remove()
            finally:
                self._finished = True
                self._inbox.put(None)

    def _through(self, case: Case) -> Verdict | Left:
        """The attempt's verdict, or how it is left; a pod that was lost before it began is made again."""
        keeper, watcher = self._keeper, self._watcher
        left = self._left or self._as_left(case)
        until = _monotonic(left.began_at + left.schedule_s)
        try:
            pod: Object | None
            gone = False
            if left.uid:
                pod, gone = keeper.again(left.uid, left.version)
            else:
                keeper.sweep()
                pod = keeper.ensure(until, patient=not self._request.may_leave)
                left = replace(left, made_at=time.time())
            while pod is not None:
                if not gone and (leaving := self._leaving(case, left, pod)) is not None:
                    return leaving
                if gone or ending.is_over(pod):
                    verdict = watcher.judged(gone=gone)
                else:
                    verdict = watcher.attend(pod, _monotonic(left.made_at))
                # Of one that was gone before it was looked at again nobody knows whether it had begun.
                begun = verdict.started or "status" not in case.last
                lost = isinstance(verdict.ending.cause, PodLost) and not begun
                if not lost or self._abandoned() or time.monotonic() >= until:
                    return verdict
                self._say(logging.WARNING, "%s; it had not begun: making it again", verdict.ending.cause)
                keeper.await_gone(case.last)
                pod, gone = keeper.ensure(until, patient=not self._request.may_leave), False
                left = replace(left, made_at=time.time())
            return replace(left.kept_out(time.time()), times_made=case.times_made)
        except Abandoned:
            keeper.farewell()
            watcher.finish(MARGIN_S)
            if "status" in case.last:
                case.tell.seen(case.last, over=True)
            reason = "stopped" if self._stopped else "timeout"
            receipt = ending.judge(case.last, [], case.about).receipt if case.last else ""
            return Verdict(ending=Ending(reason=reason), receipt=receipt, started=True)
        except Away as away:
            # The step may be done all the same: its manifest tells.
            cause = InfrastructureFailure(f"{case.about}: {away.found}", "see that the cluster's API server runs")
            return Verdict(ending=Ending(cause=cause), receipt="", started=bool(case.last))

    def _as_left(self, case: Case) -> Left:
        """What does not change while the attempt lasts."""
        patience, timeout_s = self._pods.patience, self._request.timeout_s
        return Left(
            connection=self._pods.connection,
            namespace=case.cluster.namespace,
            in_cluster=self._in_cluster,
            pod=case.made.name,
            began_at=self._began_at,
            made_at=self._began_at,
            until=None if timeout_s is None else self._began_at + timeout_s,
            schedule_s=patience.schedule_s,
            start_s=patience.start_s,
            api_s=patience.api_s,
            grace_s=patience.grace_s,
        )

    def _leaving(self, case: Case, left: Left, pod: Object) -> Left | None:
        """How the attempt is left; None: nobody asked for it, or there is something to do for it now."""
        if not self._request.may_leave:
            return None
        now = time.time()
        # While a task is woken up, another may take the slots that count its accelerators, and its pod goes on.
        log_s = math.inf if case.made.place.pool.budget else self._pods.patience.log_s
        leaving = replace(left.seen(pod), times_made=case.times_made).resting(log_s, now)
        if why_wake(leaving, pod, now)[0]:
            return None
        return replace(leaving, log=self._watcher.catch_up())

    def _abandoned(self) -> bool:
        """Whether the task was stopped, or its time is over."""
        return self._stopped or (self._until is not None and time.monotonic() >= self._until)

    def _ending(self, verdict: Verdict) -> Ending:
        last_error = self._stream.last_error or self._stream.last_plain
        reason = "stopped" if self._stopped else verdict.ending.reason
        return replace(verdict.ending, last_error=last_error, reason=reason)

    def _resources(self, case: Case) -> dict[str, float | int | str]:
        place = case.made.place
        return {
            "start": "pod",
            "wall_s": round(time.time() - self._began_at, 3),
            "size": place.size_name,
            "pool": place.pool_name,
            "memory_limit_bytes": case.made.memory_bytes,
            **({place.resource: place.size.accelerators} if place.resource else {}),
            **ending.usage(case.last),
            **case.tell.totals(),
            "pods": case.times_made,
        }


def _monotonic(unix_time: float) -> float:
    """The same time by the monotonic clock."""
    return time.monotonic() + unix_time - time.time()


def _more_time(request: RunRequest, pods: Pods) -> str:
    """What to do about a pod's deadline that was too early."""
    if request.timeout_s is not None:
        return ending.MORE_TIME
    run_s = f"patience.run_s, {pods.patience.run_s:,.0f} s in {pods.origin}"
    return f"give its task an execution_timeout, in the place of {run_s}, or raise that"


def _never(error: AirloopError) -> Verdict:
    """Of a pod that did not get to run its payload."""
    return Verdict(ending=Ending(cause=error), receipt="", started=False)
