"""Names and labels of an attempt's pod: Kubernetes allows few characters and few of them; two tasks never share one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from airloop.contract import Call

LIMIT = 63
"""Characters of a label's value and of a host's name, which a pod's is."""
PREFIX = "airloop/"
"""Of our labels and annotations."""
ATTEMPT = f"{PREFIX}attempt"
ATTEMPT_IN_FULL = f"{PREFIX}attempt-id"
"""Annotation."""
TASK_INSTANCE = f"{PREFIX}task-instance"
"""Label that all tries of one task in one run share, whatever their attempts."""
INSTANCE = f"{PREFIX}instance"
"""Label of all pods of one Airflow."""

TaskKey = tuple[str, str, str, int]
"""DAG, run, task and map index, which is -1 where a task is not mapped."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", re.ASCII)
_SHORTENED = re.compile(r".*--[0-9a-f]{16}", re.ASCII | re.DOTALL)


def label_value(text: str) -> str:
    """
    A label's value that stands for a text: the text itself where it can be one, else its beginning and a digest.

    What looks like a beginning with a digest is shortened too, so two texts never have one value.
    """
    if not text or (len(text) <= LIMIT and _LABEL.fullmatch(text) and not _SHORTENED.fullmatch(text)):
        return text
    end = f"--{_digest(text)}"
    begin = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[: LIMIT - len(end)].lstrip("_.-")
    return (begin or "x") + end


def pod_name(call: Call) -> str:
    """
    The name of an attempt's pod, the same whoever asks; for people it begins with the task's.

    The attempt alone tells pods apart. It is unique, up to 64 digits long, and never cut.
    """
    attempt = call.attempt if len(call.attempt) <= 20 else hashlib.sha256(call.attempt.encode()).hexdigest()[:20]
    spoken = re.sub(r"[^a-z0-9]+", "-", (call.run.task_id or call.step).lower()).strip("-")
    begin = spoken[: LIMIT - len(attempt) - 1].strip("-") or "step"
    return f"{begin}-{attempt}"


def labels(call: Call, instance: str) -> dict[str, str]:
    """Labels that say whose an attempt's pod is."""
    return {
        "app.kubernetes.io/name": "airloop",
        "app.kubernetes.io/component": "step",
        INSTANCE: label_value(instance),
        f"{PREFIX}step": label_value(call.step),
        f"{PREFIX}dag": label_value(call.run.dag_id),
        f"{PREFIX}run": label_value(call.run.run_id),
        f"{PREFIX}task": label_value(call.run.task_id),
        f"{PREFIX}map-index": str(call.run.map_index) if call.run.map_index >= 0 else "none",
        f"{PREFIX}try": str(call.run.try_number),
        ATTEMPT: label_value(call.attempt),
        TASK_INSTANCE: task_instance(call, instance),
    }


def in_full(call: Call) -> dict[str, str]:
    """Annotations: in full what a label may have had to shorten, for people and for the removal of left pods."""
    return {
        f"{PREFIX}dag-id": call.run.dag_id,
        f"{PREFIX}run-id": call.run.run_id,
        f"{PREFIX}task-id": call.run.task_id,
        ATTEMPT_IN_FULL: call.attempt,
    }


def task_of(metadata: Mapping[str, Any]) -> tuple[TaskKey, int] | None:
    """Whose an attempt's pod is, and of which try; None: it does not say so, or no task of Airflow made it."""
    given, told = metadata.get("labels") or {}, metadata.get("annotations") or {}
    try:
        index = given[f"{PREFIX}map-index"]
        task = told[f"{PREFIX}dag-id"], told[f"{PREFIX}run-id"], told[f"{PREFIX}task-id"]
        return ((*task, -1 if index == "none" else int(index)), int(given[f"{PREFIX}try"])) if task[0] else None
    except (KeyError, ValueError):
        return None


def task_instance(call: Call, instance: str) -> str:
    """What all tries of one task in one run share."""
    run = call.run
    return _digest(json.dumps([instance, run.dag_id, run.run_id, run.task_id, run.map_index]), 32)


def is_of(metadata: Mapping[str, object], call: Call, instance: str) -> bool:
    """Whether an object is this attempt's own."""
    given = metadata.get("labels")
    wanted = labels(call, instance)
    return isinstance(given, Mapping) and all(given.get(name) == wanted[name] for name in (ATTEMPT, TASK_INSTANCE))


def _digest(text: str, digits: int = 16) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
