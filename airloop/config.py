"""
Configuration of the payload: read once from the environment at the edge, then passed down, never changed.

Every field has a default below one folder, ``AIRLOOP_HOME``. In Airflow the operators hand the ``[airloop]`` section
of ``airflow.cfg`` to the payload as these same variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from airloop import postgres
from airloop.errors import BadConfiguration

LOCAL = "local"
"""``AIRLOOP_LOCKS`` of a loop whose steps all run on one machine."""


def find_home(start: Path | None = None) -> Path:
    """``.airloop`` in the current folder or the nearest one above it, else ``~/.airloop``."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / ".airloop").is_dir():
            return folder / ".airloop"
    return Path.home() / ".airloop"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis or Valkey is. As text it has no password."""

    url: str = field(repr=False)

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """
        The address, or None if the value is none: then it is a path.

        :raises BadConfiguration: it is an address of another kind, or cannot be read.
        """
        scheme, separator, _ = value.partition("://")
        if not separator:
            return None
        try:
            parts = urlsplit(value)
            readable = bool(parts.path if scheme == "unix" else parts.hostname) and parts.port != 0
        except ValueError:
            readable = False
        if scheme not in ("redis", "rediss", "unix") or not readable:
            raise BadConfiguration(
                f"the online store is an address that cannot be read, of kind {scheme}",
                "give a path, or redis://host:port/database, rediss://… or unix:///path/to/socket",
            )
        return cls(value)

    def __str__(self) -> str:
        return without_password(self.url)


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where files are in a bucket of an S3-compatible store. Credentials are no part of it."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty: the whole bucket."""

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """
        The address, or None if the value is none: then it is a path.

        :raises BadConfiguration: it is an address of another kind, or has more in it than bucket and prefix.
        """
        scheme, separator, rest = value.partition("://")
        if not separator:
            return None
        bucket, _, prefix = rest.partition("/")
        parts = prefix.strip("/").split("/") if prefix.strip("/") else []
        if scheme != "s3" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise BadConfiguration(
                f"{without_password(value)} is no address of files", "give a path or s3://bucket/prefix"
            )
        if any(part in ("", ".", "..") or re.search(r"[^\w.=+-]", part, re.ASCII) for part in parts):
            raise BadConfiguration(
                f"{value} has a prefix that is no plain path", "use letters, digits, and . _ = + - between slashes"
            )
        return cls(bucket, "/".join(parts))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Where state lives and how much of the machine a step may use."""

    home: Path
    """``AIRLOOP_HOME``: folder of everything that follows, unless said otherwise. A local file system."""
    warehouse: Path | S3Address
    """``AIRLOOP_WAREHOUSE``: folder of the Iceberg tables' files, or ``s3://bucket/prefix``; credentials and address of
    the store: :mod:`airloop.warehouse.s3`."""
    catalog: str = field(repr=False)
    """``AIRLOOP_CATALOG``: SQLAlchemy address of the Iceberg catalog, ``sqlite:///path`` or, for processes on several
    machines, ``postgresql+psycopg://user:password@host:port/database``. Locks between processes are there too. Or an
    Iceberg REST catalog: ``rest+https://host/path``, see :mod:`airloop.warehouse.rest`."""
    artifacts: Path | S3Address
    """``AIRLOOP_ARTIFACTS``: folder of manifests, attempts' records, reports and step artifacts, or
    ``s3://bucket/prefix``; credentials and address of the store: :mod:`airloop.objects.bucket`."""
    mlflow: str = field(repr=False)
    """``AIRLOOP_MLFLOW``: MLflow tracking and registry address; may hold a password."""
    mlflow_artifacts: str
    """``AIRLOOP_MLFLOW_ARTIFACTS``: where MLflow keeps the files of runs; used when it has no server."""
    feature_repo: Path | None
    """``AIRLOOP_FEATURE_REPO``: folder with ``feature_store.yaml`` and the Feast definitions; default ``feature_repo``
    beside ``home``, if it is there."""
    online_store: Path | RedisAddress
    """``AIRLOOP_ONLINE_STORE``: SQLite file of the online features, or the address of a Redis or Valkey (7 or newer):
    ``redis://[[user]:password@]host[:port][/database]``, ``rediss://…`` with TLS, ``unix://…/socket[?db=…]``."""
    feast_registry: Path | str = field(repr=False)
    """``AIRLOOP_FEAST_REGISTRY``: file of the Feast registry, or the address of a PostgreSQL that holds it:
    ``postgresql+psycopg://user:password@host:port/database``."""
    locks: str = field(repr=False, default="")
    """``AIRLOOP_LOCKS``: where locks between processes are, if not where the catalog is: the address of a PostgreSQL,
    or ``local``, files below ``home``, where all steps run on one machine. A REST catalog needs one of the two."""
    rows_per_chunk: int = 1_000_000
    """``AIRLOOP_ROWS_PER_CHUNK``: rows held in memory at a time when files and tables are streamed."""
    threads: int = 0
    """``AIRLOOP_THREADS``: threads of DuckDB and of trainers; 0: as many as the process may use."""
    memory_mb: int = 2048
    """``AIRLOOP_MEMORY_MB``: memory that DuckDB may take before it spills to disk, MiB."""
    prices: Path | None = None
    """``AIRLOOP_PRICES``: YAML or JSON file of what an hour of a resource costs, for ``airloop cost``."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, *, home: Path | None = None) -> Self:
        """
        :param home: used when ``AIRLOOP_HOME`` is not set; default :func:`find_home`.
        :raises BadConfiguration: a value cannot be read.
        """
        root = Path(environment.get("AIRLOOP_HOME") or home or find_home()).expanduser().resolve()

        beside = root.parent / "feature_repo"

        def path(name: str, default: Path | None) -> Any:
            value = environment.get(f"AIRLOOP_{name}")
            return Path(value).expanduser().resolve() if value else default

        def number(name: str, default: int, least: int) -> int:
            value = environment.get(f"AIRLOOP_{name}", "").strip()
            if not value:
                return default
            if not value.isdecimal() or int(value) < least:
                raise BadConfiguration(f"AIRLOOP_{name}={value!r}", f"give a whole number of at least {least}")
            return int(value)

        registry = environment.get("AIRLOOP_FEAST_REGISTRY", "")
        online = RedisAddress.parse(environment.get("AIRLOOP_ONLINE_STORE", ""))
        return cls(
            home=root,
            warehouse=place_of(environment.get("AIRLOOP_WAREHOUSE", "")) or root / "warehouse",
            catalog=environment.get("AIRLOOP_CATALOG") or f"sqlite:///{root / 'catalog.db'}",
            artifacts=place_of(environment.get("AIRLOOP_ARTIFACTS", "")) or root / "artifacts",
            mlflow=environment.get("AIRLOOP_MLFLOW") or f"sqlite:///{root / 'mlflow.db'}",
            mlflow_artifacts=environment.get("AIRLOOP_MLFLOW_ARTIFACTS") or str(root / "mlflow"),
            feature_repo=path("FEATURE_REPO", beside if (beside / "feature_store.yaml").is_file() else None),
            online_store=online or path("ONLINE_STORE", root / "online.db"),
            feast_registry=postgres.checked(registry, "AIRLOOP_FEAST_REGISTRY")
            if "://" in registry
            else path("FEAST_REGISTRY", root / "feast-registry.db"),
            locks=environment.get("AIRLOOP_LOCKS", ""),
            rows_per_chunk=number("ROWS_PER_CHUNK", 1_000_000, 1),
            threads=number("THREADS", 0, 0),
            memory_mb=number("MEMORY_MB", 2048, 64),
            prices=path("PRICES", None),
        )

    def cpu_threads(self) -> int:
        """Threads to use: ``threads``, or the processors that this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    def describe(self) -> dict[str, str]:
        """The fields for people: addresses without their passwords."""
        return {f.name: without_password(str(getattr(self, f.name))) for f in fields(self)}


