"""
What a run's page says, taken from the manifests of its tasks; and the small entry that the index keeps of it.

A page is data first (:func:`describe`), then HTML (:func:`render`). Tasks that a loop does not have leave their part
of the page out. Of several gates, trainers or monitors in one loop the first is shown.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from airloop.contract import Interval
from airloop.report import words
from airloop.report.charts import Line, Ticks, line_chart
from airloop.report.decision import decision_of, gate_section, outcome
from airloop.report.monitoring import drift_section
from airloop.report.story import (
    examples_section,
    lineage_section,
    origin_section,
    serving_section,
    sources_section,
    tasks_section,
    training_section,
)

Manifests = Mapping[str, Mapping[str, Any]]
"""Manifest by task id."""


def describe(
    loop: str,
    title: str,
    interval: Interval | None,
    tasks: Manifests,
    zone: str = "UTC",
    absent: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Everything that a run's page shows, as plain data and finished charts.

    :param tasks: manifests by task id, in the order of the loop.
    :param zone: IANA time zone in which times are written.
    :param absent: ids of tasks that made nothing.
    :param origin: what the run's model was made of, see :func:`airloop.report.story.origin_section`.
    """
    decision = decision_of(_first(tasks, "evaluate"))
    registered = _first(tasks, "register")
    earlier = _earlier(tasks)
    examples, drift = _first(tasks, "build_training_set"), _first(tasks, "detect_drift")
    sources = sources_section(_all(tasks, "extract"), _all(tasks, "validate"), earlier)
    return {
        "loop": loop,
        "title": title,
        "interval": words.interval(interval, zone),
        "zone": zone,
        "made_at": _made_at(tasks)[:16].replace("T", " "),
        "outcome": outcome(decision, registered),
        "facts": _facts(decision, sources, examples, drift),
        "gate": gate_section(_first(tasks, "evaluate"), decision),
        "drift": drift_section(drift, zone),
        "sources": sources,
        "tables": _tables(tasks, earlier),
        "serving": serving_section(tasks, zone),
        "examples": examples_section(examples, zone),
        "training": training_section(_first(tasks, "train")),
        "lineage": lineage_section(tasks, registered),
        "origin": origin_section(origin),
        "tasks": tasks_section(tasks, earlier, absent),
        "absent": list(absent),
    }


def entry(page: Mapping[str, Any], tasks: Manifests, interval: Interval | None) -> dict[str, Any]:
    """What the index keeps of a page."""
    decision = decision_of(_first(tasks, "evaluate"))
    metric = decision.get("metric", "")
    drift = _first(tasks, "detect_drift")
    sources = page["sources"]
    examples = _first(tasks, "build_training_set")
    return {
        "interval": interval.as_json() if interval else None,
        "label": page["interval"],
        "made_at": _made_at(tasks),
        "outcome": {k: page["outcome"][k] for k in ("kind", "name", "style", "headline", "version", "champion")},
        "metric": metric,
        "challenger": (decision.get("challenger_metrics") or {}).get(metric),
        "champion": (decision.get("champion_metrics") or {}).get(metric),
        "rows_in": _rows_in(sources),
        "quarantined": sum(s["quarantined"] or 0 for s in sources if not s["reused"]),
        "training_rows": None if examples is None else examples["counts"].get("rows_train"),
        "columns": None if drift is None else drift["counts"].get("columns"),
        "drifted": None if drift is None else drift["counts"].get("columns_drifted"),
        "crossed": None if drift is None else drift["counts"].get("crossed"),
        "absent": len(page["absent"]),
    }


def render(page: Mapping[str, Any]) -> str:
    """The page as one HTML file."""
    return _render("run.html.j2", page=page)


