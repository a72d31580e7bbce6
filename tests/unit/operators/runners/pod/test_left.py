"""When a deferred task has to be woken up, by the state of its pod."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from airloop_operators.runners.pod.left import Left, why_wake
from airloop_operators.runners.pod.log import Mark

NOW = 1_000_000.0
LEFT = Left(
    connection="kubernetes_default", namespace="loops", pod="train-0", uid="u", began_at=NOW, made_at=NOW,
    schedule_s=900, start_s=600, api_s=300, grace_s=10,
)  # fmt: skip
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2013-01-01T00:01:40Z"}


def pod(phase: str = "Running", state: dict[str, Any] | None = None, **about: Any) -> dict[str, Any]:
    status = {"phase": phase, "containerStatuses": [{"name": "step", "state": state}] if state else []}
    metadata = {"name": "train-0", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2013-01-01T00:00:00Z"}
    return {
        "metadata": metadata | about.pop("metadata", {}), "spec": about.pop("spec", {}), "status": status | about,
    }  # fmt: skip


RUNS: dict[str, Any] = {"running": {}}


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (None, "is gone"),
        (pod(state=RUNS, metadata={"uid": "another"}), "is gone"),
        (pod(state=RUNS), ""),
        (pod(), ""),
        (pod("Succeeded"), "has ended"),
        (pod("Failed", reason="Evicted"), "has ended"),
        (pod(state={"terminated": {"exitCode": 0}}), "has ended"),
        (pod(state=RUNS, metadata={"deletionTimestamp": "2013-01-01T00:00:00Z"}), "is being deleted"),
        (pod("Pending", {"waiting": {"reason": "InvalidImageName"}}, conditions=[SCHEDULED]), "cannot be started"),
        (pod("Pending", {"waiting": {"reason": "ErrImagePull"}}, conditions=[SCHEDULED]), ""),
    ],
)
def test_by_what_is_seen(there: Any, why: str) -> None:
    assert why_wake(LEFT, there, NOW)[0] == why


@pytest.mark.parametrize(
    ("there", "due", "why"),
    [
        (pod(state=RUNS), math.inf, ""),
        (pod("Pending"), NOW + 900, "has no node yet"),
        (pod("Pending", spec={"nodeName": "n"}, conditions=[SCHEDULED]), NOW + 700, "has not started yet"),
        (pod("Pending", spec={"nodeName": "n"}), NOW + 1500, "has not started yet"),
    ],
)
def test_by_what_is_due(there: Any, due: float, why: str) -> None:
    assert why_wake(LEFT, there, NOW) == ("", due)
    if why:
        assert why_wake(LEFT, there, due)[0] == why


def test_by_the_time_of_its_task_and_its_log() -> None:
    left = LEFT.resting(60, NOW)
    assert why_wake(left, pod(state=RUNS), NOW) == ("", NOW + 60)
    late = Left.of({**left.as_json(), "until": NOW + 30})
    assert why_wake(late, pod(state=RUNS), NOW) == ("", NOW + 30)
    assert why_wake(late, pod(state=RUNS), NOW + 30)[0] == "has no more time"
    assert LEFT.resting(math.inf, NOW).wake_at is None


def test_a_quota_is_asked_for_again_less_and_less_often_but_in_time() -> None:
    left, waits = LEFT, []
    for _ in range(8):
        left = left.kept_out(NOW)
        waits.append((left.wake_at or 0) - NOW)
    assert waits == [15, 30, 60, 120, 240, 300, 300, 300]
    assert why_wake(left, None, NOW)[0] == "", "there is no pod to miss"
    assert LEFT.kept_out(NOW + 890).wake_at == NOW + 900


def test_it_survives_a_database() -> None:
    left = Left.of({**LEFT.as_json(), "log": [12, 3]})
    again = Left.of(json.loads(json.dumps(left.as_json())))
    assert again == left
    assert again.log == Mark(12, 3)
    assert {f.name for f in fields(Left)} == set(LEFT.as_json())
