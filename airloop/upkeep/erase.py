"""
``airloop erase``: a person's rows must go, from every table, snapshot and online store.

It is the one thing that wins over the promise that a run can be replayed. The order is: the intent into
``ledger.erasures``; table after table, each in one commit with its files removed next, after a note of what will go;
the online store; texts that quote the values; the ledger's closing row. A process that is killed anywhere leaves an
intent, and the same request again goes on where it stopped.

No step runs meanwhile. What it does not do: change source files, which bring the rows back when they are read again;
take out what aggregates and models have learned; reach copies outside, such as backups, servers of MLflow, and earlier
versions of files in a bucket that keeps them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airloop.config import Config, S3Address, own_catalog
from airloop.errors import BadArgument, StoreBusy
from airloop.faults import point
from airloop.frame import running
from airloop.objects import Objects, open_objects
from airloop.provenance import erasures
from airloop.provenance.erasures import Erasure
from airloop.upkeep.dropped import dropped, find_dropped, forget_dropped, holds, strays
from airloop.upkeep.forget import Found, Rows, find, forget, remove_empty_folders
from airloop.upkeep.gc import alone
from airloop.upkeep.owner import refuse_others
from airloop.upkeep.records import read_records
from airloop.upkeep.retention import NAMED
from airloop.upkeep.serving import unserve
from airloop.upkeep.subject import Subject, elsewhere, of_rows, types_of
from airloop.upkeep.traces import JOURNALS, Traces, search
from airloop.warehouse import tree
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.references import References


@dataclass(frozen=True, slots=True)
class Request:
    """Whose rows, asked by whom, and why."""

    subject: Subject | None
    """None: the rows of ``table`` where ``where`` holds, and those with their keys elsewhere."""
    reason: str
    asked_by: str
    table: str = ""
    where: str = ""
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By table: its own names of the subject's columns."""

    @property
    def canonical(self) -> str:
        """One text for each request."""
        return self.subject.canonical if self.subject else json.dumps([self.table, self.where])


@dataclass
class Erased:
    """What went, or would go."""

    erasure: str = ""
    """Identity in ``ledger.erasures``; empty if there was nothing to erase."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By table: ``rows`` of main, ``snapshots``, ``branches``, number of ``files``."""
    online: dict[str, int] = field(default_factory=dict)
    """Entities by table of the online store."""
    redacted: list[str] = field(default_factory=list)
    """Files in which the values were replaced."""
    runs: list[str] = field(default_factory=list)
    """``dag/run/task`` of what cannot be replayed any more."""
    models: list[str] = field(default_factory=list)
    """Models that were trained on the rows; they stay."""
    derived: list[str] = field(default_factory=list)
    """Tables without the column that were computed from the rows; they stay."""
    sources: list[str] = field(default_factory=list)
    """Source files that brought rows into the tables and may bring them again."""
    left: list[str] = field(default_factory=list)
    """Where the values still are, each with what to do."""

    def __bool__(self) -> bool:
        return bool(self.tables or self.online or self.redacted)

    def as_json(self) -> dict[str, Any]:
        """For the ledger and for scripts; no value of the subject is in it."""
        names = ("tables", "online", "redacted", "runs", "models", "derived", "sources", "left")
        return {name: getattr(self, name) for name in names}


def erase(config: Config, request: Request, *, dry_run: bool = False) -> Erased:
    """
    Erase, or go on with an erasure that was interrupted.

    :raises StoreBusy: a step runs, or gc or a backup.
    :raises BadArgument: the request cannot be understood.
    :raises BadConfiguration: the tables may be another catalog's.
    :raises Unreachable: a store is away, or forgot meanwhile that steps have to wait; the same request goes on.
    """
    own_catalog(config, "airloop erase")
    if not request.reason.strip() or not request.asked_by.strip():
        raise BadArgument("an erasure needs a reason and who asked for it", "give --reason and --by")
    warehouse = Warehouse.open(config)
    with ExitStack() as held:
        held.enter_context(alone(config))
        refuse_others(config, dry_run=dry_run)
        # Steps wait at the gate until all is done.
        gate = held.enter_context(running.closed(config))
        busy = [a.attempt for a in running.attempts(config) if a.alive]
        if busy and not dry_run:
            raise StoreBusy(f"{len(busy)} steps run", "pause the loops, wait for their tasks, then run it again")
        return _Work(config, warehouse, request, dry_run, gate.check).run()


