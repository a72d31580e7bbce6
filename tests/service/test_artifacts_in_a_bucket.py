"""Steps whose manifests and records are in a bucket, and who reads them there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.cli import main
from airloop.config import Config, S3Address
from airloop.contract import Call, RunInfo, attempt_record_path
from airloop.errors import BadConfiguration, ProcessLost, Rejected, RejectedRows, Unreachable
from airloop.frame import history
from airloop.objects import open_objects
from airloop.records import run_record_path
from airloop.warehouse.artifacts import ArtifactStore
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.local import LocalRunner
from tests.s3_server import S3Server

MakeRunner = Callable[..., LocalRunner]
MakeStep = Callable[..., RunRequest]
ATTEMPT = "feedbeef"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def step(
    make_request: Callable[..., RunRequest],
    s3_bucket: S3Address,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeStep:
    """A request for a step; only its own secrets let anybody into the bucket."""
    for name in KEYS:
        monkeypatch.delenv(name)
    given = s3_server.environment
    secrets = {name: given.pop(name) for name in KEYS}

    def make(
        name: str, attempt: str = ATTEMPT, *, run_id: str = "one", fault: str = "", **arguments: Any
    ) -> RunRequest:
        call = Call(f"steps_for_tests:{name}", arguments, attempt, RunInfo("loop", run_id, "t"))
        request = make_request(name, call=call)
        more = given | {"AIRLOOP_ARTIFACTS": str(s3_bucket)} | ({"AIRLOOP_FAULT": fault} if fault else {})
        return replace(request, artifacts=s3_bucket, environment={**request.environment, **more}, secrets=secrets)

    return make


@pytest.fixture
def store(s3_bucket: S3Address, s3_server: S3Server) -> ArtifactStore:
    return ArtifactStore(open_objects(s3_bucket, s3_server.environment))


def recorded(store: ArtifactStore, request: RunRequest) -> dict[str, Any]:
    """What pages and reports find; the attempt's own record says the same."""
    newest = store.read_bytes(run_record_path(request.call.run))
    assert store.read_bytes(attempt_record_path(request.call.attempt)) == newest
    return history.run(store, "loop", request.call.run.run_id).tasks["t"].record


def test_a_step_is_done_then_reused_and_says_so_in_the_bucket(
    make_runner: MakeRunner, step: MakeStep, store: ArtifactStore, s3_server: S3Server, tmp_path: Path
) -> None:
    runner = make_runner()
    outcome = runner.run(step("count", rows=5))
    assert outcome.error is None
    assert outcome.receipt is not None
    assert outcome.receipt.status == "done"
    assert outcome.receipt.manifest.startswith(f"{store.address}/steps/")
    assert outcome.manifest is not None
    assert outcome.manifest["counts"] == {"rows": 5}
    assert recorded(store, step("count"))["status"] == "done"
    again = runner.run(step("count", "feedbee2", run_id="two", rows=5))
    assert again.receipt is not None
    assert (again.error, again.receipt.status) == (None, "reused")
    assert recorded(store, step("count", "feedbee2", run_id="two"))["status"] == "reused"
    assert history.run_ids(store, "loop") == ["one", "two"]
    # Whoever may read the bucket does not get in by what lies there.
    for top in ("steps", "runs", "attempts", "code"):
        for name in store.names(top):
            assert s3_server.secret.encode() not in store.read_bytes(name)
    assert not (tmp_path / "home" / "artifacts").exists()


def test_a_step_that_fails_tells_it_in_the_bucket(
    make_runner: MakeRunner, step: MakeStep, store: ArtifactStore
) -> None:
    outcome = make_runner().run(step("reject"))
    assert isinstance(outcome.error, RejectedRows)
    record = recorded(store, step("reject"))
    assert (record["status"], record["error"]["class"]) == ("rejected", "RejectedRows")


