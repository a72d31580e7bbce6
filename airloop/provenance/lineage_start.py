"""What people call things, and the node of the lineage graph that they mean."""

from __future__ import annotations

import re

from airloop.errors import BadArgument, NotFound
from airloop.provenance.lineage import Graph
from airloop.provenance.lineage_index import Record
from airloop.provenance.runs import nearest
from airloop.reference import Scope
from airloop.registry.refs import CHAMPION, ModelRef
from airloop.warehouse.refs import TableRef

_KEY = re.compile(r"[0-9a-f]{8,64}")
_WAYS = (
    "name a model (delay@champion, model:/delay/3), a table (raw.flights, raw.flights@SNAPSHOT), a run (DAG/RUN), "
    "a step's key, a decision, a report's page or a source file"
)


def find(graph: Graph, text: str) -> str:
    """
    Id of the node that a text names; ``run:DAG/RUN`` for a run.

    :raises NotFound: nothing is called that; names what is called nearly so.
    :raises BadArgument: it may mean several things.
    """
    asked = text.strip()
    # A run before a model: DAG/RUN may look like name/version. Tables without their namespace come last.
    ways = (_exact, _table, _run, _model, _short_table, _step, _file)
    found = next((node for way in ways if (node := way(graph, asked)) is not None), None)
    if found is None:
        near = nearest(asked, _names(graph))
        raise NotFound(f"nothing is called {text!r}", f"did you mean {', '.join(near)}?" if near else _WAYS)
    return found


def find_table(graph: Graph, text: str) -> str:
    """
    Name of the table that a text names, with or without its namespace; of several that sources fill.

    :raises NotFound: there is none.
    :raises BadArgument: there are several.
    """
    tables = graph.warehouse.tables()
    name = text.strip().partition("@")[0]
    if name in tables:
        return name
    short = [t for t in tables if t.partition(".")[2] == name]
    if len(short) > 1:
        brought = {r.outputs[0].reference.partition("@")[0] for r in graph.index.all("extract") if r.outputs}
        short = [t for t in short if t in brought] or short
    if len(short) > 1:
        raise BadArgument(f"{text} may be {' or '.join(short)}", "write the namespace too")
    if not short:
        near = nearest(name, [*tables, *(t.partition(".")[2] for t in tables)])
        advice = f"did you mean {', '.join(near)}?" if near else "see `airloop tables`"
        raise NotFound(f"there is no table {name}", advice)
    return short[0]


def _exact(graph: Graph, text: str) -> str | None:
    """The id itself, as an earlier answer gave it; or the address of a page or a manifest."""
    if text.startswith(("step:", "file:", "decision:")):
        known = graph.index.makers(text) or graph.index.readers(text) or graph.index.by_key(text.rpartition("/")[2])
        if known:
            return text
    path = graph.store.name_of(text) or text.removeprefix(f"{graph.store}/")
    record = graph.index.record(path)
    if record is not None:
        return record.node
    if path.startswith("reports/"):
        page = graph.store.uri(path)
        made: list[Record] = [r for r in graph.index.all("report") if page in r.slim["links"].values()]
        return made[-1].node if made else None
    return None


def _table(graph: Graph, text: str) -> str | None:
    if text.partition("@")[0] not in graph.warehouse.tables():
        return None
    return str(TableRef.parse(text).resolve(Scope(graph.config)))


def _short_table(graph: Graph, text: str) -> str | None:
    if all(t.partition(".")[2] != text for t in graph.warehouse.tables()):
        return None
    return str(TableRef(find_table(graph, text)).resolve(Scope(graph.config)))


def _model(graph: Graph, text: str) -> str | None:
    try:
        ref = ModelRef.parse(text)
    except ValueError:
        # A model's name alone is its champion, if it ever had one.
        if text not in graph.models():
            return None
        ref = ModelRef(text, alias=CHAMPION)
    if ref.name and ref.name not in graph.models() and not ref.version:
        return None
    found = ref.resolve(Scope(graph.config)) if ref.alias or graph.maker(str(ref)) is None else ref
    if found.absent:
        raise NotFound(f"{text} names no version", f"see `airloop models {ref.name}`")
    return str(found)


def _run(graph: Graph, text: str) -> str | None:
    from airloop.frame import history

    dag_id, separator, run_id = text.removeprefix("run:").partition("/")
    if separator and dag_id in history.loops(graph.store) and run_id in history.run_ids(graph.store, dag_id):
        return f"run:{dag_id}/{run_id}"
    return None


def _step(graph: Graph, text: str) -> str | None:
    if not _KEY.fullmatch(text):
        return None
    found = graph.index.by_key(text)
    if len(found) > 1:
        raise BadArgument(f"{len(found)} keys begin with {text}", "write more of it")
    return found[0].node if found else None


def _file(graph: Graph, text: str) -> str | None:
    """By its name, or by the beginning of its SHA-256; of several contents of a name the last that came."""
    files = graph.index.references("file:")
    named = [f for f in files if f.removeprefix("file:").rpartition("#")[0] == text]
    named = named or [f for f in files if _KEY.fullmatch(text) and f.rpartition("#")[2].startswith(text)]
    return max(named, key=lambda f: graph.index.readers(f)[-1].finished_at, default=None)


def _names(graph: Graph) -> list[str]:
    from airloop.frame import history

    loops = history.loops(graph.store)
    runs = [f"{dag}/{run}" for dag in loops for run in history.run_ids(graph.store, dag)]
    models = [f"{m}@{CHAMPION}" for m in graph.models()]
    files = [f.removeprefix("file:").rpartition("#")[0] for f in graph.index.references("file:")]
    return [*graph.warehouse.tables(), *graph.models(), *models, *graph.index.references("model:/"), *runs, *files]
