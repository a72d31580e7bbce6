"""``airloop replay``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.cli.output import Output
from airloop.config import Config
from airloop.contract import Exit

if TYPE_CHECKING:
    from airloop.provenance.replay import Rebuilt

COLOURS = {"equal": "green", "equal under other libraries": "yellow", "taken": "dim", "not compared": "dim"}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="rebuild a past run on its exact data, arguments and code, and say whether it is equal",
        description="Rebuild a past run on its exact snapshots, arguments and code, beside the original, and compare "
        "training set, model and metrics. Steps with an effect are not run again. Exit code 0: equal; 65: not equal, "
        "nothing to compare, or no longer possible.",
    )
    parser.add_argument("run_id", metavar="DAG/RUN_ID", help="the run; its id alone if only one DAG has it")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK_ID",
        help="rebuild this task; may be given several times; default what led to the run's models",
    )
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="an empty folder for what is rebuilt, which stays")
    parser.add_argument("--keep", action="store_true", help="leave what is rebuilt below AIRLOOP_HOME/work")
    parser.set_defaults(run=replay_run)


def replay_run(arguments: argparse.Namespace, config: Config, output: Output) -> int:
    from airloop.provenance.replay import replay

    keep = arguments.keep or arguments.into is not None
    done = replay(config, arguments.run_id, tasks=arguments.task, into=arguments.into, keep=keep)
    output.data(
        {
            "dag_id": done.dag_id,
            "run_id": done.run_id,
            "verdict": done.verdict,
            "folder": str(done.folder) if keep else None,
            "tasks": [_document(task) for task in done.tasks],
        }
    )
    output.say(f"{done.dag_id}/{done.run_id}")
    for task in done.tasks:
        output.say(f"  {task.task_id} ({task.step}): {output.paint(task.verdict, COLOURS.get(task.verdict, 'red'))}")
        for finding in task.findings:
            output.say(f"      {finding.what}: {'' if finding.equal else 'not equal: '}{finding.text}")
        for change in task.changes:
            output.say(f"      {change}; {change.advice}")
        for line in filter(None, (task.taken, task.failed)):
            output.say(f"      {line}")
    if keep:
        output.say(f"  rebuilt in {done.folder}")
    output.say(output.paint(done.verdict[0].upper() + done.verdict[1:] + ".", COLOURS.get(done.verdict, "red")))
    return int(Exit.DONE if done.equal else Exit.REJECTED)


def _document(task: Rebuilt) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "step": task.step,
        "verdict": task.verdict,
        "findings": [asdict(f) for f in task.findings],
        "changes": [asdict(c) | {"advice": c.advice} for c in task.changes],
        "failed": task.failed,
        "taken": task.taken,
    }
