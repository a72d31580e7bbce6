"""
Find pods that nobody follows any more (:mod:`.runners.pod.orphans`), and remove them.

``python -m airloop_operators.sweep`` says which there are, and why nobody follows them; ``--apply`` removes them. Those
of tasks that Airflow does not know are removed with ``--unknown`` only: their run was deleted, or they are of another
Airflow that has the same ``instance`` in the same namespace.

It asks Airflow's database and the cluster, so it runs where both can be reached: in the triggerer, for one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence

from airloop.errors import AirloopError, BadConfiguration
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.cluster import Cluster, Refused, refusal
from airloop_operators.runners.pod.names import Task
from airloop_operators.runners.pod.orphans import Known, Orphan, orphans

DESCRIPTION = "Remove pods that no task of Airflow follows any more"
KEEP_HOURS = 24.0
"""For which a pod that has ended is kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """List, or remove; 1: there are some and they were only listed, or it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m airloop_operators.sweep", description=DESCRIPTION)
    parser.add_argument("--apply", action="store_true", help="remove them; default: only list them")
    parser.add_argument("--unknown", action="store_true", help="also those of tasks that Airflow does not know")
    parser.add_argument(
        "--keep-hours", type=float, default=KEEP_HOURS, metavar="N",
        help="how long a pod that has ended is kept for its log; default: %(default)s",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    # As Airflow's own commands have it that read connections: else none of its database would be found.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    try:
        found = _sweep(apply=given.apply, unknown=given.unknown, keep_s=given.keep_hours * 3600)
    except AirloopError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 1 if found and not given.apply else 0


def _sweep(*, apply: bool, unknown: bool, keep_s: float) -> list[Orphan]:
    """
    :raises BadConfiguration: the configuration is wrong, or something is refused.
    :raises InfrastructureFailure: the API server is away.
    """
    from airloop_operators.runners.pod.access import connect
    from airloop_operators.runners.pod.sizes import read_pods
    from airloop_operators.settings import Settings

    pods = read_pods(Settings.read().sizes)
    access = connect(pods)
    cluster = Cluster(access.apis[0], access.namespace, patience_s=pods.patience.api_s)
    try:
        there = cluster.pods(f"{names.INSTANCE}={names.label_value(pods.instance)}")
        whose = [found[0] for pod in there if (found := names.task_of(pod["metadata"])) is not None]
        left = orphans(there, known_tasks(whose), now=time.time(), keep_s=keep_s)
        for orphan in left:
            goes = apply and (orphan.known or unknown)
            if goes:
                cluster.delete_pod(orphan.pod, 0 if ending.is_over(orphan.pod) else pods.patience.grace_s)
            sys.stdout.write(f"{_told(orphan, access.namespace)}{': removed' if goes else ''}\n")
    except Refused as no:
        raise refusal(no, "listing and removing pods") from None
    sys.stdout.write(f"pods: {len(there)}; that nobody follows: {len(left)}\n")
    return left


def known_tasks(tasks: Iterable[Task]) -> dict[Task, Known]:
    """
    What Airflow's database knows of some tasks and those that ran with them; what it does not know is not there.

    :raises BadConfiguration: it cannot be read.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    runs: dict[str, set[str]] = {}
    for dag_id, run_id, _, _ in tasks:
        runs.setdefault(dag_id, set()).add(run_id)
    ti = TaskInstance
    asked = select(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.state, ti.try_number)
    try:
        with create_session() as session:
            return {
                (dag, run, task, index): Known(None if state is None else str(state), number)
                for dag_id, run_ids in runs.items()
                for dag, run, task, index, state, number in session.execute(
                    asked.where(ti.dag_id == dag_id, ti.run_id.in_(run_ids))
                )
            }
    except SQLAlchemyError as cause:
        raise BadConfiguration(
            f"Airflow's database cannot be read: {str(cause).splitlines()[0]}",
            "run it where Airflow's database is configured",
        ) from cause


def _told(orphan: Orphan, namespace: str) -> str:
    dag_id, run_id, task_id, index = orphan.task
    task = f"{task_id}[{index}]" if index >= 0 else task_id
    does = "has ended" if ending.is_over(orphan.pod) else "runs" if ending.has_started(orphan.pod) else "waits"
    about = f"{dag_id} {run_id} {task}, try {orphan.try_number}"
    return f"{namespace}/{orphan.pod['metadata']['name']} {does}, and {orphan.why} ({about})"


if __name__ == "__main__":
    sys.exit(main())
