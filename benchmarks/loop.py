"""
The whole offline loop in Airflow, beside the same steps in one warm Python process and beside a loop of empty tasks.

    python -m benchmarks.loop [--months 3] [--slots 2] [--runs 3] [--check]

Each run starts from an empty home. Airflow's start-up and the DAGs' first parse are not counted: the clock starts when
the first task is queued. The plain process has imported all libraries before its clock starts. The loop of empty tasks
has as many, in the same order, and runs in the same scheduler after the loop.

Where a task's time goes: *queue*, until Airflow's process for it runs; *airflow*, that process until it starts the
payload and after the payload's end; *start*, the payload's interpreter and imports, or its fork from the warm process;
*payload*, the step itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, finish, parser_for, row, seconds_of, settled

sys.path.insert(0, str(REPOSITORY / "scripts"))
from demo import Airflow, months
from stack import Stack

LOOP = "flights_offline"
EMPTY = "empty_tasks"
PARTS = ("queue_s", "airflow_s", "start_s", "payload_s", "total_s")
_EMPTY_DAG = """
from datetime import datetime
from zoneinfo import ZoneInfo
from airflow.sdk import DAG, BaseOperator, CronDataIntervalTimetable

class Nothing(BaseOperator):
    def execute(self, context):
        return None

NEW_YORK = ZoneInfo("America/New_York")
with DAG(
    {dag!r},
    schedule=CronDataIntervalTimetable("0 0 1 * *", timezone="America/New_York"),
    start_date=datetime(2013, 1, 1, tzinfo=NEW_YORK),
    end_date=datetime(2013, 12, 1, tzinfo=NEW_YORK),
    catchup=False,
    max_active_runs=1,
):
    upstream = {upstream!r}
    tasks = {{name: Nothing(task_id=name) for name in upstream}}
    for name, before in upstream.items():
        for other in before:
            tasks[other] >> tasks[name]
"""


def plan(home: Path) -> list[dict[str, Any]]:
    """The DAG's tasks in an order that respects their dependencies, arguments with results named instead of given."""
    code = "import json; from benchmarks.loop import _export; print('PLAN' + json.dumps(_export()))"
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home / "plan"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "no-plugins"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("PLAN"))
    tasks: list[dict[str, Any]] = json.loads(line.removeprefix("PLAN"))
    return tasks


def _export() -> list[dict[str, Any]]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(REPOSITORY / "dags"))
    if bag.import_errors:
        raise RuntimeError(bag.import_errors)
    dag = bag.dags[LOOP]
    return [
        {
            "task": t.task_id,
            "step": t.step or t.step_name,
            "arguments": _placeholders(t.call_arguments()),
            "upstream": sorted(t.upstream_task_ids),
        }
        for t in dag.topological_sort()
    ]


def _placeholders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _placeholders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_placeholders(v) for v in value]
    if hasattr(value, "operator"):
        return {"$result": value.operator.task_id}
    return value


