"""Where records of attempts lie, and who may write them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from airloop.contract import Call, Receipt, RunInfo, attempt_record_path
from airloop.frame import history
from airloop.records import attempt_record, publish, publish_for, read, run_folder, run_record_path
from airloop.warehouse.artifacts import ArtifactStore

RUN = RunInfo("loop", "run", "t")
OURS, OTHER = "aaaa0000", "bbbb0000"


def record(attempt: str = OURS, status: str = "failed", hour: int = 12, run: RunInfo = RUN) -> dict[str, Any]:
    facts = {"step": "s", "run": asdict(run), "started_at": f"2013-01-01T{hour}:00:00.000+00:00"}
    return attempt_record(Receipt(attempt, status), facts)


def say(root: Path, document: dict[str, Any]) -> None:
    publish(root, document, json.dumps(document).encode())


def statuses(root: Path) -> tuple[str | None, str]:
    """In the attempt's record and in the task's."""
    own = read(root, Call("s", {}, OURS, RUN))
    newest = json.loads((root / run_record_path(RUN)).read_bytes())
    return own and json.loads(own)["status"], newest["status"]


@pytest.mark.parametrize(
    "name",
    [
        "t",
        "a.b-c_d~e",
        "scheduled__2013-01-01T00:00:00+00:00",
        "a/b",
        "..",
        ".hidden",
        "50% off",
        "a b,c=d@e",
        "x" * 248,
    ],
)
def test_files_of_plain_names_stay_where_they_are(name: str) -> None:
    quoted = quote(name, safe="+:@ ,=")
    quoted = "%2E" + quoted[1:] if quoted.startswith(".") else quoted
    assert run_record_path(RunInfo(name, name, name, 3)) == f"runs/{quoted}/{quoted}/{quoted}.3.json"


@pytest.mark.parametrize("name", ["每周重新训练航班延误模型并在通过门槛后发布", "Überprüfung №1", "задача", "日" * 80])
def test_names_of_all_scripts_can_be_read_back(name: str) -> None:
    folder = run_folder(name).removeprefix("runs/")
    assert unquote(folder) == name
    assert len(folder.encode()) <= 255
    assert all(c in folder for c in name if c.isalpha())


@pytest.mark.parametrize("character", ["日", "x", "/", "😀", "."])
def test_names_that_are_too_long_are_shortened_and_stay_apart(tmp_path: Path, character: str) -> None:
    runs = [RunInfo(*([character * 250 + end] * 3), 12345) for end in "ab"]
    assert len({run_record_path(run) for run in runs}) == 2
    for run, attempt in zip(runs, (OURS, OTHER), strict=True):
        say(tmp_path, record(attempt, run=run))
    store = ArtifactStore(tmp_path)
    names = [run.dag_id for run in runs]
    assert history.loops(store) == names
    for name in names:
        assert history.run_ids(store, name) == [name]
        assert list(history.run(store, name, name).tasks) == [f"{name}[12345]"]


def test_an_attempt_speaks_for_itself_if_it_can(tmp_path: Path) -> None:
    say(tmp_path, record(status="done"))
    publish_for(tmp_path, record(status="try_again"))
    assert statuses(tmp_path) == ("done", "done")


def test_one_that_was_ended_from_outside_is_recorded_in_place_of_those_before(tmp_path: Path) -> None:
    say(tmp_path, record(OTHER, "done", hour=11))
    publish_for(tmp_path, record(status="try_again"))
    assert statuses(tmp_path) == ("try_again", "try_again")


def test_a_newer_attempt_stays_the_newest(tmp_path: Path) -> None:
    say(tmp_path, record(OTHER, "done", hour=13))
    publish_for(tmp_path, record(status="try_again"))
    assert statuses(tmp_path) == ("try_again", "done")


def test_a_damaged_record_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / run_record_path(RUN)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert read(tmp_path, Call("s", {}, OURS, RUN)) is None
    publish_for(tmp_path, record(status="try_again"))
    assert statuses(tmp_path) == ("try_again", "try_again")


def test_an_attempt_that_was_killed_between_its_two_records_has_both(tmp_path: Path) -> None:
    say(tmp_path, record(status="done"))
    path = tmp_path / attempt_record_path(OURS)
    content = path.read_bytes()
    path.unlink()
    assert read(tmp_path, Call("s", {}, OTHER, RUN)) is None
    assert read(tmp_path, Call("s", {}, OURS, RUN)) == content
    assert path.read_bytes() == content


def test_a_call_of_no_run_has_a_record_of_its_own_alone(tmp_path: Path) -> None:
    say(tmp_path, record(run=RunInfo()))
    assert [p.name for p in tmp_path.rglob("*.json")] == [f"{OURS}.json"]
