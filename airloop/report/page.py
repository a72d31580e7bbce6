"""
What a run's page says, taken from the manifests of its tasks; and the small entry that the index keeps of it.

A page is data first (:func:`describe`), then HTML (:func:`render`). Tasks that a loop does not have leave their part
of the page out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from airloop.contract import Interval
from airloop.report.charts import Line, Span, bars, histogram, line_chart, spans

Manifests = Mapping[str, Mapping[str, Any]]
"""Manifest by task id."""

OUTCOMES = {
    "promote": ("Promoted", "good"),
    "keep": ("Champion kept", "calm"),
    "reject": ("Rejected", "bad"),
    "superseded": ("Superseded", "calm"),
}


def describe(loop: str, title: str, interval: Interval | None, tasks: Manifests, zone: str = "UTC") -> dict[str, Any]:
    """
    Everything that a run's page shows, as plain data and finished charts.

    :param tasks: manifests by task id, in the order of the loop.
    :param zone: IANA time zone in which the interval is written.
    """
    gate = _first(tasks, "evaluate")
    decision: dict[str, Any] = (gate or {}).get("details", {}).get("decision", {})
    registered = _first(tasks, "register")
    return {
        "loop": loop,
        "title": title,
        "interval": _interval(interval, zone),
        "outcome": _outcome(decision, registered),
        "facts": _facts(tasks, decision),
        "sources": _sources(tasks),
        "tables": _tables(tasks),
        "gate": _gate(gate, decision),
        "training": _training(_first(tasks, "train")),
        "examples": _examples(_first(tasks, "build_training_set")),
        "drift": _drift(_first(tasks, "detect_drift")),
        "lineage": _lineage(tasks, registered),
        "tasks": _task_list(tasks),
    }


def entry(page: Mapping[str, Any], tasks: Manifests, interval: Interval | None) -> dict[str, Any]:
    """What the index keeps of a page."""
    decision: dict[str, Any] = (_first(tasks, "evaluate") or {}).get("details", {}).get("decision", {})
    metric = decision.get("metric", "")
    drift = (_first(tasks, "detect_drift") or {}).get("counts", {})
    return {
        "interval": interval.as_json() if interval else None,
        "label": page["interval"],
        "outcome": page["outcome"],
        "metric": metric,
        "challenger": (decision.get("challenger_metrics") or {}).get(metric),
        "champion": (decision.get("champion_metrics") or {}).get(metric),
        "rows_in": sum(m["counts"].get("rows_new", 0) for m in _all(tasks, "extract")),
        "quarantined": sum(m["counts"].get("rows_quarantined", 0) for m in _all(tasks, "validate")),
        "training_rows": (_first(tasks, "build_training_set") or {}).get("counts", {}).get("rows_train"),
        "drifted": drift.get("features_drifted", drift.get("crossed")),
    }


def render(page: Mapping[str, Any]) -> str:
    """The page as one HTML file."""
    return str(_environment().get_template("run.html.j2").render(page=page))


def render_index(loop: str, title: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """
    The loop's index as one HTML file.

    :param entries: in the order of their intervals, each with ``file``, the page's name beside the index.
    """
    measured = [e for e in entries if e.get("challenger") is not None]
    chart = ""
    if len(measured) > 1:
        challenger = [(i + 1.0, float(e["challenger"])) for i, e in enumerate(measured)]
        champion = [(i + 1.0, float(e["champion"])) for i, e in enumerate(measured) if e.get("champion") is not None]
        lines = [Line("challenger", challenger, "a", dots=True)]
        if champion:
            lines.append(Line("champion on the same rows", champion, "b", dots=True))
        chart = line_chart(
            f"{measured[0]['metric']} by run", lines, x_label="run", y_label=measured[0]["metric"]
        )
    template = _environment().get_template("index.html.j2")
    return str(template.render(loop=loop, title=title, entries=list(reversed(entries)), chart=chart))


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airloop.report"),
        # Names of columns, carriers and files come from data: everything is escaped but our own charts.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    environment.filters["figure"] = lambda value, digits=4: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.1%}"
    return environment


def _first(tasks: Manifests, step: str) -> Mapping[str, Any] | None:
    return next((m for m in tasks.values() if m["step"] == step), None)


def _all(tasks: Manifests, step: str) -> list[Mapping[str, Any]]:
    return [m for m in tasks.values() if m["step"] == step]


def _interval(interval: Interval | None, zone: str) -> str:
    if interval is None:
        return "no interval"
    start, end = (t.astimezone(ZoneInfo(zone)) for t in (interval.start, interval.end))
    if _midnight(start) and _midnight(end):
        if start.day == 1 and end.day == 1 and (end.year * 12 + end.month) - (start.year * 12 + start.month) == 1:
            return f"{start:%B %Y}"
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} {zone}"


def _midnight(at: datetime) -> bool:
    return (at.hour, at.minute, at.second) == (0, 0, 0)


def _outcome(decision: Mapping[str, Any], registered: Mapping[str, Any] | None) -> dict[str, Any]:
    name, style = OUTCOMES.get(decision.get("outcome", ""), ("No decision", "calm"))
    details = (registered or {}).get("details", {})
    return {
        "name": name,
        "style": style,
        "summary": details.get("summary", ""),
        "reasons": list(decision.get("reasons", [])),
        "version": (registered or {}).get("outputs", {}).get("model", {}).get("reference", ""),
        "champion": (registered or {}).get("outputs", {}).get("champion", {}).get("reference", ""),
    }


def _facts(tasks: Manifests, decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures at the top of the page."""
    facts = []
    extracts, examples = _all(tasks, "extract"), _first(tasks, "build_training_set")
    if extracts:
        new = sum(m["counts"].get("rows_new", 0) + m["counts"].get("rows_corrected", 0) for m in extracts)
        facts.append({"name": "rows in", "value": f"{new:,}"})
        quarantined = sum(m["counts"].get("rows_quarantined", 0) for m in _all(tasks, "validate"))
        facts.append({"name": "quarantined", "value": f"{quarantined:,}"})
    if examples:
        counts = examples["counts"]
        facts.append({"name": "training rows", "value": f"{counts['rows_train']:,}"})
        facts.append({"name": "held-out rows", "value": f"{counts['rows_holdout']:,}"})
    metric = decision.get("metric")
    if metric:
        value = decision["challenger_metrics"].get(metric)
        facts.append({"name": f"{metric}, challenger", "value": "–" if value is None else f"{value:.4f}"})
        difference = decision.get("difference")
        if difference:
            facts.append({"name": "against the champion", "value": f"{difference['estimate']:+.4f}"})
    return facts


