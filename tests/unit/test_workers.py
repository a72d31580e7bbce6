"""How tests are shared out among workers."""

from __future__ import annotations

from tests.conftest import REPOSITORY
from tests.workers import WORLDS


def test_every_file_of_a_world_is_there() -> None:
    files = [file for files in WORLDS.values() for file in files]
    assert len(set(files)) == len(files)
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
