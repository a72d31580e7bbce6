"""
Where single rows came from: an example of a training set, back to its label, its features, and lines of source files.

An example's label row has its key; its feature rows are those that the point-in-time join chose, which the training
set keeps. For rows of tables written by SQL, the step is run again without parts of its input: the input's rows are
numbered, and for each binary digit those that have it 1, then those that have it 0, are left out. A row of the result
that depends on one input row alone changes in just one run of each pair, which spells the row's number. So all rows
are traced by two runs a digit. The row that is spelled is named only if two more runs agree: without it the result
changes, and with it alone the result stays. A row of the result that changes in both runs of a pair, or in neither
because its sources stand in for each other (ties, DISTINCT, EXISTS), comes from several rows; it is said so, and none
of them is listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from airloop.errors import BadArgument, NotFound
from airloop.features.asof import quote
from airloop.features.definitions import ViewDefinition
from airloop.provenance.lineage import Graph
from airloop.provenance.lineage_index import Record, file_reference
from airloop.provenance.lineage_sql import changed_keys, equal, name_view, plain, run_sql, with_inputs
from airloop.provenance.lineage_touch import SQL_STEPS, identity
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SOURCE, ROW, BATCH = "_source", "_row", "_batch"
"""Columns of tables that sources fill: file, line of it, and the key of the step that brought the row."""


@dataclass(slots=True)
class Origin:
    """A row, and the rows that it was made of."""

    reference: str
    """Snapshot of the table."""
    key: dict[str, Any]
    role: str = ""
    """What it was to the row that was made of it: ``label``, the name of a feature view, the name in the SQL."""
    step: str = ""
    """Id of the step that made the row."""
    file: str = ""
    """Id of the source file that it is a line of."""
    line: int | None = None
    """Which row of the file, from 1."""
    several: list[str] = field(default_factory=list)
    """Snapshots of which several rows went into it, or could each have given it."""
    rows: list[Origin] = field(default_factory=list)
    note: str = ""
    """Why the trail ends here, if it does."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def origins(graph: Graph, reference: str, where: str, *, limit: int = 3) -> list[Origin]:
    """
    Where rows of a snapshot came from.

    :param reference: ``namespace.table@snapshot``; for a model, its training set.
    :param where: DuckDB predicate over its columns.
    :param limit: rows that are followed, in the order of their keys.
    :raises BadArgument: the predicate cannot be understood.
    :raises NotFound: no row matches, or a snapshot on the way has expired.
    """
    import duckdb

    ref = TableRef.parse(reference)
    maker = graph.maker(reference)
    names = _example_key(graph, maker) if _is_joined(maker) else identity(graph, ref.name)
    with graph.warehouse.duckdb({"rows": ref}) as connection:
        try:
            query = f"SELECT * FROM rows WHERE {where} ORDER BY {', '.join(map(quote, names))} LIMIT {limit}"
            rows = connection.sql(query).to_arrow_table()
        except duckdb.Error as cause:
            raise BadArgument(str(cause), f"`airloop tables {ref.name}` names its columns") from cause
    if not rows.num_rows:
        raise NotFound(f"{reference} has no row where {where}", "see the rows with `airloop sql`")
    if _is_joined(maker) and maker is not None:
        return _examples(graph, ref, maker, rows, names)
    return _Tracer(graph).trace(ref, rows.select(names))


def training_set(graph: Graph, model: str) -> str:
    """
    The snapshot that a model was trained on.

    :param model: id of a version or of a training run.
    :raises NotFound: no manifest says what it was trained on.
    """
    lineage = graph.back(model)
    trained = [n.id for n in lineage.of_kind("step") if n.facts.get("step") == "train"]
    found = [e.source for step in trained[:1] for e in lineage.into(step) if lineage.nodes[e.source].kind == "table"]
    if not found:
        raise NotFound(f"no manifest says what {model} was trained on", "the manifest of its train step is gone")
    return found[0]


def _is_joined(maker: Record | None) -> bool:
    return maker is not None and maker.step == "build_training_set"


def _example_key(graph: Graph, maker: Record | None) -> list[str]:
    labels = next(i.reference for i in (maker.inputs if maker else []) if i.role == "labels")
    return graph.warehouse.key(TableRef.parse(labels).name)


