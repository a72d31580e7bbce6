"""``airloop doctor``: what is installed, configured and reachable, and how to mend what is not."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from airloop import postgres
from airloop.cli.output import Output
from airloop.config import LOCAL, Config, RedisAddress, S3Address, without_password
from airloop.errors import AirloopError
from airloop.objects import open_objects

LIBRARIES = ("pyarrow", "pyiceberg", "duckdb", "great-expectations", "feast", "mlflow", "scikit-learn", "skops")
XGBOOST = ("xgboost-cpu", "xgboost")
OPTIONAL = {"apache-airflow": "to schedule loops: pip install 'airloop[airflow]'", "lightgbm": "trainer=lightgbm"}
LOW_DISK_BYTES = 2 << 30
TIMEOUT_S = 3
"""How long a server may take to answer."""
OLDEST_REDIS = 7
PUTS = 8
"""How many try at once to make the same file in a bucket."""
CHANGERS, CHANGES = 4, 16
"""How many change the same file at once, and how often all of them together."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "note", "bad"]
    found: str
    mend: str = ""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("doctor", help="what is installed, configured, reachable, and how to mend it")
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace, config: Config, output: Output) -> int:
    findings = [f for check in CHECKS for f in check(config)]
    output.data([asdict(f) for f in findings])
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    width = max(len(f.what) for f in findings)
    for f in findings:
        output.say(f"{output.paint(f'{f.state:4}', colours[f.state])}  {f.what:{width}}  {f.found}")
        if f.mend:
            output.say(f"{'':{width + 8}}→ {f.mend}")
    bad = sum(f.state == "bad" for f in findings)
    output.say()
    output.say(f"{bad} to mend." if bad else "Nothing to mend.")
    return 65 if bad else 0


def _python(config: Config) -> Iterator[Finding]:
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("Python", "ok", text)
    else:
        yield Finding("Python", "bad", text, "use Python 3.11 or 3.12")


def _libraries(config: Config) -> Iterator[Finding]:
    for name in LIBRARIES:
        found = _version(name)
        yield Finding(name, "ok" if found else "bad", found or "not installed", "" if found else f"pip install {name}")
    boosters = {name: v for name in XGBOOST if (v := _version(name))}
    if len(boosters) == 2:
        yield Finding("xgboost", "bad", "xgboost and xgboost-cpu are both installed", "uninstall both, install one")
    elif not boosters:
        yield Finding("xgboost", "bad", "not installed", "pip install xgboost-cpu")
    else:
        yield Finding("xgboost", "ok", " ".join(f"{n} {v}" for n, v in boosters.items()))
    for name, use in OPTIONAL.items():
        found = _version(name)
        yield Finding(name, "ok" if found else "note", found or "not installed", "" if found else use)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _home(config: Config) -> Iterator[Finding]:
    for name, folder in {"home": config.home, "warehouse": config.warehouse, "artifacts": config.artifacts}.items():
        if isinstance(folder, S3Address):
            yield _bucket(name, folder)
            continue
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Finding(name, "bad", f"{folder}: cannot write: {error.strerror}", "give your user write access to it")
            continue
        free = shutil.disk_usage(existing).free
        text = f"{folder} ({free / 2**30:,.1f} GiB free)" + ("" if folder.exists() else ", made at first use")
        if free < LOW_DISK_BYTES:
            yield Finding(name, "bad", text, "free some space, or set AIRLOOP_HOME to a larger disk")
        else:
            yield Finding(name, "ok", text)


def _bucket(name: str, address: S3Address) -> Finding:
    """
    Try what manifests, records and indexes rely on: of several puts at once on an absent file one succeeds, and no
    change of a file is lost to another one.
    """
    objects, probe = open_objects(address), f"doctor/{uuid.uuid4().hex}"

    def put(content: bytes) -> bool:
        return objects.publish(probe, content, only_if_absent=True)

    def one_more(content: bytes | None) -> bytes:
        return str(int(content or b"0") + 1).encode()

    def change(_: int) -> None:
        objects.change(probe, one_more)

    try:
        with ThreadPoolExecutor(PUTS) as threads:
            done = sum(threads.map(put, [f"{n}".encode() for n in range(PUTS)]))
        done += put(b"after")
        objects.publish(probe, b"0")
        with ThreadPoolExecutor(CHANGERS) as threads:
            list(threads.map(change, range(CHANGES)))
        changed = int(objects.read(probe) or b"0")
        objects.remove(probe)
    except AirloopError as error:
        return Finding(name, "bad", error.found, error.advice)
    if done != 1:
        return Finding(
            name, "bad", f"{address}: of {PUTS + 1} puts on an absent file {done} succeeded, not 1",
            "attempts would overwrite each other's records: use a release of the store that holds If-None-Match",
        )  # fmt: skip
    # More, if an answer was lost: then the change is made again.
    if changed < CHANGES:
        return Finding(
            name, "bad", f"{address}: of {CHANGES} changes of a file, {CHANGERS} at once, {changed} are in it",
            "processes would undo each other's changes: use a release of the store that holds If-Match",
        )  # fmt: skip
    return Finding(name, "ok", f"{address} can be read and written")