def _sources(tasks: Manifests) -> list[dict[str, Any]]:
    """Each source: what came in, what the gate let through, and the rules that were broken."""
    extracted = {m["outputs"]["table"]["reference"]: m for m in _all(tasks, "extract")}
    found = []
    for validated in _all(tasks, "validate"):
        table = validated["inputs"].get("table", {}).get("reference", "")
        extract = extracted.get(table)
        broken = [
            {
                "rule": e["rule"],
                "arguments": ", ".join(f"{k}={v}" for k, v in e.get("arguments", {}).items()),
                "count": (e.get("result") or {}).get("unexpected_count"),
                "quarantine": bool(e.get("quarantine")),
            }
            for e in validated["details"].get("expectations", [])
            if not e["success"] or (e.get("result") or {}).get("unexpected_count")
        ]
        found.append(
            {
                "name": table.partition("@")[0],
                "files": [f["name"] for f in (extract or {}).get("details", {}).get("files", [])],
                "read": (extract or {}).get("counts", {}).get("rows_in"),
                "new": (extract or {}).get("counts", {}).get("rows_new"),
                "corrected": (extract or {}).get("counts", {}).get("rows_corrected"),
                "quarantined": validated["counts"].get("rows_quarantined", 0),
                "published": validated["counts"].get("rows_published"),
                "expectations": validated["counts"].get("expectations"),
                "evolution": (extract or {}).get("details", {}).get("evolution", []),
                "broken": broken,
            }
        )
    return found


