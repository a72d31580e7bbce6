"""What a task asks of its runner and how often, and what it tells Airflow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airloop.contract import Call, Receipt
from airloop.errors import AirloopError, OutOfMemory, ProcessLost, TimedOut
from airloop_operators import StepOperator, turn
from airloop_operators.attempts import LONGEST_DELAY_S, MARGIN_S, delay_before
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.settings import Settings
from tests.unit.operators.test_turn import a_run

LOST = ProcessLost("step one was ended by SIGKILL")


@dataclass
class Runner:
    """Ends each attempt with the next of its endings; a reuse is of what an earlier call made."""

    endings: list[AirloopError | Call | None] = field(default_factory=lambda: [None])
    requests: list[RunRequest] = field(default_factory=list)

    def run(self, request: RunRequest) -> RunOutcome:
        ending = self.endings[len(self.requests)]
        self.requests.append(request)
        made_by = ending if isinstance(ending, Call) else request.call
        manifest = {
            "attempt": made_by.attempt, "run": asdict(made_by.run), "step": "one", "interval": None,
            "outputs": {}, "counts": {},
        }  # fmt: skip
        status = "done" if made_by is request.call else "reused"
        receipt = Receipt(request.call.attempt, status, "ab", "file:///manifest")
        if isinstance(ending, AirloopError):
            return RunOutcome(receipt=None, exit_code=1, error=ending)
        return RunOutcome(receipt=receipt, exit_code=0, error=None, manifest=manifest)

    def on_kill(self) -> None:
        pass


class Events:
    """Stands for the outlet events of a task."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __getitem__(self, alias: Any) -> Events:
        return self

    def add(self, asset: Asset, extra: dict[str, Any]) -> None:
        self.keys.append(extra["key"])


@dataclass
class Task:
    """One try of a task; each has an id of its own."""

    runner: Runner
    number: int = 1
    map_index: int | None = None
    events: Events = field(default_factory=Events)

    def execute(self, **arguments: Any) -> Any:
        with DAG("loop", schedule=None):
            given = {"infrastructure_retry_delay": 0, **arguments}
            self.operator = StepOperator(task_id="t", step="one", announces=Asset("made"), **given)
        ti = SimpleNamespace(
            id=f"id-of-{self.number}-{self.map_index}", dag_id="loop", run_id="r2", task_id="t",
            map_index=self.map_index, try_number=self.number,
        )  # fmt: skip
        run = a_run(2)
        context: Any = {"ti": ti, "dag_run": run, "outlet_events": self.events}
        return self.operator.execute(context)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    """Stands for the local runner, of a configuration with a memory limit."""
    found = Runner()
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setattr("airloop_operators.runners.get_runner", lambda name, settings: found)
    monkeypatch.setattr(turn, "_previous", lambda *_: None)
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    read = Settings.read()
    monkeypatch.setattr(Settings, "read", lambda: replace(read, memory_mb=512))
    return found


@pytest.mark.parametrize(("given", "limit"), [(None, 512), (256, 256), (0, None)])
def test_a_task_may_lift_the_default_memory_limit(runner: Runner, given: int | None, limit: int | None) -> None:
    Task(runner).execute(memory_mb=given)
    assert runner.requests[0].memory_mb == limit


@pytest.mark.parametrize(("limit_s", "step_s"), [(None, None), (3600, 3600 - MARGIN_S), (30, 27)])
def test_the_step_ends_within_the_tasks_time_limit(runner: Runner, limit_s: float | None, step_s: float | None) -> None:
    Task(runner).execute(execution_timeout=None if limit_s is None else timedelta(seconds=limit_s))
    asked = runner.requests[0].timeout_s
    if step_s is None:
        assert asked is None
    else:
        assert asked is not None
        assert step_s / 2 < asked <= step_s


@pytest.mark.parametrize(("error", "count"), [(LOST, 3), (OutOfMemory("o"), 1), (TimedOut("t"), 1)])
def test_only_what_a_restart_may_cure_is_started_again(runner: Runner, error: AirloopError, count: int) -> None:
    runner.endings = [error] * 3
    with pytest.raises(AirflowException, match=type(error).__name__) as raised:
        Task(runner).execute(infrastructure_retries=2)
    assert not isinstance(raised.value, AirflowFailException)
    assert len(runner.requests) == count


