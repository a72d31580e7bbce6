"""
From an attempt to its pod, as plain dictionaries: what is asked of the cluster, and nothing that is done to it.

Pods are safe by default: not root, no writable root file system, no capabilities, no token for the API server. Whatever
the redactor would mask is in the attempt's Secret and only named in the pod: nobody who may look at pods sees it, nor
who reads a log that a pod's specification was dumped into.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from airloop.config import LOCAL
from airloop.contract import ENV_CALL, ENV_LOG_FORMAT, ENV_RECEIPT, ENV_SECRETS, ENV_SPAWNED_AT
from airloop.errors import BadConfiguration
from airloop.redact import Redactor
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.limits import limit_environment
from airloop_operators.runners.pod import names
from airloop_operators.runners.pod.queues import admission
from airloop_operators.runners.pod.sizes import Place, Pods, quantity

CONTAINER = "step"
"""Name of the payload's container."""
RECEIPT = "/dev/termination-log"
SCRATCH = "/airloop"
"""Home of a payload whose state is elsewhere; gone with its pod."""
MIB = 1 << 20
MOST_DEADLINE_S = 2**31 - 1
"""What Kubernetes takes."""

STATE = ("WAREHOUSE", "CATALOG", "ARTIFACTS", "MLFLOW", "ONLINE_STORE", "FEAST_REGISTRY")
"""What must outlive a pod, as ``AIRLOOP_*``."""
SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "privileged": False,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True)
class Made:
    """What an attempt asks of the cluster."""

    pod: dict[str, Any]
    secret: dict[str, Any] | None = field(repr=False)
    """Same name as the pod; None: there is nothing to hide."""
    place: Place
    memory_bytes: int
    """Memory limit."""

    @property
    def memory(self) -> str:
        """Memory limit, as Kubernetes writes it."""
        return str(self.pod["spec"]["containers"][0]["resources"]["limits"]["memory"])

    @property
    def reserved(self) -> dict[str, float]:
        """What a node keeps for it: processors, bytes of memory, accelerators by their resource."""
        requests = self.pod["spec"]["containers"][0]["resources"]["requests"]
        return {str(name): float(quantity(amount)) for name, amount in requests.items()}

    @property
    def name(self) -> str:
        """Of the pod."""
        return str(self.pod["metadata"]["name"])


def make(request: RunRequest, pods: Pods, *, namespace: str, spawned_at: str) -> Made:
    """
    The pod of an attempt, and its Secret.

    :param spawned_at: when the runner set out to start it, ISO 8601.
    :raises BadConfiguration: its size is not there, or its state would be gone with the pod.
    """
    place = pods.place(request.size)
    limits, requests, memory_bytes = _resources(request, place)
    environment = _environment(request, pods, place, limits, spawned_at)
    check_state(environment, pods)
    name = names.pod_name(request.call)
    plain, hidden = _apart(environment, request)
    admitted = admission(place.pool.gang, place.pool.queue, group=name, ranks=request.ranks)
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {**place.pool.labels, **admitted.labels, **names.labels(request.call, pods.instance)},
        "annotations": {**place.pool.annotations, **admitted.annotations, **names.in_full(request.call)},
    }
    # A node puts other variables in the place of $(NAME), and takes $$ for $.
    env = [{"name": key, "value": value.replace("$", "$$")} for key, value in plain.items()]
    env += [_reference(key, name, key) for key in hidden]
    env += [_reference(key, found.secret, found.key) for key, found in pods.secrets.items() if key not in hidden]
    volumes, mounts = _volumes(pods, place)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": place.image,
        "imagePullPolicy": pods.pull_policy,
        "command": [request.python or "python", "-m", "airloop", "run", request.call.step],
        "env": env,
        "resources": {"limits": limits, "requests": requests},
        "securityContext": dict(SECURITY),
        "terminationMessagePath": RECEIPT,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    if request.cwd is not None:
        container["workingDir"] = str(request.cwd)
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **_whereabouts(pods, place, place.pool.scheduler or admitted.scheduler),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": math.ceil(pods.patience.grace_s),
            "automountServiceAccountToken": pods.service_account_token,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": pods.user,
                "runAsGroup": pods.user,
                "fsGroup": pods.user,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }
    # The runner ends it in time. This is for a runner that is no more.
    patience = pods.patience
    deadline_s = patience.run_s if request.timeout_s is None else request.timeout_s + 2 * patience.grace_s
    if math.isfinite(deadline_s):
        pod["spec"]["activeDeadlineSeconds"] = min(math.ceil(deadline_s), MOST_DEADLINE_S)
    return Made(pod, _secret(metadata, hidden), place, memory_bytes)


def _resources(request: RunRequest, place: Place) -> tuple[dict[str, str], dict[str, str], int]:
    size = place.size
    memory = f"{request.memory_mb}Mi" if request.memory_mb is not None else size.memory
    cpu = f"{request.cpus:g}" if request.cpus is not None else size.cpu
    limits = {"cpu": cpu, "memory": memory}
    # A task that says what it needs has said it for the node's planning, too.
    requests = {
        "cpu": size.requests.get("cpu", cpu) if request.cpus is None else cpu,
        "memory": size.requests.get("memory", memory) if request.memory_mb is None else memory,
    }
    if place.resource:
        limits[place.resource] = requests[place.resource] = str(size.accelerators)
    return limits, requests, int(quantity(memory))


