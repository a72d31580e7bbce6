"""A backup made while a month runs, laid into an empty place after the home was lost: the loop goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airloop.upkeep.backup import backup
from airloop.upkeep.gc import collect
from airloop.upkeep.restore import restore
from tests.year_world import Year, month, write_world

REPOSITORY = Path(__file__).resolve().parents[2]
THIRD = """
import sys
from pathlib import Path
from tests.year_world import Year, month
Year.at(Path(sys.argv[1]), Path(sys.argv[2])).run(month(3))
"""


@pytest.mark.timeout(1800)
def test_a_restored_home_goes_on_like_the_one_that_was_lost(tmp_path: Path) -> None:
    write_world(tmp_path)
    first = Year.at(tmp_path / "the first", tmp_path)
    for number in (1, 2):
        first.run(month(number))
    vault = tmp_path / "vault"
    before, _ = backup(first.config, vault)
    running = subprocess.Popen(
        [sys.executable, "-c", THIRD, str(first.config.home), str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.PIPE
    )
    with running:
        manifests = first.config.artifacts / "steps"
        while running.poll() is None and len(list(manifests.glob("validate/*/*/manifest.json"))) < 3:
            time.sleep(0.02)
        during, copied = backup(first.config, vault)
        assert running.stderr is not None
        assert running.wait() == 0, running.stderr.read()
    assert set(before.files) < set(during.files)
    assert copied.copied < len(during.files) / 2
    undisturbed = first.state()
    shutil.rmtree(first.config.home)

    second = Year.at(tmp_path / "the second", tmp_path)
    restore(vault, second.config.home)
    assert not any(str(first.config.home).encode() in p.read_bytes() for p in second.config.home.rglob("*.json"))
    assert second.run(month(2)) == dict.fromkeys(second.calls(), "reused")
    assert second.run(month(3))["extract"] == "reused"
    assert second.state() == undisturbed
    collect(second.config, grace_s=0)
    assert second.state() == undisturbed
    assert second.run(month(3)) == dict.fromkeys(second.calls(), "reused")
