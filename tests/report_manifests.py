"""Manifests of a small loop, made by hand: what the report reads, and nothing else."""

from __future__ import annotations

from typing import Any

START, END = "2013-02-01T05:00:00+00:00", "2013-03-01T05:00:00+00:00"
RUN = "scheduled__2013-03-01"

METRICS = {"roc_auc": 0.7273, "average_precision": 0.4991, "log_loss": 0.5085, "brier": 0.1665, "accuracy": 0.765}
WORSE = {"roc_auc": 0.7054, "average_precision": 0.4514, "log_loss": 0.5281, "brier": 0.1743, "accuracy": 0.7506}


def manifest(step: str, *, run_id: str = RUN, minute: int = 0, **parts: Any) -> dict[str, Any]:
    """A manifest as the frame writes it; references are given as text."""
    found = {
        "format": 1,
        "step": step,
        "key": f"{step}-".ljust(64, "0"),
        "attempt": "0123456789abcdef",
        "run": {"dag_id": "loop", "run_id": run_id, "task_id": step, "map_index": -1, "try_number": 1},
        "interval": {"start": START, "end": END},
        "arguments": {},
        "inputs": {},
        "outputs": {},
        "counts": {},
        "metrics": {},
        "details": {},
        "links": {},
        "changed": True,
        "event": None,
        "code": {"fingerprint": "ab" * 32, "modules": {"airloop.steps": "cd" * 32}, "libraries": {"duckdb": "1.5.6"}},
        "python": "3.11.7",
        "finished_at": f"2026-11-21T21:{minute:02d}:00.000+00:00",
        "seconds": {"resolve": 0.05, "wait": 0.0, "run": 1.5},
        "resources": {"cpu_s": 1.0, "peak_rss_bytes": 400 * 2**20},
    }
    for kind in ("inputs", "outputs"):
        parts[kind] = {role: _reference(text) for role, text in parts.get(kind, {}).items()}
    return found | parts


def _reference(text: str) -> dict[str, str]:
    kind = "model" if text.startswith("model:") else "decision" if text.startswith("decision:") else "table"
    return {"kind": kind, "reference": text}


def difference(estimate: float, low: float, high: float) -> dict[str, Any]:
    return {
        "estimate": estimate, "low": low, "high": high, "confidence": 0.95, "standard_error": 0.01, "clusters": 7,
        "resamples": 2000,
    }  # fmt: skip


def slice_of(column: str, value: str, gain: float | None, outcome: str = "ok") -> dict[str, Any]:
    d = None if gain is None else difference(gain, gain - 0.03, gain + 0.03)
    return {
        "column": column, "value": value, "rows": 1000, "positives": 200, "outcome": outcome,
        "champion": None if gain is None else 0.7, "challenger": None if gain is None else 0.7 + gain,
        "difference": d, "p_adjusted": 1.0, "why": "" if gain is not None else "32 rows, at least 200 are needed",
    }  # fmt: skip


def decision(outcome: str = "promote", *, champion: bool = True, **parts: Any) -> dict[str, Any]:
    bins = [{"low": x, "high": x + 0.1, "rows": 100, "mean_score": x + 0.05, "rate": x + 0.04} for x in (0.1, 0.3, 0.6)]
    names = ("challenger", "champion") if champion else ("challenger",)
    found = {
        "outcome": outcome,
        "reasons": ["roc_auc 0.7273 against the champion's 0.7054, gain +0.0219, 95% interval [-0.0139, +0.0576]"],
        "metric": "roc_auc",
        "rows": 6162,
        "positives": 1603,
        "clusters": 7,
        "challenger_metrics": dict(METRICS),
        "champion_metrics": dict(WORSE) if champion else None,
        "difference": difference(0.0219, 0.005, 0.0388) if champion else None,
        "slices": [slice_of("carrier", "UA", 0.01), slice_of("carrier", "HA", None, "too few")] if champion else [],
        "floors": [{"metric": "roc_auc", "limit": 0.6, "at_least": True, "value": 0.7273, "held": True}],
        "calibration": {n: {"error": 0.0143, "in_the_large": 0.0, "bins": bins} for n in names},
        "policy": {
            "metric": "roc_auc", "confidence": 0.95, "min_gain": 0.0, "slice_tolerance": 0.02, "floors": {},
            "cluster": "day",
        },
    }  # fmt: skip
    return found | parts


