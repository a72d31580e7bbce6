"""``airloop gc``, ``airloop compact``, ``airloop backup``, ``airloop restore``, ``airloop upgrade``."""

from __future__ import annotations

import argparse
import re

from airloop.cli.output import Output
from airloop.config import Config

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    gc = commands.add_parser("gc", help="take away what nobody needs: expired snapshots, files of killed writers")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.add_argument("--grace", type=_seconds, default=86_400.0, help="how old a file must be: 24h (default), 30m, 7d")
    gc.add_argument(
        "--keep-days",
        type=float,
        default=30.0,
        help="days for which runs can be replayed whose model is not registered; default 30",
    )
    gc.set_defaults(run=collect)

    compact = commands.add_parser("compact", help="few large files in the place of many small ones; no key changes")
    compact.add_argument("tables", nargs="*", metavar="TABLE", help="namespace.table; default all")
    compact.set_defaults(run=compact_tables)


def collect(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.upkeep import gc
    from airloop.upkeep.retention import Policy

    found = gc.collect(config, Policy(arguments.keep_days), grace_s=arguments.grace, dry_run=arguments.dry_run)
    output.data(found.as_json())
    for line in gc.describe(found, dry_run=arguments.dry_run):
        output.say(line)


def compact_tables(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from dataclasses import asdict

    from airloop.warehouse.catalog import Warehouse

    warehouse = Warehouse.open(config)
    done = [warehouse.compact(name) for name in arguments.tables or warehouse.tables()]
    output.data([{**asdict(c), "snapshot": str(c.snapshot), "changed": c.changed} for c in done])
    for c in done:
        if c.changed:
            output.say(
                f"{c.table}: {c.files_before:,} files are {c.files_after:,}, {c.manifests_before:,} manifests "
                f"{c.manifests_after:,}; {c.rows:,} rows rewritten, snapshot {c.snapshot}"
            )
        else:
            output.say(f"{c.table}: {c.files_before:,} files, nothing to compact")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]
