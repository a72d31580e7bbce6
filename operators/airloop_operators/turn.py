"""
Whose turn it is: runs of a loop that are under way at once end as if they had run one after another, in the order of
their data intervals.

A task looks, before it starts, at the runs of its own DAG with an earlier data interval that have not ended, and waits
for its turn:

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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import DagRunProtocol

Order = Literal["task", "run", "none"]


class Log(Protocol):
    """Where a task says what it does."""

    def info(self, text: str, /, *values: Any) -> Any: ...


TABLE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*(@(?!\d+$)[\w.-]+)?", re.ASCII)
"""A table as it is now: ``namespace.table`` or ``namespace.table@branch``, not ``@snapshot``."""
ALIAS = re.compile(r"(model:/)?[A-Za-z][\w.-]*@[A-Za-z][\w-]*", re.ASCII)
"""A model by alias: ``delay@champion``, not ``delay@3``."""
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of a task that will not run again by itself."""
LOOK_AGAIN_S = 1.0
"""Seconds between two looks of a task that waits where it is."""
PATIENCE_S = 30.0
"""Seconds that the next in turn waits where it is."""
PAUSE_S = 20.0
"""Seconds for which a task gives its place back, for each run before it, up to four."""


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


def wait_for_turn(
    context: Context,
    place: Place,
    others: Sequence[Place],
    log: Log,
    *,
    patience_s: float,
    killed: Callable[[], bool],
    first: Callable[[], None] = lambda: None,
) -> None:
    """
    Return when it is the task's turn, or it was asked to end.

    The next in turn waits where it is, for a while. Others give their place on the worker back; not for a moment only:
    Airflow takes a task that is queued again before its executor has reported the end of the last look for one that
    was killed.

    :param others: places of the DAG's tasks.
    :param patience_s: how long to wait before giving the place back.
    :param killed: whether the task was asked to end.
    :param first: what to do before it waits.
    :raises AirflowRescheduleException: it is not its turn; Airflow starts the task again later.
    """
    from airflow.sdk.exceptions import AirflowRescheduleException

    deadline = time.monotonic() + patience_s
    said = ""
    while True:
        reason, runs = not_yet(context, place, others)
        if not runs or killed():
            return
        if not said:
            first()
        if reason != said:
            log.info("Not yet its turn: %s", reason)
            said = reason
        if runs > 1 or time.monotonic() >= deadline:
            pause_s = PAUSE_S * min(runs, 4)
            log.info("Giving its place back for %.0f s", pause_s)
            until = datetime.now(UTC) + timedelta(seconds=pause_s)
            raise AirflowRescheduleException(until)  # type: ignore[no-untyped-call]
        time.sleep(LOOK_AGAIN_S)


def not_yet(context: Context, place: Place, others: Iterable[Place]) -> tuple[str, int]:
    """What a task has to wait for, and in how many runs; 0: it is its turn."""
    run, ti = context["dag_run"], context["ti"]
    if place.order == "none" or run.logical_date is None:
        return "", 0
    earlier = list(_under_way(ti.dag_id, run))
    if not earlier:
        return "", 0
    if place.order == "run":
        return f"run {earlier[0].run_id} of an earlier interval has not ended", len(earlier)
    awaited = [place.task_id, *(other.task_id for other in others if other.holds)]
    states = ti.get_task_states(ti.dag_id, task_ids=awaited, run_ids=[before.run_id for before in earlier])
    waiting = {
        before.run_id: tasks
        for before in earlier
        if (tasks := sorted(t for t, state in states.get(before.run_id, {}).items() if state not in ENDED))
    }
    for run_id, tasks in waiting.items():
        return f"{', '.join(tasks)} of run {run_id}, an earlier interval's, has not ended", len(waiting)
    return "", 0


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
