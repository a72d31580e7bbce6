"""
Why a task of a run was reused, or why it ran: its attempt held against the nearest earlier one.

Nearest is, in this order: an earlier attempt in the same run, one in another run of the same interval, one in the run
of the interval before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from airloop.config import Config
from airloop.contract import RunInfo, attempt_record_path
from airloop.errors import NotFound
from airloop.frame import history
from airloop.frame.archive import read_source
from airloop.frame.compare import Difference, Side, differences, evidence, sentence
from airloop.frame.history import RunRecord
from airloop.provenance.runs import nearest
from airloop.records import REDO, intervals_of, parse, run_record_path, runs_of_interval
from airloop.warehouse.artifacts import ArtifactStore

INTERVALS_SEARCHED = 20
"""Nearest data intervals in which an earlier attempt is looked for."""
DIFF_LINES = 40
"""Lines of a module's difference that are kept."""


@dataclass(frozen=True, slots=True)
class Change:
    """A difference, and what is known about where it comes from."""

    kind: str
    name: str
    old: Any
    new: Any
    text: str
    made_by: dict[str, str] = field(default_factory=dict)
    """For a table: who made the old and the new snapshot, ``DAG/RUN/TASK``."""
    diff: list[str] = field(default_factory=list)
    """For code: the unified difference, cut to :data:`DIFF_LINES`."""


@dataclass(frozen=True, slots=True)
class Why:
    """The explanation of one task of one run."""

    dag_id: str
    run_id: str
    task: str
    step: str
    interval: Any
    status: str
    key: str
    because: str
    """In one sentence."""
    made_by: str = ""
    """Whose result was reused, ``DAG/RUN/TASK``."""
    made_at: str = ""
    compared_with: str = ""
    """The earlier attempt: ``DAG/RUN/TASK``."""
    changes: list[Change] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(config: Config, run: RunRecord, task: str) -> Why:
    """
    Why a task was reused or ran.

    :param task: task id, with ``[index]`` for a mapped one.
    :raises NotFound: the run has no such task.
    """
    store = ArtifactStore(config.artifacts)
    if task not in run.tasks:
        near = nearest(task, run.tasks) or list(run.tasks)
        raise NotFound(f"run {run.dag_id}/{run.run_id} has no task {task}", f"it has {', '.join(near)}")
    record = run.tasks[task].record
    base = {
        "dag_id": run.dag_id, "run_id": run.run_id, "task": task, "step": record["step"],
        "interval": record.get("interval"), "status": record["status"], "key": str(record.get("key") or ""),
    }  # fmt: skip
    if record["status"] == "reused":
        return Why(**base, **_reuse(store, record))
    if not base["key"]:
        return Why(**base, because=f"it ended before its key was known: {record['error']['message']}")
    earlier = _earlier(store, record)
    if earlier is None:
        return Why(**base, because=f"it ran because this task of {run.dag_id} had never run before")
    with_it = _who(earlier["run"])
    if record.get("not_reused"):
        return Why(**base, because=f"it ran again: {record['not_reused']}", compared_with=with_it)
    manifests = evidence(store, earlier), evidence(store, record)
    found = differences(Side.of(earlier, manifests[0]), Side.of(record, manifests[1]))
    changes = [_change(config, store, difference, manifests) for difference in found]
    return Why(**base, because=_sentence(record, earlier, found), compared_with=with_it, changes=changes)


def _reuse(store: ArtifactStore, record: Mapping[str, Any]) -> dict[str, Any]:
    made = record["reused"]
    manifest = evidence(store, record) or {}
    code = manifest.get("code", {})
    parts = [
        _number(len(code.get("modules", ())), "module"),
        _number(len(code.get("libraries", ())), "library", "libraries"),
        _number(len(record["arguments"]), "argument"),
        _number(len(manifest.get("inputs", ())), "input"),
    ]
    who = _who(made["made_by"])
    return {
        "because": f"it was reused: key {record['key'][:12]} was made at {made['made_at'][:19]} by {who}; "
        f"{', '.join(parts)} are the same, and what it made is still there",
        "made_by": who,
        "made_at": made["made_at"],
    }


def _sentence(record: Mapping[str, Any], earlier: Mapping[str, Any], found: list[Difference]) -> str:
    name = f"{earlier['run']['dag_id']}/{earlier['run']['run_id']}"
    if not earlier.get("key"):
        return f"it ran again: the attempt in {name} had ended before its key was known"
    if not found:
        if earlier["status"] in ("done", "reused"):
            return f"it ran again: the manifest of {name} was gone"
        return f"it ran again: nothing differs, but the attempt in {name} had ended as {earlier['status']}"
    again = "again" if earlier.get("interval") == record.get("interval") else f"for another interval than {name}"
    return f"it ran {again}: {sentence(found)}"


