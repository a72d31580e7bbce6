"""Fixtures of the tests that start payload processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fault.flights_loop import FIRST, REPOSITORY, SECOND, Home, StepServer, step_server, write_data
from tests.fault.forks import Forks
from tests.fault.harness import World
from tests.payload_runs import code, environment, make_request, make_runner, run, run_folder, start

__all__ = ["code", "environment", "make_request", "make_runner", "run", "run_folder", "start"]


def need_mounts(may_mount: bool) -> None:
    """Skip a test that has to mount where this user may not; on CI it fails."""
    if not may_mount:
        said = "this user may not mount, not even in a namespace of its own"
        assert not os.environ.get("CI"), f"{said}: run as root, or let users have namespaces (sysctl, AppArmor)"
        pytest.skip(said)


@pytest.fixture(scope="session")
def steps(code: Path) -> Iterator[StepServer]:
    """Runs steps in processes of their own; made once, for its imports take long."""
    with step_server(code) as server:
        yield server


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Makes processes that work on a warehouse; made once, for its imports take long."""
    with Forks() as found:
        yield found


@pytest.fixture(scope="session")
def flights_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the loop's files, and of its feature repository."""
    folder = tmp_path_factory.mktemp("flights")
    shutil.copytree(REPOSITORY / "feature_repo", folder / "repo", ignore=shutil.ignore_patterns("__pycache__"))
    return write_data(folder)


@pytest.fixture
def make_home(steps: StepServer, flights_data: Path, tmp_path: Path) -> Callable[..., Home]:
    """An AIRLOOP_HOME; the name is its folder's."""
    return lambda name="home": Home(steps, tmp_path / name, flights_data, flights_data / "repo")


@dataclass
class Prepared:
    """A home in which the loop ran undisturbed for two intervals, and what it held after each."""

    world: World
    after_first: dict[str, Any]
    after_second: dict[str, Any]

    def back_to_first(self) -> Home:
        """The home as it was after the first interval, at the same place: tables know their files by path."""
        self.world.back_to(next(task.before for task in self.world.tasks if task.interval == SECOND))
        return self.world.home


@pytest.fixture(scope="session")
def world(steps: StepServer, flights_data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The loop, run undisturbed for two intervals; every point that its tasks reach, and the state at each."""
    folder = tmp_path_factory.mktemp("world")
    return World.record(Home(steps, folder / "home", flights_data, flights_data / "repo"), folder)


@pytest.fixture(scope="session")
def prepared(world: World) -> Prepared:
    return Prepared(world, world.plain_state_after(FIRST), world.plain_state_after(SECOND))
