"""Where records of attempts lie, and who may write them."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote, unquote

import pytest

from airloop.contract import Call, Receipt, RunInfo, attempt_record_path
from airloop.errors import ContractBroken
from airloop.frame import history
from airloop.objects import Objects
from airloop.records import (
    FORGET,
    RECORD_FORMAT,
    REDO,
    attempt_record,
    interval_record_path,
    intervals_of,
    parse,
    publish,
    publish_for,
    read,
    run_folder,
    run_record_path,
    runs_of_interval,
)
from airloop.warehouse.artifacts import ArtifactStore

RUN = RunInfo("loop", "run", "t")
OURS, OTHER = "aaaa0000", "bbbb0000"
EARLIER, INTERVAL = (
    {"start": f"2013-0{month}-01T00:00:00+00:00", "end": f"2013-0{month + 1}-01T00:00:00+00:00"} for month in (1, 2)
)


def record(attempt: str = OURS, status: str = "failed", hour: int = 12, run: RunInfo = RUN) -> dict[str, Any]:
    facts = {"step": "s", "run": asdict(run), "started_at": f"2013-01-01T{hour}:00:00.000+00:00"}
    return attempt_record(Receipt(attempt, status), facts)


def say(objects: Objects, document: dict[str, Any]) -> None:
    publish(objects, document, json.dumps(document).encode())


def statuses(objects: Objects) -> tuple[str | None, str]:
    """In the attempt's record and in the task's."""
    own = read(objects, Call("s", {}, OURS, RUN))
    newest = json.loads(objects.read(run_record_path(RUN)) or b"")
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
def test_names_that_are_too_long_are_shortened_and_stay_apart(objects: Objects, character: str) -> None:
    runs = [RunInfo(*([character * 250 + end] * 3), 12345) for end in "ab"]
    assert len({run_record_path(run) for run in runs}) == 2
    for run, attempt in zip(runs, (OURS, OTHER), strict=True):
        say(objects, record(attempt, run=run))
    store = ArtifactStore(objects)
    names = [run.dag_id for run in runs]
    assert history.loops(store) == names
    for name in names:
        assert history.run_ids(store, name) == [name]
        assert list(history.run(store, name, name).tasks) == [f"{name}[12345]"]


def test_an_attempt_speaks_for_itself_if_it_can(objects: Objects) -> None:
    say(objects, record(status="done"))
    publish_for(objects, record(status="try_again"))
    assert statuses(objects) == ("done", "done")


def test_one_that_was_ended_from_outside_is_recorded_in_place_of_those_before(objects: Objects) -> None:
    say(objects, record(OTHER, "done", hour=11))
    publish_for(objects, record(status="try_again"))
    assert statuses(objects) == ("try_again", "try_again")


def test_a_newer_attempt_stays_the_newest(objects: Objects) -> None:
    say(objects, record(OTHER, "done", hour=13))
    publish_for(objects, record(status="try_again"))
    assert statuses(objects) == ("try_again", "done")


def test_a_damaged_record_is_in_nobodys_way(objects: Objects) -> None:
    objects.publish(run_record_path(RUN), b"{")
    assert read(objects, Call("s", {}, OURS, RUN)) is None
    publish_for(objects, record(status="try_again"))
    assert statuses(objects) == ("try_again", "try_again")


def worked(run_id: str, attempt: str, key: str = "k") -> dict[str, Any]:
    """The record of an attempt whose key was known."""
    return record(attempt, "done", run=replace(RUN, run_id=run_id)) | {"key": key, "interval": INTERVAL}


def test_an_attempt_that_was_killed_between_its_records_has_all(objects: Objects) -> None:
    say(objects, worked("run", OURS))
    lost = {name: objects.read(name) for name in (attempt_record_path(OURS), interval_record_path(RUN, INTERVAL))}
    for name in lost:
        objects.remove(name)
    assert read(objects, Call("s", {}, OTHER, RUN)) is None
    assert read(objects, Call("s", {}, OURS, RUN)) == lost[attempt_record_path(OURS)]
    assert {name: objects.read(name) for name in lost} == lost


def test_an_interval_names_its_two_newest_runs(objects: Objects) -> None:
    assert runs_of_interval(objects, RUN, INTERVAL) == []
    for n, run_id in enumerate(("one", "two", "two", "three", "three")):
        say(objects, worked(run_id, f"{n}" * 8))
    say(objects, worked("four", "f" * 8, key=""))
    assert runs_of_interval(objects, RUN, INTERVAL) == ["three", "two"]
    assert runs_of_interval(objects, replace(RUN, task_id="another"), INTERVAL) == []
    say(objects, worked("one", "a" * 8) | {"interval": EARLIER})
    assert intervals_of(objects, "loop") == [EARLIER, INTERVAL]
    assert intervals_of(objects, "another") == []


def test_a_call_of_no_run_has_a_record_of_its_own_alone(objects: Objects) -> None:
    say(objects, record(run=RunInfo()))
    assert list(objects.listed("runs")) == []
    assert [f.name for f in objects.listed("attempts")] == [attempt_record_path(OURS)]


@pytest.mark.parametrize(
    ("tries", "hour", "newest"),
    [
        ((1, 2), 13, "done"),  # a straggler of the first try
        ((2, 1), 13, "failed"),  # the clock of the machine that ran the first try was ahead
        ((1, 2), 11, "failed"),  # the run was deleted and made anew
    ],
)
def test_a_straggler_does_not_take_the_place_of_a_later_try(
    objects: Objects, tries: tuple[int, int], hour: int, newest: str
) -> None:
    say(objects, record(OTHER, "done", hour=hour, run=replace(RUN, try_number=tries[1])))
    say(objects, record(run=replace(RUN, try_number=tries[0])))
    assert statuses(objects) == ("failed", newest)


def test_of_many_that_tell_at_once_the_newest_stays(objects: Objects) -> None:
    def tell(hour: int) -> None:
        publish_for(objects, record(f"{hour:08}", "try_again", hour))

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=tell, args=(hour,)) for hour in (14, 10, 17, 12, 16, 11)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [p.exitcode for p in processes] == [0] * 6
    assert json.loads(objects.read(run_record_path(RUN)) or b"")["attempt"] == "00000017"
    assert len(list(objects.listed("attempts"))) == 6


NEWER, OLDER = RECORD_FORMAT + 1, RECORD_FORMAT - 1


@pytest.mark.parametrize("way_out", [FORGET, REDO])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read: Expecting"),
        (b"[1]", "cannot be read: it is a list"),
        (b"{}", "cannot be read: it says no format"),
        (b'{"format": null}', "cannot be read: it says no format"),
        (f'{{"format": {OLDER}}}'.encode(), f"is of format {OLDER}, this airloop knows format {RECORD_FORMAT}"),
    ],
)
def test_one_that_cannot_be_understood_is_named_with_a_way_out(content: bytes, said: str, way_out: str) -> None:
    with pytest.raises(ContractBroken) as caught:
        parse(content, "file:///x/t.json", way_out)
    assert caught.value.found.startswith(f"file:///x/t.json {said}")
    assert caught.value.advice == way_out


def test_a_newer_one_is_kept_and_asks_for_a_newer_airloop() -> None:
    with pytest.raises(ContractBroken, match=f"is of format {NEWER}, .*; update airloop here: a newer one wrote it"):
        parse(json.dumps({**record(), "format": NEWER}).encode(), "file:///x/t.json")
    assert parse(json.dumps(record()).encode(), "file:///x/t.json") == record()
