"""What `make cluster` says where it cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / "scripts" / "cluster.py"
PROGRAMS = ("docker", "kind", "kubectl", "helm")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": str(folder)}, capture_output=True, text=True, check=False)


def stand_in(folder: Path, name: str, code: int, said: str = "") -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {code}\n")
    program.chmod(0o755)


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path: Path) -> None:
    stand_in(tmp_path, "docker", 0)
    ended = run(tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert [line.partition(" is missing")[0] for line in lines[1:-1]] == ["kind", "kubectl", "helm"]
    assert all("https://" in line for line in lines[1:-1])
    assert "make demo" in lines[-1]


def test_a_docker_that_does_not_answer_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    for name in PROGRAMS:
        stand_in(tmp_path, name, 1, "Cannot connect to the Docker daemon")
    ended = run(tmp_path)
    assert ended.returncode == 1
    assert "its server does not answer: Cannot connect to the Docker daemon" in ended.stderr


def test_a_step_that_fails_ends_it_and_is_shown(tmp_path: Path) -> None:
    for name in PROGRAMS:
        stand_in(tmp_path, name, 0)
    stand_in(tmp_path, "kind", 3, "no such cluster")
    ended = run(tmp_path, "down")
    assert ended.returncode == 1
    assert "$ kind delete cluster --name airloop" in ended.stdout
    assert "`kind delete cluster --name airloop` ended with 3" in ended.stderr


@pytest.mark.parametrize("month", ["January", "2013-01-01; id"])
def test_a_month_that_is_no_date_is_refused(tmp_path: Path, month: str) -> None:
    ended = run(tmp_path, "--month", month)
    assert ended.returncode == 2
    assert "--month" in ended.stderr
