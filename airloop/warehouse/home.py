"""The format of a home: written when it is made, looked at whenever its catalog is opened."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from airloop.errors import BadConfiguration

HOME_FORMAT = 1
"""Raised with every change of a layout that an older airloop would misread; each has a migration."""
READABLE = 0
"""The oldest format that can be used as it is. 0 is a home without ``format.json``."""
FILE = "format.json"


def home_format(home: Path) -> int:
    """
    Format of a home; 0 if it does not say.

    :raises BadConfiguration: the file cannot be read.
    """
    try:
        return int(json.loads((home / FILE).read_bytes())["format"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as cause:
        raise BadConfiguration(f"{home / FILE} cannot be read: {cause}", "restore it from a backup") from cause


def write_format(home: Path) -> None:
    """Say that a home is of the present format."""
    content = json.dumps({"format": HOME_FORMAT, "airloop": installed()}).encode() + b"\n"
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=home)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(home / FILE)


def check_home(home: Path) -> None:
    """
    :raises BadConfiguration: this airloop cannot work on a home of its format; says what to do.
    """
    found = home_format(home)
    if found > HOME_FORMAT:
        raise BadConfiguration(
            f"{home} is of format {found}, this airloop ({installed()}) knows formats up to {HOME_FORMAT}",
            "use the newer airloop that made it, or restore a backup from before its upgrade",
        )
    if found < READABLE:
        raise BadConfiguration(
            f"{home} is of format {found}, this airloop ({installed()}) works on {READABLE} to {HOME_FORMAT}",
            "make a backup, stop the loops and run `airloop upgrade`",
        )


def installed() -> str:
    """Version of this airloop."""
    try:
        return version("airloop")
    except PackageNotFoundError:
        return "unknown"
