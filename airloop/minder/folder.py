"""The folder of sockets and locks of the processes that start payloads."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from airloop.errors import BadConfiguration


def runtime_folder(environment: Mapping[str, str]) -> Path:
    """
    The folder of sockets and locks, of this user alone; made if it is not there.

    ``$XDG_RUNTIME_DIR/airloop``, else ``run`` below ``AIRLOOP_HOME``.

    :raises BadConfiguration: it is somebody else's, or others may enter it.
    """
    base = environment.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base) and os.stat(base).st_uid == os.geteuid() and os.access(base, os.W_OK):
        folder = Path(base) / "airloop"
    else:
        folder = Path(environment.get("AIRLOOP_HOME") or Path.home() / ".airloop").expanduser().resolve() / "run"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise BadConfiguration(f"{folder} is not a folder of this user", "remove it, or set AIRLOOP_HOME")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise BadConfiguration(
            f"{folder} is open to others (mode {stat.S_IMODE(found.st_mode):o})", f"chmod 700 {folder}"
        )
    return folder
