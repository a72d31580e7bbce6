"""
A deferred task: what it knows when it comes back, and who wakes it up.

It travels in the trigger's arguments and in its event, and so through Airflow's database: no secret is in it, and
nothing that could make a step done. A task that comes back looks for itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

MOST_TROUBLES = 3
"""Times that a task is deferred again after its trigger had trouble; then it waits on its worker."""
PAUSE_S = 10.0
"""Seconds for which a trigger rests before it looks again after trouble; each time four times as long."""
MARGIN_S = 120.0
"""Seconds after a task's time is over at which Airflow's scheduler wakes it up if its trigger has not."""
COMES_BACK = frozenset({"deferred", "scheduled", "queued", "running", "restarting", "up_for_reschedule"})
"""States of a task that looks after its pods, or soon will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """What a deferred task knows; JSON values."""

    attempt: int
    """Which of the try's attempts is under way."""
    timeout_s: float | None
    """Seconds that the attempt had, in all."""
    until: float | None
    """Unix time at which the task's time is over."""
    troubles: int = 0
    """How often a trigger had trouble."""
    state: Mapping[str, Any]
    """Of the attempt, as its runner left it."""

    def as_json(self) -> dict[str, Any]:
        """For a trigger."""
        return {**asdict(self), "state": dict(self.state)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """What a trigger's event says."""

    back: Deferral
    why: str
    """For the log."""
    trouble: bool
    """The trigger could not watch."""

    @classmethod
    def read(cls, event: object) -> Woken | None:
        """None: it says nothing that can be understood."""
        try:
            given: Any = event
            back = Deferral(**given["deferral"])
            if given["trouble"]:
                back = replace(back, troubles=back.troubles + 1)
            return cls(back=back, why=str(given["why"]), trouble=bool(given["trouble"]))
        except (TypeError, KeyError):
            return None

    @property
    def may_leave(self) -> bool:
        """Whether the task may be deferred again."""
        return not self.trouble or self.back.troubles <= MOST_TROUBLES


def event_of(deferral: Mapping[str, Any], why: str, *, trouble: bool = False) -> dict[str, Any]:
    """What a trigger says; read by :meth:`Woken.read`."""
    return {"deferral": dict(deferral), "why": why, "trouble": trouble}


def trigger_of(deferral: Deferral, *, after_trouble: bool) -> BaseTrigger:
    """Who wakes the task up."""
    from airloop_operators.runners.pod.trigger import PodTrigger

    pause_s = PAUSE_S * 4 ** (deferral.troubles - 1) if after_trouble else 0.0
    return PodTrigger(deferral=deferral.as_json(), pause_s=pause_s)


def latest(deferral: Deferral) -> timedelta | None:
    """When the scheduler is to wake the task up if nobody else has, from now; None: never."""
    if deferral.until is None:
        return None
    return timedelta(seconds=max(0.0, deferral.until - time.time()) + MARGIN_S)
