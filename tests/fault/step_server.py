"""
A process that imports the large libraries once, and runs each step in a child of its own as ``python -m airloop run``.

One line of JSON on stdin is one request, one on stdout its answer:

``{"steps": [{"step": …, "environment": {…}}, …]}``
    all at once, each in a process of its own; a list of ``{"code", "log", "receipt", "record", "manifest"}``.
``{"shell": …}``
    a script, in this process' mount namespace; ``{"code", "out"}``.
``{"state": {…}}``, ``{"full_state": {…}}``
    everything that the home of this environment holds, without what differs from run to run; see ``home_state.py``.
``{"collect": {…}}``
    have gc take away what killed processes left there; the files that nothing names, before and after.
``{"watch": {…}}``, then ``{"seen": null}``
    start to read all of this home again and again; end that, and what was seen.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from home_state import Cache, Readers, collected, full_state, state

_cache: Cache = {}
"""What children found out about things that never change; the next child has it from its birth."""
_watched: list[tuple[int, int, Path]] = []
"""Of the readers at work: process, pipe with what they saw, folder by which they are told to stop."""


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    from airloop.training.environment import prepare_environment
    from airloop.warm import PRELOAD, _expand

    prepare_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _expand(PRELOAD):
            importlib.import_module(name)
    actions: dict[str, Callable[[Any], Any]] = {
        "steps": run_steps,
        "shell": run_shell,
        "state": lambda environment: in_child(lambda: state(environment), environment),
        "full_state": remembering,
        "collect": lambda environment: in_child(lambda: collected(environment), environment),
        "watch": watch,
        "seen": lambda _: seen(),
    }
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
    receipt = _json(Path(f"{place}.receipt"))
    at = str((receipt or {}).get("manifest", "")) if code == 0 else ""
    # What is in a bucket is for who asked to read: a client of it in this process would be in all children to come.
    here = isinstance(store, Path)
    return {
        "code": code,
        "log": Path(f"{place}.log").read_text(),
        "receipt": receipt,
        "record": _json(store / attempt_record_path(call.attempt)) if here else None,
        "manifest": _json(Path(at.removeprefix("file://"))) if at and here else None,
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else None


def fork() -> int:
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(function: Callable[[], Any], environment: dict[str, str]) -> Any:
    return result_of(*started(function, environment))


def started(function: Callable[[], Any], environment: dict[str, str]) -> tuple[int, int]:
    """Process and pipe of a child that works something out."""
    reading, writing = os.pipe()
    child = fork()
    if not child:
        os.close(reading)
        os.environ.update(environment)
        try:
            with os.fdopen(writing, "w") as pipe:
                json.dump(function(), pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return child, reading


def result_of(child: int, reading: int) -> Any:
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if status == 0 else {"error": f"a child ended with {status}; its traceback is on stderr"}


def remembering(environment: dict[str, str]) -> Any:
    """The full state; what a child finds out about things that never change is kept for the next."""

    def work() -> Any:
        known = set(_cache)
        return full_state(environment, _cache), {place: _cache[place] for place in _cache.keys() - known}

    answered = in_child(work, environment)
    if isinstance(answered, dict):
        return answered
    found, learned = answered
    _cache.update(learned)
    return found


def watch(environment: dict[str, str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="airloop-readers-"))
    child, pipe = started(lambda: Readers(environment, _cache).until(folder / "stop", folder / "ready"), environment)
    _watched.append((child, pipe, folder))
    while not (folder / "ready").exists() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)


def seen() -> Any:
    child, pipe, folder = _watched.pop()
    (folder / "stop").touch()
    found = result_of(child, pipe)
    shutil.rmtree(folder)
    return found


def run_shell(script: str) -> dict[str, Any]:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout + done.stderr}


if __name__ == "__main__":
    main()
