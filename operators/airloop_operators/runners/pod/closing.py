"""
The end of an attempt whose runner is lost, told by whoever ends its pod: the task's next try, or a sweep.

It is what the runner would have told, from what it had told before and the pod as it was last seen; but for the
cluster's events, which nobody needs to be allowed to read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airloop import records, usage
from airloop.contract import RunInfo
from airloop.errors import AirloopError, ProcessLost
from airloop.objects import Objects
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.diary import Diary
from airloop_operators.runners.pod.ending import About, Object
from airloop_operators.runners.pod.sizes import quantity
from airloop_operators.runners.pod.spec import CONTAINER
from airloop_operators.runners.usage import end_for


def close(
    objects: Objects, pod: Object, mask: Callable[[str], str], *, again: int | None = None
) -> dict[str, Any] | None:
    """
    Write what an attempt took, and how it ended. It may be told again while its pod ends, as more is known.

    :param objects: the artifact store.
    :param pod: as it was last seen; one that is not over ends now.
    :param mask: takes secrets out of a text.
    :param again: version of the record that this has written before.
    :returns: the record; None: there is none, or somebody has told its end.
    :raises OSError, AirloopError: the store cannot be read or written, or the record, or the pod.
    """
    about = pod["metadata"]
    whose, attempt = names.task_of(about), (about.get("annotations") or {}).get(names.ATTEMPT_IN_FULL)
    if whose is None or not attempt:
        return None
    task, try_number = whose
    told = partial(_told, pod, mask, datetime.now(UTC))
    return end_for(objects, RunInfo(*task, try_number), attempt, told, again=again)


def _told(pod: Object, mask: Callable[[str], str], now: datetime, known: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record that are new."""
    container: Object = next((c for c in pod["spec"]["containers"] if c.get("name") == CONTAINER), {})
    about = {**{name: pod["metadata"].get(name) for name in ("name", "namespace")}, "image": container.get("image")}
    at = _last_known(pod, known["pods"], now)
    diary = Diary(about, mask, before=known["pods"], now=lambda: at)
    diary.seen(pod, over=True)
    pods = diary.entries()
    ended_at = pods[-1]["ended_at"]
    lasted = datetime.fromisoformat(ended_at) - datetime.fromisoformat(known["started_at"])
    cause = _cause(pod)
    return {
        "status": records.status_of(cause),
        "error": type(cause).__name__,
        "finished_at": ended_at,
        "resources": {
            **known["resources"],
            "start": "pod",
            "wall_s": max(0.0, round(lasted.total_seconds(), 3)),
            **_limits(container, known["reserved"]),
            **ending.usage(pod),
            **diary.totals(),
        },
        "pods": pods,
    }


def _last_known(pod: Object, entries: Iterable[Mapping[str, Any]], now: datetime) -> datetime:
    """
    When something was last known of a pod that is over, long ago maybe; for any other: now.

    The end of an evicted pod is dated by its conditions only, and with a lost node by nothing but who saw it last.
    """
    if not ending.is_over(pod):
        return now
    uid = pod["metadata"].get("uid")
    seen = (datetime.fromisoformat(e["seen_at"]) for e in entries if e.get("uid") == uid and e.get("seen_at"))
    return max(filter(None, (ending.last_dated(pod), *seen)), default=now)


def _cause(pod: Object) -> AirloopError:
    """What ended it, as far as the pod tells."""
    cause: AirloopError | None = None
    if ending.is_over(pod) and not ending.is_going(pod):
        about = About(step="", pod=str(pod["metadata"].get("name")), size="", memory="")
        cause = ending.judge(pod, [], about).ending.cause
    return cause or ProcessLost("its runner is lost")


def _limits(container: Object, reserved: Mapping[str, Any]) -> dict[str, int]:
    memory = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    accelerators = {name: int(n) for name, n in reserved.items() if name not in (usage.CPU, usage.MEMORY)}
    return {**({"memory_limit_bytes": int(quantity(memory))} if memory else {}), **accelerators}
