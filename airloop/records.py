"""
Records of attempts: where they lie, and who may write them. Standard library only: runners and payloads import it.

``runs/DAG/RUN/TASK.json`` is the record of a task's newest attempt. ``intervals/DAG/INTERVAL/TASK.json`` names the run
that last told an end of the task for a data interval, and the one before it: so what an attempt is to be compared with
is found in a few reads, however many runs there are. ``attempts/AT/ATTEMPT.json``, written after them, is found without
knowing the run: once it is there, the attempt has ended and everything that tells of it is there too. A payload records
its own end; an attempt that was ended from outside is recorded by whoever started it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from airloop.contract import Call, Exit, Receipt, RunInfo, attempt_record_path
from airloop.errors import AirloopError, ContractBroken, StepSkipped
from airloop.objects import Objects

RECORD_FORMAT = 1
"""Of manifests and records."""
REDO = "remove the file to have the step done again"
"""What to do about a manifest that nobody can read."""
FORGET = "remove the file: how its attempt ended, and what it relied on, is not known then"
"""What to do about a record that nobody can read."""
INTERVALS = "intervals"
"""Folder of what names the newest runs of each data interval."""
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
        _name_run(objects, run, document)
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
    record = _parsed(newest)
    if newest is None or record is None or record.get("attempt") != call.attempt:
        return None
    # Its process was killed before it had written all: what is left to do is done here.
    _name_run(objects, call.run, record)
    objects.publish(name, newest, only_if_absent=True)
    return newest


def _name_run(objects: Objects, run: RunInfo, record: Mapping[str, Any]) -> None:
    """Let the record's data interval name its run, unless it does. An attempt without a key has nothing to compare."""
    interval = record.get("interval")
    if not interval or not record.get("key"):
        return

    def named(there: bytes | None) -> bytes | None:
        newest = (_parsed(there) or {}).get("run_id")
        if newest == run.run_id:
            return None
        names = {"format": RECORD_FORMAT, "run_id": run.run_id, "before": newest}
        return json.dumps(names).encode() + b"\n"

    objects.change(interval_record_path(run, interval), named)


def runs_of_interval(objects: Objects, run: RunInfo, interval: Mapping[str, Any]) -> list[str]:
    """Ids of the runs, the newest first and two at most, that told an end of a task for a data interval."""
    names = _parsed(objects.read(interval_record_path(run, interval))) or {}
    return [str(names[part]) for part in ("run_id", "before") if names.get(part)]


def intervals_of(objects: Objects, dag_id: str) -> list[dict[str, str]]:
    """Data intervals, ``start`` and ``end``, for which tasks of a loop told an end, the earliest first."""
    folders = objects.folders(f"{INTERVALS}/{_file_name(dag_id)}")
    return [dict(zip(("start", "end"), unquote(name).split(","), strict=True)) for name in folders]


def run_record_path(run: RunInfo) -> str:
    """Path of the newest attempt's record of a task in a run, below the artifact store's root."""
    return f"{run_folder(run.dag_id, run.run_id)}/{_task_file(run)}"


def interval_record_path(run: RunInfo, interval: Mapping[str, Any]) -> str:
    """
    Path of the file that names the newest runs of a data interval.

    :param interval: ``start`` and ``end``, ISO 8601.
    """
    between = _file_name(f"{interval['start']},{interval['end']}")
    return f"{INTERVALS}/{_file_name(run.dag_id)}/{between}/{_task_file(run)}"


def run_folder(dag_id: str, run_id: str = "") -> str:
    """Folder of the records of a loop, or of one run of it."""
    return f"runs/{_file_name(dag_id)}/{_file_name(run_id)}" if run_id else f"runs/{_file_name(dag_id)}"


def _task_file(run: RunInfo) -> str:
    return _file_name(run.task_id, f".{run.map_index}.json" if run.map_index >= 0 else ".json")


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


def parse(content: bytes, address: str, way_out: str = FORGET) -> dict[str, Any]:
    """
    A manifest or a record of the format that this airloop knows.

    :param address: where it lies, for the error.
    :param way_out: what to do about one that nobody can read: :data:`REDO` or :data:`FORGET`.
    :raises ContractBroken: it is no JSON object, or of another format.
    """
    try:
        found = json.loads(content)
    except ValueError as cause:
        raise ContractBroken(f"{address} cannot be read: {cause}", way_out) from cause
    if not isinstance(found, dict):
        raise ContractBroken(f"{address} cannot be read: it is a {type(found).__name__}", way_out)
    refuse_unknown(found, address, way_out)
    return found


def refuse_unknown(document: Mapping[str, Any], address: str, way_out: str = FORGET) -> None:
    """
    Refuse a manifest or a record of another format: read by the rules of this one, it would say what it does not mean.

    :param address: where it lies, for the error.
    :param way_out: see :func:`parse`.
    :raises ContractBroken: it is of another format, or says none.
    """
    found = document.get("format")
    if found == RECORD_FORMAT:
        return
    if not isinstance(found, int):
        raise ContractBroken(f"{address} cannot be read: it says no format", way_out)
    raise ContractBroken(
        f"{address} is of format {found}, this airloop knows format {RECORD_FORMAT}",
        "update airloop here: a newer one wrote it" if found > RECORD_FORMAT else way_out,
    )
