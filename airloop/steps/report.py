"""The step ``report``: a page for people about one run, and the index of the loop's runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from airloop.contract import Interval
from airloop.errors import BadArgument, NotFound
from airloop.frame import StepContext, StepResult, step
from airloop.locks import locks_of
from airloop.report.refs import ManifestRef


def _published(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    """Whether the page and the index are there, and the page is still the one of this key."""
    page, index, entry = (manifest["details"][name] for name in ("page", "index", "entry"))
    if not (ctx.artifacts.exists(page) and ctx.artifacts.exists(index)):
        return False
    try:
        return bool(json.loads(ctx.artifacts.read_bytes(entry))["key"] == ctx.key)
    except NotFound:
        return False


@step(libraries=("jinja2",), still_there=_published)
def report(
    ctx: StepContext,
    *,
    tasks: dict[str, ManifestRef | None],
    loop: str,
    title: str = "",
    zone: str = "UTC",
    interval: Interval | None = None,
) -> StepResult:
    """
    Write the run's page and the loop's index: self-contained HTML, no script, no request.

    The page of an interval has one address, ``reports/LOOP/INTERVAL.html``; a corrected run replaces it.

    :param tasks: results by task id, in the order of the loop; None for a task that made nothing.
    :param loop: name of the loop, the index's folder.
    :param title: heading; default the loop's name.
    :param zone: IANA time zone in which times are written.
    """
    from zoneinfo import ZoneInfo

    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", loop):
        raise BadArgument(f"loop {loop!r} is not a name", "use letters, digits, '_', '-' and '.', no '.' at the start")
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, KeyError) as cause:
        raise BadArgument(f"time zone {zone!r} is not known", "an IANA name, such as America/New_York") from cause
    manifests = {task: ref.content for task, ref in tasks.items() if ref is not None}
    if not manifests:
        raise BadArgument("a report needs at least one task's result", "pass tasks={task.task_id: task.output, …}")

    from airloop.report import page as pages

    title = title or loop
    absent = [task for task, ref in tasks.items() if ref is None]
    page = pages.describe(loop, title, interval, manifests, zone, absent, _origin(ctx, manifests))
    name = _file_name(interval, ctx.key)
    folder = f"reports/{loop}"
    made = {"page": f"{folder}/{name}.html", "index": f"{folder}/index.html", "entry": f"{folder}/entries/{name}.json"}
    html = pages.render(page).encode()
    # Two runs that end together must both be in the index: it is made of all entries, one report at a time.
    with locks_of(ctx.config).hold(f"report-{loop}"):
        ctx.artifacts.publish_bytes(made["page"], html)
        entry = {**pages.entry(page, manifests, interval), "file": f"{name}.html", "key": ctx.key}
        ctx.artifacts.publish_bytes(made["entry"], json.dumps(entry, indent=1).encode())
        entries = [json.loads(ctx.artifacts.read_bytes(found)) for found in ctx.artifacts.names(f"{folder}/entries")]
        entries.sort(key=_when)
        ctx.artifacts.publish_bytes(made["index"], pages.render_index(loop, title, entries).encode())
    return StepResult(
        counts={"tasks": len(manifests), "tasks_without_result": len(tasks) - len(manifests), "bytes": len(html)},
        details={**made, "outcome": page["outcome"]},
        links={"report": ctx.artifacts.uri(made["page"]), "index": ctx.artifacts.uri(made["index"])},
    )


def _origin(ctx: StepContext, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the run's model was made of, by the manifests of all runs; None if it has none."""
    made = {m["step"]: m["outputs"]["model"]["reference"] for m in manifests.values() if "model" in m["outputs"]}
    model = made.get("register") or made.get("train")
    if model is None:
        return None
    from airloop.provenance.lineage import Graph
    from airloop.provenance.lineage_story import summary

    return summary(Graph(ctx.config, ctx.warehouse).back(model))


def _when(entry: Mapping[str, Any]) -> tuple[str, str]:
    """By the interval; runs without one by when they were made."""
    return (entry["interval"] or {"start": entry["made_at"]})["start"], entry["made_at"]


def _file_name(interval: Interval | None, key: str) -> str:
    if interval is None:
        return f"run-{key[:12]}"
    return f"{interval.start:%Y%m%dT%H%M%SZ}-{interval.end:%Y%m%dT%H%M%SZ}"
