"""
Which pods nobody follows any more: pure, from the pods as they are and what Airflow knows of their tasks.

A task that runs, is deferred or waits to go on looks after the pod of its try, and ends those of earlier tries when it
starts. Any other pod was left: its worker was killed on the last try, its run was deleted, its task was cleared and
never came again. It goes on until its deadline, and when it has ended it stays, with the Secret of its attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from airloop_operators.deferral import COMES_BACK
from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.ending import Object
from airloop_operators.runners.pod.names import TaskKey, task_of


@dataclass(frozen=True, slots=True)
class Known:
    """A task as Airflow knows it."""

    state: str | None
    """None: it was cleared, or is not scheduled yet."""
    try_number: int
    """Of the try that is under way, or was the last."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pod that nobody follows."""

    pod: Object
    task: TaskKey
    try_number: int
    why: str
    """For people."""
    known: bool
    """Whether Airflow knows its task. If not, it was deleted, or is of another Airflow with the same ``instance``."""


def orphans(pods: Iterable[Object], tasks: Mapping[TaskKey, Known], *, now: float, keep_s: float) -> list[Orphan]:
    """
    Pods that nobody follows; one that is being deleted or cannot be told whose it is, is none.

    :param pods: as they were before Airflow was asked for the tasks, so that a pod's own task is never asked for too
        early.
    :param now: Unix time.
    :param keep_s: seconds for which a pod that has ended is kept, because nobody but its node has its log.
    """
    found = []
    for pod in pods:
        whose = task_of(pod["metadata"])
        if whose is None or ending.is_going(pod):
            continue
        task, try_number = whose
        why = _why(tasks.get(task), try_number)
        if why and not (ending.is_over(pod) and now - _ended_at(pod) < keep_s):
            found.append(Orphan(pod, task, try_number, why, known=task in tasks))
    return found


def _why(its: Known | None, try_number: int) -> str:
    """Why nobody follows the pod of a try; empty: somebody does."""
    if its is None:
        return "Airflow does not know its task"
    if its.try_number > try_number:
        return f"its task is on try {its.try_number}"
    # A try that Airflow has not counted yet is nobody's to end.
    if its.try_number < try_number or its.state in COMES_BACK:
        return ""
    return f"its task is {its.state or 'cleared'}"


def _ended_at(pod: Object) -> float:
    """Unix time at which a pod ended, or of the last that is known of it."""
    when = ending.times(pod)
    at = when.ended or when.scheduled or when.made
    return math.inf if at is None else at.timestamp()
