"""
Steps for tests of pods; named ``steps_in_pods:NAME``.

This file's text is put into a ConfigMap that pods have on their ``PYTHONPATH``: it needs nothing but ``airloop``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from airloop.errors import RejectedRows, StepSkipped, Unreachable
from airloop.frame import StepContext, StepResult, step


@step()
def count(ctx: StepContext, *, rows: int = 3) -> StepResult:
    """Succeed."""
    ctx.log.info("counting %d rows", rows)
    return StepResult(counts={"rows": rows})


@step()
def wait(ctx: StepContext, *, seconds: float, stubborn: bool = False) -> StepResult:
    """Take a while; a stubborn one does not heed being asked to end."""
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("waiting", flush=True)
    time.sleep(seconds)
    return StepResult(counts={"rows": 1})


@step()
def talk(ctx: StepContext, *, lines: int, pause_s: float) -> StepResult:
    """Print numbered lines."""
    for number in range(lines):
        print(f"line {number}", flush=True)
        time.sleep(pause_s)
    return StepResult(counts={"lines": lines})


@step()
def echo(ctx: StepContext, *, text: str) -> StepResult:
    """Give back what it was given."""
    return StepResult(details={"text": text})


@step()
def end(ctx: StepContext, *, how: str) -> StepResult:
    """End as steps do."""
    if how == "rejected":
        raise RejectedRows("raw.flights: 214 rows are bad", "fix the source")
    if how == "try again":
        raise Unreachable("http://127.0.0.1:1 does not answer", "start it")
    if how == "skipped":
        raise StepSkipped("nothing to do on a Sunday")
    if how == "bug":
        raise ZeroDivisionError("rows by zero")
    if how == "sigterm":
        # As a side-car, a node or a person may send it; nothing in the pod's object tells.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    # Past all handlers, as a library may that calls exit() in native code.
    os._exit(int(how))


@step()
def allocate(ctx: StepContext, *, mb: int) -> StepResult:
    """Take memory, and use it."""
    blocks = []
    for number in range(mb):
        blocks.append(b"x" * (1 << 20))
        if number % 64 == 0:
            time.sleep(0.01)
    time.sleep(10)
    return StepResult(counts={"mb": len(blocks)})


@step()
def tell(ctx: StepContext, *, name: str) -> StepResult:
    """Say a secret, wherever one can."""
    value = os.environ[name]
    print(f"the secret is {value}, really", flush=True)
    ctx.log.warning("it is %s", value)
    raise Unreachable(f"no access with {value}", "give another")


@step()
def look(ctx: StepContext, *, paths: list[str]) -> StepResult:
    """What this process may do: which of some paths it can write to or read, and what the kernel says of it."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    writable, readable = [], []
    for path in paths:
        if os.access(path, os.R_OK):
            readable.append(path)
        try:
            file = Path(path) / f".airloop-{os.getpid()}"
            file.touch()
            file.unlink()
            writable.append(path)
        except OSError:
            pass
    return StepResult(
        details={
            "uid": os.getuid(),
            "gid": os.getgid(),
            "capabilities": int(status["CapEff"], 16),
            "no_new_privileges": int(status["NoNewPrivs"]),
            "seccomp": int(status["Seccomp"]),
            "writable": writable,
            "readable": readable,
            "environment": sorted(os.environ),
        }
    )