def _examples(graph: Graph, ref: TableRef, maker: Record, rows: pa.Table, names: Sequence[str]) -> list[Origin]:
    """Examples with their label row and the feature rows that the join chose for them."""
    manifest = graph.index.manifest(maker)
    tracer = _Tracer(graph)
    found = [Origin(str(ref), key, step=maker.node) for key in plain(rows.select(names))]
    labels = TableRef.parse(manifest["inputs"]["labels"]["reference"])
    for origin, label in zip(found, tracer.trace(labels, rows.select(names), "label"), strict=True):
        origin.rows.append(label)
    tables = [TableRef.parse(i["reference"]) for path, i in manifest["inputs"].items() if path.startswith("tables[")]
    snapshots = {t.name: t for t in tables}
    for document in manifest["details"].get("views", []):
        view = ViewDefinition.from_lookup(document)
        chosen, of = _chosen(graph, snapshots[view.table], view, rows)
        for number, origin in zip(of, tracer.trace(snapshots[view.table], chosen, view.name), strict=True):
            found[number].rows.append(origin)
    return found


def _chosen(graph: Graph, ref: TableRef, view: ViewDefinition, rows: pa.Table) -> tuple[pa.Table, list[int]]:
    """Identities of the feature rows that the examples have, and the example of each."""
    import pyarrow as pa

    arrival = view.arrival_time or view.event_time
    pairs = dict(zip(view.spine_keys, view.keys, strict=True))
    pairs |= {f"{view.name}__event_time": view.event_time, f"{view.name}__arrival_time": arrival}
    names = identity(graph, ref.name)
    with graph.warehouse.duckdb({"features": ref}) as connection:
        connection.register("examples", rows.append_column("__n", pa.array(range(rows.num_rows))))
        same = " AND ".join(f"e.{quote(a)} = f.{quote(b)}" for a, b in pairs.items())
        selected = ", ".join(f"f.{quote(name)}" for name in names)
        query = f"SELECT {selected}, e.__n FROM examples e JOIN features f ON {same} ORDER BY e.__n"
        found = connection.sql(query).to_arrow_table()
    return found.select(names), found.column("__n").to_pylist()


