"""What differs between two states of a home, and what readers saw that never was."""

from __future__ import annotations

import json
from typing import Any

State = dict[str, Any]
"""See ``home_state.full_state``."""


def differences(expected: Any, found: Any, path: str = "") -> tuple[list[str], list[str]]:
    """:returns: what is lost: missing or other than expected; and what is doubled: there is more of it."""
    lost: list[str] = []
    doubled: list[str] = []
    if expected == found:
        return lost, doubled
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() | found.keys()):
            less, more = differences(expected.get(name), found.get(name), f"{path}/{name}" if path else name)
            lost += less
            doubled += more
        return lost, doubled
    is_more = expected is None or (isinstance(expected, int) and isinstance(found, int) and found > expected)
    if isinstance(expected, list) and isinstance(found, list):
        is_more = len(found) > len(expected)
        if len(expected) == len(found):
            expected, found = _first_difference(expected, found)
    line = f"{path}: {_short(found)} instead of {_short(expected)}"
    (doubled if is_more else lost).append(line)
    return lost, doubled


def _first_difference(expected: list[Any], found: list[Any]) -> tuple[Any, Any]:
    a, b = next((a, b) for a, b in zip(expected, found, strict=True) if a != b)
    if isinstance(a, str) and isinstance(b, str):
        # Two long texts: from shortly before where they part.
        start = max(next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0) - 60, 0)
        return a[start:], b[start:]
    return a, b


def _short(value: Any, limit: int = 300) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def seen_wrong(before: State, after: State, readers: dict[str, Any]) -> list[str]:
    """What readers saw that no undisturbed run goes through between two states, or that went back."""
    if "error" in readers:
        return [f"a reader: {readers['error']}"]
    wrong = []
    for name, states in readers["seen"].items():
        allowed = _states_of(name, before, after)
        at = 0
        for state in states:
            if state not in allowed[at:]:
                wrong.append(f"a reader saw {name} at {_short(states)}; it goes {_short(allowed)}")
                break
            at += allowed[at:].index(state)
    return wrong


def _states_of(name: str, before: State, after: State) -> list[Any]:
    """The states of a table, of online values, or of an alias, in their order."""
    if name.endswith(" is there"):
        return [True]
    if "@" in name:
        model, _, alias = name.partition("@")
        return [s.get("aliases", {}).get(model, {}).get(alias) for s in (before, after)]
    if name.startswith("online "):
        ends = [s[name]["content"] if s.get(name, {}).get("rows") else None for s in (before, after)]
        return ends if name in before else [None, *ends]
    was = (before.get(name) or {}).get("main was", [])
    return [was[-1] if was else None, *after[name]["main was"][len(was) :]]
