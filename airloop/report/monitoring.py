"""Drift against the training data, quality once labels arrived, freshness of tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airloop.report import words
from airloop.report.charts import Bar, bars, columns

BARS = 15
MOVED = 6
"""Drifted columns whose distributions are drawn."""


def drift_section(manifest: Mapping[str, Any] | None, zone: str) -> dict[str, Any] | None:
    """What the monitor found; None if the loop has none."""
    if manifest is None:
        return None
    details, counts = manifest["details"], manifest["counts"]
    drift = details.get("drift", {})
    found = sorted(drift.get("columns", []), key=lambda c: (c["outcome"] != "drifted", -c["psi"]))
    judged = [c for c in found if c["outcome"] != "too few"]
    limit = manifest.get("arguments", {}).get("psi_limit")
    rate = manifest.get("arguments", {}).get("false_alarm_rate")
    crossed = counts.get("crossed", 0)
    return {
        "style": "warn" if crossed else "good" if judged else "calm",
        "badge": _badge(crossed) if crossed or judged else "Nothing to compare" if not found else "Nothing judged",
        "reason": _sentence(drift.get("reason", "")),
        "model": words.version(manifest["inputs"].get("model", {}).get("reference", "")),
        "limit": limit,
        "false_alarm_rate": words.share(rate) if rate else "",
        "judged": len(judged),
        "drifted": sum(c["outcome"] == "drifted" for c in found),
        "not_judged": _not_judged(found),
        "chart": _psi_chart(judged, limit),
        "rest": max(0, len(judged) - BARS),
        "moved": [_moved(c) for c in found if c["outcome"] == "drifted"][:MOVED],
        "quality": [_quality(q) for q in details.get("quality", {}).get("models", [])],
        "quality_reason": _sentence(details.get("quality", {}).get("reason", "")),
        "unlabelled": details.get("quality", {}).get("unlabelled", 0),
        "freshness": [
            {
                "table": f["table"],
                "newest": words.moment(f["newest"], zone),
                "age": words.age(f["age_hours"]),
                "stale": f["stale"],
                "why": f["why"],
            }
            for f in details.get("freshness", [])
        ],
        "other": [text for text in details.get("crossed", []) if not _about_column(text, found)],
    }


def _badge(crossed: int) -> str:
    return words.counted(crossed, "limit") + " crossed" if crossed else "No limit crossed"


def _not_judged(found: list[Mapping[str, Any]]) -> list[str]:
    """Which columns were not judged, by the reason why."""
    reasons: dict[str, list[str]] = {}
    for column in found:
        if column["outcome"] == "too few":
            reasons.setdefault(column["why"] or "too few rows", []).append(column["column"])
    return [f"Not judged: {', '.join(names)} ({why})." for why, names in reasons.items()]


def _about_column(text: str, found: list[Mapping[str, Any]]) -> bool:
    """Drifted columns have their own chart; the list is for all other limits."""
    return any(text.startswith(f"{c['column']}: ") for c in found)


def _psi_chart(found: list[Mapping[str, Any]], limit: float | None) -> str:
    values = []
    for column in sorted(found, key=lambda c: -c["psi"])[:BARS]:
        view, feature = words.split_feature(column["column"])
        # A large index that may be chance is not drift, and must not look like it.
        style = "bad" if column["outcome"] == "drifted" else "warn" if limit and column["psi"] >= limit else "a"
        values.append(Bar(feature, float(column["psi"]), style, view, f"{column['psi']:.3f}"))
    # One index of 9 must not make all others invisible.
    most = max(5 * limit, *(sorted(v.value for v in values)[: (len(values) + 1) // 2])) if limit and values else None
    return bars("Population stability index by column", values, limit=limit, most=most)


def _moved(column: Mapping[str, Any]) -> str:
    view, feature = words.split_feature(column["column"])
    bins = [(_short(b["bin"]), b["reference"], b["current"]) for b in column["bins"]]
    note = f"{view + ' · ' if view else ''}index {column['psi']:.3f}"
    return columns(feature, note, bins, names=("in training", "now"))


def _short(text: str) -> str:
    """Edges of bins with three digits: they only name the bin."""
    return words.minus(re.sub(r"-?\d+\.\d+(?:e[+-]?\d+)?", lambda found: _rounded(float(found[0])), text))


def _rounded(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _quality(found: Mapping[str, Any]) -> dict[str, Any]:
    judged = found["judged"] or {}
    name = judged.get("metric", "")
    return {
        "version": words.version(found["version"]) or found["version"],
        "rows": found["rows"],
        "positives": found["positives"],
        "metric": words.metric_name(name) if name else "",
        "value": words.figure(judged.get("value")),
        "interval": f"{words.figure(judged['low'])} … {words.figure(judged['high'])}" if judged else "",
        "reference": words.figure(judged.get("reference")),
        "limit": words.figure(judged.get("limit")),
        "crossed": found["crossed"],
        "calibration": words.figure((found.get("calibration") or {}).get("error")),
        "why": "" if found["crossed"] else found["why"],
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
