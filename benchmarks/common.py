"""
What all benchmarks share: runs in processes of their own, medians, results as JSON, targets, the table in the docs.

A benchmark is a module ``benchmarks/NAME.py``, run as ``python -m benchmarks.NAME``, with a function ``main() -> int``
that looks like this::

    arguments = options(__doc__, runs=3, sizes=(1_000_000, 10_000_000), quick=(10_000,))
    rows = []
    for size in arguments.sizes:
        ours = middle(arguments.runs, lambda: own_process("benchmarks.NAME:ours", size=size))
        peer = middle(arguments.runs, lambda: own_process("benchmarks.NAME:stock", size=size))
        rows.append(row("the work", f"{size:,} rows", ours, peer, peer="the peer", limit_s=1.3 * peer.seconds,
                        target="at most 1.3 times the peer"))
    return finish("NAME", arguments, rows)

``python -m benchmarks.run`` runs all of them, or those that are named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
_MARK = "RESULT "
_FLAMES = "BENCHMARK_FLAMES"
"""Environment variable: folder for a flame graph of each process."""


@dataclass(frozen=True)
class Measured:
    """One piece of work, done once, or the median of several times."""

    seconds: float
    """Wall time of the work alone, without the interpreter's start and imports."""
    peak_mb: float
    """Highest resident memory of the process, MiB, imports included."""
    cpu_s: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)
    """What the work itself returned."""
    all_s: tuple[float, ...] = ()
    """Wall times of every run."""


