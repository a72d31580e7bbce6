"""
Manifests: the truth about what a step made, and records of every attempt at it.

``steps/STEP/KE/KEY/manifest.json`` is written last, by rename; if it is there, the step is done.
``attempts/AT/ATTEMPT.json`` says how one attempt ended and which manifest it relies on; a scheduler finds it without
knowing the key. ``runs/DAG/RUN/TASK.json`` is the record of a task's newest attempt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airloop.contract import Receipt, RunInfo, attempt_record_path
from airloop.errors import BadArgument, ContractBroken, NotFound
from airloop.frame.logs import Redactor
from airloop.frame.step import manifest_folder
from airloop.reference import Reference, Scope
from airloop.warehouse.artifacts import ArtifactStore, sha256

MANIFEST_FORMAT = 1


def manifest_name(step_name: str, key: str) -> str:
    return f"{manifest_folder(step_name, key)}/manifest.json"


def read_manifest(store: ArtifactStore, step_name: str, key: str) -> dict[str, Any] | None:
    """The complete manifest under a key, or None. :raises ContractBroken: there is one that cannot be read."""
    try:
        content = store.read_bytes(manifest_name(step_name, key))
    except NotFound:
        return None
    try:
        manifest: dict[str, Any] = json.loads(content)
        if manifest["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {manifest['format']}")
    except (ValueError, KeyError, TypeError) as cause:
        raise ContractBroken(
            f"manifest {store.uri(manifest_name(step_name, key))} cannot be read: {cause}",
            "remove the file to have the step done again",
        ) from cause
    return manifest


def manifest_at(store: ArtifactStore, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The manifest that an attempt's record relies on; None if the attempt made and reused none.

    :raises BadArgument: the record names a manifest outside this store.
    """
    if record["status"] not in ("done", "reused"):
        return None
    address = str(record["manifest"])
    root = store.root.as_uri() + "/"
    if not address.startswith(root):
        raise BadArgument(f"manifest {address} is not in {store.root}")
    manifest: dict[str, Any] = json.loads(store.read_bytes(address.removeprefix(root)))
    return manifest


def publish_manifest(
    store: ArtifactStore, step_name: str, key: str, manifest: Mapping[str, Any], redact: Redactor
) -> tuple[str, str]:
    """Publish; returns address and SHA-256 of the bytes."""
    content = encode({"format": MANIFEST_FORMAT, **manifest}, redact)
    name = manifest_name(step_name, key)
    store.publish_bytes(name, content)
    return store.uri(name), sha256(content)


def publish_attempt(store: ArtifactStore, receipt: Receipt, record: Mapping[str, Any], redact: Redactor) -> str:
    """Publish how one attempt ended; returns the record's address."""
    name = attempt_record_path(receipt.attempt)
    document: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "attempt": receipt.attempt,
        "status": receipt.status,
        "key": receipt.key,
        "manifest": receipt.manifest,
        "digest": receipt.digest,
        **record,
    }
    content = encode(document, redact)
    store.publish_bytes(name, content)
    run = RunInfo(**record["run"])
    if run.dag_id:
        # The newest attempt of each task, found by run: what pages and reports list.
        store.publish_bytes(run_record_name(run), content)
    return store.uri(name)


def run_record_name(run: RunInfo) -> str:
    """Where the newest attempt's record of a task in a run is kept."""
    index = f".{run.map_index}" if run.map_index >= 0 else ""
    return f"{run_folder(run.dag_id, run.run_id)}/{_safe(run.task_id)}{index}.json"


def run_folder(dag_id: str, run_id: str = "") -> str:
    """Folder of the records of a loop, or of one run of it."""
    return f"runs/{_safe(dag_id)}/{_safe(run_id)}" if run_id else f"runs/{_safe(dag_id)}"


def _safe(text: str) -> str:
    """One path component that stands for any text and can be read back (percent-encoding; a leading dot too)."""
    name = quote(text, safe="+:@ ,=")
    return "%2E" + name[1:] if name.startswith(".") else name


STRUCTURE = frozenset(
    {
        "format",
        "step",
        "key",
        "attempt",
        "status",
        "manifest",
        "digest",
        "run",
        "outputs",
        "inputs",
        "code",
        "interval",
        "compared_with",
    }
)
"""Parts of a manifest that others rely on to the letter; no free text comes there."""


def encode(document: Mapping[str, Any], redact: Redactor) -> bytes:
    """Readable JSON without secrets. :raises ValueError: a figure is NaN or infinite."""
    shown = {name: value if name in STRUCTURE else masked(value, redact) for name, value in document.items()}
    return json.dumps(shown, indent=1, allow_nan=False, default=str).encode() + b"\n"


def masked(value: Any, redact: Redactor) -> Any:
    """A JSON value without secrets, in names too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): masked(v, redact) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, redact) for v in value]
    return value if value is None or isinstance(value, bool | int | float) else redact(str(value))


def describe_outputs(outputs: Mapping[str, Reference | str]) -> dict[str, dict[str, str]]:
    """Outputs as the manifest keeps them: the reference and, if it is one that can be checked, its kind."""
    return {
        role: {"kind": value.kind if isinstance(value, Reference) else "", "reference": str(value)}
        for role, value in outputs.items()
    }


def outputs_exist(manifest: Mapping[str, Any], scope: Scope) -> str:
    """Reference of the first output that is gone; empty if all are there."""
    for output in manifest["outputs"].values():
        reference = _reference(output["kind"], output["reference"])
        if reference is not None and not reference.exists(scope):
            return str(output["reference"])
    return ""


def _reference(kind: str, text: str) -> Reference | None:
    if kind == "table":
        from airloop.warehouse.refs import TableRef

        return TableRef.parse(text)
    if kind == "model":
        from airloop.registry.refs import ModelRef

        return ModelRef.parse(text)
    if kind == "decision":
        from airloop.registry.refs import DecisionRef

        return DecisionRef.parse(text)
    return None
