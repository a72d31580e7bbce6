"""Which file system a path is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from airloop.config import Config
from airloop.errors import BadConfiguration
from airloop.warehouse import mounts
from airloop.warehouse.catalog import Warehouse


def table_of(tmp_path: Path, *lines: tuple[str, str]) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(
        "".join(
            f"{i} 1 0:{i} / {point} rw,relatime shared:1 - {kind} src rw\n" for i, (point, kind) in enumerate(lines)
        )
    )
    return file


def test_the_deepest_mount_counts(tmp_path: Path) -> None:
    table = table_of(tmp_path, ("/", "ext4"), ("/data", "nfs4"), ("/data/fast", "xfs"))
    assert mounts.file_system(Path("/data/x/y"), table) == "nfs4"
    assert mounts.is_network(Path("/data"), table)
    assert mounts.file_system(Path("/data/fast/z"), table) == "xfs"
    assert mounts.file_system(Path("/database"), table) == "ext4"


def test_the_later_mount_hides_the_earlier(tmp_path: Path) -> None:
    table = table_of(tmp_path, ("/", "ext4"), ("/data", "xfs"), ("/data", "fuse.sshfs"))
    assert mounts.is_network(Path("/data/a"), table)


def test_spaces_in_mount_points(tmp_path: Path) -> None:
    table = table_of(tmp_path, ("/", "ext4"), (r"/my\040share", "cifs"))
    assert mounts.is_network(Path("/my share/a"), table)


def test_unknown_where_there_is_no_list(tmp_path: Path) -> None:
    assert mounts.file_system(tmp_path, tmp_path / "none") == ""


def test_this_machine(tmp_path: Path) -> None:
    assert mounts.file_system(tmp_path) != ""
    assert mounts.file_system(Path("/proc/self")) == "proc"


def test_sqlite_on_a_network_share_is_refused(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path, ("/", "nfs"))
    read = mounts.file_system
    monkeypatch.setattr(mounts, "file_system", lambda path, _=None: read(path, table))
    with pytest.raises(BadConfiguration, match="is on nfs"):
        Warehouse.open(config)
