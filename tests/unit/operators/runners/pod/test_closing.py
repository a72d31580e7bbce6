"""What an attempt took whose runner is lost, as it is told from its pod."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airloop import usage
from airloop.contract import attempt_record_path
from airloop.errors import ContractBroken
from airloop.objects import Folder, Objects
from airloop.records import RECORD_FORMAT
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod import names
from airloop_operators.runners.pod.closing import close
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.sizes import Pods
from airloop_operators.runners.pod.spec import make
from tests.api_server import ScriptedPod, Start

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

ASKED, MADE, SCHEDULED, STARTED, SEEN, ENDED = (
    f"2013-01-01T00:{at}+00:00" for at in ("00:00", "00:05", "00:20", "00:30", "00:40", "01:30")
)
UNDATED = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Folder(tmp_path / "store")


@pytest.fixture
def begun(objects: Objects, pods: Pods, request_of: RunRequest) -> Callable[..., dict[str, Any]]:
    """A pod, and the record as its runner left it when it was killed."""

    def one(
        phase: str = "Running", state: dict[str, Any] | None = None, conditions: tuple[dict[str, Any], ...] = (),
        *, seen: bool = True, **status: Any,
    ) -> dict[str, Any]:  # fmt: skip
        made = make(replace(request_of, size="gpu"), pods, namespace="loops", spawned_at=ASKED)
        entry: dict[str, Any] = {
            "name": made.name, "namespace": "loops", "image": "airloop:1-cuda", "phase": "Asked for", "pods": 0,
            "asked_at": ASKED, "over": False,
        }  # fmt: skip
        if seen:
            entry |= {"phase": "Running", "pods": 1, "uid": "u", "scheduled_at": SCHEDULED, "seen_at": SEEN}
        document = usage.document(
            attempt=request_of.call.attempt, step="train", run=request_of.call.run, runner="pod", started_at=ASKED,
            sequence=7, resources={"size": "gpu", "pool": "gpu"}, reserved=made.reserved, pods=[entry],
        )  # fmt: skip
        usage.publish(objects, document)
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": SCHEDULED}
        pod = made.pod
        pod["metadata"] |= {"uid": "u", "creationTimestamp": MADE}
        pod["spec"]["nodeName"] = "node-1"
        pod["status"] = {
            "phase": phase, "conditions": [scheduled, *conditions],
            "containerStatuses": [{"name": "step", "state": state, "imageID": "sha256:ab"}] if state else [], **status,
        }  # fmt: skip
        return pod

    return one


def ended(code: int, reason: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": STARTED, "finishedAt": ENDED}}


def told(objects: Objects, request: RunRequest) -> dict[str, Any]:
    return usage.read(objects, request.call.run, request.call.attempt) or {}


def test_it_is_what_the_runner_would_have_told(
    start: Start, pods: Pods, request_of: RunRequest, objects: Objects
) -> None:
    def out_of_memory(pod: ScriptedPod) -> None:
        pod.run()
        pod.end(137, "OOMKilled")

    server = start(out_of_memory)
    request = replace(request_of, size="gpu")
    PodRunner(replace(pods, secrets={})).run(request)
    by_runner = told(request.objects, request)
    (entry,) = by_runner["pods"]
    known = {"status": usage.OPEN, "error": "", "finished_at": None, "resources": {"size": "gpu", "pool": "gpu"}}
    begin = {name: entry[name] for name in ("name", "namespace", "image", "asked_at", "uid", "pods")}
    usage.publish(objects, {**by_runner, **known, "pods": [{**begin, "over": False, "phase": "Pending"}]})
    last = next(pod for _, kind, pod, _ in reversed(server.history) if kind == "MODIFIED" and "status" in pod)
    last["metadata"].pop("deletionTimestamp", None)
    close(objects, last, str)
    found = told(objects, request)
    assert (
        (found["status"], found["error"]) == (by_runner["status"], by_runner["error"]) == ("try_again", "OutOfMemory")
    )
    assert found["resources"] | {"wall_s": 0} == by_runner["resources"] | {"wall_s": 0}
    assert found["resources"]["example.com/gpu"] == 2
    assert found["reserved"] == by_runner["reserved"]
    unread = {"events", "waits", "seen_at"}
    assert {n: v for n, v in found["pods"][0].items() if n not in unread} == {
        n: v for n, v in entry.items() if n not in unread
    }
    spent = usage.spent(found)
    assert spent.wasted_s == spent.seconds is not None


@pytest.mark.parametrize(
    ("phase", "container", "conditions", "status", "error", "until"),
    [
        ("Failed", ended(137, "OOMKilled"), (), {}, "OutOfMemory", ENDED),
        ("Succeeded", ended(0, "Completed"), (), {}, "ProcessLost", ENDED),
        ("Failed", None, (), {"reason": "DeadlineExceeded"}, "TimedOut", SEEN),
        ("Failed", UNDATED, ({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
                              "lastTransitionTime": ENDED},), {"reason": "Evicted"}, "PodLost", ENDED),
        ("Failed", UNDATED, (), {}, "PodLost", SEEN),
    ],
    ids=["out of memory", "well, but it told nothing", "nothing dates it", "evicted", "its node was lost"],
)  # fmt: skip
def test_what_ended_long_ago_counts_until_then(
    begun: Any, objects: Objects, request_of: RunRequest, phase: str, container: Any, conditions: Any,
    status: dict[str, Any], error: str, until: str,
) -> None:  # fmt: skip
    close(objects, begun(phase, container, conditions, **status), str)
    found = told(objects, request_of)
    assert (found["status"], found["error"], found["sequence"]) == ("try_again", error, 8)
    assert datetime.fromisoformat(found["finished_at"]) == datetime.fromisoformat(until)
    held_s = (datetime.fromisoformat(until) - datetime.fromisoformat(SCHEDULED)).total_seconds()
    used = found["resources"]
    assert (used["pod_s"], used["queue_s"], used["lost_s"], used["pods"]) == (held_s, 20, 0, 1)
    assert (used["node"], used["size"], used["pool"]) == ("node-1", "gpu", "gpu")
    spent = usage.spent(found)
    assert spent.wasted_s == spent.seconds == held_s
    assert spent.amounts is not None
    assert spent.amounts["example.com/gpu"] == 2 * spent.seconds


def test_what_runs_ends_now_and_is_told_again_when_it_has_ended(
    begun: Any, objects: Objects, request_of: RunRequest
) -> None:
    before = datetime.now(UTC)
    first = close(objects, begun("Running", {"running": {"startedAt": STARTED}}), str)
    assert first is not None
    assert first == told(objects, request_of)
    assert datetime.fromisoformat(first["finished_at"]) >= before.replace(microsecond=0)
    gone = begun("Failed", ended(143, "Error"))
    assert close(objects, gone, str) is None, "it is told"
    assert told(objects, request_of) == first
    again = close(objects, gone, str, again=first["sequence"])
    assert again is not None
    assert (again["finished_at"][:19], again["resources"]["pod_s"]) == (ENDED[:19], 70)
    assert len(again["pods"]) == 1


def test_a_pod_that_its_runner_asked_for_and_did_not_see(begun: Any, objects: Objects, request_of: RunRequest) -> None:
    close(objects, begun("Failed", ended(1, "Error"), seen=False), str)
    used = told(objects, request_of)["resources"]
    assert (used["pods"], used["pod_s"], used["queue_s"]) == (1, 70, 20)


@pytest.mark.parametrize(("status", "error", "wasted_s"), [("done", "", 0), ("rejected", "RejectedRows", 70)])
def test_its_payloads_own_word_counts(
    begun: Any, objects: Objects, request_of: RunRequest, status: str, error: str, wasted_s: int
) -> None:
    own = {
        "format": RECORD_FORMAT,
        "attempt": request_of.call.attempt,
        "status": status,
        "error": {"class": error} if error else None,
    }
    objects.publish(attempt_record_path(request_of.call.attempt), json.dumps(own).encode())
    close(objects, begun("Failed", ended(137, "OOMKilled")), str)
    found = told(objects, request_of)
    assert (found["status"], found["error"]) == (status, error)
    assert (usage.spent(found).seconds, usage.spent(found).wasted_s) == (70, wasted_s)


def test_no_secret_is_in_it(begun: Any, objects: Objects, request_of: RunRequest) -> None:
    pod = begun("Failed", UNDATED, reason="Evicted", message="by open/sesame-4711")
    close(objects, pod, lambda text: text.replace("open/sesame-4711", "***"))
    assert told(objects, request_of)["pods"][0]["message"] == "by ***"


def test_where_nothing_was_told_before_nothing_is(begun: Any, objects: Objects, request_of: RunRequest) -> None:
    pod = begun()
    objects.remove(usage.usage_path(request_of.call.run, request_of.call.attempt))
    assert close(objects, pod, str) is None
    pod["metadata"]["annotations"].pop(names.ATTEMPT_IN_FULL)
    assert close(objects, pod, str) is None


def test_a_pod_that_cannot_be_read_is_named(begun: Any, objects: Objects, request_of: RunRequest) -> None:
    pod = begun()
    pod["metadata"]["creationTimestamp"] = "yesterday"
    with pytest.raises(ContractBroken, match=f"what attempt {request_of.call.attempt} took cannot be told"):
        close(objects, pod, str)
    assert told(objects, request_of)["status"] == usage.OPEN
