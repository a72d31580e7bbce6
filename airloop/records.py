"""
Records of attempts: where they lie, and who may write them. Standard library only: runners and payloads import it.

``runs/DAG/RUN/TASK.json`` is the record of a task's newest attempt. ``attempts/AT/ATTEMPT.json``, written after it, is
found without knowing the run: once it is there, the attempt has ended and everything that tells of it is there too.
A payload records its own end; an attempt that was ended from outside is recorded by whoever started it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airloop import atomic
from airloop.contract import Call, Exit, Receipt, RunInfo, attempt_record_path
from airloop.errors import AirloopError, StepSkipped

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


def publish(root: Path, document: Mapping[str, Any], content: bytes) -> Path:
    """
    Publish how an attempt ended, as its own process tells it.

    :param root: of the artifact store.
    :param content: the document's bytes, without secrets.
    :returns: the attempt's record.
    """
    run = RunInfo(**document["run"])
    if run.dag_id:
        with _alone(root / run_record_path(run)) as path:
            atomic.publish(path, content)
    # It comes last: a runner that finds it asks for nothing more.
    path = root / attempt_record_path(document["attempt"])
    atomic.publish(path, content)
    return path


def publish_for(root: Path, document: Mapping[str, Any]) -> None:
    """
    Publish how an attempt ended that could not tell itself, unless it did, or a newer attempt at the task has.

    :param document: without secrets.
    """
    content = json.dumps(document, indent=1).encode() + b"\n"
    run = RunInfo(**document["run"])
    if run.dag_id:
        with _alone(root / run_record_path(run)) as path:
            there = _read(path)
            if there is None or not (there.get("attempt") == document["attempt"] or _is_newer(there, document)):
                atomic.publish(path, content)
    atomic.publish(root / attempt_record_path(document["attempt"]), content, only_if_absent=True)


def read(root: Path, call: Call) -> bytes | None:
    """The record of a call's attempt; None if there is none."""
    path = root / attempt_record_path(call.attempt)
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        pass
    newest = root / run_record_path(call.run)
    if not call.run.dag_id or (_read(newest) or {}).get("attempt") != call.attempt:
        return None
    # Its process was killed between the two: what is left to do is done here.
    content = newest.read_bytes()
    atomic.publish(path, content, only_if_absent=True)
    return content


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


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Nobody else writes a record of this run meanwhile. The lock is the folder's: it leaves no file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_newer(there: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    try:
        return datetime.fromisoformat(there["started_at"]) > datetime.fromisoformat(document["started_at"])
    except (KeyError, TypeError, ValueError):
        return False
