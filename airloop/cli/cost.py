"""``airloop cost``: what runs, steps and model versions took, and what was in vain."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.cli.output import Output
from airloop.config import Config
from airloop.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from airloop.provenance.cost import By, Sum
    from airloop.provenance.prices import Prices
    from airloop.usage import Spent

GROUPS = ("step", "run", "model", "pool", "day")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cost = commands.add_parser(
        "cost",
        help="what runs, steps and model versions took, and what of it was in vain",
        description="Without options: everything that is known, by step.",
    )
    what = cost.add_mutually_exclusive_group()
    what.add_argument("--run", dest="run_name", metavar="RUN", help="DAG/RUN, or RUN alone where only one loop has it")
    what.add_argument("--dag", metavar="DAG", help="all runs of a loop")
    what.add_argument(
        "--model",
        metavar="NAME[/VERSION]",
        help="what a version was made by, back to the files, whichever runs did it; all versions without a number",
    )
    cost.add_argument("--since", metavar="TIME", help="attempts that began since: ISO 8601 with an offset, or 12h, 7d")
    cost.add_argument("--by", choices=GROUPS, help="default: step; of a model without a version: model")
    cost.add_argument("--prices", type=Path, metavar="FILE", help="default AIRLOOP_PRICES; without one no money")
    cost.set_defaults(run=show)


def show(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.provenance.cost import added_up, name_by
    from airloop.provenance.prices import read_prices

    since = _since(arguments.since)
    model, version = _model(arguments.model)
    path = arguments.prices or config.prices
    prices = read_prices(path) if path is not None else None
    by: By = arguments.by or ("model" if model and version is None else "step")
    attempts, models = _attempts(arguments, config, model, version, by)
    if since is not None:
        attempts = [one for one in attempts if datetime.fromisoformat(one.started_at) >= since]

    def names(one: Spent) -> Iterable[str]:
        return models.get(one.name, ["no model"]) if by == "model" else name_by(by)(one)

    groups, total = added_up(attempts, names, prices)
    pools, _ = added_up(attempts, name_by("pool"), prices)
    if output.as_json:
        output.data(
            {
                "by": by,
                "rows": [{by: name, **found.as_json(prices)} for name, found in groups.items()],
                "total": total.as_json(prices),
                "pools": {name: found.as_json(prices) for name, found in pools.items()},
            }
        )
        return
    if not attempts:
        output.say("Nothing that has run is known here.")
        return
    rows = [_row(by, name, found, prices) for name, found in groups.items()]
    if len(rows) > 1:
        rows.append(_row(by, "all", total, prices))
    output.rows(_aligned(rows), empty="")
    for line in _remarks(total, by, groups, prices):
        output.say(line)


def _attempts(
    arguments: argparse.Namespace, config: Config, model: str, version: int | None, by: str
) -> tuple[list[Spent], dict[str, list[str]]]:
    """What is asked for, and the versions that each attempt was for, by its name."""
    from airloop.provenance import cost
    from airloop.provenance.runs import find_run
    from airloop.warehouse.artifacts import ArtifactStore

    models: dict[str, list[str]] = {}
    made: dict[str, Spent] = {}
    if model or by == "model":
        from airloop.provenance.lineage import Graph

        graph = Graph.open(config)
        for node in cost.versions_of(graph, model, version):
            for one in cost.attempts_of_model(graph, node):
                made[one.name] = one
                models.setdefault(one.name, []).append(node.removeprefix("model:/"))
    if model:
        return list(made.values()), models
    store = ArtifactStore(config.artifacts)
    if arguments.run_name:
        run = find_run(store, arguments.run_name)
        return cost.attempts_of_run(store, run.dag_id, run.run_id), models
    if arguments.dag:
        found = cost.attempts_of_dag(store, arguments.dag)
        if not found:
            raise _no_dag(store, arguments.dag)
        return found, models
    return cost.attempts_of_all(store), models


def _no_dag(store: Any, dag_id: str) -> Exception:
    from airloop.errors import NotFound
    from airloop.frame import history
    from airloop.provenance.runs import nearest

    known = history.loops(store)
    near = nearest(dag_id, known) or known[:5]
    return NotFound(f"nothing of DAG {dag_id} is known", f"there is {', '.join(near)}" if near else "nothing has run")


def _row(by: str, name: str, found: Sum, prices: Prices | None) -> dict[str, str]:
    row = {
        by: name,
        "attempts": f"{found.attempts:,}",
        "pods": f"{found.pods:,}",
        "hours": _hours(found.seconds / 3600) if found.known else "unknown",
        "queued h": _hours(found.queue_s / 3600),
        "CPU h": "",
        "GiB h": "",
        "accelerator h": ", ".join(
            f"{_hours(hours)} {resource}"
            for resource, hours in sorted(found.hours.items())
            if resource not in ("cpu", "memory")
        ),
        "wasted h": _hours(found.wasted_s / 3600) if found.known else "unknown",
        "wasted": f"{found.wasted_share:.0%}" if found.wasted_share is not None else "",
    }
    for resource, column in (("cpu", "CPU h"), ("memory", "GiB h")):
        if resource in found.hours:
            row[column] = _hours(found.hours[resource])
    if prices is not None:
        row[prices.currency] = _money(found.cost) if found.attempts > found.unpriced else "unknown"
        row[f"{prices.currency} wasted"] = _money(found.wasted_cost) if found.attempts > found.unpriced else "unknown"
    if found.unknown:
        row["unknown"] = f"{found.unknown:,}"
    return row


def _aligned(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Columns that say something, figures to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    kept = [name for name in names if any(row.get(name) for row in rows)]
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in kept}
    first = kept[0]
    return [
        {name: row.get(name, "") if name == first else row.get(name, "").rjust(widths[name]) for name in kept}
        for row in rows
    ]


def _remarks(total: Sum, by: str, groups: dict[str, Sum], prices: Prices | None) -> list[str]:
    lines = []
    if total.unknown:
        lines.append(f"Of {total.unknown:,} of {total.attempts:,} attempts nobody told what they took, or not yet.")
    unpriced = total.unpriced - total.unknown
    if prices is not None and unpriced > 0:
        lines.append(f"{unpriced:,} attempts have no price: name their pool, or give default prices.")
    if by == "model" and sum(found.attempts for found in groups.values()) > total.attempts:
        lines.append("What several versions rest on is in each of them, and once in all.")
    return lines


def _hours(hours: Decimal) -> str:
    return f"{hours:,.2f}" if hours >= 1 or not hours else f"{hours:.4f}"


def _money(amount: Decimal) -> str:
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.4f}"


def _model(text: str | None) -> tuple[str, int | None]:
    if text is None:
        return "", None
    found = re.fullmatch(r"(?:model:/)?([^/@]+)(?:/(\d+))?", text)
    if found is None:
        raise BadArgument(f"--model {text!r} is no model", "write delay, or delay/3")
    return found[1], int(found[2]) if found[2] else None


def _since(text: str | None) -> datetime | None:
    from airloop.domain.durations import parse_duration

    if text is None:
        return None
    if re.fullmatch(r"\d+[wdhm]", text.strip()):
        return datetime.now(UTC) - parse_duration(text, name="--since")
    try:
        at = datetime.fromisoformat(text)
    except ValueError as cause:
        raise BadArgument(f"--since {text!r} is no time", "write 2013-02-01T00:00+00:00, or 7d") from cause
    if at.tzinfo is None:
        raise BadArgument(f"--since {text} has no time zone", "add an offset, e.g. +00:00")
    return at
