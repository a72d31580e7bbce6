"""What a run was made with, against what is installed here."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True, slots=True)
class Change:
    """One version that is another now."""

    name: str
    """A distribution, or ``python``."""
    then: str
    now: str
    """Empty: not installed."""

    @property
    def advice(self) -> str:
        """What brings the old one back."""
        return f"use Python {self.then}" if self.name == "python" else f"pip install {self.name}=={self.then}"

    def __str__(self) -> str:
        return f"{self.name} {self.then} then, {self.now or 'not installed'} now"


def changes(manifest: Mapping[str, Any]) -> list[Change]:
    """Python and the libraries whose versions a step's result depends on, where they differ; by name."""
    then = {"python": str(manifest["python"]), **manifest["code"]["libraries"]}
    for value in manifest["arguments"].values():
        # An argument that stands for installed code names the versions of it: a trainer.
        if isinstance(value, Mapping) and "libraries" in value and "code" in value:
            then |= value["libraries"]
    return [Change(name, old, now) for name, old in sorted(then.items()) if (now := _installed(name)) != old]


def _installed(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
