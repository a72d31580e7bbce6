"""Places that may be read and not written, for real: a read-only mount. The error says which, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop.warehouse.catalog import Warehouse
from tests.fault.conftest import need_mounts
from tests.fault.flights_loop import Home, Outcome, StepServer
from tests.training_rows import make_rows, save_rows

Homes = Callable[..., Home]


class Switch:
    """A folder that can be made read-only, even for root."""

    def __init__(self, server: StepServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        server.shell(f"mkdir -p {folder} && mount --bind {folder} {folder}")

    def lock(self) -> None:
        self.server.shell(f"mount -o remount,bind,ro {self.folder}")

    def unlock(self) -> None:
        self.server.shell(f"mount -o remount,bind,rw {self.folder}")


@pytest.fixture
def make_switch(steps: StepServer) -> Callable[[Path], Switch]:
    need_mounts(steps.may_mount)
    return lambda folder: Switch(steps, folder)


def refused(outcome: Outcome, folder: Path) -> None:
    """No retry helps, and the error names the place and what to do."""
    assert outcome.code == 65, outcome.log
    assert outcome.error.startswith("StoreReadOnly: "), outcome.error
    assert str(folder) in outcome.error, outcome.error
    assert "give the worker's user write access" in outcome.error
    assert outcome.status in ("rejected", ""), outcome.receipt


@pytest.mark.parametrize("place", ["", "warehouse", "artifacts", "work"])
def test_extract_and_validate(place: str, make_switch: Callable[[Path], Switch], make_home: Homes) -> None:
    home, undisturbed = make_home(), make_home("undisturbed")
    switch = make_switch(home.folder / place)
    for each in (home, undisturbed):
        each.done("validate", each.validation("planes", each.done("extract", each.extraction("planes"))))
    before = home.state()

    switch.lock()
    refused(home.run("extract", home.extraction("flights")), switch.folder)
    switch.unlock()

    # Where only the manifest could not be written, the rows wait on their audit branch.
    after = home.state()
    landed = after.pop("raw.flights", {"rows": 0, "branches": []})
    assert (after, landed["rows"]) == (before, 0)
    extracted = home.done("extract", home.extraction("flights"))

    before = home.state()
    switch.lock()
    refused(home.run("validate", home.validation("flights", extracted)), switch.folder)
    switch.unlock()
    assert home.state() == before
    home.done("validate", home.validation("flights", extracted))

    undisturbed.done("validate", home.validation("flights", undisturbed.done("extract", home.extraction("flights"))))
    assert home.state() == undisturbed.state()


@pytest.mark.parametrize("what", ["database", "files"])
def test_mlflow(what: str, make_switch: Callable[[Path], Switch], make_home: Homes, tmp_path: Path) -> None:
    home = make_home()
    switch = make_switch(tmp_path / "mlflow")
    name, place = {
        "database": ("AIRLOOP_MLFLOW", f"sqlite:///{switch.folder}/mlflow.db"),
        "files": ("AIRLOOP_MLFLOW_ARTIFACTS", str(switch.folder)),
    }[what]
    home.environment[name] = place
    arguments: dict[str, Any] = {
        "examples": str(save_rows(Warehouse.open(_config(home)), make_rows(600))),
        "hyperparameters": {"n_estimators": 5},
    }
    home.done("train", arguments)
    switch.lock()
    outcome = home.run("train", arguments | {"seed": 1})
    switch.unlock()
    assert outcome.code == 65, outcome.log
    assert outcome.error.startswith("StoreReadOnly: "), outcome.error
    home.done("train", arguments | {"seed": 1})
    after = home.state()
    assert (after["finished runs"], after["running runs"]) == (2, 0)


def _config(home: Home) -> Any:
    from airloop.config import Config

    return Config.from_environment(home.environment)