class _Work:
    def __init__(
        self, config: Config, warehouse: Warehouse, request: Request, dry_run: bool, check: running.Check
    ) -> None:
        """:param check: asks whether steps still wait."""
        self.config = config
        self.warehouse = warehouse
        self.request = request
        self.dry_run = dry_run
        self.check = check
        self.done = Erased()
        self._journals = _journals(config)

    def run(self) -> Erased:
        subject = self.request.subject or self._of_rows()
        found = self._look(subject)
        open_intent = self._open_intent()
        if self.dry_run or not (self.done or open_intent):
            return self.done
        entry = open_intent or erasures.begin(
            self.warehouse,
            self.request.canonical,
            columns=subject.columns or ("rows",),
            reason=self.request.reason,
            asked_by=self.request.asked_by,
        )
        self.done.erasure = entry.erasure
        point("erase:intent")
        journal = _Journal(self._journals, entry.erasure)
        journal.finish_files(self.warehouse)
        for name in self._order(found):
            self.check()
            self._forget(name, subject, entry, journal)
        for name, here in self._look_at_dropped(subject).items():
            journal.note(name, _described(here), [*here.unneeded, *here.files])
            forget_dropped(here)
        self.done.online = unserve(self.config, subject, self.request.renamed.get("online", {}), remove=True)
        point("erase:online")
        for scratch in ("work", "spill"):
            # Nothing runs: what is there belongs to killed steps and to replays that were kept, rows and all.
            shutil.rmtree(self.config.home / scratch, ignore_errors=True)
        if isinstance(self.config.warehouse, S3Address):
            tree.remove([file.path for file in tree.below(f"{self.config.warehouse}/{tree.REPLAYS}")])
        self._conclude(subject, journal)
        erasures.finish(self.warehouse, entry, self.done.as_json())
        point("erase:done")
        journal.remove()
        return self.done

    def _of_rows(self) -> Subject:
        table = self.warehouse.table(self.request.table)
        return of_rows(self.config, table, self.warehouse.key(self.request.table), self.request.where)

    def _open_intent(self) -> Erasure | None:
        """The intent of this request that a killed process left; notes of closed ones are cleared away."""
        rows = erasures.entries(self.warehouse)
        closed = {e.erasure for e in rows if e.state == "done"}
        if not self.dry_run:
            for erasure in closed:
                _Journal(self._journals, erasure).remove()
        return next((e for e in rows if e.erasure not in closed and e.is_about(self.request.canonical)), None)

    # --- tables

    def _look(self, subject: Subject) -> dict[str, Found]:
        """Where the rows are; what that means for runs and models goes into the result."""
        found = {}
        for name in self.warehouse.tables():
            rows = self._rows(name, subject)
            if rows is not None:
                here = find(self.config, self.warehouse.table(name), rows)
                if here:
                    found[name] = here
        gone = self._look_at_dropped(subject)
        self.done.tables = {name: _described(here) for name, here in sorted((found | gone).items())}
        self.done.online = unserve(self.config, subject, self.request.renamed.get("online", {}), remove=False)
        traces = self._search(subject, redact=False)
        self.done.redacted = traces.redacted
        self._mark()
        served = Path(str(self.config.online_store)).name
        traces.left = [name for name in traces.left if not name.startswith(served)]
        self._say_left(subject, traces, set(found))
        return found

    def _look_at_dropped(self, subject: Subject) -> dict[str, Found]:
        """Likewise in the folders of tables that were dropped."""
        renamed = self.request.renamed
        places = dropped(self.warehouse)
        found = {n: find_dropped(self.warehouse, n, at, subject, renamed.get(n, {})) for n, at in places.items()}
        return {name: here for name, here in found.items() if here}

    def _search(self, subject: Subject, *, redact: bool) -> Traces:
        names = {*subject.columns, *(name for names in self.request.renamed.values() for name in names.values())}
        return search(self.config, subject.texts(), columns=names, redact=redact)

    def _rows(self, name: str, subject: Subject) -> Rows | None:
        if name == self.request.table:
            return Rows(self.request.where, subject.texts())
        return subject.rows(types_of(self.warehouse.table(name)), self.request.renamed.get(name, {}))

    def _order(self, found: Mapping[str, Found]) -> list[str]:
        """The table that was asked for comes last: its rows say whom the others are asked about."""
        return sorted(found, key=lambda name: (name == self.request.table, name))

    def _forget(self, name: str, subject: Subject, entry: Erasure, journal: _Journal) -> None:
        def note(found: Found, files: list[str]) -> None:
            journal.note(name, _described(found), files)

        rows = self._rows(name, subject)
        assert rows is not None, "only tables are taken that have the columns"
        forget(
            self.config,
            lambda: self.warehouse.table(name),
            rows,
            key=f"erase:{entry.erasure}:{name}",
            before=note,
        )
        point("erase:table")

    def _conclude(self, subject: Subject, journal: _Journal) -> None:
        """What went in this and in interrupted attempts, and what is still there."""
        if isinstance(self.config.warehouse, Path):
            # A bucket has none.
            remove_empty_folders(self.config.warehouse)
        self.done.tables = journal.tables()
        self._mark()
        redacted = self._search(subject, redact=True)
        point("erase:redacted")
        self.done.redacted = redacted.redacted
        still = {name for name in self.warehouse.tables() if self._is_there(name, subject)}
        still |= set(self._look_at_dropped(subject))
        self.done.left = [f"{name}: rows came in meanwhile, run it again" for name in sorted(still)]
        self._say_left(subject, self._search(subject, redact=False), set())

    def _is_there(self, name: str, subject: Subject) -> bool:
        rows = self._rows(name, subject)
        return rows is not None and bool(find(self.config, self.warehouse.table(name), rows))

    # --- what it means

    def _mark(self) -> None:
        """Runs that named one of the snapshots, models that learned from them, files that brought the rows."""
        gone = {(name, int(s)) for name, here in self.done.tables.items() for s in here["snapshots"]}
        runs: set[str] = set()
        taught: set[str] = set()
        sources: set[str] = set()
        derived: set[str] = set()
        objects = open_objects(self.config.artifacts)
        manifests = [manifest for _, manifest in read_records(objects, "steps", "*/*/*/manifest.json")]
        for manifest in sorted(manifests, key=lambda m: str(m["finished_at"])):
            given = {str(i["reference"]) for i in manifest["inputs"].values()}
            outputs = {str(o["reference"]) for o in manifest["outputs"].values()}
            if {(t, int(s)) for t, s in NAMED.findall(" ".join(given | outputs))} & gone:
                run = manifest["run"]
                runs.add("/".join((run["dag_id"] or "cli", run["run_id"] or "-", run["task_id"] or manifest["step"])))
                taught |= _model(manifest) - given
                derived |= {table for table, _ in NAMED.findall(" ".join(outputs))} - set(self.done.tables)
                if manifest["step"] == "extract":
                    sources |= {str(f["name"]) for f in manifest["details"]["files"]}
            elif taught & given and manifest["step"] == "register":
                taught |= _model(manifest)
        self.done.runs, self.done.models = sorted(runs), sorted(taught)
        self.done.derived, self.done.sources = sorted(derived), sorted(sources)

    def _say_left(self, subject: Subject, traces: Traces, handled: set[str]) -> None:
        left = self.done.left
        left += [f"{name}: retrain without the rows and delete it, or remove the value by hand" for name in traces.left]
        if traces.kept:
            more = f" and {len(traces.kept) - 1:,} more files" if len(traces.kept) > 1 else ""
            left.append(f"{traces.kept[0]}{more}: it stands there as a number or in a name; see by hand if it is meant")
        texts = subject.texts()
        for name in self.warehouse.tables():
            if name not in handled and name != erasures.TABLE:
                for column in elsewhere(self.config, self.warehouse.table(name), texts):
                    left.append(f"{name}.{column}: add --column {name}.{column}={subject.columns[0]}")
        for path in strays(self.warehouse):
            if holds(self.warehouse, path, subject):
                left.append(f"{path}: it belongs to no table of this catalog; remove it if nobody reads it")
        if short := subject.short():
            values = "1 value is" if short == 1 else f"{short:,} values are"
            left.append(f"{', '.join(subject.columns)}: {values} too short to be looked for in files and other columns")


