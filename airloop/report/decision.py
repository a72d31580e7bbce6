"""What was decided and why, and the evidence of the gate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from airloop.report import words
from airloop.report.charts import Line, Span, histogram, line_chart, spans

Manifest = Mapping[str, Any]

OUTCOMES = {
    "promote": ("Promoted", "good"),
    "keep": ("Champion kept", "calm"),
    "reject": ("Rejected", "bad"),
    "superseded": ("Came too late", "warn"),
    "": ("No decision", "calm"),
}
"""Badge by outcome, and its CSS class."""

SLICES_DRAWN = 24


def decision_of(gate: Manifest | None) -> Mapping[str, Any]:
    """The gate's decision; empty if there is none."""
    found: Mapping[str, Any] = (gate or {}).get("details", {}).get("decision") or {}
    return found


def outcome(decision: Mapping[str, Any], registered: Manifest | None) -> dict[str, Any]:
    """Badge, headline and reasons."""
    details = (registered or {}).get("details", {})
    kind = decision.get("outcome", "")
    if kind == "promote" and details.get("state") == "superseded":
        kind = "superseded"
    outputs = (registered or {}).get("outputs", {})
    version = words.version(outputs.get("model", {}).get("reference", ""))
    champion = words.version(outputs.get("champion", {}).get("reference", ""))
    previous = details.get("entry", {}).get("previous")
    name, style = OUTCOMES.get(kind, (kind, "calm"))
    if kind == "keep" and registered is not None and not champion:
        name = "Not promoted"
    return {
        "kind": kind,
        "name": name,
        "style": style,
        "headline": _headline(kind, version, champion, previous, registered is not None),
        "lead": _lead(decision),
        "reasons": [_sentence(r) for r in decision.get("reasons", [])],
        "version": version,
        "champion": champion,
    }


def _headline(kind: str, version: str, champion: str, previous: Any, registered: bool) -> str:
    if kind == "promote":
        if not registered:
            return "The challenger passed the gate; it was not registered"
        return f"{version} is the new champion" if previous else f"{version} is the first champion"
    if kind == "superseded":
        return f"{version} passed, but a later run's model was already live"
    stays = f"{champion} stays champion" if champion else "There is still no champion"
    if kind == "keep":
        return stays if registered else "The challenger was not promoted"
    if kind == "reject":
        return f"The challenger is not fit to be used; {stays[:1].lower() + stays[1:] if not champion else stays}"
    return "This run made no decision about a model"


def _lead(decision: Mapping[str, Any]) -> str:
    """The main reason in plain words; empty where the gate's own are plain enough."""
    difference = decision.get("difference")
    if not difference:
        return ""
    metric = words.metric_name(decision["metric"], in_text=True)
    gain, low, high = (difference[k] for k in ("estimate", "low", "high"))
    confidence = f"{difference['confidence']:.0%}"
    needed = decision["policy"]["min_gain"]
    on = f"on the same {words.counted(decision['rows'], 'held-out row')}"
    interval = f"{confidence} interval {words.signed(low)} to {words.signed(high)}"
    size = f"{metric} is {abs(gain):.4f} {'better' if gain >= 0 else 'worse'} {on}"
    worse = [f"{s['column']} {s['value']}" for s in decision.get("slices", []) if s["outcome"] == "worse"]
    if decision["outcome"] == "promote":
        above = f"all of it above the {needed:g} that is asked for" if needed else "all of it above zero"
        return f"Its {size} ({interval}, {above})."
    if worse:
        return f"Overall the challenger's {size}, but it loses more than is tolerated on {', '.join(worse)}."
    if gain <= needed:
        return f"The challenger's {size} ({interval})."
    if low <= 0:
        return f"The challenger's {size}, but that may be chance: the {interval} holds zero."
    return f"The challenger's {size}, but the {interval} is not wholly above the {needed:g} that is asked for."


def _sentence(text: str) -> str:
    """The gate's reason with metrics called what people call them, and true minus signs."""
    for key in words.METRICS:
        text = re.sub(rf"\b{key}\b", words.metric_name(key, in_text=True), text)
    text = re.sub(r"(?<![\w.])-(?=\d)", words.minus("-"), text)
    return text[:1].upper() + text[1:]


def gate_section(gate: Manifest | None, decision: Mapping[str, Any]) -> dict[str, Any] | None:
    """Metrics, difference, floors, slices and curves; None without a gate."""
    if gate is None or not decision:
        return None
    curves = gate["details"].get("curves", {})
    policy = decision["policy"]
    return {
        "metric": words.metric_name(decision["metric"]),
        "rows": decision["rows"],
        "positives": decision["positives"],
        "clusters": decision["clusters"],
        "cluster": policy["cluster"],
        "champion": words.version(gate["inputs"].get("champion", {}).get("reference", "")),
        "metrics": _metrics(decision),
        "difference": _difference_chart(decision),
        "floors": [_floor(f) for f in decision["floors"]],
        "tolerance": policy["slice_tolerance"],
        "slices": [_slice(s) for s in decision["slices"]],
        "slices_tested": sum(s["outcome"] != "too few" for s in decision["slices"]),
        "slices_chart": _slices_chart(decision),
        "slices_drawn": SLICES_DRAWN,
        "roc": _roc(curves),
        "reliability": _reliability(curves),
        "scores": _scores((curves.get("challenger") or {}).get("scores")),
    }


