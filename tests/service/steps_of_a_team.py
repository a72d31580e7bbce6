"""Steps as a team writes its own, run through Airflow by the tests."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from airloop.contract import Interval
from airloop.errors import RejectedRows, StepSkipped, Unreachable
from airloop.frame import StepContext, StepResult, step


@step()
def double(ctx: StepContext, *, number: int, note: str = "") -> StepResult:
    """Double a number."""
    ctx.log.info("doubling %s", number)
    return StepResult(counts={"doubled": 2 * number}, outputs={"note": f"note:{note}"} if note else {})


@step()
def month(ctx: StepContext, *, interval: Interval) -> StepResult:
    """Say which interval this is."""
    return StepResult(counts={"days": (interval.end - interval.start).days})


@step()
def flaky(ctx: StepContext, *, marker: str) -> StepResult:
    """Fail the first time and succeed the second."""
    if not Path(marker).exists():
        Path(marker).touch()
        raise Unreachable("nobody answers at first")
    return StepResult()


@step()
def rejecting(ctx: StepContext, *, marker: str) -> StepResult:
    """Count the attempts, and say no each time."""
    with Path(marker).open("a") as file:
        file.write("x")
    raise RejectedRows("214 of 336,776 rows are bad", "fix the source")


@step()
def skipping(ctx: StepContext) -> StepResult:
    """Skip."""
    raise StepSkipped("nothing to do")


@step()
def secretive(ctx: StepContext) -> StepResult:
    """Let a secret slip into the log."""
    logging.getLogger("airloop").info("the password is %s", os.environ["SERVICE_PASSWORD"])
    print("again:", os.environ["SERVICE_PASSWORD"], flush=True)
    return StepResult(counts={"length": len(os.environ["SERVICE_PASSWORD"])})
