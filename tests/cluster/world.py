"""A cluster as the tests use it, real or small: how pods are asked for, looked at and struck."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import S3Address
from airloop.contract import Call, RunInfo
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.pod import names
from airloop_operators.runners.pod.runner import PodRunner
from airloop_operators.runners.pod.sizes import Patience, Pods, parse_pods
from tests.way import Way

Object = Mapping[str, Any]
ALIKE = pytest.mark.alike
"""For a test that shows little on the small cluster beside others and the double's: it costs CI seconds."""
IMAGE = "airloop/payload:test"
"""Of the small cluster."""
STEPS = "/etc/airloop/steps"
"""Where pods have the tests' steps."""
SCRATCH = {
    "AIRLOOP_WAREHOUSE": "/airloop/warehouse",
    "AIRLOOP_CATALOG": "sqlite:////airloop/catalog.db",
    "AIRLOOP_MLFLOW": "sqlite:////airloop/mlflow.db",
    "AIRLOOP_ONLINE_STORE": "/airloop/online.db",
    "AIRLOOP_FEAST_REGISTRY": "/airloop/feast-registry.db",
}
"""State that goes with the pod: of the tests' steps only the manifest is looked at."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds."""

    away: float
    """For which the API server is away."""
    patience: Patience
    within: float
    """For what a cluster needs a moment for."""


REAL = Pace(
    away=60.0,
    patience=Patience(schedule_s=45, start_s=120, api_s=180, grace_s=5, lost_s=30),
    within=120.0,
)
SMALL = Pace(away=1.5, patience=Patience(schedule_s=240, start_s=240, api_s=240, grace_s=1, lost_s=240), within=240.0)


@dataclass(kw_only=True)
class World:
    """One namespace of a cluster, and a place for artifacts that pods and tests share."""

    real: bool
    api: Any
    """``ApiClient`` that goes straight to the API server, past the way."""
    way: Way
    """To the API server; runners go over it."""
    kubeconfig: Path
    """It leads over the way."""
    namespace: str
    image: str
    pull: str
    artifacts: Path | S3Address
    environment: Mapping[str, str]
    """Of pods."""
    secrets: Mapping[str, Any]
    """Of pods, as in a file of sizes."""
    volumes: list[dict[str, Any]]
    pace: Pace
    here: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment by which this process reaches the artifacts."""
    heard: list[str] = field(default_factory=list)
    """Lines of logs, the payloads' and the runner's."""
    services: Any = None
    """:class:`.services.Services`; None: all state is in the volume."""
    nodes: tuple[str, ...] = ()
    """That tests may change."""
    accelerator: str = "example.com/gpu"
    instance: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:10]}")
    """By its label are found what the tests leave."""

    def __post_init__(self) -> None:
        from kubernetes.client import CoreV1Api, SchedulingV1Api

        self.core = CoreV1Api(self.api)
        self.scheduling = SchedulingV1Api(self.api)

    def pods(self, **more: Any) -> Pods:
        """The runner's configuration. :param more: fields in the place of these, as in a file of sizes."""
        small = {"cpu": "500m", "memory": "300Mi", "requests": {"cpu": "20m", "memory": "64Mi"}}
        document = {
            "namespace": self.namespace,
            "instance": self.instance,
            "images": {"cpu": self.image, "cuda": self.image},
            "pull_policy": self.pull,
            "environment": {**SCRATCH, **self.environment, "PYTHONPATH": STEPS},
            "secrets": dict(self.secrets),
            "volumes": [*self.volumes, {"config_map": self.name("steps"), "path": STEPS}],
            "sizes": {"small": small},
            **more,
        }
        patience = document.pop("patience", self.pace.patience)
        return replace(parse_pods(document, origin="the tests' sizes"), patience=patience)

    def pool(self, **pool: Any) -> Pods:
        """The same with all pods in a pool."""
        sizes = {"small": {"cpu": "500m", "memory": "300Mi", "requests": {"cpu": "20m", "memory": "64Mi"}, "pool": "p"}}
        return self.pods(pools={"p": pool}, sizes=sizes)

    def request(self, step: str, *, attempt: str = "", run: RunInfo | None = None, **arguments: Any) -> RunRequest:
        """An attempt at one of the tests' steps. Its artifacts are its own, so nothing is reused."""
        attempt = attempt or uuid.uuid4().hex[:20]
        run = run or RunInfo("cluster_tests", f"run-{attempt}", step)
        call = Call(f"steps_in_pods:{step}", arguments, attempt, run)
        return RunRequest(call=call, artifacts=self.place(attempt))

    def place(self, name: str) -> Path | S3Address:
        """A place for artifacts."""
        if isinstance(self.artifacts, Path):
            return self.artifacts / name
        return S3Address(self.artifacts.bucket, f"{self.artifacts.prefix}/{name}".strip("/"))

    def run(self, request: RunRequest, pods: Pods | None = None) -> RunOutcome:
        """Run an attempt to its end."""
        return PodRunner(pods or self.pods()).run(request)

    @contextmanager
    def underway(self, request: RunRequest, pods: Pods | None = None) -> Iterator[Underway]:
        """An attempt that runs meanwhile; it is ended with the test."""
        attempt = Underway(self, request, pods or self.pods())
        try:
            yield attempt
        finally:
            attempt.end()

    def name(self, what: str) -> str:
        """Of an object of the tests' own."""
        return f"airloop-{self.instance}-{what}"

    def about(self, what: str) -> dict[str, Any]:
        """Metadata of an object of the tests' own."""
        return {"name": self.name(what), "labels": {f"{names.PREFIX}instance": self.instance}}

    def pod(self, name: str) -> dict[str, Any] | None:
        """A pod, as JSON; None: there is none."""
        from kubernetes.client.exceptions import ApiException

        try:
            found = self.core.read_namespaced_pod(name, self.namespace, _preload_content=False)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        pod: dict[str, Any] = json.loads(found.data)
        return pod

    def left(self) -> list[str]:
        """Names of pods that runners have left."""
        selector = f"{names.PREFIX}instance={self.instance}"
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector, _preload_content=False)
        return [pod["metadata"]["name"] for pod in json.loads(found.data)["items"]]

    def events(self, pod: Object) -> list[dict[str, Any]]:
        """Of a pod."""
        about = pod["metadata"]
        fields = f"involvedObject.name={about['name']},involvedObject.uid={about['uid']}"
        found = self.core.list_namespaced_event(self.namespace, field_selector=fields, _preload_content=False)
        items: list[dict[str, Any]] = json.loads(found.data)["items"]
        return items

    def until(self, condition: Callable[[], Any], what: str, within_s: float | None = None) -> Any:
        """Wait for something; returns it."""
        within_s = within_s or self.pace.within
        end = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < end, f"{what}: not within {within_s:,.0f} s"
            time.sleep(0.05 if not self.real else 0.3)
        return found

    def node(self, number: int = 0) -> str:
        """A node that tests may change."""
        if number >= len(self.nodes):
            from tests.cluster.settings import PREFIX, SETTINGS

            pytest.skip(f"{PREFIX}_NODES names fewer than {number + 1}: {SETTINGS[f'{PREFIX}_NODES']}")
        return self.nodes[number]

    def hostname(self, node: str) -> str:
        """The word by which selectors know a node; on some clusters it is not its name."""
        labels = json.loads(self.core.read_node(node, _preload_content=False).data)["metadata"].get("labels") or {}
        return str(labels.get("kubernetes.io/hostname", node))

    @contextmanager
    def changed_node(self, name: str, *, taints: list[dict[str, str]] | None = None, labels: Object | None = None,
                     capacity: Object | None = None) -> Iterator[None]:  # fmt: skip
        """A node with something more; afterwards it is as it was."""
        before = json.loads(self.core.read_node(name, _preload_content=False).data)
        had = before["spec"].get("taints") or []
        try:
            if labels:
                self.core.patch_node(name, {"metadata": {"labels": dict(labels)}})
            if capacity:
                self.core.patch_node_status(
                    name, {"status": {"capacity": dict(capacity), "allocatable": dict(capacity)}}
                )
            if taints:
                self.core.patch_node(name, {"spec": {"taints": [*had, *taints]}})
            yield
        finally:
            if taints:
                now = json.loads(self.core.read_node(name, _preload_content=False).data)["spec"].get("taints") or []
                keys = {taint["key"] for taint in taints}
                self.core.patch_node(name, {"spec": {"taints": [t for t in now if t["key"] not in keys]}})
            if capacity:
                gone = dict.fromkeys(capacity)
                self.core.patch_node_status(name, {"status": {"capacity": gone, "allocatable": gone}})
            if labels:
                self.core.patch_node(name, {"metadata": {"labels": dict.fromkeys(labels)}})


