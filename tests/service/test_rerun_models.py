"""
What a change to a whole loop runs again: a hyperparameter, a rule of the suite, a line of a feature, its definition, an
argument of the gate run exactly what depends on them, from the file to the alias.

Beside ``test_rerun.py``, where the changes are those of files, SQL and code.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airloop.provenance.runs import find_run
from airloop.provenance.why import explain
from airloop.warehouse.artifacts import ArtifactStore
from tests.year_world import LAGS, SUITE, Year, aliases, month, write_world

AGAIN = "again"
FIRST = month(1)


@dataclass(frozen=True)
class Changing(Year):
    """The loop, some arguments of which are other ones by now."""

    instead: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task, arguments in the place of its own."""

    def calls(self) -> dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
        def changed(task: str, arguments: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
            return lambda results: arguments(results) | self.instead.get(task, {})

        return {task: (step, changed(task, arguments)) for task, (step, arguments) in super().calls().items()}

    def ran(self) -> set[str]:
        """Tasks that a run of the same month does not reuse."""
        return {task for task, status in self.run(FIRST, run_id=AGAIN).items() if status == "done"}

    def below(self, first: str) -> set[str]:
        """A task and everything that takes its result, at any remove."""
        found = {first}
        for task, (_, arguments) in self.calls().items():
            asked = Asked()
            arguments(asked)
            if found & asked.keys():
                found.add(task)
        return found


class Asked(dict[str, Any]):
    """Results by task, there once they are asked for."""

    def __missing__(self, task: str) -> Any:
        return self.setdefault(task, {})


def suite(*, highest_wind: int = 90, lowest_pressure: int) -> dict[str, Any]:
    """The loop's own with one rule more."""
    made = deepcopy(SUITE)
    made["expectations"][1]["kwargs"]["max_value"] = highest_wind
    rule = {"column": "pressure", "min_value": lowest_pressure, "max_value": 1100}
    made["expectations"].append({"type": "expect_column_values_to_be_between", "kwargs": rule})
    return made


def test_exactly_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    write_world(tmp_path)
    year = Changing(Year.at(tmp_path / "home", tmp_path).config, tmp_path)
    assert set(year.run(FIRST).values()) == {"done"}
    assert year.ran() == set()
    # Asked by one rule more, which all rows keep, the rows stay the same ones, and two of them are still kept back.
    year.instead["validate"] = {"suite": suite(lowest_pressure=900)}
    assert year.ran() == {"validate"}
    store = ArtifactStore(year.config.artifacts)
    views = tmp_path / "repo" / "views.py"

    def hyperparameter() -> None:
        year.instead["train"] = {"hyperparameters": {"C": 0.1}}

    def rule() -> None:
        year.instead["validate"] = {"suite": suite(highest_wind=100, lowest_pressure=900)}

    def line_of_a_feature() -> None:
        year.instead["lags"] = {"sql": LAGS.replace("30 PRECEDING", "20 PRECEDING")}

    def definition_of_a_feature() -> None:
        views.write_text(views.read_text() + "# Winds in knots.\n")

    def argument_of_the_gate() -> None:
        year.instead["gate"] = {"min_rows": 25}

    changes: list[tuple[Callable[[], None], str, str]] = [
        (hyperparameter, "train", "argument hyperparameters.C: none → 0.1"),
        (rule, "validate", "argument suite.expectations[1].kwargs.max_value: 90 → 100"),
        (line_of_a_feature, "lags", "argument sql: line 3: avg(wind) OVER"),
        (definition_of_a_feature, "online", "input feature_service: storms_v1@"),
        (argument_of_the_gate, "gate", "argument min_rows: 20 → 25"),
    ]
    for change, first, because in changes:
        change()
        again = year.ran()
        assert again == year.below(first), change.__name__
        run = find_run(store, AGAIN)
        assert f"it ran again: {because}" in explain(year.config, run, first).because, change.__name__
        for task in again - {first}:
            assert "it ran again: input" in explain(year.config, run, task).because, (change.__name__, task)
        assert year.ran() == set(), change.__name__
    # Each model that came of it is a version, and the last one is live.
    assert aliases(year.config) == {"champion": 4}
