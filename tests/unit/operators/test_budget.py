"""Accelerators counted in Airflow pools, from the moment at which a DAG is parsed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airloop.errors import BadConfiguration
from airloop_operators import StepOperator, TrainOperator, budget
from airloop_operators.runners.pod import sizes

DOCUMENT: dict[str, Any] = {
    "images": {"cpu": "airloop:1", "cuda": "airloop:1-cuda"},
    "budgets": {"gpus": 8},
    "pools": {"gpu": {"accelerator": "nvidia", "budget": "gpus"}},
    "sizes": {
        "small": {"cpu": 1, "memory": "1Gi"},
        "gpu": {"pool": "gpu", "accelerators": 2, "cpu": 8, "memory": "32Gi"},
    },
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sizes.yaml"
    path.write_text(json.dumps(DOCUMENT))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(path))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__RUNNER", "pod")
    return path


def slots(**arguments: Any) -> tuple[str, int]:
    with DAG("loop", schedule=None):
        task = StepOperator(task_id="t", step="one", **arguments)
    return task.pool, task.pool_slots


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"size": "gpu"}, ("gpus", 2)),
        ({"size": "small"}, ("default_pool", 1)),
        ({}, ("default_pool", 1)),
        ({"size": "gpu", "pool": "mine"}, ("mine", 1)),
        ({"size": "gpu", "pool_slots": 3}, ("default_pool", 3)),
        ({"size": "gpu", "runner": "local"}, ("default_pool", 1)),
    ],
)
def test_a_task_takes_a_slot_for_each_accelerator(
    file: Path, arguments: dict[str, Any], expected: tuple[str, int]
) -> None:
    assert slots(**arguments) == expected


def test_so_do_thin_operators_and_mapped_tasks(file: Path) -> None:
    with DAG("loop", schedule=None, default_args={"pool": "usual"}):
        thin = TrainOperator(task_id="thin", examples="training.rain@12", trainer="xgboost", size="gpu")
        mapped = StepOperator.partial(task_id="mapped", step="one", size="gpu").expand(arguments=[{}, {}])
        own = TrainOperator.partial(task_id="own", trainer="xgboost", size="gpu", pool="mine").expand(examples=["a.b"])
        usual = StepOperator(task_id="usual", step="one")
    assert (thin.pool, thin.pool_slots) == ("gpus", 2)
    assert (mapped.pool, mapped.pool_slots) == ("gpus", 2)
    assert (own.pool, own.pool_slots) == ("mine", 1)
    assert usual.pool == "usual"


def test_a_wrong_size_is_refused_when_the_dag_is_parsed(file: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"there is no size .huge.; sizes in .*small, gpu"):
        slots(size="huge")
    assert slots(size="huge", runner="local") == ("default_pool", 1), "a laptop has no pods"


def test_a_file_that_is_not_there_is_a_matter_of_the_tasks_start(file: Path) -> None:
    file.unlink()
    assert slots(size="gpu") == ("default_pool", 1)


def test_the_file_is_read_once_and_again_when_it_has_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, times = sizes.read_pods, []
    monkeypatch.setattr(sizes, "read_pods", lambda path: (times.append(path), read(path))[1])
    for _ in range(20):
        slots(size="gpu")
    assert len(times) == 1
    document = {**DOCUMENT, "sizes": {**DOCUMENT["sizes"], "gpu": {**DOCUMENT["sizes"]["gpu"], "accelerators": 4}}}
    file.write_text(json.dumps(document))
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 1_000_000_000))
    assert slots(size="gpu") == ("gpus", 4)
    assert len(times) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": {"gpus": 1}}, "size 'gpu' has accelerators: 2, its budget 'gpus' is 1: its tasks would wait for"),
        ({"budgets": {}}, "pools.gpu.budget is 'gpus', which is not there"),
        ({"budgets": {"gpus": 0}}, "budgets.gpus is 0"),
        ({"default": "gpu"}, "default is 'gpu', whose accelerators are counted"),
        ({"pools": {"gpu": {"budget": "gpus"}}}, "'cpu' has no accelerators"),
    ],
)
def test_what_would_wait_for_ever_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfiguration, match=says):
        sizes.parse_pods({**DOCUMENT, **changes}, origin="sizes.yaml")


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ({"gpus": {"slots": 8, "include_deferred": True}, "default_pool": {"slots": 128}}, []),
        ({}, ["pool gpus is not there: its tasks wait for ever"]),
        ({"gpus": {"slots": 4, "include_deferred": True}}, ["pool gpus has 4 slots, its budget is 8"]),
        (
            {"gpus": {"slots": 8, "include_deferred": False}},
            ["pool gpus does not count deferred tasks, whose pods have their accelerators all the same"],
        ),
    ],
)
def test_what_is_wrong_with_airflows_pools_is_said(pools: dict[str, Any], says: list[str]) -> None:
    assert budget.wrong(DOCUMENT["budgets"], pools) == says


def test_airflows_pools_are_made_and_checked(
    file: Path, airflow_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budget.main(["--apply"]) == 0
    assert "as they should be" in capsys.readouterr().out
