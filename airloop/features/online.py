"""
What an online store promises, and the words that all of them share.

The values of a view are staged, verified, and then switched: readers see old values until the new ones are verified. An
older value never replaces a newer one, whoever wrote it, unless the newer one is ours and its row was withdrawn. Beside
the values a store keeps per view the *watermark*, up to when values have been materialised, by which key and from which
snapshot, and per view and entity the event and arrival time of the value that we wrote, to the microsecond. A process
that ends at any moment leaves a watermark that is true; the next run completes or repeats what was not done.

:class:`airloop.features.online_sqlite.OnlineFile` switches all entities of a view in one instant,
:class:`airloop.features.online_redis.OnlineRedis` each entity in one instant, and all if they are a few thousand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


MAX_FEATURES = 400
"""Features of one view; SQLite limits the terms of one statement."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """Up to when the values of a view are online, and from what."""

    until_us: int
    """Microseconds since 1970, UTC."""
    key: str
    snapshot: int
    entities: int
    """Entities that have a value online, counted at the switch."""


@dataclass(frozen=True, slots=True)
class OnlineTable:
    """Feast's table of one view."""

    name: str
    """Name of Feast's table: project and view, with the view's version where Feast keeps versions."""
    view: str
    features: tuple[str, ...]
    project: str = ""
    join_keys: tuple[str, ...] = ()
    """Names of the columns that make an entity's key, in any order."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows to be served, one for each entity, column by column."""

    keys: pa.Array
    """Serialised entity keys, binary."""
    event_us: np.ndarray[Any, np.dtype[np.int64]]
    arrival_us: np.ndarray[Any, np.dtype[np.int64]]
    values: Sequence[pa.Array]
    """By feature: serialised values, binary."""
    texts: Sequence[Sequence[str | None]] = ()
    """By feature: Feast's text of the values, for a store that keeps it."""
    samples: Sequence[tuple[bytes, tuple[bytes, ...]]] = ()
    """Some rows as Feast's own code encodes them: entity key and values, by feature."""


@dataclass(slots=True)
class Switched:
    """What a switch did."""

    rows: int = 0
    """Entities staged."""
    written: int = 0
    """Entities whose values were taken over."""
    skipped: int = 0
    """Entities left alone, because a newer or the same value is there."""
    expired: int = 0
    """Entities taken offline, because their value outlived the view's ttl, or its row is there no more."""
    watermark: Watermark | None = None
    moved: bool = False
    """Whether the watermark moved."""
    notes: list[str] = field(default_factory=list)


class Stage(Protocol):
    """Rows of one view on their way to a store."""

    rows: int

    def add(self, chunk: Chunk) -> None: ...

    def verify(self, expected: int) -> None: ...


class OnlineStore(Protocol):
    """What the engine asks of a store, whatever it is; :class:`OnlineFile` says what each method promises."""

    keeps_texts: ClassVar[bool]
    """Whether it keeps Feast's text beside each value."""

    @property
    def where(self) -> str:
        """Names the store for people, without secrets; two that are the same have the same name."""

    def locked(self, table: OnlineTable) -> AbstractContextManager[None]: ...

    def watermark(self, table: OnlineTable) -> Watermark | None: ...

    def recorded(self, table: OnlineTable) -> Watermark | None: ...

    def served(self, table: OnlineTable, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]: ...

    def forget_if_lost(self, table: OnlineTable) -> None: ...

    def staging(self, table: OnlineTable) -> AbstractContextManager[Stage]: ...

    def switch(
        self,
        table: OnlineTable,
        *,
        replace_equal: bool,
        watermark: Watermark | None,
        expire_before_us: int | None = None,
        lost: Collection[bytes] = (),
    ) -> Switched: ...
