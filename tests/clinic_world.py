"""A small real loop about people: visits to a clinic, and whether the person comes back within a week."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.steps import load
from airloop.warehouse.artifacts import ArtifactStore

START = datetime(2013, 1, 1, tzinfo=UTC)
MONTHS = [Interval(datetime(2013, m, 1, tzinfo=UTC), datetime(2013, m + 1, 1, tzinfo=UTC)) for m in (1, 2, 3)]
DAG = "clinic"
NEWCOMER = "person-900"

SOURCE = """
name: visits
table: raw.visits
format: csv
columns:
  visit: {type: long, nullable: false}
  person: {type: string, nullable: false}
  seen_at: timestamptz
  age: double
  fever: double
  back: long
key: [visit]
interval_column: seen_at
"""
SUITE = {
    "name": "visits",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "person"}},
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "fever", "min_value": 30, "max_value": 45},
            "meta": {"airloop": {"quarantine": True}},
        },
    ],
}
EXAMPLES = """
SELECT visit, person, seen_at AS event_time, age, fever, back AS label,
    CASE WHEN seen_at >= $interval_end - INTERVAL 7 DAY THEN 'holdout'
         WHEN seen_at >= $interval_end - INTERVAL 12 DAY THEN 'validation' ELSE 'train' END AS split
FROM visits
"""


def people(days: int = 90, per_day: int = 20) -> list[dict[str, Any]]:
    """Visits of 300 people, two with an impossible fever; ``person-900`` is first there in February."""
    draw = np.random.default_rng(3)
    rows = []
    for n in range(days * per_day):
        age, fever = float(draw.integers(1, 90)), float(np.round(draw.normal(37.5, 1), 2))
        back = int(draw.random() < 1 / (1 + np.exp(-(age - 45) / 15 - (fever - 37.5))))
        rows.append(
            {
                "visit": n,
                "person": f"person-{int(draw.integers(0, 300)):03}",
                "seen_at": (START + timedelta(minutes=n * 24 * 60 / per_day)).isoformat(),
                "age": age,
                "fever": fever,
                "back": back,
            }
        )
    rows[11] |= {"fever": 99.0}
    february = 31 * per_day
    for n in (february + 3, february + 77, february + 400, 61 * per_day):
        rows[n]["person"] = NEWCOMER
    rows[february + 9] |= {"person": NEWCOMER, "fever": 99.0}
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class Clinic:
    """The loop on one home."""

    config: Config
    source: Path
    made: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Manifests by run and task."""

    def run(self, month: int, **changed: Any) -> str:
        """One run of the loop over a month, 0 to 2; returns its run id."""
        run_id = f"month-{month + 1}"
        rows = self.task(run_id, "extract", "extract", month, source=SOURCE, files=str(self.source))
        good = self.task(
            run_id, "validate", "validate", month, table=rows["table"], suite=SUITE, max_quarantined_share=0.01
        )
        examples = self.task(
            run_id, "examples", "sql", month,
            sql=EXAMPLES, inputs={"visits": good["table"]}, table="training.visits", key=["visit"], mode="replace",
        )  # fmt: skip
        model = self.task(
            run_id, "train", "train", month,
            examples=examples["table"], features=["age", "fever"],
            **({"hyperparameters": {"n_estimators": 15, "max_depth": 3}} | changed),
        )  # fmt: skip
        gate = self.task(
            run_id, "gate", "evaluate", month,
            challenger=model["model"], champion="back@champion", examples=examples["table"], min_rows=50,
            resamples=100,
        )  # fmt: skip
        self.task(run_id, "register", "register", month, model=model["model"], gate=gate["decision"], name="back")
        return run_id

    def task(self, run_id: str, task_id: str, step: str, month: int, **arguments: Any) -> dict[str, str]:
        """Run a task as its operator would; returns its outputs' references by role."""
        call = Call(step, arguments, "", RunInfo(DAG, run_id, task_id), MONTHS[month])
        receipt, error = execute(load(step), call, self.config, Redactor([]))
        if error is not None:
            raise error
        store = ArtifactStore(self.config.artifacts)
        manifest = json.loads(store.read_bytes(receipt.manifest.removeprefix(store.root.as_uri() + "/")))
        self.made[run_id, task_id] = manifest | {"status": receipt.status}
        return {role: output["reference"] for role, output in manifest["outputs"].items()}


def open_clinic(home: Path) -> Clinic:
    """An empty home and a source file beside it."""
    home.mkdir(parents=True)
    source = home.parent / "visits.csv"
    write_csv(source, people())
    return Clinic(Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"}), source)
