"""
Sizes and pools of pods: configuration, not a matter of DAG files.

``[airloop] sizes`` names a YAML or JSON file. A DAG says ``size="gpu"``; the file says what that is on this cluster::

    namespace: airloop
    images: {cpu: registry.example/airloop:1.4-cpu, cuda: registry.example/airloop:1.4-cuda}
    secrets:
      AWS_SECRET_ACCESS_KEY: {secret: airloop-s3, key: secret_key}
    pools:
      gpu:
        accelerator: nvidia
        node_selector: {pool: gpu}
        tolerations: [{key: pool, value: gpu, effect: NoSchedule}]
    sizes:
      small: {cpu: 1, memory: 2Gi}
      gpu: {pool: gpu, accelerators: 1, cpu: 8, memory: 32Gi, shared_memory: 8Gi}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from airloop.errors import BadConfiguration
from airloop_operators.runners.pod.profiles import Profile, backend_of, profile_of, resource_of
from airloop_operators.runners.pod.queues import check_queue

T = TypeVar("T")

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|)", re.ASCII)
_SCALE = {"m": Decimal("0.001"), "": Decimal(1)}
_SCALE |= {unit: Decimal(1000) ** n for n, unit in enumerate(("k", "M", "G", "T", "P"), 1)}
_SCALE |= {unit: Decimal(1024) ** n for n, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), 1)}


def quantity(text: str | int | float, what: str = "quantity") -> Decimal:
    """
    A Kubernetes quantity as a number: ``2Gi`` is 2,147,483,648, ``500m`` is 0.5.

    :raises BadConfiguration: it is none, or not above 0.
    """
    found = _QUANTITY.fullmatch(str(text).strip())
    number = Decimal(found[1]) * _SCALE[found[2]] if found and not isinstance(text, bool) else Decimal(0)
    if number <= 0:
        raise BadConfiguration(f"{what} {text!r} is no quantity above 0", "write it as Kubernetes does: 500m, 2, 4Gi")
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Nodes of a kind, and how a pod gets to them."""

    accelerator: str = "cpu"
    """A profile (:data:`.profiles.PROFILES`)."""
    resource: str = ""
    """The cluster's own name for it, if it is not the profile's."""
    backend: str = ""
    """Collective back end; default: the profile's best."""
    image: str = ""
    """Instead of ``images``' for the profile's variant."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    priority_class: str = ""
    runtime_class: str = ""
    scheduler: str = ""
    """Default: the cluster's own, or Volcano's."""
    gang: str = ""
    """Who admits pods, all ranks of a step or none: ``kueue`` or ``volcano`` (:mod:`.queues`); default: nobody."""
    queue: str = ""
    """Its queue."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    budget: str = ""
    """One of ``budgets``, of which a task takes as many slots as its pod has accelerators; default: nobody counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a pod gets. Requests equal limits, so that a node does not evict half-done work."""

    cpu: str = "1"
    memory: str = "2Gi"
    requests: Mapping[str, str] = field(default_factory=dict)
    """Less than the limits, where nodes are shared: ``{cpu: 100m}``."""
    shared_memory: str = ""
    """Of /dev/shm, in memory and part of the limit; default: the container runtime's 64 MiB."""
    scratch: str = ""
    """Limit of the folders for temporary files; default: the node's disk."""
    accelerators: int = 0
    pool: str = ""
    """Name of a pool; default: any node, on its CPU."""
    image: str = ""
    """Instead of the pool's."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """A value in a Secret of the namespace."""

    secret: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """
    A folder of pods: a claim, which they share with whoever else mounts it at the same path, or a ConfigMap's files,
    which they can only read: modules with steps of a team's own, Feast definitions, certificates.
    """

    path: str
    claim: str = ""
    config_map: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds to wait for what may yet come."""

    schedule_s: float = 900.0
    """For a quota, and then for a queue and a node."""
    start_s: float = 600.0
    """For image and volumes, once there is a node."""
    api_s: float = 300.0
    """For an API server that is away."""
    grace_s: float = 10.0
    """Between asking a payload to end and killing it."""
    lost_s: float = 60.0
    """For a node that does not confirm an end, on top of the grace."""
    run_s: float = 604_800.0
    """For the end of a step whose task has no ``execution_timeout``; ``.inf``: for ever, also if its worker is lost."""
    log_s: float = math.inf
    """Between two looks at the log of a deferred task's pod; default, and always for a size with a budget: it is read
    when the pod has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A size with its pool and profile: all that is known of where a step will run."""

    size_name: str
    size: Size
    pool_name: str
    pool: Pool
    profile: Profile
    image: str
    resource: str
    """Extended resource; empty: no accelerator."""
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """The whole file."""

    namespace: str = ""
    """Default: the connection's, else ``default``."""
    connection: str = "kubernetes_default"
    """Airflow connection to the cluster; without it: the pod's own service account, or the default kube config."""
    instance: str = "airloop"
    """Tells two Airflows apart that share a namespace."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Payload image by variant (``cpu``, ``cuda``, ``rocm`` …)."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: Sequence[str] = ()
    service_account: str = ""
    service_account_token: bool = False
    """Whether pods can speak to the API server; steps do not need it."""
    user: int = 10001
    """User and group of the payload; not 0."""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, SecretKey] = field(default_factory=dict)
    """Environment variables from Secrets that are there; their values are never read here."""
    volumes: Sequence[Volume] = ()
    default: str = "small"
    """Size of tasks that name none."""
    sizes: Mapping[str, Size] = field(
        default_factory=lambda: {"small": Size(cpu="1", memory="2Gi"), "large": Size(cpu="4", memory="16Gi")}
    )
    pools: Mapping[str, Pool] = field(default_factory=dict)
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Airflow pools that count accelerators, and their slots (:mod:`airloop_operators.budget`)."""
    patience: Patience = field(default_factory=Patience)
    origin: str = "[airloop] sizes"
    """Where it was read, for errors."""

    def place(self, size_name: str | None) -> Place:
        """
        Where a step of a size runs.

        :raises BadConfiguration: there is no such size, or its parts do not fit.
        """
        name = size_name or self.default
        size = self.sizes.get(name)
        if size is None:
            raise BadConfiguration(f"there is no size {name!r}", f"sizes in {self.origin}: {', '.join(self.sizes)}")
        pool = self.pools.get(size.pool) if size.pool else Pool()
        if pool is None:
            raise BadConfiguration(
                f"size {name!r} is of pool {size.pool!r}, which is not there",
                f"pools in {self.origin}: {', '.join(self.pools) or 'none'}",
            )
        profile = profile_of(pool.accelerator)
        resource = resource_of(profile, pool.resource)
        self._count(name, size, profile)
        image = size.image or pool.image or self.images.get(profile.variant, "")
        if not image:
            raise BadConfiguration(
                f"there is no image for {profile.variant}, which size {name!r} needs",
                f"images in {self.origin}: {', '.join(self.images) or 'none'}; add images: {{{profile.variant}: …}}",
            )
        return Place(
            size_name=name,
            size=size,
            pool_name=size.pool,
            pool=pool,
            profile=profile,
            image=image,
            resource=resource,
            backend=backend_of(profile, pool.backend),
        )

    def _count(self, name: str, size: Size, profile: Profile) -> None:
        count = size.accelerators
        if profile.accelerated and not count:
            raise BadConfiguration(
                f"size {name!r} has no accelerators, its pool {size.pool!r} is of {profile.name}",
                "give accelerators: 1 or more, or a pool without them",
            )
        if count and not profile.accelerated:
            able = [pool for pool, its in self.pools.items() if profile_of(its.accelerator).accelerated]
            raise BadConfiguration(
                f"size {name!r} has accelerators: {count}, but {profile.name!r} has none",
                f"give it a pool that has: {', '.join(able) or 'none is configured'}",
            )
        if profile.most is not None and count > profile.most:
            raise BadConfiguration(
                f"size {name!r} has accelerators: {count}; a pod can use {profile.most} of {profile.name}",
                "use whole devices (nvidia), or several ranks",
            )
        budget = self.pools[size.pool].budget if size.pool else ""
        if budget and count > self.budgets[budget]:
            raise BadConfiguration(
                f"size {name!r} has accelerators: {count}, its budget {budget!r} is {self.budgets[budget]}: its tasks "
                "would wait for ever",
                f"raise budgets.{budget} in {self.origin} and apply it, or give the size fewer",
            )


