"""
Whose turn it is: runs of a loop that are under way at once end as if they had run one after another, in the order of
their data intervals.

A task looks, before it starts, at the runs of its own DAG with an earlier data interval that have not ended, and gives
its place on the worker back until it is its turn:

========  ===========================================================================================================
order     waits, in each of those runs, for
========  ===========================================================================================================
``task``  the same task, and for tasks that look at tables by name: so tables grow in the order of the intervals, and
          the result of another task is what it would have been. The default
``run``   the whole run. The default of a task that looks at what runs change by name (``delay@champion``,
          ``raw.flights``) instead of taking another task's result
``none``  nothing. The default of tasks whose result depends on their arguments alone and that nothing reads by name
========  ===========================================================================================================

A run that failed has ended: it holds nobody up. When it is cleared it is an earlier run under way again. Runs without
a logical date (started by assets, or by hand without one) have no place in that order: they are taken as they come,
which ``max_active_runs=1`` makes one by one. Even then an older interval never moves ``champion`` nor replaces newer
online values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import DagRunProtocol

Order = Literal["task", "run", "none"]

TABLE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*(@(?!\d+$)[\w.-]+)?", re.ASCII)
"""A table as it is now: ``namespace.table`` or ``namespace.table@branch``, not ``@snapshot``."""
ALIAS = re.compile(r"(model:/)?[A-Za-z][\w.-]*@[A-Za-z][\w-]*", re.ASCII)
"""A model by alias: ``delay@champion``, not ``delay@3``."""
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of a task that will not run again by itself."""
LOOK_AGAIN_S, AT_MOST_S = 3.0, 60.0
"""Seconds until a task looks again, for each run before it; it grows with every look."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a task says about its place in the order."""

    task_id: str
    given: Order | None
    """What the DAG's author asked for."""
    own: Order
    """Order of a task of this kind that takes only results of other tasks."""
    reads: Sequence[Any]
    """Arguments that name what the step reads: results of other tasks, or names."""

    @property
    def order(self) -> Order:
        """What the task waits for."""
        if self.given is not None:
            return self.given
        named = any(TABLE.fullmatch(text) or ALIAS.fullmatch(text) for text in _texts(self.reads))
        return "run" if named else self.own

    @property
    def holds(self) -> bool:
        """
        Whether later runs must leave tables as they are until this task has ended.

        An alias is no reason: it names what it named when the interval began, whatever is promoted since.
        """
        if self.given is not None:
            return self.given == "run"
        return self.own == "run" or any(TABLE.fullmatch(text) for text in _texts(self.reads))


def not_yet(context: Context, place: Place, others: Iterable[Place]) -> tuple[str, datetime] | None:
    """
    What a task has to wait for and when to look again; None: it is its turn.

    :param others: places of the DAG's tasks.
    """
    run, ti = context["dag_run"], context["ti"]
    if place.order == "none" or run.logical_date is None:
        return None
    earlier = list(_under_way(ti.dag_id, run))
    awaited = [place.task_id, *(other.task_id for other in others if other.holds)]
    for number, before in enumerate(earlier):
        reason = f"run {before.run_id} of an earlier interval has not ended"
        if place.order == "task" and before.state != "queued":
            states = ti.get_task_states(ti.dag_id, task_ids=awaited, run_ids=[before.run_id]).get(before.run_id, {})
            waiting = sorted(task for task, state in states.items() if state not in ENDED)
            if not waiting:
                continue
            reason = f"{', '.join(waiting)} of run {before.run_id}, an earlier interval's, has not ended"
        looks = int(context.get("task_reschedule_count", 0) or 0)
        pause = min(LOOK_AGAIN_S * 1.2 ** min(looks, 8) * (len(earlier) - number), AT_MOST_S)
        return reason, datetime.now(UTC) + timedelta(seconds=pause)
    return None


def _under_way(dag_id: str, run: DagRunProtocol) -> Iterator[Any]:
    """
    Runs of earlier intervals that have not ended, the nearest first.

    Of those that have not started only a backfill's count, for a run that is not of a backfill: its places are its
    own, so they will start. Any other may wait for the very place that this run has.
    """
    for state in ("running", "queued"):
        if state == "queued" and run.run_type == "backfill":
            return
        before = run.logical_date
        while before is not None and (found := _previous(dag_id, before, state)) is not None:
            before = found.logical_date
            if (state == "running" or found.run_type == "backfill") and _interval(found) < _interval(run):
                yield found


def _previous(dag_id: str, logical_date: datetime, state: str) -> Any:
    """The run before a logical date that is in a state."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetPreviousDagRun
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    supervisor: Any = task_runner.SUPERVISOR_COMMS
    if isinstance(supervisor, InProcessSupervisorComms):
        # `dag.test()`: nothing else is under way, and a test that was broken off stays "running" for ever.
        return None
    return supervisor.send(GetPreviousDagRun(dag_id=dag_id, logical_date=logical_date, state=state)).dag_run


def _interval(run: Any) -> tuple[datetime, datetime]:
    start = run.data_interval_start or run.logical_date
    return start, run.data_interval_end or start


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """Texts among arguments that are no task's result; a result names what it made, whatever is current."""
    for value in values:
        if isinstance(value, str):
            yield value.strip()
        elif isinstance(value, Mapping):
            if not ("step" in value and "key" in value):
                yield from _texts(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            yield from _texts(value)
