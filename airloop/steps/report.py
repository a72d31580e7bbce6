"""The step ``report``: a page for people about one run, and the index of the loop's runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from airloop.contract import Interval
from airloop.errors import BadArgument
from airloop.frame import StepContext, StepResult, step
from airloop.report.refs import ManifestRef


def _published(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    names = manifest["details"]["files"]
    return all(ctx.artifacts.exists(name) for name in names)


@step(still_there=_published)
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
    :param zone: IANA time zone in which intervals are written.
    """
    from filelock import FileLock

    from airloop.report import page as pages

    if not re.fullmatch(r"[A-Za-z0-9_.-]+", loop) or loop.startswith("."):
        raise BadArgument(f"loop {loop!r} is not a name", "use letters, digits, '_', '-' and '.'")
    manifests = {task: ref.content for task, ref in tasks.items() if ref is not None}
    if not manifests:
        raise BadArgument("a report needs at least one task's result", "pass tasks={task.task_id: task.output, …}")
    title = title or loop
    page = pages.describe(loop, title, interval, manifests, zone)
    name = _file_name(interval, ctx.key)
    folder = f"reports/{loop}"
    html = pages.render(page).encode()
    ctx.publish("report.html", html)
    lock = ctx.config.home / "locks" / f"report-{loop}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        ctx.artifacts.publish_bytes(f"{folder}/{name}.html", html)
        entry = {**pages.entry(page, manifests, interval), "file": f"{name}.html", "key": ctx.key}
        ctx.artifacts.publish_bytes(f"{folder}/entries/{name}.json", json.dumps(entry, indent=1).encode())
        entries = [
            json.loads(ctx.artifacts.read_bytes(found))
            for found in ctx.artifacts.names(f"{folder}/entries")
        ]
        entries.sort(key=lambda e: (e["interval"] or {"start": ""})["start"])
        index = pages.render_index(loop, title, entries).encode()
        ctx.artifacts.publish_bytes(f"{folder}/index.html", index)
    return StepResult(
        counts={"tasks": len(manifests), "bytes": len(html)},
        details={"files": [f"{folder}/{name}.html", f"{folder}/index.html"], "outcome": page["outcome"]},
        links={
            "report": ctx.artifacts.uri(f"{folder}/{name}.html"),
            "index": ctx.artifacts.uri(f"{folder}/index.html"),
        },
    )


def _file_name(interval: Interval | None, key: str) -> str:
    if interval is None:
        return f"run-{key[:12]}"
    return f"{interval.start:%Y%m%dT%H%M%SZ}-{interval.end:%Y%m%dT%H%M%SZ}"
