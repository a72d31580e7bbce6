"""A task's attempts at its step, and what Airflow is told of their end. Imported by tasks that run, not to parse."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airloop.contract import Call, RunInfo, attempt_id
from airloop.errors import (
    AirloopError,
    BadArgument,
    InfrastructureFailure,
    OutOfMemory,
    ProcessLost,
    Rejected,
    StepSkipped,
    TimedOut,
)
from airloop_operators.deferral import Deferral
from airloop_operators.intervals import interval_of
from airloop_operators.runners.base import RunRequest, Underway
from airloop_operators.secrets import fetch_secrets

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airloop_operators.base import StepOperator
    from airloop_operators.runners.base import Runner, RunOutcome
    from airloop_operators.settings import Settings

MARGIN_S = 12.0
"""Seconds of a task's time limit that are kept for ending its step in order; of a short one a tenth."""
LONGEST_DELAY_S = 120.0
"""Seconds to wait at most before a step is started again that its surroundings ended."""


def run_step(
    operator: StepOperator,
    runner: Runner,
    context: Context,
    settings: Settings,
    *,
    until: float | None,
    may_leave: bool = False,
    back: Deferral | None = None,
    lost: bool = False,
) -> RunOutcome | Deferral:
    """
    Run an operator's step, again if its surroundings ended it; or until the task may be deferred.

    :param until: when the task's time is over, by the monotonic clock; None: never.
    :param may_leave: whether the task may be deferred.
    :param back: what the task knew when it was deferred; None: it was not.
    :param lost: it was, and what it knew is lost.
    :raises AirflowException: it could not be started; the type says whether a retry helps.
    """
    try:
        # Airflow's handler of SIGTERM only calls on_kill(): it may have come while the task waited for its turn.
        if operator.killed:
            raise ProcessLost(f"the step of {operator.task_id} was not started because its task was stopped")
        return _attempts(operator, runner, context, settings, until, may_leave, back, lost)
    except AirloopError as error:
        raise for_airflow(error) from error


def _attempts(
    operator: StepOperator,
    runner: Runner,
    context: Context,
    settings: Settings,
    until: float | None,
    may_leave: bool,
    back: Deferral | None,
    lost: bool,
) -> RunOutcome | Deferral:
    try:
        calls = _calls(operator, context, at_least=back.attempt if back is not None else 0)
        secrets, plain = fetch_secrets({**settings.secrets, **(operator.secrets or {})})
    except BaseException:
        # Nobody would look after what was left.
        if back is not None:
            runner.abandon(back.state)
        raise
    # A pod's size has a limit of its own.
    usual_mb = settings.memory_mb if (operator.runner or settings.runner) == "local" else 0
    memory_mb = usual_mb if operator.memory_mb is None else operator.memory_mb
    first = back.attempt if back is not None else runner.under_way(calls) if lost else 0
    for attempt, call in list(enumerate(calls))[first:]:
        if back is not None and attempt == first:
            timeout_s, left = back.timeout_s, back.state
        else:
            timeout_s, left = None if until is None else _time_for_step(until - time.monotonic()), None
        request = RunRequest(
            call=call,
            environment={**settings.environment, **plain, **(operator.environment or {})},
            secrets=secrets,
            artifacts=settings.artifacts,
            memory_mb=memory_mb or None,
            cpus=operator.cpus,
            timeout_s=timeout_s,
            python=operator.python,
            size=operator.size,
            may_leave=may_leave,
            left=left,
        )
        found = runner.run(request)
        if isinstance(found, Underway):
            # Its pod was ended with it.
            if operator.killed:
                raise ProcessLost(f"the step of {operator.task_id} was ended because its task was stopped")
            until_unix = None if until is None else time.time() + until - time.monotonic()
            troubles = back.troubles if back is not None else 0
            return Deferral(
                attempt=attempt, timeout_s=timeout_s, until=until_unix, troubles=troubles, state=found.state
            )
        outcome = found
        error = outcome.error
        # A limit that was hit once will be hit again: that is for a person, or the task's own retries.
        if not isinstance(error, InfrastructureFailure) or isinstance(error, OutOfMemory | TimedOut):
            break
        # Whoever ended the task does not want it started again.
        if operator.killed:
            break
        if attempt < operator.infrastructure_retries:
            delay_s = delay_before(attempt + 1, operator.infrastructure_retry_delay, until)
            operator.log.warning("%s: %s; starting the step again in %.0f s", type(error).__name__, error, delay_s)
            if not _rest(operator, delay_s):
                break
    return outcome


