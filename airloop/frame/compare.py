"""
What differs between two attempts at one task: arguments, inputs, code, libraries. Also finds the earlier one.

An attempt is described by its record; its code by its manifest, or by the fingerprint in its record if it failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from airloop.contract import RunInfo
from airloop.errors import NotFound
from airloop.frame.manifest import manifest_at
from airloop.records import parse, run_record_path, runs_of_interval
from airloop.warehouse.artifacts import ArtifactStore

Kind = Literal["interval", "input", "argument", "code", "library", "version", "key"]

SHOWN = 60
"""Characters of a value that a sentence shows."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same."""

    kind: Kind
    name: str
    """Path of the argument, name of the module or distribution."""
    old: Any
    """None: it was not there."""
    new: Any
    """None: it is gone."""

    def __str__(self) -> str:
        if self.kind == "code":
            how = "added" if self.old is None else "removed" if self.new is None else "changed"
            return f"code {how}: {self.name}"
        if self.kind == "version":
            return "the step's version was raised"
        if self.kind == "key":
            return "keys are made in another way now"
        return f"{' '.join(filter(None, (self.kind, self.name)))}: {_change(self.old, self.new)}"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two attempts."""

    key: str
    arguments: Mapping[str, Any]
    """Canonical, without those that are no part of the key."""
    inputs: frozenset[str]
    """Paths of arguments that are references."""
    fingerprint: str
    modules: Mapping[str, str] | None
    """SHA-256 of the source by module; None: not known, the attempt failed."""
    libraries: Mapping[str, str] | None

    @classmethod
    def of(cls, record: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> Side:
        """
        :param record: of the attempt.
        :param manifest: the one that it made or reused; None if it failed.
        """
        keyless = set(record.get("keyless") or ())
        code = (manifest or {}).get("code") or record.get("code") or {}
        return cls(
            key=str(record.get("key") or ""),
            arguments={n: v for n, v in (record.get("arguments") or {}).items() if n not in keyless},
            inputs=frozenset((manifest or {}).get("inputs") or ()),
            fingerprint=str(code.get("fingerprint") or ""),
            modules=code.get("modules"),
            libraries=code.get("libraries"),
        )


def differences(old: Side, new: Side) -> list[Difference]:
    """What differs and can change a key; empty if the keys are the same."""
    if old.key == new.key:
        return []
    found = [*_code(old, new), *_values("", old.arguments, new.arguments, old.inputs | new.inputs)]
    order: list[Kind] = ["interval", "input", "argument", "code", "library", "version"]
    found.sort(key=lambda d: (order.index(d.kind), d.name))
    return found or [Difference("key", "", old.key, new.key)]


def sentence(found: list[Difference], *, most: int = 4) -> str:
    """The differences in one line."""
    parts = [str(d) for d in found[:most]]
    # One change of code often reaches many modules: their names say enough.
    code = [d.name for d in found if d.kind == "code" and d.old is not None and d.new is not None]
    if len(code) > 1:
        names = ", ".join(code[:most]) + (f" and {len(code) - most} more" if len(code) > most else "")
        rest = [d for d in found if d.kind != "code" or d.old is None or d.new is None]
        parts = [*(str(d) for d in rest[:most]), f"code changed: {names}"]
        found = [*rest, found[0]]
    more = len(found) - most
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def earlier_attempt(store: ArtifactStore, run: RunInfo, interval: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    The record of the newest attempt at a task so far, in this run, else in another run of the same interval.

    One that ended before its key was known, or that was ended from outside, has nothing to compare with.
    """
    if not run.dag_id:
        return None
    others = runs_of_interval(store.objects, run, interval) if interval else []
    for run_id in (run.run_id, *(other for other in others if other != run.run_id)):
        found = _read(store, run_record_path(replace(run, run_id=run_id)))
        if found is not None and found.get("key") and (run_id == run.run_id or found.get("interval") == interval):
            return found
    return None


def evidence(store: ArtifactStore, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest that an attempt relies on; None if there is none, or if it was removed or damaged since."""
    try:
        return manifest_at(store, record)
    except (NotFound, ValueError):
        return None


def _read(store: ArtifactStore, name: str) -> dict[str, Any] | None:
    try:
        return parse(store.read_bytes(name), store.uri(name))
    except NotFound:
        return None


def _code(old: Side, new: Side) -> Iterator[Difference]:
    if old.fingerprint == new.fingerprint:
        return
    if old.modules is None or new.modules is None or old.libraries is None or new.libraries is None:
        yield Difference("code", "which, an attempt that failed does not say", old.fingerprint, new.fingerprint)
        return
    changed = [
        *(Difference("code", *d) for d in _changed(old.modules, new.modules)),
        *(Difference("library", *d) for d in _changed(old.libraries, new.libraries)),
    ]
    yield from changed or [Difference("version", "", old.fingerprint, new.fingerprint)]


def _values(path: str, old: Any, new: Any, inputs: frozenset[str]) -> Iterator[Difference]:
    """Differences of two JSON values, each at the deepest path where they part."""
    if old == new:
        return
    if path == "interval":
        yield Difference("interval", "", _interval(old), _interval(new))
    elif path in inputs and _is_files(old) and _is_files(new):
        yield from (Difference("input", f"file {n}", o, w) for n, o, w in _changed(dict(old), dict(new)))
    elif path in inputs:
        yield Difference("input", path, old, new)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            yield from _values(f"{path}.{name}" if path else name, old.get(name), new.get(name), inputs)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _values(f"{path}[{index}]", before, after, inputs)
    else:
        yield Difference("argument", path, old, new)


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _is_files(value: Any) -> bool:
    """Whether this is how the content of files stands in a key: pairs of name and digest."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and re.fullmatch("[0-9a-f]{64}", str(pair[1])) for pair in value
    )


def _interval(value: Any) -> str | None:
    return f"{value['start']}/{value['end']}" if isinstance(value, Mapping) else value


def _change(old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        # Long texts, such as SQL: the first line that is not the same.
        lines = list(zip(old.splitlines(), new.splitlines(), strict=False))
        number = next((i for i, (a, b) in enumerate(lines) if a != b), len(lines))
        before, after = ([*text.splitlines(), ""][number].strip() for text in (old, new))
        return f"line {number + 1}: {_shown(before)} → {_shown(after)}"
    return f"{_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
