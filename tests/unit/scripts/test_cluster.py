"""What `make cluster` does, asked of programs that only note it down, and what it says where it cannot work."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
import yaml

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


@pytest.mark.parametrize("month", ["January", "2013-01-01; id", "2014-01-01"])
def test_a_month_that_is_no_date_is_refused(tmp_path: Path, month: str) -> None:
    ended = run(tmp_path, "--month", month)
    assert ended.returncode == 2
    assert "--month" in ended.stderr


def test_a_docker_without_buildx_is_told(tmp_path: Path) -> None:
    for name in PROGRAMS:
        stand_in(tmp_path, name, 0)
    (tmp_path / "docker").write_text("#!/bin/sh\n[ $1 = info ] || { echo 'unknown command: buildx' >&2; exit 1; }\n")
    ended = run(tmp_path)
    assert ended.returncode == 1
    assert "docker has no buildx: unknown command: buildx" in ended.stderr


@pytest.mark.parametrize("month", [date(2013, 1, 1), date(2013, 1, 31), date(2013, 2, 28), date(2013, 12, 1)])
def test_a_month_is_the_interval_of_its_run(month: date, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.timetables.interval import CronDataIntervalTimetable

    monkeypatch.syspath_prepend(SCRIPT.parent)
    cluster = importlib.import_module("cluster")
    told = pendulum.instance(datetime.combine(cluster.logical_date(month), datetime.min.time(), UTC))
    timetable = CronDataIntervalTimetable("0 0 1 * *", timezone="America/New_York")
    interval = timetable.infer_manual_data_interval(run_after=told)
    new_york = ZoneInfo("America/New_York")
    first = month.replace(day=1)
    assert interval.start == datetime(first.year, first.month, 1, tzinfo=new_york)
    after = cluster.logical_date(month)
    assert interval.end == datetime(after.year, after.month, 1, tzinfo=new_york)


# Answers are given in turn by what the command has in it, the last one again and again: [exit code, what it says].
RECORDER = """#!{python} -S
import json, pathlib, sys
here = pathlib.Path(__file__).parent
command = [pathlib.Path(__file__).name, *sys.argv[1:]]
told = sys.stdin.read() if "-" in command else ""
with (here / "asked.jsonl").open("a") as asked:
    print(json.dumps([command, told]), file=asked)
for words, answers in json.loads((here / "answers.json").read_text()).items():
    if words in " ".join(command):
        given = here / (words.replace(" ", "-") + ".given")
        number = len(given.read_text()) if given.exists() else 0
        given.write_text("x" * (number + 1))
        code, text = answers[min(number, len(answers) - 1)]
        print(text, end="", file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


class Programs:
    """docker, kind, kubectl and helm of a machine that has them, but for what they do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in PROGRAMS:
            (folder / name).write_text(RECORDER.format(python=sys.executable))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.syspath_prepend(SCRIPT.parent)
        self.cluster = importlib.import_module("cluster")
        monkeypatch.setattr(self.cluster, "LOOK_S", 0.0)
        self._monkeypatch = monkeypatch

    def run(self, *arguments: str, **answers: list[tuple[int, str]]) -> int:
        given = {words.replace("_", " "): list(told) for words, told in answers.items()}
        (self.folder / "answers.json").write_text(json.dumps(given))
        self._monkeypatch.setattr(sys, "argv", ["cluster.py", *arguments])
        code: int = self.cluster.main()
        return code

    def asked(self) -> list[tuple[list[str], str]]:
        """Each command, without the ways to say where, and what it was told."""
        found = []
        for line in (self.folder / "asked.jsonl").read_text().splitlines():
            command, told = json.loads(line)
            if command[0] == "kubectl":
                assert command[1:5] == ["--context", "kind-airloop", "--namespace", "airloop"]
                del command[1:5]
            found.append((command, told))
        return found


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path, monkeypatch)


def test_it_makes_what_is_not_there_and_runs_the_month(programs: Programs, capfd: pytest.CaptureFixture[str]) -> None:
    waiting = "container airflow is waiting to start: ContainerCreating"
    code = programs.run(
        "--month",
        "2013-02-01",
        get_clusters=[(0, "another")],
        logs=[(1, waiting), (1, waiting), (0, "step extract: done")],
        get_job=[(0, "/"), (0, "/"), (0, "1/")],
    )
    said = capfd.readouterr()
    assert code == 0, said.err
    asked = programs.asked()
    chart = str(REPOSITORY / "helm" / "airloop")
    images = ["airloop/control:kind", "airloop/payload:kind"]
    follow = ["kubectl", "logs", "--follow", "job/airloop-loop"]
    state = ["kubectl", "get", "job", "airloop-loop", "--output", "jsonpath={.status.succeeded}/{.status.failed}"]
    pods = ["kubectl", "get", "pods", "--selector", "app.kubernetes.io/component=step", "--output", "wide"]
    where = ["--kube-context", "kind-airloop", "--namespace", "airloop"]
    values = ["--values", f"{chart}/values-kind.yaml"]
    assert [command for command, _ in asked] == [
        ["docker", "info"],
        ["docker", "buildx", "version"],
        ["docker", "buildx", "bake", "--file", "docker-bake.hcl", "kind"],
        ["kind", "get", "clusters"],
        ["kind", "create", "cluster", "--name", "airloop", "--wait", "180s"],
        ["kind", "load", "docker-image", "--name", "airloop", *images],
        ["helm", "upgrade", "--install", "airloop", chart, *where, "--create-namespace", *values],
        ["kubectl", "delete", "job", "airloop-loop", "--ignore-not-found", "--wait", "--cascade=foreground"],
        ["kubectl", "apply", "--filename", "-"],
        *[follow, state] * 3,
        pods,
    ]
    (job,) = [yaml.safe_load(told) for command, told in asked if "apply" in command]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1].endswith("airflow dags test flights_offline 2013-03-02")
    assert container["image"] in images
    assert said.err.count(waiting) == 1
    assert "step extract: done" in said.out
    assert "make cluster ARGS=down" in said.out


def test_a_loop_that_fails_is_an_error_that_says_where_to_look(
    programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, Any] = {"get_clusters": [(0, "airloop")], "get_job": [(0, "/"), (0, "/1")]}
    assert programs.run(**answers) == 1
    asked = [command for command, _ in programs.asked()]
    assert ["kind", "export", "kubeconfig", "--name", "airloop"] in asked
    assert not [command for command in asked if "create" in command]
    # A log that has been shown is not shown again.
    assert [command[2:] for command in asked if "logs" in command] == [
        ["--follow", "job/airloop-loop"],
        ["--follow", "--tail", "1", "job/airloop-loop"],
    ]
    assert asked[-1] == ["kubectl", "get", "pods", "--output", "wide"]
    error = capfd.readouterr().err
    assert "the loop failed; its log is above" in error
    assert "kubectl --context kind-airloop --namespace airloop describe pods" in error


def test_nothing_follows_what_did_not_work(programs: Programs, capfd: pytest.CaptureFixture[str]) -> None:
    assert programs.run(buildx_bake=[(1, "failed to solve: python:3.11-slim-bookworm")]) == 1
    assert programs.asked()[-1][0] == ["docker", "buildx", "bake", "--file", "docker-bake.hcl", "kind"]
    assert "`docker buildx bake --file docker-bake.hcl kind` ended with 1" in capfd.readouterr().err