def _environment(
    request: RunRequest, pods: Pods, place: Place, limits: Mapping[str, str], spawned_at: str
) -> dict[str, str]:
    """All variables, the later ones in the place of the earlier."""
    memory_mb = int(quantity(limits["memory"])) // MIB
    found = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": SCRATCH,
        # The image's list of users may not know this one, and MLflow asks for its name.
        "USER": "airloop",
        "TMPDIR": "/tmp",  # noqa: S108  a volume of the pod's own
        **limit_environment(memory_mb=memory_mb, cpus=float(quantity(limits["cpu"]))),
        **place.profile.environment,
        **request.environment,
        **pods.environment,
        **place.pool.environment,
        **place.size.environment,
        **request.secrets,
        "AIRLOOP_COLLECTIVE": place.backend,
        ENV_CALL: request.call.to_json(),
        ENV_RECEIPT: RECEIPT,
        ENV_LOG_FORMAT: "json",
        ENV_SPAWNED_AT: spawned_at,
        ENV_SECRETS: ",".join([*request.secrets, *pods.secrets]),
    }
    home = found.get("AIRLOOP_HOME", "")
    if not _kept(home, pods):
        found["AIRLOOP_HOME"] = SCRATCH
    # Where the runner will look for the manifest, whatever else is said.
    found["AIRLOOP_ARTIFACTS"] = str(request.artifacts)
    return {name: value for name, value in found.items() if name in request.secrets or name not in pods.secrets}


def check_state(environment: Mapping[str, str], pods: Pods) -> None:
    """
    Refuse what would be written into the pod and be gone with it.

    A path below the scratch folder is taken as given on purpose.

    :raises BadConfiguration: a part of the state is neither at an address nor on a shared volume.
    """
    shared = _kept(environment.get("AIRLOOP_HOME", ""), pods)
    if environment.get("AIRLOOP_LOCKS") == LOCAL and not shared:
        raise BadConfiguration(
            f"AIRLOOP_LOCKS is {LOCAL}: files below AIRLOOP_HOME, a folder of this machine that pods do not have",
            "set it to the address of a PostgreSQL",
        )
    for part in STATE:
        name = f"AIRLOOP_{part}"
        value = environment.get(name, "")
        if not value and (shared or name in pods.secrets):
            continue
        if not value:
            raise BadConfiguration(
                f"{name} is not given, and pods have no folder to keep it in",
                f"set it to an address, or mount a volume at AIRLOOP_HOME (volumes in {pods.origin})",
            )
        path = _local_path(value)
        if path is not None and not (_kept(path, pods) or _below(path, SCRATCH)):
            raise BadConfiguration(
                f"{name} is {path}, a folder of this machine that pods do not have",
                f"set it to an address, or mount it in pods (volumes in {pods.origin})",
            )


def _local_path(value: str) -> str | None:
    """The path that a setting names; None: it is an address of something elsewhere."""
    if "://" not in value:
        return value
    parts = urlsplit(value)
    if parts.scheme.partition("+")[0] == "sqlite":
        return unquote(parts.path)[1:] or "/"
    return unquote(parts.path) if parts.scheme in ("file", "unix") else None


def _kept(path: str, pods: Pods) -> bool:
    return any(_below(path, volume.path) for volume in pods.volumes if volume.claim)


def _below(path: str, folder: str) -> bool:
    pure = PurePosixPath(path)
    return pure.is_absolute() and ".." not in pure.parts and pure.is_relative_to(folder)


def _apart(environment: Mapping[str, str], request: RunRequest) -> tuple[dict[str, str], dict[str, str]]:
    """What may be seen by all who see pods, and what may not."""
    redact = Redactor(request.secrets.values(), environment)
    plain: dict[str, str] = {}
    hidden: dict[str, str] = {}
    for name, value in environment.items():
        secret = name in request.secrets or redact(value) != value
        (hidden if secret else plain)[name] = value
    return plain, hidden


def _reference(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _secret(metadata: Mapping[str, Any], hidden: Mapping[str, str]) -> dict[str, Any] | None:
    if not hidden:
        return None
    # Bytes that are no text come from the environment as surrogates.
    data = {
        key: base64.b64encode(value.encode(errors="surrogateescape")).decode("ascii") for key, value in hidden.items()
    }
    about = {key: metadata[key] for key in ("name", "namespace", "labels")}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "type": "Opaque", "data": data}


def _volumes(pods: Pods, place: Place) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    limit = {"sizeLimit": place.size.scratch} if place.size.scratch else {}
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": dict(limit)},
        {"name": "tmp", "emptyDir": dict(limit)},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]
    if place.size.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": place.size.shared_memory}
        volumes.append({"name": "shm", "emptyDir": memory})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    for number, volume in enumerate(pods.volumes):
        name = f"volume-{number}"
        if volume.claim:
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": volume.claim}})
        else:
            volumes.append({"name": name, "configMap": {"name": volume.config_map}})
        read_only = volume.read_only or bool(volume.config_map)
        mounts.append({"name": name, "mountPath": volume.path, "readOnly": read_only})
    return volumes, mounts


def _whereabouts(pods: Pods, place: Place, scheduler: str) -> dict[str, Any]:
    """Where it may run; only what is asked for is there."""
    pool = place.pool
    found = {
        "nodeSelector": dict(pool.node_selector),
        "tolerations": [dict(t) for t in pool.tolerations],
        "affinity": dict(pool.affinity),
        "priorityClassName": pool.priority_class,
        "runtimeClassName": pool.runtime_class,
        "schedulerName": scheduler,
        "serviceAccountName": pods.service_account,
        "imagePullSecrets": [{"name": name} for name in pods.pull_secrets],
    }
    return {key: value for key, value in found.items() if value}
