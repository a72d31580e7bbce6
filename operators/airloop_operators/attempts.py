"""A task's attempts at its step, and what Airflow is told of their end. Imported by tasks that run, not to parse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from airloop.contract import Call, RunInfo, attempt_id
from airloop.errors import (
    AirloopError,
    BadArgument,
    InfrastructureFailure,
    OutOfMemory,
    Rejected,
    StepSkipped,
    TimedOut,
)
from airloop_operators.intervals import interval_of
from airloop_operators.runners.base import RunRequest
from airloop_operators.secrets import fetch_secrets

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airloop_operators.base import StepOperator
    from airloop_operators.runners.base import Runner, RunOutcome
    from airloop_operators.settings import Settings


def run_step(operator: StepOperator, runner: Runner, context: Context, settings: Settings) -> RunOutcome:
    """
    Run an operator's step, again if its surroundings ended it.

    :raises AirflowException: it could not be started; the type says whether a retry helps.
    """
    try:
        return _attempts(operator, runner, context, settings)
    except AirloopError as error:
        raise for_airflow(error) from error


def _attempts(operator: StepOperator, runner: Runner, context: Context, settings: Settings) -> RunOutcome:
    step = operator.step or operator.step_name
    if not step:
        raise BadArgument(f"task {operator.task_id} names no step", "pass step='extract' or 'package.module:function'")
    ti = context["ti"]
    run = RunInfo(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index, ti.try_number)
    interval = interval_of(context, operator.interval)
    secrets = fetch_secrets(operator.secrets or {})
    for attempt in range(operator.infrastructure_retries + 1):
        call = Call(
            step=step,
            arguments=operator.call_arguments(),
            attempt=attempt_id(getattr(ti, "id", run), run, attempt),
            run=run,
            interval=interval,
            force=operator.force,
        )
        request = RunRequest(
            call=call,
            environment={**settings.environment, **(operator.environment or {})},
            secrets=secrets,
            artifacts=settings.artifacts,
            memory_mb=operator.memory_mb or settings.memory_mb or None,
            cpus=operator.cpus,
            python=operator.python,
        )
        outcome = runner.run(request)
        error = outcome.error
        # A limit that was hit once will be hit again: that is for a person, or the task's own retries.
        if not isinstance(error, InfrastructureFailure) or isinstance(error, OutOfMemory | TimedOut):
            break
        # Whoever ended the task does not want it started again.
        if operator.killed:
            break
        if attempt < operator.infrastructure_retries:
            operator.log.warning("%s: %s; starting the step again", type(error).__name__, error)
    return outcome


def for_airflow(error: AirloopError) -> AirflowException:
    """The exception whose type tells Airflow whether to retry."""
    text = f"{type(error).__name__}: {error}" if type(error) is not AirloopError else str(error)
    if isinstance(error, Rejected):
        return AirflowFailException(text)
    if isinstance(error, StepSkipped):
        return AirflowSkipException(text)
    return AirflowException(text)
