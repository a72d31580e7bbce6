"""Pages as HTML: Jinja templates, escaped, with a style sheet in the colours of Airflow's own UI."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from markupsafe import Markup

from airloop.report import words
from airloop.report.charts import Line, Ticks, line_chart
from airloop_operators.web.data import Loop

STATIC = {"loops.css": "text/css", "loops.js": "text/javascript", "loop.svg": "image/svg+xml"}
"""Content type by name of what pages load."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; frame-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}

STATES = {
    "success": ("Succeeded", "good"),
    "done": ("Done", "good"),
    "reused": ("Reused", "calm"),
    "running": ("Running", "live"),
    "open": ("Under way", "live"),
    "queued": ("Queued", "calm"),
    "failed": ("Failed", "bad"),
    "rejected": ("Rejected", "bad"),
    "try_again": ("To be retried", "warn"),
    "skipped": ("Skipped", "calm"),
}
"""Badge by the state of a run or a task, and its CSS class."""


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page; addresses in it start where the plugin is mounted."""
    base = request.scope.get("root_path", "")
    text = _environment().get_template(f"{template}.html.j2").render(
        base=base, airflow=base.rpartition("/")[0], asset=_versioned, **values
    )  # fmt: skip
    return HTMLResponse(text, status, headers=HEADERS)


def refusal(request: Request, status: int, message: str) -> Response:
    """Why there is no page: for people as a page, for programs as JSON."""
    own = request.url.path.removeprefix(request.scope.get("root_path", ""))
    if own.startswith("/api/"):
        return JSONResponse({"detail": message}, status, headers=HEADERS)
    heading = {403: "Not permitted", 404: "Not there", 400: "Not a valid address"}.get(status, "Something is wrong")
    return render(request, "refusal", status=status, heading=heading, message=message)


def chart(loop: Loop) -> Markup | None:
    """The decisive metric over the runs shown; None while there are fewer than two figures."""
    metric = next((r.metric for r in loop.runs if r.metric), "")
    # Figures of another metric do not belong on the same axis.
    runs = [r for r in reversed(loop.runs) if r.metric == metric and r.challenger is not None]
    if len(runs) < 2:
        return None
    ours = [(float(i), float(r.challenger)) for i, r in enumerate(runs) if r.challenger is not None]
    theirs = [(float(i), float(r.champion)) for i, r in enumerate(runs) if r.champion is not None]
    lines = [Line("champion on the same rows", theirs, "b", dots=True), Line("challenger", ours, "a", dots=True)]
    marks = range(0, len(runs), -(-len(runs) // 6))
    ticks = Ticks([float(i) for i in marks], [_short(runs[i].label) for i in marks])
    return line_chart(
        f"{words.metric_name(metric)} by run", lines, x_label="", y_label=words.metric_name(metric), x_ticks=ticks,
        x_range=(-0.25, len(runs) - 0.75), height=180,
    )  # fmt: skip


def asset(name: str) -> bytes:
    """A file that pages load."""
    return (files("airloop_operators.web") / "static" / name).read_bytes()


@cache
def _versioned(name: str) -> str:
    return f"static/{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airloop_operators.web"),
        # Names of DAGs, files, columns and errors come from elsewhere.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": words.count, "counted": words.counted, "figure": words.figure, "seconds": words.seconds,
        "feature": lambda name: " ".join(filter(None, words.split_feature(name))),
        "ago": ago, "when": when, "exactly": exactly, "clock": clock, "day": day,
        "state": lambda s: STATES.get(s, (s or "Unknown", "calm")),
        "pretty": lambda v: json.dumps(v, indent=2, ensure_ascii=False, default=str),
        "mib": lambda n: f"{n / 2**20:,.0f} MiB",
        "part": lambda text: quote(str(text), safe=""), "path": lambda text: quote(str(text), safe="/"),
    }  # fmt: skip
    return environment


def ago(at: str, now: datetime | None = None) -> str:
    """``3 min ago``, ``2 d 4 h ago``; ``just now`` within a minute."""
    if not at:
        return words.NOTHING
    hours = ((now or datetime.now(UTC)) - datetime.fromisoformat(at)).total_seconds() / 3600
    return "just now" if hours < 1 / 60 else f"{words.age(hours)} ago"


def when(at: str) -> str:
    """A time to the minute, UTC."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else words.NOTHING


def exactly(at: str) -> str:
    """A time to the second, UTC."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M:%S}" if at else words.NOTHING


def clock(at: str) -> str:
    """The time of the day to the second, UTC."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%H:%M:%S}" if at else words.NOTHING


def day(at: str, zone: str = "UTC") -> str:
    """A date as people write it."""
    return f"{datetime.fromisoformat(at).astimezone(ZoneInfo(zone)):%-d %B %Y}" if at else words.NOTHING


def _short(label: str) -> str:
    """``January 2013`` as ``Jan 2013``, a range by its start: room for six of them on a phone."""
    month, _, year = label.partition(" ")
    return f"{month[:3]} {year}" if month.isalpha() and year.isdigit() else label[:10]
