"""Lifecycle of an attempt's pod: made with its Secret, or found again; ended, removed. Earlier tries' go first."""

from __future__ import annotations

import contextlib
import logging
import time

from airloop.errors import BadConfiguration, NotStarted, PodLost
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.case import Case
from airloop_operators.runners.pod.cluster import Abandoned, Away, Refused, refusal, rest
from airloop_operators.runners.pod.ending import Object

QUOTA_S = 5.0
"""Seconds between two tries of a pod that a quota keeps out."""


class Keeper:
    """Has the pod of one attempt."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._asked = False
        """There may be a pod to remove."""

    def sweep(self) -> None:
        """End what earlier tries of this task have left."""
        case = self._case
        call, instance = case.request.call, case.pods.instance
        if not call.run.dag_id:
            return
        for pod in case.cluster.pods(f"{names.TASK_INSTANCE}={names.task_instance(call, instance)}"):
            if not names.is_of(pod["metadata"], call, instance) and not ending.is_going(pod):
                case.say(logging.WARNING, "ending pod %s of an earlier try", pod["metadata"]["name"])
                case.cluster.delete_pod(pod, case.pods.patience.grace_s)
                case.tell.swept(pod)

    def ensure(self, until: float, *, patient: bool) -> Object | None:
        """
        The attempt's pod: a new one, or its own that is there.

        :param until: how long a quota is waited for, by the monotonic clock.
        :param patient: wait here for a quota that is used up.
        :returns: None: it is used up, and whoever asked is not patient.
        :raises NotStarted: it was used up for too long.
        """
        case, said = self._case, ""
        case.tell.asked()
        while True:
            try:
                self._asked = True
                pod: Object = case.cluster.create_pod(case.made.pod)
                case.times_made += 1
                case.say(logging.INFO, "pod %s is made", case.about.pod)
            except Refused as no:
                if no.exists:
                    found = self._own()
                    if found is None:
                        continue
                    pod = found
                elif no.quota:
                    said = self._kept_out(no, until, said, patient=patient)
                    if not patient:
                        self._asked = False
                        return None
                    continue
                else:
                    raise refusal(no, f"pod {case.about.pod}") from None
            case.last = pod
            case.tell.seen(pod)
            self._give_secret(pod, until)
            return pod

    def again(self, uid: str, version: str) -> tuple[Object, bool]:
        """
        The pod that an earlier start of the task made, and whether it is gone, however it has ended meanwhile.

        :param version: of the pod, as it was last seen.
        """
        case = self._case
        self._asked = True
        # Even if its time is over: it may have ended well by then.
        cluster = case.clean() if case.abandoned() else case.cluster
        known: Object = {"metadata": {"name": case.made.name, "uid": uid, "resourceVersion": version}}
        pod = cluster.pod(case.made.name)
        if pod is not None and pod["metadata"]["uid"] == uid:
            case.last = pod
            case.tell.seen(pod)
            return pod, False
        # How it was at its end is told for a while.
        for told, _ in cluster.changes(known, 1):
            if told["metadata"]["uid"] == uid:
                known = told
        case.last = known
        return known, True

    def leave(self) -> None:
        """It stays when this start of the task ends."""
        self._asked = False

    def _own(self) -> Object | None:
        """This attempt's pod, if it is worth waiting for; None: there is none any more."""
        case = self._case
        pod = case.cluster.pod(case.made.name)
        if pod is None:
            return None
        if not names.is_of(pod["metadata"], case.request.call, case.pods.instance):
            self._asked = False
            raise BadConfiguration(
                f"there is a pod {case.about.pod} that is not of this attempt", "give each Airflow its own `instance`"
            )
        cause = ending.judge(pod, [], case.about).ending.cause if ending.is_over(pod) else None
        if ending.is_going(pod) or isinstance(cause, PodLost | NotStarted):
            case.say(logging.INFO, "pod %s of this attempt is of no use any more", case.about.pod)
            case.tell.seen(pod, over=True)
            self.await_gone(pod)
            return None
        case.say(logging.INFO, "pod %s is there: this attempt made it before", case.about.pod)
        return pod

    def _give_secret(self, pod: Object, until: float) -> None:
        """
        Make the Secret, which goes with its pod. The pod comes first, so that no Secret is left without one.

        :param until: how long a quota is waited for, by the monotonic clock.
        :raises NotStarted: it was used up for too long.
        """
        case, said = self._case, ""
        if case.made.secret is None or ending.has_started(pod):
            return
        about = pod["metadata"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}
        secret = dict(case.made.secret)
        secret["metadata"] = {**secret["metadata"], "ownerReferences": [owner]}
        while True:
            try:
                case.cluster.create_secret(secret)
                return
            except Refused as no:
                if no.quota:
                    said = self._kept_out(no, until, said)
                elif no.exists:
                    # Of a pod of this name that is gone, or this one's: it has not been read yet.
                    case.cluster.delete_secret(case.made.name)
                else:
                    raise refusal(no, f"the Secret of pod {case.about.pod}") from None

    def _kept_out(self, no: Refused, until: float, said: str, *, patient: bool = True) -> str:
        """
        A quota is used up: tell of it once, and wait a little if one is patient.

        :param said: what was told before; returns what is told now.
        """
        case = self._case
        if time.monotonic() >= until:
            waited_s = case.pods.patience.schedule_s + time.monotonic() - until
            raise NotStarted(
                f"{case.about} was kept out by a quota for {waited_s:,.0f} s: {no.message}",
                "raise the quota, run fewer tasks at once (a pool), or raise patience.schedule_s in "
                f"{case.pods.origin}",
            ) from None
        if no.message != said:
            case.say(logging.WARNING, "pod %s waits: %s", case.about.pod, no.message)
            case.tell.waits("quota", no.message)
        if patient:
            rest(min(QUOTA_S, max(0.1, until - time.monotonic())), case.abandoned)
            if case.abandoned():
                raise Abandoned from None
        return no.message

    def farewell(self) -> None:
        """Ask the pod to end, and wait for as long as it has for that; see what it leaves."""
        case = self._case
        cluster, grace_s = case.clean(), case.pods.patience.grace_s
        # What is under way when a task is stopped may have been made without being seen.
        with contextlib.suppress(Refused, Away):
            cluster.delete_by_name(case.made.name, grace_s)
            until = time.monotonic() + grace_s + 1
            while time.monotonic() < until and (pod := cluster.pod(case.made.name)) is not None:
                case.last = pod
                if ending.terminated(pod) or ending.is_over(pod):
                    break
                time.sleep(0.2)

    def await_gone(self, pod: Object) -> None:
        """
        Remove a pod, so that its name is free.

        :raises NotStarted: it is still there when its grace is over.
        """
        case = self._case
        patience = case.pods.patience
        if not ending.is_going(pod):
            case.cluster.delete_pod(pod, 0 if ending.is_over(pod) else patience.grace_s)
        waited_s = patience.grace_s + patience.lost_s
        until = time.monotonic() + waited_s
        while (there := case.cluster.pod(case.made.name)) is not None:
            if there["metadata"]["uid"] != pod["metadata"]["uid"]:
                return
            if time.monotonic() >= until:
                raise NotStarted(
                    f"{case.about} cannot be made: the one of this name before is still Terminating after "
                    f"{waited_s:,.0f} s",
                    f"see why (kubectl -n {case.about.namespace} describe pod {case.about.name}); where its node is "
                    "gone for good, remove the node, or delete the pod with --grace-period=0 --force",
                )
            rest(0.2, case.abandoned)

    def remove(self) -> None:
        """Leave nothing behind; the pod's Secret goes with it."""
        case = self._case
        if not self._asked:
            return
        # Without grace its name is free before its node has let go of what it held.
        with_grace_s = 0.0 if ending.is_over(case.last) else 1.0
        try:
            case.clean().delete_by_name(case.made.name, with_grace_s)
        except (Refused, Away) as no:
            case.say(logging.WARNING, "pod %s could not be removed: %s", case.about.pod, no)
