"""The commands of the care of the state, through the command line's own door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.cli import main
from airloop.config import Config
from airloop.warehouse.catalog import Warehouse

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False)])


@pytest.fixture
def home(config: Config, warehouse: Warehouse) -> Path:
    warehouse.ensure("shop.orders", SCHEMA)
    for i in range(5):
        warehouse.commit("shop.orders", pa.table({"id": [i]}, schema=SCHEMA), key=f"{i}")
    return config.home


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_gc_and_compact(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--home", str(home))
    (compacted,) = ask(capsys, "compact", "shop.orders", *place)
    assert (compacted["files_before"], compacted["files_after"], compacted["changed"]) == (5, 1, True)
    planned = ask(capsys, "gc", "--dry-run", "--keep-days", "0", "--grace", "0s", *place)
    done = ask(capsys, "gc", "--keep-days", "0", "--grace", "0s", *place)
    assert planned["snapshots"] == done["snapshots"]
    assert len(done["snapshots"]) == 4
    assert main(["gc", *place]) == 0
    assert capsys.readouterr().out.startswith("0 audit branches, 0 snapshots went\n")


def test_backup_and_restore(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vault = str(tmp_path / "vault")
    made = ask(capsys, "backup", vault, "--home", str(home))
    checked = ask(capsys, "backup", vault, "--verify", "--home", str(home))
    assert (checked["point"], checked["files"]) == (made["point"], made["files"])
    new = tmp_path / "new"
    assert ask(capsys, "restore", vault, "--home", str(new))["point"] == made["point"]
    assert ask(capsys, "tables", "--home", str(new))[0]["rows"] == 5
    assert main(["restore", vault, "--home", str(new)]) == 65
    assert "is not empty" in capsys.readouterr().err


def test_upgrade(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "upgrade", "--home", str(home))["done"] == []
    (home / "format.json").unlink()
    assert main(["upgrade", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert f"{home} is of format 1 now, it was of 0" in shown
    assert "No step's key changes" in shown


@pytest.mark.parametrize("grace", ["5", "soon", "-1h"])
def test_a_grace_period_has_a_unit(home: Path, grace: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gc", f"--grace={grace}", "--home", str(home)])
    assert "is not a time: write 30m, 24h or 7d" in capsys.readouterr().err
