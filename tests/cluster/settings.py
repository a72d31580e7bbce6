"""What tests of a real cluster are told by the environment; tests/cluster/README.md is for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import pytest

PREFIX = "AIRLOOP_TEST_CLUSTER"
SETTINGS: Mapping[str, str] = {
    "KUBECONFIG": "path of one kube config whose current context is the cluster",
    f"{PREFIX}_PAYLOAD": "name of the payload's image, as the nodes have it: airloop/payload:0.1.0; it has to hold "
    "airloop[s3,postgres,redis] of this very revision (requirements/payload.txt), with python on its PATH, readable by "
    "any user",
    f"{PREFIX}_PULL": "imagePullPolicy of the payload's image: Never (default), IfNotPresent or Always",
    f"{PREFIX}_NAMESPACE": "namespace of the tests' pods; default airloop-tests, which is made if it is not there",
    f"{PREFIX}_S3": "http://KEY:SECRET@host:port/bucket[/prefix] of an S3-compatible store, as pods reach it; "
    "default: a SeaweedFS that the tests start on this machine",
    f"{PREFIX}_S3_HERE": "http://host:port of the same store as this machine reaches it; default: as pods do",
    f"{PREFIX}_CATALOG": "postgresql+psycopg://user:password@host:port/database, empty before each run of the loop, as "
    "pods reach it; default: a PostgreSQL that the tests start on this machine",
    f"{PREFIX}_REDIS": "redis://[:password@]host:port/database, empty before each run of the loop, as pods reach it; "
    "default: a Redis that the tests start on this machine",
    f"{PREFIX}_MLFLOW": "http://host:port of an MLflow server without models and runs before each run of the loop, as "
    "pods reach it; default: one that the tests start on this machine",
    f"{PREFIX}_ADDRESS": "address of this machine as pods reach it, for what the tests start here; default: the one "
    "from which this machine reaches a node",
    f"{PREFIX}_NODES": "names of nodes, by commas, that tests may taint, label and give an extended resource; pods of "
    "others on them may be evicted",
    f"{PREFIX}_ACCELERATOR": "extended resource of an accelerator pool; default example.com/gpu",
    f"{PREFIX}_LOSE": "a shell command that makes node $NODE of those unreachable, e.g. docker pause $NODE",
    f"{PREFIX}_FIND": "a shell command that brings it back, e.g. docker unpause $NODE",
}
"""All of them, and what each should be."""
REQUIRED = ("KUBECONFIG", f"{PREFIX}_PAYLOAD")


class Missing(Exception):
    """A setting is not there, or cannot be right; the message names it and says what it should be."""


@dataclass(frozen=True, slots=True)
class Store:
    """An S3-compatible store."""

    endpoint: str
    """As pods reach it."""
    here: str
    """As this machine does."""
    key: str
    secret: str = field(repr=False)
    bucket: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The settings, read."""

    kubeconfig: Path
    payload: str
    pull: str = "Never"
    namespace: str = "airloop-tests"
    store: Store | None = None
    catalog: str = field(default="", repr=False)
    redis: str = field(default="", repr=False)
    mlflow: str = field(default="", repr=False)
    address: str = ""
    nodes: tuple[str, ...] = ()
    accelerator: str = "example.com/gpu"
    lose: str = ""
    find: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """:raises Missing: a setting is not there, or cannot be right."""
        for name in REQUIRED:
            if not environment.get(name):
                raise Missing(f"{name} is not set: {SETTINGS[name]}")

        def get(name: str, default: str = "") -> str:
            return environment.get(f"{PREFIX}_{name}") or default

        kubeconfig = Path(environment["KUBECONFIG"]).expanduser()
        if not kubeconfig.is_file():
            raise Missing(
                f"KUBECONFIG={kubeconfig} is no file: {SETTINGS['KUBECONFIG']}; several are made one by "
                "kubectl config view --flatten --minify"
            )
        pull = get("PULL", "Never")
        if pull not in ("Never", "IfNotPresent", "Always"):
            raise Missing(f"{PREFIX}_PULL={pull}: {SETTINGS[f'{PREFIX}_PULL']}")
        return cls(
            kubeconfig=kubeconfig.resolve(),
            payload=get("PAYLOAD"),
            pull=pull,
            namespace=get("NAMESPACE", "airloop-tests"),
            store=_store(get("S3"), get("S3_HERE")),
            catalog=get("CATALOG"),
            redis=get("REDIS"),
            mlflow=get("MLFLOW"),
            address=get("ADDRESS"),
            nodes=tuple(name.strip() for name in get("NODES").split(",") if name.strip()),
            accelerator=get("ACCELERATOR", "example.com/gpu"),
            lose=get("LOSE"),
            find=get("FIND"),
        )


def optional(value: str | tuple[str, ...], name: str) -> None:
    """Skip a test that needs a setting which not everybody can give."""
    if not value:
        pytest.skip(f"{PREFIX}_{name} is not set: {SETTINGS[f'{PREFIX}_{name}']}")


def _store(address: str, here: str) -> Store | None:
    if not address:
        return None
    parts = urlsplit(address)
    bucket, _, prefix = parts.path.strip("/").partition("/")
    if parts.scheme not in ("http", "https") or not (parts.username and parts.password and parts.hostname and bucket):
        # Not said again: it may hold a password anywhere.
        raise Missing(f"{PREFIX}_S3 cannot be read: {SETTINGS[f'{PREFIX}_S3']}")
    endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return Store(
        endpoint, (here or endpoint).rstrip("/"), unquote(parts.username), unquote(parts.password), bucket, prefix
    )
