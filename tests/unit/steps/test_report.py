"""The step ``report`` through the frame: addresses, replacement, reuse, and several at once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.errors import AirloopError, BadArgument, NotFound
from airloop.warehouse.artifacts import ArtifactStore
from tests import report_manifests as made

RunStep = Callable[..., dict[str, Any]]
JANUARY = "reports/loop/20130101T050000Z-20130201T050000Z"


@pytest.fixture
def store(config: Config) -> ArtifactStore:
    return ArtifactStore(config.artifacts)


def results(store: ArtifactStore, *, salt: str = "", without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The manifests of a loop in the store, as the results that tasks hand on."""
    found: dict[str, Any] = {}
    for task, manifest in made.loop().items():
        key = (salt + manifest["key"])[:64]
        name = f"steps/{manifest['step']}/{key[:2]}/{key}-{task}/manifest.json"
        store.publish_bytes(name, json.dumps({**manifest, "key": key}).encode())
        found[task] = {"step": manifest["step"], "key": key, "manifest": store.uri(name)}
    return found | dict.fromkeys(without)


def test_page_and_index_are_published(run_step: RunStep, store: ArtifactStore, interval: Interval) -> None:
    done = run_step("report", interval=interval, tasks=results(store), loop="loop", title="Delays")
    assert done["links"] == {"report": store.uri(f"{JANUARY}.html"), "index": store.uri("reports/loop/index.html")}
    page = store.read_bytes(f"{JANUARY}.html").decode()
    assert "delay version 2 is the new champion" in page
    assert done["counts"] == {"tasks": 11, "tasks_without_result": 0, "bytes": len(page.encode())}
    assert f'href="{JANUARY.rpartition("/")[2]}.html"' in store.read_bytes("reports/loop/index.html").decode()


def test_tasks_without_a_result_are_said(run_step: RunStep, store: ArtifactStore, interval: Interval) -> None:
    tasks = results(store, without=("gate", "register"))
    done = run_step("report", interval=interval, tasks=tasks, loop="loop")
    assert done["counts"]["tasks_without_result"] == 2
    assert "2 tasks of this run made nothing: gate, register" in store.read_bytes(f"{JANUARY}.html").decode()


def test_a_corrected_run_replaces_its_page(run_step: RunStep, store: ArtifactStore, interval: Interval) -> None:
    run_step("report", interval=interval, tasks=results(store), loop="loop")
    before = store.read_bytes(f"{JANUARY}.html")
    run_step("report", interval=interval, tasks=results(store, salt="c"), loop="loop")
    assert store.read_bytes(f"{JANUARY}.html") != before
    assert len(store.names("reports/loop/entries")) == 1
    assert "<h2>1 run</h2>" in store.read_bytes("reports/loop/index.html").decode()


def test_the_same_manifests_are_reused(run_step: RunStep, store: ArtifactStore, interval: Interval) -> None:
    tasks = results(store)
    run_step("report", interval=interval, tasks=tasks, loop="loop")
    assert run_step("report", interval=interval, tasks=tasks, loop="loop")["status"] == "reused"


def test_a_page_that_was_replaced_is_made_again(run_step: RunStep, store: ArtifactStore, interval: Interval) -> None:
    first, corrected = results(store), results(store, salt="c")
    run_step("report", interval=interval, tasks=first, loop="loop")
    before = store.read_bytes(f"{JANUARY}.html")
    run_step("report", interval=interval, tasks=corrected, loop="loop")
    assert run_step("report", interval=interval, tasks=first, loop="loop")["status"] == "done"
    assert store.read_bytes(f"{JANUARY}.html") == before


@pytest.mark.parametrize(
    "name", [f"{JANUARY}.html", "reports/loop/index.html", f"{JANUARY.replace('loop', 'loop/entries')}.json"]
)
def test_a_lost_file_is_made_again(run_step: RunStep, store: ArtifactStore, interval: Interval, name: str) -> None:
    tasks = results(store)
    run_step("report", interval=interval, tasks=tasks, loop="loop")
    store.path(name).unlink()
    assert run_step("report", interval=interval, tasks=tasks, loop="loop")["status"] == "done"
    assert store.exists(name)


