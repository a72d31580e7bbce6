"""The steps of a plan, given as JSON on standard input, in this one process. Started by ``loop.py``."""

from __future__ import annotations

import importlib
import json
import sys
import time
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")


def main() -> None:
    from airloop.config import Config
    from airloop.contract import Call, Interval, RunInfo
    from airloop.frame.execute import execute
    from airloop.frame.logs import Redactor, set_up
    from airloop.frame.manifest import read_manifest
    from airloop.steps import load
    from airloop.training.environment import prepare_environment
    from airloop.warehouse.artifacts import ArtifactStore
    from airloop.warm import PRELOAD

    set_up(level=30)
    tasks = json.load(sys.stdin)
    config = Config.from_environment()
    store = ArtifactStore(config.artifacts)
    prepare_environment()
    for name in PRELOAD:
        if "*" not in name:
            importlib.import_module(name)
    started = time.perf_counter()
    seconds: dict[str, list[float]] = {}
    for month in range(1, int(sys.argv[1]) + 1):
        interval = Interval(
            datetime(2013, month, 1, tzinfo=NEW_YORK), datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=NEW_YORK)
        )
        results: dict[str, Any] = {}
        for task in tasks:
            began = time.perf_counter()
            step = load(task["step"])
            call = Call(
                step.name, _filled(task["arguments"], results), "", RunInfo("plain", f"{month}", task["task"]), interval
            )
            receipt, error = execute(step, call, config, Redactor([]))
            if error is not None:
                raise SystemExit(f"{task['task']}: {error}")
            manifest = read_manifest(store, step.name, receipt.key)
            assert manifest is not None
            results[task["task"]] = {
                **{role: output["reference"] for role, output in manifest["outputs"].items()},
                "step": step.name,
                "key": receipt.key,
                "manifest": receipt.manifest,
            }
            seconds.setdefault(task["task"], []).append(time.perf_counter() - began)
    print(json.dumps({"wall_s": time.perf_counter() - started, "tasks": seconds}))


def _filled(value: Any, results: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return results[value["$result"]] if "$result" in value else {k: _filled(v, results) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, results) for v in value]
    return value


if __name__ == "__main__":
    main()
