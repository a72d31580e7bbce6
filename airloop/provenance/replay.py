"""
Rebuild what a past run made, on its exact snapshots, arguments and code, and say whether it is equal.

Each task runs again alone, in a process of its own, on the inputs that its manifest names, so that the first task
that differs is found and not all that follow it. Nothing of the production state is written: a task gets a home of
its own whose tables are private copies (:mod:`airloop.provenance.fork`), models go to an MLflow of the replay. A model
that a later task of the run was given is the rebuilt one.

What it does not do: read source files, publish, promote, fill the online store or make a backup again, nor anything
else of which a step says that it has an effect (``@step(effect=…)``). What such a task made then is used.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.errors import BadArgument, NotFound
from airloop.provenance.environment import Change, changes
from airloop.provenance.fork import snapshots_of
from airloop.provenance.room import Room
from airloop.provenance.runs import Task, find_run, tasks_of
from airloop.provenance.verdict import Finding, compare_figures, compare_models, compare_tables
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.refs import TableRef

NOT_REBUILT = {
    "extract": "it reads source files",
    "validate": "it publishes rows",
    "materialize": "it fills the online store",
    "check_parity": "it looks at the online store as it is now",
    "register": "it moves aliases",
    "report": "it is a page about the others",
}
"""Steps of airloop's own with an effect or with an input that is not kept, and which. Others say it themselves."""


@dataclass(slots=True)
class Rebuilt:
    """What became of one task."""

    task_id: str
    step: str
    findings: list[Finding] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    """Versions that differ from the run's."""
    failed: str = ""
    """Why it did not get to an end."""
    taken: str = ""
    """Set if it was not rebuilt: what stands in for it, and why."""

    @property
    def verdict(self) -> str:
        """``equal``, ``equal under other libraries``, ``not equal``, ``failed``, ``taken`` or ``not compared``."""
        if self.taken:
            return "taken"
        if self.failed:
            return "failed"
        if not self.findings:
            return "not compared"
        if not all(f.equal for f in self.findings):
            return "not equal"
        return "equal under other libraries" if self.changes else "equal"


@dataclass(slots=True)
class Replay:
    """What became of a run."""

    dag_id: str
    run_id: str
    folder: Path
    tasks: list[Rebuilt] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether something was compared, and all of it is equal."""
        return self.verdict in ("equal", "equal under other libraries")

    @property
    def verdict(self) -> str:
        """The worst of the tasks', of those that were compared; ``nothing compared`` if none was."""
        found = {t.verdict for t in self.tasks}
        order = ("failed", "not equal", "equal under other libraries", "equal")
        return next((verdict for verdict in order if verdict in found), "nothing compared")


def choose(tasks: Sequence[Task], wanted: Sequence[str]) -> list[Task]:
    """
    The tasks to rebuild: those named, else those that made the models: their training sets, trainings and gates.

    :raises NotFound: a named task is not among them, or there is no training to rebuild.
    """
    if wanted:
        missing = sorted(set(wanted) - {t.task_id for t in tasks})
        if missing:
            raise NotFound(f"the run has no {', '.join(missing)}", f"it has {', '.join(t.task_id for t in tasks)}")
        return [t for t in tasks if t.task_id in wanted]
    trained = [t for t in tasks if not _known(t) and t.made("model")]
    if not trained:
        raise NotFound("the run trained no model", f"name tasks: --task {tasks[0].task_id}" if tasks else "")
    tables = {ref for t in trained for ref in t.inputs("table")}
    models = {ref for t in trained for ref in t.made("model").values()}
    return [
        t
        for t in tasks
        if t in trained
        or (not _known(t) and tables & set(t.made("table").values()))
        or (t.step == "evaluate" and models & set(t.inputs("model")))
    ]


def replay(
    config: Config, text: str, *, tasks: Sequence[str] = (), into: Path | None = None, keep: bool = False
) -> Replay:
    """
    Rebuild a run.

    :param text: ``DAG/RUN_ID``, or a run id that is unique.
    :param tasks: which to rebuild; default those that led to the run's models.
    :param into: folder for what is rebuilt, which stays; it is made, or is empty.
    :param keep: leave what is rebuilt where it is.
    :raises NotFound: run, task, snapshot or archived code are not there; says which, and if they were erased, by whom.
    """
    store = ArtifactStore(config.artifacts)
    run = find_run(store, text)
    chosen = choose(tasks_of(store, run), tasks)
    _refuse_gone(config, chosen)
    with _folder(config, into, keep) as folder, _room(config, folder, keep=keep or into is not None) as room:
        done = Replay(run.dag_id, run.run_id, folder)
        for task in chosen:
            reason = _known(task) or _acts_now(task) or room.acts(task)
            if reason:
                done.tasks.append(Rebuilt(task.task_id, task.step, taken=_taken(config, task, reason)))
                continue
            rebuilt = Rebuilt(task.task_id, task.step, changes=changes(task.manifest))
            done.tasks.append(rebuilt)
            made = room.run(task)
            if isinstance(made, str):
                rebuilt.failed = made
            else:
                rebuilt.findings = _compare(config, room, task, made)
        return done