def read_pods(path: Path | None) -> Pods:
    """
    Read the file; every size in it is checked.

    :param path: None: the built-in sizes, which have no image.
    :raises BadConfiguration: it cannot be read, or something in it cannot be right.
    """
    if path is None:
        return Pods()
    import yaml

    # Read at each parse of a DAG that names a size: libyaml's is ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_text(), Loader=loader)  # noqa: S506  either of them is safe
    except OSError as cause:
        raise BadConfiguration(f"{path} cannot be read: {cause.strerror}", "see [airloop] sizes") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise BadConfiguration(f"{path} is neither YAML nor JSON: {cause}", "see [airloop] sizes") from cause
    return parse_pods(document or {}, origin=str(path))


def parse_pods(document: Any, *, origin: str) -> Pods:
    """:raises BadConfiguration: something in it cannot be right."""
    table: Mapping[str, Any] = _mapping(document, origin)
    given: dict[str, Any] = dict(table)
    for name, read in _NESTED.items():
        if name in given:
            given[name] = read(given[name], f"{origin}: {name}")
    if "sizes" in given and not given["sizes"]:
        del given["sizes"]
    pods = _made(Pods, {**given, "origin": origin}, origin)
    if pods.user == 0:
        raise BadConfiguration(f"{origin}: user is 0", "payloads do not run as root; give another number")
    for name, pool in pods.pools.items():
        if pool.budget and pool.budget not in pods.budgets:
            raise BadConfiguration(
                f"{origin}: pools.{name}.budget is {pool.budget!r}, which is not there",
                f"budgets: {', '.join(pods.budgets) or 'none'}; add budgets: {{{pool.budget}: SLOTS}}",
            )
        if pool.budget and not profile_of(pool.accelerator).accelerated:
            raise BadConfiguration(
                f"{origin}: pools.{name}.budget is {pool.budget!r}, but {pool.accelerator!r} has no accelerators",
                "leave it out, or use Airflow's own pools on the tasks",
            )
    for name in pods.sizes:
        pods.place(name)
    if pods.default not in pods.sizes:
        raise BadConfiguration(
            f"{origin}: default is {pods.default!r}, which is no size", f"sizes: {', '.join(pods.sizes)}"
        )
    if pods.place(pods.default).pool.budget:
        raise BadConfiguration(
            f"{origin}: default is {pods.default!r}, whose accelerators are counted",
            "tasks that name no size are not counted: take another default",
        )
    return pods