@pytest.mark.parametrize("place", ["manifest.json", "t.json", f"{ATTEMPT}.json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_a_runner_says_of_a_killed_attempt_is_on_record(
    make_runner: MakeRunner, step: MakeStep, store: ArtifactStore, place: str, when: str
) -> None:
    runner, request = make_runner(), step("count", fault=f"kill@artifact:{when}:{place}")
    outcome = runner.run(request)
    record = recorded(store, request)
    if outcome.error is None:
        assert record["status"] == "done"
        assert outcome.manifest is not None
    else:
        assert isinstance(outcome.error, ProcessLost)
        assert (record["status"], record["recorded_by"]) == ("try_again", "runner")
        assert record["error"]["message"] == str(outcome.error)
        assert outcome.receipt is not None
        assert outcome.receipt.manifest == store.uri(attempt_record_path(ATTEMPT))
    assert (outcome.error is None) == ((place, when) not in [("manifest.json", "before"), ("manifest.json", "after"),
                                                             ("t.json", "before")])  # fmt: skip
    again = step("count", "feedbee2")
    assert runner.run(again).error is None
    assert recorded(store, again)["status"] == ("done" if (place, when) == ("manifest.json", "before") else "reused")


def test_wrong_credentials_are_told_before_a_payload_starts(step: MakeStep) -> None:
    request = step("count")
    wrong = replace(request, secrets={**request.secrets, "AWS_SECRET_ACCESS_KEY": "not-the-secret"})
    with pytest.raises(BadConfiguration, match="does not accept the credentials") as caught:
        LocalRunner(warm=False).run(wrong)
    assert "not-the-secret" not in str(caught.value)


def test_a_store_that_is_away_is_never_green(step: MakeStep) -> None:
    request = step("count")
    away = replace(request, environment={**request.environment, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})
    with pytest.raises(Unreachable, match=r"s3://.* does not answer at http://127.0.0.1:1"):
        LocalRunner(warm=False).run(away)


def test_a_payload_that_does_not_get_in_says_so_itself(step: MakeStep, store: ArtifactStore) -> None:
    request = step("count")
    other = replace(request, environment={**request.environment, "AIRLOOP_ARTIFACTS": "s3://no-such-bucket-here/x"})
    outcome = LocalRunner(warm=False).run(other)
    assert isinstance(outcome.error, Rejected)
    assert "BadConfiguration: there is no bucket no-such-bucket-here" in str(outcome.error)
    assert outcome.exit_code == 65
    assert recorded(store, request)["recorded_by"] == "runner"


def test_the_command_line_reads_it(
    step: MakeStep,
    s3_bucket: S3Address,
    s3_server: S3Server,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runner = LocalRunner(warm=False)
    for attempt, run_id, rows in (("feedbee1", "one", 5), ("feedbee2", "two", 5), ("feedbee3", "three", 6)):
        assert runner.run(step("count", attempt, run_id=run_id, rows=rows)).error is None
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRLOOP_ARTIFACTS", str(s3_bucket))

    def ask(*arguments: str) -> Any:
        code = main([*arguments, "--json", "--home", str(config.home)])
        return code, json.loads(capsys.readouterr().out)

    code, reused = ask("why", "loop/two", "t")
    assert (code, reused["status"], reused["made_by"]) == (0, "reused", "loop/one/t")
    code, ran = ask("why", "loop/three", "t")
    assert code == 0
    assert [change["text"] for change in ran["changes"]] == ["argument rows: 5 → 6"]
    code, found = ask("doctor")
    assert {f["what"]: f["state"] for f in found}["artifacts"] == "ok"
    key = ran["key"]
    code, lineage = ask("lineage", key)
    assert code == 0
    assert key in json.dumps(lineage)
    # The code that it ran comes from the bucket, too.
    _, replayed = ask("replay", "loop/three", "--task", "t")
    assert [(t["task_id"], t["failed"], t["verdict"]) for t in replayed["tasks"]] == [("t", "", "not compared")]