def render_index(loop: str, title: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """
    The loop's index as one HTML file, the newest run first.

    :param entries: in the order of their intervals, each with ``file``, the page's name beside the index.
    """
    rows = [_index_row(e) for e in entries]
    return _render(
        "index.html.j2",
        loop=loop,
        title=title,
        entries=list(reversed(rows)),
        metric=next((words.metric_name(e["metric"]) for e in reversed(entries) if e["metric"]), ""),
        chart=_index_chart(entries),
    )


def _index_row(found: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = found["challenger"], found["champion"]
    gain = None if ours is None or theirs is None else ours - theirs
    return {**found, "gain": None if gain is None else words.signed(gain)}


def _index_chart(entries: Sequence[Mapping[str, Any]]) -> str:
    metric = next((e["metric"] for e in reversed(entries) if e["metric"]), "")
    # Figures of another metric do not belong on the same axis.
    measured = [e for e in entries if e["metric"] == metric and e["challenger"] is not None]
    if len(measured) < 2:
        return ""
    challenger = [(float(i), float(e["challenger"])) for i, e in enumerate(measured)]
    champion = [(float(i), float(e["champion"])) for i, e in enumerate(measured) if e["champion"] is not None]
    lines = [
        Line("champion on the same rows", champion, "b", dots=True),
        Line("challenger", challenger, "a", dots=True),
    ]
    every = -(-len(measured) // 6)
    marks = range(0, len(measured), every)
    ticks = Ticks([float(i) for i in marks], [_short(str(measured[i]["label"])) for i in marks])
    name = words.metric_name(metric)
    return line_chart(
        f"{name} over runs", lines, x_label="", y_label=name, x_ticks=ticks,
        x_range=(-0.25, len(measured) - 0.75), height=180,
    )  # fmt: skip


def _short(label: str) -> str:
    """``January 2013`` as ``Jan 2013``, a range by its start: room for six of them on a phone."""
    month, _, year = label.partition(" ")
    return f"{month[:3]} {year}" if month.isalpha() and year.isdigit() else label[:10]


def _render(template: str, **values: Any) -> str:
    css = _style()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return str(_environment().get_template(template).render(**values, css=Markup(css), css_digest=digest))  # noqa: S704  our own file


@cache
def _style() -> str:
    return (files("airloop.report") / "templates" / "report.css").read_text(encoding="utf-8")


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
    environment.filters |= {
        "count": words.count, "figure": words.figure, "share": words.share, "counted": words.counted,
    }  # fmt: skip
    return environment


def _first(tasks: Manifests, step: str) -> Mapping[str, Any] | None:
    return next((m for m in tasks.values() if m["step"] == step), None)


def _all(tasks: Manifests, step: str) -> list[Mapping[str, Any]]:
    return [m for m in tasks.values() if m["step"] == step]


def _earlier(tasks: Manifests) -> list[Mapping[str, Any]]:
    """
    Manifests that an earlier run made. The run of a page is the one that finished last: manifests alone decide it, so
    the page of the same manifests is the same whoever asks.
    """
    if not tasks:
        return []
    own = max(tasks.values(), key=lambda m: str(m["finished_at"]))["run"]
    return [m for m in tasks.values() if (m["run"]["dag_id"], m["run"]["run_id"]) != (own["dag_id"], own["run_id"])]


def _made_at(tasks: Manifests) -> str:
    return max((str(m["finished_at"]) for m in tasks.values()), default="")


def _rows_in(sources: Sequence[Mapping[str, Any]]) -> int:
    return sum((s["new"] or 0) + (s["corrected"] or 0) for s in sources if not s["reused"])


def _facts(
    decision: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Any] | None,
    drift: Mapping[str, Any] | None,
) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    facts = [*_metric_fact(decision)]
    if sources:
        corrected = sum(s["corrected"] or 0 for s in sources if not s["reused"])
        note = f"{words.count(corrected)} of them corrected" if corrected else words.counted(len(sources), "source")
        facts.append(_fact("Rows in", words.count(_rows_in(sources)), note))
        fresh = [s for s in sources if not s["reused"]]
        checked, held = (sum(s[k] or 0 for s in fresh) for k in ("checked", "quarantined"))
        note = f"{words.share(held / checked) + ' ' if held else ''}of {words.count(checked)} checked"
        facts.append(_fact("Quarantined", words.count(held), note, "warn" if held else ""))
    if examples:
        counts = examples["counts"]
        note = f"{words.count(counts.get('rows_holdout'))} held out"
        facts.append(_fact("Training rows", words.count(counts.get("rows_train")), note))
    if drift:
        counts = drift["counts"]
        columns, drifted = counts.get("columns", 0), counts.get("columns_drifted", 0)
        if columns:
            facts.append(
                _fact("Drifted", str(drifted), f"of {words.counted(columns, 'column')}", "warn" * bool(drifted))
            )
        else:
            facts.append(_fact("Drifted", words.NOTHING, "no model to compare with"))
        facts += _live_fact(drift)
    return facts


def _metric_fact(decision: Mapping[str, Any]) -> list[dict[str, str]]:
    metric = decision.get("metric")
    if not metric:
        return []
    value, other = decision["challenger_metrics"].get(metric), (decision["champion_metrics"] or {}).get(metric)
    note = "no champion to compare with" if decision["champion_metrics"] is None else f"champion {words.figure(other)}"
    return [_fact(f"{words.metric_name(metric)}, challenger", words.figure(value), note)]


def _live_fact(drift: Mapping[str, Any]) -> list[dict[str, str]]:
    judged = [q["judged"] for q in drift["details"].get("quality", {}).get("models", []) if q["judged"]]
    if not judged:
        return []
    last = judged[-1]
    note = "" if last["reference"] is None else f"{words.figure(last['reference'])} in validation"
    crossed = any(q["crossed"] for q in drift["details"]["quality"]["models"])
    name = f"{words.metric_name(last['metric'])}, live"
    return [_fact(name, words.figure(last["value"]), note, "bad" if crossed else "")]


def _fact(name: str, value: str, note: str, style: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note, "style": style}


def _tables(tasks: Manifests, earlier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": m["outputs"]["table"]["reference"].partition("@")[0],
            "rows": m["counts"].get("rows"),
            "new": m["counts"].get("rows_new"),
            "changed": m["counts"].get("rows_changed"),
            "evolution": list(m["details"].get("evolution", [])),
            "reused": m["run"]["run_id"] if any(m is e for e in earlier) else "",
        }
        for m in (*_all(tasks, "sql"), *_all(tasks, "build_labels"))
        if "table" in m["outputs"]
    ]
