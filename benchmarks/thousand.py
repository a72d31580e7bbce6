"""
A small loop a thousand times, with real commits: is the last run as fast as the first?

Each run brings a day's file (100 rows), validates and publishes it, makes a feature table and a training set of the
last week, and writes a decision into the ledger, whose evidence names the training set: so every run stays replayable
for ever, and no snapshot may expire. In one process; ``--every`` runs, ``airloop compact`` and ``airloop gc`` work.

``python -m benchmarks.thousand`` prints CPU and wall time of a run by tenths of the way, what the metadata weigh, and
the last tenth over the first, with upkeep and, for fewer runs, without.
"""

from __future__ import annotations

import csv
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import Measured, finish, own_process, parser_for, row, settled, sizes_of

START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS = 100
EVERY = 25
"""Runs between two upkeeps."""
SOURCE: dict[str, Any] = {
    "name": "readings",
    "table": "raw.readings",
    "format": "csv",
    "columns": {
        "id": {"type": "int", "nullable": False},
        "read_at": {"type": "timestamptz", "nullable": False},
        "value": {"type": "double"},
    },
    "key": ["id"],
    "interval_column": "read_at",
    "partition_by": "month(read_at)",
}
SUITE = {
    "name": "readings",
    "expectations": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "value"}}],
}
FEATURES = """
SELECT id, read_at AS event_time, read_at AS arrival_time, value, value * value AS squared
FROM readings WHERE read_at >= $interval_start AND read_at < $interval_end
"""
EXAMPLES = "SELECT id, event_time, squared FROM features WHERE event_time >= $interval_end - INTERVAL 7 DAY"


def main() -> int:
    parser = parser_for(__doc__, runs=1)
    sizes_of(parser, (1000,))
    parser.add_argument("--without", type=int, default=200, metavar="RUNS", help="runs of the loop without upkeep")
    arguments = settled(parser.parse_args(), quick=(40,))
    without = min(arguments.without, *arguments.sizes)
    if without < 20:
        parser.error(f"{without} runs are too few: tenths are compared, give at least 20")
    alone = _tell("without upkeep", own_process("benchmarks.thousand:loop", runs=without, every=0), without)
    rows, details = [], {f"without_upkeep_{without}": alone.more}
    for runs in arguments.sizes:
        kept = _tell("with upkeep", own_process("benchmarks.thousand:loop", runs=runs, every=EVERY), runs)
        first, last = (_tenth(kept, place) for place in (0, -1))
        details[f"with_upkeep_{runs}"] = kept.more
        rows.append(
            row("a run after the others", f"{runs:,} runs", last, first, peer="the first runs",
                limit_s=1.2 * first.seconds, target="at most 1.2 times the first",
                note=f"upkeep itself {kept.more['upkeep_cpu_s'] / runs:.2f} s a run; "
                f"without it {alone.more['ratio']:.2f} times after {without:,} runs")
        )  # fmt: skip
    return finish("thousand", arguments, rows, **details)


def _tell(name: str, found: Measured, runs: int) -> Measured:
    """Say at once what was found: what comes next takes long."""
    print(f"{runs:,} runs, {name}: CPU {found.more['cpu_by_tenth_s']} s, wall {found.more['wall_by_tenth_s']} s")
    print(f"  {found.more['metadata_kib']} KiB of metadata, {found.more['files']:,} files, ", end="")
    print(f"upkeep {found.more['upkeep_cpu_s']} s CPU in all, ratio {found.more['ratio']:.2f}", flush=True)
    return found


def _tenth(found: Measured, place: int) -> Measured:
    return Measured(found.more["cpu_by_tenth_s"][place], found.peak_mb)