def _format(config: Config) -> Iterator[Finding]:
    if not config.home.exists():
        return
    from airloop.steps import load
    from airloop.upkeep.formats import key_changes
    from airloop.warehouse.home import HOME_FORMAT, check_home, home_format

    try:
        check_home(config.home)
        found = home_format(config.home)
    except AirloopError as error:
        yield Finding("format", "bad", error.found, error.advice)
        return
    # Beside a catalog on a server a home is scratch; the tables say themselves of which format they are.
    of_home = config.catalog.startswith("sqlite:///")
    if of_home and found < HOME_FORMAT and (isinstance(config.warehouse, S3Address) or config.warehouse.exists()):
        yield Finding("format", "note", f"{found}, this airloop's is {HOME_FORMAT}", "run `airloop upgrade`")
    changed = [change.step for change in key_changes(config, load)]
    if changed:
        yield Finding("keys", "note", f"new code or libraries: {', '.join(changed)}", "see `airloop upgrade --dry-run`")


def _sqlite(config: Config) -> Iterator[Finding]:
    for name, address in {"catalog": config.catalog, "MLflow store": config.mlflow}.items():
        if address.startswith("sqlite:///"):
            yield _sqlite_file(name, Path(address.removeprefix("sqlite:///")), "use PostgreSQL")
        elif name == "catalog" and postgres.is_address(address):
            yield _postgres(name, address, "AIRLOOP_CATALOG")
        else:
            yield _reachable(name, address.removeprefix("rest+"))
    if config.locks and config.locks != LOCAL:
        yield _postgres("locks", config.locks, "AIRLOOP_LOCKS")
    if isinstance(config.feast_registry, str):
        yield _postgres("Feast registry", config.feast_registry, "AIRLOOP_FEAST_REGISTRY")


def _postgres(name: str, address: str, setting: str) -> Finding:
    """Ask a PostgreSQL; what it or its client says has no password in it."""
    try:
        with closing(postgres.connect(address, setting, connect_timeout=str(TIMEOUT_S))) as connection:
            version, replica, used, most = connection.execute(
                "SELECT current_setting('server_version'), pg_is_in_recovery(),"
                " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
                " current_setting('max_connections')::int"
            ).fetchone() or ("", False, 0, 0)
    except AirloopError as error:
        return Finding(name, "bad", error.found, error.advice)
    shown = f"PostgreSQL {version.split()[0]} at {postgres.where(address)}"
    if replica:
        return Finding(name, "bad", f"{shown} is a replica", "name the primary")
    if used >= 0.8 * most:
        mend = "raise max_connections: each task that runs takes up to six"
        return Finding(name, "note", f"{shown} has {used} of {most} connections in use", mend)
    return Finding(name, "ok", f"{shown} answers, {used} of {most} connections in use")


def _sqlite_file(name: str, path: Path, instead: str) -> Finding:
    from airloop.warehouse.mounts import file_system, is_network

    if is_network(path):
        mend = f"SQLite loses data there: set AIRLOOP_HOME to a local disk, or {instead}"
        return Finding(name, "bad", f"{path} is on {file_system(path)}", mend)
    return Finding(name, "ok", str(path) if path.exists() else f"{path}, made at first use")


def _reachable(name: str, address: str) -> Finding:
    parts = urlsplit(address)
    # A query may hold a password too.
    shown = without_password(urlunsplit(parts._replace(query="")))
    try:
        port = parts.port or {"http": 80, "https": 443, "postgresql": 5432}.get(parts.scheme.split("+")[0])
    except ValueError:
        return Finding(name, "bad", f"{shown} has no port that can be read", "correct the address")
    if not parts.hostname or not port:
        return Finding(name, "note", f"{shown}: nothing to reach")
    try:
        with socket.create_connection((parts.hostname, port), timeout=TIMEOUT_S):
            return Finding(name, "ok", f"{shown} answers")
    except OSError as error:
        return Finding(name, "bad", f"{shown} does not answer: {error}", "start it, or correct the address")


