"""From files to a model version: what came in, what was kept back, how the model was trained, what each part made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airloop.report import words
from airloop.report.charts import Bar, Line, bars, line_chart

Manifest = Mapping[str, Any]
Manifests = Mapping[str, Manifest]


def sources_section(
    extracts: Sequence[Manifest], validations: Sequence[Manifest], earlier: Sequence[Manifest]
) -> list[dict[str, Any]]:
    """
    Each source: what came in, what the data gate let through, and the rules that were broken.

    :param earlier: manifests that an earlier run made, which this one reused.
    """
    validated = {_input(m, "table"): m for m in validations}
    found = [_source(m, validated.pop(_output(m, "table"), None), earlier) for m in extracts]
    # A table that something else than our extract step brought can be validated too.
    return found + [_source(None, m, earlier) for m in validated.values()]


def _source(extract: Manifest | None, check: Manifest | None, earlier: Sequence[Manifest]) -> dict[str, Any]:
    table = _output(extract, "table") or _input(check, "table")
    counts, checked = (extract or {}).get("counts", {}), (check or {}).get("counts", {})
    details = (extract or {}).get("details", {})
    made = extract or check
    return {
        "name": table.partition("@")[0],
        "files": [f["name"] for f in details.get("files", [])],
        "reused": made["run"]["run_id"] if made is not None and any(made is m for m in earlier) else "",
        "read": counts.get("rows_in"),
        "new": counts.get("rows_new"),
        "corrected": counts.get("rows_corrected"),
        "unchanged": counts.get("rows_unchanged"),
        "late": counts.get("rows_late", 0),
        "superseded": counts.get("rows_superseded", 0) + counts.get("rows_duplicate", 0),
        "checked": checked.get("rows_checked"),
        "quarantined": checked.get("rows_quarantined"),
        "quarantine": (_output(check, "quarantine")).partition("@")[0],
        "published": checked.get("rows_published"),
        "expectations": checked.get("expectations"),
        "evolution": list(details.get("evolution", [])),
        "broken": [_broken(e) for e in (check or {}).get("details", {}).get("expectations", []) if _is_broken(e)],
    }


def _is_broken(expectation: Mapping[str, Any]) -> bool:
    return not expectation["success"] or bool((expectation.get("result") or {}).get("unexpected_count"))


def _broken(expectation: Mapping[str, Any]) -> dict[str, Any]:
    result = expectation.get("result") or {}
    count = result.get("unexpected_count")
    held = "kept back" if expectation.get("quarantine") else "reported only"
    if expectation["success"]:
        held = "within what the rule allows"
    first = next(iter(expectation.get("offenders", [])), None)
    rule, _, columns = expectation["rule"].partition("(")
    # The name of a rule carries its columns: only its limits are new here.
    limits = {k: v for k, v in expectation.get("arguments", {}).items() if not k.startswith("column")}
    return {
        "rule": rule.removeprefix("expect_").replace("_", " "),
        "columns": columns.rstrip(")"),
        "arguments": words.plain(limits) if limits else "",
        "count": count,
        "observed": None if count is not None else result.get("observed_value"),
        "handling": held,
        "first": words.plain(first)[:200] if first else "",
    }


def serving_section(tasks: Manifests, zone: str) -> list[dict[str, str]]:
    """What the run scored and served."""
    found = []
    for m in tasks.values():
        counts, details = m["counts"], m["details"]
        if m["step"] == "batch_score":
            model = words.version(_input(m, "model"))
            text = details.get("reason") or f"{words.counted(counts.get('rows_scored', 0), 'row')} scored by {model}"
            found.append({"name": "Predictions", "text": text, "where": _output(m, "table").partition("@")[0]})
        if m["step"] == "materialize":
            views = details.get("views", {})
            until = max((v["until"] for v in views.values() if v.get("until")), default=None)
            text = (
                f"{words.counted(counts.get('rows', 0), 'entity', 'entities')} in {words.counted(len(views), 'view')}"
            )
            text += f", as of {words.moment(until, zone)}" if until else ""
            found.append(
                {"name": "Online store", "text": text, "where": _input(m, "feature_service").partition("@")[0]}
            )
        if m["step"] == "check_parity":
            text = (
                f"{words.counted(counts['values_compared'], 'value')} of "
                f"{words.counted(counts['keys_compared'], 'entity', 'entities')} served online compared with what "
                "training is given: all the same"
            )
            found.append({"name": "Parity", "text": text, "where": _input(m, "feature_service").partition("@")[0]})
    return found


def examples_section(manifest: Manifest | None, zone: str) -> dict[str, Any] | None:
    """Splits by time and what the leakage gate looked at."""
    if manifest is None:
        return None
    details, counts, bounds = manifest["details"], manifest["counts"], manifest["details"].get("bounds", {})
    means = details.get("label_means", {})
    # Missing values are a question of the view they come from: most views have one cause for all their features.
    missing = sorted((f for f in details.get("features", []) if f["null_share"] > 0), key=lambda f: -f["null_share"])
    return {
        "splits": [
            {
                "name": {"train": "Training", "validation": "Validation", "holdout": "Held out"}[name],
                "rows": counts.get(f"rows_{name}"),
                "label_mean": words.share(means.get(name)),
                "since": words.moment(bounds.get(start), zone)[:10] if bounds.get(start) else "the beginning",
            }
            for name, start in (("train", "start"), ("validation", "validation"), ("holdout", "holdout"))
        ],
        "left_out": [
            (text, counts[key])
            for key, text in (
                ("rows_embargoed", "too near to a split to be in either part"),
                ("rows_waiting_for_label", "without a label yet"),
                ("rows_unlabelled", "without a label"),
            )
            if counts.get(key)
        ],
        "features": len(details.get("features", [])),
        "checked": sum(details.get("leakage", {}).get("values", {}).values()),
        "allowed": sorted(details.get("leakage", {}).get("target", {}).get("allowed", {}).items()),
        "missing": bars(
            "Rows without a value, by feature",
            [
                Bar(words.split_feature(f["name"])[1], float(f["null_share"]), "a", words.split_feature(f["name"])[0],
                    words.share(f["null_share"]))
                for f in missing[:12]
            ],
            most=1.0,
        ),
    }  # fmt: skip


def training_section(manifest: Manifest | None) -> dict[str, Any] | None:
    """Curves, importance and parameters."""
    if manifest is None:
        return None
    details, curves = manifest["details"], manifest["details"].get("curves", {})
    name = next(iter(curves.get("validation") or curves.get("train") or {}), "")
    lines = [
        Line(text, [(i + 1.0, float(v)) for i, v in enumerate(curves[split][name])], style)
        for split, text, style in (("train", "training", "b"), ("validation", "validation", "a"))
        if name in curves.get(split, {})
    ]
    ranked = sorted(details.get("importance", {}).items(), key=lambda pair: -pair[1])
    digits = _digits(float(ranked[0][1])) if ranked else 0
    top = [
        Bar(words.split_feature(n)[1], float(v), "a", words.split_feature(n)[0], f"{v:,.{digits}f}")
        for n, v in ranked[:12]
    ]
    return {
        "trainer": details.get("trainer", ""),
        "iterations": details.get("best_iteration"),
        "rounds": max((len(line.points) for line in lines), default=0),
        "curves": line_chart(f"{_metric(name)} by round", lines, x_label="round", y_label=_metric(name)),
        "importance": bars("Importance of features", top),
        "rest": max(0, len(ranked) - len(top)),
        "parameters": [(k, words.plain(v)) for k, v in sorted(details.get("parameters", {}).items())],
        "libraries": sorted(details.get("libraries", {}).items()),
        "warnings": list(details.get("warnings", [])),
        "mlflow": details.get("mlflow", {}).get("run_id", ""),
    }


def _digits(most: float) -> int:
    """Decimals that give the largest of some figures about three digits."""
    return 0 if most >= 100 else 1 if most >= 10 else 2 if most >= 1 else 3


def _metric(name: str) -> str:
    return {"logloss": "Log loss", "auc": "ROC AUC", "error": "Error", "rmse": "RMSE"}.get(name, name or "loss")


def lineage_section(tasks: Manifests, registered: Manifest | None) -> list[dict[str, Any]]:
    """From the files to the model version: each stage with the snapshots or names that it made."""
    by_step: dict[str, list[Manifest]] = {}
    for m in tasks.values():
        by_step.setdefault(m["step"], []).append(m)

    def inputs(step: str) -> list[str]:
        return [v["reference"] for m in by_step.get(step, []) for v in m["inputs"].values() if v["kind"] == "table"]

    def outputs(step: str, role: str) -> list[str]:
        return [_output(m, role) for m in by_step.get(step, [])]

    files = [
        f"{f['name']}@{f['sha256'][:12]}" for m in by_step.get("extract", []) for f in m["details"].get("files", [])
    ]
    published = outputs("validate", "table") or outputs("extract", "table")
    made = [*outputs("sql", "table"), *outputs("build_labels", "table"), *inputs("build_training_set")]
    stages = [
        ("Files", files),
        ("Published tables", published or inputs("sql")),
        ("Features and labels", made),
        ("Training set", outputs("build_training_set", "table") or inputs("train")),
        ("Candidate", outputs("train", "model") or outputs("evaluate", "model")),
        ("Gate", [m["outputs"]["decision"]["reference"] for m in by_step.get("evaluate", [])]),
        ("Version", [_output(registered, "model")]),
        ("Champion's predictions", [r for role in ("model", "table") for r in outputs("batch_score", role)]),
    ]
    return [
        {"name": name, "references": [_reference(r) for r in dict.fromkeys(found) if r]}
        for name, found in stages
        if any(found)
    ]


def origin_section(origin: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    What the model was made of, over all runs that had a part in it.

    :param origin: ``model``, ``files``, ``tables`` and ``code``, as :mod:`airloop.provenance.lineage_story` sums it up.
    """
    if origin is None:
        return None
    return {
        "model": origin["model"],
        "files": [
            {**file, "size": "" if file["bytes"] is None else words.size(file["bytes"])} for file in origin["files"]
        ],
        "tables": origin["tables"],
        "code": [{**code, "libraries": ", ".join(code["libraries"])} for code in origin["code"]],
    }


