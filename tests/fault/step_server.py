"""
A process that imports the large libraries once, and runs each step in a child of its own as ``python -m airloop run``.

One line of JSON on stdin is one request, one on stdout its answer:

``{"steps": [{"step": …, "environment": {…}}, …]}``
    all at once, each in a process of its own; a list of ``{"code", "log", "receipt", "record", "manifest"}``.
``{"shell": …}``
    a script, in this process' mount namespace; ``{"code", "out"}``.
``{"state": {…}}``
    everything that the home of this environment holds, without what differs from run to run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LEFT_OUT = {"_batch", "feature_snapshots", "entry", "key", "by", "run_id", "recorded_at", "evidence"}
"""Columns that carry ids of snapshots, keys made of those, or the time of day."""


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    from airloop.training.environment import prepare_environment
    from airloop.warm import PRELOAD, _expand

    prepare_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _expand(PRELOAD):
            importlib.import_module(name)
    actions = {"steps": run_steps, "shell": run_shell, "state": lambda environment: in_child(state, environment)}
    answer("ready")
    for line in sys.stdin:
        ((action, argument),) = json.loads(line).items()
        answer(actions[action](argument))


def answer(document: Any) -> None:
    print(json.dumps(document), flush=True)


def run_steps(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Not a TemporaryDirectory: children would remove it when they exit.
    folder = Path(tempfile.mkdtemp(prefix="airloop-steps-"))
    places = [folder / str(number) for number in range(len(steps))]
    children = [start(step, place) for step, place in zip(steps, places, strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    outcomes = [outcome(*each) for each in zip(steps, places, codes, strict=True)]
    shutil.rmtree(folder)
    return outcomes


def start(step: dict[str, Any], place: Path) -> int:
    environment = {**step["environment"], "AIRLOOP_RECEIPT": f"{place}.receipt", "AIRLOOP_LOG_FORMAT": "json"}
    child = fork()
    if not child:
        become(step["step"], environment, place)
    return child


def become(step: str, environment: dict[str, str], place: Path) -> NoReturn:
    """In a child: be what ``python -m airloop run STEP`` would be."""
    os.environ.update(environment)
    log = os.open(f"{place}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from airloop import payload

    payload.run(step)


def outcome(step: dict[str, Any], place: Path, code: int) -> dict[str, Any]:
    """What a runner finds when the process has ended."""
    from airloop.config import Config
    from airloop.contract import Call, attempt_record_path

    call = Call.from_environment(step["environment"])
    store = Config.from_environment(step["environment"]).artifacts
    record, receipt = (_json(store / attempt_record_path(call.attempt)), _json(Path(f"{place}.receipt")))
    at = str((receipt or {}).get("manifest", "")) if code == 0 else ""
    return {
        "code": code,
        "log": Path(f"{place}.log").read_text(),
        "receipt": receipt,
        "record": record,
        "manifest": _json(Path(at.removeprefix("file://"))) if at else None,
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else None


def fork() -> int:
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(function: Callable[[dict[str, str]], Any], environment: dict[str, str]) -> Any:
    reading, writing = os.pipe()
    child = fork()
    if not child:
        os.close(reading)
        os.environ.update(environment)
        with os.fdopen(writing, "w") as pipe:
            json.dump(function(environment), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def run_shell(script: str) -> dict[str, Any]:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout + done.stderr}


def state(environment: dict[str, str]) -> dict[str, Any]:
    """Tables, online values, models, manifests and pages."""
    from airloop.config import Config

    config = Config.from_environment(environment)
    manifests = Counter(p.parents[2].name for p in (config.artifacts / "steps").rglob("manifest.json"))
    pages = (p for p in (config.artifacts / "reports").rglob("*") if p.is_file() and not p.name.startswith(".part-"))
    found: dict[str, Any] = {
        "manifests": dict(sorted(manifests.items())),
        "pages": sorted(str(p.relative_to(config.artifacts)) for p in pages),
    }
    return found | _tables(config) | _online(config) | _models(config)


def _tables(config: Any) -> dict[str, Any]:
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(config)
    found: dict[str, Any] = {}
    for name in warehouse.tables():
        rows = warehouse.scan(TableRef(name)).read_all()
        kept = [c for c in rows.column_names if c not in LEFT_OUT]
        lines = sorted(repr(list(row.values())) for row in rows.select(kept).to_pylist())
        found[name] = {
            "rows": rows.num_rows,
            "content": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
            "by column": {c: _digest(sorted(map(repr, rows.column(c).to_pylist()))) for c in kept},
            "branches": sorted(warehouse.table(name).metadata.refs),
            "snapshots": len(warehouse.history(name)),
        }
    return found


def _online(config: Any) -> dict[str, Any]:
    import sqlite3

    if not config.online_store.exists():
        return {}
    found: dict[str, Any] = {}
    with sqlite3.connect(config.online_store) as store:
        tables = [n for (n,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        for name in tables:
            columns = [c[1] for c in store.execute(f'PRAGMA table_info("{name}")')]
            kept = [f'"{c}"' for c in columns if c not in ("key", "snapshot")]
            rows = sorted(map(repr, store.execute(f'SELECT {", ".join(kept)} FROM "{name}"')))
            found[f"online {name}"] = {"rows": len(rows), "content": _digest(rows)}
    return found


def _models(config: Any) -> dict[str, Any]:
    from airloop.training import tracking

    if not Path(config.mlflow.removeprefix("sqlite:///")).exists():
        return {}
    client = tracking.client(config)
    runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    return {
        "finished runs": sum(r.info.status == "FINISHED" for r in runs),
        "running runs": sum(r.info.status == "RUNNING" for r in runs),
        "versions": sorted([v.name, int(v.version), sorted(v.aliases)] for v in client.search_model_versions()),
        "aliases": {m.name: m.aliases for m in client.search_registered_models()},
    }


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
