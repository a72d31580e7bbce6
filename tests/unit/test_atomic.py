"""What becomes visible whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airloop import atomic
from airloop.warehouse.artifacts import ArtifactStore

NAME = "steps/train/model"


def bundle(folder: Path, content: str) -> Path:
    (folder / content).mkdir(parents=True)
    for name in ("a", "b"):
        (folder / content / name).write_text(content)
    return folder / content


def held(store: ArtifactStore) -> set[str]:
    return {p.read_text() for p in store.path(NAME).iterdir()}


def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    versions = [bundle(tmp_path, "old"), bundle(tmp_path, "new")]
    store.publish_path(NAME, versions[0])
    # The reader is a process of its own: a thread that only looks takes the interpreter from the one that publishes.
    program = (
        "import os, sys\nlooked, done, watched = sys.argv[1:]\nmissing = looks = 0\nprint('ready', flush=True)\n"
        "while not os.path.exists(done):\n looks += 1\n missing += not os.path.exists(watched)\n"
        " if looks == 1000: open(looked, 'w').close()\n"
        "print(missing)"
    )
    looked, done = tmp_path / "looked", tmp_path / "done"
    reader = subprocess.Popen(
        [sys.executable, "-c", program, looked, done, store.path(NAME) / "a"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        turns = 0
        # It may get little of a busy machine.
        while turns < 50 or not looked.exists():
            for version in reversed(versions):
                store.publish_path(NAME, version)
            turns += 1
        done.touch()
        last = reader.communicate(timeout=60)[0].splitlines()[-1]
    finally:
        reader.kill()
        reader.wait()
    assert last == "0", "times that it was missing"
    assert held(store) == {"old"}
    assert [p.name for p in store.path(NAME).parent.iterdir()] == ["model"]


@pytest.mark.parametrize(("when", "left"), [("before", "old"), ("after", "new")])
def test_a_folder_whose_replacement_was_killed_is_whole(tmp_path: Path, when: str, left: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.publish_path(NAME, bundle(tmp_path, "old"))
    program = (
        "from pathlib import Path; from airloop.warehouse.artifacts import ArtifactStore; "
        f"ArtifactStore(Path({str(store.root)!r})).publish_path({NAME!r}, Path({str(bundle(tmp_path, 'new'))!r}))"
    )
    environment = {**os.environ, "AIRLOOP_FAULT": f"kill@exchange:{when}:model"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert held(store) == {left}
    assert store.names("steps") == [f"{NAME}/a", f"{NAME}/b"]


def test_where_names_cannot_be_exchanged_a_folder_is_replaced_in_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    store = ArtifactStore(tmp_path / "store")
    for content in ("old", "new"):
        store.publish_path(NAME, bundle(tmp_path, content))
    assert held(store) == {"new"}


def test_an_exchange_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    there = bundle(tmp_path, "there")
    assert not atomic.exchange(there, tmp_path / "missing")
    assert (there / "a").read_text() == "there"
