"""
The target-leakage gate: no feature of a training set gives the label away.

The statistics are :mod:`airloop.domain.target_leakage`'s; here are the columns, read one at a time, and the refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from airloop.domain.target_leakage import Giveaway, giveaways
from airloop.errors import BadArgument, LeakageFound
from airloop.features.asof import quote, quote_path
from airloop.features.definitions import ServiceDefinition

if TYPE_CHECKING:
    import duckdb

ROWS = 50_000
"""Rows that are looked at, chosen by the hash of their key where there are more: a giveaway shows on far fewer."""
SHOWN = 3
TOP = 5
"""Features of the highest AUC that the manifest records."""


def refuse_giveaways(
    connection: duckdb.DuckDBPyConnection,
    joined: str,
    service: ServiceDefinition,
    *,
    label: str,
    keys: Sequence[str],
    max_auc: float,
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """
    Look at every feature of ``joined`` beside the label.

    :param joined: DuckDB table with ``keys``, the label and ``service.feature_names``.
    :param keys: columns that tell its rows apart.
    :param allow: features that may give the label away.
    :returns: rows looked at, the features of the highest AUC, and what was allowed, with the evidence.
    :raises BadArgument: ``allow`` names no feature of the service.
    :raises LeakageFound: names features, evidence, rows and keys.
    """
    unknown = sorted(set(allow) - set(service.feature_names))
    if unknown:
        raise BadArgument(
            f"allow: feature service {service.name} has no feature {', '.join(unknown)}",
            f"it has {', '.join(service.feature_names)}",
        )
    values = _read(connection, joined, service, label, keys)
    labels = values.pop(label)
    if not np.isin(labels, (0.0, 1.0)).all():
        return {"rows": 0, "highest": {}, "allowed": {}, "reason": f"{label} is not 0 or 1"}
    found, areas = giveaways(values, labels, max_auc=max_auc)
    refused = [g for g in found if g.feature not in allow]
    if refused:
        shown = "; ".join(f"{g.feature}: {g.why}{_rows(connection, joined, service, g, label, keys)}" for g in refused)
        raise LeakageFound(
            f"{len(refused)} of {len(areas)} features give {label} away, by {len(labels):,} rows: {shown}",
            "leave the feature out or take it from a time before the label; if it is honest, name it in allow",
        )
    highest = sorted(areas.items(), key=lambda pair: -pair[1])[:TOP]
    return {
        "rows": len(labels) if areas else 0,
        "highest": {name: round(area, 6) for name, area in highest},
        "allowed": {g.feature: g.why for g in found},
    } | ({} if areas else {"reason": "too few rows of one class"})


def _read(
    connection: duckdb.DuckDBPyConnection, joined: str, service: ServiceDefinition, label: str, keys: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The label and the features as floats, or objects where they are text, of at most :data:`ROWS` rows."""
    types = {f["name"]: f["type"] for f in service.describe_features()}
    selected = [f"CAST({quote(label)} AS DOUBLE) AS {quote(label)}"]
    for name, kind in types.items():
        value = f"epoch({quote(name)})" if kind == "timestamp" else quote(name)
        selected.append(f"{value if kind == 'string' else f'CAST({value} AS DOUBLE)'} AS {quote(name)}")
    texts = ", ".join(f"CAST({quote(k)} AS VARCHAR)" for k in keys)
    # The order enters nothing but the split in halves, which must be the same again.
    hashed = f"md5(concat_ws(chr(31), {texts}))"
    table = connection.execute(
        f"SELECT {', '.join(selected)} FROM {quote_path(joined)} ORDER BY {hashed} LIMIT {ROWS}"
    ).to_arrow_table()
    found: dict[str, NDArray[Any]] = {}
    for name in (label, *types):
        if types.get(name) == "string":
            found[name] = np.array(table[name].to_pylist(), dtype=object)
        else:
            found[name] = table[name].to_numpy().astype(np.float64)
    return found


def _rows(
    connection: duckdb.DuckDBPyConnection,
    joined: str,
    service: ServiceDefinition,
    found: Giveaway,
    label: str,
    keys: Sequence[str],
) -> str:
    """Some rows, so that a person can look."""
    feature = quote(found.feature)
    where = ""
    if found.value == "(missing)":
        where = f"WHERE {feature} IS NULL"
    elif found.value is not None:
        text = next(f["type"] for f in service.describe_features() if f["name"] == found.feature) == "string"
        where = f"WHERE {feature} = ?" if text else f"WHERE CAST({feature} AS DOUBLE) = CAST(? AS DOUBLE)"
    shown = ", ".join([*(f"CAST({quote(k)} AS VARCHAR)" for k in keys), f"CAST({feature} AS VARCHAR)", quote(label)])
    rows = connection.execute(
        f"SELECT {shown} FROM {quote_path(joined)} {where} ORDER BY {', '.join(map(quote, keys))} LIMIT {SHOWN}",
        [found.value] if "?" in where else [],
    ).fetchall()
    texts = (
        f"{' '.join(f'{k}={v}' for k, v in zip(keys, row, strict=False))} has {row[-2]} and {label} {row[-1]}"
        for row in rows
    )
    return f" (first: {'; '.join(texts)})" if rows else ""
