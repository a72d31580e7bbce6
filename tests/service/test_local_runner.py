"""Steps as local processes, as new interpreters and as children of the warm server."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import airloop
from airloop.contract import Call
from airloop.errors import (
    AirloopError,
    BadArgument,
    BadConfiguration,
    InfrastructureFailure,
    NotFound,
    ProcessLost,
    RejectedRows,
    StepSkipped,
    TimedOut,
    Unreachable,
)
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.local import LocalRunner
from tests.payload_runs import alive, wait_until

Run = Callable[..., RunOutcome]
Make = Callable[..., RunRequest]
MakeRunner = Callable[..., LocalRunner]


@contextmanager
def at_a_signal(handler: Callable[..., None], *, when_all_of: Path) -> Iterator[None]:
    """While the block runs: a handler that this process's signal calls, once a step's four processes are there."""

    def send() -> None:
        wait_until(lambda: when_all_of.exists() and len(when_all_of.read_text().split()) == 4)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_step_is_done_and_tells_what_it_used(run: Run) -> None:
    outcome = run("count", rows=5)
    assert outcome.error is None
    assert outcome.exit_code == 0
    assert outcome.receipt is not None
    assert outcome.receipt.status == "done"
    assert outcome.manifest is not None
    assert outcome.manifest["counts"] == {"rows": 5}
    used = outcome.resources
    assert 0 < float(used["start_s"]) < float(used["wall_s"])
    assert outcome.record is not None
    spawned, began = (datetime.fromisoformat(outcome.record[name]) for name in ("spawned_at", "started_at"))
    assert 0 <= (began - spawned).total_seconds() < float(used["wall_s"])
    assert int(used["peak_rss_bytes"]) > 10 << 20


def test_a_second_attempt_is_a_reuse(run: Run) -> None:
    assert run("count").receipt.status == "done"  # type: ignore[union-attr]
    again = run("count")
    assert again.receipt is not None
    assert (again.error, again.receipt.status) == (None, "reused")
    assert again.manifest is not None


@pytest.mark.parametrize(
    ("step", "kind", "exit_code", "text"),
    [
        ("reject", RejectedRows, 65, "raw.flights: 214 rows are bad; fix the source"),
        ("unreachable", Unreachable, 75, "http://127.0.0.1:1 does not answer; start it"),
        ("skip", StepSkipped, 99, "nothing to do on a Sunday"),
        ("bug", AirloopError, 1, "ZeroDivisionError: rows by zero"),
        ("no_such_step", NotFound, 65, "steps_for_tests:no_such_step"),
        ("no_such_package:step", NotFound, 65, "no_such_package"),
    ],
)
def test_errors_keep_type_and_text(run: Run, step: str, kind: type[AirloopError], exit_code: int, text: str) -> None:
    outcome = run(step)
    assert outcome.exit_code == exit_code
    assert outcome.manifest is None
    # Errors before the attempt have no record: their class is that of the exit code.
    expected = kind if outcome.record is not None else kind.__mro__[1]
    assert type(outcome.error) is expected
    assert text in str(outcome.error)


def test_a_module_that_cannot_be_imported_is_rejected_in_one_line(
    run: Run, tmp_path: Path, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_steps.py").write_text("import a_module_that_is_not_there\n")
    outcome = run("broken_steps:step", environment={"PYTHONPATH": f"{environment['PYTHONPATH']}"}, cwd=tmp_path)
    assert outcome.exit_code == 65
    assert "No module named 'a_module_that_is_not_there'" in str(outcome.error)
    assert [r.levelname for r in caplog.records if r.name == "airloop.step"] == ["ERROR"]


@pytest.mark.parametrize("status", [0, 3, 65, 71, 75, 99, 127, 137])
def test_leaving_the_interpreter_is_a_failure_whatever_its_code_means(run: Run, status: int) -> None:
    outcome = run("leave", code=status)
    assert type(outcome.error) is AirloopError
    assert outcome.exit_code == 1
    assert f"steps_for_tests:leave was left by sys.exit({status})" in str(outcome.error)


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [(errno.ENOMEM, InfrastructureFailure, 71), (errno.EAGAIN, InfrastructureFailure, 71),
     (errno.EACCES, BadConfiguration, 127)],
)  # fmt: skip
def test_a_payload_that_finds_no_room_may_be_started_later(
    make_request: Make, environment: dict[str, str], tmp_path: Path, number: int, kind: type[AirloopError],
    exit_code: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code = tmp_path / "code"
    shutil.copytree(Path(environment["PYTHONPATH"]) / "airloop", code / "airloop")
    mind = code / "airloop" / "minder" / "mind.py"
    mind.write_text(mind.read_text().replace("os.execve(", f"raise OSError({number}, os.strerror({number})); ("))
    monkeypatch.setattr(airloop, "__file__", str(code / "airloop" / "__init__.py"))
    outcome = LocalRunner(warm=False).run(make_request("count"))
    assert (type(outcome.error), outcome.exit_code) == (kind, exit_code)
    assert f"the payload cannot be started: {type(OSError(number, '')).__name__}" in str(outcome.error)


def test_a_crash_in_native_code_is_named_and_leaves_a_traceback(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    outcome = run("crash", number=int(signal.SIGSEGV))
    assert isinstance(outcome.error, ProcessLost)
    assert "SIGSEGV" in str(outcome.error)
    assert outcome.exit_code == -signal.SIGSEGV
    assert "steps_for_tests.py" in caplog.text


def test_the_log_keeps_levels_and_loggers(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert run("talk").error is None
    said = {(r.name, r.levelname, r.getMessage()) for r in caplog.records}
    assert {
        ("airloop.step", "WARNING", "a warning"),
        ("somebody.else", "ERROR", "an error of somebody else"),
        ("payload", "INFO", "plain output"),
        ("payload", "INFO", "plain error output"),
        ("payload", "INFO", "not �� text"),
        ("payload", "INFO", "��\x1b[31mred"),
        ("payload", "INFO", "100%"),
        ("payload", "INFO", "last words"),
    } <= said


def test_the_log_is_live(
    make_runner: MakeRunner, make_request: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    runner, go = make_runner(), tmp_path / "go"
    outcome: list[RunOutcome] = []
    thread = threading.Thread(target=lambda: outcome.append(runner.run(make_request("talk", go=str(go)))))
    thread.start()
    try:
        wait_until(lambda: "plain error output" in caplog.text and "a warning" in caplog.text)
        assert "last words" not in caplog.text
        assert not outcome
    finally:
        go.touch()
        thread.join()
    assert "last words" in caplog.text


def test_secrets_are_in_the_environment_and_nowhere_else(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = "correct horse/battery+staple"
    outcome = run("talk", secret="DB_PASSWORD", secrets={"DB_PASSWORD": value})
    assert outcome.error is None
    assert "the secret is ***, really" in caplog.text
    assert "it is ***" in caplog.text
    assert "raw ***" in caplog.text
    assert value not in caplog.text
    assert value not in repr(outcome)
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and value.encode() in p.read_bytes()]
    assert kept == []


def test_a_line_of_ten_megabytes_is_bounded(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert run("long_line", mb=10).error is None
    (message,) = [r.getMessage() for r in caplog.records if r.name == "payload"]
    assert message.startswith("xxxx")
    assert message.endswith("(10,485,760 bytes in all)")
    assert len(message) < 40_000


def test_the_payload_finds_a_clean_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "a fernet key")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://user:pass@host/db")
    monkeypatch.setenv("_AIRFLOW__STARTUP_MSG", "a token")
    monkeypatch.setenv("INHERITED", "yes")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    (tmp_path / "elsewhere").mkdir()
    try:
        outcome = run(
            "write_environment",
            path=str(tmp_path / "seen.json"),
            environment={"OWN": "1"},
            secrets={"TOKEN": "hunter2hunter2"},
            cwd=tmp_path / "elsewhere",
        )
    finally:
        os.close(read)
        os.close(write)
    assert outcome.error is None
    seen = json.loads((tmp_path / "seen.json").read_text())
    variables = seen["environment"]
    assert (variables["INHERITED"], variables["OWN"], variables["TOKEN"]) == ("yes", "1", "hunter2hunter2")
    assert variables["AIRLOOP_SECRETS"] == "TOKEN"
    assert [n for n in variables if "AIRFLOW" in n and n != "AIRFLOW_HOME"] == []
    assert "hunter2" not in str(seen["argv"])
    assert seen["argv"][1:] == ["run", "steps_for_tests:write_environment"]
    assert seen["cwd"] == seen["path"][0] == str(tmp_path / "elsewhere")
    assert seen["stdin"] == "/dev/null"
    # Standard input, output and error, the attempt's mark, the lock of the step's key, and the folder being listed.
    assert len(seen["descriptors"]) == 6
    assert seen["session"] is True
    assert seen["main"] == "airloop.__main__"
    assert "default_int_handler" in seen["signals"][0]
    assert seen["signals"][1:] == [str(signal.SIG_DFL)] * 2
    assert set(seen["processors"]) == os.sched_getaffinity(0)


def test_processors_are_limited_and_libraries_told(run: Run, tmp_path: Path) -> None:
    assert run("write_environment", path=str(tmp_path / "seen.json"), cpus=1, memory_mb=1000).error is None
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen["processors"]) == 1
    assert {seen["environment"][n] for n in ("OMP_NUM_THREADS", "AIRLOOP_THREADS")} == {"1"}
    assert seen["environment"]["AIRLOOP_MEMORY_MB"] == "500"


def test_two_limited_steps_do_not_share_a_processor(
    make_runner: MakeRunner, make_request: Make, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    runner = make_runner()
    # Each is there until the other one is.
    paths = [tmp_path / f"{n}.json" for n in range(2)]
    requests = [
        make_request("write_environment", path=str(path), go=str(other), cpus=1)
        for path, other in zip(paths, paths[::-1], strict=True)
    ]
    threads = [threading.Thread(target=runner.run, args=(r,)) for r in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chosen = [json.loads(path.read_text())["processors"] for path in paths]
    assert chosen[0] != chosen[1]


def test_processor_time_of_children_counts(run: Run) -> None:
    used = run("burn", cpu_s=0.4, in_child=True).resources
    # The rest is the start's, and a busy machine's processors are slow.
    assert 0.4 <= float(used["cpu_s"]) < 40


def test_what_a_step_leaves_running_is_ended(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    outcome = run("family", path=str(tmp_path / "pids"), leave_behind=True)
    assert outcome.error is None
    assert time.monotonic() - begun < 400, "they are not waited for"
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert "the step had left running" in caplog.text


@pytest.mark.parametrize("ignore_term", [False, True])
def test_a_time_out_ends_children_grandchildren_and_daemons(run: Run, tmp_path: Path, ignore_term: bool) -> None:
    # Long enough for all of them to be there, however busy the machine is; if it has just become so, once more.
    limit_s = math.ceil(2 + 4 * float(run("count").resources["wall_s"]))
    for file in (tmp_path / "pids", tmp_path / "pids of another one"):
        outcome = run("family", path=str(file), timeout_s=float(limit_s), ignore_term=ignore_term)
        assert isinstance(outcome.error, TimedOut)
        assert f"time limit of {limit_s} s" in str(outcome.error)
        pids = file.read_text().split() if file.exists() else []
        assert not any(alive(int(pid)) for pid in pids)
        if len(pids) == 4:
            break
        limit_s *= 10
    assert len(pids) == 4


def test_a_step_that_is_asked_to_end_cleans_up(make_runner: MakeRunner, make_request: Make, tmp_path: Path) -> None:
    # As above, and as long as it takes for what a step that is asked does in a moment.
    runner = make_runner(grace_s=120.0)
    for limit_s in (3.0, 12.0, 60.0):
        pids = tmp_path / f"pids of {limit_s:.0f} s"
        outcome = runner.run(make_request("family", path=str(pids), timeout_s=limit_s))
        assert isinstance(outcome.error, TimedOut)
        if pids.exists():
            break
    assert pids.exists()
    assert list((tmp_path / "home" / "work").iterdir()) == []


def test_on_kill_in_a_signal_handler_ends_everything(
    make_runner: MakeRunner, make_request: Make, tmp_path: Path
) -> None:
    # Who is asked ends in a moment, and a busy machine's moment may be long.
    runner = make_runner(grace_s=120.0)
    pids = tmp_path / "pids"
    gone: list[bool] = []

    def handler(*_: Any) -> None:
        runner.on_kill()
        gone.append(not any(alive(int(pid)) for pid in pids.read_text().split()))

    with at_a_signal(handler, when_all_of=pids):
        outcome = runner.run(make_request("family", path=str(pids)))
    assert gone == [True]
    assert isinstance(outcome.error, ProcessLost)
    assert "its task was stopped" in str(outcome.error)


def test_an_exception_in_the_task_ends_everything(make_runner: MakeRunner, make_request: Make, tmp_path: Path) -> None:
    class TaskTimeout(BaseException):
        pass

    def handler(*_: Any) -> None:
        raise TaskTimeout

    runner = make_runner(grace_s=120.0)
    pids = tmp_path / "pids"

    with at_a_signal(handler, when_all_of=pids), pytest.raises(TaskTimeout):
        runner.run(make_request("family", path=str(pids)))
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    # What came before it is called, too.
    runner.on_kill()


def test_the_call_is_for_the_step_of_the_command(make_runner: MakeRunner, make_request: Make) -> None:
    with pytest.raises(BadArgument, match="attempt"):
        make_runner().run(make_request("count", call=Call("steps_for_tests:count")))


def test_an_interpreter_that_is_not_there_is_named(make_request: Make) -> None:
    with pytest.raises(BadConfiguration, match="/no/such/python"):
        LocalRunner(warm=False).run(make_request("count", python="/no/such/python"))


def test_an_interpreter_without_airloop_is_no_success(make_request: Make, tmp_path: Path) -> None:
    outcome = LocalRunner(warm=False).run(
        make_request("count", python=sys.executable, environment={"PYTHONPATH": "", "PYTHONHOME": "/no/such/home"})
    )
    assert outcome.error is not None
    assert outcome.exit_code == 1


def test_nothing_is_left_in_the_temporary_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert run("count").error is None
    assert list((tmp_path / "tmp").iterdir()) == []
