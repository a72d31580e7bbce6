"""What the parts of an attempt share: :mod:`.attempt` runs it, :mod:`.keeper` has its pod, :mod:`.watcher` its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod.cluster import Cluster
from airloop_operators.runners.pod.ending import About, Object
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import Made

if TYPE_CHECKING:
    from airloop_operators.runners.pod.teller import Teller

MARGIN_S = 5.0
"""Seconds that a pod's end may be confirmed late."""


class Say(Protocol):
    """Log something, from whatever thread."""

    def __call__(self, level: int, text: str, /, *values: object) -> None: ...


@dataclass
class Case:
    """One attempt and its pod."""

    request: RunRequest
    pods: Pods
    made: Made
    """What is asked of the cluster."""
    about: About
    cluster: Cluster
    """Asked patiently, and not at all once the attempt is abandoned."""
    clean: Callable[[], Cluster]
    """For what has to be done even then."""
    say: Say
    tell: Teller
    abandoned: Callable[[], bool]
    """Whether the task was stopped, or its time is over."""
    last: Object = field(default_factory=dict)
    """The pod as it was last seen; empty: there was none yet."""
    times_made: int = 0
    """In all starts of the task that know of each other; 0: the pod was there when this one began, if there is one."""
