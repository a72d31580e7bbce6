"""One attempt at a step: bound, keyed, run or reused, and recorded."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Call, Interval, Receipt, RunInfo, attempt_record_path
from airloop.errors import BadArgument, BadInterval, RejectedRows, StepSkipped, TryAgain, Unreachable
from airloop.frame import history
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.frame.manifest import encode
from airloop.frame.running import Announced
from airloop.frame.step import Step
from airloop.objects import open_objects
from airloop.records import attempt_record, publish_for, run_record_path
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


def test_numbers_of_numpy_are_numbers(run_step: RunStep) -> None:
    made = run_step(steps.gives, what="numbers")
    assert made["counts"] == {"rows": 5}
    assert made["metrics"] == {"share": 0.5, "sum": 1.5}
    assert made["details"] == {"by": {"a": [True, 3]}, "1": [2, None]}
    assert made["event"] == {"version": 7}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("array", r"whose details.fit.weights\[1\] is a numpy.ndarray; give what JSON has"),
        ("nan", r"whose details.fit\[1\] is nan"),
        ("date", "whose event.until is a datetime.date"),
        ("name", r"whose details.by has the name \(1, 2\), a tuple"),
        ("roles", "returned outputs as counts, status: names of other parts of a task's result; give them roles other"),
    ],
)
def test_a_result_that_nobody_could_read_back_is_refused_by_name(
    run_step: RunStep, config: Config, what: str, said: str
) -> None:
    with pytest.raises(BadArgument, match=said):
        run_step(steps.gives, what=what)
    assert not list((config.artifacts / "steps").rglob("manifest.json"))


def test_an_earlier_record_that_cannot_be_read_stops_nothing(
    run_step: RunStep, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunInfo("d", "r", "t")
    run_step(steps.count, rows=3, run=run)
    path = config.artifacts / run_record_path(run)
    path.write_text(path.read_text()[:40])
    with caplog.at_level(logging.WARNING, "airloop.step"):
        assert run_step(steps.count, rows=4, run=run)["status"] == "done"
    assert "why this is not reused cannot be told: ContractBroken" in caplog.text
    assert history.run(ArtifactStore(config.artifacts), "d", "r").tasks["t"].status == "done"


def test_what_an_attempt_that_was_killed_was_given_is_not_compared(
    run_step: RunStep, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunInfo("d", "r", "t")
    facts = {"step": "count", "run": asdict(run), "interval": None, "started_at": "2013-01-01T00:00:00.000+00:00"}
    publish_for(open_objects(config.artifacts), attempt_record(Receipt("aabbccdd", "try_again"), facts))
    with caplog.at_level(logging.INFO, "airloop.step"):
        assert run_step(steps.count, rows=4, run=run)["status"] == "done"
    assert "Not reused" not in caplog.text


def test_a_long_task_id_of_another_script_is_done(run_step: RunStep, config: Config) -> None:
    task = "每周重新训练航班延误模型并在通过门槛后发布为新的冠军模型任务"
    run_step(steps.count, rows=3, run=RunInfo("循环", "手动", task))
    assert list(history.run(ArtifactStore(config.artifacts), "循环", "手动").tasks) == [task]


def test_arguments_are_shown_to_nobody_else_while_a_step_runs(config: Config) -> None:
    call = Call("count", {"rows": 1}, "00112233")
    with Announced(config, call):
        mode = (config.home / "locks" / "running" / "00112233.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Step]:
    """A team's step, and beside it a module that it imports when it runs."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("DEPLOYED", str(folder))
    name = f"team_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}_later.py").write_text("FACTOR = 1\n")
    (folder / f"{name}.py").write_text(
        f"""
import os, pathlib
from airloop.frame import StepContext, StepResult, step

def deploy(part):
    if part:
        path = pathlib.Path(os.environ["DEPLOYED"], f"{name}{{part.strip('-')}}.py")
        path.write_text(path.read_text() + "# deployed\\n")

@step()
def work(ctx: StepContext, *, part: str = "", factor: int = 0) -> StepResult:
    import {name}_later as later
    deploy(part)
    return StepResult(counts={{"factor": later.FACTOR}})
"""
    )
    importlib.invalidate_caches()
    yield importlib.import_module(name).work
    for module in (name, f"{name}_later"):
        sys.modules.pop(module, None)


def test_code_that_was_replaced_before_the_work_is_not_run_under_the_new_key(
    deployed: Step, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = sys.modules["airloop.frame.execute"]
    resolve = execution.resolve

    def deploying(value: Any, scope: Any) -> Any:
        sys.modules[deployed.module].deploy("_later" if value == 1 else "-" if value == 2 else "")
        return resolve(value, scope)

    monkeypatch.setattr(execution, "resolve", deploying)
    for factor in (1, 2):
        receipt, error = execute(deployed, Call(deployed.name, {"factor": factor}), config, Redactor([]))
        assert type(error) is TryAgain
        assert receipt.status == "try_again"
        assert f"replaced while it was at work: {deployed.module}{'_later' if factor == 1 else ''}" in str(error)
    assert not list((config.artifacts / "steps").rglob("manifest.json"))


def test_code_that_may_have_been_replaced_before_it_was_imported_is_refused(deployed: Step, config: Config) -> None:
    _, error = execute(deployed, Call(deployed.name, {"part": "_later"}), config, Redactor([]))
    assert type(error) is TryAgain
    assert f"replaced while it was at work: {deployed.module}_later;" in str(error)
    _, error = execute(deployed, Call(deployed.name), config, Redactor([]))
    assert error is None


def test_what_became_of_a_file_after_its_import_does_not_matter(deployed: Step, config: Config) -> None:
    receipt, error = execute(deployed, Call(deployed.name, {"part": "-"}), config, Redactor([]))
    assert (receipt.status, error) == ("done", None)


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
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(120)
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
