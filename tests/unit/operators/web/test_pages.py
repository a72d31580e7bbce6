"""What the pages and the JSON say of two loops, of none, and of a state that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airloop.config import Config
from airloop.report.words import NOTHING
from airloop_operators.web import pages
from airloop_operators.web.data import Reader
from tests.loop_world import World

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]


def _text(html: str) -> str:
    """What a person reads, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(head|script)\b.*?</\1>", "", html, flags=re.S)).split())


def test_the_list_says_what_is_live_what_was_decided_and_how_things_stand(client: Client) -> None:
    text = _text(client("bob").get("/airloop/").text)
    assert "delays Failed" in text
    assert "Champion delay version 1 ROC AUC 0.6800, since 21 November 2026" in text
    assert "Last decision delay version 1 stays champion" in text
    assert "that may be chance" in text
    # February's last moment in New York belongs to March in UTC.
    assert "Data until 1 March 2013" in text
    assert "Drift 1 of 2 features weather temp, February 2013" in text


def test_the_list_as_json(client: Client) -> None:
    delays, secret = client("ann").get("/airloop/api/loops").json()["loops"]
    assert delays["champions"][0]["version"] == 1
    assert delays["decision"]["kind"] == "keep"
    assert delays["data_until"] == "2013-03-01T05:00:00+00:00"
    assert delays["last_run"]["state"] == "failed"
    assert delays["last_run"]["failed"] == ["validate"]
    assert delays["drift"]["drifted"] == ["weather__temp"]
    assert secret["champions"] == []
    assert secret["decision"] is secret["drift"] is secret["data_until"] is None


def test_a_loop_lists_its_runs_newest_first_and_its_promotions(client: Client) -> None:
    page = client("ann").get("/airloop/loops/delays").text
    text = _text(page)
    assert re.findall(r"(March|February|January) 2013</a></th>", page) == ["March", "February", "January"]
    assert "February 2013 Champion kept 0.7100 0.7000 1,000 7 1 of 2" in text
    assert "Failed validate" in text
    assert "delay version 2 is kept as challenger" in text
    assert "delay version 1 became champion Live" in text
    assert 'href="/airloop/view/reports/delays/2013-02.html"' in page
    assert "<svg" in page


def test_a_loop_as_json_has_every_task(client: Client) -> None:
    loop = client("ann").get("/airloop/api/loops/delays?last=2").json()
    assert (len(loop["runs"]), loop["more_runs"]) == (2, 1)
    tasks = {t["name"]: t for t in loop["runs"][0]["tasks"]}
    assert tasks["planes"]["status"] == "reused"
    assert tasks["planes"]["reused"]["made_by"]["dag_id"] == "secret"
    assert tasks["validate"]["error"].startswith("raw.flights: 214 of")
    assert tasks["validate"]["manifest"] == ""


def test_a_run_lists_its_tasks_and_says_what_failed_as_text(client: Client) -> None:
    page = client("ann").get("/airloop/loops/delays/run?run_id=backfill__2013-03").text
    assert "break &lt;b&gt;between&lt;/b&gt;" in page
    assert "same code, arguments and inputs as at" in page
    good = client("ann").get("/airloop/loops/delays/run?run_id=backfill__2013-02").text
    assert 'href="/airloop/mlflow/1/00000000000000000000000000000002"' in good
    assert "1 limit crossed" in _text(good)
    assert client("ann").get("/airloop/loops/delays/run?run_id=none").status_code == 404


def test_names_that_no_run_can_have_are_not_found(client: Client) -> None:
    ann, long = client("ann"), "x" * 300
    for address in (f"loops/{long}", f"loops/delays/run?run_id={long}", f"manifest?path={long}/manifest.json"):
        assert ann.get(f"/airloop/{address}").status_code == 404, address


def test_a_dag_that_is_no_loop_is_told_so(client: Client) -> None:
    answer = client("ann").get("/airloop/loops/other")
    assert answer.status_code == 200
    assert "Nothing of this DAG has run through Airloop" in answer.text


