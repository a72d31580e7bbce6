"""
What the pages show, read from the artifact store and the promotion ledger; plain dataclasses, ready for JSON.

Records of runs change only while a run goes on: what was made of one is kept until its folder changes. A record that
cannot be read costs its own run a line, never the page.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import AirloopError, NotFound
from airloop.frame import history
from airloop.objects import Folder
from airloop.report import words
from airloop.report.decision import decision_of, outcome
from airloop.warehouse.artifacts import ArtifactStore

log = logging.getLogger(__name__)

LEDGER_KEPT_S = 5.0
RUNS_KEPT = 2_000
RUNS_SHOWN = 30
AT_ONCE = 8
"""Runs that are read at once from a bucket."""
FAILED = ("rejected", "try_again", "failed")


@dataclass(slots=True)
class Task:
    """The newest attempt of one task in a run."""

    name: str
    step: str
    status: str
    """``done``, ``reused``, ``rejected``, ``try_again``, ``failed`` or ``skipped``."""
    attempt: str
    key: str
    wall_s: float
    started_at: str
    manifest: str
    """Artifact's name; empty if the attempt made none."""
    report: str
    """Artifact's name of the page for people; empty if there is none."""
    error: str
    reused: dict[str, Any] | None
    """When and by which run it was made."""
    mlflow: dict[str, str] | None
    outputs: dict[str, str]
    """References that it made or handed on, by role."""
    made: list[str]
    """Those of them that it was not given."""


@dataclass(slots=True)
class Drift:
    """What the last monitor of a run found."""

    columns: int
    drifted: list[str]
    stale: list[str]
    crossed: list[str]
    reason: str
    """Why nothing was compared; empty if it was."""


@dataclass(slots=True)
class Run:
    """One run of a loop."""

    dag_id: str
    run_id: str
    label: str
    interval: dict[str, str] | None
    started_at: str
    finished_at: str
    work_s: float
    """Seconds of all tasks together."""
    state: str = ""
    """Airflow's, if Airflow knows the run."""
    zone: str = ""
    """IANA time zone in which the loop tells time; empty if the run does not know it."""
    outcome: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    metric: str = ""
    metric_name: str = ""
    challenger: float | None = None
    champion: float | None = None
    rows_in: int | None = None
    quarantined: int | None = None
    drift: Drift | None = None
    report: str = ""
    tasks: list[Task] = field(default_factory=list)
    problem: str = ""
    """Why the run's records cannot be read; empty if they can."""

    @property
    def failed(self) -> list[Task]:
        return [t for t in self.tasks if t.status in FAILED]

    @property
    def reused(self) -> int:
        return sum(t.status == "reused" for t in self.tasks)


@dataclass(slots=True)
class Promotion:
    """A closed entry of the ledger."""

    model: str
    alias: str
    version: int
    previous: int | None
    moved: bool
    state: str
    outcome: str
    reason: str
    by: str
    dag_id: str
    run_id: str
    recorded_at: str
    effective_at: str
    metric: str
    metric_name: str
    value: float | None
    evidence: dict[str, Any]


@dataclass(slots=True)
class Loop:
    """A DAG that has run steps."""

    dag_id: str
    name: str
    schedule: str = ""
    paused: bool = False
    runs: list[Run] = field(default_factory=list)
    """The newest first."""
    more_runs: int = 0
    """How many older ones there are."""
    models: list[str] = field(default_factory=list)
    champions: list[Promotion] = field(default_factory=list)
    """What is live now, by model."""
    promotions: list[Promotion] = field(default_factory=list)
    """The newest first."""
    problems: list[str] = field(default_factory=list)

    @property
    def last(self) -> Run | None:
        return self.runs[0] if self.runs else None

    @property
    def last_decision(self) -> Run | None:
        return next((r for r in self.runs if r.outcome.get("kind")), None)

    @property
    def last_drift(self) -> Run | None:
        return next((r for r in self.runs if r.drift is not None), None)

    @property
    def last_state(self) -> str:
        """Of the last run: Airflow's, else what its records say."""
        last = self.last
        if last is None:
            return ""
        return last.state or ("failed" if last.failed else "")

    @property
    def data_until(self) -> str:
        """End of the newest interval of a run whose tasks all ended well, ISO 8601; empty if there is none."""
        good = [r for r in self.runs if not r.failed and r.state in ("", "success")]
        return max((r.interval["end"] for r in good if r.interval), default="")

    @property
    def zone(self) -> str:
        return next((r.zone for r in self.runs if r.zone), "UTC")

    @property
    def report_index(self) -> str:
        last = next((r for r in self.runs if r.report.startswith("reports/")), None)
        return f"{last.report.rpartition('/')[0]}/index.html" if last else ""


