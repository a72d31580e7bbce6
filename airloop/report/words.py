"""How figures, times and names are written for people."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from airloop.contract import Interval

METRICS = {
    "roc_auc": ("ROC AUC", True),
    "average_precision": ("Average precision", True),
    "log_loss": ("Log loss", False),
    "brier": ("Brier score", False),
    "accuracy": ("Accuracy", True),
    "ece": ("Calibration error", False),
}
"""What people call a metric, and whether more of it is better."""

NOTHING = "\N{EN DASH}"
"""What is written for a figure that is not there."""


def minus(text: str) -> str:
    """A number's text with a true minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    """Three significant digits, thousands in groups."""
    if not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1000:
        return minus(f"{value:,.0f}")
    text = f"{value:.3g}"
    return minus(f"{value:.3f}" if "e" not in text and 0 < abs(value) < 1 else text)


def signed(value: float, digits: int = 4) -> str:
    """With its sign, unless it is zero as written."""
    text = minus(f"{value:+.{digits}f}")
    return text if any(c in "123456789" for c in text) else f"{0:.{digits}f}"


def metric_name(key: str, *, in_text: bool = False) -> str:
    """
    A metric's name.

    :param in_text: in the middle of a sentence: only an abbreviation keeps its capital.
    """
    name = METRICS[key][0] if key in METRICS else key
    return name if not in_text or name[:2].isupper() else name[:1].lower() + name[1:]


def higher_is_better(key: str) -> bool:
    return METRICS[key][1] if key in METRICS else True


def count(value: int | None) -> str:
    """Whole number, thousands in groups."""
    return NOTHING if value is None else f"{value:,}"


def counted(value: int, one: str, many: str = "") -> str:
    """``1 row``, ``2,010 rows``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def figure(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else minus(f"{value:.{digits}f}")


def share(value: float | None) -> str:
    """Percent, with as many decimals as a small share needs."""
    if value is None:
        return NOTHING
    if value and abs(value) < 0.001:
        return f"{value:.3%}"
    return f"{value:.1%}"


def seconds(value: float) -> str:
    if value < 1:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:02.0f} s"


def age(hours: float | None) -> str:
    """``45 min``, ``3 h 15 min``, ``2 d 4 h``; years for what is older than three."""
    if hours is None:
        return NOTHING
    minutes = round(hours * 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    days = minutes // 1440
    if days > 3 * 365:
        return f"{days / 365.25:.1f} years"
    rest = minutes % 1440 // 60
    return f"{days:,} d {rest} h" if rest and days < 30 else f"{days:,} d"


def moment(text: str | None, zone: str) -> str:
    """A time that a manifest holds, in ``zone``, to the minute."""
    if not text:
        return NOTHING
    return f"{datetime.fromisoformat(text).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}"


def interval(value: Interval | None, zone: str) -> str:
    """A month by its name, whole days by their dates, anything else to the minute; the end is not part of it."""
    if value is None:
        return "no interval"
    start, end = (t.astimezone(ZoneInfo(zone)) for t in (value.start, value.end))
    if _midnight(start) and _midnight(end):
        if start.day == 1 and end.day == 1 and (end.year * 12 + end.month) - (start.year * 12 + start.month) == 1:
            return f"{start:%B %Y}"
        if (end.date() - start.date()).days == 1:
            return f"{start:%Y-%m-%d}"
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"


def _midnight(at: datetime) -> bool:
    return (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0)


def version(reference: str) -> str:
    """``delay version 3`` for ``model:/delay/3``; empty for a model that is none."""
    path = reference.removeprefix("model:/").split("/")
    if len(path) != 2 or path[1] == "none":
        return ""
    name, number = path
    return f"candidate {number[:12]}" if name == "run" else f"{name} version {number}"


def split_feature(name: str) -> tuple[str, str]:
    """View and feature of ``view__feature``; the view is empty for a feature known at request time."""
    view, found, feature = name.partition("__")
    return (view, feature) if found else ("", name)


def plain(value: Any) -> str:
    """A parameter's value on one line."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}={plain(v)}" for k, v in value.items()) or "{}"
    return str(value)


def size(count: int) -> str:
    """Bytes: ``8.3 MB``."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return counted(count, "byte")
