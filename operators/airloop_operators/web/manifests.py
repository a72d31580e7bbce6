"""A step's manifest for people: why it was reused, what it was made of, what it made, with which code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airloop.contract import Interval, attempt_record_path
from airloop.errors import BadArgument, NotFound
from airloop.records import FORGET, REDO, refuse_unknown
from airloop.report import words
from airloop.report.decision import decision_of, outcome
from airloop_operators.web.data import Reader, Run, Task, words_of
from airloop_operators.web.pods import use_of

FILES_LISTED = 200


@dataclass(slots=True)
class Reference:
    """An input or an output."""

    role: str
    text: str
    file: str = ""
    """Artifact's name of what can be looked at; empty for tables and models."""
    made_by: str = ""
    """Task of the same run that made it; empty if it is not known."""
    manifest: str = ""
    attempt: str = ""


@dataclass(slots=True)
class StepPage:
    """A manifest, the attempt that relies on it, or both."""

    step: str
    task: str
    dag_id: str
    run_id: str
    status: str
    key: str
    label: str
    """The interval, for people; empty without one."""
    path: str
    """The manifest's name; empty if the attempt made none."""
    attempt: str
    """The attempt record's name; empty if none was asked for."""
    record: dict[str, Any]
    manifest: dict[str, Any]
    error: str
    summary: list[str] = field(default_factory=list)
    inputs: list[Reference] = field(default_factory=list)
    outputs: list[Reference] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    report: str = ""
    use: list[tuple[str, str]] = field(default_factory=list)
    """What the making of the manifest, or an attempt without one, took; empty if no runner told."""


def find(reader: Reader, path: str, attempt: str) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    """
    The manifest and the record of an attempt, each with its name; those that are not there are empty.

    :param path: name of a manifest, or of an attempt's or a task's record.
    :param attempt: identity of the attempt that relies on it; may be empty.
    :raises NotFound: neither is there.
    :raises BadArgument: a name is none of these.
    :raises ContractBroken: one is of a format that this airloop does not know.
    """
    record_name, record, manifest = "", {}, {}
    if attempt:
        if not re.fullmatch(r"[0-9A-Za-z_-]{4,64}", attempt):
            raise BadArgument(f"{attempt!r} is not an attempt's identity")
        record_name = attempt_record_path(attempt)
    if path.startswith(("attempts/", "runs/")):
        # An attempt that made nothing is linked by its record.
        record_name, path = record_name or path, ""
    if record_name:
        record = _checked(reader, record_name, "status")
        path = path or reader.name_of(str(record.get("manifest", "")))
    if path:
        if not path.endswith("/manifest.json"):
            raise BadArgument(f"{path!r} is not a manifest")
        manifest = _checked(reader, path, "outputs")
    return path, manifest, record_name, record


def describe(path: str, manifest: dict[str, Any], record_name: str, record: dict[str, Any], reader: Reader) -> StepPage:
    """Everything that the page shows."""
    # The attempt says where the page was opened from; the manifest, when it was reused, by whom it was made.
    own = record or manifest
    info, interval = own["run"], own.get("interval")
    run = reader.run_of(info["dag_id"], info["run_id"]) if info["dag_id"] else None
    links = manifest.get("links") or {}
    return StepPage(
        step=own["step"],
        task=info["task_id"] + (f"[{info['map_index']}]" if info["map_index"] >= 0 else "") or own["step"],
        dag_id=info["dag_id"],
        run_id=info["run_id"],
        status=record.get("status", "done"),
        key=own.get("key", ""),
        label=run.label if run else words.interval(Interval.parse(interval), "UTC") if interval else "",
        path=path,
        attempt=record_name,
        record=record,
        manifest=manifest,
        error=(record.get("error") or {}).get("message", ""),
        summary=_summary(manifest),
        inputs=_inputs(manifest, run),
        outputs=[_reference(role, o["reference"]) for role, o in manifest.get("outputs", {}).items()],
        files=_files(reader, path),
        report=next((n for kind in ("report", "docs") if (n := reader.name_of(str(links.get(kind, ""))))), ""),
        use=use_of(reader, manifest or record),
    )


def _checked(reader: Reader, name: str, member: str) -> dict[str, Any]:
    try:
        found = reader.json(name)
    except ValueError as cause:
        if isinstance(cause, BadArgument):
            raise
        raise NotFound(f"{name} cannot be read: {cause}") from cause
    if member not in found or "run" not in found:
        raise NotFound(f"{name} is not a manifest or an attempt's record")
    refuse_unknown(found, name, FORGET if member == "status" else REDO)
    return found


def _summary(manifest: Mapping[str, Any]) -> list[str]:
    """What the step says of itself in words."""
    details = manifest.get("details", {})
    decided = outcome(decision_of(manifest), None)
    found = [details.get("summary"), details.get("reason"), decided["lead"], *decided["reasons"]]
    return [words_of(str(text)) for text in found if text]


def _inputs(manifest: Mapping[str, Any], run: Run | None) -> list[Reference]:
    makers: dict[str, Task] = {}
    for task in run.tasks if run else []:
        for text in task.made:
            makers.setdefault(text, task)
    found = []
    for role, given in manifest.get("inputs", {}).items():
        reference = _reference(role, given["reference"])
        maker = makers.get(given["reference"])
        if maker is not None:
            reference.made_by, reference.manifest, reference.attempt = maker.name, maker.manifest, maker.attempt
        found.append(reference)
    return found


def _reference(role: str, text: str) -> Reference:
    """A decision is a file and its digest: the file can be opened, and its place says too much."""
    file, _, digest = text.removeprefix("decision:").partition("#")
    if text.startswith("decision:") and digest:
        return Reference(role, f"{file.rpartition('/')[2]} {digest[:12]}", file)
    return Reference(role, text)


def _files(reader: Reader, path: str) -> list[str]:
    folder = path.rpartition("/")[0]
    return reader.store.names(folder)[:FILES_LISTED] if folder else []
