"""
What loops' DAG files cost Airflow's DAG processor: their parse, beside plain Airflow DAGs of as many tasks.

    python -m benchmarks.parse [--sizes 1,100,1000] [--runs 7] [--check]

A size is a number of DAG files. Each is the demo's loop; the plain one has as many BashOperator tasks in its groups,
with the same templated results from task to task. Each measurement is a new interpreter that has imported
``airflow.sdk`` and parses all of the files with the DagBag that the processor uses; what the files import counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, finish, middle, options, own_process, row

_PLAIN = """
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo
from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, TaskGroup
from airflow.providers.standard.operators.bash import BashOperator

NEW_YORK = ZoneInfo("America/New_York")
GROUPS = {groups}
INPUTS = {inputs}
with DAG(
    "{name}",
    schedule=CronDataIntervalTimetable("0 0 1 * *", timezone="America/New_York"),
    start_date=datetime(2013, 1, 1, tzinfo=NEW_YORK),
    end_date=datetime(2013, 12, 1, tzinfo=NEW_YORK),
    catchup=False,
    max_active_runs=1,
    default_args={{"retries": 1, "retry_delay": timedelta(seconds=10)}},
    tags=["airloop"],
) as dag:
    groups = {{name: TaskGroup(name) for name in GROUPS}}
    tasks = {{}}
    for name, before in INPUTS.items():
        group, _, short = name.rpartition(".")
        tasks[name] = BashOperator(
            task_id=short,
            bash_command="python -m step",
            env={{f"INPUT_{{i}}": tasks[b].output for i, b in enumerate(before)}},
            task_group=groups.get(group),
        )
"""


def graph() -> dict[str, Any]:
    """The tasks of the demo's loop, each with those whose results it takes."""
    from airflow.dag_processing.dagbag import DagBag

    began = time.perf_counter()
    dag = DagBag(str(REPOSITORY / "dags" / "flights_offline.py")).dags["flights_offline"]
    inputs = {task.task_id: sorted(task.upstream_task_ids) for task in dag.topological_sort()}
    return {"seconds": time.perf_counter() - began, "inputs": inputs}


def make(folder: Path, count: int, inputs: dict[str, list[str]]) -> int:
    """Folders ``loops`` and ``plain`` with so many DAG files each; returns the number of tasks of each."""
    loop = (REPOSITORY / "dags" / "flights_offline.py").read_text()
    shutil.copytree(REPOSITORY / "dags" / "flights", folder / "loops" / "flights")
    (folder / "plain").mkdir()
    groups = sorted({name.rpartition(".")[0] for name in inputs} - {""})
    for number in range(count):
        name = f"loop_{number:04}"
        (folder / "loops" / f"{name}.py").write_text(loop.replace('"flights_offline"', f'"{name}"'))
        (folder / "plain" / f"{name}.py").write_text(_PLAIN.format(name=name, groups=groups, inputs=inputs))
    return len(inputs)


def parse(folder: str) -> dict[str, Any]:
    """All files of a folder, one after another."""
    import airflow.sdk  # noqa: F401  a DAG processor has it
    from airflow.dag_processing.dagbag import DagBag

    began = time.perf_counter()
    with contextlib.redirect_stdout(said := io.StringIO()):
        bag = DagBag(folder, safe_mode=False)
    seconds = time.perf_counter() - began
    if bag.import_errors or "error" in said.getvalue():
        raise RuntimeError(f"{bag.import_errors} {said.getvalue()}")
    return {"seconds": seconds, "dags": len(bag.dags), "tasks": sum(len(d.tasks) for d in bag.dags.values())}


def main() -> int:
    arguments = options(__doc__, runs=7, sizes=(1, 100, 1000), quick=(2,))
    rows = []
    with tempfile.TemporaryDirectory(prefix="airloop-bench-") as home:
        settings = {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PLUGINS_FOLDER": f"{home}/no-plugins",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "0",
            "PATH": os.environ["PATH"],
        }
        inputs = own_process("benchmarks.parse:graph", environment=settings).more["inputs"]
        for count in arguments.sizes:
            with tempfile.TemporaryDirectory(dir=home) as folder:
                tasks = count * make(Path(folder), count, inputs)
                # The more files, the less the machine's mood matters.
                runs = arguments.runs if count < 1000 else min(arguments.runs, 3)
                ours, plain = (
                    middle(
                        runs,
                        lambda kind=kind: own_process(
                            "benchmarks.parse:parse", environment=settings, folder=f"{folder}/{kind}"
                        ),
                    )
                    for kind in ("loops", "plain")
                )
            if {ours.more["tasks"], plain.more["tasks"]} != {tasks}:
                raise SystemExit(f"{ours.more} and {plain.more} are not {tasks} tasks each")
            rows.append(
                row(
                    "parse",
                    f"{count:,} loop{'s' * (count > 1)}, {tasks:,} tasks",
                    ours,
                    plain,
                    peer="plain DAGs of as many tasks",
                    target="at most 1.2 times",
                    limit_s=1.2 * plain.seconds,
                )
            )
    return finish("parse", arguments, rows)


if __name__ == "__main__":
    raise SystemExit(main())
