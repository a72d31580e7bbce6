"""``airloop lineage``: what people and scripts see."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from airloop.cli import main
from tests.lineage_world import LineageWorld

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lineage(lineage_world: LineageWorld, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output, standard error of the command."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["--home", str(lineage_world.config.home), "lineage", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


def test_a_model_is_a_tree_on_one_screen(lineage: Run, lineage_world: LineageWorld) -> None:
    code, out, _ = lineage("small@2")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("small version 2")
    assert len(lines) < 24
    for name in ("raw.flights", "labels.arrivals", "features.delays", "flights.csv", "weather.csv", "small_v1"):
        assert name in out
    assert lineage_world.made(2, "examples").partition("@")[2] in out
    assert "(above)" in out
    assert len(lineage("small@2", "--depth", "2")[1].splitlines()) == 3


def test_scripts_get_the_whole_graph(lineage: Run) -> None:
    document = json.loads(lineage("small@2", "--json")[1])
    ids = {node["id"] for node in document["nodes"]}
    assert document["start"] == "model:/small/2"
    assert {end for edge in document["edges"] for end in (edge["source"], edge["target"])} <= ids
    assert document == json.loads(lineage("model:/small/2", "--json")[1])


def test_the_graph_can_be_drawn(lineage: Run) -> None:
    code, out, _ = lineage("small@1", "--mermaid")
    assert (code, out.splitlines()[0]) == (0, "flowchart LR")
    assert "model:/small/1" in out


def test_forward_lists_what_was_made(lineage: Run, lineage_world: LineageWorld) -> None:
    _, out, _ = lineage("weather.csv", "--forward")
    assert "model:/small/2" in out
    assert "predictions.small" in out
    last = lineage_world.made(2, "score")
    assert "Nothing was made of" in lineage(last, "--forward")[1]


@pytest.mark.parametrize("question", [("--where", "flight_id = 'f0050'"), ("--row", "f0050")])
def test_a_row_says_what_is_affected(lineage: Run, question: tuple[str, str]) -> None:
    code, out, _ = lineage("flights", *question)
    assert code == 0
    for text in ("raw.flights: 1 row (flight_id=f0050)", "depend on them", "1 label", "model:/small/1", "predictions"):
        assert text in out
    document = json.loads(lineage("flights", *question, "--json")[1])
    assert document["models"][0]["versions"] == ["model:/small/1"]


def test_rows_say_where_they_came_from(lineage: Run) -> None:
    code, out, _ = lineage("small", "--rows", "flight_id = 'f0100'")
    assert code == 0
    assert "row 101 of flights.csv" in out
    (example,) = json.loads(lineage("small", "--rows", "flight_id = 'f0100'", "--json")[1])
    assert example["rows"][0]["role"] == "label"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("smal@champion",), "did you mean small@champion"),
        (("flights", "--row", "1", "2"), "the key of raw.flights is flight_id"),
        (("flights", "--where", "x = 1"), "x"),
        (("small", "--forward", "--rows", "true"), "ask one at a time"),
        (("small/1", "--forward"), "name a table, a file or a model"),
        (("no_such_table", "--where", "true"), "there is no table no_such_table"),
    ],
)
def test_mistakes_are_said(lineage: Run, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = lineage(*arguments)
    assert code == 65
    assert said in err


def test_a_row_that_is_nowhere_is_said(lineage: Run) -> None:
    assert lineage("flights", "--row", "nobody")[1].startswith("No snapshot of raw.flights has a row")
