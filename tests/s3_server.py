"""An S3-compatible store of the tests' own, and a way to it on which answers get lost."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.ports import free_port

KEY, SECRET = "airloop-tests", "of-the-tests-alone"
ADMIN_KEY, ADMIN_SECRET = "airloop-admin", "of-the-fixture-alone"
STARTS_S = 240
TABLES = "airloop-tables"
"""The bucket whose tables the Iceberg REST catalog keeps."""
GRPC = 10_000
"""What the server adds to a port for the one beside it."""


@dataclass
class S3Server:
    """Where a store is, and how one gets in."""

    endpoint: str
    key: str
    secret: str
    admin: tuple[str, str]
    """Key and secret of who may make buckets."""
    command: list[str] = field(default_factory=list)
    """How it is started; empty for one that is not ours."""
    process: subprocess.Popen[bytes] | None = None
    iceberg: str = ""
    """Address of its Iceberg REST catalog, of the tables in :data:`TABLES`; empty if it is not known to have one."""
    master: str = ""
    """Address of its part that knows where contents are."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """Boto's own client: tests look at the store past our code."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=self.admin[0], aws_secret_access_key=self.admin[1],
        )  # fmt: skip

    def make_bucket(self, name: str) -> None:
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)

    def objects(self, place: str) -> dict[str, dict[str, Any]]:
        """What the store lists below ``s3://bucket/prefix``, by the rest of its name: digest, size and time."""
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        with closing(self.client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
            return {o["Key"].removeprefix(f"{prefix}/"): o for page in pages for o in page.get("Contents", ())}

    def copy(self, source: str, target: str) -> None:
        """Copy all that is below one place to another one."""
        (bucket, _, prefix), (other, _, below) = (p.removeprefix("s3://").partition("/") for p in (source, target))
        with closing(self.client()) as client:
            for name in self.objects(source):
                there = {"Bucket": bucket, "Key": f"{prefix}/{name}"}
                client.copy_object(Bucket=other, Key=f"{below}/{name}", CopySource=there)

    def remove(self, place: str) -> None:
        """Remove all that is below a place."""
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        with closing(self.client()) as client:
            for name in self.objects(place):
                client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")

    def start(self) -> None:
        """Start it, or start it again with what it held."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTS_S
        while True:
            with suppress(Exception), closing(self.client()) as client:
                client.list_buckets()
                if self._has_contents():
                    return
            assert self.process.poll() is None, f"{' '.join(self.command)} ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"{' '.join(self.command)} does not answer"
            time.sleep(0.1)

    def _has_contents(self) -> bool:
        """Whether the part that has the contents has come: the store answers, and lists, a moment before it."""
        with urllib.request.urlopen(f"{self.master}/dir/status", timeout=30) as answer:
            centers = json.load(answer)["Topology"]["DataCenters"] or []
        return any(node for center in centers for rack in center["Racks"] or [] for node in rack["DataNodes"] or [])

    def kill(self) -> None:
        """End it as a lost machine ends."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def given(address: str) -> S3Server:
    """One that is there already: ``http://KEY:SECRET@host:port``, each part percent-encoded."""
    parts = urlsplit(address)
    endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    user = unquote(parts.username or ""), unquote(parts.password or "")
    return S3Server(endpoint, *user, admin=user)


def program() -> str | None:
    """The server's program; None if it is not installed."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A SeaweedFS that keeps its files in a folder."""
    weed = program()
    assert weed is not None
    # One who may make buckets makes them by putting something there.
    users = {(KEY, SECRET): ["Read", "Write", "List", "Tagging"], (ADMIN_KEY, ADMIN_SECRET): ["Admin"]}
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in users.items()
    ]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    ports = s3, master, volume, filer, admin, iceberg = [free_port(beside=GRPC) for _ in range(6)]
    server = S3Server(
        f"http://127.0.0.1:{s3}", KEY, SECRET, (ADMIN_KEY, ADMIN_SECRET),
        [
            weed, "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
            f"-s3.config={settings}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", f"-s3.port.iceberg={iceberg}",
            "-s3.port.lance=0", f"-tableBucket={TABLES}", "-master.telemetry=false",
        ],
        iceberg=f"http://127.0.0.1:{iceberg}",
        master=f"http://127.0.0.1:{master}",
    )  # fmt: skip
    try:
        server.start()
        yield server
    finally:
        server.kill()
        # It makes a socket there for each of its ports, wherever its folder is.
        for number in (n for port in ports for n in (port, port + GRPC)):
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                path.unlink(missing_ok=True)


class Lossy:
    """A way to a server on which the next answers get lost after the server gave them."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.to_lose = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for work in (self._forward, self._back):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        _shut(server)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if self.to_lose and not data.startswith(b"HTTP/1.1 100"):
                    self.to_lose -= 1
                    break
                client.sendall(data)
        for end in (client, server):
            _shut(end)
            end.close()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
