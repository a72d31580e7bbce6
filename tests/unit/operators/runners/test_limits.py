"""What libraries are told of limits, and cgroups that may be divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from airloop.errors import BadConfiguration
from airloop_operators.runners.limits import delegated_cgroup, limit_environment


def test_libraries_are_told_their_limits() -> None:
    assert limit_environment(memory_mb=None, cpus=None) == {}
    assert limit_environment(memory_mb=100, cpus=None) == {"AIRLOOP_MEMORY_MB": "64"}
    assert limit_environment(memory_mb=64000, cpus=None) == {"AIRLOOP_MEMORY_MB": "2048"}
    assert limit_environment(memory_mb=None, cpus=1.5)["OMP_NUM_THREADS"] == "2"
    assert limit_environment(memory_mb=None, cpus=0.2)["AIRLOOP_THREADS"] == "1"


def test_a_cgroup_that_was_named_and_cannot_be_divided_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="AIRLOOP_CGROUP"):
        delegated_cgroup({"AIRLOOP_CGROUP": str(tmp_path)})


def test_looking_for_a_cgroup_never_fails() -> None:
    found = delegated_cgroup({})
    assert found == "" or "memory" in (Path(found) / "cgroup.subtree_control").read_text()