def end_earlier(operator: StepOperator, runner: Runner, context: Context) -> None:
    """End what earlier tries of a task have left running; where that cannot be done, it is when the step starts."""
    try:
        runner.end_earlier(_calls(operator, context))
    except AirloopError as error:
        operator.log.warning("what earlier tries have left cannot be looked for yet: %s", error)


def _calls(operator: StepOperator, context: Context, *, at_least: int = 0) -> list[Call]:
    """
    Of a try's attempts: the later ones are made only if the surroundings end those before.

    :param at_least: number of one that is under way, though fewer may be asked for by now.
    """
    step, ti = operator.step or operator.step_name, context["ti"]
    if not step:
        raise BadArgument(f"task {operator.task_id} names no step", "pass step='extract' or 'package.module:function'")
    once = Call(
        step=step,
        arguments=operator.call_arguments(),
        attempt="",
        run=_run_info(ti),
        interval=interval_of(context, operator.interval),
        force=operator.force,
    )
    return [replace(once, attempt=identity) for identity in _attempt_ids(operator, ti, at_least)]


def delay_before(again: int, first: timedelta | float, until: float | None) -> float:
    """
    Seconds to wait before a step is started again: twice as long each time, and not the same for all that were hit.

    :param again: number of the restart, from 1.
    :param first: before the first one, seconds.
    :param until: when Airflow will break the task off, by the monotonic clock: no more than a tenth of what is left is
        waited; None: never.
    """
    first_s = first.total_seconds() if isinstance(first, timedelta) else first
    most_s = min(LONGEST_DELAY_S, first_s * 2.0 ** min(again - 1, 30))
    if until is not None:
        most_s = min(most_s, (until - time.monotonic()) / 10)
    return max(0.0, most_s * random.uniform(0.5, 1.0))


def _rest(operator: StepOperator, seconds: float) -> bool:
    """
    Wait, but not for a task that is asked to end, which a plain flag says: signal handlers can have no locks.

    :returns: False: it is asked to end.
    """
    until = time.monotonic() + seconds
    while not operator.killed and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(0.1, left_s))
    return not operator.killed


def made_by_task(manifest: Mapping[str, Any], operator: StepOperator, ti: Any) -> bool:
    """Whether a task made what it returns: in this try, or in an earlier one that may not have lived to say so."""
    run = _run_info(ti)
    by = manifest.get("run") or {}
    earlier = run.try_number > 1 and {**by, "try_number": run.try_number} == asdict(run)
    return earlier or manifest["attempt"] in _attempt_ids(operator, ti)


def _run_info(ti: Any) -> RunInfo:
    return RunInfo(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index, ti.try_number)


def _attempt_ids(operator: StepOperator, ti: Any, at_least: int = 0) -> list[str]:
    """Of a try's attempts, those that are made only if the surroundings end the ones before."""
    run = _run_info(ti)
    return [
        attempt_id(getattr(ti, "id", run), run, n) for n in range(max(operator.infrastructure_retries, at_least) + 1)
    ]


def _time_for_step(left_s: float) -> float:
    return max(left_s - min(MARGIN_S, left_s / 10), 0.1)


def for_airflow(error: AirloopError) -> AirflowException:
    """The exception whose type tells Airflow whether to retry."""
    text = f"{type(error).__name__}: {error}" if type(error) is not AirloopError else str(error)
    if isinstance(error, Rejected):
        return AirflowFailException(text)
    if isinstance(error, StepSkipped):
        return AirflowSkipException(text)
    return AirflowException(text)