def curves(made: dict[str, Any]) -> dict[str, Any]:
    own = {
        "roc": [[0.0, 0.0], [0.2, 0.5], [1.0, 1.0]],
        "scores": {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "positive": [1, 5, 6, 3], "negative": [20, 9, 2, 0]},
    }
    return {name: {**own, "reliability": found["bins"]} for name, found in made["calibration"].items()}


def gate(made: dict[str, Any]) -> dict[str, Any]:
    champion = "model:/delay/1" if made["champion_metrics"] else "model:/delay/none"
    return manifest(
        "evaluate",
        minute=7,
        inputs={"challenger": "model:/run/abc", "champion": champion, "examples": "training.delay@5"},
        outputs={"model": "model:/run/abc", "champion": champion, "decision": "decision:steps/e/decision.json#fa26"},
        details={"outcome": made["outcome"], "reasons": made["reasons"], "decision": made, "curves": curves(made)},
    )


def registered(
    version: int = 2, champion: str = "2", *, previous: int | None = 1, state: str = "done"
) -> dict[str, Any]:
    return manifest(
        "register",
        minute=8,
        outputs={"model": f"model:/delay/{version}", "champion": f"model:/delay/{champion}"},
        details={"state": state, "entry": {"previous": previous}},
    )


def column(name: str, psi: float, outcome: str = "ok") -> dict[str, Any]:
    bins = [{"bin": "< -1.25", "reference": 0.5, "current": 0.1}, {"bin": "≥ -1.25", "reference": 0.5, "current": 0.9}]
    return {"column": name, "kind": "number", "rows": 900, "psi": psi, "outcome": outcome, "bins": bins, "why": ""}


def monitor(**details: Any) -> dict[str, Any]:
    drift = {"columns": [column("weather__temp", 0.59, "drifted"), column("hour", 0.01), column("odd", 0.3)]}
    judged = {
        "metric": "roc_auc", "value": 0.6716, "low": 0.6399, "high": 0.7032, "reference": 0.7031, "limit": 0.6531,
    }  # fmt: skip
    live = {
        "version": "model:/delay/1", "rows": 23534, "positives": 5000, "metrics": dict(METRICS),
        "calibration": {"error": 0.02}, "judged": judged, "crossed": False, "why": "",
    }  # fmt: skip
    found = {
        "drift": drift,
        "quality": {"models": [live], "unlabelled": 1417},
        "freshness": [
            {"table": "labels.arrivals", "newest": "2013-03-01T04:59:00+00:00", "age_hours": 0.0167, "stale": False,
             "why": ""},
        ],
        "crossed": ["weather__temp: index 0.592 is over 0.2 (adjusted p 0)"],
    } | details  # fmt: skip
    columns = found["drift"]["columns"]
    return manifest(
        "detect_drift",
        minute=9,
        arguments={"psi_limit": 0.2, "false_alarm_rate": 0.01},
        inputs={"model": "model:/delay/1" if columns else "model:/delay/none", "current": "training.delay@5"},
        outputs={"table": "monitoring.drift@9", "quality": "monitoring.quality@9"},
        counts={
            "columns": len(columns),
            "columns_drifted": sum(c["outcome"] == "drifted" for c in columns),
            "crossed": len(found["crossed"]),
        },
        details=found,
    )


def expectation(rule: str, *, count: int = 0, success: bool = True, quarantine: bool = True) -> dict[str, Any]:
    return {
        "rule": rule, "arguments": {"column": "x", "max_value": 150}, "severity": "critical", "success": success,
        "quarantine": quarantine, "result": {"unexpected_count": count},
        "offenders": [{"wind_speed": 1048.4, "_row": 1010}] if count else [],
    }  # fmt: skip


