"""
How often the gates are wrong: measured on worlds whose truth is known, through the gates' own functions.

    python -m benchmarks.gates [promotion] [trained] [leakage] [drift] [--trials 1000] [--power-trials 200] [--check]

Figures go to ``benchmarks/results/gates.json``, and from there into the page of gates and ``docs/images/power.svg``.
Everything follows from seeds: the same command gives the same figures, on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads would only wait for each other
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from airloop.domain.deals import draws_for
from airloop.domain.distributions import binomial_lower, binomial_upper
from airloop.domain.drift import column_drift, judge, tally
from airloop.domain.gates import Policy, decide
from airloop.domain.metrics import METRICS
from airloop.domain.target_leakage import giveaways
from airloop.training.summary import summarise_codes, summarise_numbers
from benchmarks.common import REPOSITORY
from benchmarks.gates_page import publish
from benchmarks.worlds import LEAKS, SHIFTS, Floats, days_of, drift_window, examples, two_models

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


REFERENCE_DAYS = 90
WINDOWS_A_REFERENCE = 10
"""Windows that are held against one reference, as one model sees many."""
Reference = tuple[dict[str, Any], Floats]


@lru_cache(maxsize=1)
def drift_reference(number: int, rows: int, alike: float, lasting: float) -> dict[str, Reference]:
    """What a model keeps of its training rows, made by the trainer's own functions, and the counts by day."""
    found: dict[str, Reference] = {}
    days = days_of(rows, REFERENCE_DAYS)
    window = drift_window((2, number), rows, days=REFERENCE_DAYS, alike=alike, lasting=lasting)
    for name, values in window.items():
        if values.dtype != object:
            kept = {"kind": "number"} | summarise_numbers(values)
        else:
            categories, codes = np.unique(values.astype(str), return_inverse=True)
            kept = {"kind": "category"} | summarise_codes(codes.astype(np.float64), list(categories))
        found[name] = (kept, tally(kept, values, days, REFERENCE_DAYS))
    return found