class _Tracer:
    """Follows rows back through SQL to the files; each step is looked at once for each set of rows."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def trace(self, ref: TableRef, keys: pa.Table, role: str = "") -> list[Origin]:
        """The origin of each row, in the order of ``keys``."""
        import pyarrow as pa

        found = [Origin(str(ref), key, role) for key in plain(keys)]
        waiting = list(range(len(found)))
        at: str | None = str(ref)
        # A row was made by the last step that gave its key; the snapshot holds it since.
        while waiting and at is not None:
            maker = self.graph.maker(at)
            if maker is not None and maker.step in SQL_STEPS:
                made = self._through_sql(maker, keys.take(pa.array(waiting)), [found[n] for n in waiting])
                waiting = [n for n, done in zip(waiting, made, strict=True) if not done]
            elif maker is not None and self._is_filled(ref.name):
                self._lines(TableRef.parse(at), keys.take(pa.array(waiting)), [found[n] for n in waiting])
                return found
            at = self.graph.parent(at)
        for number in waiting:
            found[number].note = "no manifest says how it was made"
        return found

    def _is_filled(self, table: str) -> bool:
        return {SOURCE, ROW, BATCH} <= set(self.graph.warehouse.schema(table).names)

    def _lines(self, ref: TableRef, keys: pa.Table, found: Sequence[Origin]) -> None:
        """File and line of rows that a source brought."""
        import pyarrow as pa

        with self.graph.warehouse.duckdb({"rows": ref}) as connection:
            connection.register("wanted", keys.append_column("__n", pa.array(range(keys.num_rows))))
            query = (
                f"SELECT w.__n, r.{SOURCE}, r.{ROW}, r.{BATCH} FROM wanted w"
                f" JOIN rows r ON {equal(keys.column_names, 'w', 'r')} ORDER BY 1"
            )
            for number, name, line, batch in connection.execute(query).fetchall():
                brought = next(iter(self.graph.index.by_key(batch.partition(":")[0])), None)
                origin = found[number]
                origin.line = line
                if brought is None:
                    origin.note = f"line of {name}, brought by key {batch[:12]}, whose manifest is gone"
                    continue
                origin.step = brought.node
                files = {r.reference for r in brought.inputs if r.kind == "file"}
                digests = {f.removeprefix("file:").rpartition("#")[0]: f.rpartition("#")[2] for f in files}
                origin.file = file_reference(name, digests.get(name, ""))

    def _through_sql(self, maker: Record, keys: pa.Table, found: Sequence[Origin]) -> list[bool]:
        """Trace the rows that this run of the SQL gave; whether it gave each."""
        manifest = self.graph.index.manifest(maker)
        arguments = manifest["arguments"]
        inputs = {name: TableRef.parse(text) for name, text in arguments["inputs"].items()}
        with self.graph.warehouse.duckdb({f"whole.i{n}": ref for n, ref in enumerate(inputs.values())}) as connection:
            connection.execute("SET threads = 1")
            with_inputs(connection, inputs)
            run_sql(connection, "before", arguments)
            given = _targets(connection, keys)
            for number in given:
                found[number].step = maker.node
            for place, (name, ref) in enumerate(inputs.items()):
                single, several = _sources(connection, arguments, name, place)
                for number in several:
                    found[number].several.append(str(ref))
                places = {source: n for n, source in enumerate(sorted(set(single.values())))}
                rows = _numbered(connection, place, identity(self.graph, ref.name), list(places))
                traced = self.trace(ref, rows, name) if places else []
                for number, source in single.items():
                    found[number].rows.append(traced[places[source]])
            for number in given:
                if not found[number].rows and not found[number].several:
                    found[number].note = "it stays the same whatever its step reads"
        return [number in given for number in range(keys.num_rows)]


def _targets(connection: duckdb.DuckDBPyConnection, keys: pa.Table) -> set[int]:
    """Table ``targets``: those rows of ``before`` that are asked for, with their number ``__n``; their numbers."""
    import pyarrow as pa

    connection.register("asked", keys.append_column("__n", pa.array(range(keys.num_rows))))
    connection.execute(
        f"CREATE TEMP TABLE targets AS SELECT b.*, w.__n FROM before b"
        f" JOIN asked w ON {equal(keys.column_names, 'b', 'w')}"
    )
    return {int(row[0]) for row in connection.execute("SELECT __n FROM targets").fetchall()}


def _sources(
    connection: duckdb.DuckDBPyConnection, arguments: Mapping[str, Any], name: str, place: int
) -> tuple[dict[int, int], set[int]]:
    """
    For each target the number of the one input row that it depends on; and the targets that depend on several.

    Leaves the input's view whole: one input is looked at after the other.
    """
    connection.execute(
        f"CREATE TEMP TABLE numbered{place} AS SELECT *, row_number() OVER () - 1 AS __row FROM whole.i{place}"
    )
    row = connection.execute(f"SELECT max(__row) FROM numbered{place}").fetchone()
    last = int(row[0]) if row and row[0] is not None else 0

    def changed(kept: str) -> set[int]:
        """Targets that are gone or have other values if only those rows are read."""
        name_view(connection, name, f"SELECT * EXCLUDE (__row) FROM numbered{place} WHERE {kept}")
        run_sql(connection, "after", arguments)
        query = changed_keys(connection, arguments["key"], of="targets")
        return {int(r[0]) for r in connection.execute(f"SELECT __n FROM ({query})").fetchall()}

    depend = changed("false")
    spelled = dict.fromkeys(depend, 0)
    for digit in range(max(1, last.bit_length())):
        if not spelled:
            break
        zeros, ones = (changed(f"(__row >> {digit}) & 1 <> {value}") for value in (0, 1))
        depend |= zeros | ones
        # In neither run: other rows stand in for those that are left out.
        spelled = {n: s + ((n in ones) << digit) for n, s in spelled.items() if (n in ones) != (n in zeros)}
    found: dict[int, int] = {}
    for number in sorted(set(spelled.values())):
        # Rows that stand in for each other, "any two of three" for one, can spell the number of a row that is none
        # of them.
        alone = changed(f"__row <> {number}") - changed(f"__row = {number}")
        found |= {n: number for n, s in spelled.items() if s == number and n in alone}
    name_view(connection, name, f"SELECT * FROM whole.i{place}")
    return found, depend - found.keys()


def _numbered(connection: duckdb.DuckDBPyConnection, place: int, names: Sequence[str], rows: Sequence[int]) -> pa.Table:
    """Keys of input rows, in the order of their numbers."""
    listed = ", ".join(str(int(n)) for n in rows) or "NULL"
    selected = ", ".join(quote(n) for n in names)
    return connection.sql(
        f"SELECT {selected} FROM numbered{place} WHERE __row IN ({listed}) ORDER BY __row"
    ).to_arrow_table()
