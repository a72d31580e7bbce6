"""Which run is meant, and what each of its tasks relied on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airloop.errors import NotFound
from airloop.frame import history
from airloop.frame.history import RunRecord
from airloop.warehouse.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a run, by the manifest that it relies on."""

    task_id: str
    record: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def step(self) -> str:
        return str(self.manifest["step"])

    @property
    def call_name(self) -> str:
        """How a call names the step."""
        # A step of airloop's own is called by its short name, as its artifacts' folder bears it.
        return self.step if self.built_in else str(self.manifest["code"]["target"])

    @property
    def built_in(self) -> bool:
        """Whether the step is one of airloop's own."""
        return str(self.manifest["code"]["target"]).startswith("airloop.")

    def inputs(self, kind: str) -> list[str]:
        """References of one kind that it was given."""
        return [i["reference"] for i in self.manifest["inputs"].values() if i["kind"] == kind]

    def made(self, kind: str) -> dict[str, str]:
        """References of one kind that it made and was not given, by role."""
        given = set(self.inputs(kind))
        outputs = self.manifest["outputs"].items()
        return {r: o["reference"] for r, o in outputs if o["kind"] == kind and o["reference"] not in given}


def find_run(store: ArtifactStore, name: str) -> RunRecord:
    """
    A run by ``DAG/RUN``, or by ``RUN`` alone where only one loop has it.

    :raises NotFound: there is none, or there are several.
    """
    known = {dag_id: history.run_ids(store, dag_id) for dag_id in history.loops(store)}
    found = [(d, r) for d, runs in known.items() for r in runs if name in (f"{d}/{r}", r)]
    if len(found) == 1:
        return history.run(store, *found[0])
    if found:
        raise NotFound(f"{len(found)} loops have a run {name}", f"name one: {', '.join(f'{d}/{r}' for d, r in found)}")
    everything = [f"{d}/{r}" for d, runs in known.items() for r in runs]
    near = nearest(name, [*everything, *(r for runs in known.values() for r in runs)]) or everything[-5:]
    raise NotFound(f"no run {name} is known", f"there is {', '.join(near)}" if near else "nothing has run yet")


def tasks_of(store: ArtifactStore, run: RunRecord) -> list[Task]:
    """The tasks of a run that ended well, in the order in which they started."""
    found = []
    for task_id, record in run.tasks.items():
        manifest = history.manifest_of(store, record)
        if manifest is not None:
            found.append(Task(task_id, record.record, manifest))
    return found


def nearest(text: str, names: Iterable[str]) -> list[str]:
    """At most three names that look like a text."""
    return difflib.get_close_matches(text, sorted(set(names)), n=3, cutoff=0.5)