def drift_outcome(
    trial: int,
    *,
    rows: int,
    days: int = 28,
    reference_rows: int = 9_000,
    shift: str = "none",
    alike: float = 0.0,
    lasting: float = 0.0,
    clustered: bool = True,
    false_alarm_rate: float = 0.01,
    psi_limit: float = 0.2,
) -> list[str]:
    """
    The columns of one window that are said to have drifted.

    :param clustered: whether the gate is told the days.
    """
    references = drift_reference(trial // WINDOWS_A_REFERENCE, reference_rows, alike, lasting)
    window = drift_window((3, trial), rows, shift, days=days, alike=alike, lasting=lasting)
    draws = draws_for(len(window), false_alarm_rate)
    columns = [
        column_drift(name, references[name][0], tally(references[name][0], values, days_of(rows, days), days),
                     references[name][1], draws=draws)
        if clustered
        else column_drift(name, references[name][0], tally(references[name][0], values))
        for name, values in window.items()
    ]  # fmt: skip
    judged = judge(columns, psi_limit=psi_limit, false_alarm_rate=false_alarm_rate)
    return [c.column for c in judged if c.outcome == "drifted"]


ROWS_A_DAY = 100
SPANS = (5, 7, 10, 28)
"""Days of a window."""
ALIKE = (0.0, 0.2, 0.5, 0.9)
"""The day's share of the variance."""
UNDRIFTED: tuple[dict[str, Any], ...] = (
    {"rows": 200},
    {"rows": 500},
    {"rows": 2_000},
    {"rows": 20_000},
    {"rows": 2_000, "reference_rows": 500},
    {"rows": 2_000, "psi_limit": 0.0001},
    {"rows": 700, "days": 7, "alike": 0.5, "psi_limit": 0.0001},
    {"rows": 2_800, "alike": 0.5, "psi_limit": 0.0001},
    {"rows": 350, "days": 7, "alike": 0.5},
    {"rows": 1_400, "days": 7, "alike": 0.5},
    {"rows": 700, "days": 7, "alike": 0.2, "clustered": False},
    {"rows": 700, "days": 7, "alike": 0.5, "clustered": False},
    {"rows": 700, "days": 7, "alike": 0.5, "lasting": 0.7},
    {"rows": 2_800, "alike": 0.5, "lasting": 0.7},
)
"""``psi_limit`` near zero leaves the significance alone to keep alarms out."""
DRIFT_ROWS = (200, 500, 1_000, 2_000)


def drift(run: Map, trials: int, power_trials: int) -> dict[str, Any]:
    """False alarms over all 30 columns of a window together, and how often a planted shift is found."""
    worlds = [{"rows": ROWS_A_DAY * days, "days": days, "alike": alike} for alike in ALIKE for days in SPANS]
    found: dict[str, Any] = {
        "undrifted": [_false_alarms(run, world, trials) for world in UNDRIFTED],
        "alike": [_false_alarms(run, world, trials) for world in worlds],
        "power": [],
        "power_alike": [],
    }
    for shift in list(SHIFTS)[1:]:
        for rows in DRIFT_ROWS:
            world = {"shift": shift, "rows": rows}
            found["power"].append(world | _found(run, world, max(1, power_trials // 2)))
        print(shift, [p["rate"] for p in found["power"][-len(DRIFT_ROWS) :]], flush=True)
    for shift in STRONG:
        for alike in (0.2, 0.5):
            for days in SPANS:
                world = {"shift": shift, "rows": ROWS_A_DAY * days, "days": days, "alike": alike}
                found["power_alike"].append(world | _found(run, world, max(1, power_trials // 2)))
            print(shift, alike, [p["rate"] for p in found["power_alike"][-len(SPANS) :]], flush=True)
    return found


STRONG = ("mean +0.5 sd", "mean +0.75 sd", "sd x2", "missing 1% → 25%", "category 30% → 55%")
"""Shifts that are looked for where days differ."""


def _false_alarms(run: Map, world: dict[str, Any], trials: int) -> dict[str, Any]:
    count = max(1, trials // (2 if world["rows"] < 20_000 else 10))
    outcomes = list(run(partial(drift_outcome, **world), range(count)))
    row = world | rate_of(sum(map(bool, outcomes)), count)
    print(f"undrifted {row}", flush=True)
    return row


def _found(run: Map, world: dict[str, Any], trials: int) -> dict[str, Any]:
    outcomes = list(run(partial(drift_outcome, **world), range(trials)))
    return rate_of(sum(any(c.endswith("_0") for c in columns) for columns in outcomes), trials)


def _line(row: dict[str, Any]) -> str:
    known = ("hits", "trials", "rate", "low", "high", "kept_by_a_slice", "cpu_s_a_trial")
    world = " ".join(f"{k}={v}" for k, v in row.items() if k not in known)
    return (
        f"{world}: {row['hits']}/{row['trials']} = {row['rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
        f"{row['kept_by_a_slice']} kept by a slice, {row['cpu_s_a_trial']} s"
    )


def trained_outcome(
    trial: int, *, blind: int = 0, rows: int = 5_000, days: int = 28, fresh_rows: int = 50_000
) -> dict[str, Any]:
    """
    Two XGBoost models of one recipe and other seeds, trained on the same rows: by ``min_gain`` the decision on
    held-out rows, and the true gain in ROC AUC, on fresh ones.

    :param blind: features that the champion does not see.
    """
    from xgboost import XGBClassifier

    generator = np.random.default_rng((5, trial))
    matrix = generator.standard_normal((4_000 + rows + fresh_rows, 10))
    logit = matrix[:, 0] + 0.7 * matrix[:, 1] * matrix[:, 2] + 0.5 * np.abs(matrix[:, 3]) + 0.4 * matrix[:, 4] - 2
    labels = (generator.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    train, held, fresh = slice(0, 4_000), slice(4_000, 4_000 + rows), slice(4_000 + rows, None)

    def scores(seed: int, first: int) -> Floats:
        model = XGBClassifier(
            n_estimators=60, max_depth=4, learning_rate=0.1, subsample=0.7, colsample_bytree=0.7, n_jobs=1,
            random_state=seed,
        )  # fmt: skip
        model.fit(matrix[train, first:], labels[train])
        found: Floats = model.predict_proba(matrix[:, first:])[:, 1].astype(np.float64)
        return found

    challenger, champion = scores(2 * trial, 0), scores(2 * trial + 1, blind)
    outcomes = {
        min_gain: decide(
            labels=labels[held],
            challenger=challenger[held],
            champion=champion[held],
            clusters=np.arange(rows) * days // rows,
            policy=Policy(floors=FLOORS, min_gain=min_gain),
        ).outcome
        for min_gain in (0.0, 0.01)
    }
    auc = METRICS["roc_auc"].function
    gain = auc(labels[fresh], challenger[fresh], None) - auc(labels[fresh], champion[fresh], None)
    return {"outcomes": outcomes, "gain": gain}


def trained(run: Map, trials: int, power_trials: int) -> dict[str, Any]:
    """The same with models that are really trained; a tenth of the trials, for each trains two."""
    found: dict[str, Any] = {}
    for name, blind in (("of the same recipe, another seed", 0), ("without the best feature", 1)):
        count = max(4, trials // (20 if blind else 10))
        seen = list(run(partial(trained_outcome, blind=blind), range(count)))
        gains = [s["gain"] for s in seen]
        for min_gain in (0.0, 0.01):
            passed = [s["gain"] for s in seen if s["outcomes"][min_gain] == "promote"]
            wrong = sum(gain <= 0 for gain in passed)
            found[f"{name}; min_gain {min_gain:g}"] = rate_of(len(passed), count) | {
                "not_better": wrong, "gain_sd": round(float(np.std(gains)), 5),
                "gain_mean": round(float(np.mean(gains)), 5),
            }  # fmt: skip
    for name, row in found.items():
        print(f"{name}: {row}", flush=True)
    return found


def leakage_outcome(trial: int, *, leak: str = "") -> tuple[int, list[str]]:
    """Rows of the rarer class, and the features that are refused."""
    columns, labels = examples(trial, leak)
    found, _ = giveaways(columns, labels)
    return int(min(labels.sum(), len(labels) - labels.sum())), [g.feature for g in found]


def leakage(run: Map, trials: int, power_trials: int) -> dict[str, Any]:
    """Clean sets that are refused, and planted copies that are found, by how many rows of the rarer class there are."""
    refused = sum(bool(found) for _, found in run(leakage_outcome, range(trials)))
    clean = rate_of(refused, trials)
    print(f"clean: {clean}", flush=True)
    planted = []
    for leak in LEAKS:
        outcomes = list(run(partial(leakage_outcome, leak=leak), range(power_trials)))
        for least, most in ((20, 400), (400, 10**9)):
            hits = [found == ["leak"] for rarer, found in outcomes if least <= rarer < most]
            planted.append({"leak": leak, "rarer_class_from": least} | rate_of(sum(hits), len(hits)))
        print(leak, [p["rate"] for p in planted[-2:]], flush=True)
    return {"clean": clean, "planted": planted}


PARTS = {"promotion": promotion, "trained": trained, "leakage": leakage, "drift": drift}
PROMISED = {"rows": 5_000, "margin": 0.02}
"""Where the power is at least 95 %."""


def missed(results: dict[str, Any]) -> list[str]:
    """What docs/explain/gates.md promises and these figures do not show."""
    found = []
    for row in results.get("promotion", {}).get("same", []):
        if row["rate"] > 0.05:
            found.append(f"two models of the same quality: {_line(row)}")
    for row in results.get("promotion", {}).get("power", []):
        if row["rows"] >= PROMISED["rows"] and row["margin"] >= PROMISED["margin"] and row["rate"] < 0.95:
            found.append(f"a better model: {_line(row)}")
    for name, row in results.get("trained", {}).items():
        if row["not_better"] > 0.05 * row["trials"]:
            found.append(f"trained models that are not better were promoted: {name}: {row}")
    if results.get("leakage", {}).get("clean", {}).get("hits"):
        found.append(f"clean sets refused: {results['leakage']['clean']}")
    for row in results.get("leakage", {}).get("planted", []):
        if row["rarer_class_from"] >= 400 and row["rate"] < 1:
            found.append(f"a planted copy was missed: {row}")
    measured = results.get("drift", {})
    for row in [*measured.get("undrifted", []), *measured.get("alike", [])]:
        # The rate is kept if the figure is no surprise under it; days untold, or alike in a row, are what it cannot do.
        if row.get("clustered", True) and not row.get("lasting") and row["low"] > 0.01:
            found.append(f"false alarms of drift: {row}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--trials", type=int, default=1000, help="where nothing is to be found")
    parser.add_argument("--power-trials", type=int, default=200, help="where something is planted")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="few trials, to see that it works; neither writes nor checks"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a promise of the page of gates is missed")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    trials, power_trials = (20, 4) if arguments.quick else (arguments.trials, arguments.power_trials)
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() and not arguments.quick else {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        run: Map = partial(pool.map, chunksize=10)
        for name in arguments.parts or PARTS:
            kept[name] = PARTS[name](run, trials, power_trials)
            if not arguments.quick:
                arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    if not arguments.quick and arguments.out == OUT:
        publish(kept)
    bad = missed(kept) if arguments.check and not arguments.quick else []
    for line in bad:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
