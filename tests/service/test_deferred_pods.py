"""Deferred steps in real Airflow DAG runs (``dag.test()`` runs triggers in line), against the API server double."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airloop.config import Config
from airloop_operators import StepOperator, sweep
from tests.api_server import ApiServer, ScriptedPod

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

FEBRUARY = datetime(2013, 2, 1, tzinfo=UTC)


@pytest.fixture
def server(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_database: Path
) -> Iterator[ApiServer]:
    with ApiServer() as found:
        extra = {"kube_config_path": str(found.kubeconfig(tmp_path / "kubeconfig"))}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
        document = {
            "namespace": "loops",
            "images": {"cpu": "airloop:1"},
            "volumes": [{"claim": "state", "path": str(config.home)}],
        }
        (tmp_path / "sizes.yaml").write_text(json.dumps(document))
        monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.yaml"))
        monkeypatch.setenv("AIRFLOW__AIRLOOP__RUNNER", "pod")
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
        monkeypatch.setenv("AIRLOOP_HOME", str(config.home))
        # No worker is left here.
        monkeypatch.setattr("airloop_operators.runners.pod.trigger.SETTLE_S", 0.0)
        yield found


def done(pod: ScriptedPod) -> None:
    pod.run()
    time.sleep(1)
    pod.succeed()


def fails(pod: ScriptedPod) -> None:
    pod.run()
    time.sleep(1)
    pod.end(3)


def test_what_is_deferred_ends_as_it_would_have_ended(server: ApiServer, test_dag: Callable[..., Any]) -> None:
    def lost(pod: ScriptedPod) -> None:
        pod.run()
        time.sleep(1)
        pod.delete(grace_s=1)

    server.scripts = [done, fails, lost, done]
    with DAG("deferred", start_date=datetime(2013, 1, 1, tzinfo=UTC), schedule=None) as dag:
        first = StepOperator(task_id="first", step="one", order="none")
        second = StepOperator(task_id="second", step="two", order="none")
        third = StepOperator(
            task_id="third", step="three", order="none", trigger_rule="all_done", execution_timeout=timedelta(minutes=5)
        )
        first >> second >> third
    run = test_dag(dag, logical_date=FEBRUARY)
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states == {"first": "success", "second": "failed", "third": "success"}
    assert len(server.created) == 4, "of the third a second attempt was made"
    assert server.pods == {}


def test_a_pod_that_was_left_is_found_by_what_airflow_knows_of_its_task(
    server: ApiServer, test_dag: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.scripts = [fails]
    with DAG("left", start_date=datetime(2013, 1, 1, tzinfo=UTC), schedule=None) as dag:
        StepOperator(task_id="t", step="one", order="none", infrastructure_retries=0)
    run = test_dag(dag, logical_date=FEBRUARY)
    (made,) = server.created
    # As it would be there if its worker had been killed.
    left = server.add(made)
    left.run()
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    capsys.readouterr()
    assert sweep.main([]) == 1
    about = f"left {run.run_id} t, try {made['metadata']['labels']['airloop/try']}"
    assert f"loops/{left.name} runs, and its task is failed ({about})\n" in capsys.readouterr().out
    assert sweep.main(["--apply"]) == 0
    until = time.monotonic() + 240
    while server.pods and time.monotonic() < until:
        time.sleep(0.02)
    assert server.pods == {}
