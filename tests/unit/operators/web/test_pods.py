"""A task's pods: why they wait, where they ran, what they took, and to whom that is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from airloop import usage
from airloop.config import Config
from airloop.contract import RunInfo, attempt_id
from airloop.objects import open_objects

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]
FEBRUARY = {"dag_id": "delays", "run_id": "backfill__2013-02", "task_id": "train"}


def _text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_attempts_and_their_pods_are_told_the_newest_first(client: Client) -> None:
    page = client("ann").get("/airloop/pods", params=FEBRUARY)
    assert page.status_code == 200
    text = _text(page.text)
    assert "Pods of train Done" in text
    assert text.index("Try 2") < text.index("Try 1")
    assert "size gpu, pool gpu" in text
    assert "4 processors, 16 GiB, 1 nvidia.com/gpu" in text
    assert "pod seconds 10 min 00 s" in text
    assert "phase Succeeded · Completed · exit code 0" in text
    assert "airloop@sha256:" + "ab" * 32 in text
    assert "PodLost" in text
    assert "phase Failed · Evicted" in text
    assert "The node was low on resource: memory." in text
    assert "FailedScheduling (7 times): 0/3 nodes are available" in text
    assert 'http-equiv="refresh"' not in page.text


def test_a_pod_that_waits_says_why_and_is_looked_at_again(client: Client) -> None:
    page = client("ann").get("/airloop/pods", params=FEBRUARY | {"run_id": "backfill__2013-03"}).text
    assert "Under way" in page
    assert "a node: 0/3 nodes are available: 3 Insufficient &lt;b&gt;gpu" in page
    assert '<meta http-equiv="refresh" content="10">' in page


def test_a_task_of_which_nothing_is_known_says_so(client: Client) -> None:
    page = client("ann").get("/airloop/pods", params=FEBRUARY | {"task_id": "gate", "map_index": 3})
    assert page.status_code == 200
    assert "No pod of this task is known yet" in page.text
    assert "Pods of gate[3]" in page.text


@pytest.mark.parametrize("missing", ["dag_id", "run_id", "task_id"])
def test_a_name_that_is_missing_is_refused(client: Client, missing: str) -> None:
    given = {name: value for name, value in FEBRUARY.items() if name != missing}
    assert client("ann").get("/airloop/pods", params=given).status_code == 422
    assert client("ann").get("/airloop/pods", params=FEBRUARY | {missing: "x" * 3000}).status_code == 404


def test_only_who_may_read_the_dag_sees_them(client: Client, loops_config: Config) -> None:
    secret = {"dag_id": "secret", "run_id": "manual__1", "task_id": "planes"}
    assert client("bob").get("/airloop/pods", params=secret).status_code == 403
    assert client("ann").get("/airloop/pods", params=secret).status_code == 200
    assert client().get("/airloop/pods", params=FEBRUARY, headers={"accept": "text/html"}).status_code == 302
    name = usage.usage_path(RunInfo("delays", "backfill__2013-02", "train"), "aaaa0000")
    assert open_objects(loops_config.artifacts).read(name)
    assert client("bob").get(f"/airloop/artifacts/{name}").status_code == 200


def test_a_manifests_page_says_what_its_making_took(client: Client) -> None:
    ann = client("ann")
    attempt = attempt_id(RunInfo("delays", "backfill__2013-02", "train"), 18)
    text = _text(ann.get("/airloop/manifest", params={"attempt": attempt}).text)
    assert "ran as size gpu, pool gpu" in text
    assert "pod seconds 10 min 00 s" in text
    assert "attempts of the task 2" in text
    assert "of them in vain 4 min 00 s" in text
    gate = _text(
        ann.get(
            "/airloop/manifest", params={"attempt": attempt_id(RunInfo("delays", "backfill__2013-02", "gate"), 19)}
        ).text
    )
    assert "ran as" not in gate, "nobody told"
