"""From a model to files and code, and back: on a loop that ran twice."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.errors import BadArgument, ContractBroken, NotFound
from airloop.objects import Folder
from airloop.provenance import lineage_index
from airloop.provenance.lineage import BUILDS_ON, CHECKED_BY, COMPARED, Graph, Lineage
from airloop.provenance.lineage_index import Index
from airloop.provenance.lineage_origin import origins, training_set
from airloop.provenance.lineage_rows import affected
from airloop.provenance.lineage_start import find, find_table
from airloop.provenance.lineage_story import Branch, summary, tree
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import lineage_world as made
from tests.lineage_world import LineageWorld

FLIGHT = next(f for f in made.flights() if f["flight_id"] == "f0050")
ENDS = [made.T0 + n * made.DAYS * 24 * made.HOUR for n in (1, 2)]


@pytest.fixture
def world(lineage_world: LineageWorld) -> LineageWorld:
    return lineage_world


@pytest.fixture
def graph(world: LineageWorld) -> Graph:
    return Graph.open(world.config)


def manifests(world: LineageWorld) -> int:
    return len(list(world.store.root.glob("steps/*/*/*/manifest.json")))


def steps(lineage: Lineage) -> list[str]:
    return sorted(n.facts["run"]["run_id"] + "/" + n.facts["run"]["task_id"] for n in lineage.of_kind("step"))


# -------------------------------------------------------------------- the graph


def test_a_model_leads_back_to_its_files_and_its_code(graph: Graph, world: LineageWorld) -> None:
    found = graph.back("model:/small/1")
    assert {n.facts["name"] for n in found.of_kind("file")} == {"flights.csv", "weather.csv"}
    named = {n.id for n in found.of_kind("table")}
    tasks = ("flights", "weather", "delays", "temperature", "labels", "examples")
    assert named == {world.made(1, task) for task in tasks}
    made_by = [
        f"1/{task}" for task in sorted((*tasks, "extract_flights", "extract_weather", "train", "gate", "register"))
    ]
    assert steps(found) == made_by
    train = next(n for n in found.of_kind("step") if n.facts["step"] == "train")
    manifest = json.loads(world.store.read_bytes(train.facts["manifest"]))
    assert train.facts["code"]["fingerprint"] == manifest["code"]["fingerprint"]
    assert train.facts["code"]["libraries"] == manifest["code"]["libraries"]
    assert train.facts["run"] == manifest["run"]


def test_a_snapshot_rests_on_those_that_it_builds_on(graph: Graph, world: LineageWorld) -> None:
    found = graph.back("model:/small/2")
    builds = {(e.source, e.target) for e in found.edges if e.role == BUILDS_ON}
    tasks = ("flights", "weather", "delays", "temperature", "labels")
    assert builds == {(world.made(1, task), world.made(2, task)) for task in tasks}
    # A training set takes the place of the one before, and nothing of it is kept.
    assert world.made(1, "examples") not in found.nodes
    # The champion that it was compared with is named; what that was made of is not what this was made of.
    assert "model:/small/1" in found.nodes
    assert not found.into("model:/small/1")
    assert "1/train" not in steps(found)
    assert "1/extract_flights" in steps(found)


def test_both_directions_are_one_graph(graph: Graph, world: LineageWorld) -> None:
    model = "model:/small/2"
    back = graph.back(model)
    named_only = {e.source for e in back.edges if e.role in (CHECKED_BY, COMPARED)}
    for node in set(back.nodes) - named_only:
        if node.startswith("small_v1@"):
            continue
        assert model in graph.forward(node).nodes, node
    for node in graph.forward(world.made(1, "flights")).nodes:
        assert world.made(1, "flights") in graph.back(node).nodes, node


def test_a_file_leads_forward_to_models_and_predictions(graph: Graph, world: LineageWorld) -> None:
    (file,) = [r for r in graph.index.references("file:") if "weather" in r]
    found = graph.forward(file)
    assert {"model:/small/1", "model:/small/2", world.made(2, "score")} <= set(found.nodes)
    assert world.made(1, "labels") not in found.nodes


def test_versions_say_when_they_were_live(graph: Graph) -> None:
    (first,) = [
        p for p in graph.back("model:/small/1").nodes["model:/small/1"].facts["live"] if p["alias"] == "champion"
    ]
    assert (first["outcome"], first["run"]) == ("promote", "small/1")


def test_a_run_is_what_its_tasks_relied_on(graph: Graph, world: LineageWorld) -> None:
    found = graph.run("small", "2")
    assert found.nodes[found.start].facts["tasks"]["train"] == "done"
    assert {world.made(2, "score"), world.made(1, "labels")} <= set(found.nodes)
    with pytest.raises(NotFound, match="small/9"):
        graph.run("small", "9")


def test_the_tree_has_each_table_once(graph: Graph) -> None:
    lineage = graph.back("model:/small/2")
    root = tree(lineage)
    lines = list(_flat(root))
    assert root.name == "small version 2"
    names = [line.name for line in lines if not line.repeated]
    assert sorted(n for n in names if "." in n and not n.endswith(".csv")) == sorted(
        {node.facts["table"] for node in lineage.of_kind("table")}
    )
    flights = next(line for line in lines if line.name == "raw.flights")
    assert "2 commits" in flights.notes
    assert any(note.startswith("key ") and "code " in note for note in flights.notes)
    assert len(lines) < 24  # one screen


def _flat(branch: Branch) -> list[Branch]:
    return [branch, *(line for child in branch.branches for line in _flat(child))]


def test_the_report_sums_it_up(graph: Graph, world: LineageWorld) -> None:
    found = summary(graph.back("model:/small/2"))
    assert found["model"] == "small version 2"
    commits = {t["name"]: (t["commits"], t["snapshot"]) for t in found["tables"]}
    assert commits["raw.flights"] == (2, world.made(2, "flights").partition("@")[2])
    assert {c["step"]: c["times"] for c in found["code"]}["extract"] == 4


# -------------------------------------------------------------------- the index


def test_the_index_reads_only_what_is_new(world: LineageWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Folder.read

    def counting(self: Folder, name: str) -> bytes | None:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Folder, "read", counting)
    every = Index(world.store, tmp_path / "index.db").all()
    assert len(read) == len(every) == manifests(world)
    read.clear()
    assert len(Index(world.store, tmp_path / "index.db").all()) == manifests(world)
    assert not read
    os.utime(world.store.root / every[0].path)
    assert len(Index(world.store, tmp_path / "index.db").all()) == manifests(world)
    assert read == [every[0].path]


def test_the_index_forgets_what_is_gone(world: LineageWorld, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    source = next(world.store.root.glob("steps/extract/*/*/manifest.json"))
    name = source.relative_to(world.store.root).as_posix()
    store.publish_bytes(name, source.read_bytes())
    assert [r.path for r in Index(store, tmp_path / "index.db").all()] == [name]
    store.path(name).unlink()
    index = Index(store, tmp_path / "index.db")
    assert index.all() == []
    assert index.references("file:") == []


def test_an_index_of_another_format_is_built_anew(world: LineageWorld, tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    assert len(Index(world.store, tmp_path / "index.db").all()) == manifests(world)


def test_without_write_access_the_index_is_in_memory(world: LineageWorld, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert len(Index(world.store, tmp_path / "file" / "index.db").all()) == manifests(world)


def test_on_a_full_disk_the_index_is_in_memory(
    world: LineageWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = lineage_index._connect, []

    def limited(file: Path | None) -> sqlite3.Connection:
        asked.append(file)
        connection = original(file)
        if file is not None:
            connection.execute("PRAGMA max_page_count = 10")
        return connection

    monkeypatch.setattr(lineage_index, "_connect", limited)
    assert len(Index(world.store, tmp_path / "index.db").all()) == manifests(world)
    assert asked == [tmp_path / "index.db", None]


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.publish_bytes("steps/extract/ab/abcd/manifest.json", b"{}")
    with pytest.raises(ContractBroken, match=r"steps/extract/ab/abcd/manifest\.json"):
        Index(store, tmp_path / "index.db").all()


def test_a_manifest_of_a_newer_airloop_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.publish_bytes("steps/extract/ab/abcd/manifest.json", b'{"format": 2}')
    with pytest.raises(ContractBroken, match=r"abcd/manifest\.json is of format 2, .*; update airloop here"):
        Index(store, tmp_path / "index.db").all()


# -------------------------------------------------------------------- names


def test_everything_is_found_by_what_it_is_called(graph: Graph, world: LineageWorld) -> None:
    assert find(graph, "small@champion") in ("model:/small/1", "model:/small/2")
    assert find(graph, "small@2") == "model:/small/2"
    assert find(graph, "model:/small/1") == "model:/small/1"
    assert find(graph, "raw.weather") == world.made(2, "weather")
    assert find(graph, world.made(1, "labels")) == world.made(1, "labels")
    assert find(graph, "arrivals") == world.made(2, "labels")
    assert find(graph, "small/1") == "run:small/1"
    key = world.results["1", "train"]["key"]
    assert find(graph, key[:12]) == f"step:train/{key}"
    assert find(graph, world.results["1", "train"]["manifest"]) == f"step:train/{key}"
    assert find(graph, world.made(1, "gate", "decision")).startswith("decision:")
    assert find(graph, "flights.csv").startswith("file:flights.csv#")


def test_what_sources_fill_comes_first_among_tables_of_one_name(graph: Graph) -> None:
    assert find_table(graph, "flights") == "raw.flights"


@pytest.mark.parametrize(
    ("text", "near"),
    [("smal@champion", "small@champion"), ("raw.fligths", "raw.flights"), ("wether.csv", "weather.csv")],
)
def test_what_is_misspelt_gets_near_names(graph: Graph, text: str, near: str) -> None:
    with pytest.raises(NotFound) as error:
        find(graph, text)
    assert near in str(error.value)


def test_a_version_that_is_not_there_is_an_error(graph: Graph) -> None:
    with pytest.raises(NotFound, match="model:/small/9"):
        find(graph, "small@9")


# -------------------------------------------------------------------- rows forward


def test_a_row_leads_to_all_that_depends_on_it_and_nothing_else(graph: Graph, world: LineageWorld) -> None:
    """Against what follows from the times alone, worked out without SQL."""
    found = affected(graph, "raw.flights", f"flight_id = '{FLIGHT['flight_id']}'")
    assert found.rows == 1
    rows = {s.reference: s.rows for s in found.snapshots if not s.reference.startswith("features.daily@")}
    hours = len(made.delay_hours(FLIGHT, ENDS[1]))
    assert hours == 6
    expected = dict.fromkeys([world.made(run, task) for run in (1, 2) for task in ("flights", "labels", "entities")], 1)
    expected |= dict.fromkeys([world.made(run, "delays") for run in (1, 2)], hours)
    assert rows == expected
    used = made.examples_that_used(FLIGHT, ENDS[1])
    assert used
    for run in (1, 2):
        (examples,) = [t for t in found.training_sets if t.reference == world.made(run, "examples")]
        assert examples.through == {"label": 1, "delays": len(used)}
        assert {e["flight_id"] for e in examples.sample} == used | {FLIGHT["flight_id"]}
    assert [(m.versions, m.learned) for m in found.models] == [
        (["model:/small/1"], len(used) + 1),
        (["model:/small/2"], len(used) + 1),
    ]


def test_predictions_are_affected_through_the_model_and_through_features(graph: Graph, world: LineageWorld) -> None:
    last = max(f["flight_id"] for f in made.flights() if f["landed"] < ENDS[0])
    flight = next(f for f in made.flights() if f["flight_id"] == last)
    found = affected(graph, "raw.flights", f"flight_id = '{last}'")
    (scores,) = found.predictions
    later = {f["flight_id"] for f in made.flights() if f["sched"] >= ENDS[0]}
    assert scores.reference == world.made(2, "score")
    assert scores.through["delays"] == len(made.examples_that_used(flight, ENDS[1]) & later)
    assert "entity" not in scores.through
    # It was held out in the first training set: the first model, which scores, has learned nothing from it.
    first = next(m for m in found.models if m.versions == ["model:/small/1"])
    assert (first.learned, first.measured > 0) == (0, True)
    assert first.decisions == [world.made(1, "gate", "decision")]
    assert "model" not in scores.through


def test_all_scores_of_a_model_that_learned_from_it_depend_on_a_row(graph: Graph, world: LineageWorld) -> None:
    found = affected(graph, "raw.flights", f"flight_id = '{FLIGHT['flight_id']}'")
    (scores,) = found.predictions
    assert scores.model == "model:/small/1"
    assert scores.rows == scores.through["model"] == graph.warehouse.count(TableRef.parse(world.made(2, "score")))


def test_a_label_leads_forward_too(graph: Graph, world: LineageWorld) -> None:
    found = affected(graph, "labels.arrivals", "flight_id = 'f0050'")
    assert {s.reference for s in found.snapshots} == {world.made(1, "labels"), world.made(2, "labels")}
    assert [t.through for t in found.training_sets] == [{"label": 1}, {"label": 1}]


def test_a_row_is_looked_for_by_its_key_in_every_snapshot(config: Config, warehouse: Warehouse) -> None:
    """Under other values too, and not where it was deleted."""
    schema = pa.schema([pa.field("trip", pa.int64(), nullable=False), pa.field("carrier", pa.string())])
    warehouse.ensure("raw.trips", schema, key=["trip"])

    def put(key: str, **columns: list[Any]) -> int:
        return warehouse.commit("raw.trips", pa.table(columns, schema), key=key, mode="upsert").snapshot

    first = put("k1", trip=[1, 2], carrier=["AA", "UA"])
    corrected = put("k2", trip=[1], carrier=["B6"])
    warehouse.delete("raw.trips", "trip = 1", key="k3")
    back = put("k4", trip=[1], carrier=["DL"])
    found = affected(Graph.open(config), "raw.trips", "carrier = 'AA'")
    assert [(s.reference, s.rows, s.live) for s in found.snapshots] == [
        (f"raw.trips@{first}", 1, False),
        (f"raw.trips@{corrected}", 1, False),
        (f"raw.trips@{back}", 1, True),
    ]
    assert affected(Graph.open(config), "raw.trips", "true").rows == 2


def test_a_table_without_rows_has_none_that_matter(config: Config, warehouse: Warehouse) -> None:
    warehouse.ensure("raw.trips", pa.schema([("trip", pa.int64())]))
    assert affected(Graph.open(config), "raw.trips", "trip = 1").rows == 0


def test_a_row_that_is_not_there_affects_nothing(graph: Graph) -> None:
    found = affected(graph, "raw.flights", "flight_id = 'nobody'")
    assert (found.rows, found.snapshots, found.training_sets, found.models, found.predictions) == (0, [], [], [], [])


def test_sql_on_top_of_sql_is_followed_too(graph: Graph, world: LineageWorld) -> None:
    made_of = world.results["2", "delays"]
    daily = world.step(
        "2", "daily", "sql",
        {
            "sql": "SELECT carrier, CAST(event_time AS DATE) AS day, sum(flights)::BIGINT AS n FROM d GROUP BY ALL",
            "inputs": {"d": made_of}, "table": "features.daily", "key": ["carrier", "day"],
        },
        _interval(2),
    )  # fmt: skip
    found = affected(Graph.open(world.config), "raw.flights", "flight_id = 'f0050'")
    (snapshot,) = [s for s in found.snapshots if s.reference == daily["table"]]
    days = {str(hour.date()) for hour in made.delay_hours(FLIGHT, ENDS[1])}
    assert {(row["carrier"], row["day"]) for row in snapshot.sample} == {(FLIGHT["carrier"], day) for day in days}
    # A row that is one of many in a sum is not said to come from any single one.
    (row,) = origins(Graph.open(world.config), daily["table"], f"carrier = 'AA' AND day = DATE '{min(days)}'")
    assert (row.several, row.rows) == ([str(made_of["table"])], [])


def test_what_says_nothing_of_rows_is_named(graph: Graph, world: LineageWorld) -> None:
    world.step(
        "2", "monitor", "detect_drift",
        {"model": "small@champion", "current": world.results["2", "examples"], "labels": world.results["2", "labels"]},
        _interval(2),
    )  # fmt: skip
    found = affected(Graph.open(world.config), "raw.flights", "flight_id = 'f0050'")
    (unknown,) = found.unknown
    assert unknown.step.startswith("step:detect_drift/")
    assert unknown.reads == [world.made(2, "labels")]


def _interval(number: int) -> Any:
    from airloop.contract import Interval

    return Interval(ENDS[number - 1] - made.DAYS * 24 * made.HOUR, ENDS[number - 1])


def test_a_training_set_that_is_gone_is_said(
    graph: Graph, world: LineageWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = world.made(1, "examples")
    original = Graph.history

    def without(self: Graph, table: str) -> Any:
        return {i: s for i, s in original(self, table).items() if f"{table}@{i}" != gone}

    monkeypatch.setattr(Graph, "history", without)
    found = affected(graph, "raw.flights", f"flight_id = '{FLIGHT['flight_id']}'")
    assert [t.reference for t in found.training_sets] == [world.made(2, "examples")]
    (unknown,) = [u for u in found.unknown if u.step.startswith("step:train/")]
    assert unknown.reads == [gone]
    # Of a table that it was not made of there is nothing to say.
    other = affected(graph, "entities.flights", "flight_id = 'f0050'")
    assert not [u for u in other.unknown if u.step.startswith("step:train/")]


def test_a_predicate_that_cannot_be_understood_is_an_error(graph: Graph) -> None:
    with pytest.raises(BadArgument, match="no_such_column"):
        affected(graph, "raw.flights", "no_such_column = 1")


# -------------------------------------------------------------------- rows back


def test_an_example_leads_back_to_lines_of_the_files(graph: Graph, world: LineageWorld) -> None:
    reference = training_set(graph, "model:/small/2")
    assert reference == world.made(2, "examples")
    other = next(f for f in made.flights()[50:] if f["origin"] != "LGA" and len(_in_delays(f)) > 1)
    (example,) = origins(graph, reference, f"flight_id = '{other['flight_id']}'")
    by_role = {row.role: row for row in example.rows}
    (flight,) = by_role["label"].rows
    assert flight.key == {"flight_id": other["flight_id"]}
    assert flight.line is not None
    assert _line(world.data / "flights.csv", flight.line)["flight_id"] == other["flight_id"]
    assert flight.file == next(f for f in graph.index.references("file:") if "flights" in f)
    (sky,) = by_role["weather"].rows
    assert sky.line is not None
    line = _line(world.data / "weather.csv", sky.line)
    assert line["origin"] == other["origin"]
    assert line["at"] == by_role["weather"].key["event_time"]
    # Several flights are in it, and it is not claimed to be one of them.
    assert by_role["delays"].several == [world.made(1, "flights")]
    assert by_role["delays"].rows == []


def test_a_figure_of_one_row_is_traced_though_others_are_of_several(graph: Graph, world: LineageWorld) -> None:
    found = origins(graph, world.made(2, "delays"), "flights = 1", limit=1)
    (source,) = found[0].rows
    assert found[0].several == []
    flight = next(f for f in made.flights() if f["flight_id"] == source.key["flight_id"])
    assert found[0].key["event_time"] in {str(h) for h in made.delay_hours(flight, ENDS[1])}


READINGS = pa.table(
    {
        "id": list(range(8)),
        "sensor": ["a", "b", "c", "three", "d", "three", "three", "e"],
        "value": [1, 2, 3, 9, 4, 9, 9, 5],
        "tied": ["a", "b", "c", "d", "lone", "tie", "tie", "e"],
    }
)
"""Any two of the ids 3, 5 and 6 agree in each binary digit with 7; 5 and 6 agree in one with 4."""


def _of_readings(config: Config, warehouse: Warehouse, run_step: Any, where: str, sql: str) -> dict[str, Any]:
    """For each row of a statement's result the ids that it is said to come from; ``several``, or the note."""
    warehouse.ensure("raw.readings", READINGS.schema, key=["id"])
    given = warehouse.commit("raw.readings", READINGS, key="readings").ref
    made_of = run_step("sql", sql=sql, inputs={"r": str(given)}, table="features.readings", key=["k"])
    reference = made_of["outputs"]["table"]["reference"]
    return {
        row.key["k"]: [source.key["id"] for source in row.rows]
        or ("several" if row.several == [str(given)] else row.note)
        for row in origins(Graph.open(config), reference, where, limit=10)
    }