def _tables(tasks: Manifests) -> list[dict[str, Any]]:
    return [
        {"name": m["outputs"]["table"]["reference"].partition("@")[0], "rows": m["counts"].get("rows")}
        for m in (*_all(tasks, "sql"), *_all(tasks, "build_labels"))
    ]


def _examples(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    details, counts = manifest["details"], manifest["counts"]
    means = details.get("label_means", {})
    return {
        "splits": [
            {"name": name, "rows": counts.get(f"rows_{name}"), "label_mean": means.get(name)}
            for name in ("train", "validation", "holdout")
        ],
        "waiting": counts.get("rows_waiting_for_label", 0),
        "embargoed": counts.get("rows_embargoed", 0),
        "features": len(details.get("features", [])),
        "nulls": bars(
            "Share of rows without a value, by feature",
            sorted(
                ((f["name"], float(f["null_share"])) for f in details.get("features", []) if f["null_share"] > 0),
                key=lambda pair: -pair[1],
            )[:10],
        ),
        "checked": sum(details.get("leakage", {}).get("values", {}).values()),
    }


def _training(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    details = manifest["details"]
    curves = details.get("curves", {})
    lines = [
        Line(split, [(i + 1.0, v) for i, v in enumerate(values)], style)
        for split, style in (("train", "b"), ("validation", "a"))
        for values in list(curves.get(split, {}).values())[:1]
    ]
    name = next(iter(curves.get("validation", {})), "loss")
    importance = sorted(details.get("importance", {}).items(), key=lambda pair: -pair[1])[:12]
    return {
        "trainer": details.get("trainer", ""),
        "iterations": details.get("best_iteration"),
        "curves": line_chart(f"{name} by boosting round", lines, x_label="round", y_label=name) if lines else "",
        "importance": bars("Importance of features", [(n, float(v)) for n, v in importance]),
        "parameters": sorted(details.get("parameters", {}).items()),
    }


def _gate(manifest: Mapping[str, Any] | None, decision: Mapping[str, Any]) -> dict[str, Any] | None:
    if manifest is None or not decision:
        return None
    champion = decision.get("champion_metrics") or {}
    difference = decision.get("difference")
    curves = manifest["details"].get("curves", {})
    return {
        "metrics": [
            {"name": n, "challenger": v, "champion": champion.get(n), "chosen": n == decision["metric"]}
            for n, v in decision["challenger_metrics"].items()
        ],
        "has_champion": bool(champion),
        "difference": difference,
        "difference_chart": _difference_chart(decision) if difference else "",
        "floors": decision.get("floors", []),
        "slices": [s for s in decision.get("slices", []) if s.get("outcome") != "too_few"],
        "slices_too_few": sum(s.get("outcome") == "too_few" for s in decision.get("slices", [])),
        "slices_chart": _slices_chart(decision),
        "roc": _curve(curves, "roc"),
        "reliability": _reliability(curves),
        "scores": _scores(curves.get("challenger", {}).get("scores")),
        "rows": decision.get("rows"),
        "positives": decision.get("positives"),
    }


def _difference_chart(decision: Mapping[str, Any]) -> str:
    d = decision["difference"]
    needed = decision.get("policy", {}).get("min_gain", 0.0)
    style = "good" if d["low"] > needed else ("bad" if d["high"] < 0 else "a")
    confidence = decision.get("policy", {}).get("confidence", d.get("confidence", 0.95))
    name = f"{decision['metric']}, {confidence:.0%} interval"
    return spans(f"Gain of the challenger: {name}", [Span(name, d["low"], d["estimate"], d["high"], style)])


def _slices_chart(decision: Mapping[str, Any]) -> str:
    tolerance = decision.get("policy", {}).get("slice_tolerance", 0.0)
    found = []
    for s in decision.get("slices", []):
        d = s.get("difference")
        if d:
            style = "bad" if s.get("outcome") == "worse" else "a"
            found.append(Span(f"{s['column']} {s['value']}", d["low"], d["estimate"], d["high"], style))
    found.sort(key=lambda span: span.estimate)
    return spans("Gain of the challenger by slice", found[:24], marks=((0.0, ""), (-tolerance, "tolerated")))


def _curve(curves: Mapping[str, Any], name: str) -> str:
    lines = [
        Line(who, [(float(a), float(b)) for a, b in curves[who][name]], style)
        for who, style in (("champion", "b"), ("challenger", "a"))
        if (curves.get(who) or {}).get(name)
    ]
    if not lines:
        return ""
    lines.insert(0, Line("chance", [(0.0, 0.0), (1.0, 1.0)], "guide"))
    whole = (0.0, 1.0)
    return line_chart(
        "ROC curve", lines, x_label="false positive rate", y_label="true positive rate", x_range=whole, y_range=whole
    )


def _reliability(curves: Mapping[str, Any]) -> str:
    lines = []
    for who, style in (("champion", "b"), ("challenger", "a")):
        bins = (curves.get(who) or {}).get("reliability") or []
        points = [(float(b["mean_score"]), float(b["rate"])) for b in bins if b["rows"]]
        if points:
            lines.append(Line(who, points, style, dots=True))
    if not lines:
        return ""
    most = max(max(x, y) for line in lines for x, y in line.points) * 1.05
    lines.insert(0, Line("perfect", [(0.0, 0.0), (most, most)], "guide"))
    return line_chart(
        "Calibration", lines, x_label="predicted probability", y_label="observed share", x_range=(0.0, most),
        y_range=(0.0, most),
    )  # fmt: skip


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return ""
    series = [("label 0", scores["negative"], "b"), ("label 1", scores["positive"], "a")]
    return histogram("Scores on the held-out rows", scores["edges"], series, "score")


def _drift(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    details = manifest["details"]
    features = [f for f in details.get("features", []) if f.get("psi") is not None]
    limit = details.get("psi_limit")
    ranked = sorted(features, key=lambda f: -f["psi"])[:15]
    return {
        "summary": details.get("summary", details.get("reason", "")),
        "chart": bars(
            "Population stability index by feature", [(f["feature"], float(f["psi"])) for f in ranked], limit=limit
        ),
        "crossed": [f["feature"] for f in features if f.get("crossed")],
        "quality": details.get("quality", []),
        "freshness": details.get("freshness", []),
    }


def _lineage(tasks: Manifests, registered: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """From the rows to the model version: what was read, and what came of it."""
    stages = []
    for name, steps in (
        ("published", ("validate",)),
        ("features and labels", ("sql", "build_labels")),
        ("training set", ("build_training_set",)),
        ("trained", ("train",)),
        ("predictions", ("batch_score",)),
    ):
        made = [
            output["reference"]
            for step in steps
            for m in _all(tasks, step)
            for role, output in m["outputs"].items()
            if role in ("table", "model") and (step != "train" or role == "model")
        ]
        if made:
            stages.append({"name": name, "references": made})
    if registered:
        stages.append({"name": "registered", "references": [registered["outputs"]["model"]["reference"]]})
    return stages


def _task_list(tasks: Manifests) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "step": m["step"],
            "key": m["key"],
            "made_at": m["finished_at"][:19].replace("T", " "),
            "seconds": sum(m["seconds"].values()),
            "memory_mb": m["resources"]["peak_rss_bytes"] / 2**20,
        }
        for task, m in tasks.items()
    ]
