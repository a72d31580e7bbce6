"""The feature repository, the table and the Redis of the benchmarks of the online store."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2013, 1, 1, tzinfo=UTC)
END = START + timedelta(days=30)
FEATURES = ("speed", "trips", "score")
REFS = [f"pace:{name}" for name in FEATURES]
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64
from airloop.features.source import IcebergSource
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
pace = FeatureView(
    name="pace", entities=[driver], ttl=timedelta(days=60), source={source},
    schema=[Field(name="driver", dtype=Int64), Field(name="speed", dtype=Float64), Field(name="trips", dtype=Int64),
            Field(name="score", dtype=Float64)],
)
drivers = FeatureService(name="drivers", features=[pace])
"""
SETTINGS = """
project: bench
provider: local
registry: {registry}
offline_store: {{type: {offline}}}
online_store: {online}
batch_engine: {{type: {engine}}}
entity_key_serialization_version: 3
"""


def make(folder: Path, rows: int) -> None:
    """One row for each of ``rows`` drivers, as an Iceberg table and as a Parquet file."""
    import duckdb

    from airloop.warehouse.catalog import Warehouse

    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"""COPY (SELECT i AS driver, (hash(i, 's') % 1000000) / 7.0 AS speed,
            CASE WHEN hash(i, 'n') % 50 > 0 THEN (hash(i, 't') % 100000)::BIGINT END AS trips,
            (hash(i, 'c') % 1000000) / 1e6 AS score,
            TIMESTAMPTZ '{START.isoformat()}' + to_seconds((hash(i, 'e') % 2500000)::BIGINT) AS event_time,
            event_time + INTERVAL 1 MINUTE AS arrival_time FROM range({rows}) t(i)) TO '{folder}/pace.parquet'"""
        )
        reader = connection.execute(f"SELECT * FROM '{folder}/pace.parquet'").to_arrow_reader(1_000_000)
        warehouse = Warehouse.open(config_of(folder, ""))
        warehouse.ensure("features.pace", reader.schema)
        warehouse.commit("features.pace", reader, key="pace")
    repository = folder / "ours"
    repository.mkdir()
    (repository / "views.py").write_text(DEFINITIONS.format(source='IcebergSource(name="pace")'))
    (repository / "feature_store.yaml").write_text(
        SETTINGS.format(
            registry="${AIRLOOP_FEAST_REGISTRY}", offline="airloop.features.store.IcebergOfflineStore",
            online='{type: sqlite, path: "${AIRLOOP_ONLINE_STORE}"}',
            engine="airloop.features.engine.IcebergComputeEngine",
        )
    )  # fmt: skip


def config_of(folder: Path, online: str) -> Any:
    """
    Our configuration.

    :param online: path or address of the online store.
    """
    from airloop.config import Config

    settings = {"AIRLOOP_HOME": str(folder / "home"), "AIRLOOP_FEATURE_REPO": str(folder / "ours")}
    return Config.from_environment(settings | ({"AIRLOOP_ONLINE_STORE": online} if online else {}))


def stock_store(folder: Path, online: str) -> Any:
    """A Feast store with Feast's own engine on the Parquet file."""
    from feast import FeatureStore

    from airloop.config import RedisAddress
    from airloop.features.online_redis import feast_section
    from airloop.features.repo import objects_of

    repository = Path(tempfile.mkdtemp(prefix="stock-", dir=folder))
    source = (
        f'FileSource(name="pace", path="{folder}/pace.parquet", timestamp_field="event_time",'
        ' created_timestamp_column="arrival_time")'
    )
    address = RedisAddress.parse(online)
    section = feast_section(address) if address else {"type": "sqlite", "path": online}
    (repository / "views.py").write_text(DEFINITIONS.format(source=source))
    (repository / "feature_store.yaml").write_text(
        SETTINGS.format(registry=repository / "registry.db", offline="dask", online=json.dumps(section), engine="local")
    )
    store = FeatureStore(str(repository))
    store.apply(objects_of(repository))
    return store


def answers(store: Any, rows: int) -> str:
    """Digest of what Feast serves for a thousand drivers, and for one that nobody knows."""
    drivers = [*range(0, rows, max(rows // 1000, 1)), rows + 1]
    found = store.get_online_features(REFS, [{"driver": d} for d in drivers]).to_dict()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@contextmanager
def redis_server() -> Iterator[str]:
    """
    Address of a Redis of our own, which keeps nothing on disk.

    :raises SystemExit: none is installed.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("redis-server is not installed: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="airloop-redis-") as folder:
        command = [program, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                wait_for(f"unix://{folder}/socket")
                yield f"unix://{folder}/socket"
            finally:
                server.terminate()


def wait_for(url: str) -> None:
    import redis
    from redis.backoff import ConstantBackoff
    from redis.retry import Retry

    with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 200, (redis.ConnectionError,))) as client:
        client.ping()