def test_before_the_first_run_the_list_says_how_to_get_one(client: Client, config: Config) -> None:
    answer = client("ann", config)
    page = answer.get("/airloop/").text
    assert "No loop has run yet" in page
    assert str(config.home) in page
    assert answer.get("/airloop/api/loops").json() == {"loops": []}
    assert not config.home.exists(), "reading made folders"


def test_a_run_whose_records_are_broken_costs_a_line_not_the_page(client: Client, config: Config) -> None:
    world = World(config)
    world.task("delays", "good", "extract", "extract")
    world.store.publish_bytes("runs/delays/bad/extract.json", b"{")
    world.store.publish_bytes("runs/delays/newer/extract.json", b'{"format": 2}')
    answer = client("ann", config)
    page = answer.get("/airloop/loops/delays").text
    assert "Its records cannot be read" in page
    assert "is of format 2, this airloop knows format 1; update airloop here" in page
    assert answer.get("/airloop/").status_code == 200
    assert "Its records cannot be read" in answer.get("/airloop/loops/delays/run?run_id=bad").text


def test_a_ledger_that_cannot_be_read_is_said_and_the_runs_are_shown(client: Client, config: Config) -> None:
    World(config).task("delays", "good", "extract", "extract")
    (config.home / "catalog.db").write_bytes(b"not a database" * 100)
    for address in ("/airloop/", "/airloop/loops/delays"):
        page = client("ann", config).get(address).text
        assert "The promotion ledger cannot be read" in page
        assert "1 run" in page


def test_a_ledger_whose_address_only_tasks_know_is_said(config: Config) -> None:
    World(config).task("delays", "good", "extract", "extract")
    loop = Reader(config, ledger_unknown="tasks get AIRLOOP_CATALOG from a connection").loop("delays")
    assert len(loop.runs) == 1
    assert loop.problems == [
        "The promotion ledger cannot be read, so champions are not shown: tasks get AIRLOOP_CATALOG from a connection"
    ]


def test_a_store_that_cannot_be_read_is_explained(client: Client, tmp_path: Path) -> None:
    config = Config.from_environment({"AIRLOOP_HOME": str(tmp_path), "AIRLOOP_ARTIFACTS": str(tmp_path / ("x" * 300))})
    answer = client("ann", config).get("/airloop/")
    assert answer.status_code == 500
    assert "needs read access to the artifact store" in answer.text
    answer = client("ann", config).get("/airloop/api/loops")
    assert answer.status_code == 500
    assert "cannot be read" in answer.json()["detail"]


def test_what_is_kept_of_a_run_is_read_anew_when_the_run_goes_on(config: Config) -> None:
    world, reader = World(config), Reader(config)
    world.task("delays", "one", "extract", "extract", minute=1)
    assert [t.name for t in reader.loop("delays").runs[0].tasks] == ["extract"]
    kept = reader.loop("delays").runs[0]
    assert reader.loop("delays").runs[0] is kept
    world.task("delays", "one", "validate", "validate", minute=2)
    assert [t.name for t in reader.loop("delays").runs[0].tasks] == ["extract", "validate"]


def test_pages_may_load_and_run_only_their_own_files(client: Client) -> None:
    answer = client("ann").get("/airloop/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for address in re.findall(r'(?:src|href)="(/airloop/static/[^"]+)"', answer.text):
        assert client("ann").get(address).status_code == 200


def test_mlflow_is_found_when_the_button_is_pressed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mlflow_ui" in client("ann").get("/airloop/mlflow/1/2").text
    monkeypatch.setenv("AIRFLOW__AIRLOOP__MLFLOW_UI", "http://127.0.0.1:5000/")
    answer = client("ann").get("/airloop/mlflow/1/2")
    assert answer.headers["location"] == "http://127.0.0.1:5000/#/experiments/1/runs/2"


@pytest.mark.parametrize(
    ("at", "text"),
    [("", NOTHING), ("2026-01-01T00:00:00+00:00", "2 h ago"), ("2026-01-01T01:59:30+00:00", "just now")],
)
def test_ages_are_told_as_people_do(at: str, text: str) -> None:
    from datetime import UTC, datetime

    assert pages.ago(at, datetime(2026, 1, 1, 2, tzinfo=UTC)) == text