def own_process(work: str, *, environment: dict[str, str] | None = None, **arguments: Any) -> Measured:
    """
    Do a piece of work in a new interpreter.

    :param work: ``package.module:function``. It takes the arguments, JSON values, and returns a dictionary of JSON
        values in which ``seconds`` is what the work took.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AIRLOOP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.common", work, json.dumps(arguments)],
        cwd=REPOSITORY,
        env=clean | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{work} {arguments} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(lines[-1].removeprefix(_MARK))
    return Measured(found.pop("seconds"), found.pop("peak_mb"), found.pop("cpu_s"), found)


def _serve(work: str, arguments: str) -> None:
    """In the new interpreter."""
    module, _, name = work.partition(":")
    began = time.process_time()
    do = getattr(importlib.import_module(module), name)
    given = json.loads(arguments)
    if folder := os.environ.get(_FLAMES):
        from benchmarks.flame import Sampler, draw

        with Sampler() as sampler:
            found = do(**given)
        draw(folder, work, given, sampler)
    else:
        found = do(**given)
    found |= {"peak_mb": round(peak_mb(), 1), "cpu_s": round(time.process_time() - began, 3)}
    sys.stdout.write(f"\n{_MARK}{json.dumps(found)}\n")


def peak_mb() -> float:
    """Highest resident memory of this process so far, MiB. (``getrusage`` counts the parent's at the fork too.)"""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def middle(runs: int, measure: Callable[[], Measured]) -> Measured:
    """Measure several times; the run with the median time stands for all (of an even number, the slower)."""
    return _middle([measure() for _ in range(runs)])


def in_turn(runs: int, ways: Mapping[str, Callable[[], Measured]]) -> dict[str, Measured]:
    """:func:`middle` of several ways to do the same, one after the other in each run: a busy minute meets all."""
    found = [{way: measure() for way, measure in ways.items()} for _ in range(runs)]
    return {way: _middle([run[way] for run in found]) for way in ways}


def _middle(runs: Sequence[Measured]) -> Measured:
    found = sorted(runs, key=lambda m: m.seconds)
    one = found[len(found) // 2]
    return Measured(one.seconds, one.peak_mb, one.cpu_s, one.more, tuple(round(m.seconds, 4) for m in found))


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def row(
    work: str,
    size: str,
    ours: Measured,
    other: Measured | None = None,
    *,
    peer: str = "",
    target: str = "",
    limit_s: float | None = None,
    limit_mb: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """
    One line of a benchmark's table.

    :param other: the peer, or the limit that hardware or libraries set; None: there is none.
    :param peer: what that is.
    :param target: what is promised, in words; in figures ``limit_s`` and ``limit_mb``, at most.
    """
    within = [
        value <= limit for value, limit in ((ours.seconds, limit_s), (ours.peak_mb, limit_mb)) if limit is not None
    ]
    return {
        "work": work,
        "size": size,
        "ours_s": _rounded(ours.seconds),
        "ours_runs_s": list(ours.all_s),
        "ours_mb": round(ours.peak_mb),
        "peer": peer,
        "peer_s": _rounded(other.seconds) if other else None,
        "peer_runs_s": list(other.all_s) if other else [],
        "peer_mb": round(other.peak_mb) if other else None,
        "ratio": _rounded(ours.seconds / other.seconds) if other and other.seconds else None,
        "target": target,
        "limit_s": _rounded(limit_s),
        "limit_mb": None if limit_mb is None else round(limit_mb),
        "met": all(within) if within else None,
        "note": note,
    }


def _rounded(value: float | None) -> float | None:
    """Three digits that count."""
    return None if value is None else float(f"{value:.3g}")


def options(about: str | None, *, runs: int, sizes: Sequence[int], quick: Sequence[int]) -> argparse.Namespace:
    """
    The command line that all benchmarks share.

    :param sizes: what is measured unless the command line says otherwise; ``quick``: with ``--quick``.
    """
    parser = parser_for(about, runs=runs)
    sizes_of(parser, sizes)
    return settled(parser.parse_args(), quick=quick)


def parser_for(about: str | None, *, runs: int) -> argparse.ArgumentParser:
    """:attr:`options` without sizes, for a benchmark that has others."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=f"of each, in turn; default {runs}")
    parser.add_argument("--quick", action="store_true", help="small and once, to see that it works; keeps no result")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--flames", type=Path, help="folder for a flame graph of each piece of work")
    parser.add_argument("--out", type=Path, help="where the result goes; default benchmarks/results/NAME.json")
    return parser


def sizes_of(parser: argparse.ArgumentParser, sizes: Sequence[int]) -> None:
    """Add the option ``--sizes``."""
    listed = ",".join(map(str, sizes))
    parser.add_argument("--sizes", type=_numbers, default=tuple(sizes), help=f"comma-separated; default {listed}")


def settled(arguments: argparse.Namespace, *, quick: Sequence[int] = ()) -> argparse.Namespace:
    """What ``--quick`` means: one run, of the sizes ``quick`` if there are any. Looks at the machine, too."""
    arguments.machine = machine()
    if arguments.flames:
        # For the processes that are started from now on.
        os.environ[_FLAMES] = str(arguments.flames.resolve())
    if arguments.quick:
        arguments.runs = 1
        if quick:
            arguments.sizes = tuple(quick)
    return arguments


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part.replace("_", "")) for part in text.split(","))


def finish(name: str, arguments: argparse.Namespace, rows: list[dict[str, Any]], **details: Any) -> int:
    """Print the table, keep the result, bring the docs up to date; returns the exit code."""
    result = {
        "benchmark": name,
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "measured": time.strftime("%Y-%m-%d"),
        "runs": arguments.runs,
        "machine": arguments.machine,
        "rows": rows,
        **details,
    }
    about = result["machine"]
    print(f"{about['processors']} processors, {about['memory_gib']} GiB, {about['platform']}, Python {about['python']}")
    print(as_text(rows), flush=True)
    out = arguments.out or (None if arguments.quick else RESULTS / f"{name}.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    if out is not None and out.resolve().parent == RESULTS:
        from benchmarks.pages import write_page

        write_page()
    missed = [r for r in rows if r["met"] is False]
    return 1 if arguments.check and missed else 0


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    from benchmarks.pages import HEAD, cells

    table = [HEAD, *(cells(r) for r in rows)]
    wide = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(line, wide, strict=True)).rstrip() for line in table)


def seconds_of(values: Sequence[float]) -> Measured:
    """What was timed elsewhere, as the median of several times."""
    return Measured(statistics.median(values), 0.0, all_s=tuple(round(v, 4) for v in values))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