def place_of(value: str) -> Path | S3Address | None:
    """
    What a setting says of where files are: a folder, or a place in a bucket; None if it is empty.

    :raises BadConfiguration: it is an address of another kind.
    """
    return (S3Address.parse(value) or Path(value).expanduser().resolve()) if value else None


def is_rest(catalog: str) -> bool:
    """Whether the address of a catalog is that of an Iceberg REST catalog."""
    return catalog.startswith(("rest+http://", "rest+https://"))


def own_catalog(config: Config, what: str) -> None:
    """
    Refuse a catalog whose tables and files may be others' too.

    :param what: what would change or remove them, for the error: "airloop gc".
    :raises BadConfiguration: the catalog is an Iceberg REST catalog.
    """
    if is_rest(config.catalog):
        raise BadConfiguration(
            f"{what} does not know what else an Iceberg REST catalog keeps in {config.warehouse}",
            "use the catalog's own maintenance, which must not expire snapshots that models and runs name",
        )


def without_password(address: str) -> str:
    """The same address with its passwords, if it has any, replaced by ``***``; also one that cannot be read."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    # Up to the last @: a password may hold one, or a slash, that should have been escaped.
    known, at, place = rest.rpartition("@")
    user, colon, _ = known.partition(":")
    if at and colon and "/" not in user:
        rest = f"{user}:***@{place}"
    rest = re.sub(r"(?i)([?&]\w*pass(?:word|wd)?=)[^&#]*", r"\1***", rest)
    return f"{scheme}://{rest}"
