"""``airloop why``: why a task was reused, or why it ran."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from airloop.cli.output import Output
from airloop.config import Config

if TYPE_CHECKING:
    from airloop.frame.history import RunRecord
    from airloop.provenance.cost import Sum


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    why = commands.add_parser("why", help="why a task of a run was reused, or what made it run again")
    why.add_argument("run_name", metavar="RUN", help="DAG/RUN, or RUN alone where only one loop has it")
    why.add_argument("task", nargs="?", metavar="TASK", help="task id; default: all, one line each")
    why.set_defaults(run=show)


def show(arguments: argparse.Namespace, config: Config, output: Output) -> None:
    from airloop.provenance.runs import find_run
    from airloop.provenance.why import explain
    from airloop.warehouse.artifacts import ArtifactStore

    run = find_run(ArtifactStore(config.artifacts), arguments.run_name)
    if arguments.task is None:
        found = [explain(config, run, task) for task in run.tasks]
        if output.as_json:
            output.data([why.as_json() for why in found])
        else:
            output.rows([{"task": w.task, "status": w.status, "why": w.because} for w in found], empty="No tasks yet.")
        return
    why = explain(config, run, arguments.task)
    took = _took(config, run, arguments.task)
    output.data({**why.as_json(), "took": took.as_json(None) if took is not None else None})
    output.say(f"{output.paint(why.task, 'bold')} of {why.dag_id}/{why.run_id}: {why.status}")
    output.say(f"  {why.because[:1].upper()}{why.because[1:]}.")
    if why.key:
        output.say(f"  key {why.key}")
    if took is not None and took.known:
        vain = f", {float(took.wasted_s):,.0f} s of them in vain" if took.wasted_s else ""
        output.say(f"  took {took.attempts:,} attempts, {float(took.seconds):,.0f} s{vain}")
    if why.compared_with:
        output.say(f"  compared with {why.compared_with}")
    for change in why.changes:
        output.say(f"  - {change.text}")
        for side, who in change.made_by.items():
            output.say(f"      {side}: made by {who}")
        for line in change.diff:
            colour = {"+": "green", "-": "red"}.get(line[:1], "dim")
            output.say(f"      {output.paint(line, colour)}")


def _took(config: Config, run: RunRecord, name: str) -> Sum | None:
    """What the task's attempts took, as their runners told it; None: none did."""
    from airloop.contract import RunInfo
    from airloop.objects import open_objects
    from airloop.provenance.cost import added_up, name_by
    from airloop.usage import of_task, spent

    task = run.tasks.get(name)
    if task is None:
        return None
    told = of_task(open_objects(config.artifacts), RunInfo(run.dag_id, run.run_id, task.task_id, task.map_index))
    return added_up([spent(one) for one in told], name_by("step"), None)[1] if told else None
