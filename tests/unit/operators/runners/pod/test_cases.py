"""Each case is shown on a cluster and against the double, and people are told of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.cluster.cases import CASES, Case
from tests.cluster.settings import SETTINGS

TESTS = Path(__file__).resolve().parents[4]
CLUSTER, DOUBLE = TESTS / "cluster", TESTS / "unit/operators/runners/pod"


def named_in(folder: Path) -> set[str]:
    """``file::test`` and ``file::class::test`` of all tests in a folder's files."""
    found = set()
    for path in folder.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found.add(f"{path.name}::{node.name}")
            if isinstance(node, ast.ClassDef):
                inside = (n.name for n in node.body if isinstance(n, ast.FunctionDef))
                found |= {f"{path.name}::{node.name}::{name}" for name in inside}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_has_its_tests_in_both_places(case: Case) -> None:
    assert case.cluster
    assert case.double
    assert set(case.cluster) <= named_in(CLUSTER)
    assert set(case.double) <= named_in(DOUBLE)


def test_each_test_of_a_cluster_is_of_a_case() -> None:
    assert named_in(CLUSTER) == {test for case in CASES for test in case.cluster}


def test_people_are_told_of_cases_and_settings() -> None:
    text = (CLUSTER / "README.md").read_text()
    table = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    assert {case.name for case in CASES} <= table
    assert {f"`{name}`" for name in SETTINGS} <= table
