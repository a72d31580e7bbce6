"""How tests reach a cluster, and how its pods reach what runs beside the tests."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from tests.cluster.settings import PREFIX, SETTINGS, Missing
from tests.way import Place, Way

FILES = {"cluster": ("certificate-authority",), "user": ("client-certificate", "client-key", "tokenFile")}
"""Fields of a kube config that are paths, which may be relative to it."""


def server_of(config: dict[str, Any]) -> Place:
    """Host and port of the API server of a kube config's current context."""
    url = urlsplit(_current(config)["server"])
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def through(config: dict[str, Any], folder: Path, way: Way) -> dict[str, Any]:
    """
    A kube config that reaches its API server by a way; the server's certificate is still held to its own name.

    :param folder: where the kube config is.
    :raises Missing: it cannot be led another way.
    """
    made = copy.deepcopy(config)
    for kind, names in FILES.items():
        for entry in made.get(f"{kind}s") or []:
            about = entry.get(kind) or {}
            for name in names:
                if about.get(name):
                    about[name] = str(folder / about[name])
    cluster = _current(made)
    if cluster.get("proxy-url"):
        raise Missing(f"KUBECONFIG names a proxy ({cluster['proxy-url']}); these tests need a direct way to the server")
    url = urlsplit(cluster["server"])
    cluster.setdefault("tls-server-name", url.hostname)
    cluster["server"] = urlunsplit((url.scheme, f"{way.place[0]}:{way.place[1]}", url.path, "", ""))
    return made


def _current(config: dict[str, Any]) -> dict[str, Any]:
    contexts = {entry["name"]: entry["context"] for entry in config.get("contexts") or []}
    context = contexts.get(config.get("current-context") or "")
    clusters = {entry["name"]: entry["cluster"] for entry in config.get("clusters") or []}
    if context is None or context.get("cluster") not in clusters:
        raise Missing("KUBECONFIG has no current context with a cluster: kubectl config use-context NAME")
    found: dict[str, Any] = clusters[context["cluster"]]
    return found


def read(path: Path) -> dict[str, Any]:
    """A kube config."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def write(config: dict[str, Any], path: Path) -> Path:
    """It holds credentials."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


def own_address(told: str, nodes: list[str]) -> str:
    """
    Address of this machine at which pods can reach it.

    :param told: as a person says it; empty: it is looked for.
    :param nodes: addresses of nodes.
    :raises Missing: there is none that is not of this machine alone.
    """
    if told:
        return told
    for node in nodes:
        family = socket.AF_INET6 if ":" in node else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                # Nothing is sent: it says from which address it would be.
                probe.connect((node, 9))
            except OSError:
                continue
            found = str(probe.getsockname()[0])
        if not found.startswith("127.") and found != "::1":
            return found
    raise Missing(
        f"{PREFIX}_ADDRESS is not set, and no address of this machine is one that pods reach: "
        f"{SETTINGS[f'{PREFIX}_ADDRESS']}; or give {PREFIX}_S3, a store that pods reach"
    )
