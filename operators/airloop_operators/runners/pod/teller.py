"""What an attempt tells of its pods, in its log and in the store: :mod:`.diary` keeps it, and no step depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airloop.errors import AirloopError
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.pod.case import Say
from airloop_operators.runners.pod.closing import close
from airloop_operators.runners.pod.diary import Diary
from airloop_operators.runners.pod.ending import Object
from airloop_operators.runners.pod.spec import Made
from airloop_operators.runners.usage import UsageRecord


class Teller:
    """
    Tells of one attempt. It may be used by one thread after the other.

    :param mask: takes secrets out of a text.
    :param started_at: Unix time at which the attempt began.
    """

    def __init__(
        self,
        request: RunRequest,
        made: Made,
        say: Say,
        mask: Callable[[str], str],
        *,
        namespace: str,
        started_at: float,
    ) -> None:
        self._request = request
        self._made = made
        self._say = say
        self._mask = mask
        self._pod = f"{namespace}/{made.name}"
        self._record = UsageRecord(request.objects, request.call, "pod", started_at=started_at)
        known = self._record.before() or {}
        about = {"name": made.name, "namespace": namespace, "image": made.place.image}
        self._diary = Diary(about, mask, before=known.get("pods") or ())

    def asked(self) -> None:
        """A pod is asked for, one that there was not."""
        self._diary.asked()

    def waits(self, what: str, reason: str) -> None:
        """Why a pod waits: ``quota``, ``node`` or ``start``, and the cluster's words."""
        self._diary.waits(what, reason)
        self._record.update(**self._told())

    def seen(self, pod: Object, events: Sequence[Object] = (), *, over: bool = False) -> None:
        """A pod as it is. :param over: nothing more will be seen of it."""
        try:
            news = self._diary.seen(pod, events, over=over)
        except (ValueError, TypeError, KeyError) as odd:
            # The step does not depend on it.
            news = [f"what the cluster tells of it cannot be read: {odd!r}"]
        for text in news:
            self._say(logging.INFO, "pod %s: %s", self._pod, text)
        self._record.update(**self._told())

    def swept(self, pod: Object) -> None:
        """The pod of an earlier try, which was ended because its runner is lost."""
        try:
            close(self._request.objects, pod, self._mask)
        except (OSError, AirloopError) as untold:
            about = pod["metadata"]["name"]
            self._say(logging.WARNING, "what pod %s of an earlier try took cannot be recorded: %s", about, untold)

    def totals(self) -> dict[str, float | int]:
        """Of all pods, see :meth:`.diary.Diary.totals`."""
        self._diary.end()
        return self._diary.totals()

    def leave(self) -> None:
        """The attempt goes on without this process; what was seen is there for whoever looks meanwhile."""
        self._record.leave(**self._told())

    def conclude(self, outcome: RunOutcome) -> None:
        """The attempt has ended."""
        self._diary.end()
        self._record.conclude(outcome, **self._told(outcome.resources))

    def fail(self, cause: BaseException, *, alone: bool) -> None:
        """The attempt was broken off. :param alone: no thread feeds this one any more."""
        if alone:
            self._diary.end()
        self._record.fail(cause, **(self._told() if alone else {}))

    def _told(self, resources: Mapping[str, float | int | str] | None = None) -> dict[str, Any]:
        place = self._made.place
        about = {"size": place.size_name, "pool": place.pool_name}
        return {
            "resources": {**about, **(resources or {}), **self._diary.totals()},
            "reserved": self._made.reserved,
            "pods": self._diary.entries(),
        }
