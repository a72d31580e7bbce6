"""``airloop models``, ``airloop live`` and ``airloop promote``."""

from __future__ import annotations

import argparse
import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airloop.cli.output import Output
from airloop.config import Config
from airloop.errors import BadArgument

if TYPE_CHECKING:
    from airloop.registry.ledger import Entry


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = commands.add_parser("models", help="registered models with their versions, or the ledger of one")
    models.add_argument("model", nargs="?", help="registered model: its promotions, oldest first")
    models.set_defaults(run=show_models)

    live = commands.add_parser("live", help="what was champion at a time, and on what evidence")
    live.add_argument("--at", metavar="TIME", help="ISO 8601 with an offset; default now")
    live.add_argument(
        "--clock",
        choices=["wall", "data"],
        default="wall",
        help="wall: when it was promoted; data: by the end of the interval whose run promoted it",
    )
    live.set_defaults(run=show_live)

    promote = commands.add_parser("promote", help="make a version champion by hand, e.g. to roll back")
    promote.add_argument("model", help="registered model")
    promote.add_argument("version", type=int)
    promote.add_argument("--reason", required=True, help="why; kept in the ledger")
    promote.add_argument(
        "--effective",
        metavar="TIME",
        help="data time from which it holds, ISO 8601 with an offset; default now. Runs of intervals that end before "
        "it will not replace it, so a loop that replays the past needs one in that past",
    )
    promote.set_defaults(run=promote_version)


def show_models(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    if arguments.model:
        from airloop.registry.ledger import Ledger
        from airloop.warehouse.catalog import Warehouse

        entries = Ledger(Warehouse.open(config)).entries(arguments.model)
        output.rows([_row(e) for e in entries], empty=f"Nothing was ever promoted of {arguments.model}.")
        return
    from airloop.registry.models import versions

    rows = [
        {
            "model": found["model"],
            "version": found["version"],
            "is": ", ".join(found["aliases"]),
            "registered": found["created_at"][:19],
            "run": found["run_id"],
            "description": found["description"],
        }
        for found in versions(config)
    ]
    output.rows(rows, empty="No models yet; a first run of a loop registers one.")


def show_live(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.registry.ledger import Ledger
    from airloop.warehouse.catalog import Warehouse

    at = _time("--at", arguments.at)
    entries = Ledger(Warehouse.open(config)).live(at, clock=arguments.clock)
    when = at.isoformat(timespec="seconds") if at else "now"
    output.rows([_row(e) for e in entries], empty=f"Nothing was champion {'at ' if at else ''}{when}.")


def promote_version(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.registry.models import promote

    entry = promote(
        config,
        arguments.model,
        arguments.version,
        reason=arguments.reason,
        by=getpass.getuser(),
        effective_at=_time("--effective", arguments.effective),
    )
    output.data(_row(entry))
    output.say(f"{entry.model} version {entry.version} is {entry.alias} now.")


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as cause:
        raise BadArgument(f"{option} {text!r} is not a time", "write 2013-02-01T00:00+00:00") from cause
    if at.tzinfo is None:
        raise BadArgument(f"{option} {text} has no time zone", "add an offset, e.g. +00:00")
    return at.astimezone(UTC)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "model": entry.model,
        "alias": entry.alias,
        "version": entry.version,
        "before": entry.previous,
        "outcome": entry.outcome,
        "state": entry.state,
        "moved": entry.moved,
        "recorded": entry.recorded_at.isoformat(timespec="seconds"),
        "data until": entry.effective_at.isoformat(timespec="seconds"),
        "by": "/".join(filter(None, (entry.dag_id, entry.run_id))) or entry.by,
        "why": entry.reason,
    }
