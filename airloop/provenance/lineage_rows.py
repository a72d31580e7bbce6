"""
"Delete this row: what is affected?": from rows of a table to training sets, model versions and predictions.

Exact, row by row: tables written by SQL by :mod:`airloop.provenance.lineage_touch`; training sets and predictions by
the point-in-time join, whose choice of feature rows training sets keep and predictions can repeat. Where a step says
nothing of single rows, that is said instead of guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.errors import NotFound
from airloop.features.asof import point_in_time_join, quote, time_literal
from airloop.features.definitions import ViewDefinition
from airloop.provenance.lineage import Graph
from airloop.provenance.lineage_index import Record
from airloop.provenance.lineage_sql import plain
from airloop.provenance.lineage_touch import SQL_STEPS, Touched, Trail, Unknown
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import duckdb

SAMPLE = 20
"""Identities of rows that an answer names; counts are of all."""
LEARNED = ("train", "validation")
"""Splits that a model was fitted with; rows of the others were at most measured on."""
BROUGHT = ("extract", "validate")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows of a table's snapshot that are, or depend on, the rows in question."""

    reference: str
    rows: int
    step: str
    """Id of the step by which they depend; empty: they are the rows in question."""
    live: bool
    """Whether it is what the table holds now."""
    sample: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Examples of one training set that depend on the rows in question."""

    reference: str
    examples: dict[str, int]
    """How many, by split."""
    through: dict[str, int]
    """How many by way of ``label`` and of each feature view; an example may count in several."""
    sample: list[dict[str, Any]]

    @property
    def rows(self) -> int:
        return sum(self.examples.values())

    @property
    def learned(self) -> int:
        """Examples that a model trained on it was fitted with."""
        return sum(n for split, n in self.examples.items() if split in (*LEARNED, ""))


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was trained on, or judged by, affected examples."""

    reference: str
    """Of the training run."""
    versions: list[str]
    training_set: str
    learned: int
    """Affected examples that it was fitted with."""
    measured: int
    """Affected examples of the hold-out, which only its gate saw."""
    live: list[dict[str, Any]]
    """When aliases named its versions."""
    decisions: list[str]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of a table of predictions that one step wrote and that are affected."""

    reference: str
    step: str
    rows: int
    through: dict[str, int]
    """How many by way of ``entity`` (the row predicted), of each feature view, and of ``model`` (all of an affected
    version's); a prediction may count in several."""
    model: str
    sample: list[dict[str, Any]]


@dataclass(slots=True)
class Affected:
    """Everything that depends on some rows of a table."""

    table: str
    where: str
    keys: list[dict[str, Any]]
    """The rows in question, at most :data:`SAMPLE` of them."""
    rows: int
    snapshots: list[Snapshot] = field(default_factory=list)
    training_sets: list[TrainingSet] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    predictions: list[Predictions] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    """Steps that read affected rows and say nothing of single rows: what they made may depend on them."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def affected(graph: Graph, table: str, where: str) -> Affected:
    """
    What depends on rows of a table, in every snapshot that is still there.

    :param table: ``namespace.table``; labels, features and entities as well as raw tables.
    :param where: DuckDB predicate over its columns. A row is followed by its key, so its other versions count too.
    :raises NotFound: there is no such table.
    :raises BadArgument: the predicate cannot be understood.
    """
    trail = Trail(graph, table, where)
    found = Affected(table, where, _sample(trail.keys), int(trail.keys.num_rows), unknown=list(trail.unknown))
    heads = {name: graph.warehouse.head(name) for name in {t.ref.name for t in trail.touched.values()}}
    for touched in trail.touched.values():
        live = heads[touched.ref.name] == touched.ref.snapshot
        found.snapshots.append(Snapshot(str(touched.ref), touched.rows, touched.by, live, _sample(touched.keys)))
    sets = _training_sets(graph, trail)
    found.training_sets = list(sets.values())
    found.models = _models(graph, sets)
    versions = {v: m for m in found.models if m.learned for v in (m.reference, *m.versions)}
    found.predictions = _predictions(graph, trail, versions, found.unknown)
    found.unknown += [*_silent(graph, trail), *_expired(graph, table)]
    return found


# -------------------------------------------------------------------- training sets


def _training_sets(graph: Graph, trail: Trail) -> dict[str, TrainingSet]:
    """By reference: those that the training-set step made, and tables that a model was trained on as they are."""
    found = {}
    for record in graph.index.all("build_training_set"):
        reads = [given.reference for given in record.inputs if given.reference in trail.touched]
        for made in record.made if reads else ():
            if graph.snapshot(made.reference) is None:
                continue  # said of the model that was trained on it
            joined = _joined_set(graph, record, TableRef.parse(made.reference), trail.touched)
            if joined is not None:
                found[made.reference] = joined
    for record in graph.index.all("train"):
        for given in record.inputs:
            if given.reference in trail.touched and given.reference not in found:
                found[given.reference] = _plain_set(graph, trail.touched[given.reference])
    return found


def _joined_set(graph: Graph, record: Record, ref: TableRef, touched: Mapping[str, Touched]) -> TrainingSet | None:
    """Examples whose label row, or one of whose chosen feature rows, is touched."""
    manifest = graph.index.manifest(record)
    labels = manifest["inputs"]["labels"]["reference"]
    columns = graph.warehouse.key(TableRef.parse(labels).name)
    with graph.warehouse.duckdb({"examples": ref}) as connection:
        conditions = {}
        if labels in touched:
            connection.register("touched_labels", touched[labels].keys)
            conditions["label"] = _among("examples", "touched_labels", {c: c for c in columns})
        conditions |= _through_views(graph, connection, "examples", manifest, touched)
        shown = list(dict.fromkeys([*columns, manifest["arguments"]["time_column"], "split"]))
        counts = _hits(connection, "examples", shown, conditions)
        if not counts:
            return None
        counts.pop("")
        splits = dict(connection.execute("SELECT split, count(*) FROM hits GROUP BY ALL ORDER BY ALL").fetchall())
        sample = connection.sql(f"SELECT {_list(shown)} FROM hits ORDER BY ALL LIMIT {SAMPLE}").to_arrow_table()
        return TrainingSet(str(ref), splits, counts, plain(sample))


def _plain_set(graph: Graph, touched: Touched) -> TrainingSet:
    """A table that a model was trained on as it is, with or without a column ``split``."""
    with graph.warehouse.duckdb({"examples": touched.ref}) as connection:
        connection.register("touched", touched.keys)
        split = "split" if "split" in graph.warehouse.schema(touched.ref).names else "''"
        same = _among("examples", "touched", {c: c for c in touched.columns})
        query = f"SELECT {split} AS part, count(*) FROM examples WHERE {same} GROUP BY ALL ORDER BY ALL"
        splits = dict(connection.execute(query).fetchall())
    return TrainingSet(str(touched.ref), splits, {"row": touched.rows}, _sample(touched.keys))


def _through_views(
    graph: Graph,
    connection: duckdb.DuckDBPyConnection,
    spine: str,
    manifest: Mapping[str, Any],
    touched: Mapping[str, Touched],
) -> dict[str, str]:
    """
    A condition on joined rows for each feature view that chose touched rows for some of them.

    The join's evidence says which row was chosen: that of the view's keys with this event time and arrival time.
    """
    snapshots = {TableRef.parse(i["reference"]).name: i["reference"] for i in _tables(manifest)}
    conditions = {}
    for number, view in enumerate(_views(manifest)):
        rows = touched.get(snapshots[view.table])
        if rows is None or not rows.rows:
            continue
        connection.register(f"keys{number}", rows.keys)
        arrival = view.arrival_time or view.event_time
        columns = dict.fromkeys([*rows.columns, *view.keys, view.event_time, arrival])
        connection.register(f"rows{number}", graph.warehouse.scan(rows.ref, columns=list(columns)))
        connection.execute(
            f"CREATE TEMP TABLE chosen{number} AS SELECT r.* FROM rows{number} r SEMI JOIN keys{number} k"
            f" ON {' AND '.join(f'r.{quote(c)} = k.{quote(c)}' for c in rows.columns)}"
        )
        pairs = dict(zip(view.spine_keys, view.keys, strict=True))
        pairs |= {f"{view.name}__event_time": view.event_time, f"{view.name}__arrival_time": arrival}
        conditions[view.name] = _among(spine, f"chosen{number}", pairs)
    return conditions


def _views(manifest: Mapping[str, Any]) -> list[ViewDefinition]:
    return [ViewDefinition.from_lookup(view) for view in manifest["details"].get("views", [])]


def _tables(manifest: Mapping[str, Any]) -> list[Mapping[str, str]]:
    return [given for path, given in manifest["inputs"].items() if path.startswith("tables[")]


# -------------------------------------------------------------------- models and predictions


def _models(graph: Graph, sets: Mapping[str, TrainingSet]) -> list[Model]:
    found = []
    for record in graph.index.all("train"):
        examples = next((i.reference for i in record.inputs if i.reference in sets), None)
        if examples is None:
            continue
        for made in record.made:
            if made.kind == "model":
                found.append(_model(graph, made.reference, sets[examples]))
    return found


def _model(graph: Graph, reference: str, examples: TrainingSet) -> Model:
    from airloop.registry.refs import ModelRef

    readers = graph.index.readers(reference)
    versions = [m.reference for r in readers for m in r.made if m.kind == "model"]
    live = []
    for version in dict.fromkeys(versions):
        ref = ModelRef.parse(version)
        live += [{"version": version, **period} for period in graph.periods(ref.name, ref.version or 0)]
    judged = [r for r in readers if any(i.reference == examples.reference for i in r.inputs)]
    measured = examples.examples.get("holdout", 0)
    decisions = [m.reference for r in judged for m in r.made if m.kind == "decision"] if measured else []
    return Model(
        reference, list(dict.fromkeys(versions)), examples.reference, examples.learned, measured, live, decisions
    )


def _predictions(
    graph: Graph, trail: Trail, versions: Mapping[str, Model], unknown: list[Unknown]
) -> list[Predictions]:
    found = []
    for record in graph.index.all("batch_score"):
        table = next((m.reference for m in record.made if m.kind == "table"), "")
        model = next((i.reference for i in record.inputs if i.kind == "model"), "")
        reads = [given.reference for given in record.inputs if given.reference in trail.touched]
        if not record.slim["counts"].get("rows_scored") or not (reads or model in versions):
            continue
        try:
            scored = _scored(graph, record, table, model, trail.touched, learned=model in versions)
        except NotFound as cause:
            unknown.append(Unknown(record.node, reads, f"what it read is gone: {cause.found}"))
            continue
        if scored is not None:
            found.append(scored)
    return found


def _scored(
    graph: Graph, record: Record, table: str, model: str, touched: Mapping[str, Touched], *, learned: bool
) -> Predictions | None:
    """The join of then once more, without the features: only which rows it chose matters."""
    manifest = graph.index.manifest(record)
    entities = TableRef.parse(manifest["inputs"]["entities"]["reference"])
    with _rejoined(graph, manifest, entities) as connection:
        keys = graph.warehouse.key(entities.name)
        conditions = {}
        if str(entities) in touched:
            connection.register("touched_entities", touched[str(entities)].keys)
            conditions["entity"] = _among("joined", "touched_entities", {k: k for k in keys})
        conditions |= _through_views(graph, connection, "joined", manifest, touched)
        if learned:
            conditions["model"] = "true"
        shown = list(dict.fromkeys([*keys, manifest["arguments"]["time_column"]]))
        counts = _hits(connection, "joined", shown, conditions)
        if not counts:
            return None
        sample = connection.sql(f"SELECT {_list(shown)} FROM hits ORDER BY ALL LIMIT {SAMPLE}").to_arrow_table()
        return Predictions(table, record.node, counts.pop(""), counts, model, plain(sample))


@contextmanager
def _rejoined(graph: Graph, manifest: Mapping[str, Any], entities: TableRef) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with ``joined``: the entities of the interval, and which feature rows were chosen for each."""
    arguments, views = manifest["arguments"], _views(manifest)
    time = arguments["time_column"]
    interval = Interval.parse(arguments["interval"])
    refs = [TableRef.parse(given["reference"]) for given in _tables(manifest)]
    read = {ref.name: ref for ref in refs if ref.name in {view.table for view in views}}
    with graph.warehouse.duckdb({**read, "spine.entities": entities}) as connection:
        inside = f"{quote(time)} >= {time_literal(interval.start)} AND {quote(time)} < {time_literal(interval.end)}"
        keys = [*graph.warehouse.key(entities.name), *(k for view in views for k in view.spine_keys), time]
        selected = ", ".join(quote(k) for k in dict.fromkeys(keys))
        connection.execute(f"CREATE TEMP VIEW spine_rows AS SELECT {selected} FROM spine.entities WHERE {inside}")
        specs = [view.spec() for view in views]
        point_in_time_join(connection, "spine_rows", specs, time_column=time).create("joined")
        yield connection


def _silent(graph: Graph, trail: Trail) -> list[Unknown]:
    """Steps that read touched rows and whose results are not followed row by row."""
    followed = (*BROUGHT, *SQL_STEPS, "train", "evaluate", "register", "report")
    reasons = {
        "materialize": "the online store has the newest value of each entity, which may be one of these rows",
        "detect_drift": "its figures are of many rows together",
    }
    found: dict[str, Unknown] = {}
    for reference in trail.touched:
        for reader in graph.index.readers(reference):
            if reader.step in followed:
                continue
            why = reasons.get(reader.step, "the step says nothing of single rows")
            if reader.step in ("build_training_set", "batch_score"):
                details = graph.index.manifest(reader)["details"]
                if "views" in details or "reason" in details:
                    continue
                why = "its manifest does not say how features were looked up: only rows by way of labels are known"
            found.setdefault(reader.node, Unknown(reader.node, [], why)).reads.append(reference)
    return list(found.values())


def _expired(graph: Graph, table: str) -> list[Unknown]:
    """Steps that read the table, or what was made of it, at snapshots that are gone, for what is still there."""
    found = []
    made_of: dict[str, bool] = {}
    for record in graph.index.all("train", "build_training_set", "batch_score", *SQL_STEPS):
        if not any(made.kind == "model" or graph.snapshot(made.reference) is not None for made in record.made):
            continue
        gone = [i.reference for i in record.inputs if i.kind == "table" and _is_gone(graph, i.reference)]
        for reference in gone:
            if reference not in made_of:
                nodes = graph.back(reference).of_kind("table")
                made_of[reference] = any(node.facts["table"] == table for node in nodes)
        reads = [reference for reference in gone if made_of[reference]]
        if reads:
            found.append(Unknown(record.node, reads, "they are gone, so nobody can tell which rows they had"))
    return found


def _is_gone(graph: Graph, reference: str) -> bool:
    return graph.snapshot(reference) is None and not reference.endswith("@0")


# -------------------------------------------------------------------- rows


def _among(left: str, right: str, pairs: Mapping[str, str]) -> str:
    """Condition: a row of ``left`` has its like in ``right``; ``pairs`` are columns of both."""
    same = " AND ".join(f"{left}.{quote(a)} IS NOT DISTINCT FROM {right}.{quote(b)}" for a, b in pairs.items())
    return f"EXISTS (SELECT 1 FROM {right} WHERE {same})"


def _hits(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str], conditions: Mapping[str, str]
) -> dict[str, int]:
    """Table ``hits``: rows that a condition holds for. Returns how many for each, all of them as ``""``."""
    if not conditions:
        return {}
    marked = ", ".join(f"{test} AS {quote(f'by {name}')}" for name, test in conditions.items())
    connection.execute(
        f"CREATE TEMP TABLE hits AS SELECT * FROM (SELECT {_list(columns)}, {marked} FROM {relation})"
        f" WHERE {' OR '.join(quote(f'by {name}') for name in conditions)}"
    )
    counts = ", ".join(["count(*)", *(f"count(*) FILTER ({quote(f'by {name}')})" for name in conditions)])
    row = connection.execute(f"SELECT {counts} FROM hits").fetchone() or ()
    return {name: int(count) for name, count in zip(["", *conditions], row, strict=True) if count}


def _list(columns: Sequence[str]) -> str:
    return ", ".join(map(quote, columns))


def _sample(keys: Any) -> list[dict[str, Any]]:
    order = [(name, "ascending") for name in keys.column_names]
    return plain(keys.sort_by(order).slice(0, SAMPLE)) if keys.num_rows else []