def _sizes(value: Any, where: str) -> dict[str, Size]:
    found = {}
    for name, given in _mapping(value, where).items():
        fields_of = dict(_mapping(given, f"{where}.{name}"))
        for key in ("cpu", "memory", "shared_memory", "scratch"):
            if fields_of.get(key) not in (None, ""):
                quantity(fields_of[key], f"{where}.{name}.{key}")
                fields_of[key] = str(fields_of[key])
        size = _made(Size, fields_of, f"{where}.{name}")
        if size.shared_memory and quantity(size.shared_memory) >= quantity(size.memory):
            raise BadConfiguration(
                f"{where}.{name}: shared_memory {size.shared_memory} is not less than memory {size.memory}",
                "it is part of the limit: raise memory",
            )
        for key, least in size.requests.items():
            most = {"cpu": size.cpu, "memory": size.memory}.get(key)
            if most is None or quantity(least, f"{where}.{name}.requests.{key}") > quantity(most):
                raise BadConfiguration(
                    f"{where}.{name}: requests.{key} {least} is above {most}" if most else f"{where}: requests.{key}",
                    "requests are of cpu and memory, and at most the limits",
                )
        if size.accelerators < 0:
            raise BadConfiguration(f"{where}.{name}: accelerators: {size.accelerators}", "give 0 or more")
        found[str(name)] = size
    return found


