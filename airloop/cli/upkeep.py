"""``airloop gc``, ``airloop compact``, ``airloop backup``, ``airloop restore``, ``airloop upgrade``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from airloop.cli.output import Output
from airloop.config import Config, is_rest
from airloop.errors import BadArgument

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
    compact.add_argument(
        "tables", nargs="*", metavar="TABLE", help="namespace.table; default all, but of a REST catalog"
    )
    compact.set_defaults(run=compact_tables)

    backup = commands.add_parser("backup", help="one consistent point of everything, while loops run")
    backup.add_argument("target", type=Path, help="folder of backups, outside the home")
    backup.add_argument("--verify", action="store_true", help="make none; read the newest and check every byte")
    backup.set_defaults(run=back_up)

    restore = commands.add_parser(
        "restore", help="lay a backup into the home (see --home), and the bucket and database if set; all must be empty"
    )
    restore.add_argument("source", type=Path, help="folder of backups")
    restore.add_argument("--point", help="which; default the newest")
    restore.set_defaults(run=lay_back)

    upgrade = commands.add_parser("upgrade", help="bring a home to this airloop's format; which steps' keys change")
    upgrade.add_argument("--dry-run", action="store_true", help="only say what would be done")
    upgrade.set_defaults(run=bring_up)


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

    if is_rest(config.catalog) and not arguments.tables:
        raise BadArgument(
            "an Iceberg REST catalog may have tables of others, and all would be compacted",
            "name those that are yours: airloop compact NAMESPACE.TABLE…",
        )
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


def back_up(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.upkeep.backup import backup
    from airloop.upkeep.points import Vault

    if arguments.verify:
        vault = Vault(arguments.target)
        made = vault.read()
        contents = vault.verify(made)
        output.data({"point": made.name, "files": len(made.files), "contents": contents, "bytes": made.bytes})
        output.say(f"{made.name}: {len(made.files):,} files, {made.bytes / 2**20:,.1f} MiB, every byte as it was")
        return
    made, vault = backup(config, arguments.target)
    output.data(
        {
            "point": made.name,
            "files": len(made.files),
            "bytes": made.bytes,
            "copied": vault.copied,
            "copied_bytes": vault.copied_bytes,
            "notes": made.notes,
        }
    )
    output.say(
        f"{made.name}: {len(made.files):,} files, {made.bytes / 2**20:,.1f} MiB; "
        f"{vault.copied:,} of them, {vault.copied_bytes / 2**20:,.1f} MiB, are new in {arguments.target}"
    )
    for note in made.notes:
        output.say(note)


def lay_back(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.upkeep.restore import restore

    made = restore(arguments.source, config.home, point=arguments.point, config=config)
    output.data({"point": made.name, "made_at": made.made_at, "home": str(config.home), "files": len(made.files)})
    output.say(f"{config.home} is as {made.roots['home']} was at {made.made_at}: {len(made.files):,} files")
    for note in made.notes:
        output.say(note)


def bring_up(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from dataclasses import asdict

    from airloop.steps import load
    from airloop.upkeep.formats import key_changes, upgrade

    done = upgrade(config, dry_run=arguments.dry_run)
    changes = key_changes(config, load)
    output.data({"home": str(config.home), "done": done, "key_changes": [asdict(c) for c in changes]})
    for line in done or ["Nothing to migrate."]:
        output.say(line)
    for change in changes:
        output.say(str(change))
    if not changes:
        output.say("No step's key changes: what was made is reused.")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]
