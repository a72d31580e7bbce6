"""Files and folders that become visible whole or not at all. Standard library only."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

from airloop.faults import point

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish(target: Path, content: bytes, *, only_if_absent: bool = False, mode: int = 0o644) -> bool:
    """
    Make ``content`` visible as a file in one step, after its bytes are on disk.

    :param only_if_absent: leave an existing file as it is.
    :param mode: permissions of the file.
    :returns: False if the file existed and was left, else True.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        point(f"artifact:before:{target.name}")
        if only_if_absent:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
        else:
            os.replace(temporary, target)
        sync_folder(target.parent)
        point(f"artifact:after:{target.name}")
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """
    Let two names change places in one step; there is no moment at which one of them is missing.

    :returns: False if this system or file system cannot do that; nothing has happened then.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    point(f"exchange:before:{other.name}")
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        return False
    point(f"exchange:after:{other.name}")
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