class Underway:
    """An attempt in a thread of its own."""

    def __init__(self, world: World, request: RunRequest, pods: Pods) -> None:
        self._world = world
        self._runner = PodRunner(pods)
        self._request = request
        self._outcome: RunOutcome | None = None
        self._error: BaseException | None = None
        self.name = names.pod_name(request.call)
        """Of its pod."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._runner.run(self._request)
        except BaseException as error:
            self._error = error

    def pod(self, condition: Callable[[Object], Any], what: str) -> dict[str, Any]:
        """Its pod, as soon as something is true of it."""

        def look() -> dict[str, Any] | None:
            assert self._error is None, self._error
            assert self._outcome is None, f"{what}: it has ended before: {self._outcome.error}"
            found = self._world.pod(self.name)
            return found if found is not None and condition(found) else None

        pod: dict[str, Any] = self._world.until(look, f"pod {self.name}: {what}")
        return pod

    def says(self, line: str) -> dict[str, Any]:
        """Its pod, as soon as its payload has said something, and the runner has read it."""
        return self.pod(lambda _: any(line in told for told in list(self._world.heard)), f"says {line!r}")

    def delete(self) -> None:
        """Delete its pod, as a person does it."""
        self._world.core.delete_namespaced_pod(self.name, self._world.namespace, _preload_content=False)

    def stop(self) -> None:
        """As Airflow stops a task."""
        self._runner.on_kill()

    def outcome(self, within_s: float | None = None) -> RunOutcome:
        """How it ended."""
        self._world.until(lambda: not self._thread.is_alive(), "the attempt ends", within_s)
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def end(self) -> None:
        """Whatever it does."""
        if self._thread.is_alive():
            self._runner.on_kill()
            self._thread.join(30)


class Hears(logging.Handler):
    """Keeps what payloads say."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def gone_is_fine() -> Iterator[None]:
    """For the removal of what may be gone."""
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        if error.status != 404:
            raise


def started(pod: Object) -> bool:
    """Whether a pod's container runs or has run."""
    states = [status.get("state") or {} for status in pod["status"].get("containerStatuses") or []]
    return any("running" in state or "terminated" in state for state in states)
