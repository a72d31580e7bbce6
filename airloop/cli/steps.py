"""``airloop steps`` and ``airloop run``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.cli.output import Output
from airloop.config import Config
from airloop.contract import Call, Interval
from airloop.errors import BadArgument, NotFound

if TYPE_CHECKING:
    from airloop.frame import Step


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser("steps", help="the catalogue of steps, with their typed arguments")
    listing.add_argument("step", nargs="?", help="one step, with all that is known of its arguments")
    listing.set_defaults(run=show_steps)

    running = commands.add_parser("run", help="run one step by hand, as a task would")
    running.add_argument("step", help="name in the catalogue, or package.module:function")
    running.add_argument(
        "arguments",
        nargs="*",
        metavar="NAME=VALUE",
        help="an argument: JSON if it can be read as such, else text; @FILE takes a file's content",
    )
    running.add_argument("--interval", help="start/end, ISO 8601 with offsets")
    running.add_argument("--force", action="store_true", help="do the work even if it was done before")
    running.set_defaults(run=run_step)


def show_steps(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.steps import load, names

    found = [load(name) for name in ([arguments.step] if arguments.step else names())]
    if output.as_json:
        output.data([_described(step) for step in found])
        return
    for step in found:
        output.say(output.paint(step.name, "bold") + f"  {step.summary}")
        if arguments.step and step.acts:
            output.say(f"    never run again by a replay: {step.acts}")
        for parameter in step.parameters.values():
            needed = "" if parameter.required else f" = {parameter.default!r}"
            output.say(f"    {parameter.name}: {parameter.type_name}{needed}")
            if arguments.step and parameter.description:
                output.say(f"        {parameter.description}")
        output.say()


def _described(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "summary": step.summary,
        "libraries": list(step.libraries),
        "effect": step.acts,
        "arguments": [
            {
                "name": p.name,
                "type": p.type_name,
                "required": p.required,
                "default": p.default,
                "in_key": p.in_key,
                "description": p.description,
            }
            for p in step.parameters.values()
        ],
    }


def run_step(arguments: argparse.Namespace, config: Config, output: Output) -> int:
    from airloop.frame.execute import execute, report_error
    from airloop.frame.logs import set_up
    from airloop.steps import load

    redact = set_up()
    step = load(arguments.step)
    interval = Interval.parse(arguments.interval) if arguments.interval else None
    given = dict(_argument(text) for text in arguments.arguments)
    call = Call(step.name, given, interval=interval, force=arguments.force)
    receipt, error = execute(step, call, config, redact)
    if error is not None:
        if error.exit_code == 1:
            report_error(error, redact)
            return 1
        raise error
    from airloop.frame.manifest import read_manifest
    from airloop.warehouse.artifacts import ArtifactStore

    manifest = read_manifest(ArtifactStore(config.artifacts), step.name, receipt.key)
    if manifest is None:
        raise NotFound(f"the manifest of {step.name} under key {receipt.key} is gone")
    output.data({"status": receipt.status, "manifest_address": receipt.manifest, **manifest})
    output.say(f"{output.paint(receipt.status, 'green')}  key {receipt.key[:12]}  {receipt.manifest}")
    for role, made in manifest["outputs"].items():
        output.say(f"  {role}: {made['reference']}")
    for name, count in manifest["counts"].items():
        output.say(f"  {name}: {count:,}")
    for name, figure in manifest["metrics"].items():
        output.say(f"  {name}: {figure:.4f}")
    return 0


def _argument(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise BadArgument(f"{text!r} is not NAME=VALUE")
    if value.startswith("@"):
        try:
            return name, Path(value[1:]).read_text()
        except OSError as cause:
            raise NotFound(f"argument {name}: cannot read {value[1:]}: {cause.strerror}") from cause
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
