"""What all benchmarks share: targets, results, the page that is written from them."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import common, pages
from benchmarks.common import Measured, finish, middle, own_process, row


def measured(seconds: float, peak_mb: float = 100.0) -> Measured:
    return Measured(seconds, peak_mb)


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({}, None),
        ({"limit_s": 2.0}, True),
        ({"limit_s": 1.9}, False),
        ({"limit_mb": 99.0}, False),
        ({"limit_s": 2.0, "limit_mb": 100.0}, True),
        ({"limit_s": 2.0, "limit_mb": 99.0}, False),
    ],
)
def test_a_target_is_met_if_all_of_its_limits_are_kept(limits: dict[str, float], met: bool | None) -> None:
    line = row("work", "1 row", measured(2.0), measured(4.0), peer="peer", **limits)
    assert (line["met"], line["ratio"]) == (met, 0.5)


def test_the_median_run_stands_for_all() -> None:
    times = iter([3.0, 1.0, 2.0])
    found = middle(3, lambda: measured(next(times)))
    assert (found.seconds, found.all_s) == (2.0, (1.0, 2.0, 3.0))


@pytest.mark.parametrize(("check", "limit_s", "code"), [(True, 1.0, 1), (True, 3.0, 0), (False, 1.0, 0)])
def test_a_missed_target_fails_a_run_that_checks(tmp_path: Path, check: bool, limit_s: float, code: int) -> None:
    out = tmp_path / "work.json"
    arguments = argparse.Namespace(runs=1, quick=False, check=check, out=out, machine=common.machine())
    assert finish("work", arguments, [row("work", "1 row", measured(2.0), limit_s=limit_s)]) == code
    kept = json.loads(out.read_text())
    assert (kept["rows"][0]["ours_s"], kept["machine"]["processors"] > 0) == (2.0, True)
    written = pages.rendered(tmp_path)
    assert ("**missed**" in written) == (limit_s < 2.0)


def work(megabytes: int) -> dict[str, Any]:
    return {"seconds": 0.5, "length": len(b"x" * (megabytes << 20))}


def sleepy(calls: int) -> dict[str, Any]:
    for _ in range(calls):
        nap()
    return {"seconds": 0.0}


def nap() -> None:
    time.sleep(0.01)


def test_work_runs_in_a_process_of_its_own() -> None:
    small = own_process("tests.unit.benchmarks.test_common:work", megabytes=1)
    large = own_process("tests.unit.benchmarks.test_common:work", megabytes=200)
    assert (small.seconds, small.more) == (0.5, {"length": 1 << 20})
    assert 150 < large.peak_mb - small.peak_mb < 250
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'gigabytes'"):
        own_process("tests.unit.benchmarks.test_common:work", gigabytes=1)


def test_a_flame_graph_shows_who_called_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_FLAMES", str(tmp_path))
    own_process("tests.unit.benchmarks.test_common:sleepy", calls=20)
    drawn = (tmp_path / "tests.unit.benchmarks.test_common-sleepy-20.svg").read_text()
    names = [node.text or "" for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}title")]
    shares = {name.split()[0].rpartition(":")[2]: float(name.split()[1].rstrip("%")) for name in names[1:]}
    assert shares["nap"] > 50
    assert shares["sleepy"] >= shares["nap"]


def test_the_page_shows_the_results_that_are_kept() -> None:
    """``python -m benchmarks.pages`` brings it up to date."""
    text = pages.PAGE.read_text()
    assert pages.page(text) == text


WHY_MISSED = {
    "parse: ": "Parse.",
    "extract: .*, [14] times the year": "Extract, the year once and four times.",
    "extract: extract parquet, unpartitioned, (16|64) times": (
        "Extract, Parquet into an unpartitioned table, sixteen and sixty-four times."
    ),
    "materialize: .*into SQLite": "SQLite, ",
    "materialize: .*into Redis": "Redis, ",
    "join: .*, regular": "Join, where arrivals are regular.",
    "join: .*10,000,000 labels": "Join of ten million labels.",
    "loop: ": "Loop.",
    "thousand: ": "Thousand.",
}
"""By what ``BENCHMARK: WORK, SIZE`` of missed rows begins with: how the paragraph of Limits begins that tells why."""


def why_missed(row_of: str, limits: str) -> list[str]:
    """Beginnings of the paragraphs that tell why a row is missed."""
    wanted = [begin for pattern, begin in WHY_MISSED.items() if re.match(pattern, row_of)]
    return [begin for begin in wanted if f"\n- **{begin}" in limits]


def test_a_missed_target_has_its_flame_graph_and_its_limit() -> None:
    text = pages.PAGE.read_text()
    limits = text[text.index("## Limits") :]
    for path in sorted(pages.RESULTS.glob("*.json")):
        name = path.stem.partition("-")[0]
        missed = [line for line in json.loads(path.read_text()).get("rows", []) if line["met"] is False]
        for line in missed:
            row_of = f"{name}: {line['work']}, {line['size']}"
            assert why_missed(row_of, limits), f"{row_of} is missed: say why in Limits, and in WHY_MISSED where"
        if missed:
            graphs = sorted((pages.PAGE.parent / "images" / "flames").glob(f"{name}*.svg"))
            assert graphs, f"{path.name} has a missed target and docs/images/flames no {name}*.svg"
            for graph in graphs:
                assert f"images/flames/{graph.name}" in limits


def test_a_row_that_no_paragraph_tells_of_is_noticed() -> None:
    limits = "## Limits\n\n- **SQLite, against one.** Because.\n"
    assert why_missed("materialize: materialize into SQLite, 1 entity", limits) == ["SQLite, "]
    assert why_missed("materialize: materialize into Redis, 1 entity", limits) == []
    assert why_missed("extract: extract csv, by month, 16 times the year, 5,388,416 rows", limits) == []