def test_runs_are_listed_by_interval_whatever_their_order(run_step: RunStep, store: ArtifactStore) -> None:
    for month in (3, 1, 2):
        interval = Interval.parse(f"2013-{month:02d}-01T05:00+00:00/2013-{month + 1:02d}-01T05:00+00:00")
        run_step("report", interval=interval, tasks=results(store), loop="loop", zone="America/New_York")
    index = store.read_bytes("reports/loop/index.html").decode()
    rows = index.partition("<tbody>")[2]
    # By their dates: March ends in summer time, which is no longer midnight at 05:00 UTC.
    found = [rows.index(text) for text in ("2013-03-01 00:00 to 2013-04-01 01:00", "February 2013", "January 2013")]
    assert found == sorted(found)


def test_runs_without_an_interval_have_pages_of_their_own(run_step: RunStep, store: ArtifactStore) -> None:
    run_step("report", tasks=results(store), loop="loop")
    run_step("report", tasks=results(store, salt="c"), loop="loop")
    assert len([n for n in store.names("reports/loop") if n.startswith("reports/loop/run-")]) == 2
    assert "<h2>2 runs</h2>" in store.read_bytes("reports/loop/index.html").decode()


@pytest.mark.parametrize("loop", ["../other", "a/b", "..", ".hidden", "", "a\\b", "a\x00b", "loop\n"])
def test_a_loop_cannot_leave_its_folder(run_step: RunStep, store: ArtifactStore, interval: Interval, loop: str) -> None:
    with pytest.raises(BadArgument, match="is not a name"):
        run_step("report", interval=interval, tasks=results(store), loop=loop)
    assert not store.exists("reports")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", ""])
def test_an_unknown_zone_is_refused(run_step: RunStep, store: ArtifactStore, interval: Interval, zone: str) -> None:
    with pytest.raises(BadArgument, match="time zone"):
        run_step("report", interval=interval, tasks=results(store), loop="loop", zone=zone)


def test_a_report_of_nothing_is_refused(run_step: RunStep, interval: Interval) -> None:
    with pytest.raises(BadArgument, match="at least one"):
        run_step("report", interval=interval, tasks={"gate": None}, loop="loop")


def test_a_manifest_elsewhere_is_refused(run_step: RunStep, interval: Interval, tmp_path: Path) -> None:
    outside = tmp_path / "manifest.json"
    outside.write_text(json.dumps(made.manifest("sql")))
    with pytest.raises(NotFound, match="not in the artifact store"):
        run_step("report", interval=interval, tasks={"x": outside.as_uri()}, loop="loop")


def test_something_else_than_a_result_is_refused(run_step: RunStep, interval: Interval) -> None:
    with pytest.raises(BadArgument, match="pass a task's result"):
        run_step("report", interval=interval, tasks={"x": "raw.flights@1"}, loop="loop")


def _report(home: str, month: int, tasks: dict[str, Any]) -> str:
    """One report in a process of its own."""
    from airloop.frame.execute import execute
    from airloop.frame.logs import Redactor
    from airloop.steps import load

    interval = Interval.parse(f"2013-{month:02d}-01T05:00+00:00/2013-{month:02d}-28T05:00+00:00")
    call = Call("report", {"tasks": tasks, "loop": "loop"}, "", RunInfo("loop", str(month), "report"), interval)
    receipt, error = execute(load("report"), call, Config.from_environment({"AIRLOOP_HOME": home}), Redactor([]))
    if isinstance(error, AirloopError):
        raise error
    return receipt.status


def test_reports_at_once_are_all_in_the_index(config: Config, store: ArtifactStore) -> None:
    tasks = results(store)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        done = pool.starmap(_report, [(str(config.home), month, tasks) for month in range(1, 7)])
    assert done == ["done"] * 6
    index = store.read_bytes("reports/loop/index.html").decode()
    assert "<h2>6 runs</h2>" in index
    for month in range(1, 7):
        assert f"2013{month:02d}01T050000Z-2013{month:02d}28T050000Z.html" in index
