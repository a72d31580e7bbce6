"""
The parity gate: what the online store serves is what training would have been given.

For a sample of a view's keys, the values that Feast reads online are compared with the point-in-time join that makes
training sets, over the very snapshot and at the very time that the view's watermark names. Keys come from the offline
table, all of its past included: a value that outlived its time to live, or that nobody knew yet, must not be online.

Values are equal if they are the same: floating point numbers bit by bit after NULL and NaN, which Feast stores as
nothing, and times in whole seconds, which is what Feast keeps. A value whose event time is after the watermark was
pushed by somebody since; it is counted, not compared.

What it cannot see: online keys that the offline table never had, and a snapshot that is itself wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airloop.features.asof import quote, quote_path
from airloop.features.definitions import ServiceDefinition, ViewDefinition
from airloop.features.offline import join_features

if TYPE_CHECKING:
    import duckdb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = "airloop_parity_time"
"""Column of the sample with the time at which the offline values are looked up."""

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One value that differs."""

    view: str
    key: Mapping[str, Any]
    feature: str
    online: Any
    offline: Any

    def __str__(self) -> str:
        key = ", ".join(f"{name}={value!r}" for name, value in self.key.items()) or "the only key"
        return f"{self.view} {key}: {self.feature} is {self.online!r} online, {self.offline!r} offline"


@dataclass(slots=True)
class ViewParity:
    """What was compared of one view."""

    view: str
    keys: int
    """Distinct keys of the offline table."""
    checked: int = 0
    values: int = 0
    """Pairs of values that were compared, those missing on both sides included."""
    pushed: int = 0
    """Values that somebody pushed after the watermark; not compared."""
    keys_differing: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)


def keys_to_sample(share: float, confidence: float) -> int:
    """
    How many keys to draw so that, if at least ``share`` of all keys differ, one of them is drawn with ``confidence``.

    ``(1 - share)^n ≤ 1 - confidence``; drawing without replacement does no worse.

    :param share: 0 … 1; 0: every key.
    :returns: 0 for every key.
    """
    if share <= 0:
        return 0
    return 1 if share >= 1 else math.ceil(math.log(1 - confidence) / math.log(1 - share))


def draw_sample(
    connection: duckdb.DuckDBPyConnection, view: ViewDefinition, *, sample: int, seed: int, until_us: int
) -> int:
    """
    Make a DuckDB table ``parity_sample``: keys of the view, each with the time ``until_us``; those whose hash with
    the seed and that time is least. So the same materialisation is always compared by the same keys, and the next one
    by others: a wrong value that one run does not draw is drawn by a later one.

    :param sample: how many; 0: all.
    :returns: how many keys the view has.
    """
    keys = ", ".join(map(quote, view.keys))
    known = " AND ".join(f"{quote(k)} IS NOT NULL" for k in view.keys) or "true"
    distinct = f"SELECT DISTINCT {keys} FROM {quote_path(view.table)} WHERE {known}" if keys else "SELECT 1 AS one"
    texts = ", ".join(f"CAST({quote(k)} AS VARCHAR)" for k in view.keys)
    # MD5 and not hash(): the sample must not depend on DuckDB's version.
    order = f"ORDER BY md5(concat_ws(chr(31), '{seed}', '{until_us}', {texts})), {keys}" if keys else ""
    limit = f"LIMIT {sample}" if sample else ""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE parity_keys AS {distinct}")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE parity_sample AS SELECT *, make_timestamptz({until_us}) AS {TIME} "
        f"FROM parity_keys {order} {limit}"
    )
    row = connection.execute("SELECT count(*) FROM parity_keys").fetchone()
    assert row is not None
    return int(row[0])


def offline_values(
    connection: duckdb.DuckDBPyConnection, view: ViewDefinition, *, batch: int
) -> Iterable[tuple[list[dict[str, Any]], list[list[Any]]]]:
    """Keys and features of ``parity_sample`` as a training set would have them, some rows at a time."""
    plain = replace(view, entity_keys=())
    joined = join_features(connection, "parity_sample", ServiceDefinition(view.name, (plain,)), time_column=TIME)
    columns = [*view.keys, *plain.columns]
    selected = joined.select(", ".join(map(quote, columns))) if columns else joined
    for part in selected.to_arrow_reader(batch):
        rows = part.to_pylist()
        yield [{k: r[k] for k in view.keys} for r in rows], [[r[c] for c in plain.columns] for r in rows]


def compare(
    found: ViewParity,
    view: ViewDefinition,
    keys: Sequence[Mapping[str, Any]],
    offline: Sequence[Sequence[Any]],
    online: Mapping[str, Sequence[Any]],
    *,
    until_us: int,
    kept: int,
) -> None:
    """
    Add the comparison of some keys to ``found``.

    :param offline: by key, by feature.
    :param online: Feast's answer: ``<view>__<feature>`` and ``<view>__<feature>__ts``, seconds, by key.
    :param kept: mismatches to keep.
    """
    until_s = until_us // 1_000_000
    for row, key in enumerate(keys):
        differs = False
        for column, (feature, name) in enumerate(zip(view.features, view.columns, strict=True)):
            if online[f"{name}__ts"][row] > until_s:
                found.pushed += 1
                continue
            found.values += 1
            here, there = (stored(v, feature.type) for v in (online[name][row], offline[row][column]))
            if here != there:
                differs = True
                if len(found.mismatches) < kept:
                    found.mismatches.append(Mismatch(view.name, key, feature.name, here, there))
        found.keys_differing += differs
    found.checked += len(keys)


def stored(value: Any, kind: str) -> Any:
    """A value as the online store can hold it: no NaN, times as seconds since 1970."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if kind == "timestamp":
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (aware - EPOCH) // timedelta(seconds=1)
        return int(value)
    return value
