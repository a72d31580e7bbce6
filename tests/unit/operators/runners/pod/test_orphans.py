"""Pods that nobody follows: which they are, and that no other is removed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airloop import usage
from airloop.contract import Call, RunInfo, attempt_record_path
from airloop.errors import Unreachable
from airloop.provenance.cost import Sum, added_up, attempts_of_run, name_by
from airloop.records import RECORD_FORMAT
from airloop.warehouse.artifacts import ArtifactStore
from airloop_operators import sweep
from airloop_operators.deferral import COMES_BACK
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod import names
from airloop_operators.runners.pod.cluster import Cluster
from airloop_operators.runners.pod.orphans import Known, orphans
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import make
from tests.api_server import ApiServer, ScriptedPod, Start

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

DAY_S = 24 * 3600.0
known_tasks = sweep.known_tasks
ENDED_AT = datetime(2013, 1, 1, 0, 1, tzinfo=UTC).timestamp()
ATTEMPT = "0123456789abcdef"
TASK = ("delays", "manual__2013", "train", -1)


def pod(phase: str = "Running", try_number: int = 2, **metadata: Any) -> dict[str, Any]:
    call = Call("train", {}, ATTEMPT, RunInfo(*TASK, try_number))
    state: dict[str, Any] = {"running": {}}
    if phase != "Running":
        state = {"terminated": {"exitCode": 0, "finishedAt": "2013-01-01T00:01:00Z"}}
    about = {"labels": names.labels(call, "airloop"), "annotations": names.in_full(call), "name": "train-0123"}
    return {
        "metadata": {**about, "creationTimestamp": "2013-01-01T00:00:00Z", **metadata},
        "status": {"phase": phase, "containerStatuses": [{"name": "step", "state": state}]},
    }


def why(seen: dict[str, Any], its: Known | None, *, after_s: float = 2 * DAY_S) -> str:
    found = orphans([seen], {} if its is None else {TASK: its}, now=ENDED_AT + after_s, keep_s=DAY_S)
    assert [one.known for one in found] == [its is not None] * len(found)
    return found[0].why if found else ""


class TestWhoFollows:
    @pytest.mark.parametrize("state", sorted(COMES_BACK))
    @pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
    def test_a_task_that_comes_back_follows_the_pod_of_its_try(self, state: str, phase: str) -> None:
        assert why(pod(phase), Known(state, 2)) == ""

    @pytest.mark.parametrize("state", ["failed", "success", "skipped", "up_for_retry", "upstream_failed", "removed"])
    def test_a_task_that_is_over_follows_none(self, state: str) -> None:
        assert why(pod(), Known(state, 2)) == f"its task is {state}"

    def test_nor_does_one_that_was_cleared(self) -> None:
        assert why(pod(), Known(None, 2)) == "its task is cleared"

    @pytest.mark.parametrize("state", ["running", "queued", "failed", None])
    def test_a_later_try_follows_its_own(self, state: str | None) -> None:
        assert why(pod(), Known(state, 3)) == "its task is on try 3"

    @pytest.mark.parametrize("state", ["running", "success", None])
    def test_the_pod_of_a_try_that_airflow_does_not_count_yet_is_nobodys_to_end(self, state: str | None) -> None:
        assert why(pod(), Known(state, 1)) == ""

    def test_of_a_task_that_airflow_does_not_know_that_is_said(self) -> None:
        assert why(pod(), None) == "Airflow does not know its task"

    def test_one_that_is_being_deleted_is_going_anyway(self) -> None:
        assert why(pod(deletionTimestamp="2013-01-01T00:01:00Z"), Known("failed", 2)) == ""

    @pytest.mark.parametrize(
        "metadata", [{"annotations": {}}, {"labels": {}}, {"labels": None, "annotations": None}],
        ids=["no task in full", "no try", "nothing"],
    )  # fmt: skip
    def test_one_that_does_not_say_whose_it_is_is_left_alone(self, metadata: dict[str, Any]) -> None:
        assert why(pod(**metadata), None) == ""

    @pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
    def test_one_that_has_ended_is_kept_for_its_log(self, phase: str) -> None:
        assert why(pod(phase), Known("failed", 2), after_s=DAY_S - 1) == ""
        assert why(pod(phase), Known("failed", 2), after_s=DAY_S) == "its task is failed"
        assert why(pod(), Known("failed", 2), after_s=1) == "its task is failed", "one that runs takes from others"


@given(st.text(min_size=1), st.text(), st.text(), st.integers(-1, 1000), st.integers(1, 1000))
def test_a_pod_tells_whose_it_is(dag_id: str, run_id: str, task_id: str, index: int, try_number: int) -> None:
    call = Call("train", {}, ATTEMPT, RunInfo(dag_id, run_id, task_id, index, try_number))
    metadata = {"labels": names.labels(call, "airloop"), "annotations": names.in_full(call)}
    assert names.task_of(metadata) == ((dag_id, run_id, task_id, index), try_number)


def test_a_run_without_airflow_is_no_task() -> None:
    call = Call("train", {}, ATTEMPT)
    assert names.task_of({"labels": names.labels(call, "airloop"), "annotations": names.in_full(call)}) is None


class TestTheCommand:
    """Over HTTP, with what Airflow's database knows in its place."""

    @pytest.fixture
    def left(
        self, start: Start, pods: Pods, request_of: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., ScriptedPod]:
        """Pods of tasks, by their names."""
        self.server: ApiServer = start()
        self.known: dict[names.TaskKey, Known] = {}
        self.artifacts = Path(str(request_of.artifacts))
        self.objects = request_of.objects
        self.run = request_of.call.run
        document = {"namespace": "loops", "images": {"cpu": "airloop:1"}, "patience": {"grace_s": 1, "api_s": 1}}
        (tmp_path / "sizes.yaml").write_text(json.dumps(document))
        monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.yaml"))
        monkeypatch.setenv("AIRLOOP_HOME", str(self.artifacts.parent))
        monkeypatch.setattr(sweep, "LOOK_S", 0.02)
        monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        monkeypatch.setattr(sweep, "known_tasks", lambda tasks: {t: self.known[t] for t in tasks if t in self.known})

        def one(task: str, state: str | None = None, *, instance: str = "airloop") -> ScriptedPod:
            run = replace(request_of.call.run, task_id=task)
            call = replace(request_of.call, attempt=f"{len(self.server.handles):020x}", run=run)
            if state is not None:
                self.known[run.dag_id, run.run_id, task, -1] = Known(state, 1)
            made = make(
                replace(request_of, call=call), replace(pods, instance=instance), namespace="loops", spawned_at="now"
            )
            document = usage.document(
                attempt=call.attempt, step=call.step, run=run, runner="pod", reserved=made.reserved,
                started_at=datetime.now(UTC).isoformat(timespec="milliseconds"), resources={"size": "small"},
            )  # fmt: skip
            usage.publish(self.objects, document)
            found = self.server.add(made.pod)
            found.run()
            return found

        return one

    def told(self, task: str) -> dict[str, Any]:
        """What the record says of the one attempt at a task."""
        (found,) = usage.of_task(self.objects, replace(self.run, task_id=task))
        return found

    def cost(self) -> Sum:
        """What the whole run took."""
        attempts = attempts_of_run(ArtifactStore(self.artifacts), self.run.dag_id, self.run.run_id)
        return added_up(attempts, name_by("run"), None)[1]

    def gone(self, *there: str) -> None:
        until = time.monotonic() + 60
        while set(self.server.pods) != set(there) and time.monotonic() < until:
            time.sleep(0.02)
        assert set(self.server.pods) == set(there)

    def test_lists_them_and_removes_none(
        self, left: Callable[..., ScriptedPod], capsys: pytest.CaptureFixture[str]
    ) -> None:
        failed, _, _ = left("failed", "failed"), left("runs", "running"), left("deleted")
        assert sweep.main([]) == 1
        told = capsys.readouterr().out
        assert f"loops/{failed.name} runs, and its task is failed (delays manual__2013 failed, try 1)\n" in told
        assert "Airflow does not know its task" in told
        assert "pods: 3; that nobody follows: 2\n" in told
        assert len(self.server.pods) == 3
        assert not [asked for asked in self.server.requests if asked.startswith("DELETE")]

    def test_removes_those_of_tasks_that_are_over(
        self, left: Callable[..., ScriptedPod], capsys: pytest.CaptureFixture[str]
    ) -> None:
        left("failed", "failed")
        runs, unknown, other = left("runs", "deferred"), left("deleted"), left("failed", instance="another")
        assert sweep.main(["--apply"]) == 0
        assert capsys.readouterr().out.count(": removed\n") == 1
        self.gone(runs.name, unknown.name, other.name)
        assert sweep.main(["--apply", "--unknown"]) == 0
        self.gone(runs.name, other.name)
        assert sweep.main([]) == 0, "nothing is left to say"

    def test_keeps_what_has_ended_for_a_while(self, left: Callable[..., ScriptedPod]) -> None:
        ended = left("failed", "failed")
        ended.end(1)
        assert sweep.main(["--apply"]) == 0
        self.gone(ended.name)
        assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
        self.gone()

    def test_ends_this_very_pod_only(self, left: Callable[..., ScriptedPod], monkeypatch: pytest.MonkeyPatch) -> None:
        """Its name may be another's by then."""
        failed = left("failed", "failed")
        known_tasks = sweep.known_tasks

        def meanwhile(tasks: Any) -> Any:
            failed.object["metadata"]["uid"] = "another"
            return known_tasks(tasks)

        monkeypatch.setattr(sweep, "known_tasks", meanwhile)
        assert sweep.main(["--apply"]) == 0
        self.gone(failed.name)

    def test_removes_nothing_where_airflows_database_cannot_be_read(
        self, left: Callable[..., ScriptedPod], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from sqlalchemy.exc import OperationalError

        def unread() -> Any:
            raise OperationalError("SELECT", {}, Exception("no such table: task_instance"))

        failed = left("failed", "failed")
        monkeypatch.setattr(sweep, "known_tasks", known_tasks)
        monkeypatch.setattr("airflow.utils.session.create_session", unread)
        assert sweep.main(["--apply", "--unknown"]) == 1
        told = capsys.readouterr().out
        assert "no such table: task_instance; run it where Airflow's database is configured\n" in told
        self.gone(failed.name)

    def test_says_what_is_wrong(self, left: Callable[..., ScriptedPod], capsys: pytest.CaptureFixture[str]) -> None:
        left("failed", "failed")
        self.server.away_until = time.monotonic() + 60
        assert sweep.main(["--apply"]) == 1
        assert "the API server has not answered for" in capsys.readouterr().out

    def test_tells_what_they_took(self, left: Callable[..., ScriptedPod]) -> None:
        left("failed", "failed")
        left("starved", "failed").end(137, "OOMKilled")
        runs = left("runs", "running")
        before = self.cost()
        assert (before.attempts, before.unknown) == (3, 3)
        assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
        self.gone(runs.name)
        failed, starved = self.told("failed"), self.told("starved")
        assert (failed["status"], failed["error"]) == ("try_again", "ProcessLost")
        assert (starved["status"], starved["error"]) == ("try_again", "OutOfMemory")
        for found in (failed, starved):
            used, spent = found["resources"], usage.spent(found)
            assert (used["node"], used["size"], used["pods"], used["lost_s"]) == ("node-1", "small", 1, 0)
            assert spent.wasted_s == spent.seconds is not None
        assert self.told("runs")["status"] == usage.OPEN
        after = self.cost()
        assert (after.attempts, after.unknown, after.pods) == (3, 1, 2)
        assert after.wasted_s == after.seconds

    def test_tells_it_once(self, left: Callable[..., ScriptedPod], monkeypatch: pytest.MonkeyPatch) -> None:
        left("starved", "failed").end(137, "OOMKilled")
        with monkeypatch.context() as patch:
            # As one that is killed before it comes to that.
            patch.setattr(Cluster, "delete_pod", lambda *_: None)
            assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
        found = self.told("starved")
        assert found["error"] == "OutOfMemory"
        assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
        self.gone()
        assert self.told("starved") == found

    def test_a_runner_that_lives_after_all_knows_best(self, left: Callable[..., ScriptedPod]) -> None:
        left("failed", "failed")
        document = {**self.told("failed"), "status": "failed", "error": "PodLost", "resources": {"pod_s": 4711}}

        def sees_it_go(pod: ScriptedPod) -> None:
            usage.publish(self.objects, document, last=True)
            pod.die()

        self.server.on_delete = sees_it_go
        assert sweep.main(["--apply"]) == 0
        self.gone()
        found = self.told("failed")
        assert (found["status"], found["error"], found["resources"]) == ("failed", "PodLost", {"pod_s": 4711})

    def test_a_step_that_is_done_in_its_grace_is_done(self, left: Callable[..., ScriptedPod]) -> None:
        left("failed", "failed")
        attempt = self.told("failed")["attempt"]

        def makes_haste(pod: ScriptedPod) -> None:
            own = {"format": RECORD_FORMAT, "attempt": attempt, "status": "done"}
            self.objects.publish(attempt_record_path(attempt), json.dumps(own).encode())
            pod.end(0)
            pod.remove()

        self.server.on_delete = makes_haste
        assert sweep.main(["--apply"]) == 0
        found = self.told("failed")
        assert (found["status"], found["error"]) == ("done", "")
        assert usage.spent(found).wasted_s == 0

    def test_keeps_what_has_ended_while_it_cannot_be_told_what_it_took(
        self, left: Callable[..., ScriptedPod], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def away(*_: Any, **__: Any) -> None:
            raise Unreachable("the store is away")

        left("failed", "failed")
        ended = left("starved", "failed")
        ended.end(137, "OOMKilled")
        with monkeypatch.context() as patch:
            patch.setattr(usage, "end", away)
            assert sweep.main(["--apply", "--keep-hours", "0"]) == 1
        told = capsys.readouterr().out
        assert ": removed, but what it took cannot be recorded: the store is away\n" in told
        assert ": kept, since what it took cannot be recorded: the store is away\n" in told
        self.gone(ended.name)
        assert sweep.main(["--apply", "--keep-hours", "0"]) == 0
        self.gone()
        assert self.told("starved")["error"] == "OutOfMemory"

    def test_names_a_connection_that_is_not_there(
        self, left: Callable[..., ScriptedPod], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failed = left("failed", "failed")
        monkeypatch.setenv("AIRFLOW__AIRLOOP__SECRETS", "AWS_SECRET_ACCESS_KEY=lake.password")
        assert sweep.main([]) == 1, "to look, none is needed"
        assert sweep.main(["--apply"]) == 1
        assert "[airloop] secrets: The conn_id `lake` isn't defined; run it where" in capsys.readouterr().out
        self.gone(failed.name)
