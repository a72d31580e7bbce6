"""Why a task was reused or ran, from what real attempts left behind."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from airloop.cli import main
from airloop.config import Config
from airloop.contract import Interval, RunInfo
from airloop.errors import NotFound, RejectedRows
from airloop.frame import history
from airloop.frame.manifest import manifest_name
from airloop.provenance.runs import find_run
from airloop.provenance.why import Why, explain
from airloop.records import interval_record_path, run_record_path
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse

RunStep = Callable[..., dict[str, Any]]

MODULE = '''
from airloop.contract import Interval
from airloop.errors import RejectedRows
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef


@step()
def count(
    ctx: StepContext, *, rows: int, table: TableRef | None = None, interval: Interval | None = None
) -> StepResult:
    """Count."""
    if rows < 0:
        raise RejectedRows("fewer than none")
    return StepResult(counts={"rows": rows + 0})
'''
JANUARY, FEBRUARY = (Interval(datetime(2013, m, 1, tzinfo=UTC), datetime(2013, m + 1, 1, tzinfo=UTC)) for m in (1, 2))


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Writes a module with a step of a team's own, and imports it. Where a module lies is remembered by its name."""
    name = re.sub(r"\W", "_", f"steps_of_{tmp_path.name}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield write
    sys.modules.pop(name, None)


@pytest.fixture
def why(config: Config) -> Callable[..., Why]:
    return lambda run="march", task="count": explain(config, find_run(ArtifactStore(config.artifacts), run), task)


def at(run_id: str, task: str = "count") -> RunInfo:
    return RunInfo("loop", run_id, task)


def test_a_reuse_names_who_made_it(run_step: RunStep, team: Any, why: Callable[..., Why]) -> None:
    count = team(MODULE).count
    run_step(count, rows=3, run=at("january"))
    run_step(count, rows=3, run=at("march"))
    found = why()
    assert (found.status, found.made_by) == ("reused", "loop/january/count")
    assert "are the same, and what it made is still there" in found.because
    assert "1 module, 0 libraries" not in found.because, "the step reaches the modules of airloop that it imports"
    assert why("january").because == "it ran because this task of loop had never run before"


def test_a_changed_line_of_code_is_shown(
    run_step: RunStep, team: Any, why: Callable[..., Why], caplog: pytest.LogCaptureFixture
) -> None:
    run_step(team(MODULE).count, rows=3, run=at("march"))
    count = team(MODULE.replace("rows + 0", "rows + 1 - 1")).count
    with caplog.at_level(logging.INFO, "airloop.step"):
        run_step(count, rows=3, run=at("march"))
    assert f"Not reused: code changed: {count.module}" in caplog.text
    found = why()
    assert found.because == f"it ran again: code changed: {count.module}"
    assert found.compared_with == "loop/march/count"
    (change,) = found.changes
    assert '-    return StepResult(counts={"rows": rows + 0})' in change.diff
    assert '+    return StepResult(counts={"rows": rows + 1 - 1})' in change.diff


def test_a_changed_argument_and_input_are_named_with_their_makers(
    run_step: RunStep, team: Any, why: Callable[..., Why], config: Config
) -> None:
    warehouse = Warehouse.open(config)
    rows = pa.table({"a": [1]})
    warehouse.ensure("raw.x", rows.schema)
    one = warehouse.commit("raw.x", rows, key="somebody", mode="append").snapshot
    two = warehouse.commit("raw.x", rows, key="else", mode="append").snapshot
    count = team(MODULE).count
    run_step(count, rows=3, table=f"raw.x@{one}", run=at("january"), interval=JANUARY)
    run_step(count, rows=4, table=f"raw.x@{two}", run=at("march"), interval=JANUARY)
    found = why()
    assert found.because == f"it ran again: input table: raw.x@{one} → raw.x@{two}; argument rows: 3 → 4"
    assert [c.made_by for c in found.changes] == [{}, {}], "no step made those snapshots"


def test_another_interval_is_compared_with_the_one_before(
    run_step: RunStep, team: Any, why: Callable[..., Why]
) -> None:
    count = team(MODULE).count
    run_step(count, rows=3, run=at("january"), interval=JANUARY)
    run_step(count, rows=3, run=at("march"), interval=FEBRUARY)
    found = why()
    assert found.because.startswith(
        "it ran for another interval than loop/january: interval: 2013-01-01T00:00:00+00:00/"
    )
    assert [c.kind for c in found.changes] == ["interval"]


def test_the_newest_of_the_same_interval_is_found_in_one_look(
    run_step: RunStep, team: Any, why: Callable[..., Why], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = team(MODULE).count
    for rows, run_id in enumerate(("first", "second")):
        run_step(count, rows=rows, run=at(run_id), interval=JANUARY)
    for n in range(5):
        run_step(count, rows=n, run=at(f"other {n}"), interval=FEBRUARY)
    run_step(count, rows=9, run=at("march", "another"), interval=JANUARY)

    def no_search(store: ArtifactStore, prefix: str) -> None:
        raise AssertionError(f"{prefix} is searched: this takes the longer, the more runs there were")

    with monkeypatch.context() as patched:
        for search in ("names", "folders", "changed"):
            patched.setattr(ArtifactStore, search, no_search)
        run_step(count, rows=3, run=at("march"), interval=JANUARY)
    found = why()
    assert (found.compared_with, found.because) == ("loop/second/count", "it ran again: argument rows: 1 → 3")


def test_a_try_without_a_key_does_not_hide_the_run_before(
    run_step: RunStep, team: Any, why: Callable[..., Why], config: Config
) -> None:
    count = team(MODULE).count
    run_step(count, rows=1, run=at("first"), interval=JANUARY)
    run_step(count, rows=2, run=at("march"), interval=JANUARY)
    path = ArtifactStore(config.artifacts).path(run_record_path(at("march")))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"key": "", "status": "failed"}))
    run_step(count, rows=3, run=at("march"), interval=JANUARY)
    assert why().because == "it ran again: argument rows: 1 → 3"


