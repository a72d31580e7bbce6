"""Lineage for people: a tree with one branch for each table, file and decision, however many snapshots it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airloop.provenance.lineage import BUILDS_ON, CHECKED_BY, COMPARED, Lineage, Node
from airloop.report import words


@dataclass(slots=True)
class Branch:
    """A line of the tree and what hangs below it."""

    name: str
    """What it is, for people."""
    exact: str = ""
    """What makes it exact: a snapshot, a digest, a version."""
    notes: list[str] = field(default_factory=list)
    node: str = ""
    """Id in the graph."""
    repeated: bool = False
    """Whether its own branches stand further up."""
    branches: list[Branch] = field(default_factory=list)


def tree(lineage: Lineage) -> Branch:
    """The tree of a walk back."""
    return _Grower(lineage).grow(lineage.start)


class _Grower:
    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self.into: dict[str, list[Any]] = {}
        for edge in lineage.edges:
            self.into.setdefault(edge.target, []).append(edge)
        self.seen: set[str] = set()

    def grow(self, node: str) -> Branch:
        branch = Branch(*_name(self.lineage.nodes[node]), _notes(self.lineage.nodes[node]), node)
        if node in self.seen and self.into.get(node):
            branch.repeated = True
            return branch
        self.seen.add(node)
        if node.startswith("run:"):
            branch.branches = [self.grow(edge.source) for edge in self.into.get(node, [])]
            return branch
        if node.startswith("step:"):
            branch.branches = [self.grow(n) for n in self._inputs([node])]
            return branch
        chain = self._chain(node)
        makers = self._makers(chain)
        if len(chain) > 1:
            branch.notes.append(f"{len(chain)} commits")
        for step in makers[:1]:
            branch.notes += _made_by(self.lineage.nodes[step])
        branch.notes += self._checks(chain)
        branch.branches = [self.grow(n) for n in self._inputs(makers) if n not in chain]
        return branch

    def _chain(self, node: str) -> list[str]:
        """The snapshot and those that it builds on, newest first."""
        chain = [node]
        while before := [e.source for e in self.into.get(chain[-1], []) if e.role == BUILDS_ON]:
            chain.append(before[0])
        return chain

    def _makers(self, chain: Iterable[str]) -> list[str]:
        return [e.source for n in chain for e in self.into.get(n, []) if e.role not in (BUILDS_ON, CHECKED_BY)]

    def _inputs(self, makers: Iterable[str]) -> list[str]:
        """What the steps were given: of each table the newest snapshot, which has its own chain."""
        found: dict[str, str] = {}
        for maker in makers:
            if not maker.startswith("step:"):
                found.setdefault(maker, maker)  # a run's model, or a run's own steps
                continue
            for edge in self.into.get(maker, []):
                if edge.role != COMPARED:
                    source = edge.source
                    found.setdefault(source.partition("@")[0] if not source.startswith("model:") else source, source)
        return list(found.values())

    def _checks(self, chain: Iterable[str]) -> list[str]:
        checks = [e.source for n in chain for e in self.into.get(n, []) if e.role == CHECKED_BY]
        counts = [self.lineage.nodes[c].facts.get("counts", {}) for c in dict.fromkeys(checks)]
        rows = sum(c.get("rows_checked", 0) for c in counts)
        held = sum(c.get("rows_quarantined", 0) for c in counts)
        if not counts:
            return []
        return [f"{rows:,} rows validated" + (f", {held:,} kept back" if held else "")]


def _name(node: Node) -> tuple[str, str]:
    facts = node.facts
    if node.kind == "table":
        return facts["table"], "empty" if facts["snapshot"] == 0 else str(facts["snapshot"])
    if node.kind == "file":
        return facts["name"], f"sha256 {facts['sha256'][:12]}"
    if node.kind == "model":
        return (
            (f"{facts['name']} version {facts['version']}", "") if "name" in facts else ("candidate", facts["run_id"])
        )
    if node.kind == "decision":
        return "gate", facts.get("outcome", "gone")
    if node.kind == "feature_service":
        return facts["name"], f"definitions {facts['digest'][:12]}"
    if node.kind == "step":
        return facts.get("step", "step"), node.id.rpartition("/")[2][:12]
    return node.id, ""


def _notes(node: Node) -> list[str]:
    facts = node.facts
    if facts.get("gone"):
        return ["gone"]
    if node.kind == "table" and "committed_at" in facts:
        return [f"{facts['rows']:,} rows"]
    if node.kind == "file":
        return [words.size(facts["bytes"])] if facts.get("bytes") is not None else []
    if node.kind == "model":
        return [_live(period) for period in facts.get("live", [])]
    if node.kind == "decision":
        return list(facts["reasons"][:1])
    if node.kind == "step":
        return _made_by(node)
    if node.kind == "run":
        return [f"{len(facts['tasks'])} tasks"]
    return []


def _live(period: Mapping[str, Any]) -> str:
    since = str(period["since"])[:16].replace("T", " ")
    until = str(period["until"])[:16].replace("T", " ") if period["until"] else ""
    return f"{period['alias']} {'from ' + since + ' to ' + until if until else 'since ' + since}"


def _made_by(node: Node) -> list[str]:
    facts = node.facts
    if facts.get("gone"):
        return []
    run = facts["run"]
    who = f"{run['dag_id']}/{run['run_id']}/{run['task_id']}" if run["dag_id"] else "by hand"
    code = facts["code"]
    libraries = ", ".join(f"{name} {version}" for name, version in code["libraries"].items())
    return [
        f"by {facts['step']} in {who}, {facts['finished_at'][:16].replace('T', ' ')}",
        f"key {facts['key'][:12]}, code {code['fingerprint'][:12]} ({code['modules']} modules)",
        *([libraries] if libraries else []),
    ]


def summary(lineage: Lineage) -> dict[str, Any]:
    """What a page shows of a model: its files, each table's newest snapshot, and the code of each kind of step."""
    tables: dict[str, dict[str, Any]] = {}
    for node in lineage.of_kind("table"):
        facts = node.facts
        newest = {"name": facts["table"], "snapshot": str(facts["snapshot"]), "rows": facts.get("rows"), "commits": 0}
        known = tables.setdefault(facts["table"], newest)
        known["commits"] += 1
    code: dict[tuple[str, str], dict[str, Any]] = {}
    for node in lineage.of_kind("step"):
        facts = node.facts
        if facts.get("gone"):
            continue
        kept = facts["code"]
        found = code.setdefault(
            (facts["step"], kept["fingerprint"]),
            {
                "step": facts["step"],
                "fingerprint": kept["fingerprint"],
                "modules": kept["modules"],
                "libraries": [f"{name} {version}" for name, version in kept["libraries"].items()],
                "python": facts["python"],
                "times": 0,
            },
        )
        found["times"] += 1
    return {
        "model": " ".join(part for part in _name(lineage.nodes[lineage.start]) if part),
        "files": [node.facts for node in lineage.of_kind("file")],
        "tables": sorted(tables.values(), key=lambda table: table["name"]),
        "code": sorted(code.values(), key=lambda found: (found["step"], -found["times"])),
    }