def _metrics(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    ours, theirs = dict(decision["challenger_metrics"]), dict(decision["champion_metrics"] or {})
    for who, values in (("challenger", ours), ("champion", theirs)):
        error = (decision["calibration"].get(who) or {}).get("error")
        if error is not None:
            values["ece"] = error
    rows = []
    for name, value in ours.items():
        other = theirs.get(name)
        change = None if value is None or other is None else value - other
        better = change is not None and (change > 0) == words.higher_is_better(name) and round(change, 4) != 0
        rows.append(
            {
                "name": words.metric_name(name),
                "hint": "" if words.higher_is_better(name) else "less is better",
                "challenger": value,
                "champion": other,
                "change": None if change is None else words.signed(change),
                "style": "" if not change or round(change, 4) == 0 else "good" if better else "bad",
                "chosen": name == decision["metric"],
            }
        )
    # The one that decides comes first.
    return sorted(rows, key=lambda row: not row["chosen"])


def _floor(floor: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": words.metric_name(floor["metric"]),
        "demand": f"{'at least' if floor['at_least'] else 'at most'} {floor['limit']:g}",
        "value": words.figure(floor["value"]),
        "held": floor["held"],
    }


def _slice(found: Mapping[str, Any]) -> dict[str, Any]:
    d = found["difference"]
    return {
        "column": found["column"],
        "value": found["value"],
        "rows": found["rows"],
        "positives": found["positives"],
        "challenger": found["challenger"],
        "champion": found["champion"],
        "difference": None if d is None else words.signed(d["estimate"]),
        "interval": "" if d is None else f"{words.signed(d['low'])} … {words.signed(d['high'])}",
        "outcome": found["outcome"],
        "style": {"ok": "good", "worse": "bad"}.get(found["outcome"], "calm"),
        "why": found["why"],
    }


def _difference_chart(decision: Mapping[str, Any]) -> str:
    d = decision.get("difference")
    if not d:
        return ""
    needed = decision["policy"]["min_gain"]
    style = "good" if d["low"] > needed else "bad" if d["high"] < needed else "a"
    tolerated = (needed, "gain that is asked for") if needed else None
    title = f"Gain in {words.metric_name(decision['metric'], in_text=True)}, {d['confidence']:.0%} interval"
    return spans(title, [Span("", d["low"], d["estimate"], d["high"], style)], tolerated=tolerated)


def _slices_chart(decision: Mapping[str, Any]) -> str:
    found = [
        Span(
            s["value"],
            s["difference"]["low"],
            s["difference"]["estimate"],
            s["difference"]["high"],
            "bad" if s["outcome"] == "worse" else "a",
            group=s["column"],
        )
        for s in decision["slices"]
        if s["difference"]
    ]
    found.sort(key=lambda span: (span.style != "bad", span.estimate))
    tolerance = decision["policy"]["slice_tolerance"]
    title = f"Gain over the champion by slice, {words.metric_name(decision['metric'])}"
    return spans(title, found[:SLICES_DRAWN], tolerated=(-tolerance, f"loss put up with, {tolerance:g}"))


def _roc(curves: Mapping[str, Any]) -> str:
    lines = _both(curves, lambda own: [(float(a), float(b)) for a, b in own.get("roc") or []])
    if not lines:
        return ""
    lines.insert(0, Line("chance", [(0.0, 0.0), (1.0, 1.0)], "guide"))
    whole = (0.0, 1.0)
    return line_chart(
        "ROC curve", lines, x_label="false positive rate", y_label="true positive rate", x_range=whole, y_range=whole
    )


def _reliability(curves: Mapping[str, Any]) -> str:
    lines = _both(
        curves,
        lambda own: [(float(b["mean_score"]), float(b["rate"])) for b in own.get("reliability") or [] if b["rows"]],
        dots=True,
    )
    if not lines:
        return ""
    most = min(1.0, max(max(x, y) for line in lines for x, y in line.points) * 1.08) or 1.0
    lines.insert(0, Line("perfect", [(0.0, 0.0), (most, most)], "guide"))
    whole = (0.0, most)
    return line_chart(
        "Calibration", lines, x_label="predicted probability", y_label="observed share", x_range=whole, y_range=whole
    )


def _both(curves: Mapping[str, Any], points: Any, *, dots: bool = False) -> list[Line]:
    found = [(who, style, points(curves.get(who) or {})) for who, style in (("champion", "b"), ("challenger", "a"))]
    return [Line(who, own, style, dots=dots) for who, style, own in found if own]


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return ""
    series: Sequence[tuple[str, Sequence[float], str]] = [
        ("negative", scores["negative"], "b"),
        ("positive", scores["positive"], "a"),
    ]
    return histogram("Challenger's scores", scores["edges"], series, x_label="predicted probability")
