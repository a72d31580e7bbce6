"""
What a loop's DAG file costs a scheduler: its parse, beside a plain DAG of one task and one of as many tasks.

    python benchmarks/parse.py [--runs 7] [--out benchmarks/results/parse.json]

Each measurement is a new interpreter that has imported ``airflow.sdk`` and then runs the file, as Airflow's DAG
processor does: the first time (with the imports of the file), and again (without).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.loop import REPOSITORY, machine

PLAIN = """
from datetime import datetime, UTC
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("plain", schedule=None, start_date=datetime(2013, 1, 1, tzinfo=UTC)):
    before = None
    for number in range({tasks}):
        task = EmptyOperator(task_id=f"task_{{number}}")
        if before is not None:
            before >> task
        before = task
"""
MEASURE = """
import runpy, sys, time
import airflow.sdk
from airflow.sdk import DAG, Asset, TaskGroup, CronDataIntervalTimetable
seconds = []
for _ in range(2):
    began = time.perf_counter()
    runpy.run_path(sys.argv[1])
    seconds.append(time.perf_counter() - began)
print(*seconds)
"""


def measure(file: Path) -> tuple[float, float]:
    """Seconds of the first and of the second parse in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    first, second = done.stdout.split()[-2:]
    return float(first), float(second)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "parse.json")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
        files = {}
        for tasks in (1, 22):
            files[f"plain, {tasks} task{'s' * (tasks > 1)}"] = Path(folder) / f"plain_{tasks}.py"
            files[f"plain, {tasks} task{'s' * (tasks > 1)}"].write_text(PLAIN.format(tasks=tasks))
        files["rain, 6 tasks"] = REPOSITORY / "dags" / "rain.py"
        files["flights_offline, 22 tasks"] = REPOSITORY / "dags" / "flights_offline.py"
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
        for _ in range(arguments.runs):
            for name, file in files.items():
                seen[name].append(measure(file))
    rows = {
        name: {
            "first_s": round(statistics.median(f for f, _ in pairs), 4),
            "again_s": round(statistics.median(s for _, s in pairs), 4),
        }
        for name, pairs in seen.items()
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": about, "runs": arguments.runs, "files": rows}, indent=1) + "\n")
    print(f"{'file':28}{'first parse':>14}{'again':>10}   seconds, medians of {arguments.runs}")
    for name, row in rows.items():
        print(f"{name:28}{row['first_s']:14.3f}{row['again_s']:10.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
