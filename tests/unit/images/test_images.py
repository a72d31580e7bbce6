"""What can be said of the images without building them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = REPOSITORY / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
BAKE = (REPOSITORY / "docker-bake.hcl").read_text()


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages(dockerfile: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    name = "before"
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "last"
        found.setdefault(name, []).append((word, rest))
    return found


def let_in(path: str) -> bool:
    """Whether .dockerignore lets a path in: the last pattern that matches it, or a folder above it, says."""
    inside = True
    for pattern in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        excluded = pattern.removeprefix("!")
        parts = path.split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        if any(fnmatch(p, excluded) and p.count("/") >= excluded.count("/") for p in above):
            inside = pattern.startswith("!")
    return inside


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda d: d.stem)
def test_what_is_copied_is_there_and_let_in(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word != "COPY" or "--from=" in rest:
            continue
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        for source in sources:
            if "$" not in source:
                assert (REPOSITORY / source).exists(), source
                assert let_in(source), source
    assert not let_in("tests/conftest.py")
    assert not let_in(".git/config")
    assert not let_in("airloop.db")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda d: d.stem)
def test_every_installed_requirement_is_pinned_by_its_hash(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word != "RUN":
            continue
        for command in rest.split("&&"):
            if re.search(r"(pip|uv pip) (install|wheel)", command):
                assert "--require-hashes" in command or "--no-deps" in command, command
                # What a source distribution is built with: nothing that is fetched at that moment, unpinned.
                tools = "--build-constraints requirements/build.txt"
                wheels = ("--only-binary :all:", "--no-build-isolation", "/wheels/")
                assert tools in command or any(option in command for option in wheels), command
    files = set(re.findall(r"requirements/(?!pinned|flights)\w+\.txt", dockerfile.read_text() + BAKE))
    assert files
    for file in files:
        text = (REPOSITORY / file).read_text()
        pinned = re.findall(r"^[a-zA-Z0-9_.\[\]-]+==[^\s;]+", text, re.M)
        assert len(pinned) == len(re.findall(r"^[a-zA-Z0-9]", text, re.M)), f"{file}: not all of it is pinned"
        assert "--hash=sha256:" in text, file


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda d: d.stem)
def test_an_image_is_not_root_has_labels_and_says_how_it_is_well(dockerfile: Path) -> None:
    assert instructions(dockerfile)[0] == ("ARG", "BASE=python:3.11-slim-bookworm")
    found = stages(dockerfile)
    (final,) = [name for word, name in found["last"] if word == "FROM"]
    lines = dict(found[final])
    uid, _, gid = lines["USER"].partition(":")
    assert int(uid) >= 10000
    assert gid.isdecimal()
    assert "HEALTHCHECK" in lines
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", lines["LABEL"]))
    assert labels == {"title", "description", "licenses", "version", "revision", "base.name"}
    # What is built with stays behind.
    assert not any("/opt/build" in rest for word, rest in found[final])


def test_the_python_of_images_is_the_oldest_that_is_supported_where_everything_runs() -> None:
    """Tests run on it; another default would be an image that nobody has seen work."""
    supported = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    version = supported.removeprefix(">=").partition(",")[0]
    for dockerfile in DOCKERFILES:
        arguments = {rest for word, rest in instructions(dockerfile) if word == "ARG" and rest.startswith("PYTHON=")}
        assert arguments == {f"PYTHON=python{version}"}
    assert f'variable "BASE" {{ default = "python:{version}-slim-bookworm" }}' in BAKE
    (common,) = re.findall(r'^target "common" \{\n(.*?)^\}', BAKE, re.M | re.S)
    assert f'PYTHON   = "python{version}"' in common


def test_the_payload_has_no_airflow_in_its_requirements_and_a_check_at_the_end() -> None:
    assert not re.search(r"^apache-airflow", (REPOSITORY / "requirements" / "payload.txt").read_text(), re.M)
    assert '! /opt/airloop/bin/python -c "import airflow"' in (IMAGES / "payload.Dockerfile").read_text()


def test_what_the_official_chart_calls_in_airflows_own_image_is_in_ours(tmp_path: Path) -> None:
    """Its probes: `sh -c "… exec /entrypoint airflow jobs check …"`. Without the file every one of them fails."""
    found = stages(IMAGES / "control.Dockerfile")
    assert ("FROM", "base AS control") in found["control"]
    (command,) = [rest for word, rest in found["base"] if word == "RUN" and "/entrypoint" in rest]
    made = tmp_path / "entrypoint"
    subprocess.run(["sh", "-c", command.replace("/entrypoint", str(made))], check=True)
    probe = (
        f'CONNECTION_CHECK_MAX_COUNT=0 exec {made} sh -c \'echo "$CONNECTION_CHECK_MAX_COUNT $1"; exit 3\' sh "a  b"'
    )
    asked = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (3, "0 a  b\n")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda d: d.stem)
def test_what_packages_came_from_does_not_stay(dockerfile: Path) -> None:
    """Docker's own bases drop downloads by themselves; on another it is 90 MB."""
    for word, rest in instructions(dockerfile):
        if word == "RUN" and "apt-get install" in rest:
            assert "&& apt-get clean && rm -rf /var/lib/apt/lists/*" in rest


