"""The buttons on a task's page lead to pages that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airloop.config import S3Address
from airloop.contract import RESERVED_ROLES, Receipt
from airloop_operators.links import ManifestLink, MlflowRunLink, PodLink, ReportLink
from airloop_operators.results import links_of, result_of
from airloop_operators.runners.base import RunOutcome
from airloop_operators.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        runner="local", environment={}, artifacts=tmp_path, mlflow_ui="", memory_mb=0, warm=False, preload=None
    )


def _outcome(settings: Settings, name: str, manifest: dict[str, Any] | None) -> RunOutcome:
    receipt = Receipt("ab12", "done", "k", settings.artifacts.joinpath(name).as_uri())
    return RunOutcome(receipt=receipt, exit_code=0, error=None, manifest=manifest)


def test_links_are_set_for_what_a_step_made(settings: Settings) -> None:
    page = settings.artifacts / "reports" / "a loop" / "x.html"
    details = {"mlflow": {"run_id": "r", "experiment_id": "7"}}
    links = links_of(
        _outcome(settings, "steps/s/manifest.json", {"links": {"report": page.as_uri()}, "details": details}), settings
    )
    assert links == {
        "Manifest": "/plugin/airloop/airloop/manifest?path=steps/s/manifest.json&attempt=ab12",
        "Report": "/plugin/airloop/airloop/view/reports/a%20loop/x.html",
        "MLflow run": "/airloop/mlflow/7/r",
    }


def test_links_lead_into_a_bucket_too(settings: Settings) -> None:
    there = replace(settings, artifacts=S3Address("bucket", "a"))
    receipt = Receipt("ab12", "done", "k", "s3://bucket/a/steps/s/manifest.json")
    made = {"links": {"report": "s3://bucket/a/reports/a%20loop/x.html", "docs": "s3://bucket/other/x.html"}}
    outcome = RunOutcome(receipt=receipt, exit_code=0, error=None, manifest=made)
    assert links_of(outcome, there) == {
        "Manifest": "/plugin/airloop/airloop/manifest?path=steps/s/manifest.json&attempt=ab12",
        "Report": "/plugin/airloop/airloop/view/reports/a%20loop/x.html",
    }


def test_a_step_without_a_page_has_no_dead_button(settings: Settings) -> None:
    links = links_of(_outcome(settings, "attempts/ab/ab12.json", None), settings)
    assert links == {"Manifest": "/plugin/airloop/airloop/manifest?path=attempts/ab/ab12.json&attempt=ab12"}

    class Ran:
        step_links = links

    assert ManifestLink().get_link(Ran(), ti_key=None) == links["Manifest"]  # type: ignore[arg-type]
    assert ReportLink().get_link(Ran(), ti_key=None) == ""  # type: ignore[arg-type]
    assert MlflowRunLink().get_link(object(), ti_key=None) == ""  # type: ignore[arg-type]


def test_what_lies_outside_the_store_is_not_linked(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "manifest.json"
    receipt = Receipt("ab12", "done", "k", elsewhere.as_uri())
    outcome = RunOutcome(receipt=receipt, exit_code=0, error=None, manifest={"links": {"docs": "http://x/"}})
    assert links_of(outcome, settings) == {}


def test_an_airflow_below_a_path_is_linked_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/airflow/")
    links = links_of(_outcome(settings, "steps/s/manifest.json", None), settings)
    assert links["Manifest"].startswith("/airflow/plugin/airloop/airflow/airloop/manifest?")


@pytest.mark.parametrize(
    ("own", "usual", "there"),
    [("pod", "local", True), (None, "pod", True), ("local", "pod", False), (None, "local", False)],
)
def test_a_task_that_runs_as_pods_has_a_button_for_them(
    monkeypatch: pytest.MonkeyPatch, own: str | None, usual: str, there: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__AIRLOOP__RUNNER", usual)
    key = SimpleNamespace(dag_id="a loop", run_id="r__2013-01-01T00:00:00+00:00", task_id="t", map_index=3)
    link = PodLink().get_link(SimpleNamespace(runner=own), ti_key=key)  # type: ignore[arg-type]
    page = (
        "/plugin/airloop/airloop/pods?dag_id=a%20loop&run_id=r__2013-01-01T00%3A00%3A00%2B00%3A00&task_id=t&map_index=3"
    )
    assert link == (page if there else "")


def test_every_part_of_a_result_beside_its_outputs_is_reserved(settings: Settings) -> None:
    manifest = {"step": "s", "interval": None, "counts": {}, "outputs": {"table": {"reference": "a.b@1"}}}
    result = result_of(_outcome(settings, "steps/s/manifest.json", manifest))
    assert result.pop("table") == "a.b@1"
    assert result.keys() == RESERVED_ROLES
