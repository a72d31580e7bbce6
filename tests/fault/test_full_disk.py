"""No space left where a step writes, for real: a small mount that is filled up. Nothing is lost, nothing half there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop.warehouse.catalog import Warehouse
from tests.fault.conftest import Prepared, need_mounts
from tests.fault.flights_loop import FIRST, SERVICE, Home, Outcome, StepServer, days
from tests.training_rows import make_rows, save_rows


class Disk:
    """A folder that is a file system of its own."""

    def __init__(self, server: StepServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        server.shell(f"mkdir -p {folder} && mount -t tmpfs -o size=64m tmpfs {folder}")

    def fill(self, *, but_kb: int = 0) -> None:
        """Fill it up but for some KiB."""
        self.server.shell(
            f"cd {self.folder}; free=$(df --output=avail -k . | tail -1);"
            f"dd if=/dev/zero of=ballast bs=1k count=$((free - {but_kb})) 2>&- || true"
        )

    def free(self) -> None:
        self.server.shell(f"rm {self.folder}/ballast")


Homes = Callable[..., Home]


@pytest.fixture
def disk(steps: StepServer, tmp_path: Path) -> Disk:
    need_mounts(steps.may_mount)
    return Disk(steps, tmp_path / "disk")


def bring(home: Home, **more: str) -> tuple[Outcome, Outcome]:
    extracted = home.run("extract", home.extraction("flights"), **more)
    assert extracted.code == 0, extracted.log
    return extracted, home.run("validate", home.validation("flights", extracted.result), **more)


def refused(outcome: Outcome) -> None:
    """A retry may help, and the error says what would."""
    assert outcome.code == 75, outcome.log
    assert outcome.error.startswith("StoreFull: "), outcome.error
    assert "no space left" in outcome.error.lower() or "full" in outcome.error, outcome.error
    assert "run the task again" in outcome.error
    assert outcome.status in ("try_again", ""), outcome.receipt


# Where the file system is, by the variables that point into it; and how much of it is left.
EXTRACT = {
    "table files": ({"warehouse": "warehouse"}, 0),
    "table files, some fit": ({"warehouse": "warehouse"}, 40),
    "catalog": ({"catalog": "sqlite:///{disk}/catalog.db"}, 0),
    "manifests": ({"artifacts": "artifacts"}, 0),
}


@pytest.mark.parametrize("where", EXTRACT)
def test_extract(where: str, disk: Disk, make_home: Homes) -> None:
    places, left = EXTRACT[where]
    more = {n: v.format(disk=disk.folder) if ":" in v else str(disk.folder / v) for n, v in places.items()}
    home, undisturbed = make_home(), make_home("undisturbed")
    home.environment |= {f"AIRLOOP_{name.upper()}": value for name, value in more.items()}
    # Aircraft are there already.
    home.done("validate", home.validation("planes", home.done("extract", home.extraction("planes"))))
    before = home.state()
    disk.fill(but_kb=left)

    outcome = home.run("extract", home.extraction("flights"))

    refused(outcome)
    disk.free()
    after = home.state()
    assert {n: v for n, v in after.items() if n != "raw.flights"} == before
    # The point of no return is the commit: if only the manifest did not fit, the audit branch is there.
    landed = after.get("raw.flights", {"rows": 0, "branches": []})
    assert landed["rows"] == 0
    assert "main" not in landed["branches"]
    assert bool(landed["branches"]) == (where == "manifests")
    bring(home)
    undisturbed.done("validate", home.validation("planes", undisturbed.done("extract", home.extraction("planes"))))
    bring(undisturbed)
    assert home.state() == undisturbed.state()


def test_working_folder(steps: StepServer, disk: Disk, make_home: Homes) -> None:
    """Rows are staged before the first of them reaches the table."""
    home, undisturbed = make_home(), make_home("undisturbed")
    home.folder.mkdir()
    steps.shell(f"ln -s {disk.folder} {home.folder}/work")
    disk.fill()
    refused(home.run("extract", home.extraction("flights")))
    disk.free()
    bring(home)
    bring(undisturbed)
    assert home.state() == undisturbed.state()


def test_validate(disk: Disk, make_home: Homes) -> None:
    """No room for Data Docs and verdict: rows that nobody has judged are not published."""
    home, undisturbed = make_home(), make_home("undisturbed")
    home.environment["AIRLOOP_ARTIFACTS"] = str(disk.folder / "artifacts")
    extracted = home.done("extract", home.extraction("flights"))
    before = home.state()
    disk.fill()
    refused(home.run("validate", home.validation("flights", extracted)))
    assert home.state() == before
    disk.free()
    bring(home)
    bring(undisturbed)
    assert home.state() == undisturbed.state()


@pytest.mark.parametrize("what", ["database", "files"])
def test_mlflow(what: str, disk: Disk, make_home: Homes) -> None:
    home = make_home()
    name, place = {
        "database": ("AIRLOOP_MLFLOW", f"sqlite:///{disk.folder}/mlflow.db"),
        "files": ("AIRLOOP_MLFLOW_ARTIFACTS", str(disk.folder / "files")),
    }[what]
    home.environment[name] = place
    arguments: dict[str, Any] = {
        "examples": str(save_rows(Warehouse.open(_config(home)), make_rows(600))),
        "hyperparameters": {"n_estimators": 5},
    }
    home.done("train", arguments)
    disk.fill()
    refused(home.run("train", arguments | {"seed": 1}))
    disk.free()
    again = home.run("train", arguments | {"seed": 1}, FIRST)
    assert again.code == 0, again.log
    after = home.state()
    assert (after["finished runs"], after["running runs"]) == (2, 0)


def test_online_values(disk: Disk, prepared: Prepared, tmp_path: Path) -> None:
    """Old values are served until the new ones are all there."""
    home = prepared.back_to_first()
    tables = [f"{name}@main" for name in prepared.after_first if name.startswith("features.")]
    arguments = {"feature_service": SERVICE, "tables": tables}
    stores = {
        name: {"online_store": str(place / "online.db")}
        for name, place in (("disk", disk.folder), ("undisturbed", tmp_path))
    }

    def values(name: str) -> dict[str, Any]:
        home.environment["AIRLOOP_ONLINE_STORE"] = stores[name]["online_store"]
        found = {n: v for n, v in home.state().items() if n.startswith("online ")}
        del home.environment["AIRLOOP_ONLINE_STORE"]
        return found

    for store in stores.values():
        assert home.run("materialize", arguments, days(1, 4), **store).code == 0
    before = values("disk")
    disk.fill()
    refused(home.run("materialize", arguments, FIRST, **stores["disk"]))
    disk.free()
    assert values("disk") == before
    for store in stores.values():
        outcome = home.run("materialize", arguments, FIRST, **store)
        assert outcome.code == 0, outcome.log
    assert values("disk") == values("undisturbed") != before


def _config(home: Home) -> Any:
    from airloop.config import Config

    return Config.from_environment(home.environment)
