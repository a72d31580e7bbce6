"""What runs and model versions took: each attempt once, and nothing that nobody knows."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from airloop import usage
from airloop.contract import Receipt, RunInfo
from airloop.errors import NotFound
from airloop.objects import Objects
from airloop.provenance.cost import (
    Sum,
    added_up,
    attempts_of_all,
    attempts_of_dag,
    attempts_of_model,
    attempts_of_run,
    name_by,
    versions_of,
)
from airloop.provenance.lineage import Graph
from airloop.provenance.prices import parse_prices
from airloop.records import attempt_record, publish
from airloop.usage import Spent
from airloop.warehouse.artifacts import ArtifactStore
from tests.cost_world import told, training_costs
from tests.lineage_world import LineageWorld

RUN = RunInfo("loop", "r/1", "t")
AT = "2013-01-01T23:30:00.000-05:00"


def itself(objects: Objects, run: RunInfo, attempt: str, status: str = "done", started_at: str = AT) -> None:
    """What a payload tells of its attempt."""
    from dataclasses import asdict

    document = attempt_record(
        Receipt(attempt, status),
        {
            "step": "train", "run": asdict(run), "started_at": started_at, "finished_at": "2013-01-02T05:00:00+00:00",
            "seconds": {"run": 5.0}, "resources": {"cpu_s": 2.0, "peak_rss_bytes": 2**30},
        },
    )  # fmt: skip
    publish(objects, document, json.dumps(document).encode())


def test_a_run_took_all_of_its_attempts(objects: Objects) -> None:
    told(objects, RUN, "aaaa0000", AT, "try_again", pod_s=100.0)
    told(objects, RUN, "aaaa0001", AT.replace("23:30", "23:40"), pod_s=50.0, lost_s=20.0, pods=2)
    itself(objects, RUN, "aaaa0001")
    itself(objects, replace(RUN, task_id="other"), "bbbb0000", "reused")
    told(objects, replace(RUN, run_id="r/2"), "cccc0000", AT)
    store = ArtifactStore(objects)
    found = attempts_of_run(store, "loop", "r/1")
    assert sorted(one.attempt for one in found) == ["aaaa0000", "aaaa0001", "bbbb0000"]
    _, total = added_up(found, name_by("step"), None)
    assert (total.attempts, total.unknown, total.pods) == (3, 0, 3)
    assert (total.seconds, total.wasted_s, total.queue_s) == (155, 120, 120)
    assert len(attempts_of_dag(store, "loop")) == len(attempts_of_all(store)) == 4
    by_pool, _ = added_up(found, name_by("pool"), None)
    assert list(by_pool) == ["gpu", "not told"]
    assert by_pool["not told"].hours["cpu"] == Decimal(2) / 3600
    assert list(added_up(found, name_by("day"), None)[0]) == ["2013-01-02"]
    assert list(added_up(found, name_by("run"), None)[0]) == ["loop/r/1"]


def test_a_try_of_which_there_is_no_record_is_unknown(objects: Objects) -> None:
    told(objects, replace(RUN, try_number=4), "aaaa0000", AT)
    told(objects, replace(RUN, try_number=2), "aaaa0001", AT, "failed")
    _, total = added_up(attempts_of_run(ArtifactStore(objects), "loop", "r/1"), name_by("step"), None)
    assert (total.attempts, total.unknown, total.seconds) == (4, 2, 7200)


def test_one_whose_runner_was_lost_is_unknown_unless_its_payload_told(objects: Objects) -> None:
    told(objects, RUN, "aaaa0000", AT, usage.OPEN)
    store = ArtifactStore(objects)
    (one,) = attempts_of_run(store, "loop", "r/1")
    assert (one.status, one.seconds) == (usage.OPEN, None)
    itself(objects, RUN, "aaaa0000")
    (one,) = attempts_of_run(store, "loop", "r/1")
    assert (one.status, one.seconds) == ("done", 1800)


def test_money_is_of_what_is_known_and_priced() -> None:
    def spent(**about: Any) -> Spent:
        usual: dict[str, Any] = {
            "attempt": "aaaa0000", "step": "s", "run": RUN, "status": "done", "started_at": AT, "pool": "gpu",
            "seconds": Decimal(3600), "amounts": {"cpu": Decimal(3600)}, "lost_s": Decimal(900),
        }  # fmt: skip
        return Spent(**{**usual, **about})

    prices = parse_prices({"currency": "EUR", "pools": {"gpu": {"cpu_hour": 0.2}}}, origin="p")
    total = Sum()
    for one in (
        spent(),
        spent(pool="other"),
        spent(seconds=None),
        spent(seconds=Decimal(0), amounts={}, lost_s=Decimal(0)),
    ):
        total.add(one, prices)
    found = total.as_json(prices)
    assert (found["cost"], found["wasted_cost"], found["currency"]) == ("0.200000", "0.050000", "EUR")
    assert (found["attempts"], found["unknown"], found["unpriced"]) == (4, 1, 2)
    assert found["wasted_share"] == 0.25
    nothing = Sum()
    nothing.add(spent(seconds=None), prices)
    found = nothing.as_json(prices)
    assert (found["seconds"], found["wasted_s"], found["cost"]) == (None, None, None)
    assert "cost" not in nothing.as_json(None)


class TestModels:
    """By the lineage of a loop that ran twice."""

    @pytest.fixture
    def maker(self, lineage_world: LineageWorld) -> str:
        return training_costs(lineage_world)

    @pytest.fixture
    def graph(self, lineage_world: LineageWorld, maker: str) -> Graph:
        return Graph.open(lineage_world.config)

    def test_a_version_took_what_everything_in_its_lineage_took(self, graph: Graph, maker: str) -> None:
        found = attempts_of_model(graph, "model:/small/1")
        training = [one for one in found if one.run.task_id == "train"]
        assert [one.attempt for one in training] == ["aaaa0001", "aaaa0002", maker]
        groups, total = added_up(found, name_by("step"), None)
        assert groups["train"].seconds == 900 + 1800 + 3600
        assert groups["train"].wasted_s == 900 + 1800 + 360
        assert groups["train"].hours["nvidia.com/gpu"] == Decimal(6300) / 3600
        assert {"extract", "validate", "sql", "build_training_set", "evaluate", "register"} <= groups.keys()
        assert "batch_score" not in groups, "nobody needed its predictions"
        assert total.unknown == 0
        assert {one.run.run_id for one in found} == {"1"}

    def test_what_two_versions_rest_on_is_in_both_and_once_in_all(self, graph: Graph) -> None:
        versions = versions_of(graph, "small")
        assert versions == ["model:/small/1", "model:/small/2"]
        first, second = ({one.name for one in attempts_of_model(graph, version)} for version in versions)
        assert first & second, "the second one's tables build on the first one's"
        assert first - second
        everything = {one.name: one for version in versions for one in attempts_of_model(graph, version)}
        in_both = {
            name: [v for v, names in zip("12", (first, second), strict=True) if name in names] for name in everything
        }
        groups, total = added_up(everything.values(), lambda one: in_both[one.name], None)
        assert total.attempts == len(first | second)
        assert groups["1"].attempts + groups["2"].attempts > total.attempts

    def test_versions_that_are_not_there_are_named(self, graph: Graph) -> None:
        with pytest.raises(NotFound, match="no version of large is registered; there is small"):
            versions_of(graph, "large")
        with pytest.raises(NotFound, match=r"no version of small/9 is registered; there is small/1, small/2"):
            versions_of(graph, "small", 9)
