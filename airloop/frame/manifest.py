"""
Manifests: the truth about what a step made, and records of every attempt at it.

``steps/STEP/KE/KEY/manifest.json`` is written last, by rename; if it is there, the step is done.
A record says how one attempt ended and which manifest it relies on; see :mod:`airloop.records`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from airloop import records
from airloop.contract import Receipt
from airloop.errors import BadArgument, NotFound
from airloop.frame.logs import Redactor
from airloop.frame.step import manifest_folder
from airloop.reference import Reference, Scope
from airloop.warehouse.artifacts import ArtifactStore, sha256

MANIFEST_FORMAT = records.RECORD_FORMAT


def manifest_name(step_name: str, key: str) -> str:
    return f"{manifest_folder(step_name, key)}/manifest.json"


def read_manifest(store: ArtifactStore, step_name: str, key: str) -> dict[str, Any] | None:
    """
    The complete manifest under a key, or None.

    :raises ContractBroken: there is one that cannot be read, or of a format that this airloop does not know.
    """
    try:
        content = store.read_bytes(manifest_name(step_name, key))
    except NotFound:
        return None
    return records.parse(content, f"manifest {store.uri(manifest_name(step_name, key))}", records.REDO)


def manifest_at(store: ArtifactStore, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The manifest that an attempt's record relies on; None if the attempt made and reused none.

    :raises BadArgument: the record names a manifest outside this store.
    :raises ContractBroken: it is of a format that this airloop does not know.
    :raises ValueError: it is no JSON.
    """
    if record["status"] not in ("done", "reused"):
        return None
    address = str(record["manifest"])
    name = store.name_of(address)
    if not name:
        raise BadArgument(f"manifest {address} is not in {store}")
    manifest: dict[str, Any] = json.loads(store.read_bytes(name))
    records.refuse_unknown(manifest, f"manifest {address}", records.REDO)
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
    document = records.attempt_record(receipt, record)
    return records.publish(store.objects, document, encode(document, redact))


STRUCTURE = frozenset(
    {
        "format",
        "step",
        "key",
        "key_format",
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
    return json.dumps(shown, indent=1, allow_nan=False).encode() + b"\n"


def masked(value: Any, redact: Redactor) -> Any:
    """A JSON value without secrets, in names too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): masked(v, redact) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, redact) for v in value]
    return value


def plain(value: Any, path: str) -> Any:
    """
    The JSON value that a step means, numbers of NumPy among them.

    :param path: where it stands, for the error.
    :raises BadArgument: there is none.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        # A scalar of NumPy, without an import of NumPy.
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadArgument(f"{path} is {value}", "leave out what is not a number")
        return value
    if isinstance(value, Mapping):
        return {_name(name, path): plain(v, f"{path}.{name}") for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{path}[{index}]") for index, v in enumerate(value)]
    raise BadArgument(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}",
        "give what JSON has: a number, a text, a list or a mapping",
    )


def _name(name: Any, path: str) -> str:
    if getattr(name, "ndim", None) == 0 and hasattr(name, "item"):
        name = name.item()
    if isinstance(name, str | int):
        return str(name)
    raise BadArgument(f"{path} has the name {name!r}, a {type(name).__qualname__}", "names are texts")


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