def _online_store(config: Config) -> Iterator[Finding]:
    name = "online store"
    if isinstance(config.online_store, Path):
        yield _sqlite_file(name, config.online_store, "set AIRLOOP_ONLINE_STORE to a path on one, or to a Redis")
        return
    try:
        yield _redis(name, config.online_store)
    except AirloopError as error:
        yield Finding(name, "bad", error.found, error.advice)


def _redis(name: str, address: RedisAddress) -> Finding:
    """:raises AirloopError: it cannot be asked. What it says has no password in it."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        return Finding(name, "bad", "a Redis, and its client is not installed", "pip install 'airloop[redis]'")
    from airloop.features.online_redis import OnlineRedis, refuse_cluster, understood

    try:
        client = redis.Redis.from_url(address.url, retry=Retry(NoBackoff(), 0))
    except ValueError:
        return Finding(name, "bad", "an address of a Redis that cannot be read", "correct AIRLOOP_ONLINE_STORE")
    with client:
        # Here, because those of the address would come before those of the call.
        client.connection_pool.connection_kwargs |= {"socket_connect_timeout": TIMEOUT_S, "socket_timeout": TIMEOUT_S}
        where = OnlineRedis(client).where
        with understood(where):
            said: Any = client.info("server")
        refuse_cluster(client, where)
    found = str(said.get("valkey_version") or said["redis_version"])
    shown = f"{'Valkey' if 'valkey_version' in said else 'Redis'} {found} at {where}"
    if int(str(said["redis_version"]).partition(".")[0]) < OLDEST_REDIS:
        return Finding(name, "bad", shown, f"use Redis or Valkey {OLDEST_REDIS} or newer")
    return Finding(name, "ok", f"{shown} answers")


def _bucket_of_tables(config: Config) -> Iterator[Finding]:
    """Whether a file can be written, read by DuckDB as tables are, and removed."""
    if not isinstance(config.warehouse, S3Address):
        return
    import duckdb

    from airloop.warehouse import s3, s3io
    from airloop.warehouse.store import storing

    name, address = "tables' files", config.warehouse
    probe = s3io.S3File(f"{address}/doctor-{uuid.uuid4()}")
    try:
        with storing(str(address)), duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
            s3.attach(connection, address)
            with probe.create() as stream:
                stream.write(b"written by airloop doctor")
            try:
                connection.execute("SELECT content FROM read_blob(?)", [probe.location]).fetchall()
            finally:
                s3io.remove(probe.location)
    except AirloopError as error:
        yield Finding(name, "bad", error.found, error.advice)
    except (OSError, duckdb.Error) as error:
        yield Finding(name, "bad", f"{address}: {error}", "see AWS_ENDPOINT_URL_S3, and the store's own log")
    else:
        yield Finding(name, "ok", f"{address} can be written, and read by DuckDB {duckdb.__version__}")


def _warehouse(config: Config) -> Iterator[Finding]:
    # With a catalog on a server the tables are there, whether this machine ran anything or not.
    if config.catalog.startswith("sqlite:///") and not config.home.exists():
        yield Finding("tables", "note", "none yet", "`make demo` or a first run makes some")
        return
    from airloop.warehouse.catalog import Warehouse

    try:
        yield Finding("tables", "ok", f"{len(Warehouse.open(config).tables())} in the catalog")
    except AirloopError as error:
        yield Finding("tables", "bad", error.found, error.advice)


def _features(config: Config) -> Iterator[Finding]:
    if config.feature_repo is None:
        yield Finding("feature repo", "note", "not set", "set AIRLOOP_FEATURE_REPO to use features")
    elif not (config.feature_repo / "feature_store.yaml").is_file():
        yield Finding(
            "feature repo", "bad", f"{config.feature_repo} has no feature_store.yaml", "correct AIRLOOP_FEATURE_REPO"
        )
    else:
        yield Finding("feature repo", "ok", str(config.feature_repo))


def _machine(config: Config) -> Iterator[Finding]:
    yield Finding("processors", "ok", f"{len(os.sched_getaffinity(0))}")


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _python,
    _machine,
    _libraries,
    _home,
    _format,
    _sqlite,
    _online_store,
    _bucket_of_tables,
    _warehouse,
    _features,
)
