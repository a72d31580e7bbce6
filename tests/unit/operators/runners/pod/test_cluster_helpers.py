"""What the tests of a real cluster lean on: their settings, and a way to an API server that speaks TLS."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificate import Certificate
from tests.cluster import reach
from tests.cluster.conftest import make_namespace, small, try_out
from tests.cluster.settings import PREFIX, REQUIRED, SETTINGS, Missing, Told
from tests.cluster.test_loop import config_maps
from tests.cluster.world import World
from tests.small_cluster import SmallCluster
from tests.way import Way

GIVEN = {"KUBECONFIG": "", f"{PREFIX}_PAYLOAD": "airloop/payload:1"}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config").write_text("{}")
    return {**GIVEN, "KUBECONFIG": str(tmp_path / "config")}


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_missing_is_named_with_what_it_should_be(given: dict[str, str], name: str) -> None:
    del given[name]
    with pytest.raises(Missing) as missing:
        Told.read(given)
    assert str(missing.value) == f"{name} is not set: {SETTINGS[name]}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3", "s3://bucket"),
        ("S3", "http://host:8333/bucket"),
        ("S3", "http://k:open-sesame@host:8333"),
        ("PULL", "Sometimes"),
    ],
)
def test_what_cannot_be_right_is_named_too(given: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(Missing) as missing:
        Told.read({**given, f"{PREFIX}_{name}": value})
    assert f"{PREFIX}_{name}" in str(missing.value)
    assert SETTINGS[f"{PREFIX}_{name}"] in str(missing.value)
    assert "sesame" not in str(missing.value)


def test_several_kube_configs_are_refused_with_how_to_make_them_one(given: dict[str, str]) -> None:
    with pytest.raises(Missing, match="kubectl config view --flatten"):
        Told.read({**given, "KUBECONFIG": f"{given['KUBECONFIG']}:/another"})


def test_settings_are_read(given: dict[str, str]) -> None:
    more = {
        f"{PREFIX}_S3": "http://k%40y:s%2Fecret@10.0.0.5:8333/lake/tests",
        f"{PREFIX}_S3_HERE": "http://127.0.0.1:8333/",
        f"{PREFIX}_NODES": "one, two",
    }
    told = Told.read({**given, **more})
    assert told.pull == "Never"
    assert told.nodes == ("one", "two")
    assert told.store is not None
    assert (told.store.endpoint, told.store.here) == ("http://10.0.0.5:8333", "http://127.0.0.1:8333")
    assert (told.store.key, told.store.secret) == ("k@y", "s/ecret")
    assert (told.store.bucket, told.store.prefix) == ("lake", "tests")
    assert "s/ecret" not in repr(told)


def test_an_address_that_pods_cannot_reach_is_none() -> None:
    assert reach.own_address("192.0.2.7", []) == "192.0.2.7"
    with pytest.raises(Missing, match=f"{PREFIX}_ADDRESS is not set"):
        reach.own_address("", ["127.0.0.1", "::1"])


class _Version(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with suppress(OSError):  # who does not trust its certificate goes in the middle of a handshake
            super().handle_one_request()

    def do_GET(self) -> None:
        content = b'{"major": "1", "minor": "36", "gitVersion": "v1.36.0"}'
        self.send_response(200 if self.path == "/below/version/" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[int]:
    """A server whose certificate is for another name than its address; its port."""
    certificate = Certificate.make(tmp_path, "cluster.example")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Version)
    server.daemon_threads = True
    server.socket = certificate.over(server.socket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def _config(port: int, host: str = "cluster.example") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [
            {"name": "k", "cluster": {"server": f"https://{host}:{port}/below", "certificate-authority": "cert.pem"}}
        ],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }


@pytest.mark.parametrize("right", [True, False], ids=["the server's name", "another"])
def test_tls_holds_on_the_way(tls_server: int, tmp_path: Path, right: bool) -> None:
    """A kube config leads over the way, and the server still has to be the one that it names."""
    if not os.environ.get("CI"):
        pytest.importorskip("kubernetes")
    from kubernetes.client import VersionApi
    from kubernetes.config import new_client_from_config
    from urllib3.exceptions import MaxRetryError

    config = _config(tls_server, "cluster.example" if right else "another.example")
    assert reach.server_of(config) == (
        config["clusters"][0]["cluster"]["server"].split("/")[2].split(":")[0],
        tls_server,
    )
    (tmp_path / "elsewhere").mkdir()
    with Way(("127.0.0.1", tls_server)) as way:
        written = reach.write(reach.through(config, tmp_path, way), tmp_path / "elsewhere/config")
        assert written.stat().st_mode & 0o077 == 0, "it holds credentials"
        with closing(new_client_from_config(config_file=str(written))) as client:
            if right:
                assert b"v1.36.0" in VersionApi(client).get_code(_preload_content=False).data
                assert way.connections == 1
            else:
                with pytest.raises(MaxRetryError, match="certificate verify failed"):
                    VersionApi(client).get_code(_request_timeout=60)


def test_a_kube_config_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with Way(("127.0.0.1", 9)) as way:
        with pytest.raises(Missing, match="no current context"):
            reach.through({**_config(1), "current-context": "other"}, tmp_path, way)
        config = _config(1)
        config["clusters"][0]["cluster"]["proxy-url"] = "http://proxy:3128"
        with pytest.raises(Missing, match="http://proxy:3128"):
            reach.through(config, tmp_path, way)


def test_a_way_is_closed_for_a_while_and_cut(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            with end:
                while data := end.recv(100):
                    end.sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    with closing(listener), Way(listener.getsockname()) as way:
        with socket.create_connection(way.place, timeout=60) as one:
            one.sendall(b"hello")
            assert one.recv(100) == b"hello"
            way.cut()
            assert one.recv(100) == b""
        way.away(3600)
        with socket.create_connection(way.place, timeout=60) as one:
            assert one.recv(100) == b""
        way.away(0)
        with socket.create_connection(way.place, timeout=60) as one:
            one.sendall(b"again")
            assert one.recv(100) == b"again"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(way.place, timeout=60)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The cluster in little."""
    if not os.environ.get("CI"):
        pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")
    with ExitStack() as stack:
        yield small(tmp_path, stack)


