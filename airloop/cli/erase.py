"""``airloop erase``."""

from __future__ import annotations

import argparse
import getpass

from airloop.cli.output import Output
from airloop.config import Config
from airloop.contract import Exit
from airloop.errors import BadArgument


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "erase",
        help="take a person's rows out of every table, snapshot and online store, and record who asked and why",
        description="Take the rows of a person (an account, a flight) out of every table that has the column, out of "
        "every snapshot, the online store, reports and manifests. Runs that used them can no longer be replayed. "
        "Exit code 0: nothing of it is left; 65: something is, and it is named.",
    )
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument(
        "--entity",
        action="append",
        metavar="COLUMN=VALUE",
        help="rows of every table that has this column; several times for one who has several names",
    )
    whose.add_argument("--table", help="rows of this table, and those that have their keys elsewhere; with --where")
    parser.add_argument("--where", help="which rows of --table: a DuckDB predicate")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="TABLE.NAME=COLUMN",
        help="what a table calls the column, if not by its name; `online.NAME=COLUMN` for a join key",
    )
    parser.add_argument("--reason", required=True, help="why; kept in ledger.erasures")
    parser.add_argument("--by", default="", help="who asked for it; default the user who runs this")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go, and which runs it concerns")
    parser.set_defaults(run=erase_rows)


def erase_rows(arguments: argparse.Namespace, config: Config, output: Output) -> int:
    from airloop.upkeep.erase import Request, erase
    from airloop.upkeep.subject import entity

    if bool(arguments.table) != bool(arguments.where):
        raise BadArgument("--table and --where go together", "write --table raw.visits --where \"person = 'x'\"")
    request = Request(
        subject=entity(arguments.entity) if arguments.entity else None,
        table=arguments.table or "",
        where=arguments.where or "",
        renamed=_renamed(arguments.column),
        reason=arguments.reason,
        asked_by=arguments.by or getpass.getuser(),
    )
    done = erase(config, request, dry_run=arguments.dry_run)
    output.data({"dry_run": arguments.dry_run, "erasure": done.erasure, **done.as_json()})
    if not done:
        output.say("Nothing of it is here.")
    for name, here in done.tables.items():
        output.say(f"{name}: {here['rows']:,} rows, {len(here['snapshots']):,} snapshots, {here['files']:,} data files")
    for name, count in done.online.items():
        output.say(f"online {name}: {count:,} entities")
    for title, names in (
        ("redacted", done.redacted),
        ("can no longer be replayed", done.runs),
        ("trained on the rows, and stays", done.models),
        ("computed from the rows, and stays", done.derived),
        ("source file that may bring the rows back", done.sources),
        ("left", done.left),
    ):
        for name in names:
            output.say(f"{output.paint(title, 'red' if title == 'left' else 'dim')}: {name}")
    if done and arguments.dry_run:
        output.say("Nothing was changed: --dry-run.")
    elif done:
        output.say(f"Erased; recorded as {done.erasure} in ledger.erasures.")
    return int(Exit.REJECTED if done.left and not arguments.dry_run else Exit.DONE)


def _renamed(texts: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        place, sign, column = text.partition("=")
        table, dot, name = place.rpartition(".")
        if not (sign and column and dot and table and name):
            raise BadArgument(f"--column {text}", "write --column namespace.table.name=column")
        found.setdefault(table, {})[column] = name
    return found
