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
from typing import Any

import pytest

from airloop.contract import Call, RunInfo, attempt_record_path
from airloop.errors import AirloopError, BadConfiguration, OutOfMemory, ProcessLost, ResultLost, StoreFull, TryAgain
from airloop.frame import history
from airloop.records import run_record_path
from airloop.warehouse.artifacts import ArtifactStore
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


RUN = RunInfo("loop", "run", "t")
ATTEMPT = "feedbeef"


def call_of(step: str, attempt: str = ATTEMPT, **arguments: Any) -> Call:
    return Call(f"steps_for_tests:{step}", arguments, attempt, RUN)


def recorded(request: RunRequest) -> dict[str, Any]:
    """What pages and reports find; the attempt's own record says the same."""
    newest = (request.artifacts / run_record_path(RUN)).read_bytes()
    assert (request.artifacts / attempt_record_path(request.call.attempt)).read_bytes() == newest
    found = history.run(ArtifactStore(request.artifacts), "loop", "run")
    assert list(found.tasks) == ["t"]
    return found.tasks["t"].record


@pytest.mark.parametrize("place", ["manifest.json", "t.json", f"{ATTEMPT}.json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_a_runner_says_of_a_killed_attempt_is_on_record(
    make_runner: MakeRunner, make_request: Make, place: str, when: str
) -> None:
    runner = make_runner()
    kill = make_request("count", call=call_of("count"), environment=fault(f"kill@artifact:{when}:{place}"))
    outcome = runner.run(kill)
    assert outcome.exit_code == -signal.SIGKILL
    record = recorded(kill)
    if outcome.error is None:
        assert record["status"] == "done"
        assert outcome.manifest is not None
        assert outcome.manifest["key"] == record["key"]
    else:
        assert record["status"] == "try_again"
        assert (record["error"]["class"], record["error"]["message"]) == ("ProcessLost", str(outcome.error))
    # Once the task's record is there, nothing is left to chance.
    assert (outcome.error is None) == ((place, when) in [("t.json", "after"), (f"{ATTEMPT}.json", "before"),
                                                         (f"{ATTEMPT}.json", "after")])  # fmt: skip
    again = make_request("count", call=call_of("count", "feedbee2"))
    assert runner.run(again).error is None
    assert recorded(again)["status"] == ("done" if (place, when) == ("manifest.json", "before") else "reused")


@pytest.mark.parametrize(
    ("step", "arguments", "limits", "error"),
    [
        ("allocate", {"mb": 800}, {"memory_mb": 400}, "OutOfMemory"),
        ("allocate", {"mb": 1}, {"timeout_s": 1.0}, "TimedOut"),
        ("crash", {}, {}, "ProcessLost"),
        ("leave", {"code": 3}, {}, "AirloopError"),
    ],
)
def test_an_attempt_that_cannot_tell_its_end_is_recorded_by_its_runner(
    make_runner: MakeRunner,
    make_request: Make,
    step: str,
    arguments: dict[str, Any],
    limits: dict[str, Any],
    error: str,
) -> None:
    request = make_request(step, call=call_of(step, **arguments), **limits)
    outcome = make_runner().run(request)
    record = recorded(request)
    assert record["error"] == {"class": error, "type": error, "message": str(outcome.error)}
    assert record["status"] == ("failed" if error == "AirloopError" else "try_again")
    assert record["step"] == f"steps_for_tests:{step}"
    # Who ends at once may be gone before anybody has looked at its memory; the kernel knows what it has had.
    assert max(record["resources"][name] for name in ("peak_memory_bytes", "peak_rss_bytes")) > 0
    assert record["finished_at"] >= record["started_at"]
    assert outcome.receipt is not None
    assert outcome.receipt.manifest == (request.artifacts / attempt_record_path(ATTEMPT)).as_uri()


def test_a_payload_that_cannot_be_started_is_recorded(make_request: Make, tmp_path: Path) -> None:
    missing = make_request("count", call=call_of("count"), python=str(tmp_path / "no-python"))
    with pytest.raises(BadConfiguration, match="is not an interpreter"):
        LocalRunner(warm=False).run(missing)
    record = recorded(missing)
    assert (record["status"], record["error"]["class"]) == ("rejected", "BadConfiguration")


def test_an_attempt_whose_task_was_broken_off_is_recorded(
    make_runner: MakeRunner, make_request: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Timeout(BaseException):
        """As Airflow's own is."""

    def ring(*_: object) -> None:
        raise Timeout("after a second")

    def once_it_speaks() -> None:
        wait_until(lambda: "a warning" in caplog.text)
        os.kill(os.getpid(), signal.SIGUSR1)

    request = make_request("talk", call=call_of("talk", go=str(tmp_path / "never")))
    runner = make_runner()
    before = signal.signal(signal.SIGUSR1, ring)
    thread = threading.Thread(target=once_it_speaks)
    thread.start()
    try:
        with pytest.raises(Timeout):
            runner.run(request)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert recorded(request)["error"] == {
        "class": "ProcessLost",
        "type": "Timeout",
        "message": "step steps_for_tests:talk was ended with its task: Timeout: after a second",
    }


def test_code_that_was_replaced_between_its_import_and_its_key_is_refused(
    make_runner: MakeRunner, make_request: Make, environment: dict[str, str], tmp_path: Path
) -> None:
    folder, imported, replaced = (tmp_path / name for name in ("team", "imported", "replaced"))
    folder.mkdir()
    source = f"""
import time
from pathlib import Path
from airloop.frame import StepContext, StepResult, step
Path({str(imported)!r}).touch()

@step()
def work(ctx: StepContext) -> StepResult:
    # Who replaces it may be late: then it is found by the look after the work.
    while not Path({str(replaced)!r}).exists():
        time.sleep(0.02)
    return StepResult(counts={{"version": 1}})
"""
    module = folder / "team_of_tests.py"
    module.write_text(source)
    path = {"PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{folder}"}
    outcomes: list[RunOutcome] = []

    def run(attempt: str, **more: str) -> None:
        call = Call("team_of_tests:work", {}, attempt, RUN)
        outcomes.append(make_runner().run(make_request(call.step, call=call, environment={**path, **more})))

    thread = threading.Thread(target=run, args=(ATTEMPT,), kwargs=fault("slow@start", AIRLOOP_FAULT_SLOW_S="1.5"))
    thread.start()
    wait_until(imported.exists)
    new = tmp_path / "new.py"
    new.write_text(source.replace(": 1}", ": 2}"))
    os.utime(new, (0, 0))
    new.replace(module)
    replaced.touch()
    thread.join()
    run("feedbee2")
    run("feedbee3")
    assert type(outcomes[0].error) is TryAgain
    assert "its code was replaced while it was at work: team_of_tests;" in str(outcomes[0].error)
    assert [(o.receipt and o.receipt.status, o.manifest and o.manifest["counts"]) for o in outcomes[1:]] == [
        ("done", {"version": 2}),
        ("reused", {"version": 2}),
    ]


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


def test_memory_that_grows_in_the_frame_is_found_too(run: Run) -> None:
    outcome = run("count", memory_mb=300, environment=fault("oom@run", AIRLOOP_FAULT_OOM_MB="8192"))
    assert isinstance(outcome.error, OutOfMemory)


def test_memory_below_the_limit_is_left_alone(run: Run) -> None:
    # The busier a machine is, the more seldom somebody looks.
    for keep_s in (1.0, 10.0, 60.0):
        outcome = run("allocate", mb=100, memory_mb=400, keep_s=keep_s)
        assert outcome.error is None
        if int(outcome.resources["peak_memory_bytes"]) >> 20 >= 100:
            return
    raise AssertionError("nobody has seen its memory")


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
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4)
    task.kill()
    task.wait()
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_killed_minder_takes_the_payload_with_it(
    make_runner: MakeRunner,
    make_request: Make,
    tmp_path: Path,
    start: str,
) -> None:
    runner = make_runner()
    pids = tmp_path / "pids"

    def kill_minder() -> None:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4)
        payload = int(pids.read_text().split()[-1])
        minder = int(Path(f"/proc/{payload}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(minder, signal.SIGKILL)

    thread = threading.Thread(target=kill_minder)
    thread.start()
    outcome = runner.run(make_request("family", path=str(pids)))
    thread.join()
    assert isinstance(outcome.error, ProcessLost)
    # The daemon left the group, so nobody but the lost minder knew of it; the others are gone.
    *others, payload = map(int, pids.read_text().split())
    wait_until(lambda: not alive(payload))
    wait_until(lambda: sum(map(alive, others)) <= 1)
    for pid in filter(alive, others):
        os.kill(pid, signal.SIGKILL)


def test_a_killed_server_does_not_hurt_its_children(
    make_request: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    request = make_request("talk", go=str(go))
    server = warm_server(request)
    pid = wait_for_server(server)
    runner = LocalRunner(preload=PRELOAD)
    outcomes: list[RunOutcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(request)))
    thread.start()
    wait_until(lambda: "a warning" in caplog.text)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    go.touch()
    thread.join()
    assert outcomes[0].error is None
    assert outcomes[0].resources["start"] == "warm"
    after = runner.run(make_request("count"))
    assert (after.error, after.resources["start"]) == (None, "cold")
