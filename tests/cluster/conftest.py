"""
Tests of pods, on a cluster: a real one with ``AIRLOOP_TEST_CLUSTER=1`` (README.md), else one in little.

The same tests run on both, so that those of a real cluster have been run before. What the small one cannot show (users,
file systems and cgroups of their own) is marked ``real`` and left out there.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from airloop.config import S3Address
from airloop_operators.runners.pod import attempt, keeper, names, watcher
from tests.cluster import reach
from tests.cluster.services import Services
from tests.cluster.settings import PREFIX, SETTINGS, Missing, Store, Told
from tests.cluster.world import IMAGE, REAL, SMALL, Hears, World
from tests.small_cluster import SmallCluster, node
from tests.way import Way

REAL_CLUSTER = os.environ.get(PREFIX) == "1"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Without a real cluster its own tests are not there, since a skip would say that something is missing; nor those that
    cost much and show little there, but where ``-m`` names them. The slow ones run in CI.
    """
    own = [item for item in items if item.path.is_relative_to(HERE)]
    for item in own:
        # A kube config may say insecure-skip-tls-verify.
        item.add_marker(pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"))
    asked = [config.option.markexpr or "", "slow" if os.environ.get("CI") else ""]
    unasked = ["real", *(name for name in ("slow", "alike") if name not in " ".join(asked))]
    left_out = [] if REAL_CLUSTER else [item for item in own if any(map(item.get_closest_marker, unasked))]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def told() -> Told:
    """What the environment says of the real cluster."""
    try:
        return Told.read()
    except Missing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The cluster of all tests; what they leave on it goes at the end."""
    if not os.environ.get("CI"):
        pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        if REAL_CLUSTER:
            try:
                yield _real(request.getfixturevalue("told"), folder, stack)
            except Missing as missing:
                pytest.fail(str(missing), pytrace=False)
        else:
            yield small(folder, stack)


@pytest.fixture
def world(cluster: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The cluster, with Airflow's connection to it, and what payloads say."""
    _lead(cluster, monkeypatch)
    if not cluster.real:
        monkeypatch.setattr(watcher, "SETTLE_S", 0.5)
        monkeypatch.setattr(keeper, "QUOTA_S", 0.2)
        monkeypatch.setattr(attempt, "CLEAN_UP_S", 5.0)
    hears = Hears()
    loggers = [logging.getLogger(name) for name in ("payload", "airloop", "airloop.runner", "airloop.step")]
    root = logging.getLogger()
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    root.addHandler(hears)
    cluster.heard = hears.lines
    yield cluster
    root.removeHandler(hears)
    for logger, level in before:
        logger.setLevel(level)


def small(folder: Path, stack: ExitStack) -> World:
    from kubernetes.config import new_client_from_config

    taint = {"key": "pool", "value": "gpu", "effect": "NoSchedule"}
    pool = [node(f"gpu-{n}", labels={"pool": "gpu"}, taints=[taint], example_com_gpu="2") for n in (1, 2)]
    server = stack.enter_context(SmallCluster(folder / "pods", [node("node-1"), node("node-2"), *pool], [IMAGE]))
    straight = server.kubeconfig(folder / "straight.json")
    config = reach.read(straight)
    way = stack.enter_context(Way(reach.server_of(config)))
    state = folder / "state"
    state.mkdir()
    world = World(
        real=False,
        api=stack.enter_context(closing(new_client_from_config(config_file=str(straight)))),
        way=way,
        kubeconfig=reach.write(reach.through(config, folder, way), folder / "kubeconfig.json"),
        namespace="loops",
        image=IMAGE,
        pull="Never",
        artifacts=state,
        environment={},
        secrets={},
        volumes=[{"claim": "state", "path": str(state)}],
        pace=SMALL,
        nodes=("node-1", "node-2"),
    )
    _put_steps(world)
    return world


def _real(told: Told, folder: Path, stack: ExitStack) -> World:
    from kubernetes.config import new_client_from_config

    _past_proxies(stack)
    config = reach.read(told.kubeconfig)
    way = stack.enter_context(Way(reach.server_of(config)))
    through = reach.through(config, told.kubeconfig.parent, way)
    api = stack.enter_context(closing(new_client_from_config(config_file=str(told.kubeconfig))))
    world = World(
        real=True,
        api=api,
        way=way,
        kubeconfig=reach.write(through, folder / "kubeconfig.json"),
        namespace=told.namespace,
        image=told.payload,
        pull=told.pull,
        artifacts=folder,
        environment={},
        secrets={},
        volumes=[],
        pace=REAL,
        nodes=told.nodes,
        accelerator=told.accelerator,
    )
    stack.callback(_leave, world, make_namespace(world))
    services = Services(world, told, folder, stack)
    store = services.store()
    world.artifacts = S3Address(store.bucket, f"{store.prefix}/{world.instance}".strip("/"))
    world.environment = {"AWS_ENDPOINT_URL_S3": store.endpoint, "AWS_REGION": "us-east-1"}
    world.secrets = {
        "AWS_ACCESS_KEY_ID": {"secret": world.name("s3"), "key": "key"},
        "AWS_SECRET_ACCESS_KEY": {"secret": world.name("s3"), "key": "secret"},
    }
    world.here = {
        "AWS_ENDPOINT_URL_S3": store.here,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    secret = {"metadata": world.about("s3"), "stringData": {"key": store.key, "secret": store.secret}}
    world.core.create_namespaced_secret(world.namespace, secret)
    if told.store is not None:
        _make_bucket(store)
        stack.callback(_empty, store, world.artifacts.prefix)
    _put_steps(world)
    world.services = services
    try_out(world)
    return world


def _lead(world: World, patch: pytest.MonkeyPatch) -> None:
    """Lead this process to the cluster and to the artifacts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in world.here.items():
        patch.setenv(name, value)
    extra = {"kube_config_path": str(world.kubeconfig)}
    patch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))


def try_out(world: World) -> None:
    """
    Run the smallest of steps, before all tests fail by one cause.

    :raises Missing: it is not done.
    """
    with pytest.MonkeyPatch.context() as patch:
        _lead(world, patch)
        error = world.run(world.request("count")).error
    if error is not None:
        name = f"{PREFIX}_PAYLOAD"
        raise Missing(f"{name}={world.image}: a pod of it cannot do the smallest of steps: {error}. {SETTINGS[name]}")


def _past_proxies(stack: ExitStack) -> None:
    """What listens on this machine's loopback is not asked of a proxy, which not all clients know by themselves."""
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost"))))


def _put_steps(world: World) -> None:
    """The code of the tests' steps, for pods whose image has nothing of it."""
    data = {"steps_in_pods.py": (HERE / "steps_in_pods.py").read_text()}
    world.core.create_namespaced_config_map(world.namespace, {"metadata": world.about("steps"), "data": data})


def make_namespace(world: World) -> bool:
    """Make the namespace, if it is not there or is on its way out; whether it was made."""
    from kubernetes.client.exceptions import ApiException

    until = time.monotonic() + 120
    while True:
        try:
            found = json.loads(world.core.read_namespace(world.namespace, _preload_content=False).data)
        except ApiException as error:
            if error.status == 403:
                return False  # who may use a namespace need not be allowed to look at it
            if error.status != 404:
                raise
            break
        if (found.get("status") or {}).get("phase") != "Terminating":
            return False
        # As the tests before have left it.
        assert time.monotonic() < until, f"namespace {world.namespace} is still being removed after 120 s"
        time.sleep(0.5)
    world.core.create_namespace({"metadata": {"name": world.namespace}})
    # Pods are refused until it has its account.
    until = time.monotonic() + 60
    while True:
        with suppress(ApiException):
            world.core.read_namespaced_service_account("default", world.namespace)
            return True
        assert time.monotonic() < until, f"namespace {world.namespace} has no service account after 60 s"
        time.sleep(0.5)


def _leave(world: World, made: bool) -> None:
    """Take away all that the tests have put on the cluster."""
    selector = f"{names.PREFIX}instance={world.instance}"
    if made:
        world.core.delete_namespace(world.namespace)
        return
    options: dict[str, Any] = {"label_selector": selector, "_preload_content": False}
    for kind in ("pod", "config_map", "secret", "resource_quota"):
        delete = getattr(world.core, f"delete_collection_namespaced_{kind}")
        # The client keeps its last answer, and one that was not read keeps its connection open to the end.
        delete(world.namespace, grace_period_seconds=0, **options).drain_conn()


def _client(store: Store) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=store.here, region_name="us-east-1", config=Config(s3={"addressing_style": "path"}),
        aws_access_key_id=store.key, aws_secret_access_key=store.secret,
    )  # fmt: skip


def _make_bucket(store: Store) -> None:
    """Make the bucket, if it is not there."""
    from botocore.exceptions import ClientError

    with closing(_client(store)) as client:
        try:
            client.head_bucket(Bucket=store.bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            client.create_bucket(Bucket=store.bucket)


def _empty(store: Store, prefix: str) -> None:
    """Remove the tests' files from a store that is not theirs."""
    with closing(_client(store)) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=f"{prefix}/"):
            for found in page.get("Contents", ()):
                client.delete_object(Bucket=store.bucket, Key=found["Key"])
