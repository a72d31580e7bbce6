"""What the weekly workflow calls is there. Whether it runs through only GitHub can show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.settings import PREFIX, SETTINGS
from tests.fault import harness

REPOSITORY = Path(__file__).resolve().parents[3]
BAKE = (REPOSITORY / "docker-bake.hcl").read_text()
WEEKLY: dict[str, Any] = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "weekly.yml").read_text())
COMMANDS = {
    name: "\n".join(step["run"] for step in job["steps"] if "run" in step) for name, job in WEEKLY["jobs"].items()
}


def test_its_targets_are_those_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+|\$\(VENV\)/\.\w+):", (REPOSITORY / "Makefile").read_text(), re.M))
    called = re.findall(r"\bmake ([\w./-]+)", "\n".join(COMMANDS.values()))
    assert called == ["cluster", "test-cluster", ".venv/.dev"]
    assert {name.replace(".venv", "$(VENV)") for name in called} <= targets


def test_the_tests_of_a_cluster_are_told_what_they_know() -> None:
    (told,) = [step["env"] for step in WEEKLY["jobs"]["cluster"]["steps"] if "env" in step]
    assert {"KUBECONFIG", *told} <= set(SETTINGS)
    image = told[f"{PREFIX}_PAYLOAD"]
    named = dict(re.findall(r'^variable "(\w+)" \{ default = "(.*?)" \}', BAKE, re.M))
    assert image == f"{named['REPOSITORY']}/payload:{named['TAG']}"
    assert f"kind load docker-image --name airloop {image}" in COMMANDS["cluster"]
    # As kind calls the only worker of a cluster.
    assert told[f"{PREFIX}_NODES"] == "airloop-worker"
    assert COMMANDS["cluster"].count("{role: worker}") == 1


def test_the_harness_knows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.main(["--help"])
    known = capsys.readouterr().out
    given = re.findall(r"--[a-z]+", COMMANDS["faults"])
    assert given == ["--all", "--once"]
    assert all(option in known for option in given)