@pytest.mark.parametrize("where", ["k IN ('tie', 'lone')", "k = 'tie'", "true"])
def test_rows_that_stand_in_for_each_other_are_several_and_never_another_one(
    config: Config, warehouse: Warehouse, run_step: Any, where: str
) -> None:
    expected = {"a": [0], "b": [1], "c": [2], "d": [3], "lone": [4], "e": [7], "tie": "several"}
    for sql in (
        "SELECT tied AS k, max(value) AS most FROM r GROUP BY tied",
        "SELECT DISTINCT tied AS k, value AS most FROM r",
        "SELECT k, 1::BIGINT AS most FROM (VALUES ('lone'), ('tie'), ('a'), ('b'), ('c'), ('d'), ('e')) names(k)"
        " WHERE EXISTS (SELECT 1 FROM r WHERE tied = k)",
    ):
        found = _of_readings(config, warehouse, run_step, where, sql)
        assert found == {k: v for k, v in expected.items() if k in found}, sql
        assert "tie" in found


def test_two_of_three_do_not_spell_a_fourth(config: Config, warehouse: Warehouse, run_step: Any) -> None:
    sql = "SELECT sensor AS k, count(*) > 1 AS often FROM r GROUP BY ALL"
    found = _of_readings(config, warehouse, run_step, "k IN ('three', 'e')", sql)
    assert found == {"three": "several", "e": [7]}


def test_a_row_of_its_own_making_says_so(config: Config, warehouse: Warehouse, run_step: Any) -> None:
    sql = "SELECT 'x' AS k UNION ALL SELECT sensor FROM r WHERE id = 0"
    found = _of_readings(config, warehouse, run_step, "true", sql)
    assert found == {"a": [0], "x": "it stays the same whatever its step reads"}


def test_rows_that_are_not_there_have_no_origin(graph: Graph, world: LineageWorld) -> None:
    with pytest.raises(NotFound, match="has no row"):
        origins(graph, world.made(1, "labels"), "flight_id = 'nobody'")
    with pytest.raises(BadArgument, match="no_such"):
        origins(graph, world.made(1, "labels"), "no_such = 1")


def _in_delays(flight: Any) -> list[str]:
    hour = made.newest_delays(flight)
    return made.flights_in(flight["carrier"], hour) if hour is not None else []


def _line(path: Path, number: int) -> dict[str, str]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))[number - 1]
