"""
Lineage: what a model, a table's snapshot or a report was made of, and what was made of it.

The graph has two sorts of nodes: what exists (files, snapshots of tables, models, decisions) and the steps that made
it; edges follow the data. It is read from manifests; the warehouse adds how a snapshot builds on the one before it,
the ledger which versions were live. Ids of nodes are references as manifests hold them, so they stay the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from airloop.config import Config
from airloop.errors import NotFound
from airloop.provenance.lineage_index import Index, Record, Ref
from airloop.registry.refs import ModelRef
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.registry.ledger import Entry
    from airloop.warehouse.catalog import SnapshotInfo, Warehouse

Direction = Literal["back", "forward"]

BUILDS_ON = "builds on"
"""Role of the edge from a table's snapshot to the next one that holds its rows too."""
CHECKED_BY = "checked by"
"""Role of the edge from a step that let a snapshot pass to that snapshot."""
COMPARED = "champion"
"""Argument that a gate compares with: not what the challenger was made of, so it is named and not followed."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file, a snapshot, a model, a decision or a step."""

    id: str
    """Its reference; of a step ``step:NAME/KEY``."""
    kind: str
    """``file``, ``table``, ``model``, ``decision``, ``feature_service``, ``step``…"""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known of it, as JSON."""


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """The data goes from ``source`` to ``target``."""

    source: str
    target: str
    role: str
    """Argument or output by which they hang together."""


@dataclass(slots=True)
class Lineage:
    """The part of the graph that can be reached from one node."""

    start: str
    direction: Direction
    nodes: dict[str, Node] = field(default_factory=dict)
    """By id, nearest first."""
    edges: list[Edge] = field(default_factory=list)

    def into(self, node: str) -> list[Edge]:
        """Edges that end in a node."""
        return [e for e in self.edges if e.target == node]

    def of_kind(self, kind: str) -> list[Node]:
        """Nodes of a kind, nearest first."""
        return [n for n in self.nodes.values() if n.kind == kind]

    def as_json(self) -> dict[str, Any]:
        """The whole of it, for scripts."""
        return {
            "start": self.start,
            "direction": self.direction,
            "nodes": [asdict(n) for n in self.nodes.values()],
            "edges": [asdict(e) for e in sorted(self.edges)],
        }


class Graph:
    """Lineage of everything that one configuration's manifests, tables and ledger know."""

    def __init__(self, config: Config, warehouse: Warehouse) -> None:
        self.config = config
        self.warehouse = warehouse
        self.store = ArtifactStore(config.artifacts)
        self.index = Index(self.store, config.home / "lineage.db")
        self._histories: dict[str, dict[int, SnapshotInfo]] = {}

    @classmethod
    def open(cls, config: Config) -> Graph:
        """The graph as it is now; what is written afterwards is not in it."""
        from airloop.warehouse.catalog import Warehouse

        return cls(config, Warehouse.open(config))

    def back(self, start: str) -> Lineage:
        """
        What a node was made of, down to files and code.

        :param start: id of a node, see :func:`airloop.provenance.lineage_start.find`.
        """
        return self._walk([start], "back")

    def forward(self, start: str) -> Lineage:
        """What was made of a node, at any distance: tables, models, decisions, predictions."""
        return self._walk([start], "forward")

    def run(self, dag_id: str, run_id: str) -> Lineage:
        """
        What a run's tasks made or reused, and what that was made of.

        :raises NotFound: nothing is known of the run.
        """
        from airloop.frame import history

        tasks = history.run(self.store, dag_id, run_id).tasks
        if not tasks:
            raise NotFound(f"nothing is known of run {dag_id}/{run_id}", "see the runs in Airflow's UI")
        manifests = [history.manifest_of(self.store, task) for task in tasks.values()]
        steps = [f"step:{m['step']}/{m['key']}" for m in manifests if m is not None]
        made = {m.reference: None for step in steps if (r := self._step(step)) is not None for m in r.made}
        found = self._walk([*made, *steps], "back")
        found.start = f"run:{dag_id}/{run_id}"
        states = {name: task.status for name, task in tasks.items()}
        run = Node(found.start, "run", {"dag_id": dag_id, "run_id": run_id, "tasks": states})
        found.nodes = {run.id: run, **found.nodes}
        found.edges += [Edge(step, run.id, "task") for step in steps]
        return found

    def maker(self, reference: str) -> Record | None:
        """The step that made a reference; of several that say so, the one whose key the snapshot carries."""
        makers = self.index.makers(reference)
        snapshot = self.snapshot(reference)
        if snapshot is not None:
            named = [r for r in makers if r.key == snapshot.key.partition(":")[0]]
            # A step that found nothing to do names a snapshot that was there before.
            makers = named or [r for r in makers if r.changed] or makers
        return makers[0] if makers else None

    def snapshot(self, reference: str) -> SnapshotInfo | None:
        """What the warehouse knows of a table's snapshot; None for other references and for expired ones."""
        try:
            ref = TableRef.parse(reference)
        except ValueError:
            return None
        return self.history(ref.name).get(ref.snapshot or 0)

    def history(self, table: str) -> dict[int, SnapshotInfo]:
        """A table's snapshots by id, oldest first; none if there is no such table."""
        if table not in self._histories:
            there = self.warehouse.exists(table)
            self._histories[table] = {s.id: s for s in self.warehouse.history(table)} if there else {}
        return self._histories[table]

    def parent(self, reference: str) -> str | None:
        """The snapshot whose rows a snapshot holds too; None if it replaced them all or is the first."""
        from airloop.warehouse.commit import MODE

        snapshot = self.snapshot(reference)
        if snapshot is None or not snapshot.parent or snapshot.summary.get(MODE) == "replace":
            return None
        return f"{reference.partition('@')[0]}@{snapshot.parent}"

    def children(self, reference: str) -> list[str]:
        """Snapshots that build on a snapshot."""
        if not _is_table(reference):
            return []
        table, _, snapshot = reference.partition("@")
        found = [f"{table}@{s.id}" for s in self.history(table).values() if str(s.parent) == snapshot]
        return [child for child in found if self.parent(child) == reference]

    # ---------------------------------------------------------------- walking

    def _walk(self, starts: Iterable[str], direction: Direction) -> Lineage:
        waiting = deque(starts)
        found = Lineage(waiting[0] if waiting else "", direction)
        edges: dict[Edge, None] = {}
        while waiting:
            node = waiting.popleft()
            if node in found.nodes:
                continue
            found.nodes[node] = self._node(node)
            near = self._before(node) if direction == "back" else self._after(node)
            for edge, follow in near:
                edges[edge] = None
                if follow:
                    waiting.append(edge.source if direction == "back" else edge.target)
        found.edges = list(edges)
        for edge in found.edges:
            for end in (edge.source, edge.target):
                if end not in found.nodes:
                    found.nodes[end] = self._node(end)
        return found

    def _before(self, node: str) -> Iterable[tuple[Edge, bool]]:
        """Edges that lead to a node, and whether what is behind them belongs to its making."""
        if node.startswith("step:"):
            record = self._step(node)
            for given in record.inputs if record else ():
                yield Edge(self._id(given), node, given.role), given.role != COMPARED
            return
        maker = self.maker(node)
        if maker is not None:
            for made in maker.made:
                if made.reference == node:
                    yield Edge(maker.node, node, made.role), True
        elif node.startswith("model:/"):
            yield from self._trained(node)
        parent = self.parent(node)
        if parent is not None:
            yield Edge(parent, node, BUILDS_ON), True
        for reader in self.index.readers(node):
            if reader.step == "validate" and any(o.reference == node for o in reader.outputs):
                yield Edge(reader.node, node, CHECKED_BY), False

    def _after(self, node: str) -> Iterable[tuple[Edge, bool]]:
        if node.startswith("step:"):
            record = self._step(node)
            for made in record.made if record else ():
                # A step that found nothing to do names what another one made.
                if self.maker(made.reference) == record:
                    yield Edge(node, made.reference, made.role), True
            for reader in self._readers_of_manifest(record):
                yield Edge(node, reader.node, "tasks"), True
            return
        for reader in self.index.readers(node):
            for given in reader.inputs:
                if given.reference == node:
                    yield Edge(node, reader.node, given.role), given.role != COMPARED
        for child in self.children(node):
            yield Edge(node, child, BUILDS_ON), True

    def _readers_of_manifest(self, record: Record | None) -> list[Record]:
        """Reports that show a step's manifest. A table, model or decision leads on by itself."""
        return self.index.readers(self.store.uri(record.path)) if record is not None and not record.made else []

    def _trained(self, node: str) -> Iterable[tuple[Edge, bool]]:
        """A version whose registration left no manifest still names its training run."""
        from airloop.registry.lookup import version_run

        ref = ModelRef.parse(node)
        run = version_run(self.config, ref.name, ref.version) if ref.version else None
        if run:
            yield Edge(f"model:/run/{run}", node, "run"), True

    def _id(self, given: Ref) -> str:
        """Id of a node that a step was given: a manifest stands for its step."""
        if given.kind != "manifest":
            return given.reference
        record = self.index.record(self.store.name_of(given.reference))
        return record.node if record else given.reference

    def _step(self, node: str) -> Record | None:
        key = node.rpartition("/")[2]
        return next((r for r in self.index.by_key(key) if r.node == node), None)

    # ---------------------------------------------------------------- what is known of a node

    def _node(self, node: str) -> Node:
        if node.startswith("step:"):
            record = self._step(node)
            return Node(node, "step", _step_facts(record) if record else {"gone": True})
        if node.startswith("file:"):
            return Node(node, "file", self._file_facts(node))
        if node.startswith("decision:"):
            return Node(node, "decision", self._decision_facts(node))
        if node.startswith("model:/"):
            return Node(node, "model", self._model_facts(node))
        if self.snapshot(node) is not None or _is_table(node):
            return Node(node, "table", self._table_facts(node))
        name, _, digest = node.partition("@")
        return Node(node, "feature_service" if digest else "other", {"name": name, "digest": digest})

    def _table_facts(self, node: str) -> dict[str, Any]:
        table, _, at = node.partition("@")
        snapshot = self.snapshot(node)
        facts: dict[str, Any] = {"table": table, "snapshot": int(at)}
        if snapshot is None:
            return facts | ({"rows": 0} if at == "0" else {"gone": True})
        return facts | {
            "rows": snapshot.rows_total,
            "rows_added": snapshot.rows_added,
            "committed_at": snapshot.committed_at.isoformat(timespec="milliseconds"),
            "key": snapshot.key,
        }

    def _file_facts(self, node: str) -> dict[str, Any]:
        name, _, digest = node.removeprefix("file:").rpartition("#")
        sizes = [r.slim["bytes"].get(digest) for r in self.index.readers(node)]
        return {"name": name, "sha256": digest, "bytes": next((s for s in sizes if s is not None), None)}

    def _decision_facts(self, node: str) -> dict[str, Any]:
        from airloop.reference import Scope
        from airloop.registry.refs import DecisionRef

        try:
            decision = DecisionRef.parse(node).read(Scope(self.config))["decision"]
        except NotFound:
            return {"gone": True}
        return {name: decision[name] for name in ("outcome", "reasons", "metric", "rows")}

    def _model_facts(self, node: str) -> dict[str, Any]:
        ref = ModelRef.parse(node)
        if ref.run_id:
            return {"run_id": ref.run_id}
        return {"name": ref.name, "version": ref.version, "live": self.periods(ref.name, ref.version or 0)}

    def periods(self, model: str, version: int) -> list[dict[str, str | None]]:
        """When aliases named a version: ``alias``, ``since``, ``until`` (None: still), by the ledger's wall clock."""
        found = []
        for alias in dict.fromkeys(e.alias for e in self._entries if e.model == model):
            moves = [e for e in self._entries if (e.model, e.alias) == (model, alias) and e.state == "done" and e.moved]
            for move, after in zip(moves, [*moves[1:], None], strict=True):
                if move.version == version:
                    found.append(_period(move, after))
        return found

    def models(self) -> list[str]:
        """Names of the models that the ledger knows."""
        return sorted({e.model for e in self._entries})

    @cached_property
    def _entries(self) -> list[Entry]:
        from airloop.registry.ledger import Ledger

        return Ledger(self.warehouse).entries()


def _is_table(text: str) -> bool:
    try:
        return TableRef.parse(text).snapshot is not None
    except ValueError:
        return False


def _period(move: Entry, after: Entry | None) -> dict[str, str | None]:
    return {
        "alias": move.alias,
        "since": move.recorded_at.isoformat(timespec="seconds"),
        "until": after.recorded_at.isoformat(timespec="seconds") if after else None,
        "effective_at": move.effective_at.isoformat(timespec="seconds"),
        "outcome": move.outcome,
        "by": move.by,
        "run": f"{move.dag_id}/{move.run_id}" if move.dag_id else "",
    }


def _step_facts(record: Record) -> dict[str, Any]:
    slim = record.slim
    return {
        **{name: slim[name] for name in ("step", "key", "attempt", "run", "interval", "finished_at", "seconds")},
        **{name: slim[name] for name in ("counts", "changed", "code", "python", "links")},
        "manifest": record.path,
    }
