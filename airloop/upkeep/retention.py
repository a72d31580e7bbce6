"""
Which snapshots are kept, and because of what.

For ever: what a registered model or an entry of the ledger names, and with it every snapshot that led there, so that
its run can be replayed on the exact data. For ``keep_days``: what any other run named, counted from the last time that
a run relied on it. Always: heads of branches, tags, what the online store was filled from.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from airloop.config import Config
from airloop.errors import BadConfiguration
from airloop.objects import open_objects
from airloop.upkeep.records import read_records, unreadable

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Warehouse

NAMED = re.compile(r"\b([A-Za-z_]\w*\.[A-Za-z_]\w*)@(\d+)\b")
"""A table at a snapshot, in any text."""

STEP_KEY = re.compile(r"\b[0-9a-f]{64}\b")
"""A step's own key, in one that a snapshot or an entry bears; whoever commits by hand makes keys as they like."""
REGISTERED = re.compile(r"model:/(?!run/)[^/]+/\d+")
_NEVER = datetime.min.replace(tzinfo=UTC)

Reasons = dict[str, dict[int, list[str]]]


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what is kept for."""

    keep_days: float = 30.0
    """Days for which a run can be replayed whose model was not registered and that the ledger does not name."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a manifest says that matters here."""

    key: str
    attempt: str
    """Which made it."""
    step: str
    run: str
    used_at: datetime
    """When a run last relied on it."""
    inputs: frozenset[str]
    outputs: frozenset[str]
    tables: frozenset[tuple[str, int]]
    """Every table at a snapshot that it names, anywhere."""
    code: str
    """Tree of its archived source; empty if it names none."""


@dataclass(frozen=True, slots=True)
class Told:
    """What manifests and records of runs say that matters here: read once, for there may be many."""

    manifests: list[Made]
    attempts: frozenset[str]
    """Those that are the newest of their task in their run."""
    keys: frozenset[str]
    """Keys of steps that were done, or tried, with this artifact store."""


def tell(config: Config) -> Told:
    """:raises ContractBroken: a manifest or record cannot be read; nothing may be taken away then."""
    used, attempts, tried = _last_used(config)
    manifests = list(_manifests(config, used))
    return Told(manifests, attempts, tried | {made.key for made in manifests})


def refuse_another_store(warehouse: Warehouse, told: Told, cutoff: float) -> None:
    """
    Refuse an artifact store that knows no step that wrote a table: it says nothing of what is needed.

    :param cutoff: seconds since 1970; who wrote since may be about to say so.
    :raises BadConfiguration: there are such steps, and the store has no manifest or record of a single one.
    """
    from airloop.registry.ledger import Ledger
    from airloop.warehouse.commit import KEY

    wrote: dict[str, str] = {}
    for name in warehouse.tables():
        for snapshot in warehouse.table(name).metadata.snapshots:
            if snapshot.summary is not None and snapshot.timestamp_ms / 1000 < cutoff:
                text = snapshot.summary.additional_properties.get(KEY, "")
                wrote |= dict.fromkeys(STEP_KEY.findall(text), f"{name}@{snapshot.snapshot_id}")
    for entry in Ledger(warehouse).entries():
        if entry.recorded_at.timestamp() < cutoff:
            wrote |= dict.fromkeys(STEP_KEY.findall(entry.key), f"entry {entry.seq} of {entry.model} in the ledger")
    if wrote and told.keys.isdisjoint(wrote):
        key, what = next(iter(wrote.items()))
        raise BadConfiguration(
            f"the catalog holds what {len(wrote):,} steps wrote, such as {what} (key {key[:12]}), and"
            f" {warehouse.config.artifacts} has no manifest or record of any of them, so that nobody knows what is"
            " needed",
            "set AIRLOOP_ARTIFACTS as it is where loops run, or bring the artifacts back from a backup; if the first"
            " step was killed, run it again",
        )


def protected(
    config: Config, policy: Policy | None = None, *, now: datetime | None = None, told: Told | None = None
) -> Reasons:
    """
    Every snapshot that must stay, by table and id, each with the reasons.

    :param now: default this moment.
    :param told: what manifests and records say; default what they say now.
    :raises ContractBroken: a manifest cannot be read; nothing may be taken away then.
    :raises BadConfiguration: manifests name registered models, and the registry is not there to be asked.
    """
    from airloop.warehouse.catalog import Warehouse

    policy = policy or Policy()
    now = now or datetime.now(UTC)
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    manifests = (told or tell(config)).manifests
    _refuse_without_registry(config, manifests)
    warehouse = Warehouse.open(config)
    for table, snapshot, reason in _of_tables(warehouse):
        found[table, snapshot].append(reason)
    for reason, keys, outputs, tables in _named_for_ever(config, warehouse):
        for made in _closure(manifests, keys, outputs):
            tables |= made.tables
        for table, snapshot in tables:
            found[table, snapshot].append(reason)
    for made in manifests:
        until = made.used_at + timedelta(days=policy.keep_days)
        if until > now:
            for table, snapshot in made.tables:
                found[table, snapshot].append(f"run {made.run}, replayable until {until.date()}")
    for table, snapshot, reason in (*_online(config), *_materialised(manifests)):
        found[table, snapshot].append(reason)
    reasons: Reasons = defaultdict(dict)
    for (table, snapshot), because in sorted(found.items()):
        reasons[table][snapshot] = sorted(set(because))
    return dict(reasons)


def _refuse_without_registry(config: Config, manifests: list[Made]) -> None:
    """An absent database says that no model is registered, also where another ``AIRLOOP_MLFLOW`` is meant."""
    from airloop.registry.lookup import is_absent

    named = sorted(o for made in manifests for o in made.outputs if REGISTERED.fullmatch(o))
    if named and is_absent(config):
        raise BadConfiguration(
            f"runs registered {named[-1]}, and AIRLOOP_MLFLOW names a database that is not there",
            "set it as it is where loops run, or bring the database back from a backup",
        )


