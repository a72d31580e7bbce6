"""Whether what a replay made equals what the run had made: rows, models, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.provenance.digest import digest_table
from airloop.warehouse.refs import TableRef

LIBRARY_FIELDS = frozenset({"python", "libraries", "requirements", "trusted"})
"""Fields of a bundle that say what it was made with, not what it is."""
SHOWN = 5
"""Figures that a finding names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was compared."""

    what: str
    """``rows``, ``model``, ``metrics`` or ``decision``."""
    equal: bool
    text: str
    """How it is equal, or what differs."""


def compare_tables(then: Config, old: TableRef, now: Config, new: TableRef) -> Finding:
    """Rows of two snapshots, by their digest; their order counts only if nothing else differs."""
    a, b = digest_table(then, old), digest_table(now, new)
    if a == b:
        return Finding("rows", True, f"{a.rows:,} rows of {old.name}, digest {a.sha256[:16]}")
    if a.columns != b.columns:
        lost = [f"{n} {t}" for n, t in a.columns if (n, t) not in b.columns]
        came = [f"{n} {t}" for n, t in b.columns if (n, t) not in a.columns]
        return Finding(
            "rows", False, f"columns then: {', '.join(lost) or 'as now'}; now: {', '.join(came) or 'as then'}"
        )
    if a.rows != b.rows:
        return Finding("rows", False, f"{a.rows:,} rows then, {b.rows:,} now")
    a, b = (digest_table(config, ref, in_order=False) for config, ref in ((then, old), (now, new)))
    if a == b:
        return Finding("rows", True, f"{a.rows:,} rows of {old.name}, in another order, digest sorted {a.sha256[:16]}")
    differing = _differing_columns(then, old, now, new)
    return Finding("rows", False, f"{a.rows:,} rows each, with other values in {', '.join(differing)}")


def _differing_columns(then: Config, old: TableRef, now: Config, new: TableRef) -> list[str]:
    from airloop.warehouse.catalog import Warehouse

    names = Warehouse.open(then).schema(old).names
    found = []
    for name in names:
        counted = []
        for config, ref in ((then, old), (now, new)):
            with Warehouse.open(config).duckdb({"t.t": ref}) as connection:
                column = '"' + name.replace('"', '""') + '"'
                counted.append(connection.execute(f"SELECT sum(hash({column})::HUGEINT) FROM t.t").fetchone())
        if counted[0] != counted[1]:
            found.append(name)
    return found or ["the way in which they are combined"]


def compare_models(
    old: Path, new: Path, *, rows: TableRef | None, config: Config, stated: Mapping[str, Any]
) -> Finding:
    """
    Two bundles, within what their trainer states.

    :param rows: training table whose held-out rows are scored if the bytes differ.
    :param stated: :class:`airloop.training.trainers.Determinism`, as the run had recorded it.
    """
    from airloop.training.models import BUNDLE_FILE, bundle_digest

    if bundle_digest(old) == bundle_digest(new):
        return Finding("model", True, f"every byte, digest {bundle_digest(old)[:16]}")
    files = sorted({p.relative_to(f).as_posix() for f in (old, new) for p in f.rglob("*") if p.is_file()})
    differing = [name for name in files if name != BUNDLE_FILE and _bytes(old / name) != _bytes(new / name)]
    if not differing:
        wrong = _fields(old / BUNDLE_FILE, new / BUNDLE_FILE)
        if not wrong:
            return Finding("model", True, f"every byte of {', '.join(f for f in files if f != BUNDLE_FILE)}")
        return Finding("model", False, f"{BUNDLE_FILE} differs in {', '.join(wrong)}")
    gap, scored = _largest_gap(old, new, rows, config)
    tolerance = float(stated.get("tolerance", 0.0))
    measured = f"predictions of {scored:,} held-out rows differ by at most {gap:.3g}"
    if stated.get("equal") == "predictions" and scored and gap <= tolerance:
        return Finding("model", True, f"{measured}; its trainer states {tolerance:.0e}")
    return Finding("model", False, f"{', '.join(differing)} differ; {measured}; its trainer states {_said(stated)}")


def _said(stated: Mapping[str, Any]) -> str:
    if stated.get("equal") == "bytes":
        return f"equal bytes with {stated['provided']}"
    return f"{float(stated['tolerance']):.0e} with {stated['provided']}" if stated else "nothing"


def _largest_gap(old: Path, new: Path, rows: TableRef | None, config: Config) -> tuple[float, int]:
    import numpy as np

    from airloop.training.models import load_bundle
    from airloop.warehouse.catalog import Warehouse

    if rows is None:
        return math.nan, 0
    held = Warehouse.open(config).scan(rows, where="split = 'holdout'").read_all()
    if not held.num_rows:
        return math.nan, 0
    scores = [load_bundle(folder, threads=config.cpu_threads()).predict(held) for folder in (old, new)]
    return float(np.abs(scores[0] - scores[1]).max()), held.num_rows


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _fields(old: Path, new: Path) -> list[str]:
    import json

    a, b = (json.loads(path.read_bytes()) for path in (old, new))
    return sorted(k for k in a.keys() | b.keys() if k not in LIBRARY_FIELDS and a.get(k) != b.get(k))


def compare_figures(what: str, old: Any, new: Any, *, tolerance: float) -> Finding | None:
    """
    Figures by name, however deep, each within the tolerance; None if there are none.

    :param tolerance: absolute; 0: to the last bit.
    """
    a, b = dict(_leaves("", old)), dict(_leaves("", new))
    if not a and not b:
        return None
    wrong = [name for name in sorted(a.keys() | b.keys()) if not _close(a.get(name), b.get(name), tolerance)]
    if not wrong:
        within = f", within {tolerance:.0e}" if tolerance else ""
        return Finding(what, True, f"{len(a)} figures{within}")
    shown = "; ".join(f"{name} {a.get(name)} then, {b.get(name)} now" for name in wrong[:SHOWN])
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return Finding(what, False, f"{shown}{more}")


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= tolerance
    return bool(a == b)


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        pairs = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for sub, v in pairs for leaf in _leaves(sub, v)]
