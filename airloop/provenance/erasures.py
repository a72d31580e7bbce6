"""
What was erased, for whom, by whom and why: the append-only table ``ledger.erasures``.

It never holds the erased values: a subject is kept as a salted SHA-256, by which the same request is known again.
Each erasure is an *intent*, written before anything goes, and a row that closes it, ``done``, which says what went.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

TABLE = "ledger.erasures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One row."""

    erasure: str
    """Identity, shared by an intent and the row that closes it."""
    state: Literal["intent", "done"]
    columns: str
    """Names of the columns that tell the subject, never values."""
    salt: str
    subject: str
    """SHA-256 of salt and subject, hex."""
    reason: str
    asked_by: str
    recorded_at: datetime
    removed: dict[str, Any] = field(default_factory=dict)
    """Rows and snapshots by table, online entities, redacted files, runs that cannot be replayed any more."""

    def is_about(self, subject: str) -> bool:
        """Whether it is the erasure of this subject."""
        return self.subject == _hashed(self.salt, subject)

    def snapshots(self, table: str) -> set[int]:
        """Snapshots of a table that it removed."""
        return {int(s) for s in self.removed.get("tables", {}).get(table, {}).get("snapshots", ())}


_COLUMNS = tuple(Erasure.__dataclass_fields__)


def entries(warehouse: Warehouse) -> list[Erasure]:
    """Every row, oldest first."""
    from airloop.warehouse.refs import TableRef

    if not warehouse.exists(TABLE):
        return []
    rows = warehouse.scan(TableRef(TABLE)).read_all().to_pylist()
    found = [Erasure(**{n: row[n] for n in _COLUMNS} | {"removed": json.loads(row["removed"])}) for row in rows]
    return sorted(found, key=lambda e: (e.recorded_at, e.state != "intent"))


def begin(warehouse: Warehouse, subject: str, *, columns: Sequence[str], reason: str, asked_by: str) -> Erasure:
    """The open intent of a subject, or a new one, which is written before this returns."""
    rows = entries(warehouse)
    closed = {e.erasure for e in rows if e.state == "done"}
    for entry in rows:
        if entry.erasure not in closed and entry.is_about(subject):
            return entry
    salt = secrets.token_hex(16)
    intent = Erasure(
        erasure=secrets.token_hex(8),
        state="intent",
        columns=", ".join(columns),
        salt=salt,
        subject=_hashed(salt, subject),
        reason=reason,
        asked_by=asked_by,
        recorded_at=datetime.now(UTC),
    )
    _append(warehouse, intent)
    return intent


def finish(warehouse: Warehouse, intent: Erasure, removed: dict[str, Any]) -> Erasure:
    """Close an intent."""
    done = replace(intent, state="done", removed=removed, recorded_at=datetime.now(UTC))
    _append(warehouse, done)
    return done


def erased(warehouse: Warehouse, ref: TableRef) -> Erasure | None:
    """The erasure that removed a snapshot, if one did."""
    return next((e for e in entries(warehouse) if ref.snapshot in e.snapshots(ref.name)), None)


def _hashed(salt: str, subject: str) -> str:
    return hashlib.sha256(f"{salt}\x00{subject}".encode()).hexdigest()


def _append(warehouse: Warehouse, entry: Erasure) -> None:
    import pyarrow as pa

    warehouse.ensure(TABLE, _schema(), key=("erasure", "state"), description="What was erased, by whom and why.")
    row = {name: getattr(entry, name) for name in _COLUMNS}
    row["removed"] = json.dumps(entry.removed, sort_keys=True)
    rows = pa.Table.from_pylist([row], schema=_schema())
    warehouse.commit(TABLE, rows, key=f"{entry.erasure}:{entry.state}")


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"recorded_at": pa.timestamp("us", tz="UTC")}
    return pa.schema([pa.field(n, types.get(n, pa.string()), nullable=False) for n in _COLUMNS])
