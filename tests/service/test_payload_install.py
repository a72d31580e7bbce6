"""The payload as its image has it: the pinned set in an empty environment, with no Airflow to be found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airloop.contract import ENV_CALL, ENV_RECEIPT, Call, Receipt
from airloop.steps import BUILT_IN

REPOSITORY = Path(__file__).resolve().parents[2]
USER = 10001
"""The image's. Here, if root runs the tests and its interpreter is not root's alone; else the user of the tests."""

SOURCE = """
name: readings
table: raw.readings
format: csv
columns:
  id: {type: int, nullable: false}
  wind: {type: double}
  wet: {type: int}
key: [id]
"""
EXAMPLES = """
SELECT id, wind, wet AS label, CASE id % 4 WHEN 0 THEN 'holdout' WHEN 1 THEN 'validation' ELSE 'train' END AS split
FROM readings
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that another user may enter, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="airloop-payload-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def python(folder: Path) -> Path:
    """Interpreter of an environment that was empty, and got what the image's Dockerfile installs."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv, "uv is not installed; `make test` brings it"
    environment = folder / "payload"
    found = environment / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(found)]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(environment)],
        [*install, "--require-hashes", "--requirements", str(REPOSITORY / "requirements" / "payload.txt")],
        [*install, "--no-deps", str(REPOSITORY)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def payload(python: Path, folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the interpreter with nothing of this process's environment."""
    plain = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}

    def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**plain, **more.pop("environment", {})}
        command = [str(python), *arguments]
        return subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=240, **more
        )

    return run


@pytest.mark.timeout(1800)
def test_no_airflow_is_installed_or_can_be_imported(payload: Callable[..., Any]) -> None:
    program = """
import importlib.metadata, importlib.util, json
names = sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions())
print(json.dumps([names, importlib.util.find_spec("airflow") is None]))
"""
    done = payload("-c", program)
    assert done.returncode == 0, done.stderr
    names, absent = json.loads(done.stdout)
    assert absent
    assert "airloop" in names
    assert not [name for name in names if "airflow" in name]
    imported = payload("-c", "import airflow")
    assert imported.returncode == 1
    assert "No module named 'airflow'" in imported.stderr


def test_every_step_is_there_with_its_help_and_its_libraries(payload: Callable[..., Any]) -> None:
    listed = payload("-m", "airloop", "--json", "steps")
    assert listed.returncode == 0, listed.stderr
    steps = json.loads(listed.stdout)
    assert [step["step"] for step in steps] == list(BUILT_IN)
    libraries = sorted({library for step in steps for library in step["libraries"]})
    found = payload("-c", f"import importlib.metadata as m; [m.version(name) for name in {libraries}]")
    assert found.returncode == 0, found.stderr
    for step in steps:
        helped = payload("-m", "airloop", "run", step["step"], "--help")
        assert (helped.returncode, helped.stderr) == (0, "")
        shown = payload("-m", "airloop", "steps", step["step"])
        assert (shown.returncode, shown.stderr) == (0, "")
        for argument in step["arguments"]:
            assert f"{argument['name']}: " in shown.stdout


def runs_as(payload: Callable[..., Any], user: int) -> dict[str, Any]:
    """Options that run a process as another user, where this one may and that one reaches the interpreter."""
    if os.geteuid() != 0:
        return {}
    options = {"user": user, "group": user, "extra_groups": []}
    try:
        return options if payload("-c", "pass", **options).returncode == 0 else {}
    except PermissionError:
        return {}


def files(folder: Path) -> dict[Path, int]:
    """All files below a folder, with the time of their last change."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_small_run_writes_to_home_and_tmp_only(payload: Callable[..., Any], python: Path, folder: Path) -> None:
    rows = "\n".join(f"{n},{n % 10}.5,{int(n % 10 > 4)}" for n in range(800))
    (folder / "readings.csv").write_text(f"id,wind,wet\n{rows}\n")
    user = runs_as(payload, USER)
    home, scratch = folder / "home", folder / "tmp"
    for place in (home, scratch):
        place.mkdir()
        if user:
            os.chown(place, USER, USER)
    # As the image sets them.
    environment = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(scratch / ".cache"),
        "AIRLOOP_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = files(python.parents[1])

    def run(step: str, **arguments: Any) -> dict[str, Any]:
        call = Call(step, arguments, os.urandom(8).hex())
        receipt = scratch / f"receipt-{step}"
        contract = {ENV_CALL: call.to_json(), ENV_RECEIPT: str(receipt)}
        done = payload("-m", "airloop", "run", step, environment={**environment, **contract}, **user)
        assert done.returncode == 0, done.stderr[-3000:]
        told = Receipt.from_json(receipt.read_text())
        assert (told.attempt, told.status) == (call.attempt, "done")
        manifest: dict[str, Any] = json.loads(Path(told.manifest.removeprefix("file://")).read_text())
        return manifest

    extracted = run("extract", source=SOURCE, files=str(folder / "readings.csv"))
    assert extracted["counts"]["rows_new"] == 800
    (made,) = extracted["outputs"].values()
    examples = run("sql", sql=EXAMPLES, inputs={"readings": made["reference"]}, table="training.wet", key=["id"])
    (made,) = examples["outputs"].values()
    trained = run("train", examples=made["reference"], features=["wind"])
    assert trained["outputs"]
    assert files(python.parents[1]) == before, "it wrote into its own installation"
    assert {path.name for path in folder.iterdir()} == {"payload", "home", "tmp", "readings.csv"}
