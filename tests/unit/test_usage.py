"""What attempts took: where it lies, and what it says of money's worth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

import pytest

from airloop import usage
from airloop.contract import RunInfo
from airloop.errors import ContractBroken
from airloop.objects import Objects
from airloop.usage import OPEN, Spent, document, end, of_run, of_task, publish, read, spent, spent_by_itself, usage_path

RUN = RunInfo("loop", "run/1", "t")
OURS, OTHER = "aaaa0000", "bbbb0000"
AT = "2013-01-01T12:00:00.000+00:00"
POD: dict[str, Any] = {
    "runner": "pod",
    "resources": {"pool": "gpu", "size": "large", "pods": 2, "pod_s": 100.5, "lost_s": 40, "queue_s": 7, "wall_s": 999},
    "reserved": {"cpu": 2.0, "memory": 4 * 2**30, "example.com/gpu": 1},
}
LOCAL: dict[str, Any] = {
    "runner": "local",
    "resources": {"wall_s": 10.0, "cpu_s": 4.0, "peak_memory_bytes": 2**29},
}


def told(attempt: str = OURS, run: RunInfo = RUN, **parts: Any) -> dict[str, Any]:
    return document(**{"attempt": attempt, "step": "s", "run": run, "started_at": AT, **POD, **parts})


def test_a_task_has_all_its_attempts_in_one_folder(objects: Objects) -> None:
    publish(objects, told(OTHER, replace(RUN, try_number=2), started_at="2013-01-01T13:00:00.000+00:00"))
    publish(objects, told())
    publish(objects, told("cccc0000", replace(RUN, map_index=3)))
    publish(objects, told("dddd0000", replace(RUN, run_id="run/2")))
    assert [one["attempt"] for one in of_task(objects, RUN)] == [OURS, OTHER]
    assert sorted(one["attempt"] for one in of_run(objects, "loop", "run/1")) == [OURS, OTHER, "cccc0000"]
    assert read(objects, RUN, OURS) == told() | {"sequence": 0}
    assert read(objects, RUN, "eeee0000") is None
    assert of_run(objects, "loop", "run/3") == []


def test_it_lies_beside_the_record_of_its_task_whatever_that_is_called() -> None:
    assert usage_path(RunInfo("a loop", "r", "t", 4), OURS) == f"usage/a loop/r/t.4/{OURS}.json"
    long = RunInfo(*(["日" * 250] * 3), 12345)
    assert all(len(part.encode()) <= 255 for part in usage_path(long, OURS).split("/"))


def test_an_older_version_never_takes_the_place_of_a_newer(objects: Objects) -> None:
    publish(objects, told(sequence=3, status="done"))
    publish(objects, told(sequence=2))
    publish(objects, told(sequence=3))
    assert (read(objects, RUN, OURS) or {})["status"] == "done"
    publish(objects, told(sequence=1, status="failed"), last=True)
    found = read(objects, RUN, OURS) or {}
    assert (found["status"], found["sequence"]) == ("failed", 4)


def test_an_end_is_told_for_a_runner_that_did_not(objects: Objects) -> None:
    def by_another(known: Any) -> dict[str, Any]:
        return {"status": "try_again", "resources": {**known["resources"], "pod_s": known["sequence"]}}

    publish(objects, told(sequence=3))
    found = end(objects, RUN, OURS, by_another)
    assert (
        found
        == read(objects, RUN, OURS)
        == told(sequence=4, status="try_again", resources={**POD["resources"], "pod_s": 3})
    )
    assert end(objects, RUN, OURS, by_another) is None, "it is told"
    more = end(objects, RUN, OURS, by_another, again=4) or {}
    assert (more["sequence"], more["resources"]["pod_s"]) == (5, 4)
    # Its runner lives after all.
    publish(objects, told(sequence=4, status="done"), last=True)
    assert end(objects, RUN, OURS, by_another, again=5) is None
    assert (read(objects, RUN, OURS) or {})["status"] == "done"


def test_of_what_nobody_began_no_end_is_told(objects: Objects) -> None:
    assert end(objects, RUN, OURS, lambda known: {"status": "done"}) is None
    assert end(objects, RunInfo(), OURS, lambda known: {"status": "done"}) is None
    assert objects.folders("usage") == []
    publish(objects, told())
    with pytest.raises(ContractBroken, match=f"what attempt {OURS} took cannot be told: KeyError"):
        end(objects, RUN, OURS, lambda known: {"status": known["nothing"]})
    assert (read(objects, RUN, OURS) or {})["status"] == OPEN


def test_an_attempt_of_no_dag_has_none(objects: Objects) -> None:
    publish(objects, told(run=RunInfo()))
    assert list(objects.listed("usage")) == []
    assert read(objects, RunInfo(), OURS) is None
    assert of_task(objects, RunInfo()) == []


def test_one_that_cannot_be_read_is_named(objects: Objects) -> None:
    objects.publish(usage_path(RUN, OURS), b"{")
    with pytest.raises(ContractBroken, match=rf"{OURS}.json cannot be read.*remove the file"):
        of_task(objects, RUN)
    objects.publish(usage_path(RUN, OURS), json.dumps(told() | {"format": 2}).encode())
    for ask in (lambda: of_task(objects, RUN), lambda: read(objects, RUN, OURS)):
        with pytest.raises(ContractBroken, match=rf"{OURS}.json is of format 2.*; update airloop"):
            ask()
    objects.publish(usage_path(RUN, OURS), b"{")
    publish(objects, told())
    assert read(objects, RUN, OURS) is not None


def test_a_pod_costs_what_it_holds() -> None:
    found = spent(told(status="done"))
    assert found.amounts == {"cpu": Decimal("201.00"), "memory": Decimal(402), "example.com/gpu": Decimal("100.5")}
    assert (found.pool, found.size, found.pods, found.queue_s) == ("gpu", "large", 2, 7)
    assert spent(told(status="done", resources={**POD["resources"], "pool": ""})).pool == "default"


def test_a_local_run_costs_what_it_used() -> None:
    found = spent(told(status="done", reserved={}, **LOCAL))
    assert (found.pool, found.seconds, found.queue_s) == ("local", 10, None)
    assert found.amounts == {"cpu": 4, "memory": 5}
    broken_off = spent(told(status="failed", reserved={}, runner="local", resources={"wall_s": 3}))
    assert (broken_off.seconds, broken_off.amounts) == (3, None)


@pytest.mark.parametrize(
    ("status", "wasted"),
    [
        ("done", "40"), ("reused", "40"), ("skipped", "40"), ("failed", "100.5"), ("rejected", "100.5"),
        ("try_again", "100.5"), (OPEN, "40"),
    ],
)  # fmt: skip
def test_what_failed_or_was_lost_was_in_vain(status: str, wasted: str) -> None:
    assert spent(told(status=status)).wasted_s == Decimal(wasted)


def test_of_an_attempt_whose_end_nobody_told_nothing_is_known() -> None:
    found = spent(told())
    assert (found.status, found.seconds, found.amounts) == (OPEN, None, None)
    assert spent(told(resources={}, reserved={})).wasted_s is None


def test_its_payload_may_have_told() -> None:
    own = {"status": "done", "started_at": "2013-01-01T12:01:00+00:00", "finished_at": "2013-01-01T12:03:00.500+00:00"}
    pods = [{"scheduled_at": "2013-01-01T12:00:30+00:00"}]
    found = spent(told(pods=pods, resources={"pool": "gpu", "lost_s": 9}), own)
    assert (found.status, found.seconds, found.wasted_s) == ("done", Decimal("159.5"), 9)
    assert found.amounts is not None
    assert found.amounts["cpu"] == Decimal(319)


def test_the_payloads_own_record_stands_in() -> None:
    record = {
        "attempt": OURS, "step": "s", "run": asdict(RUN), "status": "failed", "started_at": AT,
        "seconds": {"resolve": 0.5, "run": 1.5}, "resources": {"cpu_s": 1.25, "peak_rss_bytes": 2**30},
    }  # fmt: skip
    found = spent_by_itself(record)
    assert found == Spent(
        attempt=OURS, step="s", run=RUN, status="failed", started_at=AT, seconds=Decimal("2.0"),
        amounts={"cpu": Decimal("1.25"), "memory": Decimal("2.0")},
    )  # fmt: skip
    assert found.wasted_s == 2
    assert spent_by_itself({**record, "seconds": {}, "resources": {}}).seconds is None
    with pytest.raises(ContractBroken, match="cannot be read"):
        spent_by_itself({"attempt": OURS})


def test_what_is_missing_in_it_is_said() -> None:
    wanted = told()
    del wanted["resources"]
    with pytest.raises(ContractBroken, match=f"what attempt {OURS} took cannot be read"):
        spent(wanted)
    assert json.loads(json.dumps(told()))["run"]["task_id"] == "t"
    assert usage.GOOD.isdisjoint({"failed", "rejected", "try_again", OPEN})
