"""A record that is written while an attempt goes on: seldom, never waited for, and whole at the end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop import usage
from airloop.contract import Call, Receipt, RunInfo, attempt_record_path
from airloop.errors import OutOfMemory, Unreachable
from airloop.objects import Change, Folder, Objects
from airloop.records import RECORD_FORMAT
from airloop_operators.runners.base import RunOutcome
from airloop_operators.runners.usage import UsageRecord, end_for

CALL = Call("s", {}, "aaaa0000", RunInfo("loop", "run", "t"))


class Slow(Folder):
    """A folder that counts what is written, and does so when it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written = 0
        self.may = threading.Event()
        self.may.set()
        self.asked = threading.Event()
        self.fails = False

    def change(self, name: str, to: Change) -> None:
        self.asked.set()
        self.may.wait(60)
        if self.fails:
            raise Unreachable("the store is away")
        super().change(name, to)
        self.written += 1


@pytest.fixture
def store(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def record(objects: Objects, every_s: float = 60.0) -> UsageRecord:
    return UsageRecord(objects, CALL, "pod", started_at=1_357_041_600.0, every_s=every_s)


def there(objects: Objects) -> dict[str, Any]:
    return usage.read(objects, CALL.run, CALL.attempt) or {}


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    assert holds()


def test_it_is_written_at_once_then_seldom_then_at_the_end(store: Slow) -> None:
    one = record(store)
    one.update(pods=[{"phase": "Asked for"}])
    until(lambda: store.written == 1)
    for n in range(50):
        one.update(pods=[{"phase": f"Pending {n}"}])
    time.sleep(0.1)
    assert store.written == 1
    assert there(store)["pods"] == [{"phase": "Asked for"}]
    one.close("done", resources={"pod_s": 3.0})
    found = there(store)
    assert (store.written, found["status"], found["resources"]) == (2, "done", {"pod_s": 3.0})
    assert found["pods"] == [{"phase": "Pending 49"}]
    assert found["started_at"] == "2013-01-01T12:00:00.000+00:00"
    one.update(pods=[])
    one.close("failed")
    assert there(store) == found


def test_what_changes_is_written_again_after_a_while(store: Slow) -> None:
    one = record(store, every_s=0.05)
    for n in range(3):
        one.update(pods=[{"phase": str(n)}])
        until(lambda n=n: there(store).get("pods") == [{"phase": str(n)}])  # type: ignore[misc]
    one.close("done")


def test_a_store_that_hangs_holds_nobody_up(store: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airloop_operators.runners.usage.FINISH_S", 0.1)
    one = record(store)
    store.may.clear()
    began = time.monotonic()
    one.update(pods=[{"phase": "Pending"}])
    assert time.monotonic() - began < 30, "it hangs for sixty"
    assert store.asked.wait(60)
    threading.Timer(0.3, store.may.set).start()
    one.close("done")
    until(lambda: store.written == 2)
    assert there(store)["status"] == "done", "the one that hung has not taken its place"


def test_a_store_that_is_away_is_a_warning(store: Slow, caplog: pytest.LogCaptureFixture) -> None:
    store.fails = True
    with caplog.at_level(logging.WARNING):
        record(store).close("done")
    assert "what attempt aaaa0000 takes cannot be recorded: the store is away" in caplog.text


def test_it_says_how_the_attempt_ended(store: Slow) -> None:
    receipt = Receipt(CALL.attempt, "reused", "ab", "file:///manifest")
    outcome = RunOutcome(receipt=receipt, exit_code=0, error=None, resources={"wall_s": 1.5})
    record(store).conclude(outcome)
    assert (there(store)["status"], there(store)["error"], there(store)["resources"]) == ("reused", "", {"wall_s": 1.5})
    record(store).conclude(RunOutcome(receipt=receipt, exit_code=137, error=OutOfMemory("too large")))
    assert (there(store)["status"], there(store)["error"]) == ("try_again", "OutOfMemory")
    record(store).fail(KeyboardInterrupt())
    assert (there(store)["status"], there(store)["error"]) == ("try_again", "KeyboardInterrupt")


def test_it_goes_on_where_a_runner_was_lost(store: Slow) -> None:
    first = record(store, every_s=0.01)
    for n in range(3):
        first.update(pods=[{"phase": str(n)}])
        until(lambda n=n: there(store).get("pods") == [{"phase": str(n)}])  # type: ignore[misc]
    second = UsageRecord(store, CALL, "pod", started_at=time.time())
    assert (second.before() or {})["pods"] == [{"phase": "2"}]
    second.update(pods=[{"phase": "adopted"}])
    until(lambda: there(store)["pods"] == [{"phase": "adopted"}])
    assert there(store)["started_at"] == "2013-01-01T12:00:00.000+00:00"
    first.close("done")
    second.close("done")


def test_an_attempt_of_no_dag_leaves_none(store: Slow) -> None:
    one = UsageRecord(store, Call("s", {}, "aaaa0000"), "local", started_at=0.0)
    one.update(pods=[])
    one.close("done")
    assert store.written == 0


class TestEndedForAnother:
    """By whoever finds its pod."""

    def told(self, known: Any) -> dict[str, Any]:
        return {"status": "try_again", "error": "ProcessLost", "resources": {**known["resources"], "pod_s": 9.0}}

    def test_that_nobody_told_of(self, store: Slow) -> None:
        one = record(store)
        one.update(resources={"pool": "gpu"})
        until(lambda: store.written == 1)
        assert end_for(store, CALL.run, CALL.attempt, self.told) == there(store)
        found = there(store)
        assert (found["status"], found["error"]) == ("try_again", "ProcessLost")
        assert found["resources"] == {"pool": "gpu", "pod_s": 9.0}
        one.close("done")
        assert there(store)["status"] == "done", "its runner was not lost: it knows best"

    def test_that_told_itself(self, store: Slow) -> None:
        record(store).close("failed")
        before = there(store)
        assert end_for(store, CALL.run, CALL.attempt, self.told) is None
        assert end_for(store, CALL.run, "bbbb0000", self.told) is None
        assert there(store) == before

    def test_whose_payload_told(self, store: Slow) -> None:
        one = record(store)
        one.update(resources={"pool": "gpu"})
        until(lambda: store.written == 1)
        own = {
            "format": RECORD_FORMAT,
            "attempt": CALL.attempt,
            "status": "rejected",
            "error": {"class": "RejectedRows"},
        }
        store.publish(attempt_record_path(CALL.attempt), json.dumps(own).encode())
        end_for(store, CALL.run, CALL.attempt, self.told)
        found = there(store)
        assert (found["status"], found["error"], found["resources"]["pod_s"]) == ("rejected", "RejectedRows", 9.0)
        one.close("rejected")