def test_secrets_of_all_tasks_give_way_to_those_of_one(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Settings.read()
    ours = {"PGPASSWORD": "db.password", "TOKEN": "service.login"}
    monkeypatch.setattr(Settings, "read", lambda: replace(read, secrets=ours))
    monkeypatch.setenv("AIRFLOW_CONN_DB", "postgres://air:of-the-db@db/lake")
    monkeypatch.setenv("AIRFLOW_CONN_SERVICE", "http://user:of-the-service@service")
    Task(runner).execute(secrets={"TOKEN": "service.password"})
    assert runner.requests[0].secrets == {"PGPASSWORD": "of-the-db", "TOKEN": "of-the-service"}
    assert "of-the" not in repr(runner.requests[0])


class TestWaitsBeforeItStartsAgain:
    """What took one pod may take the next as well, and many at once."""

    @pytest.mark.parametrize(
        ("again", "most_s"), [(1, 4), (2, 8), (5, 64), (6, LONGEST_DELAY_S), (9_999, LONGEST_DELAY_S)]
    )
    def test_twice_as_long_each_time_and_not_the_same_for_all(self, again: int, most_s: float) -> None:
        for first in (4, timedelta(seconds=4)):
            waits = {delay_before(again, first, None) for _ in range(200)}
            assert most_s / 2 <= min(waits) < max(waits) <= most_s
            assert len(waits) > 100

    def test_no_more_than_a_little_of_the_time_that_is_left(self) -> None:
        now = time.monotonic()
        assert delay_before(4, 60, now + 20) <= 2
        assert delay_before(4, 60, now - 1) == 0
        assert delay_before(1, 0, None) == 0

    def test_as_long_as_its_operator_says(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []

        def rest(_: StepOperator, seconds: float) -> bool:
            waits.append(seconds)
            return True

        monkeypatch.setattr("airloop_operators.attempts._rest", rest)
        runner.endings = [LOST, LOST, None]
        Task(runner).execute(infrastructure_retries=2, infrastructure_retry_delay=timedelta(seconds=20))
        assert [10 <= waits[0] <= 20, 20 <= waits[1] <= 40, len(waits)] == [True, True, 2]

    def test_not_after_the_last_one(self, runner: Runner) -> None:
        runner.endings = [LOST]
        began = time.monotonic()
        with pytest.raises(AirflowException, match="SIGKILL"):
            Task(runner).execute(infrastructure_retries=0, infrastructure_retry_delay=60)
        assert time.monotonic() - began < 30

    def test_a_task_that_is_stopped_meanwhile_is_not_waited_for(
        self, runner: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = Task(runner)
        runner.endings = [LOST, None]
        run = runner.run

        def killed_soon(request: RunRequest) -> RunOutcome:
            threading.Timer(0.2, task.operator.on_kill).start()
            return run(request)

        monkeypatch.setattr(runner, "run", killed_soon)
        began = time.monotonic()
        with pytest.raises(AirflowException, match="SIGKILL"):
            task.execute(infrastructure_retry_delay=60)
        assert time.monotonic() - began < 30
        assert len(runner.requests) == 1


class TestKilled:
    """A task that is asked to end: Airflow calls on_kill() in a signal handler, and goes on."""

    def test_before_it_starts(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StepOperator, "killed", True)
        with pytest.raises(AirflowException, match="not started because its task was stopped"):
            Task(runner).execute()
        assert runner.requests == []

    def test_while_it_waits_for_its_turn(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            turn, "_previous", lambda _, date, state: a_run(1) if date == a_run(2).logical_date else None
        )
        task = Task(runner)
        clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: task.operator.on_kill())
        monkeypatch.setattr(turn, "time", clock)
        with pytest.raises(AirflowException, match="not started because its task was stopped"):
            task.execute(order="run")
        assert runner.requests == []

    def test_while_its_step_runs(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        task = Task(runner)
        run = runner.run

        def killed(request: RunRequest) -> RunOutcome:
            task.operator.on_kill()
            return run(request)

        monkeypatch.setattr(runner, "run", killed)
        runner.endings = [LOST, None]
        with pytest.raises(AirflowException, match="SIGKILL"):
            task.execute()
        assert len(runner.requests) == 1


class TestAnnounces:
    """An event is told for what the task made, and never lost."""

    @pytest.fixture
    def made_by(self, runner: Runner) -> Callable[..., Call]:
        """The call by which a try makes its result."""

        def make(**about: Any) -> Call:
            Task(runner, **about).execute()
            call = runner.requests[0].call
            runner.requests.clear()
            return call

        return make

    def test_what_it_made(self, runner: Runner) -> None:
        task = Task(runner)
        task.execute()
        assert task.events.keys == ["ab"]

    def test_what_an_attempt_made_that_was_killed_before_it_could_say_so(
        self, runner: Runner, made_by: Callable[..., Call]
    ) -> None:
        runner.endings = [LOST, made_by()]
        task = Task(runner)
        assert task.execute()["status"] == "reused"
        assert task.events.keys == ["ab"]

    def test_what_an_earlier_try_made(self, runner: Runner, made_by: Callable[..., Call]) -> None:
        runner.endings = [made_by(number=1)]
        task = Task(runner, number=2)
        task.execute()
        assert task.events.keys == ["ab"], "it may not have lived to say so"

    @pytest.mark.parametrize("others", [{"run_id": "r1"}, {"map_index": 7}])
    def test_not_what_others_made(self, runner: Runner, made_by: Callable[..., Call], others: dict[str, Any]) -> None:
        call = made_by()
        runner.endings = [replace(call, attempt="ab" * 10, run=replace(call.run, **others))]
        task = Task(runner, number=2)
        task.execute()
        assert task.events.keys == []