def loop(*, runs: int, every: int) -> dict[str, Any]:
    """The loop; CPU and wall seconds of a run, the median of each tenth of the way."""
    from airloop.config import Config
    from airloop.upkeep import gc
    from airloop.upkeep.retention import Policy
    from airloop.warehouse.catalog import Warehouse

    cpu, wall = [], []
    upkeep = 0.0
    with tempfile.TemporaryDirectory(prefix="airloop-thousand-") as folder:
        config = Config.from_environment({"AIRLOOP_HOME": f"{folder}/home", "AIRLOOP_THREADS": "1"})
        warehouse = Warehouse.open(config)
        for number in range(runs):
            file = _write_day(Path(folder), number)
            began, cpu_began = time.perf_counter(), time.process_time()
            _run(config, number, file)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - cpu_began)
            file.unlink()
            if every and (number + 1) % every == 0:
                began = time.process_time()
                for name in warehouse.tables():
                    warehouse.compact(name)
                gc.collect(config, Policy(keep_days=0), grace_s=0)
                upkeep += time.process_time() - began
        tables = [warehouse.table(name) for name in warehouse.tables()]
        metadata = [Path(t.metadata_location.removeprefix("file://")).stat().st_size >> 10 for t in tables]
        files = sum(1 for p in config.home.rglob("*") if p.is_file())
    # The very first runs make tables and import modules.
    by_tenth = [slice(max(3 if runs >= 40 else 1, runs * i // 10), runs * (i + 1) // 10) for i in range(10)]
    cpu_by_tenth = [round(statistics.median(cpu[s]), 4) for s in by_tenth]
    return {
        "seconds": sum(wall),
        "cpu_by_tenth_s": cpu_by_tenth,
        "wall_by_tenth_s": [round(statistics.median(wall[s]), 4) for s in by_tenth],
        "ratio": cpu_by_tenth[-1] / cpu_by_tenth[0],
        "metadata_kib": metadata,
        "files": files,
        "upkeep_cpu_s": round(upkeep, 2),
    }


def _run(config: Any, number: int, file: Path) -> None:
    from airloop.contract import Call, Interval, RunInfo
    from airloop.frame.execute import execute
    from airloop.frame.logs import Redactor
    from airloop.frame.manifest import read_manifest
    from airloop.registry.ledger import Ledger
    from airloop.steps import load
    from airloop.warehouse.artifacts import ArtifactStore
    from airloop.warehouse.catalog import Warehouse

    interval = Interval(START + number * DAY, START + (number + 1) * DAY)

    def step(task: str, name: str, **arguments: Any) -> dict[str, str]:
        found = load(name)
        call = Call(name, arguments, "", RunInfo("thousand", f"{number:05}", task), interval)
        receipt, error = execute(found, call, config, Redactor([]))
        if error is not None:
            raise error
        manifest = read_manifest(ArtifactStore(config.artifacts), found.name, receipt.key)
        assert manifest is not None
        outputs = {role: output["reference"] for role, output in manifest["outputs"].items()}
        return outputs | {"step": name, "key": receipt.key}

    rows = step("extract", "extract", source=SOURCE, files=str(file))
    checked = step("validate", "validate", table=rows, suite=json.dumps(SUITE))
    features = step(
        "features", "sql", sql=FEATURES, inputs={"readings": checked}, table="features.readings", key=["id"]
    )
    examples = step(
        "examples", "sql", sql=EXAMPLES, inputs={"features": features}, table="training.readings", key=["id"],
        mode="replace",
    )  # fmt: skip
    _decide(Ledger(Warehouse.open(config)), number, interval.end, examples["table"], examples["key"])


def _decide(ledger: Any, number: int, at: datetime, examples: str, key: str) -> None:
    """What registering writes: an intent, and what closes it."""
    from airloop.registry.ledger import Entry

    live = ledger.champion_at("readings")
    intent = ledger.append(
        Entry(
            entry=key, seq=0, model="readings", alias="champion", version=number + 1,
            previous=live.version if live else None, state="intent", moved=True, outcome="promote", reason="benchmark",
            by="thousand", key=key, recorded_at=datetime.now(UTC), effective_at=at, evidence={"examples": examples},
        )
    )  # fmt: skip
    ledger.close(intent, "done")


def _write_day(folder: Path, number: int) -> Path:
    path = folder / f"{number:05}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "read_at", "value"])
        for i in range(ROWS):
            at = START + number * DAY + i * timedelta(minutes=10)
            writer.writerow([number * ROWS + i, at.isoformat(), (i * 37 % 101) / 10])
    return path


if __name__ == "__main__":
    raise SystemExit(main())