def test_a_namespace_on_its_way_out_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests of a minute ago have left it."""
    from kubernetes.client.exceptions import ApiException

    def remove_when_tried(cluster: SmallCluster, name: str) -> None:
        tried.wait(60)
        remove(cluster, name)

    tried, remove = threading.Event(), SmallCluster._remove_namespace
    monkeypatch.setattr(SmallCluster, "_remove_namespace", remove_when_tried)
    assert make_namespace(world)
    assert not make_namespace(world), "it is there"
    world.core.delete_namespace(world.namespace)
    late = {"metadata": world.about("late"), "data": {}}
    with pytest.raises(ApiException, match="because it is being terminated"):
        world.core.create_namespaced_config_map(world.namespace, late)
    tried.set()
    assert make_namespace(world)
    world.core.create_namespaced_config_map(world.namespace, late)


def test_the_loops_files_fit_into_config_maps(world: World, tmp_path: Path) -> None:
    from kubernetes.client.exceptions import ApiException

    assert len(config_maps(world, tmp_path / "data")) == 3
    too_much = {"metadata": world.about("too-much"), "data": {"rows": "x" * (1 << 20), "more": "x"}}
    with pytest.raises(ApiException, match="may not be more than 1048576 bytes"):
        world.core.create_namespaced_config_map(world.namespace, too_much)


def test_an_image_that_cannot_do_a_step_is_told_before_all_tests_fail_by_it(world: World) -> None:
    try_out(world)
    world.image = "airloop/none:1"
    with pytest.raises(Missing, match=f"{PREFIX}_PAYLOAD=airloop/none:1: .* ErrImageNeverPull.* of this very revision"):
        try_out(world)


def test_the_services_are_what_a_cluster_takes_and_what_people_are_told() -> None:
    import kubernetes_validate
    import yaml

    folder = Path(reach.__file__).parent
    objects = list(yaml.safe_load_all((folder / "services.yaml").read_text()))
    for version in ("1.30", "1.36"):
        for found in objects:
            kubernetes_validate.validate(found, version, strict=True)
    (secret,) = (o["stringData"] for o in objects if o["kind"] == "Secret")
    (identity,) = json.loads(secret["s3.json"])["identities"]
    told = (folder / "README.md").read_text()
    key = identity["credentials"][0]
    assert f"http://{key['accessKey']}:{key['secretKey']}@$node:" in told
    assert f":{secret['password']}@airloop-test-postgresql:" in told
    services = {o["metadata"]["name"]: o["spec"]["ports"][0] for o in objects if o["kind"] == "Service"}
    for name, port in services.items():
        assert (f"{name}:{port['port']}" in told) or f"@$node:{port['nodePort']}/" in told
    deployments = [o["spec"]["template"] for o in objects if o["kind"] == "Deployment"]
    assert {d["metadata"]["labels"]["app"] for d in deployments} == set(services)
    assert all(d["spec"]["securityContext"]["runAsNonRoot"] for d in deployments)
