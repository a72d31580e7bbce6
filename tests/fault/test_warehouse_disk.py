"""A full disk and a read-only one, for real: a mount of the test's own, in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.conftest import need_mounts
from tests.fault.forks import Forks


def _namespace() -> list[str] | None:
    """The command prefix that lets a process mount, as root or as a user with its own namespace."""
    if shutil.which("unshare") is None:
        return None
    for prefix in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        probe = [*prefix, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return prefix
    return None


PREFIX = _namespace()

Action = tuple[str, dict[str, Any]]


Outcomes = list[dict[str, Any]]
Work = Callable[..., Outcomes]


@pytest.fixture(scope="module")
def mounting() -> Iterator[Forks]:
    """Makes processes that may mount, all in one namespace; nobody else sees what they mount."""
    need_mounts(PREFIX is not None)
    with Forks(PREFIX or ()) as found:
        yield found


@pytest.fixture
def work(mounting: Forks, tmp_path: Path) -> Work:
    """Let one process do all this in turn; returns the outcomes but for those of shell scripts."""

    def once(*actions: Action, **environment: str) -> Outcomes:
        words = [word for name, arguments in actions for word in (name, json.dumps(arguments))]
        own = {"AIRLOOP_HOME": str(tmp_path / "home"), "AIRLOOP_THREADS": "1"}
        process = mounting.start(words, {**os.environ, **own, **environment}, tmp_path)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines() if not line.startswith('{"out"')]

    return once


def shell(script: str) -> Action:
    return "shell", {"script": script}


def commit(key: str, count: int, first: int = 0, mode: str = "append") -> Action:
    return "write", {"keys": [key], "ids": [[first, first + count]], "mode": mode, "ranges": True}


READ: Action = ("read_all", {})
DONE = {"changed": [True], "adopted": [False]}


@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
def test_no_space_for_data(work: Work, tmp_path: Path, mode: str) -> None:
    first, full, read, again, after = work(
        shell("mkdir data; mount -t tmpfs -o size=200k tmpfs data"),
        commit("k1", 3),
        commit("k2", 300_000, 1, mode),
        shell("test $(find data -name '*.parquet' | wc -l) = 1"),  # what did not fit is removed
        READ,
        shell("mount -o remount,size=64m data"),
        commit("k2", 300_000, 1, mode),
        READ,
        AIRLOOP_WAREHOUSE=str(tmp_path / "data"),
    )
    assert first == DONE
    assert full["error"] == "StoreFull", full
    assert "writing raw.a: no space left" in full["message"]
    assert read == {"ids": [0, 1, 2]}
    assert again == DONE
    assert sorted(set(after["ids"])) == list(range(1 if mode == "replace" else 0, 300_001))


def test_no_space_for_the_catalog(work: Work) -> None:
    first, full, again, after = work(
        shell("mkdir home; mount -t tmpfs -o size=1m tmpfs home"),
        commit("k1", 3),
        shell("dd if=/dev/zero of=home/ballast bs=1k 2>/dev/null || true"),
        commit("k2", 3, 10),
        shell("rm home/ballast"),
        commit("k2", 3, 10),
        READ,
    )
    assert first == DONE
    assert full["error"] == "StoreFull", full
    assert again == DONE
    assert after == {"ids": [0, 1, 2, 10, 11, 12]}


def test_a_full_disk_to_start_on(work: Work) -> None:
    full, again = work(
        shell("mkdir home; mount -t tmpfs -o size=1m tmpfs home; dd if=/dev/zero of=home/ballast bs=1k 2>&- || true"),
        commit("k1", 3),
        shell("rm home/ballast"),
        commit("k1", 3),
    )
    assert full["error"] == "StoreFull", full
    assert again == DONE


def test_read_only_data_can_still_be_read(work: Work, tmp_path: Path) -> None:
    first, refused, read = work(
        shell("mkdir data; mount -t tmpfs tmpfs data"),
        commit("k1", 3),
        shell("mount -o remount,ro data"),
        commit("k2", 3, 10),
        READ,
        AIRLOOP_WAREHOUSE=str(tmp_path / "data"),
    )
    assert first == DONE
    assert refused["error"] == "StoreReadOnly", refused
    assert "writing raw.a: cannot write" in refused["message"]
    assert read == {"ids": [0, 1, 2]}


@pytest.mark.parametrize("made", [True, False])
def test_read_only_home(work: Work, tmp_path: Path, made: bool) -> None:
    if made:
        assert work(commit("k1", 3)) == [DONE]
    else:
        (tmp_path / "home").mkdir()
    (refused,) = work(shell("mount --bind home home; mount -o remount,bind,ro home"), commit("k2", 3, 10))
    assert refused["error"] == "StoreReadOnly", refused
    assert "AIRLOOP_HOME" in refused["message"]