def test_a_run_that_took_another_interval_since_is_not_compared(
    run_step: RunStep, team: Any, why: Callable[..., Why]
) -> None:
    count = team(MODULE).count
    run_step(count, rows=1, run=at("first"), interval=JANUARY)
    run_step(count, rows=2, run=at("first"), interval=FEBRUARY)
    run_step(count, rows=3, run=at("march"), interval=JANUARY)
    assert why().because.startswith("it ran for another interval than loop/first: interval: 2013-02-01")


@pytest.mark.parametrize(
    ("damage", "because"),
    [
        ("run", "it ran because this task of loop had never run before"),
        ("names", "it ran again: argument rows: 1 → 3"),
    ],
)
def test_what_cannot_be_compared_stops_nobody(
    run_step: RunStep, team: Any, why: Callable[..., Why], config: Config, damage: str, because: str
) -> None:
    count = team(MODULE).count
    run_step(count, rows=1, run=at("first"), interval=JANUARY)
    store = ArtifactStore(config.artifacts)
    if damage == "run":
        store.path(run_record_path(at("first"))).unlink()
    else:
        store.path(interval_record_path(at("first"), JANUARY.as_json())).write_text("{")
    assert run_step(count, rows=3, run=at("march"), interval=JANUARY)["status"] == "done"
    assert why().because == because


def test_the_nearest_interval_is_found_without_reading_all_runs(
    run_step: RunStep, team: Any, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = team(MODULE).count
    for n in (8, 1, 3, 5):
        interval = Interval(datetime(2013, n, 1, tzinfo=UTC), datetime(2013, n + 1, 1, tzinfo=UTC))
        run_step(count, rows=3, run=at(f"month {n}"), interval=interval)
    store = ArtifactStore(config.artifacts)
    runs = {n: find_run(store, f"month {n}") for n in (1, 5)}
    monkeypatch.setattr(history, "run_ids", lambda *a: pytest.fail("all runs are listed"))
    assert explain(config, runs[5], "count").compared_with == "loop/month 3/count"
    assert explain(config, runs[1], "count").compared_with == "loop/month 8/count", "of those that had ended before"


def test_one_that_waited_for_it_is_no_earlier_attempt(
    run_step: RunStep, team: Any, why: Callable[..., Why], config: Config
) -> None:
    count = team(MODULE).count
    for run_id in ("january", "march"):
        run_step(count, rows=3, run=at(run_id), interval=JANUARY)
    # As if both had begun at once, and this one had been first at the lock.
    path = ArtifactStore(config.artifacts).path(run_record_path(at("march")))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"started_at": "2000-01-01T00:00:00+00:00"}))
    assert why("january").because == "it ran because this task of loop had never run before"


def test_a_failed_attempt_is_no_result(run_step: RunStep, team: Any, why: Callable[..., Why]) -> None:
    module = team(MODULE)
    with pytest.raises(RejectedRows):
        run_step(module.count, rows=-1, run=at("march"))
    assert why().status == "rejected"
    with pytest.raises(RejectedRows):
        run_step(module.count, rows=-1, run=at("march"))
    assert why().because == "it ran again: nothing differs, but the attempt in loop/march had ended as rejected"
    run_step(module.count, rows=2, run=at("march"))
    assert why().because == "it ran again: argument rows: -1 → 2"


def test_force_and_a_lost_manifest(run_step: RunStep, team: Any, why: Callable[..., Why], config: Config) -> None:
    count = team(MODULE).count
    made = run_step(count, rows=3, run=at("march"))
    run_step(count, rows=3, run=at("march"), force=True)
    assert why().because == "it ran again: force=True"
    ArtifactStore(config.artifacts).path(manifest_name(made["step"], made["key"])).unlink()
    run_step(count, rows=3, run=at("march"))
    assert why().because == "it ran again: the manifest of loop/march was gone"


def test_what_is_not_there_is_answered_with_what_is_near(run_step: RunStep, team: Any, why: Callable[..., Why]) -> None:
    with pytest.raises(NotFound, match="nothing has run yet"):
        why("march")
    count = team(MODULE).count
    run_step(count, rows=3, run=at("march"))
    with pytest.raises(NotFound, match=r"there is .*march"):
        why("marsh")
    with pytest.raises(NotFound, match="has no task cuont; it has count"):
        why("march", "cuont")
    run_step(count, rows=3, run=RunInfo("other", "march", "count"))
    with pytest.raises(NotFound, match="2 loops have a run march; name one: loop/march, other/march"):
        why("march")
    assert why("other/march").made_by == "loop/march/count"


def test_the_command(run_step: RunStep, team: Any, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run_step(team(MODULE).count, rows=3, run=at("march"))
    run_step(team(MODULE + "\n").count, rows=3, run=at("march"))
    home = ["--home", str(config.home)]
    assert main([*home, "why", "march", "count"]) == 0
    assert "It ran again: code changed: steps_of_" in capsys.readouterr().out
    assert main([*home, "why", "loop/march"]) == 0
    assert "it ran again" in capsys.readouterr().out
    assert main([*home, "--json", "why", "march", "count"]) == 0
    assert '"kind": "code"' in capsys.readouterr().out
    assert main([*home, "why", "april"]) == 65
    assert "no run april is known" in capsys.readouterr().err
