"""The order of runs: what a task waits for while runs of earlier intervals are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowRescheduleException

from airloop_operators import (
    EvaluateOperator,
    ExtractOperator,
    RegisterModelOperator,
    SqlOperator,
    StepOperator,
    TrainOperator,
    ValidateOperator,
    turn,
)
from airloop_operators.base import _places
from airloop_operators.turn import Place, not_yet

RESULT = {"step": "sql", "key": "ab", "table": "training.rain@12"}


def month(number: int) -> datetime:
    return datetime(2013, number, 1, tzinfo=UTC)


def a_run(number: int, state: str = "running", kind: str = "backfill") -> Any:
    """The run of a month."""
    start, end = month(number), month(number + 1)
    return SimpleNamespace(
        run_id=f"r{number}", run_type=kind, state=state, logical_date=start, data_interval_start=start,
        data_interval_end=end,
    )  # fmt: skip


@dataclass
class Airflow:
    """Runs and the states of their tasks, as a task is told of them."""

    runs: list[Any] = field(default_factory=list)
    states: dict[str, dict[str, str | None]] = field(default_factory=dict)

    def previous(self, dag_id: str, logical_date: datetime, state: str) -> Any:
        before = [r for r in self.runs if r.state == state and r.logical_date < logical_date]
        return max(before, key=lambda r: r.logical_date, default=None)

    def get_task_states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, dict[str, Any]]:
        return {r: {t: s for t, s in self.states[r].items() if t in task_ids} for r in run_ids}


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    found = Airflow()
    monkeypatch.setattr(turn, "_previous", found.previous)
    return found


@pytest.fixture
def waits(airflow: Airflow) -> Callable[..., str]:
    """For what a task of a run waits; empty: for nothing."""

    def ask(run: Any, place: Place, *others: Place) -> str:
        ti = SimpleNamespace(dag_id="loop", get_task_states=airflow.get_task_states)
        return not_yet({"dag_run": run, "ti": ti}, place, [place, *others])[0]  # type: ignore[typeddict-item]

    return ask


def place(task_id: str = "t", given: Any = None, own: Any = "task", reads: Any = ()) -> Place:
    return Place(task_id, given, own, list(reads))


@pytest.mark.parametrize(
    ("reads", "order", "holds"),
    [
        ([RESULT, None], "task", False),
        ([{"weather": RESULT}, ["training.rain@12", "model:/delay/3", "delay@3"]], "task", False),
        ([RESULT, "delay@champion"], "run", False),
        (["model:/delay/3", {"weather": "raw.weather"}], "run", True),
        ([["raw.weather@main"]], "run", True),
        (["SELECT a FROM raw.weather"], "task", False),
    ],
)
def test_what_a_task_reads_decides(reads: list[Any], order: str, holds: bool) -> None:
    assert (place(reads=reads).order, place(reads=reads).holds) == (order, holds)
    assert place(given="none", reads=reads).order == "none"


def test_the_places_of_a_loop() -> None:
    with DAG("order", schedule=None) as dag:
        rows = ExtractOperator(task_id="extract", source="weather.yaml", files="weather.csv")
        good = ValidateOperator(task_id="validate", table=rows.output, suite={})
        examples = SqlOperator(
            task_id="examples", sql="SELECT 1", inputs={"weather": good.output}, table="training.rain", key=["a"]
        )
        model = TrainOperator(task_id="train", examples=examples.output)
        gate = EvaluateOperator(
            task_id="gate", challenger=model.output, champion="rain@champion", examples=examples.output
        )
        RegisterModelOperator(task_id="register", gate=gate.output, name="rain")
        SqlOperator(task_id="view", sql="SELECT 1", inputs={"w": "raw.weather"}, table="views.w", key=["a"])
        StepOperator(task_id="own", step="a:b", arguments={"number": 1})
        StepOperator.partial(task_id="mapped", step="a:b", order="none").expand(arguments=[{"a": 1}])
        views = SqlOperator.partial(task_id="mapped_view", sql="SELECT 1", table="views.w", key=["a"])
        views.expand(inputs=[{"w": good.output}, {"w": "raw.weather"}])
        views = SqlOperator.partial(task_id="mapped_views", sql="SELECT 1", key=["a"])
        views.expand_kwargs([{"inputs": {"w": "raw.weather"}, "table": "views.w"}, {"table": "views.v"}])
        results = SqlOperator.partial(task_id="mapped_results", sql="SELECT 1", table="views.w", key=["a"])
        results.expand(inputs=good.output)
        SqlOperator.partial(task_id="mapped_task", sql="SELECT 1").expand_kwargs(good.output)
    found = {p.task_id: (p.order, p.holds) for p in _places(dag.tasks)}
    assert found == {
        "extract": ("task", False), "validate": ("task", False), "examples": ("task", False),
        "train": ("none", False), "gate": ("run", False), "register": ("task", False), "view": ("run", True),
        "own": ("task", False), "mapped": ("none", False), "mapped_view": ("run", True), "mapped_views": ("run", True),
        "mapped_results": ("task", False), "mapped_task": ("task", False),
    }  # fmt: skip


def test_nothing_is_before_the_only_run(waits: Callable[..., str], airflow: Airflow) -> None:
    airflow.runs = [a_run(3), a_run(4)]
    assert waits(a_run(3), place()) == waits(a_run(3), place(own="run")) == ""


@pytest.mark.parametrize("state", [None, "scheduled", "queued", "running", "up_for_retry", "up_for_reschedule"])
def test_a_task_waits_for_itself_in_an_earlier_run(
    waits: Callable[..., str], airflow: Airflow, state: str | None
) -> None:
    airflow.runs = [a_run(1), a_run(2), a_run(3)]
    airflow.states = {"r1": {"t": "success"}, "r2": {"t": state, "other": None}}
    assert waits(a_run(3), place()) == "t of run r2, an earlier interval's, has not ended"
    airflow.states = {"r1": {"t": state}, "r2": {"t": "success", "other": None}}
    assert "run r1" in waits(a_run(3), place()), "cleared, though the nearest run is past it"


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "upstream_failed", "removed"])
def test_a_task_that_ended_holds_nobody_up(waits: Callable[..., str], airflow: Airflow, state: str) -> None:
    airflow.runs = [a_run(1), a_run(2)]
    airflow.states = {"r1": {"t": state}}
    assert waits(a_run(2), place()) == ""
    assert waits(a_run(2), place(own="run")) == "run r1 of an earlier interval has not ended"
    airflow.runs[0].state = "failed"
    assert waits(a_run(2), place(own="run")) == ""


def test_tables_stay_until_who_looks_at_them_by_name_has_ended(waits: Callable[..., str], airflow: Airflow) -> None:
    airflow.runs = [a_run(1), a_run(2)]
    airflow.states = {"r1": {"t": "success", "view": "running"}}
    view = place("view", reads=["raw.weather"])
    assert waits(a_run(2), place(), view) == "view of run r1, an earlier interval's, has not ended"
    assert waits(a_run(2), place(own="none"), view) == ""


def test_a_live_run_waits_for_a_backfill_that_is_still_queued(waits: Callable[..., str], airflow: Airflow) -> None:
    airflow.runs = [a_run(1, "success"), a_run(2, "queued"), a_run(3, "queued")]
    airflow.states = {"r2": {"t": None}, "r3": {"t": None}}
    live = a_run(4, kind="scheduled")
    assert waits(live, place()) == "t of run r3, an earlier interval's, has not ended"
    # One that shares its number of places with this run may wait for this very run.
    assert waits(a_run(4), place()) == ""
    airflow.runs = [a_run(1, "queued", kind="manual")]
    assert waits(live, place()) == waits(a_run(4), place()) == ""


def test_runs_of_one_interval_and_runs_without_a_date_have_no_order(
    waits: Callable[..., str], airflow: Airflow
) -> None:
    twin = a_run(3, kind="manual")
    airflow.runs = [a_run(3)]
    twin.logical_date = month(5)
    assert waits(twin, place(own="run")) == "", "their keys are the same: one does the work, the other reuses it"
    airflow.runs = [a_run(1)]
    twin.logical_date = None
    assert waits(twin, place(own="run")) == ""


class TestWaiting:
    """How a task waits."""

    after_10_s: Sequence[Callable[[], object]] = ()
    """What happens once it has waited for so long."""

    @pytest.fixture
    def wait(self, airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        """Wait for the turn of a month's run; what was said. The clock goes on by what is slept."""
        clock = [0.0]
        monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=self.sleeping(clock)))

        def wait(number: int, patience_s: float = 30, killed: Callable[[], bool] = lambda: False) -> list[str]:
            said: list[str] = []
            log = SimpleNamespace(info=lambda text, *values: said.append(text % values))
            context: Any = {"dag_run": a_run(number), "ti": SimpleNamespace(dag_id="loop")}
            turn.wait_for_turn(context, place(own="run"), [], log, patience_s=patience_s, killed=killed)
            return said

        return wait

    def test_something_may_be_done_before_it_waits(self, airflow: Airflow) -> None:
        airflow.runs = [a_run(1)]
        done: list[str] = []
        log = SimpleNamespace(info=lambda *_: None)
        for number in (2, 3):
            context: Any = {"dag_run": a_run(number), "ti": SimpleNamespace(dag_id="loop")}
            with suppress(AirflowRescheduleException):
                turn.wait_for_turn(
                    context, place(own="run"), [], log,
                    patience_s=0, killed=lambda: False, first=lambda n=number: done.append(f"run {n}"),
                )  # fmt: skip
        assert done == ["run 2", "run 3"]

    def sleeping(self, clock: list[float]) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            clock[0] += seconds
            if clock[0] > 10:
                for happen in self.after_10_s:
                    happen()

        return sleep

    def test_the_next_in_turn_waits_where_it_is(self, wait: Callable[..., list[str]], airflow: Airflow) -> None:
        airflow.runs = [a_run(1)]
        self.after_10_s = [airflow.runs.clear]
        assert wait(2) == ["Not yet its turn: run r1 of an earlier interval has not ended"]
        assert wait(2) == []

    def test_but_not_for_ever(self, wait: Callable[..., list[str]], airflow: Airflow) -> None:
        airflow.runs = [a_run(1)]
        for patience_s in (30, 0):
            began = datetime.now(UTC)
            with pytest.raises(AirflowRescheduleException) as caught:
                wait(2, patience_s)
            assert turn.PAUSE_S - 1 < (caught.value.reschedule_date - began).total_seconds() < 2 * turn.PAUSE_S - 1

    def test_one_that_is_asked_to_end_waits_no_longer(self, wait: Callable[..., list[str]], airflow: Airflow) -> None:
        asked: list[bool] = []
        airflow.runs = [a_run(1)]
        self.after_10_s = [lambda: asked.append(True)]
        assert len(wait(2, killed=lambda: bool(asked))) == 1
        airflow.runs = [a_run(1), a_run(2), a_run(3)]
        wait(4, killed=lambda: True)

    def test_others_give_their_place_back(self, wait: Callable[..., list[str]], airflow: Airflow) -> None:
        airflow.runs = [a_run(n) for n in range(1, 8)]
        pauses = []
        for number in (3, 4, 7):
            began = datetime.now(UTC)
            with pytest.raises(AirflowRescheduleException) as caught:
                wait(number)
            pauses.append(round((caught.value.reschedule_date - began).total_seconds() / turn.PAUSE_S))
        assert pauses == [2, 3, 4]