@contextmanager
def _folder(config: Config, into: Path | None, keep: bool) -> Iterator[Path]:
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        if any(into.iterdir()):
            raise BadArgument(f"{into} is not empty", "name a folder that is, or one that is not there yet")
        yield into.resolve()
        return
    (config.home / "work").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="replay-", dir=config.home / "work"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _room(config: Config, folder: Path, *, keep: bool) -> Iterator[Room]:
    room = Room(config, folder)
    try:
        yield room
    finally:
        if not keep:
            room.clear()


def _refuse_gone(config: Config, tasks: Sequence[Task]) -> None:
    """:raises NotFound: a snapshot or the code is not there; says all of them."""
    from airloop.provenance.erasures import erased
    from airloop.reference import Scope
    from airloop.warehouse.catalog import Warehouse

    warehouse, scope = Warehouse.open(config), Scope(config)
    gone = []
    for task in tasks:
        for text in dict.fromkeys([*task.inputs("table"), *task.made("table").values()]):
            ref = TableRef.parse(text)
            if not ref.snapshot or ref.exists(scope):
                continue
            by = erased(warehouse, ref)
            if by is None and ref.snapshot in snapshots_of(warehouse.table(ref.name), [ref.snapshot]):
                continue
            why = (
                f"erased on {by.recorded_at:%Y-%m-%d %H:%M} UTC, asked for by {by.asked_by}: {by.reason}"
                if by is not None
                else "expired or removed by another tool"
            )
            gone.append(f"{text} of task {task.task_id} ({why})")
        if not _known(task) and not task.manifest["code"].get("tree"):
            gone.append(f"the code of task {task.task_id} (made before code was archived)")
    if gone:
        raise NotFound(f"the run cannot be replayed: {'; '.join(gone)} is gone", "`airloop tables` says what is there")


def _known(task: Task) -> str:
    """Why a step of airloop's own is not rebuilt; empty: it may be."""
    return NOT_REBUILT.get(task.step, "") if task.built_in else ""


def _acts_now(task: Task) -> str:
    """What the step, by the code of today, says that it does beside its results; empty: nothing, or it is gone."""
    from airloop.frame import Step

    module, _, name = str(task.manifest["code"]["target"]).partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception:  # noqa: BLE001 - what is there today need not work; the code of then is what runs
        return ""
    return found.acts if isinstance(found, Step) else ""


def _taken(config: Config, task: Task, reason: str) -> str:
    """What stands in for a task that is not rebuilt."""
    made = ", ".join([*task.made("table").values(), *task.made("model").values()])
    note = f"not rebuilt, {reason}" + (f"; its {made} is used" if made else "")
    return f"{note}; {_sources(config, task)}" if task.built_in and task.step == "extract" else note


def _sources(config: Config, task: Task) -> str:
    """Whether the source files are still those that were read."""
    from airloop.errors import AirloopError
    from airloop.reference import Scope
    from airloop.sources.files import FileSet

    then = {f["name"]: f["sha256"] for f in task.manifest["details"]["files"]}
    try:
        found = FileSet.parse(task.manifest["details"].get("patterns")).resolve(Scope(config))
    except (AirloopError, ValueError) as cause:
        return f"the source files cannot be read any more: {cause}"
    now = {f.name: f.sha256 for f in found.files}
    differing = [
        f"{name}: sha256 {then.get(name, 'none')[:12]} then, {now.get(name, 'none')[:12]} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return f"source files changed: {'; '.join(differing)}" if differing else "the source files are unchanged"


def _compare(config: Config, room: Room, task: Task, made: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for role, reference in task.made("table").items():
        output = made["outputs"].get(role)
        if output is None:
            findings.append(Finding("rows", False, f"{reference} then, no {role} now"))
            continue
        old, new = TableRef.parse(reference), TableRef.parse(output["reference"])
        findings.append(compare_tables(room.original(old), old, room.config_of(task), new))
    details, now = task.manifest["details"], made["details"]
    stated = details.get("determinism") or {}
    if task.made("model") and "bundle" not in task.manifest["links"]:
        findings.append(Finding("model", False, "it cannot be compared: its step published no folder as link `bundle`"))
    elif task.made("model"):
        examples = next((TableRef.parse(t) for t in task.inputs("table")), None)
        bundles = room.bundle(config, task.manifest), room.bundle(room.config_of(task), made)
        where = room.original(examples) if examples else config
        findings.append(compare_models(*bundles, rows=examples, config=where, stated=stated))
    # What is measured of a model can be no closer than the model's own predictions.
    room.tolerance = max(room.tolerance, float(stated.get("tolerance", 0.0)))
    compared = {"metrics": (task.manifest["metrics"], made["metrics"])}
    if task.step == "evaluate":
        compared["decision"] = (details["decision"], now["decision"])
    for what, (then, figures) in compared.items():
        found = compare_figures(what, then, figures, tolerance=room.tolerance)
        if found is not None:
            findings.append(found)
    return findings
