"""One attempt at a step: bound, keyed, run or reused, and recorded."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo, attempt_record_path
from airloop.errors import BadArgument, BadInterval, RejectedRows, StepSkipped, Unreachable
from airloop.frame import history
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.frame.manifest import encode
from airloop.warehouse.artifacts import ArtifactStore

from . import steps_under_test as steps

RunStep = Callable[..., dict[str, Any]]


def test_a_second_run_reuses_and_does_nothing(run_step: RunStep, config: Config) -> None:
    first = run_step(steps.count, rows=3)
    before = {p: p.stat().st_mtime_ns for p in (config.artifacts / "steps").rglob("*")}
    second = run_step(steps.count, rows=3)
    assert (first["status"], second["status"]) == ("done", "reused")
    assert first["key"] == second["key"]
    assert {p: p.stat().st_mtime_ns for p in (config.artifacts / "steps").rglob("*")} == before


@pytest.mark.parametrize("change", [{"rows": 4}, {"rows": 3, "factor": 2.0}])
def test_another_argument_is_another_key(run_step: RunStep, change: dict[str, Any]) -> None:
    assert run_step(steps.count, rows=3)["key"] != run_step(steps.count, **change)["key"]


def test_neither_the_run_nor_a_keyless_argument_is_part_of_the_key(run_step: RunStep) -> None:
    first = run_step(steps.count, rows=3, run=RunInfo("a", "1", "t"))
    second = run_step(steps.count, rows=3, chunk=99, run=RunInfo("b", "2", "u"))
    assert second["status"] == "reused"
    assert second["run"] == first["run"]  # the manifest says who made it


def test_force_does_it_again(run_step: RunStep) -> None:
    run_step(steps.count, rows=3)
    assert run_step(steps.count, rows=3, force=True)["status"] == "done"


def test_an_effect_that_is_gone_is_made_again(run_step: RunStep, config: Config) -> None:
    run_step(steps.effectful)
    assert run_step(steps.effectful)["status"] == "reused"
    (config.home / "effect").unlink()
    assert run_step(steps.effectful)["status"] == "done"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs rows"),
        ({"rows": 1, "row": 2}, "has no argument row"),
        ({"rows": "many"}, "rows: Input should be a valid integer"),
    ],
)
def test_bad_arguments_are_named(run_step: RunStep, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        run_step(steps.count, **arguments)


def test_a_step_without_its_interval_says_where_intervals_come_from(run_step: RunStep, interval: Interval) -> None:
    with pytest.raises(BadInterval, match="schedule the DAG with a data interval"):
        run_step(steps.monthly)
    made = run_step(steps.monthly, interval=interval)
    assert made["interval"] == interval.as_json()


@pytest.mark.parametrize(
    ("how", "error", "status", "code"),
    [
        ("reject", RejectedRows, "rejected", 65),
        ("again", Unreachable, "try_again", 75),
        ("skip", StepSkipped, "skipped", 99),
        ("bug", None, "failed", 1),
    ],
)
def test_how_an_attempt_failed_is_recorded(
    config: Config, how: str, error: type | None, status: str, code: int
) -> None:
    call = Call("fails", {"how": how}, "00112233", RunInfo("d", "r", "t"))
    receipt, found = execute(steps.fails, call, config, Redactor(["secret-value"]))
    assert found is not None
    assert receipt.status == status
    assert found.exit_code == code
    if error is not None:
        assert isinstance(found, error)
    store = ArtifactStore(config.artifacts)
    text = store.read_bytes(attempt_record_path("00112233")).decode()
    record = json.loads(text)
    assert record["status"] == status
    assert record["error"]["message"]
    assert "secret-value" not in text
    assert history.run(store, "d", "r").tasks["t"].status == status
    assert not list((config.artifacts / "steps").rglob("manifest.json"))
    assert not list((config.home / "work").iterdir())


def test_figures_that_are_not_finite_are_an_error_and_no_manifest(config: Config) -> None:
    receipt, error = execute(steps.not_finite, Call("not_finite"), config, Redactor([]))
    assert error is not None
    assert "loss = nan" in str(error)
    assert receipt.status == "rejected"


def test_a_secret_is_masked_where_text_is_and_nowhere_else(config: Config) -> None:
    # One that looks like a number, and one that JSON writes in another way.
    redact = Redactor(["2013", 'pä"ss'])
    document = {"key": "ab2013", "counts": {"bytes": 120134}, "details": {"said": 'the pä"ss of 2013', "2013": [1]}}
    assert json.loads(encode(document, redact)) == {
        "key": "ab2013",
        "counts": {"bytes": 120134},
        "details": {"said": "the *** of ***", "***": [1]},
    }


def _attempt(home: str, queue: Any) -> None:
    config = Config.from_environment({"AIRLOOP_HOME": home})
    receipt, _ = execute(steps.count, Call("count", {"rows": 7}), config, Redactor([]))
    queue.put((receipt.status, receipt.key))


def test_two_attempts_at_once_make_one_result(config: Config, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_attempt, args=(str(config.home), queue)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert sorted(status for status, _ in results) == ["done", "reused", "reused", "reused"]
    assert len({key for _, key in results}) == 1


def test_history_lists_runs_in_the_order_of_their_intervals(
    run_step: RunStep, config: Config, interval: Interval
) -> None:
    later = Interval(interval.end, interval.end.replace(month=3))
    run_step(steps.monthly, interval=later, run=RunInfo("loop/1", "b:+", "x"))
    run_step(steps.monthly, interval=interval, run=RunInfo("loop/1", "c", "x", 4))
    store = ArtifactStore(config.artifacts)
    assert history.loops(store) == ["loop/1"]
    assert [r.run_id for r in history.runs(store, "loop/1")] == ["c", "b:+"]
    first = history.runs(store, "loop/1")[0]
    assert list(first.tasks) == ["x[4]"]
    assert (history.manifest_of(store, first.tasks["x[4]"]) or {})["interval"] == interval.as_json()
