"""Read what the care of the state depends on: a document that cannot be read stops it, and is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airloop.errors import ContractBroken


def read_record(path: Path) -> dict[str, Any]:
    """
    A manifest, or the record of an attempt.

    :raises ContractBroken: it is no JSON object; nobody knows what it needs.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as cause:
        raise unreadable(path, cause) from cause
    if not isinstance(document, dict):
        raise unreadable(path, f"it is a {type(document).__name__}")
    return document


def unreadable(path: Path, cause: object) -> ContractBroken:
    """What is said of a document that lacks what it has to have."""
    return ContractBroken(f"{path} cannot be read: {cause}", "remove the file to have the step done again")
