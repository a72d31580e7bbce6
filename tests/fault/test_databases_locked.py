"""Another process holds one of the databases for a while: the step waits, and ends as if nobody had."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.compare import differences
from tests.fault.flights_loop import SECOND
from tests.fault.harness import World

HOLD = """
import pathlib, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
trace = pathlib.Path(sys.argv[2])
while not trace.exists():
    time.sleep(0.01)
time.sleep(1.5)
"""
"""Hold a database until a step has been at work for a while; its trace begins when it does."""


@contextmanager
def held(file: Path, trace: Path) -> Iterator[subprocess.Popen[str]]:
    """A process beside which nobody can write the database; see :data:`HOLD`."""
    command = [sys.executable, "-I", "-c", HOLD, str(file), str(trace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("flights.validate", "catalog.db"),
        ("materialize", "online.db"),
        ("train", "mlflow.db"),
        ("register", "mlflow.db"),
        ("register", "catalog.db"),
    ],
)
def test_a_held_database_is_waited_for(task: str, file: str, world: World, tmp_path: Path) -> None:
    chosen = next(t for t in world.tasks if t.name == task and t.interval == SECOND)
    world.back_to(chosen.before)
    trace = tmp_path / "trace"
    with held(world.home.folder / file, trace) as holder:
        outcome = world.home.run(chosen.step, chosen.call, chosen.interval, fault_trace=str(trace))
        assert holder.wait() == 0
    assert outcome.code == 0, outcome.log
    assert differences(chosen.state_after, world.home.full_state()) == ([], [])