def _model(manifest: Mapping[str, Any]) -> set[str]:
    """The model that a step made or registered."""
    output = manifest["outputs"].get("model", {"kind": "", "reference": ""})
    return {str(output["reference"])} if output["kind"] == "model" else set()


def _described(found: Found) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "snapshots": sorted(str(s) for s in (*found.snapshots, *found.recalled)),
        "branches": found.branches,
        "files": len(found.files),
    }


class _Journal:
    """What an erasure is about to take away, kept until its closing row is written; holds paths, no values."""

    def __init__(self, objects: Objects, erasure: str) -> None:
        self._objects = objects
        self._name = f"{JOURNALS}/{erasure}.json"
        self._content: dict[str, dict[str, Any]] = json.loads(objects.read(self._name) or b"{}")

    def note(self, table: str, described: Mapping[str, Any], files: Sequence[str]) -> None:
        """Before a table's commit: its files that will go, beside those of attempts before."""
        before = self._content.get(table, {"rows": 0, "snapshots": [], "branches": [], "files": 0, "paths": []})
        self._content[table] = {
            "rows": max(before["rows"], described["rows"]),
            "snapshots": sorted({*before["snapshots"], *described["snapshots"]}),
            "branches": sorted({*before["branches"], *described["branches"]}),
            "files": max(before["files"], described["files"]),
            "paths": sorted({*before["paths"], *files}),
        }
        self._objects.publish(self._name, json.dumps(self._content).encode())

    def finish_files(self, warehouse: Warehouse) -> None:
        """Take away the files of commits after which an attempt was killed; what a snapshot names stays."""
        for table, noted in self._content.items():
            # A table that was dropped names nothing.
            named = References(warehouse.table(table)).all() if warehouse.exists(table) else set()
            tree.remove([path for path in noted["paths"] if path not in named])

    def tables(self) -> dict[str, dict[str, Any]]:
        """For the ledger."""
        return {t: {k: v for k, v in noted.items() if k != "paths"} for t, noted in sorted(self._content.items())}

    def remove(self) -> None:
        self._objects.remove(self._name)


def _journals(config: Config) -> Objects:
    """Where erasures keep their notes: where any process that goes on with one finds them."""
    return open_objects(config.artifacts if isinstance(config.artifacts, S3Address) else config.home)
