"""What all tests of pods begin with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from airloop.contract import Call, RunInfo
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod import keeper, watcher
from airloop_operators.runners.pod.sizes import Pods, parse_pods
from tests.api_server import ApiServer, Script, Start

ATTEMPT = "0123456789abcdef0123"
PASSWORD = "open/sesame-4711"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder that pods share with this machine."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def pods(state: Path) -> Pods:
    return parse_pods(
        {
            "namespace": "loops",
            "images": {"cpu": "airloop:1-cpu", "cuda": "airloop:1-cuda"},
            "volumes": [{"claim": "state", "path": str(state)}],
            "pools": {
                "gpu": {
                    "accelerator": "nvidia",
                    "resource": "example.com/gpu",
                    "node_selector": {"pool": "gpu"},
                    "tolerations": [{"key": "pool", "value": "gpu", "effect": "NoSchedule"}],
                    "affinity": {"nodeAffinity": {}},
                    "priority_class": "training",
                    "runtime_class": "nvidia",
                    "scheduler": "volcano",
                    "labels": {"kueue.x-k8s.io/queue-name": "team"},
                    "annotations": {"note": "gpu"},
                    "environment": {"NCCL_DEBUG": "WARN"},
                }
            },
            "sizes": {
                "small": {"cpu": 1, "memory": "1Gi", "requests": {"cpu": "100m"}},
                "gpu": {"pool": "gpu", "accelerators": 2, "cpu": 8, "memory": "32Gi", "shared_memory": "8Gi"},
            },
            "secrets": {"AWS_SECRET_ACCESS_KEY": {"secret": "airloop-s3", "key": "secret_key"}},
        },
        origin="sizes.yaml",
    )


@pytest.fixture
def request_of(state: Path) -> RunRequest:
    """An attempt with secrets of each kind."""
    return RunRequest(
        call=Call("train", {"table": "flights"}, ATTEMPT, RunInfo("delays", "manual__2013", "train", -1, 1)),
        artifacts=state / "artifacts",
        environment={
            "AIRLOOP_HOME": str(state),
            "AIRLOOP_CATALOG": "postgresql+psycopg://loop:pa55-of-catalog@db/iceberg",
            "LEVEL": "3",
        },
        secrets={"TOKEN": PASSWORD},
    )


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """An API server with scripts, to which Airflow's connection leads."""
    opened: list[ApiServer] = []

    def begin(*scripts: Script) -> ApiServer:
        server = ApiServer(*scripts)
        opened.append(server.__enter__())
        extra = {"kube_config_path": str(server.kubeconfig(tmp_path / "kubeconfig"))}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
        return server

    monkeypatch.setattr(watcher, "SETTLE_S", 0.5)
    monkeypatch.setattr(keeper, "QUOTA_S", 0.2)
    monkeypatch.setattr("airloop_operators.runners.pod.trigger.SETTLE_S", 0.0)
    yield begin
    for server in opened:
        server.__exit__()


@pytest.fixture
def task_runs_here(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Operators may be called, and their pods share a folder with this machine."""
    from airflow.sdk.bases.operator import ExecutorSafeguard

    from airloop_operators import turn
    from tests.unit.operators.runners.pod.deferred_task import SECRET, sizes

    sizes(tmp_path, state, monkeypatch)
    monkeypatch.setenv("AIRLOOP_HOME", str(state))
    monkeypatch.setenv("AIRFLOW_CONN_VAULT", json.dumps({"conn_type": "generic", "password": SECRET}))
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setattr(turn, "_previous", lambda *_: None)
    caplog.set_level(logging.INFO)
