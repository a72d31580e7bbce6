"""Kill the gate at each point and run it again: table, quarantine and branches end as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.errors import RejectedRows
from airloop.warehouse.catalog import Warehouse
from tests.audit_world import BATCH, GOOD, LENIENT, OTHER, TABLE, bring, in_quarantine, on_main, rows

RunStep = Callable[..., dict[str, Any]]

# Imports once, then a child for each attempt: it is a child of a clean process, and no test waits for the imports.
ZYGOTE = """
import json, os, sys
from airloop.quality.suite import import_expectations
from airloop.steps import load
import airloop.quality.gate, airloop.quality.rows, airloop.frame.execute
from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.frame.logs import Redactor
import_expectations()
step = load("validate")
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(job["environment"])
        config = Config.from_environment({**os.environ, "AIRLOOP_MEMORY_MB": "512"})
        call = Call("validate", job["arguments"], "", RunInfo("test", "run", "validate"))
        receipt, error = airloop.frame.execute.execute(step, call, config, Redactor([]))
        os._exit(3 if error else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Attempt = Callable[..., int]


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().strip() == "ready"
        yield process
        process.stdin.close()


@pytest.fixture
def attempt(zygote: subprocess.Popen[str], config: Config) -> Attempt:
    """Make one attempt in a process of its own; returns its exit code."""

    def run(fault: str, **arguments: Any) -> int:
        assert zygote.stdout is not None
        assert zygote.stdin is not None
        job = {"environment": {"AIRLOOP_HOME": str(config.home), "AIRLOOP_FAULT": fault}, "arguments": arguments}
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        return int(zygote.stdout.readline())

    return run


TRIPS = [*GOOD, (21, "AA", 9999.0), (22, "ZZ", -500.0)]

POINTS = [
    "run",
    "validate:checked",
    "commit:before",
    "commit:after",
    "validate:quarantined",
    "commit:before:2",
    "commit:after:2",
    "validate:cleaned",
    "artifact:before:verdict.json",
    "validate:verdict",
    "publish:before",
    "publish:after",
    "validate:published",
    "manifest",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point: str, attempt: Attempt, warehouse: Warehouse, run_step: RunStep) -> None:
    run_step("validate", table=str(bring(warehouse, GOOD[:5], batch=OTHER)), suite=LENIENT)
    before = on_main(warehouse)
    ref = bring(warehouse, TRIPS, batch=BATCH)
    arguments = {"table": str(ref), "suite": LENIENT, "max_quarantined_share": 0.2}

    assert attempt(f"kill@{point}", **arguments) == -signal.SIGKILL, "the point is reached"

    assert on_main(warehouse) in (before, sorted(GOOD)), "main holds nothing that was not audited"
    made = run_step("validate", **arguments)

    assert made["status"] == "done"
    assert made["counts"] == {"rows_checked": 17, "rows_quarantined": 2, "rows_published": 15, "expectations": 5}
    assert on_main(warehouse) == sorted(GOOD)
    assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]
    assert len(warehouse.history("quarantine.raw_trips")) == 1
    assert [s.key.partition(":")[2].partition(":")[0] for s in warehouse.history(TABLE)] == ["", "", "clean"]
    assert set(warehouse.table(TABLE).metadata.refs) == {"main"}
    assert Path(made["links"]["docs"].removeprefix("file://")).exists()
    assert run_step("validate", **arguments)["status"] == "reused"


def test_killed_after_the_rebase_was_published(attempt: Attempt, warehouse: Warehouse, run_step: RunStep) -> None:
    """The next attempt takes up what was published, though the audited snapshot is not on main, and somebody wrote."""
    run_step("validate", table=str(bring(warehouse, GOOD[:5], batch=OTHER)), suite=LENIENT)
    ref = bring(warehouse, TRIPS, batch=BATCH)
    warehouse.commit(TABLE, rows([(100, "UA", 1.0)], batch="else"), key="else", mode="upsert", on=["trip"])
    arguments = {"table": str(ref), "suite": LENIENT, "max_quarantined_share": 0.2}
    assert attempt("kill@publish:after", **arguments) == -signal.SIGKILL
    published = warehouse.head(TABLE)
    assert [t for t, _, _ in on_main(warehouse)] == [*range(1, 21), 100]
    warehouse.commit(TABLE, rows([(101, "UA", 1.0)], batch="more"), key="more", mode="upsert", on=["trip"])
    snapshots = len(warehouse.history(TABLE))

    made = run_step("validate", **arguments)

    assert made["outputs"]["table"]["reference"] == f"{TABLE}@{published}"
    assert made["counts"]["rows_published"] == 15
    assert len(warehouse.history(TABLE)) == snapshots, "nothing is committed twice"
    assert [t for t, _, _ in on_main(warehouse)] == [*range(1, 21), 100, 101]
    assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]


@pytest.mark.parametrize("point", ["commit:before", "commit:after", "validate:quarantined"])
def test_killed_while_rejecting(point: str, attempt: Attempt, warehouse: Warehouse, run_step: RunStep) -> None:
    ref = bring(warehouse, TRIPS, batch=BATCH)
    assert attempt(f"kill@{point}", table=str(ref), suite=LENIENT) == -signal.SIGKILL
    with pytest.raises(RejectedRows, match="2 of 22 rows"):
        run_step("validate", table=str(ref), suite=LENIENT)
    assert warehouse.head(TABLE) == 0
    assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]
    assert len(warehouse.history("quarantine.raw_trips")) == 1


def test_a_full_disk_is_no_verdict(attempt: Attempt, warehouse: Warehouse, run_step: RunStep) -> None:
    ref = bring(warehouse, TRIPS, batch=BATCH)
    arguments = {"table": str(ref), "suite": LENIENT, "max_quarantined_share": 0.2}
    assert attempt("full@artifact:before:verdict.json", **arguments) == 3
    assert warehouse.head(TABLE) == 0
    assert run_step("validate", **arguments)["counts"]["rows_published"] == 20
