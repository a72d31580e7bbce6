"""The API server double answers as a real one: what is seen of pods by selectors, in watches, in parts, and of logs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import api_objects
from tests.api_server import ApiServer

POD: dict[str, Any] = {"spec": {"containers": [{"name": "base", "image": "airloop/control:1"}]}}


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {**POD, "metadata": {"name": name, "namespace": "loops", "labels": labels, "annotations": {"of": name}}}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as found:
        yield found


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> Iterator[Any]:
    """``CoreV1Api`` of the real client."""
    if not os.environ.get("CI"):
        pytest.importorskip("kubernetes")
    from kubernetes.client import CoreV1Api
    from kubernetes.config import new_client_from_config

    with closing(new_client_from_config(config_file=str(server.kubeconfig(tmp_path / "kubeconfig")))) as client:
        yield CoreV1Api(client)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", "one two three"),
        ("worker=1", "one"),
        ("worker==1,done!=True", "one"),
        ("worker!=1", "two three"),
        ("worker", "one two"),
        ("!worker", "three"),
        ("worker in (1, 2),done!=True", "one"),
        ("worker notin (2,7)", "one three"),
        ("example.com/kind=x", "three"),
    ],
)
def test_selectors_of_labels(selector: str, expected: str) -> None:
    pods = [pod("one", worker="1"), pod("two", worker="2", done="True"), pod("three", **{"example.com/kind": "x"})]
    chosen = filter(api_objects.selects({"labelSelector": selector}), pods)
    assert [found["metadata"]["name"] for found in chosen] == expected.split()


@pytest.mark.parametrize(
    "selector", ["status.phase=Succeeded", "metadata.name==one", "status.phase!=Failed,metadata.name!=two"]
)
def test_selectors_of_fields(selector: str) -> None:
    pods = [{**pod("one"), "status": {"phase": "Succeeded"}}, {**pod("two"), "status": {"phase": "Failed"}}, pod("two")]
    chosen = filter(api_objects.selects({"fieldSelector": selector}), pods)
    assert [found["metadata"]["name"] for found in chosen] == ["one"]


def test_a_watch_begins_with_what_is_there_and_loses_what_is_no_longer_selected(server: ApiServer, api: Any) -> None:
    from kubernetes.watch import Watch

    server.add(pod("ours", worker="1")).run()
    server.add(pod("another", worker="2"))
    seen: list[tuple[str, str, bool]] = []

    def follow() -> None:
        events = Watch().stream(
            api.list_namespaced_pod,
            "loops",
            label_selector="worker=1,done!=True",
            resource_version="0",
            timeout_seconds=120,
        )
        for event in events:
            about = event["object"].metadata
            seen.append((event["type"], about.name, about.deletion_timestamp is not None))
            if len(seen) == 5:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    _until(lambda: len(seen) == 1)
    server.handles["another"].run()
    api.patch_namespaced_pod("another", "loops", {"metadata": {"labels": {"worker": "1"}}})
    api.patch_namespaced_pod("ours", "loops", {"metadata": {"labels": {"done": "True"}}})
    api.delete_namespaced_pod("ours", "loops", body={"gracePeriodSeconds": 0})
    server.handles["another"].delete(grace_s=0)
    thread.join(120)
    assert seen == [
        ("ADDED", "ours", False),
        ("ADDED", "another", False),
        ("DELETED", "ours", False),
        ("MODIFIED", "another", True),
        ("DELETED", "another", True),
    ]


def test_a_client_that_finds_its_way_gets_metadata_alone(server: ApiServer, api: Any, tmp_path: Path) -> None:
    from kubernetes.dynamic import DynamicClient

    server.add(pod("one", worker="1"))
    client = DynamicClient(api.api_client, cache_file=str(tmp_path / "discovered"))
    (found,) = client.get(
        client.resources.get(api_version="v1", kind="Pod"),
        namespace="loops",
        label_selector="worker=1",
        field_selector="status.phase!=Succeeded",
        header_params={"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"},
    ).items
    assert (found.metadata.name, found.metadata.annotations["of"]) == ("one", "one")
    assert found.spec is None


def test_the_end_of_a_log_without_times(server: ApiServer, api: Any) -> None:
    handle = server.add(pod("one"))
    handle.run()
    handle.say("first", "second", "third")

    def log(**options: Any) -> str:
        # What the client makes of the text by itself is a text of its bytes.
        text: str = api.read_namespaced_pod_log("one", "loops", _preload_content=False, **options).data.decode()
        return text

    assert log(tail_lines=2) == "second\nthird\n"
    assert [line.split()[1] for line in log(timestamps=True).splitlines()] == ["first", "second", "third"]


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