def _earlier(store: ArtifactStore, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the nearest attempt that had ended before this one began."""
    if record.get("compared_with"):
        path = attempt_record_path(record["compared_with"]["attempt"])
        try:
            return parse(store.read_bytes(path), store.uri(path))
        except NotFound:
            pass  # removed since: the other runs may still tell
    near = next(_of_near_intervals(store, record), None)
    if near is not None:
        return near
    # A run without an interval, or one of a home that did not list intervals yet.
    run = RunInfo(**record["run"])
    others = [r for other in history.run_ids(store, run.dag_id) if (r := _ended(store, record, other)) is not None]
    same = [r for r in others if r.get("interval") == record.get("interval")]
    if same:
        return max(same, key=_started)
    before = [r for r in others if _begin(r) < _begin(record)]
    if before:
        return max(before, key=lambda r: (_begin(r), _started(r)))
    return max(others, key=_started, default=None)


def _of_near_intervals(store: ArtifactStore, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of the same interval, then of those before it, the nearest first, then of those after it."""
    own = record.get("interval")
    if not own:
        return
    run = RunInfo(**record["run"])
    known = [i for i in intervals_of(store.objects, run.dag_id) if i != own]
    before = [i for i in reversed(known) if i["start"] < own["start"]]
    after = [i for i in known if i["start"] >= own["start"]]
    for interval in [own, *before, *after][:INTERVALS_SEARCHED]:
        for run_id in runs_of_interval(store.objects, run, interval):
            found = _ended(store, record, run_id)
            if found is not None and found.get("interval") == interval:
                yield found


def _ended(store: ArtifactStore, record: Mapping[str, Any], run_id: str) -> dict[str, Any] | None:
    """
    The record of the same task in another run; None if there is none.

    One that ended after this one had begun may have waited for it and reused what it made.
    """
    run = RunInfo(**record["run"])
    if run_id == run.run_id:
        return None
    path = run_record_path(replace(run, run_id=run_id))
    try:
        found = parse(store.read_bytes(path), store.uri(path))
    except NotFound:
        return None
    return found if found["finished_at"] <= record["started_at"] else None


def _started(record: Mapping[str, Any]) -> str:
    return str(record["started_at"])


def _begin(record: Mapping[str, Any]) -> str:
    return str((record.get("interval") or {"start": ""})["start"])


def _change(
    config: Config,
    store: ArtifactStore,
    difference: Difference,
    manifests: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
) -> Change:
    made: dict[str, str] = {}
    diff: list[str] = []
    if difference.kind == "input":
        made = {side: who for side in ("old", "new") if (who := _maker(config, store, getattr(difference, side)))}
    elif difference.kind == "code":
        diff = _diff(store, difference.name, manifests)
    return Change(difference.kind, difference.name, difference.old, difference.new, str(difference), made, diff)


def _maker(config: Config, store: ArtifactStore, reference: Any) -> str:
    """Who made a table's snapshot; empty if it is none, or nobody that left a manifest."""
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    try:
        ref = TableRef.parse(reference)
    except ValueError:
        return ""
    warehouse = Warehouse.open(config)
    if not ref.snapshot or not warehouse.exists(ref.name):
        return ""
    key = next((s.key for s in warehouse.history(ref.name) if s.id == ref.snapshot), None)
    if not key:
        return ""
    for step in store.folders("steps"):
        path = f"steps/{step}/{key[:2]}/{key}/manifest.json"
        content = store.objects.read(path)
        if content is not None:
            return _who(parse(content, f"manifest {store.uri(path)}", REDO)["run"])
    return ""


def _diff(store: ArtifactStore, module: str, manifests: Sequence[Mapping[str, Any] | None]) -> list[str]:
    texts: list[list[str]] = []
    for manifest in manifests:
        tree = ((manifest or {}).get("code") or {}).get("tree")
        source = read_source(store, tree, module) if tree else None
        if source is None:
            return []
        texts.append(source.splitlines())
    return list(difflib.unified_diff(texts[0], texts[1], "before", "now", n=1, lineterm=""))[:DIFF_LINES]


def _who(run: Mapping[str, Any]) -> str:
    index = f"[{run['map_index']}]" if run.get("map_index", -1) >= 0 else ""
    return f"{run['dag_id'] or 'cli'}/{run['run_id'] or '-'}/{run['task_id'] or '-'}{index}"


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
