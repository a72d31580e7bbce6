"""
How tests are shared out among the workers of pytest-xdist.

A worker takes a file whole, since what takes long are the fixtures of modules, and files whose tests share a world that
takes long to make one after another. Files come in the order of their names, so what is long (browser, cluster, fault,
service) is begun first, and the many small files of unit leave no worker with something long at the end.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

WORLDS = {
    "the loop, recorded task by task": (
        "tests/fault/test_concurrent_runs.py",
        "tests/fault/test_databases_locked.py",
        "tests/fault/test_empty_interval.py",
        "tests/fault/test_full_disk.py",
        "tests/fault/test_points.py",
        "tests/fault/test_read_only.py",
        "tests/fault/test_redis_struck.py",
    ),
    "a loop and its lineage": (
        "tests/unit/cli/test_cost.py",
        "tests/unit/cli/test_lineage.py",
        "tests/unit/provenance/test_cost.py",
        "tests/unit/provenance/test_lineage.py",
    ),
}
"""Files by what a fixture of the session makes for them."""
_WORLD_OF = {file: world for world, files in WORLDS.items() for file in files}


class ByFileOrWorld(LoadFileScheduling):
    """Gives out files as they come, those of one world together."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        # Else those with the most tests would come first, and few of them are long.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _WORLD_OF.get(file, file)
