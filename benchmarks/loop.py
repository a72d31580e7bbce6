"""
The whole offline loop in Airflow, and the same steps in one plain Python process: the ratio, and where the time goes.

    python benchmarks/loop.py [--months 3] [--runs 3] [--out benchmarks/results/loop.json]

Each run starts from an empty home. Airflow's start-up and the DAG's first parse are not counted; the clock starts when
the first task is queued. The plain process is timed with its imports, and also without the first month (warm).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DAG_ID = "flights_offline"


def plan(home: Path) -> list[dict[str, Any]]:
    """The DAG's tasks in an order that respects their dependencies, arguments with results named instead of given."""
    code = (
        "import json, sys; sys.path.insert(0, 'benchmarks'); from loop import _export; "
        "print('PLAN' + json.dumps(_export()))"
    )
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
    dag = bag.dags[DAG_ID]
    return [
        {"task": t.task_id, "step": t.step or t.step_name, "arguments": _placeholders(t.call_arguments())}
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


def run_plain(tasks: list[dict[str, Any]], months: int, home: Path) -> dict[str, Any]:
    """All steps of all months in one process; returns seconds by task and in all."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "plain.py"), str(months)],
        input=json.dumps(tasks),
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the plain run failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_airflow(months: int, home: Path) -> dict[str, Any]:
    """The loop through Airflow's scheduler; returns where the time of each task went."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "demo.py"), "--months", str(months)],
        env=_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the loop failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return _where_time_went(home)


def _where_time_went(home: Path) -> dict[str, Any]:
    from airloop.config import Config
    from airloop.frame import history
    from airloop.warehouse.artifacts import ArtifactStore

    store = ArtifactStore(Config.from_environment({"AIRLOOP_HOME": str(home)}).artifacts)
    with sqlite3.connect(home / "airflow" / "airflow.db") as database:
        rows = database.execute(
            "select run_id, task_id, queued_dttm, start_date, end_date from task_instance where dag_id = ?", [DAG_ID]
        ).fetchall()
    tasks = []
    for run_id, task_id, queued, started, ended in rows:
        record = history.run(store, DAG_ID, run_id).tasks[task_id].record
        payload_s = sum(record["seconds"].values())
        started_at, ended_at = _time(started), _time(ended)
        tasks.append(
            {
                "task": task_id,
                "queue_s": (started_at - _time(queued)).total_seconds(),
                "start_s": (datetime.fromisoformat(record["started_at"]) - started_at).total_seconds(),
                "payload_s": payload_s,
                "total_s": (ended_at - started_at).total_seconds(),
                "queued": _time(queued).timestamp(),
                "ended": ended_at.timestamp(),
            }
        )
    return {
        "wall_s": max(t["ended"] for t in tasks) - min(t["queued"] for t in tasks),
        "tasks": tasks,
        "payload_s": sum(t["payload_s"] for t in tasks),
    }


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _environment(home: Path) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AIRLOOP_"))},
        "AIRLOOP_HOME": str(home),
        "AIRLOOP_FEATURE_REPO": str(REPOSITORY / "feature_repo"),
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "loop.json")
    arguments = parser.parse_args()
    airflow, plain = [], []
    about = machine()
    with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
        tasks = plan(Path(folder))
        for number in range(arguments.runs):
            home = Path(folder) / str(number)
            airflow.append(run_airflow(arguments.months, home / "airflow"))
            plain.append(run_plain(tasks, arguments.months, home / "plain"))
            print(
                f"run {number + 1}: Airflow {airflow[-1]['wall_s']:.1f} s, plain {plain[-1]['wall_s']:.1f} s "
                f"({plain[-1]['wall_s'] - plain[-1]['first_month_s']:.1f} s without the first month)",
                flush=True,
            )
    result = _summarise(about, arguments.months, airflow, plain)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    return 0


def _summarise(about: dict[str, Any], months: int, airflow: list[Any], plain: list[Any]) -> dict[str, Any]:
    ratios = [a["wall_s"] / p["wall_s"] for a, p in zip(airflow, plain, strict=True)]
    names = list(dict.fromkeys(t["task"] for t in airflow[0]["tasks"]))

    def middle(name: str, field: str) -> float:
        return statistics.median(t[field] for run in airflow for t in run["tasks"] if t["task"] == name)

    by_task = {
        name: {field: round(middle(name, field), 3) for field in ("queue_s", "start_s", "payload_s", "total_s")}
        | {"plain_s": round(statistics.median(s for run in plain for s in run["tasks"][name]), 3)}
        for name in names
    }
    return {
        "machine": about,
        "months": months,
        "airflow_s": [round(a["wall_s"], 2) for a in airflow],
        "plain_s": [round(p["wall_s"], 2) for p in plain],
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "payload_in_airflow_s": round(statistics.median(a["payload_s"] for a in airflow), 2),
        "overhead_per_task_s": round(
            statistics.median(t["total_s"] - t["payload_s"] for a in airflow for t in a["tasks"]), 3
        ),
        "tasks": by_task,
    }


def _print(result: dict[str, Any]) -> None:
    about = result["machine"]
    print(
        f"\n{about['processors']} processors, {about['memory_gib']} GiB, {about['platform']}, Python {about['python']}"
    )
    print(f"{'task':28}{'queued':>9}{'start':>9}{'payload':>9}{'in all':>9}{'plain':>9}   seconds, medians")
    for name, t in result["tasks"].items():
        cells = "".join(f"{t[f]:9.2f}" for f in ("queue_s", "start_s", "payload_s", "total_s", "plain_s"))
        print(f"{name:28}{cells}")
    print(
        "queued: Airflow's queue until the task's process runs; start: Airflow's task process, and the payload's "
        "interpreter and imports; payload: the step's own work"
    )
    print(
        f"whole loop, {result['months']} months: Airflow {statistics.median(result['airflow_s']):.1f} s, plain process "
        f"{statistics.median(result['plain_s']):.1f} s, ratio {result['ratio']} ({result['ratio_range'][0]} to "
        f"{result['ratio_range'][1]}); outside the payload {result['overhead_per_task_s']:.2f} s a task"
    )


if __name__ == "__main__":
    raise SystemExit(main())
