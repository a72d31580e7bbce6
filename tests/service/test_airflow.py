"""Operators in real Airflow DAG runs (``dag.test()``): what works on any operator works on ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, TaskGroup, TriggerRule, setup, task, teardown

from airloop.config import Config
from airloop_operators import StepOperator, attempts

STEPS = "steps_of_a_team"
START = datetime(2013, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2013, 2, 1, tzinfo=UTC)
RunDag = Callable[..., tuple[str, dict[str, str], dict[str, Any]]]


@pytest.fixture
def airloop_home(config: Config, monkeypatch: pytest.MonkeyPatch, airflow_database: Path) -> Path:
    monkeypatch.setenv("AIRLOOP_HOME", str(config.home))
    # The team's steps are importable where payloads run.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__WARM", "False")
    return config.home


@pytest.fixture
def new_dag(request: pytest.FixtureRequest, airloop_home: Path) -> Callable[..., DAG]:
    def make(**kwargs: Any) -> DAG:
        name = request.node.name.replace("[", ".").replace("]", "")
        schedule = kwargs.pop("schedule", CronDataIntervalTimetable("@monthly", timezone="UTC"))
        return DAG(name, start_date=START, schedule=schedule, **kwargs)

    return make


def _returned(run_id: str, task_id: str, map_index: int) -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    query = XComModel.get_many(run_id=run_id, task_ids=task_id, map_indexes=map_index, key="return_value")
    with create_session() as session:
        found = session.scalars(query).first()
        return XComModel.deserialize_value(found) if found is not None else None


@pytest.fixture
def run_dag(test_dag: Callable[..., Any]) -> RunDag:
    """State of the run, state by task, return value by task."""

    def run(dag: DAG, **kwargs: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
        # A manual run works on the last whole interval before it.
        ended = test_dag(dag, logical_date=FEBRUARY, **kwargs)
        states, values = {}, {}
        for ti in ended.get_task_instances():
            name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
            states[name] = str(ti.state)
            values[name] = _returned(ended.run_id, ti.task_id, ti.map_index)
        return str(ended.state), states, values

    return run


def test_a_step_returns_references_and_counts(new_dag: Callable[..., DAG], run_dag: RunDag) -> None:
    with new_dag() as dag:
        StepOperator(task_id="one", step=f"{STEPS}:double", arguments={"number": 21, "note": "x"})
    state, _, values = run_dag(dag)
    assert state == "success"
    assert values["one"]["counts"] == {"doubled": 42}
    assert values["one"]["note"] == "note:x"
    assert values["one"]["status"] == "done"
    assert values["one"]["manifest"].startswith("file://")


def test_templates_and_results_reach_the_step(new_dag: Callable[..., DAG], run_dag: RunDag) -> None:
    with new_dag(params={"number": 4}) as dag:
        first = StepOperator(
            task_id="first",
            step=f"{STEPS}:double",
            arguments={"number": "{{ params.number }}", "note": "{{ dag.dag_id }}"},
        )
        StepOperator(
            task_id="second",
            step=f"{STEPS}:double",
            arguments={"number": "{{ ti.xcom_pull(task_ids='first')['counts']['doubled'] }}"},
        ).set_upstream(first)
    _, _, values = run_dag(dag)
    assert values["second"]["counts"] == {"doubled": 16}
    assert values["first"]["note"] == f"note:{dag.dag_id}"


def test_the_runs_interval_reaches_the_step(new_dag: Callable[..., DAG], run_dag: RunDag) -> None:
    with new_dag() as dag:
        StepOperator(task_id="january", step=f"{STEPS}:month")
        StepOperator(
            task_id="explicit", step=f"{STEPS}:month", interval="2013-02-01T00:00+00:00/2013-03-01T00:00+00:00"
        )
    _, _, values = run_dag(dag)
    assert values["january"]["counts"] == {"days": 31}
    assert values["explicit"]["counts"] == {"days": 28}


def test_a_run_without_a_date_says_what_to_do(
    new_dag: Callable[..., DAG], test_dag: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with new_dag(schedule=None) as dag:
        StepOperator(task_id="month", step=f"{STEPS}:month")
    run = test_dag(dag, logical_date=None)
    assert run.state == "failed"
    assert "schedule the DAG with a data interval or a partition key" in caplog.text


def test_partial_and_expand(new_dag: Callable[..., DAG], run_dag: RunDag) -> None:
    with new_dag() as dag:
        mapped = StepOperator.partial(task_id="mapped", step=f"{STEPS}:double", pool="default_pool").expand(
            arguments=[{"number": 1}, {"number": 2}, {"number": 3}]
        )

        @task
        def total(results: Any) -> int:
            return sum(result["counts"]["doubled"] for result in results)

        total(mapped.output)
    state, _, values = run_dag(dag)
    assert state == "success"
    assert [values[f"mapped[{i}]"]["counts"]["doubled"] for i in range(3)] == [2, 4, 6]
    assert values["total"] == 12


def test_something_that_may_recover_is_retried(new_dag: Callable[..., DAG], run_dag: RunDag, tmp_path: Path) -> None:
    with new_dag() as dag:
        StepOperator(
            task_id="flaky",
            step=f"{STEPS}:flaky",
            arguments={"marker": str(tmp_path / "marker")},
            retries=1,
            retry_delay=timedelta(0),
        )
    assert run_dag(dag)[1] == {"flaky": "success"}


def test_a_rejection_is_not_retried_and_callbacks_see_it(
    new_dag: Callable[..., DAG], run_dag: RunDag, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    seen: list[str] = []
    with new_dag() as dag:
        rejecting = StepOperator(
            task_id="rejecting",
            step=f"{STEPS}:rejecting",
            arguments={"marker": str(marker)},
            retries=3,
            retry_delay=timedelta(0),
            on_failure_callback=lambda context: seen.append(str(context["exception"])),
        )
        after = StepOperator(task_id="after", step=f"{STEPS}:double", arguments={"number": 1})
        always = StepOperator(
            task_id="always", step=f"{STEPS}:double", arguments={"number": 2}, trigger_rule=TriggerRule.ALL_DONE
        )
        rejecting >> after
        rejecting >> always
    _, states, _ = run_dag(dag)
    assert marker.read_text() == "x"
    assert states == {"rejecting": "failed", "after": "upstream_failed", "always": "success"}
    assert len(seen) == 1
    assert "214 of 336,776 rows are bad; fix the source" in seen[0]


def test_a_skip_is_a_skip(new_dag: Callable[..., DAG], run_dag: RunDag) -> None:
    with new_dag() as dag:
        StepOperator(task_id="skipping", step=f"{STEPS}:skipping") >> StepOperator(
            task_id="after", step=f"{STEPS}:double", arguments={"number": 1}
        )
    assert run_dag(dag)[1] == {"skipping": "skipped", "after": "skipped"}


def test_task_groups_and_setup_and_teardown(new_dag: Callable[..., DAG], run_dag: RunDag, tmp_path: Path) -> None:
    with new_dag() as dag:

        @setup
        def make() -> None:
            (tmp_path / "made").touch()

        @teardown
        def remove() -> None:
            (tmp_path / "made").unlink()

        with TaskGroup("group"):
            inside = StepOperator(
                task_id="inside", step=f"{STEPS}:rejecting", arguments={"marker": str(tmp_path / "m")}
            )
        make() >> inside >> remove()
    _, states, _ = run_dag(dag)
    assert states["group.inside"] == "failed"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("told_by", ["task", "configuration"])
def test_a_secret_reaches_the_step_and_nothing_else(
    told_by: str,
    new_dag: Callable[..., DAG],
    run_dag: RunDag,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SERVICE", "http://user:pa55word-of-the-service@127.0.0.1:1")
    if told_by == "configuration":
        monkeypatch.setenv("AIRFLOW__AIRLOOP__SECRETS", "SERVICE_PASSWORD=service.password")
    own = {"SERVICE_PASSWORD": "service.password"} if told_by == "task" else None
    with new_dag() as dag:
        StepOperator(task_id="secretive", step=f"{STEPS}:secretive", secrets=own)
    with caplog.at_level(logging.INFO):
        _, states, values = run_dag(dag)
    assert states == {"secretive": "success"}
    assert values["secretive"]["counts"] == {"length": len("pa55word-of-the-service")}
    assert "the password is ***" in caplog.text
    out, err = capfd.readouterr()
    for place in (caplog.text, out, err, *(p.read_text() for p in config.artifacts.rglob("*.json"))):
        assert "pa55word-of-the-service" not in place


def test_an_asset_event_is_emitted_only_for_something_new(
    new_dag: Callable[..., DAG], test_dag: Callable[..., Any]
) -> None:
    asset = Asset("doubled")
    with new_dag() as dag:
        StepOperator(task_id="one", step=f"{STEPS}:double", arguments={"number": 21}, announces=asset)

    first = test_dag(dag, logical_date=FEBRUARY)
    second = test_dag(dag, logical_date=FEBRUARY.replace(day=2))
    assert [set(extra) for extra in events(first)] == [{"key", "interval"}]
    assert events(second) == []


def test_the_asset_event_of_a_payload_that_is_killed_after_its_manifest_is_not_lost(
    new_dag: Callable[..., DAG], test_dag: Callable[..., Any]
) -> None:
    with new_dag() as dag:
        StepOperator(
            task_id="one",
            step=f"{STEPS}:double",
            arguments={"number": 23},
            environment={"AIRLOOP_FAULT": "kill@artifact:after:manifest.json"},
            announces=Asset("killed"),
        )
    run = test_dag(dag, logical_date=FEBRUARY)
    assert run.state == "success"
    assert _returned(run.run_id, "one", -1)["status"] == "reused", "by the attempt that followed"
    assert len(events(run)) == 1


def test_a_time_limit_is_named_and_kept(
    new_dag: Callable[..., DAG], run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    # Of what a step would get an eighth: by then it has been ended long before Airflow would break its task off,
    # however busy the machine is.
    of_task = attempts._time_for_step
    monkeypatch.setattr(attempts, "_time_for_step", lambda left_s: of_task(left_s) / 8)
    with new_dag() as dag:
        StepOperator(
            task_id="slow",
            step=f"{STEPS}:double",
            arguments={"number": 1},
            environment={"AIRLOOP_FAULT": "hang@run"},
            execution_timeout=timedelta(seconds=64),
            on_failure_callback=lambda context: seen.append(str(context["exception"])),
        )
    assert run_dag(dag)[1] == {"slow": "failed"}
    # What is left of 64 seconds once it runs, less a tenth for its end.
    said = r"TimedOut: step steps_of_a_team:double ran over its time limit of [1-7] s and was ended"
    assert re.search(said, seen[0])


def events(run: Any) -> list[dict[str, Any]]:
    """What a run's asset events tell."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)).all()
        return [event.extra for event in found]