def loop(made: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Manifests by task id of a whole run that promoted a challenger over a champion."""
    made = decision() if made is None else made
    return {
        "weather.extract": manifest(
            "extract",
            outputs={"table": "raw.weather@1"},
            counts={"rows_in": 26115, "rows_new": 2000, "rows_corrected": 10, "rows_unchanged": 0},
            details={
                "files": [{"name": "weather.csv", "sha256": "5d1e" * 16, "bytes": 1}],
                "evolution": ["added column gust (double)"],
            },
        ),
        "weather.validate": manifest(
            "validate",
            minute=1,
            inputs={"table": "raw.weather@1"},
            outputs={"table": "raw.weather@2", "quarantine": "quarantine.raw_weather@3"},
            counts={"rows_checked": 2010, "rows_quarantined": 1, "rows_published": 2009, "expectations": 2},
            details={
                "expectations": [
                    expectation("expect_column_values_to_be_between(wind_speed)", count=1, success=False),
                    expectation("expect_column_values_to_not_be_null(origin)"),
                ]
            },
        ),
        "planes.extract": manifest(
            "extract",
            run_id="scheduled__2013-02-01",
            outputs={"table": "raw.planes@4"},
            counts={"rows_in": 3322, "rows_new": 3322, "rows_corrected": 0, "rows_unchanged": 0},
            details={"files": [{"name": "planes.csv", "sha256": "7789" * 16, "bytes": 1}], "evolution": []},
        ),
        "features.weather": manifest(
            "sql",
            minute=2,
            inputs={"inputs.weather": "raw.weather@2"},
            outputs={"table": "features.weather@7"},
            counts={"rows": 2009, "rows_new": 2009, "rows_changed": 0},
            details={"evolution": []},
        ),
        "online": manifest(
            "materialize",
            minute=3,
            counts={"rows": 3},
            details={"views": {"weather": {"until": END}}},
        ),
        "examples": manifest(
            "build_training_set",
            minute=4,
            inputs={"labels": "labels.arrivals@6", "tables[0]": "features.weather@7"},
            outputs={"table": "training.delay@5"},
            counts={"rows_train": 37435, "rows_validation": 6166, "rows_holdout": 6162, "rows_embargoed": 169},
            details={
                "features": [
                    {"name": "hour", "kind": "request", "view": "", "null_share": 0.0},
                    {"name": "weather__temp", "kind": "view", "view": "weather", "null_share": 0.125},
                ],
                "bounds": {"start": None, "validation": "2013-02-15T05:00:00+00:00", "holdout": END, "end": END},
                "leakage": {"values": {"weather": 49000}, "target": {"allowed": {"odd": "alone it ranks <all>"}}},
                "label_means": {"train": 0.235, "validation": 0.215, "holdout": 0.26},
            },
        ),
        "train": manifest(
            "train",
            minute=5,
            inputs={"examples": "training.delay@5"},
            outputs={"model": "model:/run/abc", "examples": "training.delay@5"},
            details={
                "trainer": "xgboost",
                "parameters": {"max_depth": 6, "eta": 0.1},
                "best_iteration": 2,
                "importance": {"weather__temp": 34.5, "hour": 12.0},
                "curves": {"train": {"logloss": [0.6, 0.5, 0.4]}, "validation": {"logloss": [0.61, 0.55, 0.56]}},
                "libraries": {"xgboost-cpu": "3.2.0"},
                "mlflow": {"run_id": "abc", "experiment_id": "1"},
            },
        ),
        "gate": gate(made),
        "register": registered(),
        "score": manifest(
            "batch_score",
            minute=9,
            inputs={"model": "model:/delay/1"},
            outputs={"table": "predictions.delay@8", "model": "model:/delay/1"},
            counts={"rows_scored": 24951},
        ),
        "monitor": monitor(),
    }


def origin(name: str = "flights.csv.zip") -> dict[str, Any]:
    """What a model was made of, as lineage sums it up."""
    return {
        "model": "delay version 2",
        "files": [
            {"name": name, "sha256": "5d1e" * 16, "bytes": 8_258_905},
            {"name": "b", "sha256": "77" * 32, "bytes": None},
        ],
        "tables": [{"name": "raw.flights", "snapshot": "7586999508291845574", "rows": 51_955, "commits": 2}],
        "code": [
            {
                "step": "train", "fingerprint": "f2fd" * 16, "modules": 38, "python": "3.11.7", "times": 1,
                "libraries": ["numpy 2.4.6", "pyarrow 25.0.1"],
            },
            {
                "step": "register", "fingerprint": "e43d" * 16, "modules": 27, "python": "3.11.7", "times": 2,
                "libraries": [],
            },
        ],
    }  # fmt: skip
