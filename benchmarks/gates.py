"""
How often the gates are wrong: measured on worlds whose truth is known, through the gates' own functions.

    python benchmarks/gates.py [promotion] [--trials 1000] [--power-trials 200] [--processes 2] [--check]

Figures go to ``benchmarks/results/gates.json``. ``--check`` fails if a rate is beyond what docs/gates.md
promises. Everything follows from seeds: the same command gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads would only wait for each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from airloop.domain.distributions import binomial_lower, binomial_upper
from airloop.domain.drift import column_drift, judge, tally
from airloop.domain.gates import Policy, decide
from airloop.training.summary import summarise_codes, summarise_numbers
from benchmarks.loop import REPOSITORY
from benchmarks.worlds import SHIFTS, drift_window, two_models

OUT = REPOSITORY / "benchmarks" / "results" / "gates.json"
FLOORS = {"roc_auc": 0.6, "ece": 0.15}
Map = Callable[[Callable[[int], Any], Sequence[int]], Any]


def binomial_interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a rate."""
    tail = (1 - confidence) / 2
    return binomial_lower(hits, trials, tail), binomial_upper(hits, trials, tail)


def rate_of(hits: int, trials: int) -> dict[str, Any]:
    low, high = binomial_interval(hits, trials)
    return {"hits": hits, "trials": trials, "rate": hits / trials, "low": round(low, 5), "high": round(high, 5)}


def gate_outcome(trial: int, *, world: dict[str, Any], policy: dict[str, Any], clustered: bool = True) -> str:
    """The whole decision on one draw: ``promote``, ``keep``, ``reject``, or ``slice`` where a slice alone kept."""
    rows = two_models((1, trial), **world)
    decision = decide(
        labels=rows.labels,
        challenger=rows.challenger,
        champion=rows.champion,
        clusters=rows.days if clustered else None,
        slices=rows.slices,
        policy=Policy(**({"floors": FLOORS} | policy)),
    )
    blocked = decision.outcome == "keep" and any(s.outcome == "worse" for s in decision.slices)
    return "slice" if blocked and decision.reasons[0].startswith("slice") else decision.outcome


def promotions(
    run: Map, trials: int, world: dict[str, Any], policy: dict[str, Any] | None = None, clustered: bool = True
) -> dict[str, Any]:
    one = partial(gate_outcome, world=world, policy=policy or {}, clustered=clustered)
    began = time.process_time()
    outcomes = Counter(run(one, range(trials)))
    return (
        {**world, "policy": policy or {}, "clusters": "day" if clustered else "row"}
        | rate_of(outcomes["promote"], trials)
        | {"kept_by_a_slice": outcomes["slice"], "cpu_s_a_trial": round((time.process_time() - began) / trials, 4)}
    )


SAME = (
    ({"rows": 500, "days": 7}, {}, True),
    ({"rows": 2_000, "days": 7}, {}, True),
    ({"rows": 2_000, "days": 28}, {}, True),
    ({"rows": 2_000, "days": 28}, {}, False),
    ({"rows": 2_000, "days": 28, "correlation": 0.99}, {}, True),
    ({"rows": 2_000, "days": 28, "day_share": 0.5}, {}, True),
    ({"rows": 2_000, "days": 28}, {"metric": "log_loss"}, True),
    ({"rows": 2_000, "days": 28}, {"metric": "average_precision"}, True),
    ({"rows": 2_000, "days": 28}, {"metric": "brier"}, True),
    ({"rows": 10_000, "days": 28}, {}, True),
)
"""Worlds of two models of the same quality: world, policy, whether days are clusters."""
MARGINS = (0.005, 0.01, 0.02, 0.03, 0.05)
ROWS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def promotion(run: Map, trials: int, power_trials: int) -> dict[str, Any]:
    """False promotions and the power curve."""
    same = []
    for world, policy, clustered in SAME:
        same.append(promotions(run, trials, world, policy, clustered))
        print(_line(same[-1]), flush=True)
    power = []
    for margin in MARGINS:
        for rows in ROWS:
            power.append(promotions(run, power_trials, {"rows": rows, "days": 28, "margin": margin}))
            print(_line(power[-1]), flush=True)
    return {"same": same, "power": power}


WINDOWS_A_REFERENCE = 50
"""Undrifted windows that are held against one reference, as one model sees many."""


@lru_cache(maxsize=1)
def drift_reference(number: int, rows: int) -> dict[str, dict[str, Any]]:
    """What a model keeps of its training rows, made by the trainer's own functions."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in drift_window((2, number), rows).items():
        if values.dtype != object:
            found[name] = {"kind": "number"} | summarise_numbers(values)
            continue
        categories, codes = np.unique(values.astype(str), return_inverse=True)
        found[name] = {"kind": "category"} | summarise_codes(codes.astype(np.float64), list(categories))
    return found


def drift_outcome(
    trial: int, *, rows: int, reference_rows: int = 20_000, shift: str = "none", repeats: int = 1, **limits: float
) -> list[str]:
    """
    The columns of one window that are said to have drifted.

    :param repeats: of each row, for rows that are not independent.
    """
    references = drift_reference(trial // WINDOWS_A_REFERENCE, reference_rows)
    window = drift_window((3, trial), rows // repeats, shift)
    columns = [
        column_drift(name, references[name], tally(references[name], np.repeat(values, repeats)))
        for name, values in window.items()
    ]
    return [c.column for c in judge(columns, **limits) if c.outcome == "drifted"]


UNDRIFTED: tuple[dict[str, Any], ...] = (
    {"rows": 200},
    {"rows": 500},
    {"rows": 2_000},
    {"rows": 20_000},
    {"rows": 2_000, "reference_rows": 500},
    {"rows": 2_000, "psi_limit": 0.0001},
    {"rows": 20_000, "psi_limit": 0.0001},
    {"rows": 2_000, "repeats": 10},
    {"rows": 2_000, "repeats": 40},
)
"""``psi_limit`` near zero leaves the significance alone to keep alarms out."""
DRIFT_ROWS = (200, 500, 1_000, 2_000, 10_000)


def drift(run: Map, trials: int, power_trials: int) -> dict[str, Any]:
    """False alarms over all 30 columns of a window together, and how often a planted shift is found."""
    false = []
    for world in UNDRIFTED:
        found = list(run(partial(drift_outcome, **world), range(trials)))
        false.append(world | rate_of(sum(map(bool, found)), trials))
        print(f"undrifted {world}: {false[-1]}", flush=True)
    power = []
    for shift in list(SHIFTS)[1:]:
        for rows in DRIFT_ROWS:
            found = list(run(partial(drift_outcome, rows=rows, shift=shift), range(power_trials)))
            hits = sum(any(c.endswith("_0") for c in columns) for columns in found)
            power.append({"shift": shift, "rows": rows} | rate_of(hits, power_trials))
        print(shift, [p["rate"] for p in power[-len(DRIFT_ROWS) :]], flush=True)
    return {"undrifted": false, "power": power}


def _line(row: dict[str, Any]) -> str:
    known = ("hits", "trials", "rate", "low", "high", "kept_by_a_slice", "cpu_s_a_trial")
    world = " ".join(f"{k}={v}" for k, v in row.items() if k not in known)
    return (
        f"{world}: {row['hits']}/{row['trials']} = {row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
        f"{row['kept_by_a_slice']} kept by a slice, {row['cpu_s_a_trial']} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["promotion", "drift", []], metavar="promotion|drift")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--power-trials", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    parts = {"promotion": promotion, "drift": drift}
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.parts or parts:
        results[name] = parts[name](map, arguments.trials, arguments.power_trials)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
