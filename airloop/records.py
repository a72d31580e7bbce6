"""
Records of attempts: where they lie, and who may write them. Standard library only: runners and payloads import it.

``runs/DAG/RUN/TASK.json`` is the record of a task's newest attempt. ``attempts/AT/ATTEMPT.json``, written after it, is
found without knowing the run: once it is there, the attempt has ended and everything that tells of it is there too.
A payload records its own end; an attempt that was ended from outside is recorded by whoever started it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from airloop.contract import Call, Exit, Receipt, RunInfo, attempt_record_path
from airloop.errors import AirloopError, StepSkipped
from airloop.objects import Objects

RECORD_FORMAT = 1
"""Of manifests and records."""
NAME_LIMIT = 255
"""Bytes of a file's name, as file systems have it."""
SHORTENED = "%~"
"""In a name that was too long: the beginning stands before it, a digest of the whole text after it."""


def attempt_record(receipt: Receipt, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an attempt, as both sides write it."""
    return {
        "format": RECORD_FORMAT,
        "attempt": receipt.attempt,
        "status": receipt.status,
        "key": receipt.key,
        "manifest": receipt.manifest,
        "digest": receipt.digest,
        **facts,
    }


def status_of(error: AirloopError) -> str:
    """How an attempt ended that is not done."""
    if isinstance(error, StepSkipped):
        return "skipped"
    return {int(Exit.REJECTED): "rejected", int(Exit.TRY_AGAIN): "try_again"}.get(error.exit_code, "failed")


def publish(objects: Objects, document: Mapping[str, Any], content: bytes) -> str:
    """
    Publish how an attempt ended, as its own process tells it.

    :param content: the document's bytes, without secrets.
    :returns: address of the attempt's record.
    """
    run = RunInfo(**document["run"])
    if run.dag_id:
        objects.change(run_record_path(run), lambda there: None if _is_overtaken(_parsed(there), document) else content)
    # It comes last: a runner that finds it asks for nothing more.
    name = attempt_record_path(document["attempt"])
    objects.publish(name, content)
    return objects.uri(name)


def publish_for(objects: Objects, document: Mapping[str, Any]) -> str:
    """
    Publish how an attempt ended that could not tell itself, unless it did, or a newer attempt at the task has.

    :param document: without secrets.
    :returns: address of the attempt's record.
    """
    content = json.dumps(document, indent=1).encode() + b"\n"
    run = RunInfo(**document["run"])

    def unless_it_is_told(before: bytes | None) -> bytes | None:
        there = _parsed(before)
        if there is not None and (there.get("attempt") == document["attempt"] or _is_newer(there, document)):
            return None
        return content

    if run.dag_id:
        objects.change(run_record_path(run), unless_it_is_told)
    name = attempt_record_path(document["attempt"])
    objects.publish(name, content, only_if_absent=True)
    return objects.uri(name)


def read(objects: Objects, call: Call) -> bytes | None:
    """The record of a call's attempt; None if there is none."""
    name = attempt_record_path(call.attempt)
    own = objects.read(name)
    if own is not None:
        return own
    newest = objects.read(run_record_path(call.run)) if call.run.dag_id else None
    if newest is None or (_parsed(newest) or {}).get("attempt") != call.attempt:
        return None
    # Its process was killed between the two: what is left to do is done here.
    objects.publish(name, newest, only_if_absent=True)
    return newest


def run_record_path(run: RunInfo) -> str:
    """Path of the newest attempt's record of a task in a run, below the artifact store's root."""
    index = f".{run.map_index}" if run.map_index >= 0 else ""
    return f"{run_folder(run.dag_id, run.run_id)}/{_file_name(run.task_id, f'{index}.json')}"


def run_folder(dag_id: str, run_id: str = "") -> str:
    """Folder of the records of a loop, or of one run of it."""
    return f"runs/{_file_name(dag_id)}/{_file_name(run_id)}" if run_id else f"runs/{_file_name(dag_id)}"


def _file_name(text: str, suffix: str = "") -> str:
    """
    One path component that stands for any text: letters and digits of all scripts as they are, others percent-encoded.

    It can be read back, unless it was too long and is :data:`SHORTENED`.
    """
    parts = [c if c.isalnum() else quote(c, safe="+:@ ,=") for c in text]
    if parts[:1] == ["."]:
        parts[0] = "%2E"
    name = "".join(parts) + suffix
    if len(name.encode()) <= NAME_LIMIT:
        return name
    end = SHORTENED + hashlib.sha256(text.encode()).hexdigest()[:16] + suffix
    room = NAME_LIMIT - len(end)
    kept = ""
    for part in parts:
        room -= len(part.encode())
        if room < 0:
            break
        kept += part
    return kept + end


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    """A record; None if there is none that can be read."""
    try:
        found = json.loads(content or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_overtaken(there: Mapping[str, Any] | None, document: Mapping[str, Any]) -> bool:
    """
    Whether a later try of the task has told its end already: the one of the document is a straggler.

    Clocks of two machines differ, and a run that was deleted and made anew counts its tries anew: it takes both.
    """
    if there is None or there.get("attempt") == document["attempt"]:
        return False
    try:
        later = there["run"]["try_number"] > document["run"]["try_number"]
    except (KeyError, TypeError):
        return False
    return bool(later and _is_newer(there, document))


def _is_newer(there: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    try:
        return datetime.fromisoformat(there["started_at"]) > datetime.fromisoformat(document["started_at"])
    except (KeyError, TypeError, ValueError):
        return False
