"""``airloop restore``: a home as it was at a point, in an empty place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from airloop.errors import BadArgument
from airloop.faults import point as fault_point
from airloop.upkeep.points import ROLES, Point, Vault


def restore(source: Path, home: Path, *, point: str | None = None) -> Point:
    """
    Lay a point's files below ``home``: all of them, checked, or none.

    Whatever lay elsewhere (``AIRLOOP_WAREHOUSE``…) comes below ``home`` too. If the place is another than it was,
    everything that says where it lies is written anew.

    :param source: folder of backups.
    :param home: a folder that is empty or not there.
    :param point: default the newest.
    :raises BadArgument: the folder is not empty.
    :raises NotFound: there is no such point, or a content is gone.
    :raises ContractBroken: a content was changed.
    """
    home = home.resolve()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BadArgument(f"{home} is not empty", "name a folder that is, or that is not there")
    vault = Vault(source)
    made = vault.read(point)
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{home.name}.part-", dir=home.parent))
    try:
        for name, kept in made.files.items():
            role, _, rest = name.partition("/")
            vault.copy_out(kept, staging / _place(role) / rest)
        fault_point("restore:copied")
        moves = {made.roots[role]: str(home / _place(role)) for role in ROLES}
        if any(old != new for old, new in moves.items()):
            from airloop.upkeep.relocate import relocate

            relocate(staging, moves, home)
        fault_point("restore:before")
        staging.chmod(0o755)
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _place(role: str) -> str:
    return "" if role == "home" else role