def test_airflow_writes_no_settings_with_keys_of_its_own(tmp_path: Path) -> None:
    """It does where there is no such file: with a read-only root it ends, else each container has other keys."""
    (command,) = [
        rest for word, rest in stages(IMAGES / "control.Dockerfile")["base"] if word == "RUN" and "airflow.cfg" in rest
    ]
    subprocess.run(["sh", "-c", command.replace("/opt/airflow", str(tmp_path))], check=True)
    settings = tmp_path / "airflow.cfg"
    before = settings.read_text()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)}
    get = [sys.executable, "-m", "airflow", "config", "get-value", "core", "executor"]
    asked = subprocess.run(get, env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.split()[-1] == "LocalExecutor"
    assert settings.read_text() == before
    settings.unlink()
    subprocess.run(get, env=environment, capture_output=True, check=True)
    assert settings.exists(), "then the file is needed no more"


def test_targets_of_the_bake_file_are_stages_with_arguments_that_are_known() -> None:
    targets = dict(re.findall(r'^target "([a-z-]+)" \{\n(.*?)^\}', BAKE, re.M | re.S))
    groups = re.findall(r'^group "[a-z]+" \{ targets = \[(.*?)\] \}', BAKE, re.M)
    named = {name for group in groups for name in re.findall(r'"([a-z-]+)"', group)}
    assert named <= set(targets)
    assert {"payload-cuda", "payload-rocm", "payload-ascend"} < named

    def setting(name: str, key: str) -> str | None:
        own = re.search(rf'^  {key}\s+= "(.*)"', targets[name], re.M)
        if own:
            return own[1]
        parents = re.search(r"inherits\s+= \[(.*?)\]", targets[name])
        found = [setting(p, key) for p in re.findall(r'"(.*?)"', parents[1])] if parents else []
        return next((value for value in found if value), None)

    for name in named:
        file = setting(name, "dockerfile")
        assert file is not None
        assert setting(name, "target") in stages(REPOSITORY / file)
        declared = set(re.findall(r"^ARG (\w+)", (REPOSITORY / file).read_text(), re.M))
        for arguments in re.findall(r"args\s+= \{(.*?)\}", targets["common"] + targets[name], re.S):
            assert set(re.findall(r"(\w+)\s*=", arguments)) <= declared, name


def test_the_variants_are_told_as_they_are_built() -> None:
    """Base, Python and requirements of each, in the table of docs/kubernetes.md."""
    bases = dict(re.findall(r'^variable "(BASE\w*)" \{ default = "(.*?)" \}', BAKE, re.M))
    targets = dict(re.findall(r'^target "([a-z-]+)" \{\n(.*?)^\}', BAKE, re.M | re.S))
    default = {"BASE": "BASE", **dict(re.findall(r'(\w+)\s*= "?([^",}\s]+)', targets["common"]))}
    documented = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    for name in ("payload", "payload-cuda", "payload-rocm", "payload-ascend"):
        (line,) = re.findall(r"args\s+= \{ (.*?) \}", targets[name])
        own = {**default, **dict(re.findall(r'(\w+) = "?([^",}\s]+)', line))}
        requirements = own.get("REQUIREMENTS", "requirements/payload.txt").removeprefix("requirements/")
        row = [
            f"`{own['VARIANT']}`",
            f"`{bases[own['BASE']]}`",
            own["PYTHON"].removeprefix("python"),
            f"`{requirements}`",
        ]
        assert f"| {' | '.join(row)} |" in documented


def test_images_are_called_and_labelled_as_the_chart_asks_for_them() -> None:
    variables = dict(re.findall(r'^variable "(\w+)" \{ default = "?(.*?)"? \}', BAKE, re.M))
    chart = REPOSITORY / "helm" / "airloop"
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"] == variables["TAG"]
    images = yaml.safe_load((chart / "values.yaml").read_text())["images"]
    for name, image in (("control", images["control"]), ("payload", images["payload"]["cpu"])):
        assert f'tags       = ["${{REPOSITORY}}/{name}:${{TAG}}"]' in BAKE
        assert image == f"{variables['REPOSITORY']}/{name}:{variables['TAG']}"
    assert re.search(r"VERSION\s+= TAG\n", BAKE)


def test_what_only_some_builders_can_is_asked_for_by_name() -> None:
    """Docker's default builder refuses attestations."""
    assert 'variable "ATTEST" { default = false }' in BAKE
    assert (
        'attest = ATTEST ? ["type=sbom", "type=provenance,mode=max"] '
        ': ["type=sbom,disabled=true", "type=provenance,disabled=true"]'
    ) in BAKE


@pytest.fixture
def health() -> Any:
    spec = importlib.util.spec_from_file_location("airloop_images_health", IMAGES / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page() -> Iterator[tuple[int, list[int], list[str]]]:
    """Port of a server, the codes that it answers with, one after another, and the pages that it was asked for."""
    codes: list[int] = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(codes.pop(0))
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, codes, asked
        server.shutdown()


def test_a_server_is_asked_for_its_page(health: Any, page: tuple[int, list[int], list[str]]) -> None:
    port, codes, asked = page
    codes += [200, 503, 200]
    starting = ["/opt/airloop/bin/python", "/opt/airloop/bin/airflow", "api-server", "--port", str(port)]
    assert health.check(starting) == 0
    assert health.check(starting) == 1
    mlflow = ["/opt/airloop/bin/python", "/opt/airloop/bin/mlflow", "server", "--host", "0.0.0.0"]
    assert health.check([*mlflow, f"--port={port}"]) == 0
    assert asked == ["/api/v2/monitor/health", "/api/v2/monitor/health", "/health"]
    assert health.check([*mlflow, "--port", "1"]) == 1


def test_the_api_server_is_known_by_the_name_that_it_gives_itself(
    health: Any, page: tuple[int, list[int], list[str]]
) -> None:
    """Airflow's own words, and what becomes of a process' command line when it calls itself so."""
    port, codes, asked = page
    package = importlib.util.find_spec("airflow")
    assert package is not None
    folder, *_ = package.submodule_search_locations or []
    source = Path(folder, "cli", "commands", "api_server_command.py").read_text()
    (title,) = re.findall(r'setproctitle\(f"(.*)"\)', source)
    title = title.replace("{args.host}", "0.0.0.0").replace("{args.port}", str(port))
    program = "import setproctitle, sys; setproctitle.setproctitle(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, title], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline()
        command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
        server.communicate()
    assert "api-server" not in command
    codes += [200, 500]
    assert (health.check(command), health.check(command)) == (0, 1)
    assert asked == ["/api/v2/monitor/health"] * 2


def test_a_service_without_a_page_is_asked_for_its_job(
    health: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "airflow"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert health.check(["airflow", "triggerer"]) == 1
    assert asked.read_text().split() == ["jobs", "check", "--job-type", "TriggererJob", "--local"]


def test_a_program_that_is_not_known_is_well_while_it_runs(health: Any) -> None:
    assert health.check(["sleep", "60"]) == 0
    assert health.check(["airflow tasks run"]) == 0