class Reader:
    """
    Reads one configuration's state; safe to use from several threads.

    :param ledger_unknown: why the configuration does not say where the promotion ledger is; empty if it does.
    """

    def __init__(self, config: Config, *, ledger_unknown: str = "") -> None:
        self.config = config
        self._ledger_unknown = ledger_unknown
        self.store = ArtifactStore(config.artifacts)
        self._runs: OrderedDict[tuple[str, str], tuple[str, Run]] = OrderedDict()
        self._lock = threading.Lock()
        self._ledger: tuple[float, list[Promotion], str] = (0.0, [], "")

    def dag_ids(self) -> list[str]:
        """DAG ids of everything that has run. :raises OSError: the store cannot be read."""
        return history.loops(self.store)

    def loop(self, dag_id: str, *, last: int = RUNS_SHOWN) -> Loop:
        """
        One loop; without runs if nothing of it has ended yet.

        :param last: runs that are read, those in which something happened last.
        """
        folders = history.changed(self.store, dag_id)
        newest = sorted(folders, key=lambda run_id: folders[run_id].changed_at)[-last:]
        read = self._read(dag_id, {run_id: folders[run_id].stamp for run_id in newest})
        runs = [r for r in read if r.tasks or r.problem]
        # The report knows in which zone a loop tells time; a run that has not come as far is told in the same.
        zone = next((r.zone for r in reversed(runs) if r.zone), "UTC")
        runs = [r if r.zone else _retold(r, zone) for r in runs]
        runs.sort(key=lambda r: ((r.interval or {}).get("start", ""), r.started_at), reverse=True)
        loop = Loop(dag_id, dag_id, runs=runs, more_runs=len(folders) - len(read))
        promotions, problem = self.promotions()
        own = {r.model for r in runs if r.model} | {p.model for p in promotions if p.dag_id == dag_id}
        loop.models = sorted(own)
        loop.promotions = [p for p in promotions if p.model in own]
        loop.champions = [c for c in map(self._live, loop.models) if c is not None]
        loop.problems = [problem] if problem else []
        return loop

    def run_of(self, dag_id: str, run_id: str) -> Run | None:
        """One run, or None if nothing of it is recorded."""
        loop = self.loop(dag_id)
        known = next((r for r in loop.runs if r.run_id == run_id), None)
        if known is not None or not loop.more_runs:
            return known
        changed = history.changed(self.store, dag_id).get(run_id)
        return None if changed is None else _retold(self._run(dag_id, run_id, changed.stamp), loop.zone)

    def promotions(self) -> tuple[list[Promotion], str]:
        """Closed entries of the ledger, the newest first; and why it cannot be read, empty if it can."""
        # One reader at a time: the others wait for what it finds.
        with self._lock:
            read_at, found, problem = self._ledger
            if not read_at or time.monotonic() - read_at > LEDGER_KEPT_S:
                found, problem = self._read_ledger()
                self._ledger = (time.monotonic(), found, problem)
            return found, problem

    def uses(self, dag_ids: Collection[str], name: str) -> bool:
        """Whether a recent run of one of the loops made or reused what an artifact belongs to."""
        for dag_id in dag_ids:
            for run in self.loop(dag_id, last=200).runs:
                folders = {t.manifest.rpartition("/")[0] for t in run.tasks} | {run.report.rpartition("/")[0]}
                if any(folder and name.startswith(folder + "/") for folder in folders):
                    return True
        return False

    def json(self, name: str) -> dict[str, Any]:
        """
        A published JSON object.

        :raises NotFound: there is none of the name.
        :raises ValueError: it is not one.
        """
        if too_long(name):
            raise NotFound(f"nothing is published under a name of {len(name)} characters")
        found = json.loads(self.store.read_bytes(name))
        if not isinstance(found, dict):
            raise ValueError(f"{name} is not a JSON object")
        return found

    def name_of(self, address: str) -> str:
        """Artifact's name of an address in this store; empty for any other."""
        return self.store.name_of(address)

    def _live(self, model: str) -> Promotion | None:
        moves = (p for p in self.promotions()[0] if p.model == model and p.alias == "champion" and p.moved)
        return next(moves, None)

    def _read(self, dag_id: str, stamps: Mapping[str, str]) -> list[Run]:
        """Runs with their stamps, in the same order."""
        if isinstance(self.store.objects, Folder):
            return [self._run(dag_id, run_id, stamp) for run_id, stamp in stamps.items()]
        # Each of a run's files is an answer to wait for.
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(lambda run_id: self._run(dag_id, run_id, stamps[run_id]), stamps))

    def _run(self, dag_id: str, run_id: str, stamp: str) -> Run:
        place = (dag_id, run_id)
        with self._lock:
            known = self._runs.get(place)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            made = _describe(self, history.run(self.store, dag_id, run_id))
        except (AirloopError, OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            log.warning("records of run %s of %s cannot be read: %s", run_id, dag_id, cause)
            made = Run(dag_id, run_id, run_id, None, "", "", 0.0, problem=f"Its records cannot be read: {cause}")
        with self._lock:
            self._runs[place] = (stamp, made)
            self._runs.move_to_end(place)
            while len(self._runs) > RUNS_KEPT:
                self._runs.popitem(last=False)
        return made

    def _read_ledger(self) -> tuple[list[Promotion], str]:
        if self._ledger_unknown:
            return [], f"The promotion ledger cannot be read, so champions are not shown: {self._ledger_unknown}"
        file = self.config.catalog.removeprefix("sqlite:///")
        if file != self.config.catalog and not Path(file).exists():
            return [], ""  # nothing was ever written; opening would make it
        try:
            from airloop.registry.ledger import Ledger
            from airloop.warehouse.catalog import Warehouse

            entries = Ledger(Warehouse.open(self.config)).entries()
        except Exception as cause:
            # Whatever ails the ledger, runs and reports are still shown.
            log.warning("the promotion ledger cannot be read", exc_info=True)
            what = str(cause) if isinstance(cause, AirloopError) else type(cause).__name__
            return [], f"The promotion ledger cannot be read, so champions are not shown: {what}"
        closed = [_promotion(e.as_json()) for e in entries if e.state != "intent"]
        return sorted(closed, key=lambda p: p.recorded_at, reverse=True), ""


def too_long(name: str) -> bool:
    """Whether no file system could hold a file of this name."""
    return len(name) > 2000 or any(len(quote(part)) > 240 for part in name.split("/"))


def words_of(text: str) -> str:
    """A step's sentence with metrics called what people call them, and true minus signs."""
    for key in words.METRICS:
        text = re.sub(rf"\b{key}\b", words.metric_name(key, in_text=True), text)
    text = re.sub(r"(?<![\w.])-(?=\d)", words.minus("-"), text)
    return text[:1].upper() + text[1:]


def _promotion(row: Mapping[str, Any]) -> Promotion:
    evidence = row["evidence"]
    metric = str(evidence.get("metric") or "")
    names = [n for n in Promotion.__dataclass_fields__ if n in row]
    return Promotion(
        **{n: row[n] for n in names} | {"reason": words_of(row["reason"])},
        metric=metric,
        metric_name=words.metric_name(metric),
        value=(evidence.get("challenger_metrics") or {}).get(metric),
    )


def _describe(reader: Reader, record: history.RunRecord) -> Run:
    tasks, manifests = [], {}
    for name, task in record.tasks.items():
        manifest = _manifest(reader, task)
        if manifest is not None:
            manifests[name] = manifest
        tasks.append(_task(reader, name, task, manifest or {}))
    made = list(manifests.values())
    gate, registered, monitor, report = (
        next((m for m in made if m["step"] == step), None)
        for step in ("evaluate", "register", "detect_drift", "report")
    )
    decision = decision_of(gate)
    metric = decision.get("metric", "")
    zone = (report or {}).get("arguments", {}).get("zone") or ""
    fresh = [manifests[t.name] for t in tasks if t.status == "done" and t.name in manifests]
    return Run(
        record.dag_id,
        record.run_id,
        words.interval(record.interval, zone or "UTC") if record.interval else record.run_id,
        _iso(record.interval),
        record.started_at,
        max((t.record.get("finished_at", "") for t in record.tasks.values()), default=""),
        sum(t.wall_s for t in tasks),
        zone=zone,
        outcome=outcome(decision, registered),
        model=_model_name(gate, registered),
        metric=metric,
        metric_name=words.metric_name(metric),
        challenger=(decision.get("challenger_metrics") or {}).get(metric),
        champion=(decision.get("champion_metrics") or {}).get(metric),
        rows_in=_total(made, fresh, "extract", "rows_new", "rows_corrected"),
        quarantined=_total(made, fresh, "validate", "rows_quarantined"),
        drift=_drift(monitor),
        report=next((t.report for t in tasks if t.step == "report" and t.report), ""),
        tasks=tasks,
    )


def _retold(run: Run, zone: str) -> Run:
    if run.zone or run.interval is None:
        return run
    return replace(run, zone=zone, label=words.interval(Interval.parse(run.interval), zone))


def _manifest(reader: Reader, task: history.TaskRecord) -> dict[str, Any] | None:
    if task.status not in ("done", "reused"):
        return None
    name = reader.name_of(str(task.record["manifest"]))
    try:
        return reader.json(name) if name else None
    except AirloopError:
        return None  # cleared away since; what the record itself says is still shown


def _task(reader: Reader, name: str, task: history.TaskRecord, manifest: Mapping[str, Any]) -> Task:
    record, links = task.record, manifest.get("links") or {}
    outputs = {role: str(o["reference"]) for role, o in manifest.get("outputs", {}).items()}
    given = {str(i["reference"]) for i in manifest.get("inputs", {}).values()}
    mlflow = manifest.get("details", {}).get("mlflow") or None
    return Task(
        name=name,
        step=str(record["step"]),
        status=task.status,
        attempt=str(record.get("attempt", "")),
        key=str(record.get("key", "")),
        wall_s=task.wall_s,
        started_at=str(record["started_at"]),
        manifest=reader.name_of(str(record.get("manifest", ""))) if manifest else "",
        report=next((n for kind in ("report", "docs") if (n := reader.name_of(str(links.get(kind, ""))))), ""),
        error=str((record.get("error") or {}).get("message", "")),
        reused=record.get("reused"),
        mlflow=mlflow and {k: str(mlflow[k]) for k in ("run_id", "experiment_id") if k in mlflow},
        outputs=outputs,
        made=[text for text in outputs.values() if text not in given],
    )


def _drift(monitor: Mapping[str, Any] | None) -> Drift | None:
    if monitor is None:
        return None
    details = monitor["details"]
    found = details.get("drift", {})
    return Drift(
        columns=len(found.get("columns", [])),
        drifted=[c["column"] for c in found.get("columns", []) if c["outcome"] == "drifted"],
        stale=[f["table"] for f in details.get("freshness", []) if f["stale"]],
        crossed=list(details.get("crossed", [])),
        reason=str(found.get("reason", "")),
    )


def _model_name(gate: Mapping[str, Any] | None, registered: Mapping[str, Any] | None) -> str:
    entry = (registered or {}).get("details", {}).get("entry") or {}
    reference = ((gate or {}).get("inputs", {}).get("champion") or {}).get("reference", "")
    # A champion that is there or not, such as model:/delay/none, has a name either way.
    name = reference.removeprefix("model:/").partition("/")[0] if reference.startswith("model:/") else ""
    return str(entry.get("model") or ("" if name == "run" else name))


def _total(
    made: Collection[Mapping[str, Any]], fresh: Collection[Mapping[str, Any]], step: str, *counts: str
) -> int | None:
    """Sum over the tasks that made something in this run; None if the loop has no such step."""
    if not any(m["step"] == step for m in made):
        return None
    return sum(int(m["counts"].get(c) or 0) for m in fresh if m["step"] == step for c in counts)


def _iso(interval: Interval | None) -> dict[str, str] | None:
    return {"start": interval.start.isoformat(), "end": interval.end.isoformat()} if interval else None
