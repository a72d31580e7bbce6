"""A step's page: why it was reused, what it was made of, why it failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airloop.config import Config
from tests.loop_world import World

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]


def _tasks(client: TestClient, run: str) -> dict[str, dict[str, Any]]:
    runs = client.get("/airloop/api/loops/delays").json()["runs"]
    return {t["name"]: t for r in runs if r["run_id"] == run for t in r["tasks"]}


def test_a_gate_says_its_reasons_and_links_what_it_was_made_of(client: Client) -> None:
    ann = client("ann")
    tasks = _tasks(ann, "backfill__2013-02")
    page = ann.get("/airloop/manifest", params={"path": tasks["gate"]["manifest"], "attempt": tasks["gate"]["attempt"]})
    assert page.status_code == 200
    assert "February 2013" in page.text
    assert "that may be chance" in page.text
    made_by = f'attempt={tasks["train"]["attempt"]}">train</a>'
    assert made_by in page.text
    assert f'href="/airloop/artifacts/{tasks["gate"]["manifest"]}"' in page.text


def test_a_reused_step_says_so_and_by_whom_it_was_made(client: Client) -> None:
    ann = client("ann")
    task = _tasks(ann, "backfill__2013-03")["planes"]
    page = ann.get("/airloop/manifest", params={"path": task["manifest"], "attempt": task["attempt"]}).text
    assert "Reused, not done again." in page
    assert "/airloop/loops/secret/run?run_id=manual__1" in page
    assert "raw.planes@7" in page


def test_a_failed_attempt_says_why(client: Client) -> None:
    ann = client("ann")
    task = _tasks(ann, "backfill__2013-03")["validate"]
    record = f"attempts/{task['attempt'][:2]}/{task['attempt']}.json"
    for given in ({"attempt": task["attempt"]}, {"path": record}, {"path": record, "attempt": task["attempt"]}):
        page = ann.get("/airloop/manifest", params=given)
        assert page.status_code == 200, given
        assert "Rejected" in page.text
        assert "214 of 1,000 rows break &lt;b&gt;between" in page.text


def test_arguments_are_text_whatever_they_hold(client: Client) -> None:
    page = client("ann").get("/airloop/manifest?path=runs/secret/manual__1/hidden.json").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("", 400),
        ("path=reports/delays/index.html", 400),
        ("path=../manifest.json", 400),
        ("attempt=../../x", 400),
        ("path=steps/x/yy/zz/manifest.json", 404),
        ("attempt=0123456789abcdef", 404),
        ("path=runs/delays/none/x.json", 404),
        ("path=attempts/none", 404),
    ],
)
def test_an_address_that_is_no_manifest_is_refused_in_words(client: Client, given: str, status: int) -> None:
    answer = client("ann").get(f"/airloop/manifest?{given}")
    assert answer.status_code == status
    assert 'role="alert"' in answer.text


def test_a_manifest_of_a_newer_airloop_is_refused_in_words(client: Client, config: Config) -> None:
    world = World(config)
    name = world.task("delays", "newer", "extract", "extract")
    world.store.publish_bytes(name, json.dumps(json.loads(world.store.read_bytes(name)) | {"format": 2}).encode())
    answer = client("ann", config).get(f"/airloop/manifest?path={name}")
    assert answer.status_code == 500
    assert "is of format 2, this airloop knows format 1; update airloop here" in answer.text