def run_plain(tasks: list[dict[str, Any]], count: int, home: Path) -> dict[str, Any]:
    """All steps of all months in one process; returns seconds by task and in all."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plain", str(count)],
        cwd=REPOSITORY,
        input=json.dumps(tasks),
        env={**os.environ, "AIRLOOP_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the plain run failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_airflow(
    tasks: list[dict[str, Any]], count: int, slots: int, home: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The loop, then one of empty tasks, through one scheduler.

    :param slots: tasks that run at a time.
    :returns: where the time of each went.
    """
    dags = home / "dags"
    shutil.copytree(REPOSITORY / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    upstream = {t["task"]: t["upstream"] for t in tasks}
    (dags / "empty_tasks.py").write_text(_EMPTY_DAG.format(dag=EMPTY, upstream=upstream))
    stack = Stack(home, dags=dags, settings={"AIRFLOW__CORE__PARALLELISM": str(slots)})
    try:
        stack.up(everything=False)
        airflow = Airflow(stack)
        for dag_id in (LOOP, EMPTY):
            airflow.wait_for_dag(dag_id)
        for dag_id in (LOOP, EMPTY):
            _backfill(airflow, dag_id, count)
    finally:
        stack.down()
    return _where_time_went(home), _empty_tasks(home)


def _backfill(airflow: Airflow, dag_id: str, count: int, within_s: float = 1800) -> None:
    """Run so many months of a DAG to their end."""
    starts = months(1, count)
    since = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    airflow.backfill(dag_id, starts[0], starts[-1])
    deadline = time.monotonic() + within_s
    while True:
        # Seldom: each question costs the API server, which tasks need too.
        time.sleep(2)
        runs = airflow.runs(dag_id, since)
        states = [run["state"] for run in runs]
        if "failed" in states:
            tasks = airflow.tasks(dag_id, runs[states.index("failed")]["dag_run_id"])
            raise RuntimeError(f"{dag_id} failed in {[t['task_id'] for t in tasks if t['state'] == 'failed']}")
        if states.count("success") == count:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{dag_id} has not ended after {within_s} s: {states}")


def _where_time_went(home: Path) -> dict[str, Any]:
    from airloop.config import Config
    from airloop.frame import history
    from airloop.warehouse.artifacts import ArtifactStore

    store = ArtifactStore(Config.from_environment({"AIRLOOP_HOME": str(home)}).artifacts)
    tasks = []
    for run_id, task_id, queued, started, ended in _instances(home, LOOP):
        record = history.run(store, LOOP, run_id).tasks[task_id].record
        spawned, began, done = (
            datetime.fromisoformat(record[name]) for name in ("spawned_at", "started_at", "finished_at")
        )
        tasks.append(
            {
                "task": task_id,
                "queue_s": (started - queued).total_seconds(),
                "airflow_s": (spawned - started).total_seconds() + (ended - done).total_seconds(),
                "start_s": (began - spawned).total_seconds(),
                "payload_s": (done - began).total_seconds(),
                "total_s": (ended - started).total_seconds(),
                "queued": queued.timestamp(),
                "ended": ended.timestamp(),
            }
        )
    return {"wall_s": _wall_s(home, LOOP), "tasks": tasks, "payload_s": sum(t["payload_s"] for t in tasks)}


def _empty_tasks(home: Path) -> dict[str, Any]:
    totals = [(ended - started).total_seconds() for *_, started, ended in _instances(home, EMPTY)]
    return {"wall_s": _wall_s(home, EMPTY), "total_s": totals}


def _wall_s(home: Path, dag_id: str) -> float:
    """From the queueing of the first task to the end of the last one."""
    rows = _instances(home, dag_id)
    return (max(r[4] for r in rows) - min(r[2] for r in rows)).total_seconds()


def _instances(home: Path, dag_id: str) -> list[tuple[str, str, datetime, datetime, datetime]]:
    query = "select run_id, task_id, queued_dttm, start_date, end_date from task_instance where dag_id = ?"
    with sqlite3.connect(home / "airflow" / "airflow.db") as database:
        rows = database.execute(query, [dag_id]).fetchall()
    return [(run_id, task_id, _time(queued), _time(start), _time(end)) for run_id, task_id, queued, start, end in rows]


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def summarise(count: int, loops: list[Any], empties: list[Any], plains: list[Any]) -> dict[str, Any]:
    """Rows and details of the result."""
    names = list(dict.fromkeys(t["task"] for t in loops[0]["tasks"]))
    size = f"{count} months, {count * len(names)} tasks"
    instances = [t for run in loops for t in run["tasks"]]
    by_task = {
        name: {part: round(statistics.median(t[part] for t in instances if t["task"] == name), 3) for part in PARTS}
        | {"plain_s": round(statistics.median(s for run in plains for s in run["tasks"][name]), 3)}
        for name in names
    }
    whole = seconds_of([run["wall_s"] for run in loops])
    plain = seconds_of([run["wall_s"] for run in plains])
    floor = seconds_of([run["wall_s"] for run in empties])
    empty = seconds_of([s for run in empties for s in run["total_s"]])
    ours = seconds_of([t["airflow_s"] + t["start_s"] for t in instances])
    worst_name = max(by_task, key=lambda n: by_task[n]["airflow_s"] + by_task[n]["start_s"])
    worst = seconds_of([by_task[worst_name]["airflow_s"] + by_task[worst_name]["start_s"]])
    # What starting, waiting for processors and opening anew cost.
    more = {name: parts["total_s"] - parts["plain_s"] for name, parts in by_task.items()}
    most_name = max(more, key=lambda n: more[n])
    median, most = seconds_of([*more.values()]), seconds_of([more[most_name]])
    promise = {"limit_s": empty.seconds + 0.5, "target": "at most an empty Airflow task and 0.5 s"}
    rows = [
        row("whole loop in Airflow", size, whole, plain, peer="the same steps in one warm process"),
        row("whole loop in Airflow", size, whole, floor, peer="a loop of empty tasks"),
        row("outside the payload", "per task, median", ours, empty, peer="an empty Airflow task", **promise),
        row("outside the payload", f"{worst_name}, the worst task", worst, empty, peer="the same", **promise),
        row("a task less the plain step", "per task, median", median, empty, peer="the same", **promise),
        row("a task less the plain step", f"{most_name}, the worst task", most, empty, peer="the same", **promise),
    ]
    for line in rows:
        # Thousands of single times say nothing.
        line["ours_runs_s"], line["peer_runs_s"] = line["ours_runs_s"][:9], line["peer_runs_s"][:9]
    return {
        "rows": rows,
        "months": count,
        "payload_in_airflow_s": round(statistics.median(run["payload_s"] for run in loops), 2),
        "tasks": by_task,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Where each task's time goes, for people."""
    lines = [f"{'task':28}{'queue':>9}{'airflow':>9}{'start':>9}{'payload':>9}{'in all':>9}{'plain':>9}   s, medians"]
    for name, t in result["tasks"].items():
        lines.append(f"{name:28}" + "".join(f"{t[part]:9.2f}" for part in (*PARTS, "plain_s")))
    return lines


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    parser.add_argument("--months", type=int, default=3)
    # A task that shares its processor with others takes longer, and what it costs by itself could not be told.
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 2, help="tasks at a time; default: processors")
    arguments = settled(parser.parse_args())
    count = 1 if arguments.quick else arguments.months
    for name in [n for n in os.environ if n.startswith(("AIRFLOW", "AIRLOOP_"))]:
        del os.environ[name]
    os.environ["AIRLOOP_FEATURE_REPO"] = str(REPOSITORY / "feature_repo")
    loops, empties, plains = [], [], []
    with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
        tasks = plan(Path(folder))
        for number in range(arguments.runs):
            home = Path(folder) / str(number)
            loop, empty = run_airflow(tasks, count, arguments.slots, home / "airflow")
            loops.append(loop)
            empties.append(empty)
            plains.append(run_plain(tasks, count, home / "plain"))
            print(
                f"run {number + 1}: Airflow {loop['wall_s']:.1f} s, empty tasks {empty['wall_s']:.1f} s, "
                f"plain {plains[-1]['wall_s']:.1f} s",
                flush=True,
            )
    result = summarise(count, loops, empties, plains)
    print("\n".join(table(result)))
    return finish("loop", arguments, **result)


if __name__ == "__main__":
    raise SystemExit(main())
