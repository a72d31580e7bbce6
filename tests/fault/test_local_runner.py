"""What ends a payload from outside, and what gets lost on the way: never green, never left running, always named."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airloop.errors import AirloopError, OutOfMemory, ProcessLost, ResultLost, StoreFull
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.local import LocalRunner
from tests.payload_runs import PRELOAD, alive, wait_for_server, wait_until, warm_server

Run = Callable[..., RunOutcome]
Make = Callable[..., RunRequest]
MakeRunner = Callable[..., LocalRunner]


def fault(text: str, **more: str) -> dict[str, str]:
    return {"AIRLOOP_FAULT": text, **more}


def test_a_lost_receipt_is_found_by_the_attempts_record(run: Run) -> None:
    outcome = run("count", environment=fault("lose@receipt"))
    assert outcome.error is None
    assert outcome.receipt is not None
    assert outcome.receipt.status == "done"
    assert outcome.manifest is not None


def test_a_lost_manifest_is_never_green(run: Run) -> None:
    outcome = run("count", environment=fault("lose@manifest"))
    assert isinstance(outcome.error, ResultLost)
    assert "published no manifest" in str(outcome.error)
    assert outcome.exit_code == 0
    assert outcome.manifest is None
    # The next attempt does it.
    assert run("count").error is None


def test_a_kill_before_the_manifest_is_named(run: Run) -> None:
    outcome = run("count", environment=fault("kill@run"))
    assert isinstance(outcome.error, ProcessLost)
    assert "SIGKILL, which Airloop did not send" in str(outcome.error)
    assert outcome.exit_code == -signal.SIGKILL
    assert run("count").receipt.status == "done"  # type: ignore[union-attr]


def test_a_kill_after_the_manifest_loses_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run("count", environment=fault("kill@receipt"))
    assert outcome.error is None
    assert outcome.exit_code == -signal.SIGKILL
    assert outcome.manifest is not None
    assert "after its manifest was published: the step is done" in caplog.text


def test_a_bug_and_a_full_disk_are_told_apart(run: Run) -> None:
    assert type(run("count", environment=fault("raise@run")).error) is AirloopError
    assert type(run("count", environment=fault("full@run")).error) is StoreFull


@pytest.mark.parametrize("in_child", [False, True])
def test_out_of_memory_names_limit_and_peak(run: Run, in_child: bool) -> None:
    outcome = run("allocate", mb=800, in_child=in_child, memory_mb=400)
    assert isinstance(outcome.error, OutOfMemory)
    assert "its limit is 400 MiB" in str(outcome.error)
    assert "raise the task's memory_mb above 400" in str(outcome.error)
    peak = int(outcome.resources["peak_memory_bytes"]) / (1 << 20)
    assert f"it used {peak:,.0f} MiB" in str(outcome.error)
    assert 400 < peak <= 1000
    assert float(outcome.resources["wall_s"]) < 15


def test_memory_that_grows_in_the_frame_is_found_too(run: Run) -> None:
    outcome = run("count", memory_mb=300, environment=fault("oom@run", AIRLOOP_FAULT_OOM_MB="8192"))
    assert isinstance(outcome.error, OutOfMemory)


def test_memory_below_the_limit_is_left_alone(run: Run) -> None:
    outcome = run("allocate", mb=100, memory_mb=400, keep_s=1.0)
    assert outcome.error is None
    assert int(outcome.resources["peak_memory_bytes"]) >> 20 >= 100


def test_a_killed_task_takes_its_payload_with_it(make_runner: MakeRunner, make_request: Make, tmp_path: Path) -> None:
    """SIGKILL of the task's process: nobody can clean up, and still nothing lives on."""
    runner = make_runner()
    request = make_request("family", path=str(tmp_path / "pids"), ignore_term=True)
    program = """
import os, pickle, sys
runner, request = pickle.load(sys.stdin.buffer)
runner.run(request)
"""
    task = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert task.stdin is not None
    with task.stdin as pipe:
        pickle.dump((runner, request), pipe)
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4, timeout_s=30)
    task.kill()
    task.wait()
    took_s = wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    assert took_s < 3


def test_a_killed_minder_takes_the_payload_with_it(
    make_runner: MakeRunner,
    make_request: Make,
    tmp_path: Path,
    start: str,
) -> None:
    runner = make_runner()
    pids = tmp_path / "pids"

    def kill_minder() -> None:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4, timeout_s=30)
        payload = int(pids.read_text().split()[-1])
        minder = int(Path(f"/proc/{payload}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(minder, signal.SIGKILL)

    thread = threading.Thread(target=kill_minder)
    thread.start()
    outcome = runner.run(make_request("family", path=str(pids)))
    thread.join()
    assert isinstance(outcome.error, ProcessLost)
    # The daemon left the group, so nobody but the lost minder knew of it; the others are gone.
    payload = int(pids.read_text().split()[-1])
    wait_until(lambda: not alive(payload))
    daemons = [int(pid) for pid in pids.read_text().split() if alive(int(pid))]
    assert len(daemons) <= 1
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)


def test_a_killed_server_does_not_hurt_its_children(make_request: Make, caplog: pytest.LogCaptureFixture) -> None:
    request = make_request("talk", pause_s=2.0)
    server = warm_server(request)
    pid = wait_for_server(server)
    runner = LocalRunner(preload=PRELOAD)
    outcomes: list[RunOutcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(request)))
    thread.start()
    wait_until(lambda: "a warning" in caplog.text)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert outcomes[0].error is None
    assert outcomes[0].resources["start"] == "warm"
    after = runner.run(make_request("count"))
    assert (after.error, after.resources["start"]) == (None, "cold")
