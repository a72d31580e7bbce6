"""References to tables: ``flights@main`` before a step runs, ``flights@6438…`` in its key and manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from airloop.reference import Reference, Scope

MAIN = "main"
ROWS_BROUGHT = "airloop.rows-brought"
"""Property of a snapshot: rows that its writer had for the table, those that it had already included."""
SAME_ROWS = "airloop.same-rows"
"""Property of a snapshot: the snapshot whose rows this one holds in other files; only compaction makes such."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")
_BRANCH = re.compile(r"(?!\d+$)[A-Za-z0-9_][A-Za-z0-9_.-]*")
_EXPECTED = "expected namespace.table, namespace.table@branch or namespace.table@snapshot"


def valid_name(name: str) -> bool:
    """Whether ``name`` is ``namespace.table``, each part a plain identifier."""
    return _NAME.fullmatch(name) is not None


def valid_branch(branch: str) -> bool:
    """Whether ``branch`` can be told from a snapshot id and used in a reference."""
    return _BRANCH.fullmatch(branch) is not None


@dataclass(frozen=True, slots=True)
class TableRef(Reference):
    """A table at a branch, or, once resolved, at one snapshot."""

    kind: ClassVar[str] = "table"

    name: str
    """``namespace.table``."""
    snapshot: int | None = None
    """Set once resolved; 0 stands for a table that has no snapshot yet, which is empty."""
    branch: str = MAIN
    """What is resolved when ``snapshot`` is None."""

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise ValueError(f"{self.name!r} is not the name of a table; {_EXPECTED}")
        if not valid_branch(self.branch):
            raise ValueError(f"{self.branch!r} is not the name of a branch; {_EXPECTED}")
        if self.snapshot is not None and self.branch != MAIN:
            # One snapshot has one reference, whichever branch it was found on.
            object.__setattr__(self, "branch", MAIN)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """:raises ValueError: ``value`` is not a reference to a table."""
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a reference to a table; {_EXPECTED}")
        name, separator, at = value.strip().partition("@")
        if not separator:
            return cls(name)
        if at.isascii() and at.isdigit():
            return cls(name, snapshot=int(at))
        return cls(name, branch=at)

    def __str__(self) -> str:
        return f"{self.name}@{self.branch if self.snapshot is None else self.snapshot}"

    def resolve(self, scope: Scope) -> Self:
        """:raises NotFound: the table, the branch or the snapshot is not there."""
        from airloop.warehouse.catalog import Warehouse

        return replace(self, snapshot=Warehouse.open(scope.config).resolve(self), branch=MAIN)

    def canonical(self) -> str:
        return str(self)

    def exists(self, scope: Scope) -> bool:
        """Whether the snapshot is still in the table's metadata."""
        from airloop.errors import NotFound

        try:
            self.resolve(scope)
        except NotFound:
            return False
        return True