def _of_tables(warehouse: Warehouse) -> Iterator[tuple[str, int, str]]:
    from airloop.warehouse.commit import content

    for name in warehouse.tables():
        table = warehouse.table(name)
        for ref, at in table.metadata.refs.items():
            kind = at.snapshot_ref_type.value
            yield name, at.snapshot_id, f"{kind} {ref}"
            yield name, content(table, at.snapshot_id), f"{kind} {ref}"


def _named_for_ever(
    config: Config, warehouse: Warehouse
) -> Iterator[tuple[str, set[str], set[str], set[tuple[str, int]]]]:
    """For each model version and entry: the reason, keys of steps, references, and tables that it names."""
    from airloop.registry.ledger import Ledger
    from airloop.registry.lookup import registered

    for entry in Ledger(warehouse).entries():
        text = json.dumps(entry.evidence)
        keys = {entry.key, *re.findall(r"/([0-9a-f]{64})/", text)}
        run = entry.evidence.get("mlflow_run")
        outputs = {f"model:/{entry.model}/{entry.version}"} | ({f"model:/run/{run}"} if run else set())
        yield f"ledger entry {entry.model} {entry.seq}", keys, outputs, _tables_in(text)
    for name, version, run_id, tags in registered(config):
        outputs = {f"model:/{name}/{version}", f"model:/run/{run_id}"}
        keys = {tags["airloop.key"]} if tags.get("airloop.key") else set()
        yield f"model {name} version {version}", keys, outputs, _tables_in(json.dumps(tags))


def _closure(manifests: list[Made], keys: set[str], outputs: set[str]) -> list[Made]:
    """Manifests with one of the keys or outputs, and all that their inputs came from."""
    by_key = {made.key: made for made in manifests}
    makers: dict[str, list[Made]] = defaultdict(list)
    for made in manifests:
        for output in made.outputs:
            makers[output].append(made)
    waiting = [by_key[k] for k in keys if k in by_key] + [m for o in outputs for m in makers[o]]
    reached: dict[str, Made] = {}
    while waiting:
        made = waiting.pop()
        if made.key not in reached:
            reached[made.key] = made
            # A registered version among the inputs, as the champion at a gate, is kept for its own sake.
            waiting += [m for i in made.inputs if not REGISTERED.fullmatch(i) for m in makers[i]]
    return list(reached.values())


def _manifests(config: Config, used: Mapping[str, datetime]) -> Iterator[Made]:
    objects = open_objects(config.artifacts)
    for name, manifest in read_records(objects, "steps", "*/*/*/manifest.json"):
        try:
            run = manifest["run"]
            key = manifest["key"]
            yield Made(
                key=key,
                attempt=str(manifest["attempt"]),
                step=manifest["step"],
                run="/".join(filter(None, (run["dag_id"] or "by hand", run["run_id"]))),
                used_at=max(datetime.fromisoformat(manifest["finished_at"]), used.get(key, _NEVER)),
                inputs=frozenset(i["reference"] for i in manifest["inputs"].values()),
                outputs=frozenset(o["reference"] for o in manifest["outputs"].values()),
                tables=frozenset(_tables_in(json.dumps(manifest))),
                code=manifest.get("code", {}).get("tree", ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise unreadable(objects, name, cause) from cause


def _last_used(config: Config) -> tuple[dict[str, datetime], frozenset[str], frozenset[str]]:
    """When each key was last made or reused by a task; the attempts that are the newest of theirs; keys of these."""
    objects = open_objects(config.artifacts)
    newest: dict[str, datetime] = {}
    attempts = set()
    for name, record in read_records(objects, "runs", "*/*/*.json"):
        try:
            attempts.add(str(record["attempt"]))
            if record["key"]:
                at = datetime.fromisoformat(record["finished_at"])
                newest[record["key"]] = max(at, newest.get(record["key"], at))
        except (ValueError, KeyError, TypeError) as cause:
            raise unreadable(objects, name, cause) from cause
    return newest, frozenset(attempts), frozenset(newest)


def _online(config: Config) -> Iterator[tuple[str, int, str]]:
    """What the online store was filled from: the next materialisation reads only what came since."""
    file = config.online_store
    if not isinstance(file, Path) or not file.is_file():
        return
    from airloop.warehouse.catalog import Warehouse

    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=30)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'airloop_watermark'").fetchone():
            return
        marks = connection.execute("SELECT view, snapshot FROM airloop_watermark").fetchall()
    warehouse = Warehouse.open(config)
    # A watermark does not say of which table: an id is unique enough among all.
    places = {s.snapshot_id: name for name in warehouse.tables() for s in warehouse.table(name).metadata.snapshots}
    for view, snapshot in marks:
        if snapshot in places:
            yield places[snapshot], snapshot, f"online values of {view}"


def _materialised(manifests: list[Made]) -> Iterator[tuple[str, int, str]]:
    """What each feature service was last materialised from, into whatever store."""
    newest: dict[frozenset[str], Made] = {}
    for made in manifests:
        if made.step == "materialize":
            known = newest.get(made.outputs)
            newest[made.outputs] = made if known is None or made.used_at > known.used_at else known
    for outputs, made in newest.items():
        for table, snapshot in made.tables:
            yield table, snapshot, f"online values of {', '.join(sorted(outputs))}"


def _tables_in(text: str) -> set[tuple[str, int]]:
    return {(name, int(snapshot)) for name, snapshot in NAMED.findall(text) if int(snapshot)}
