"""
The command ``airloop``: look at what loops made, ask about it, and run a step by hand.

Exit codes: 0 done; 1 an error nobody expected (with its traceback); 2 the command line is wrong; 65 the input or a
gate said no; 75 something outside may recover, try again; 99 the step skipped itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from airloop.cli import cost, data, doctor, erase, lineage, models, replay, steps, upkeep, why
from airloop.cli.output import Output
from airloop.config import Config
from airloop.errors import AirloopError, classify

COMMANDS = (steps, data, models, replay, erase, doctor, why, cost, lineage, upkeep)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; modules of this package add their commands."""
    parser = argparse.ArgumentParser(prog="airloop", description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--home", help="folder of all state; default AIRLOOP_HOME, else the nearest .airloop")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_commands(commands)
    for command in commands.choices.values():
        # Accepted after the command too, where people write it.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.add_argument("--home", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    output = Output(as_json=arguments.json)
    try:
        from pathlib import Path

        config = Config.from_environment()
        if arguments.home:
            import os

            config = Config.from_environment({**os.environ, "AIRLOOP_HOME": str(Path(arguments.home))})
        return int(arguments.run(arguments, config, output) or 0)
    except AirloopError as error:
        output.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `airloop tables | head`: the reader has seen enough.
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001 - the edge of the program: classified, or shown whole
        known = classify(error)
        if known is None:
            output.unexpected(error)
            return 1
        output.error(known)
        return known.exit_code
