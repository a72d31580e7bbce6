"""
A run with nothing changed writes nothing; a changed byte, argument or line of code runs exactly what depends on it.

Steps run in this process, through the frame; the graph and the arguments are those of real DAGs. (A whole loop with
state on servers: ``test_year_on_servers.py``.)
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.frame.manifest import read_manifest
from airloop.provenance.runs import find_run
from airloop.provenance.why import explain
from airloop.sources.files import SETTLED_S
from airloop.steps import load
from airloop.warehouse.artifacts import ArtifactStore
from airloop_operators import ExtractOperator, SqlOperator, StepOperator, ValidateOperator
from tests import contents
from tests.places import ALONE_AND_TOGETHER
from tests.year_world import SOURCE, SUITE, Year, month, write_world


def test_a_second_run_of_a_whole_loop_writes_nothing(tmp_path: Path) -> None:
    write_world(tmp_path)
    time.sleep(SETTLED_S)  # digests of files that changed a moment ago are not remembered yet
    year = Year.at(tmp_path / "home", tmp_path)
    for number in (1, 2):
        assert set(year.run(month(number)).values()) == {"done"}
    before = contents.of_home(year.config.home)
    assert {"catalog.db", "mlflow.db", "online.db"} <= before.keys()
    # The same run cleared, and another run of the same interval; the older interval comes last.
    for number, run_id in ((2, "2013-02"), (2, "by-hand"), (1, "by-hand")):
        statuses = year.run(month(number), run_id=run_id)
        assert statuses == dict.fromkeys(statuses, "reused"), run_id
    assert contents.of_home(year.config.home) == before


STATIONS = {
    "name": "stations",
    "table": "raw.stations",
    "format": "csv",
    "columns": {"station": {"type": "string", "nullable": False}, "height": {"type": "double"}},
    "key": ["station"],
}
TEAM = '''
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef
from {helper} import rounded


@step()
def highest(ctx: StepContext, *, table: TableRef, digits: int = 1) -> StepResult:
    """The highest mean."""
    rows = ctx.warehouse.scan(table).read_all().to_pylist()
    return StepResult(outputs={{"table": table}}, metrics={{"highest": rounded(max(r["mean"] for r in rows), digits)}})
'''
HELPER = "def rounded(value: float, digits: int) -> float:\n    return round(value, digits)\n"


@dataclass
class Loop:
    """A loop of two sources that meet in a step of a team's own, and the files that it is made of."""

    config: Config
    folder: Path
    team: str
    """Name of the module with the team's step; what it imports is ``TEAM_helper``."""

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        for module in (self.team, f"{self.team}_helper"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert text.count(old) >= 1
        self.write(name, text.replace(old, new, 1))

    def dag(self, **changed: Any) -> DAG:
        with DAG("meeting", schedule=None) as dag:
            rows = ExtractOperator(task_id="readings", source=SOURCE, files=str(self.folder / "readings.csv"))
            good = ValidateOperator(task_id="validate", table=rows.output, suite=SUITE, max_quarantined_share=0.1)
            places = ExtractOperator(task_id="stations", source=STATIONS, files=str(self.folder / "stations.csv"))
            means = SqlOperator(
                task_id="means", sql=changed.get("means", "SELECT station, avg(wind) AS mean FROM r GROUP BY station"),
                inputs={"r": good.output}, table="features.means", key=["station"],
            )  # fmt: skip
            SqlOperator(
                task_id="storms", sql="SELECT station, max(storm) AS storms FROM r GROUP BY station",
                inputs={"r": good.output}, table="features.storms", key=["station"],
            )  # fmt: skip
            met = SqlOperator(
                task_id="met", sql="SELECT m.station, m.mean + s.height AS mean FROM m JOIN s USING (station)",
                inputs={"m": means.output, "s": places.output}, table="features.met", key=["station"],
            )  # fmt: skip
            top = StepOperator(
                task_id="highest", step=f"{self.team}:highest",
                arguments={"table": met.output, "digits": changed.get("digits", 1)},
            )  # fmt: skip
            SqlOperator(
                task_id="last", sql="SELECT station, mean FROM t", inputs={"t": top.output}, table="features.last",
                key=["station"],
            )  # fmt: skip
        return dag

    def run(self, dag: DAG, run_id: str = "again") -> dict[str, str]:
        """Run a DAG's tasks in their order, as its operators call for; status by task."""
        from airflow.sdk.definitions.xcom_arg import XComArg

        results: dict[str, Any] = {}
        statuses: dict[str, str] = {}

        def filled(value: Any) -> Any:
            if isinstance(value, XComArg):
                return results[value.operator.task_id]  # type: ignore[attr-defined]
            if isinstance(value, Mapping):
                return {name: filled(inner) for name, inner in value.items()}
            return [filled(inner) for inner in value] if isinstance(value, list | tuple) else value

        for task in dag.topological_sort():
            assert isinstance(task, StepOperator)
            step = load(task.step or task.step_name)
            call = Call(
                step.name, filled(task.call_arguments()), "", RunInfo("meeting", run_id, task.task_id), INTERVAL
            )
            receipt, error = execute(step, call, self.config, Redactor([]))
            if error is not None:
                raise error
            manifest = read_manifest(ArtifactStore(self.config.artifacts), step.name, receipt.key)
            assert manifest is not None
            outputs = {role: output["reference"] for role, output in manifest["outputs"].items()}
            results[task.task_id] = outputs | {"step": step.name, "key": receipt.key}
            statuses[task.task_id] = receipt.status
        return statuses


INTERVAL: Interval = month(1)


@pytest.fixture
def loop(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    team = re.sub(r"\W", "_", f"team_of_{tmp_path.name}")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Loop(config, tmp_path, team)
    made.write("stations.csv", "station,height\nnorth,100\nsouth,20\n")
    made.write(f"{team}.py", TEAM.format(helper=f"{team}_helper"))
    made.write(f"{team}_helper.py", HELPER)
    write_world(tmp_path)
    yield made
    made.write(f"{team}.py", "")


def below(dag: DAG, *tasks: str) -> set[str]:
    """These tasks and everything that depends on them."""
    return {*tasks, *(t for task in tasks for t in dag.get_task(task).get_flat_relative_ids(upstream=False))}


@ALONE_AND_TOGETHER
def test_exactly_what_depends_on_a_change_runs_again(loop: Loop) -> None:
    dag = loop.dag()
    assert set(loop.run(dag, "first").values()) == {"done"}
    store = ArtifactStore(loop.config.artifacts)

    def ran(dag: DAG) -> set[str]:
        return {task for task, status in loop.run(dag).items() if status == "done"}

    def why(task: str) -> str:
        return explain(loop.config, find_run(store, "again"), task).because

    assert ran(dag) == set()

    def a_byte_of_an_input() -> DAG:
        loop.edit("stations.csv", "north,100", "north,101")
        return dag

    def a_byte_of_the_other_input() -> DAG:
        text = (loop.folder / "readings.csv").read_text().splitlines(keepends=True)
        cells = text[1].split(",")
        cells[2], cells[4] = f"{(float(cells[2]) + 1) % 50:.2f}", f"{1 - int(cells[4])}\n"
        loop.write("readings.csv", "".join([text[0], ",".join(cells), *text[2:]]))
        return dag

    def an_argument() -> DAG:
        return loop.dag(means="SELECT station, avg(wind) + 1 AS mean FROM r GROUP BY station")

    def an_argument_of_a_step_of_ones_own() -> DAG:
        return loop.dag(means="SELECT station, avg(wind) + 1 AS mean FROM r GROUP BY station", digits=2)

    def a_line_of_its_code() -> DAG:
        loop.edit(f"{loop.team}.py", '"""The highest mean."""', '"""The highest mean of all."""')
        return an_argument_of_a_step_of_ones_own()

    def a_line_of_what_its_code_imports() -> DAG:
        loop.edit(f"{loop.team}_helper.py", "return round(value, digits)", "return round(value + 0, digits)")
        return an_argument_of_a_step_of_ones_own()

    changes: list[tuple[Callable[[], DAG], str, str]] = [
        (a_byte_of_an_input, "stations", "input file stations.csv: "),
        (a_byte_of_the_other_input, "readings", "input file readings.csv: "),
        (an_argument, "means", "argument sql: SELECT station, avg(wind) AS mean"),
        (an_argument_of_a_step_of_ones_own, "highest", "argument digits: 1 → 2"),
        (a_line_of_its_code, "highest", f"code changed: {loop.team}"),
        (a_line_of_what_its_code_imports, "highest", f"code changed: {loop.team}_helper"),
    ]
    for change, first, because in changes:
        dag = change()
        again = ran(dag)
        # What made the very same rows again holds the others back.
        same = {"last"} if first == "highest" else set()
        assert again == below(dag, first) - same, change.__name__
        assert f"it ran again: {because}" in why(first), change.__name__
        for task in again - {first}:
            assert "it ran again: input" in why(task), (change.__name__, task)
        assert ran(dag) == set(), change.__name__
