"""What is told of pods that are gone, from states as clusters tell them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airloop_operators.runners.pod.diary import EVENTS, IN_FULL, PODS, TEXT, Diary

T0 = datetime(2013, 1, 1, tzinfo=UTC)
ABOUT = {"name": "train-0123", "namespace": "loops", "image": "airloop:1"}


def at(second: float) -> str:
    return (T0 + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.second = 0.0

    def __call__(self) -> datetime:
        return T0 + timedelta(seconds=self.second)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def diary(clock: Clock) -> Diary:
    return Diary(ABOUT, lambda text: text.replace("sesame", "***"), now=clock)


def pod(
    uid: str = "u", phase: str = "Pending", state: dict[str, Any] | None = None, *, scheduled: float | None = None,
    node: str = "", made: float = 2, **status: Any,
) -> dict[str, Any]:  # fmt: skip
    conditions = []
    if scheduled is not None:
        conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": at(scheduled)})
    statuses = [{"name": "step", "state": state, "imageID": "airloop@sha256:ab" if node else ""}] if state else []
    return {
        "metadata": {"name": "train-0123", "uid": uid, "creationTimestamp": at(made)},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": statuses, **status},
    }


def event(reason: str, message: str, second: float = 0, **more: Any) -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at(second), **more}


RUNNING = {"running": {"startedAt": at(30)}}


def ended(second: float = 90, code: int = 0) -> dict[str, Any]:
    about = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "startedAt": at(30),
        "finishedAt": at(second),
    }
    return {"terminated": about}


def test_a_pod_holds_its_node_from_the_day_it_has_it(diary: Diary, clock: Clock) -> None:
    diary.asked()
    clock.second = 5
    diary.seen(pod())
    diary.waits("node", "0/3 nodes are available")
    diary.waits("node", "0/3 nodes are available")
    clock.second = 25
    assert diary.totals() == {"pods": 1, "pod_s": 0.0, "lost_s": 0, "queue_s": 25.0}
    news = diary.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="node-1"))
    assert news == ["has node node-1", "has image airloop@sha256:ab"]
    clock.second = 50
    assert diary.totals() == {"pods": 1, "pod_s": 30.0, "lost_s": 0, "queue_s": 20.0}
    diary.seen(pod(phase="Succeeded", state=ended(), scheduled=20, node="node-1"), over=True)
    clock.second = 500
    assert diary.totals() == {"pods": 1, "pod_s": 70.0, "lost_s": 0, "queue_s": 20.0}
    (entry,) = diary.entries()
    assert entry | ABOUT == entry
    assert (entry["phase"], entry["exit_code"], entry["reason"]) == ("Succeeded", 0, "Completed")
    assert [w["reason"] for w in entry["waits"]] == ["0/3 nodes are available"]
    assert (entry["asked_at"], entry["ended_at"]) == ("2013-01-01T00:00:00.000+00:00", "2013-01-01T00:01:30.000+00:00")


def test_an_end_that_no_node_dates_is_when_it_was_seen(diary: Diary, clock: Clock) -> None:
    diary.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="node-1"))
    clock.second = 60
    diary.seen(pod(phase="Failed", scheduled=20, node="node-1", reason="Evicted", message="low on disk"), over=True)
    (entry,) = diary.entries()
    assert (entry["reason"], entry["message"], entry["held_s"]) == ("Evicted", "low on disk", 40.0)


def test_pods_that_were_lost_before_the_last_were_in_vain(diary: Diary, clock: Clock) -> None:
    for number in range(3):
        clock.second = 100 * number
        diary.asked()
        diary.seen(pod(f"u{number}", scheduled=100 * number + 10, node="node-1", made=100 * number))
        clock.second += 40
        diary.seen(pod(f"u{number}", scheduled=100 * number + 10, node="node-1", made=100 * number), over=True)
    assert diary.totals() == {"pods": 3, "pod_s": 90.0, "lost_s": 60.0, "queue_s": 30.0}


def test_a_pod_is_counted_that_a_lost_runner_asked_for(clock: Clock) -> None:
    asked = {**ABOUT, "phase": "Asked for", "pods": 0, "asked_at": "2013-01-01T00:00:00.000+00:00", "over": False}
    diary = Diary(ABOUT, str, before=[asked], now=clock)
    clock.second = 50
    diary.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="node-1"))
    assert diary.totals() == {"pods": 1, "pod_s": 30.0, "lost_s": 0, "queue_s": 20.0}


def test_a_quota_is_waited_for_without_a_pod(diary: Diary, clock: Clock) -> None:
    diary.asked()
    diary.waits("quota", "exceeded quota: team")
    clock.second = 9
    diary.end()
    clock.second = 99
    assert diary.totals() == {"pods": 0, "pod_s": 0, "lost_s": 0, "queue_s": 9.0}
    assert diary.entries()[0]["waits"][0]["for"] == "quota"


def test_why_it_waits_goes_when_it_runs_and_no_receipt_is_shown(diary: Diary) -> None:
    diary.seen(pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}, scheduled=1, node="n"))
    assert (diary.entries()[0]["reason"], diary.entries()[0]["message"]) == ("ImagePullBackOff", "Back-off")
    diary.seen(pod(phase="Running", state=RUNNING, scheduled=1, node="n"))
    assert not {"reason", "message"} & diary.entries()[0].keys()
    state = ended()
    state["terminated"]["message"] = '{"version":1,"attempt":"0123"}'
    diary.seen(pod(phase="Succeeded", state=state, scheduled=1, node="n"), over=True)
    assert "message" not in diary.entries()[0]


def test_events_are_told_once_and_masked(diary: Diary) -> None:
    events = [event("Failed", "no sesame here", 3, type="Warning"), event("Pulled", "image is there", 1)]
    assert diary.seen(pod(), events) == ["Failed: no *** here", "Pulled: image is there"]
    assert diary.seen(pod(), [event("Failed", "no sesame here", 9, count=4)]) == []
    found = diary.entries()[0]["events"]
    assert [(e["reason"], e["count"]) for e in found] == [("Pulled", 1), ("Failed", 4)]
    assert "sesame" not in json.dumps(diary.entries())
    many = [event("Pulling", str(n), n) for n in range(3 * EVENTS)]
    assert len(diary.seen(pod(), many)) == 3 * EVENTS
    assert diary.seen(pod(), many) == []


def test_it_is_bounded_whatever_a_cluster_says(diary: Diary, clock: Clock) -> None:
    for number in range(3 * PODS):
        clock.second = 10 * number
        diary.asked()
        for n in range(50):
            diary.waits("node", f"{n} " + "x" * 5000)
        diary.seen(
            pod(f"u{number}", scheduled=10 * number + 1, made=10 * number, node="n" * 5000, message="y" * 5000),
            [event("Failed", f"{n} " + "z" * 5000, n) for n in range(100)],
        )
    clock.second += 10
    diary.end()
    found = diary.entries()
    assert len(found) == PODS
    assert sum("events" in entry for entry in found) == IN_FULL
    assert len(found[-1]["events"]) == len(found[-1]["waits"]) == EVENTS
    assert max(len(e["message"]) for e in found[-1]["events"]) == TEXT
    assert len(json.dumps(found)) < 60_000
    totals = diary.totals()
    assert totals["pods"] == 3 * PODS
    assert totals["pod_s"] == 9 * 3 * PODS
    assert totals["queue_s"] == 1 * 3 * PODS


class TestGoesOn:
    """With what a runner wrote that was lost."""

    def test_its_pod_is_the_same(self, diary: Diary, clock: Clock) -> None:
        diary.asked()
        clock.second = 40
        diary.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="n"), [event("Scheduled", "on n")])
        later = Clock()
        later.second = 80
        second = Diary(ABOUT, str, before=json.loads(json.dumps(diary.entries())), now=later)
        second.asked()
        assert (
            second.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="n"), [event("Scheduled", "on n")]) == []
        )
        assert second.totals() == {"pods": 1, "pod_s": 60.0, "lost_s": 0, "queue_s": 20.0}
        second.seen(pod(phase="Succeeded", state=ended(), scheduled=20, node="n"), over=True)
        assert second.totals()["pod_s"] == 70.0
        assert len(second.entries()) == 1

    def test_another_pod_comes_after(self, diary: Diary, clock: Clock) -> None:
        clock.second = 40
        diary.seen(pod(phase="Running", state=RUNNING, scheduled=20, node="n"))
        later = Clock()
        later.second = 1000
        second = Diary(ABOUT, str, before=diary.entries(), now=later)
        second.asked()
        second.seen(pod("another", scheduled=1000, node="n", made=1000))
        later.second = 1010
        assert second.totals() == {"pods": 2, "pod_s": 30.0, "lost_s": 20.0, "queue_s": 18.0}

    def test_what_it_asked_for_is_asked_for_on(self, diary: Diary, clock: Clock) -> None:
        diary.asked()
        diary.waits("quota", "exceeded")
        later = Clock()
        later.second = 300
        second = Diary(ABOUT, str, before=diary.entries(), now=later)
        second.asked()
        second.seen(pod(scheduled=310, node="n", made=305))
        later.second = 320
        assert second.totals() == {"pods": 1, "pod_s": 10.0, "lost_s": 0, "queue_s": 310.0}
        assert len(second.entries()) == 1
