"""The pages of a store in a bucket: the same content, to the same people."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airloop.config import Config, S3Address
from airloop_operators.web.data import Reader
from tests.loop_world import PAGE, World, populate

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]


@pytest.fixture
def there(config: Config, s3_bucket: S3Address) -> World:
    """The loops of the other tests of the pages, in a bucket."""
    return populate(replace(config, artifacts=s3_bucket))


def test_the_pages_are_those_of_a_folder(client: Client, there: World, loops_config: Config) -> None:
    ours, folder = client("ann", there.config), client("ann", loops_config)
    for address in (
        "api/loops", "api/loops/delays", "api/loops/secret", "loops/delays",
        "loops/delays/run?run_id=backfill__2013-03",
    ):  # fmt: skip
        one, other = (c.get(f"/airloop/{address}") for c in (ours, folder))
        assert one.status_code == 200, one.text
        assert one.text == other.text
    assert "delays" in ours.get("/airloop/").text


def test_a_step_is_shown_with_its_files(client: Client, there: World) -> None:
    reader = Reader(there.config)
    task = next(t for t in reader.loop("delays").runs[-1].tasks if t.step == "validate")
    page = client("ann", there.config).get(f"/airloop/manifest?path={task.manifest}&attempt={task.attempt}")
    assert page.status_code == 200
    assert "manifest.json" in page.text


def test_a_report_comes_from_the_bucket_without_any_right_to_act(client: Client, there: World) -> None:
    ann = client("ann", there.config)
    answer = ann.get("/airloop/artifacts/reports/delays/2013-02.html")
    assert answer.status_code == 200
    assert answer.content == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-length"] == str(len(PAGE))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "allow-scripts" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert '<iframe src="/airloop/artifacts/reports/delays/2013-02.html"' in (
        ann.get("/airloop/view/reports/delays/2013-02.html").text
    )
    for where in ("artifacts", "view"):
        answer = ann.get(f"/airloop/{where}/reports/delays")
        assert answer.status_code == 302
        assert answer.headers["location"] == f"/airloop/{where}/reports/delays/index.html"


def test_a_large_file_is_saved_as_it_is(client: Client, there: World) -> None:
    content = os.urandom(3 << 20)
    there.store.publish_bytes("reports/delays/files/modèl;e.ubj", content)
    answer = client("ann", there.config).get("/airloop/artifacts/reports/delays/files/modèl;e.ubj")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_who_may_not_read_a_dag_gets_none_of_its_files(client: Client, there: World, config: Config) -> None:
    bob, nobody = client("bob", there.config), client("", there.config)
    hidden = next(t for t in Reader(there.config).loop("secret").runs[0].tasks if t.name == "hidden")
    for address in (f"artifacts/{hidden.manifest}", f"view/{hidden.manifest}", f"manifest?path={hidden.manifest}",
                    "loops/secret", "artifacts/runs/secret/manual__1/hidden.json"):  # fmt: skip
        assert bob.get(f"/airloop/{address}").status_code == 403, address
        assert nobody.get(f"/airloop/{address}").status_code in (302, 303, 307, 401), address
    assert bob.get("/airloop/artifacts/reports/delays/2013-02.html").status_code == 200
    # What one of his own loops reused is his to read.
    reused = next(t for t in Reader(there.config).loop("delays").runs[0].tasks if t.name == "planes")
    assert bob.get(f"/airloop/artifacts/{reused.manifest}").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["%2e%2e/other", "reports/%2e%2e/%2e%2e/other", "%2Fetc/passwd", "//etc/passwd", "reports/%5c..%5cx", "reports/%00",
     "reports/.part-x", "runs", "nothing", "reports/delays/2013-02.html/x", "x" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("where", ["artifacts", "view"])
def test_no_address_leads_out_of_the_prefix(
    client: Client, config: Config, s3_bucket: S3Address, path: str, where: str
) -> None:
    inside = replace(config, artifacts=S3Address(s3_bucket.bucket, f"{s3_bucket.prefix}/inside"))
    World(replace(config, artifacts=s3_bucket)).store.publish_bytes("other", b"outside")
    assert client("ann", inside).get(f"/airloop/{where}/{path}").status_code in (400, 404)


def test_a_run_is_read_anew_when_it_goes_on(config: Config, s3_bucket: S3Address, tmp_path: Path) -> None:
    there = replace(config, artifacts=s3_bucket)
    world, reader = World(there), Reader(there)
    world.task("delays", "one", "extract", "extract", minute=1)
    kept = reader.loop("delays").runs[0]
    assert reader.loop("delays").runs[0] is kept
    # Within the same second: the store's clock is of no help.
    world.task("delays", "one", "validate", "validate", minute=2)
    assert [t.name for t in reader.loop("delays").runs[0].tasks] == ["extract", "validate"]


def test_a_store_that_is_away_is_explained(
    client: Client, config: Config, s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    ann = client("ann", replace(config, artifacts=s3_bucket))
    answer = ann.get("/airloop/api/loops")
    assert answer.status_code == 500
    assert "does not answer at http://127.0.0.1:1" in answer.json()["detail"]
