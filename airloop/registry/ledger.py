"""
The promotion ledger: an append-only Iceberg table of every decision about a model's aliases.

Each move of an alias is two rows with one ``entry``: an *intent*, written before anything is done, and one that closes
it, ``done`` once the registry's alias follows. A decision that moves nothing has one row, ``done`` as well, with its
reason. What was live at a time is read here, never in the registry, whose aliases only follow.

Two clocks: ``recorded_at`` is when it happened, ``effective_at`` is the end of the data interval whose run did it (for
a person's promotion: the time of it). Moves of an alias never go back in ``effective_at``; a decision that comes too
late for that is kept as ``superseded``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from airloop.errors import ContractBroken
from airloop.registry.refs import CHAMPION

if TYPE_CHECKING:
    import pyarrow as pa

    from airloop.warehouse.catalog import Warehouse

TABLE = "ledger.promotions"

State = Literal["intent", "done", "superseded", "abandoned"]
Clock = Literal["wall", "data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the ledger."""

    entry: str
    """Identity, shared by an intent and the row that closes it."""
    seq: int
    """Place in the history of the model, from 1."""
    model: str
    alias: str
    version: int
    previous: int | None
    """Version that the alias named before; None: it named nothing."""
    state: State
    moved: bool
    """Whether the alias names ``version`` by this entry (an intent: is to)."""
    outcome: str
    """The gate's: ``promote``, ``keep``, ``reject``; or ``manual``."""
    reason: str
    by: str
    """Step and key, or the person."""
    key: str
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    recorded_at: datetime
    effective_at: datetime
    evidence: dict[str, Any] = field(default_factory=dict)
    """Metric, interval, limits, addresses of decision and data."""

    def as_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in _COLUMNS}
        return row | {name: row[name].isoformat() for name in ("recorded_at", "effective_at")}


_COLUMNS = tuple(Entry.__dataclass_fields__)


class Ledger:
    """The ledger of one warehouse. Writers hold the model's lock, see :mod:`airloop.registry.models`."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse
        self._read: tuple[int, dict[str | None, list[Entry]]] = 0, {}
        """A snapshot and its rows, of one model or of all (None): one decision asks for them ten times."""

    def entries(self, model: str | None = None, *, key: str | None = None) -> list[Entry]:
        """Every row, of one model or of all, oldest first."""
        if not self.warehouse.exists(TABLE):
            return []
        return [e for e in self._now(model)[1] if key is None or e.key == key]

    def _now(self, model: str | None) -> tuple[int, list[Entry]]:
        """The table's snapshot, and its rows of one model or of all; read once for each snapshot."""
        from airloop.warehouse import commit, read
        from airloop.warehouse.refs import MAIN
        from airloop.warehouse.store import storing

        with storing(f"reading {TABLE}"):
            table = self.warehouse.table(TABLE)
            head = commit.head(table, MAIN)
            known = self._read[1] if self._read[0] == head else {}
            if model not in known:
                where = None if model is None else f"model = {read.literal(model)}"
                rows = read.scan(self.warehouse.config, table, head, where=where).read_all().to_pylist()
                known = known | {model: sorted(map(_entry, rows), key=lambda e: (e.model, e.seq))}
                self._read = head, known
            return head, known[model]

    def champion_at(
        self, model: str, alias: str = CHAMPION, at: datetime | None = None, *, clock: Clock = "wall"
    ) -> Entry | None:
        """
        The entry by which an alias named what it named at a time.

        :param at: None: now.
        :param clock: ``wall``: what was live at that moment; ``data``: what runs of intervals that ended by then had
            promoted, whenever they ran.
        """
        return _last([e for e in self.entries(model) if e.alias == alias], at, clock)

    def live(self, at: datetime | None = None, *, clock: Clock = "wall") -> list[Entry]:
        """What every alias of every model named at a time, by model and alias."""
        entries = self.entries()
        names = sorted({(e.model, e.alias) for e in entries})
        found = [_last([e for e in entries if (e.model, e.alias) == name], at, clock) for name in names]
        return [e for e in found if e is not None]

    def open_intents(self, model: str) -> list[Entry]:
        """Intents that nothing has closed: what a killed process left."""
        entries = self.entries(model)
        closed = {e.entry for e in entries if e.state != "intent"}
        return [e for e in entries if e.state == "intent" and e.entry not in closed]

    def append(self, entry: Entry) -> Entry:
        """
        Add a row; the same entry in the same state is added once, whoever tries.

        :returns: the row with its place in the model's history.
        """
        self.warehouse.ensure(
            TABLE, _schema(), key=("entry", "state"), description="What became champion, when, by whom, and why."
        )
        before, known = self._now(entry.model)
        entry = replace(entry, seq=1 + max((e.seq for e in known), default=0))
        row = {name: getattr(entry, name) for name in _COLUMNS}
        row["evidence"] = json.dumps(entry.evidence, sort_keys=True, allow_nan=False)
        import pyarrow as pa

        rows = pa.Table.from_pylist([row], schema=_schema())
        made = self.warehouse.commit(TABLE, rows, key=f"{entry.model}:{entry.entry}:{entry.state}")
        if made.changed and self._parent(made.snapshot) == before:
            # Nobody wrote in between: what was read and this row are all there is.
            self._read = made.snapshot, {entry.model: [*known, *map(_entry, rows.to_pylist())]}
        return entry

    def _parent(self, snapshot: int) -> int:
        found = self.warehouse.table(TABLE).metadata.snapshot_by_id(snapshot)
        return (found.parent_snapshot_id or 0) if found else -1

    def close(self, intent: Entry, state: State, *, reason: str = "") -> Entry:
        """Close an intent: ``done`` or ``abandoned``."""
        closing = replace(
            intent, state=state, moved=state == "done", reason=reason or intent.reason, recorded_at=datetime.now(UTC)
        )
        return self.append(closing)


def _last(entries: Sequence[Entry], at: datetime | None, clock: Clock) -> Entry | None:
    moves = [e for e in entries if e.state == "done" and e.moved]
    if clock == "data":
        reached = [e for e in moves if at is None or e.effective_at <= at]
        return max(reached, key=lambda e: (e.effective_at, e.seq), default=None)
    return max((e for e in moves if at is None or e.recorded_at <= at), key=lambda e: e.seq, default=None)


def _schema() -> pa.Schema:
    import pyarrow as pa

    time = pa.timestamp("us", tz="UTC")
    types: dict[str, Any] = {
        "seq": pa.int64(),
        "version": pa.int64(),
        "previous": pa.int64(),
        "moved": pa.bool_(),
        "recorded_at": time,
        "effective_at": time,
    }
    return pa.schema([pa.field(n, types.get(n, pa.string()), nullable=n == "previous") for n in _COLUMNS])


def _entry(row: dict[str, Any]) -> Entry:
    try:
        known = {name: row[name] for name in _COLUMNS}
        return Entry(**known | {"evidence": json.loads(row["evidence"])})
    except (KeyError, ValueError, TypeError) as cause:
        raise ContractBroken(
            f"a row of {TABLE} cannot be read: {cause}", "was it written by a newer airloop?"
        ) from cause
