"""
Where all state of a loop is: ``embedded``, below one folder, or ``cluster``, on the servers that a platform has.

Those servers are real, and the tests' own. What is secret about them is in Airflow connections and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from demo import Airflow
from stack import Stack
from tests import mlflow_server
from tests.ports import free_port
from tests.postgres_server import PostgresServer
from tests.s3_server import S3Server

ONLINE_PASSWORD = "of the tests' online store/1"


@dataclass(frozen=True)
class Profile:
    """The stores of one loop."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment of all who work on the state: addresses, and nothing secret."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """More of it, which is secret."""
    connections: Sequence[Mapping[str, Any]] = ()
    """Airflow connections that hold the same, as its API takes them."""
    from_connections: Mapping[str, str] = field(default_factory=dict)
    """``connection_id.field`` by variable."""
    airflow: Mapping[str, str] = field(default_factory=dict)
    """Environment of Airflow's own processes: its database."""
    hidden: Sequence[str] = ()
    """Passwords that nobody may find anywhere."""
    place: str = ""
    """Where in a bucket all files are: ``warehouse``, ``artifacts`` and ``mlflow``."""
    databases: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the databases ``airloop`` (catalog, locks and Feast's registry) and ``mlflow``."""
    wait: Callable[[], None] = lambda: None
    """Returns when all servers answer."""

    @property
    def stack(self) -> dict[str, str]:
        """Environment of an Airflow that runs loops on these stores."""
        told = ", ".join(f"{variable}={where}" for variable, where in self.from_connections.items())
        return {**self.airflow, **self.settings, "AIRFLOW__AIRLOOP__SECRETS": told}

    def start(self, stack: Stack, dag_id: str) -> Airflow:
        """Start an Airflow on these stores; it knows the DAG, and where the secrets are."""
        # The profile's servers start meanwhile.
        stack.up(everything=False)
        self.wait()
        airflow = Airflow(stack)
        airflow.wait_for_dag(dag_id)
        for connection in self.connections:
            airflow.call("POST", "/api/v2/connections", connection)
        return airflow

    def reader(self, home: Path) -> dict[str, str]:
        """
        Environment of somebody who looks at the state.

        :param home: that of the loop. With shared stores the reader is on another machine.
        """
        place = home if self.name == "embedded" else home.with_name(f"{home.name}-elsewhere")
        return {"AIRLOOP_HOME": str(place), **self.settings, **self.secrets}


EMBEDDED = Profile("embedded")


@contextmanager
def cluster(
    folder: Path,
    postgres: PostgresServer,
    s3: S3Server,
    bucket: str,
    *,
    fill_mlflow: Callable[[str, str], None] = lambda database, files: None,
) -> Iterator[Profile]:
    """
    Stores on servers, all empty; :attr:`Profile.wait` has to be called before they are used.

    :param folder: an empty one, for what servers write beside their data.
    :param fill_mlflow: is given the addresses of MLflow's empty database and files before its server starts.
    """
    with ExitStack() as stack:
        state, runs, scheduling = (stack.enter_context(postgres.database()) for _ in range(3))
        place = f"s3://{bucket}/tests/{uuid.uuid4().hex}"
        online = stack.enter_context(redis_server(folder))
        # Neither a developer's files nor the machine's own identity.
        aws = {
            "AWS_ENDPOINT_URL_S3": s3.endpoint,
            "AWS_REGION": s3.environment["AWS_REGION"],
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        keys = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret}
        fill_mlflow(runs, f"{place}/mlflow")
        mlflow, process = mlflow_server.start(
            folder,
            store=runs,
            artifacts=f"{place}/mlflow",
            environment={**aws, **keys, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint},
        )
        stack.callback(mlflow_server.end, process)
        catalog = {"connection_id": "airloop_postgres", "conn_type": "postgres", **_parts(state)}
        redis = {"connection_id": "airloop_redis", "conn_type": "redis", **_parts(online)}
        files = {"connection_id": "airloop_s3", "conn_type": "aws", "login": s3.key, "password": s3.secret}
        yield Profile(
            "cluster",
            settings={
                **aws,
                "AIRLOOP_WAREHOUSE": f"{place}/warehouse",
                "AIRLOOP_ARTIFACTS": f"{place}/artifacts",
                "AIRLOOP_MLFLOW": mlflow,
            },
            secrets={
                **keys,
                "AIRLOOP_CATALOG": state,
                "AIRLOOP_FEAST_REGISTRY": state,
                "AIRLOOP_ONLINE_STORE": online,
            },
            connections=[catalog, redis, files],
            from_connections={
                "AWS_ACCESS_KEY_ID": "airloop_s3.login",
                "AWS_SECRET_ACCESS_KEY": "airloop_s3.password",
                "AIRLOOP_CATALOG": "airloop_postgres.uri",
                "AIRLOOP_FEAST_REGISTRY": "airloop_postgres.uri",
                "AIRLOOP_ONLINE_STORE": "airloop_redis.uri",
            },
            airflow={
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": scheduling,
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": scheduling,
            },
            hidden=[s3.secret, str(catalog["password"]), ONLINE_PASSWORD, quote(ONLINE_PASSWORD, safe="")],
            place=place,
            databases={"airloop": state, "mlflow": runs},
            wait=lambda: mlflow_server.wait(folder, mlflow, process),
        )


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Address of a Redis of one's own, with a password; tests empty the one that they share."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        assert not os.environ.get("CI"), "the tests need a redis-server"
        pytest.skip("no redis-server is installed")
    port = free_port()
    settings = folder / "redis.conf"
    settings.write_text(f'bind 127.0.0.1\nport {port}\ndir {folder}\nsave ""\nrequirepass "{ONLINE_PASSWORD}"\n')
    with subprocess.Popen([program, str(settings)], stdout=subprocess.DEVNULL) as server:
        try:
            yield f"redis://:{quote(ONLINE_PASSWORD, safe='')}@127.0.0.1:{port}/0"
        finally:
            server.terminate()


def _parts(address: str) -> dict[str, Any]:
    """Fields of a connection."""
    parts = urlsplit(address)
    found = {
        "host": parts.hostname,
        "port": parts.port,
        "login": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "schema": parts.path.strip("/"),
    }
    return {name: value for name, value in found.items() if value not in ("", None)}
