"""
How many accelerators tasks may have at once: slots of Airflow pools, counted when a DAG file is parsed.

``[airloop] sizes`` says which pool counts the accelerators of which nodes, and how many there are::

    budgets: {gpus: 8}
    pools:
      gpu: {accelerator: nvidia, budget: gpus}
    sizes:
      gpu: {pool: gpu, accelerators: 2, cpu: 8, memory: 32Gi}

A task with ``size="gpu"`` takes two slots of Airflow's pool ``gpus``. Airflow reads pools when it parses a DAG, so the
file has to be where DAGs are parsed; where it is not, sizes are looked at when a task starts, and nothing is counted.

``python -m airloop_operators.budget`` says whether Airflow has these pools, with these slots, counting deferred tasks;
``--apply`` makes them so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.errors import AirloopError, BadConfiguration

if TYPE_CHECKING:
    from airloop_operators.runners.pod.sizes import Pods

DESCRIPTION = "Accelerators that tasks of Airloop may have at once"


def pool_of(size: str, runner: str | None) -> dict[str, Any]:
    """
    ``pool`` and ``pool_slots`` of a task; empty: nothing counts it.

    :param size: what the task names.
    :param runner: what the task names; None: the configured one.
    :raises BadConfiguration: there is no such size, or the file that explains it is wrong.
    """
    from airflow.sdk.configuration import conf

    file = conf.get("airloop", "sizes", fallback=None)
    if not file or (runner or conf.get("airloop", "runner", fallback="local")) != "pod":
        return {}
    path = Path(file).expanduser()
    try:
        found = path.stat()
    except OSError:
        return {}
    place = _read(path, found.st_mtime_ns, found.st_size, found.st_ino).place(size)
    return {"pool": place.pool.budget, "pool_slots": place.size.accelerators} if place.pool.budget else {}


@lru_cache(maxsize=4)
def _read(path: Path, *_as_it_is: int) -> Pods:
    from airloop_operators.runners.pod.sizes import read_pods

    return read_pods(path)


def wrong(budgets: Mapping[str, int], pools: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """
    What is wrong with Airflow's pools, in words.

    :param pools: by name, as ``airflow pools export`` writes them.
    """
    found = []
    for name, slots in budgets.items():
        pool = pools.get(name)
        if pool is None:
            found.append(f"pool {name} is not there: its tasks wait for ever")
        elif int(pool["slots"]) != slots:
            found.append(f"pool {name} has {pool['slots']} slots, its budget is {slots}")
        if pool is not None and not pool.get("include_deferred"):
            found.append(f"pool {name} does not count deferred tasks, whose pods have their accelerators all the same")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, or mend; 1: something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m airloop_operators.budget", description=DESCRIPTION)
    parser.add_argument("--apply", action="store_true", help="make Airflow's pools as the budgets are")
    apply: bool = parser.parse_args(arguments).apply
    try:
        budgets = _budgets()
        if apply and budgets:
            _give(budgets)
        trouble = wrong(budgets, _pools())
    except AirloopError as error:
        trouble = [str(error)]
    for line in trouble or [f"budgets: {len(budgets)}; Airflow's pools are as they should be"]:
        sys.stdout.write(f"{line}\n")
    return 1 if trouble else 0


def _budgets() -> Mapping[str, int]:
    from airloop_operators.runners.pod.sizes import read_pods
    from airloop_operators.settings import Settings

    return read_pods(Settings.read().sizes).budgets


def _pools() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pools.json"
        _airflow("export", str(file))
        pools: dict[str, Any] = json.loads(file.read_text())
        return pools


def _give(budgets: Mapping[str, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pools.json"
        wanted = {n: {"slots": s, "description": DESCRIPTION, "include_deferred": True} for n, s in budgets.items()}
        file.write_text(json.dumps(wanted))
        _airflow("import", str(file))


def _airflow(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "pools", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BadConfiguration(
            f"airflow pools {arguments[0]} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}",
            "run it where Airflow's database is configured",
        )


if __name__ == "__main__":
    sys.exit(main())
