"""How the end of a payload is judged."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.contract import Call, Receipt, attempt_record_path
from airloop.errors import (
    AirloopError,
    BadConfiguration,
    ContractBroken,
    LeakageFound,
    OutOfMemory,
    ProcessLost,
    Rejected,
    ResultLost,
    StepSkipped,
    TimedOut,
    TryAgain,
)
from airloop.records import RECORD_FORMAT
from airloop_operators.runners.base import Ending, Runner, RunRequest, conclude
from airloop_operators.runners.local import LocalRunner
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.sizes import Pods

ATTEMPT = "0123456789abcdef"
KEY = "ab" * 32


class World:
    """An artifact store with what an attempt may leave in it."""

    def __init__(self, root: Path) -> None:
        self.request = RunRequest(call=Call("train", {}, ATTEMPT), artifacts=root, memory_mb=512, timeout_s=5.0)

    def manifest(self, **changes: Any) -> Receipt:
        path = self.request.artifacts / "steps" / "a step" / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(
            {"format": RECORD_FORMAT, "attempt": ATTEMPT, "key": KEY, "counts": {"rows": 1}} | changes
        ).encode()
        path.write_bytes(content)
        return Receipt(ATTEMPT, "done", KEY, path.as_uri(), hashlib.sha256(content).hexdigest())

    def record(self, **fields: Any) -> bytes:
        path = self.request.artifacts / attempt_record_path(ATTEMPT)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "format": RECORD_FORMAT,
            "attempt": ATTEMPT,
            "key": "",
            "manifest": "",
            "digest": "",
            "started_at": "2013-01-01T00:00:00+00:00",
        }
        path.write_text(json.dumps(record | fields))
        return path.read_bytes()

    def record_of(self, receipt: Receipt) -> bytes:
        return self.record(status=receipt.status, key=receipt.key, manifest=receipt.manifest, digest=receipt.digest)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "artifacts")


DONE = Ending(exit_code=0)


def test_a_receipt_and_its_manifest_are_a_success(world: World) -> None:
    receipt = world.manifest()
    outcome = conclude(world.request, DONE, receipt.to_json())
    assert outcome.error is None
    assert outcome.receipt == receipt
    assert outcome.manifest is not None
    assert outcome.manifest["counts"] == {"rows": 1}


@pytest.mark.parametrize("text", ["", "{", '{"version": 99}', Receipt("f" * 16, "done").to_json()])
def test_without_a_readable_receipt_the_record_tells(world: World, text: str) -> None:
    receipt = world.manifest()
    world.record_of(receipt)
    outcome = conclude(world.request, DONE, text)
    assert outcome.error is None
    assert outcome.receipt == receipt


def test_the_record_of_an_earlier_start_proves_nothing(world: World) -> None:
    before = world.record_of(world.manifest())
    outcome = conclude(world.request, DONE, "", before=before)
    assert isinstance(outcome.error, ResultLost)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"digest": "0" * 64}, "is not the one that it promised"),
        ({"manifest": "file:///no/such/manifest.json"}, "cannot be read"),
        ({"manifest": ""}, "published no manifest"),
        ({"key": "cd" * 32}, "has another key"),
        ({"status": "rejected"}, "promises no manifest"),
    ],
)
def test_exit_0_without_its_manifest_is_never_green(world: World, changes: dict[str, str], text: str) -> None:
    receipt = world.manifest()
    fields = {name: getattr(receipt, name) for name in ("attempt", "status", "key", "manifest", "digest")}
    outcome = conclude(world.request, DONE, Receipt(**(fields | changes)).to_json())
    assert isinstance(outcome.error, ResultLost)
    assert text in str(outcome.error)
    assert outcome.manifest is None


def test_a_manifest_of_another_attempt_is_only_a_reuse(world: World) -> None:
    other = world.manifest(attempt="f" * 16)
    assert isinstance(conclude(world.request, DONE, other.to_json()).error, ResultLost)
    reused = Receipt(ATTEMPT, "reused", other.key, other.manifest, other.digest)
    assert conclude(world.request, DONE, reused.to_json()).error is None


def test_exit_0_and_nothing_is_never_green(world: World) -> None:
    outcome = conclude(world.request, DONE, "")
    assert isinstance(outcome.error, ResultLost)
    assert str(outcome.error).startswith("step train ended well, but it left no receipt and no record of its attempt")


def test_what_happens_after_the_manifest_does_not_undo_it(world: World) -> None:
    receipt = world.manifest()
    outcome = conclude(world.request, Ending(signal=signal.SIGSEGV), receipt.to_json())
    assert outcome.error is None
    assert outcome.exit_code == -signal.SIGSEGV
    assert outcome.note == "its process ended with signal SIGSEGV after its manifest was published: the step is done"


def test_a_stopped_task_is_not_done(world: World) -> None:
    receipt = world.manifest()
    outcome = conclude(world.request, Ending(signal=signal.SIGTERM, reason="stopped"), receipt.to_json())
    assert isinstance(outcome.error, ProcessLost)
    assert outcome.manifest is None


@pytest.mark.parametrize(
    ("ending", "kind", "text"),
    [
        (Ending(signal=9, reason="timeout"), TimedOut, "ran over its time limit of 5 s"),
        (
            Ending(signal=9, reason="memory", peak_memory_bytes=600 << 20),
            OutOfMemory,
            "it used 600 MiB of memory, its limit is 512 MiB; raise the task's memory_mb above 512",
        ),
        (Ending(signal=9, kernel_oom=True), OutOfMemory, "the machine ran out of memory"),
        (Ending(signal=9), ProcessLost, "signal SIGKILL, which Airloop did not send"),
        (Ending(exit_code=137), ProcessLost, "signal SIGKILL"),
        (Ending(exit_code=137, kernel_oom=True), OutOfMemory, "the machine ran out of memory"),
        (Ending(signal=signal.SIGSEGV), ProcessLost, "a crash in native code leaves a traceback"),
        (Ending(exit_code=65, last_error="no such table"), Rejected, "no such table"),
        (Ending(exit_code=75, last_error="database is locked"), TryAgain, "database is locked"),
        (Ending(exit_code=99), StepSkipped, "ended with exit code 99 and said nothing"),
        (Ending(exit_code=1), AirloopError, "step train failed (exit code 1)"),
        (Ending(exit_code=127, last_error="the payload cannot be started: no"), BadConfiguration, "cannot be started"),
    ],
)
def test_each_ending_has_its_error(world: World, ending: Ending, kind: type[AirloopError], text: str) -> None:
    outcome = conclude(world.request, ending, "")
    assert type(outcome.error) is kind
    assert text in str(outcome.error)


@pytest.mark.parametrize(
    ("exit_code", "named", "kind"),
    [
        (65, "LeakageFound", LeakageFound),
        (65, "NoSuchError", Rejected),
        # A name that does not fit the exit code is not believed.
        (65, "CommitConflict", Rejected),
        (65, "annotations", Rejected),
        (75, "OutOfMemory", OutOfMemory),
        (1, "LeakageFound", AirloopError),
    ],
)
def test_the_payloads_own_error_comes_back_as_what_it_was(
    world: World, exit_code: int, named: str, kind: type[AirloopError]
) -> None:
    world.record(status="rejected", error={"class": named, "type": "X", "message": "dep_delay came too late"})
    outcome = conclude(world.request, Ending(exit_code=exit_code, last_error="something else"), "", started_at=0.0)
    assert type(outcome.error) is kind
    assert "dep_delay came too late" in str(outcome.error)
    assert outcome.receipt is not None
    assert outcome.receipt.status == "rejected"
    assert outcome.resources["start_s"] == 1356998400.0


def test_an_end_that_cannot_be_recorded_is_still_the_end_that_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.request.artifacts.write_text("in the place of the folder")
    with caplog.at_level(logging.WARNING, "airloop.runner"):
        outcome = conclude(world.request, Ending(signal=9), "")
    assert isinstance(outcome.error, ProcessLost)
    assert outcome.receipt is None
    assert "how the attempt at step train ended cannot be recorded" in caplog.text


def test_what_a_runner_records_holds_no_secret(world: World) -> None:
    request = replace(world.request, secrets={"X": "redis://:open%2Fsesame@host"})
    conclude(request, Ending(exit_code=75, last_error="no access with open/sesame"), "")
    content = (request.artifacts / attempt_record_path(ATTEMPT)).read_text()
    assert "no access with ***" in content


def test_a_manifest_that_is_not_here_is_a_matter_of_configuration(world: World) -> None:
    receipt = Receipt(ATTEMPT, "done", KEY, "s3://bucket/manifest.json", "0" * 64)
    with pytest.raises(BadConfiguration, match="s3://bucket"):
        conclude(world.request, DONE, receipt.to_json())


@pytest.mark.parametrize("newer", ["the record", "the manifest"])
def test_what_another_format_says_is_not_guessed(world: World, newer: str) -> None:
    changes = {"format": RECORD_FORMAT + 1}
    if newer == "the record":
        receipt = world.manifest()
        world.record(status="done", manifest=receipt.manifest, **changes)
    else:
        receipt = world.manifest(**changes)
        world.record_of(receipt)
    said = f"is of format {RECORD_FORMAT + 1}, this airloop knows format {RECORD_FORMAT}; update airloop here"
    with pytest.raises(ContractBroken, match=said):
        conclude(world.request, DONE, receipt.to_json())


@pytest.mark.parametrize("runner", [LocalRunner(warm=False), PodRunner(Pods())], ids=["local", "pod"])
def test_a_runner_that_starts_one_process_says_so(world: World, runner: Runner) -> None:
    with pytest.raises(
        BadConfiguration, match=r"step train asks for 4 ranks; the (local|pod) runner starts one process"
    ):
        runner.run(replace(world.request, ranks=4))
    assert not (world.request.artifacts / attempt_record_path(ATTEMPT)).exists(), "nothing was begun"
