"""``airloop lineage``: from a model to the rows and the code that made it, and from a row to the models that saw it."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airloop.cli.output import Output
from airloop.config import Config
from airloop.errors import BadArgument

if TYPE_CHECKING:
    from airloop.provenance.lineage import Graph, Lineage
    from airloop.provenance.lineage_origin import Origin
    from airloop.provenance.lineage_rows import Affected
    from airloop.provenance.lineage_story import Branch
    from airloop.provenance.lineage_touch import Unknown


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lineage = commands.add_parser(
        "lineage",
        help="what a model, table or report was made of; what depends on a table, a file or single rows",
        description="Without options: what the thing was made of, down to source files and code.",
    )
    lineage.add_argument(
        "what",
        help="delay@champion, model:/delay/3, raw.flights, raw.flights@SNAPSHOT, DAG/RUN, a step's key, a decision, "
        "a report's page, a source file",
    )
    lineage.add_argument("--forward", action="store_true", help="what was made of it instead")
    lineage.add_argument(
        "--where",
        metavar="PREDICATE",
        help="of a table: what depends on the rows that this SQL condition holds for, row by row",
    )
    lineage.add_argument("--row", nargs="+", metavar="VALUE", help="as --where, for the row with these key values")
    lineage.add_argument(
        "--rows",
        metavar="PREDICATE",
        help="of a model or table: where the rows (of its training set) that this SQL condition holds for came from",
    )
    lineage.add_argument("--limit", type=int, default=3, help="rows that --rows follows at most; default 3")
    lineage.add_argument("--depth", type=int, default=0, metavar="N", help="levels of the tree; default all")
    lineage.add_argument("--mermaid", action="store_true", help="print the graph as a Mermaid flowchart")
    lineage.set_defaults(run=show_lineage)


def show_lineage(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.provenance.lineage import Graph
    from airloop.provenance.lineage_start import find

    asked = [arguments.forward, arguments.where is not None, arguments.row is not None, arguments.rows is not None]
    if sum(asked) > 1:
        raise BadArgument("--forward, --where, --row and --rows are different questions", "ask one at a time")
    graph = Graph.open(config)
    if arguments.where is not None or arguments.row is not None:
        _show_affected(graph, arguments, output)
        return
    if arguments.rows is not None:
        _show_origins(graph, arguments, output)
        return
    start = find(graph, arguments.what)
    if start.startswith("run:"):
        if arguments.forward:
            raise BadArgument("--forward starts at something that was made", "name a table, a file or a model")
        found = graph.run(*start.removeprefix("run:").split("/", 1))
    else:
        found = graph.forward(start) if arguments.forward else graph.back(start)
    if arguments.mermaid and not output.as_json:
        print(mermaid(found))
        return
    output.data(found.as_json())
    if output.as_json:
        return
    if arguments.forward:
        _print_forward(found, output)
    else:
        from airloop.provenance.lineage_story import tree

        _print_tree(tree(found), output, arguments.depth)


# -------------------------------------------------------------------- trees


def _print_tree(root: Branch, output: Output, depth: int) -> None:
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    for stem, branch in _lines(root, "", "", depth or 10_000):
        head = f"{branch.name}{'  ' + branch.exact if branch.exact else ''}"
        notes = "(above)" if branch.repeated else "; ".join(branch.notes)
        rest = width - len(stem) - len(head) - 2
        if notes and rest > 10:
            notes = notes if len(notes) <= rest else notes[: rest - 1] + "…"
            output.say(f"{stem}{output.paint(head, 'bold')}  {output.paint(notes, 'dim')}")
        else:
            output.say(f"{stem}{output.paint(head, 'bold')}")


def _lines(branch: Branch, stem: str, below: str, depth: int) -> Iterator[tuple[str, Branch]]:
    yield stem, branch
    if depth <= 1:
        return
    for number, child in enumerate(branch.branches):
        last = number == len(branch.branches) - 1
        yield from _lines(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), depth - 1)


def _print_forward(found: Lineage, output: Output) -> None:
    """Grouped: a tree forward repeats everything at every snapshot."""
    tables: dict[str, list[Any]] = {}
    for node in found.of_kind("table"):
        if node.id != found.start:
            tables.setdefault(node.facts["table"], []).append(node)
    if len(found.nodes) == 1:
        output.say(f"Nothing was made of {found.start}.")
        return
    output.say(f"Made of {found.start}:")
    for name, nodes in sorted(tables.items()):
        count = f"{len(nodes)} snapshots, " if len(nodes) > 1 else ""
        output.say(f"  {output.paint(name, 'bold')}  {count}the last {nodes[-1].facts['snapshot']}")
    for node in found.of_kind("model"):
        live = ", ".join(p["alias"] + (" once" if p["until"] else "") for p in node.facts.get("live", []))
        output.say(f"  {output.paint(node.id, 'bold')}{'  ' + live if live else ''}")
    for node in found.of_kind("decision"):
        name = output.paint(f"decision {node.facts.get('outcome', '')}", "bold")
        output.say(f"  {name}  {node.id.partition('#')[0]}")
    output.say(f"  in {len(found.of_kind('step'))} steps; --json names each")


def mermaid(found: Lineage) -> str:
    """The graph as a Mermaid flowchart."""
    numbers = {node: f"n{i}" for i, node in enumerate(found.nodes)}
    lines = ["flowchart LR"]
    for node in found.nodes.values():
        name = node.facts.get("step", node.id) if node.kind == "step" else node.id
        name = name if len(name) < 60 else name[:57] + "…"
        left, right = ("([", "])") if node.kind == "step" else ("[", "]")
        lines.append(f'  {numbers[node.id]}{left}"{name.replace(chr(34), chr(39))}"{right}')
    for edge in found.edges:
        role = edge.role.replace("[", " ").replace("]", "")
        lines.append(f"  {numbers[edge.source]} -->|{role}| {numbers[edge.target]}")
    return "\n".join(lines)


# -------------------------------------------------------------------- rows


def _show_affected(graph: Graph, arguments: argparse.Namespace, output: Output) -> None:
    from airloop.provenance.lineage_rows import affected
    from airloop.provenance.lineage_start import find_table

    table = find_table(graph, arguments.what)
    where = arguments.where if arguments.row is None else _key_predicate(graph, table, arguments.row)
    found = affected(graph, table, where)
    output.data(found.as_json())
    if not output.as_json:
        _print_affected(found, output)


def _key_predicate(graph: Graph, table: str, values: list[str]) -> str:
    from airloop.features.asof import quote
    from airloop.warehouse.read import literal

    key = graph.warehouse.key(table)
    if len(values) != len(key):
        expected = f"the key of {table} is {', '.join(key)}" if key else f"{table} has no key: use --where"
        raise BadArgument(f"--row has {len(values)} values", expected)
    # Compared as texts, so that nobody has to know the column's type.
    return " AND ".join(f"CAST({quote(k)} AS VARCHAR) = {literal(v)}" for k, v in zip(key, values, strict=True))


def _print_affected(found: Affected, output: Output) -> None:
    if not found.rows:
        output.say(f"No snapshot of {found.table} has a row where {found.where}.")
        return
    shown = "; ".join(", ".join(f"{k}={v}" for k, v in key.items()) for key in found.keys[:3])
    more = f" and {found.rows - 3:,} more" if found.rows > 3 else ""
    output.say(f"{output.paint(found.table, 'bold')}: {found.rows:,} row{'s' * (found.rows != 1)} ({shown}{more})")
    output.say()
    output.rows(_tables(found), empty="In no snapshot.")
    output.say()
    output.rows(
        [
            {
                "training set": t.reference, "examples": t.rows, "by split": _counts(t.examples),
                "by way of": _counts(t.through),
            }
            for t in found.training_sets
        ],
        empty="No training set depends on them.",
    )  # fmt: skip
    output.say()
    output.rows(
        [
            {
                "model": ", ".join(m.versions) or m.reference, "learned from": m.learned, "measured on": m.measured,
                "live": ", ".join(_live(period) for period in m.live),
            }
            for m in found.models
        ],
        empty="No model was trained or judged on them.",
    )  # fmt: skip
    output.say()
    output.rows(
        [
            {"predictions": p.reference, "rows": p.rows, "by": p.model, "by way of": _counts(p.through)}
            for p in found.predictions
        ],
        empty="No prediction depends on them.",
    )
    output.say()
    alike: dict[tuple[str, str], list[Unknown]] = {}
    for unknown in found.unknown:
        alike.setdefault((unknown.step.removeprefix("step:").partition("/")[0], unknown.why), []).append(unknown)
    for (step, why), steps in alike.items():
        snapshots = {reference for unknown in steps for reference in unknown.reads}
        times = f" ({len(steps)} times)" if len(steps) > 1 else ""
        output.say(f"Not known by row: what {step}{times} made of {len(snapshots)} snapshots; {why}.")


def _live(period: dict[str, Any]) -> str:
    return f"{period['alias']} {'until ' + period['until'][:16] if period['until'] else 'now'}"


def _tables(found: Affected) -> list[dict[str, Any]]:
    """One line a table, however many snapshots it has."""
    tables: dict[str, list[Any]] = {}
    for snapshot in found.snapshots:
        tables.setdefault(snapshot.reference.partition("@")[0], []).append(snapshot)
    return [
        {
            "table": name,
            "how": "depend on them" if any(s.step for s in snapshots) else "are they",
            "rows now": next((s.rows for s in snapshots if s.live), 0),
            "rows at most": max(s.rows for s in snapshots),
            "in snapshots": len(snapshots),
        }
        for name, snapshots in tables.items()
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}".rstrip() for name, count in counts.items())


def _show_origins(graph: Graph, arguments: argparse.Namespace, output: Output) -> None:
    from airloop.provenance.lineage_origin import origins, training_set
    from airloop.provenance.lineage_start import find

    start = find(graph, arguments.what)
    reference = training_set(graph, start) if start.startswith("model:/") else start
    found = origins(graph, reference, arguments.rows, limit=arguments.limit)
    output.data([origin.as_json() for origin in found])
    if output.as_json:
        return
    for origin in found:
        _print_tree(_branch(origin), output, arguments.depth)


def _branch(origin: Origin) -> Branch:
    from airloop.provenance.lineage_story import Branch

    key = ", ".join(f"{name}={value}" for name, value in origin.key.items())
    notes = [f"several rows of {reference}" for reference in origin.several]
    if origin.file:
        name, _, digest = origin.file.removeprefix("file:").rpartition("#")
        notes.append(f"row {origin.line:,} of {name}, sha256 {digest[:12]}")
    notes += [origin.note] if origin.note else []
    name = f"{origin.role}: {origin.reference}" if origin.role else origin.reference
    return Branch(name, key, notes, branches=[_branch(row) for row in origin.rows])