def _pools(value: Any, where: str) -> dict[str, Pool]:
    found = {}
    for name, given in _mapping(value, where).items():
        pool = found[str(name)] = _made(Pool, _mapping(given, f"{where}.{name}"), f"{where}.{name}")
        check_queue(pool.gang, pool.queue, pool.scheduler, f"{where}.{name}")
    return found


def _secrets(value: Any, where: str) -> dict[str, SecretKey]:
    items = _mapping(value, where).items()
    return {str(n): _made(SecretKey, _mapping(v, f"{where}.{n}"), f"{where}.{n}") for n, v in items}


def _volumes(value: Any, where: str) -> list[Volume]:
    if not isinstance(value, list):
        raise BadConfiguration(f"{where} is not a list", "write - {claim: NAME, path: /srv/airloop}")
    found = [_made(Volume, _mapping(v, where), where) for v in value]
    for volume in found:
        if bool(volume.claim) == bool(volume.config_map):
            raise BadConfiguration(
                f"{where}: {volume.path} has {'a claim and' if volume.claim else 'neither a claim nor'} a config_map",
                "give one of them",
            )
        if not PurePosixPath(volume.path).is_absolute() or PurePosixPath(volume.path) == PurePosixPath("/"):
            raise BadConfiguration(f"{where}: path {volume.path!r}", "give the path of a folder, from / on")
    return found


def _budgets(value: Any, where: str) -> dict[str, int]:
    found = dict(_mapping(value, where))
    for name, slots in found.items():
        if type(slots) is not int or slots < 1:
            raise BadConfiguration(f"{where}.{name} is {slots!r}", "give a whole number of accelerators, 1 or more")
    return {str(name): slots for name, slots in found.items()}


def _patience(value: Any, where: str) -> Patience:
    return _made(Patience, _mapping(value, where), where)


_NESTED: Mapping[str, Callable[[Any, str], Any]] = {
    "sizes": _sizes,
    "pools": _pools,
    "budgets": _budgets,
    "secrets": _secrets,
    "volumes": _volumes,
    "patience": _patience,
}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadConfiguration(f"{where} is a {type(value).__name__}", "write name: value pairs")
    return value


def _made(kind: type[T], given: Mapping[str, Any], where: str) -> T:
    """:raises BadConfiguration: a field is unknown, missing or of a wrong type."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise BadConfiguration(f"{where}: there is no {name!r}", f"possible: {', '.join(known)}")
    values = {}
    for name, declared in known.items():
        if name in given:
            values[name] = _typed(given[name], str(declared.type), f"{where}.{name}")
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise BadConfiguration(f"{where}: {name} is missing", f"possible: {', '.join(known)}")
    return kind(**values)


def _typed(value: Any, declared: str, where: str) -> Any:
    """A value of the kind that a field declares; numbers become text where text is declared, as YAML needs it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if declared == "str" and (isinstance(value, str) or number):
        return str(value)
    if declared == "Mapping[str, str]":
        table = _mapping(value, where)
        if all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in table.values()):
            return {str(k): str(v) for k, v in table.items()}
    elif declared.startswith("Mapping"):
        return _mapping(value, where)
    elif declared.startswith("Sequence"):
        if isinstance(value, list | tuple):
            return value
    elif declared in ("bool", "int") and type(value).__name__ == declared:
        return value
    elif declared == "float" and number and value > 0:
        return float(value)
    elif declared not in ("str", "bool", "int", "float"):
        return value
    wanted = {"str": "text", "int": "a whole number", "float": "a number above 0", "bool": "true or false"}
    wanted["Mapping[str, str]"] = "name: text pairs"
    raise BadConfiguration(f"{where} is {value!r}", f"give {wanted.get(declared, 'a list')}")
