"""What `make cluster` says where it cannot work."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pendulum
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