def _reference(text: str) -> dict[str, str]:
    """Split into what people look for and what makes it exact."""
    if text.startswith("decision:"):
        name, _, digest = text.partition("#")
        return {"name": name.rpartition("/")[2], "exact": digest[:12], "whole": text}
    name, _, exact = text.partition("@")
    return {"name": name, "exact": "empty" if exact == "0" else exact, "whole": text}


def tasks_section(tasks: Manifests, earlier: Sequence[Manifest], absent: Sequence[str]) -> list[dict[str, Any]]:
    """Every task with its key and what it took; those without a result are named too."""
    found = [
        {
            "task": task,
            "step": m["step"],
            "key": m["key"],
            "made_at": m["finished_at"][:16].replace("T", " "),
            "seconds": words.seconds(sum(m["seconds"].values())),
            "memory": words.count(round(m["resources"]["peak_rss_bytes"] / 2**20)),
            "reused": m["run"]["run_id"] if any(m is e for e in earlier) else "",
            "changed": m.get("changed", True),
        }
        for task, m in tasks.items()
    ]
    return found + [{"task": task, "step": "", "key": ""} for task in absent]


def _output(manifest: Manifest | None, role: str) -> str:
    return str((manifest or {}).get("outputs", {}).get(role, {}).get("reference", ""))


def _input(manifest: Manifest | None, role: str) -> str:
    return str((manifest or {}).get("inputs", {}).get(role, {}).get("reference", ""))
