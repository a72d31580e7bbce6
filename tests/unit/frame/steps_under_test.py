"""Steps that the frame's tests run."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from airloop.contract import Interval
from airloop.errors import RejectedRows, StepSkipped, Unreachable
from airloop.frame import KEYLESS, StepContext, StepResult, step


@step()
def count(ctx: StepContext, *, rows: int, factor: float = 1.0, chunk: Annotated[int, KEYLESS] = 10) -> StepResult:
    """Count rows.

    :param rows: how many there are.
    :param factor: what to multiply by.
    :param chunk: rows at a time.
    """
    ctx.publish("note.txt", b"hello")
    return StepResult(counts={"rows": int(rows * factor)}, metrics={"factor": factor})


@step()
def monthly(ctx: StepContext, *, interval: Interval) -> StepResult:
    """Needs an interval."""
    return StepResult(details={"interval": interval.as_json()})


@step()
def fails(ctx: StepContext, *, how: str) -> StepResult:
    """Fails in the way that is asked for."""
    if how == "reject":
        raise RejectedRows("3 of 10 rows are bad", "fix them")
    if how == "again":
        raise Unreachable("nobody answers")
    if how == "skip":
        raise StepSkipped("nothing to do")
    raise ZeroDivisionError("secret-value is not a number")


@step(still_there=lambda ctx, manifest: (ctx.config.home / "effect").exists())
def effectful(ctx: StepContext) -> StepResult:
    """Leaves something outside the warehouse."""
    (ctx.config.home / "effect").touch()
    return StepResult()


@step()
def not_finite(ctx: StepContext) -> StepResult:
    """Measures NaN."""
    return StepResult(metrics={"loss": float("nan")})


@step()
def gives(ctx: StepContext, *, what: str) -> StepResult:
    """Gives things that are no plain JSON, or nearly so."""
    import numpy as np

    given: dict[str, StepResult] = {
        "numbers": StepResult(
            counts={"rows": np.int64(5)},
            metrics={"share": np.float32(0.5), "sum": np.float64(1.5)},
            details={"by": {np.str_("a"): [np.bool_(True), np.array(3)]}, 1: (2, None)},
            event={"version": np.uint8(7)},
        ),
        "array": StepResult(details={"fit": {"weights": [1, np.zeros(2)]}}),
        "nan": StepResult(details={"fit": [1.0, np.float32("nan")]}),
        "date": StepResult(event={"until": date(2013, 1, 1)}),
        "name": StepResult(details={"by": {(1, 2): 3}}),
        "roles": StepResult(outputs={"table": "a.b@1", "status": "fine", "counts": "many"}),
    }
    return given[what]
