"""
Find pods that nobody follows any more (:mod:`.runners.pod.orphans`), and remove them.

``python -m airloop_operators.sweep`` says which there are, and why nobody follows them; ``--apply`` removes them. Those
of tasks that Airflow does not know are removed with ``--unknown`` only: their run was deleted, or they are of another
Airflow that has the same ``instance`` in the same namespace.

Nobody else will tell what the attempt of such a pod took, so this does, in the artifact store
(:mod:`.runners.pod.closing`). It may run twice at once, and beside a runner that lives after all: what that one tells
counts.

It asks Airflow's database and the cluster, so it runs where both can be reached: as the chart's job ``sweep``, or in
the triggerer, for one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from airloop.errors import AirloopError, BadConfiguration
from airloop_operators.runners.pod import ending, names
from airloop_operators.runners.pod.case import MARGIN_S
from airloop_operators.runners.pod.cluster import Cluster, Refused, refusal
from airloop_operators.runners.pod.ending import Object
from airloop_operators.runners.pod.names import TaskKey
from airloop_operators.runners.pod.orphans import Known, Orphan, orphans

if TYPE_CHECKING:
    from airloop.objects import Objects
    from airloop_operators.runners.pod.sizes import Pods
    from airloop_operators.settings import Settings

DESCRIPTION = "Remove pods that no task of Airflow follows any more"
KEEP_HOURS = 24.0
"""For which a pod that has ended is kept."""
LOOK_S = 1.0
"""Seconds between two looks at pods that end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    List, or remove.

    :returns: 1: there are some and they were only listed, or it could not be done, or not be told what one took.
    """
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
        clean = _sweep(apply=given.apply, unknown=given.unknown, keep_s=given.keep_hours * 3600)
    except AirloopError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0 if clean else 1


def _sweep(*, apply: bool, unknown: bool, keep_s: float) -> bool:
    """
    :returns: whether there is nothing that is left to do.
    :raises BadConfiguration: the configuration is wrong, or something is refused.
    :raises InfrastructureFailure: the API server is away.
    """
    from airloop_operators.runners.pod.access import connect
    from airloop_operators.runners.pod.sizes import read_pods
    from airloop_operators.settings import Settings

    settings = Settings.read()
    pods = read_pods(settings.sizes)
    access = connect(pods)
    cluster = Cluster(access.apis[0], access.namespace, patience_s=pods.patience.api_s)
    ours = f"{names.INSTANCE}={names.label_value(pods.instance)}"
    try:
        there = cluster.pods(ours)
        whose = [found[0] for pod in there if (found := names.task_of(pod["metadata"])) is not None]
        left = orphans(there, known_tasks(whose), now=time.time(), keep_s=keep_s)
        removal: Removal | None = None
        if apply and any(orphan.known or unknown for orphan in left):
            objects, mask = _store(settings, pods)
            removal = Removal(cluster, ours, objects, mask, pods.patience.grace_s)
        for orphan in left:
            goes = removal is not None and (orphan.known or unknown)
            done = f": {removal.remove(orphan.pod)}" if removal is not None and goes else ""
            sys.stdout.write(f"{_told(orphan, access.namespace)}{done}\n")
        if removal is not None:
            removal.await_ends()
    except Refused as no:
        raise refusal(no, "listing and removing pods") from None
    sys.stdout.write(f"pods: {len(there)}; that nobody follows: {len(left)}\n")
    return not removal.untold if removal is not None else apply or not left


class Removal:
    """
    Removes pods, and writes what their attempts took.

    :param selector: labels of the pods.
    :param objects: the artifact store.
    :param mask: takes secrets out of a text.
    :param grace_s: between asking a payload to end and killing it.
    """

    def __init__(
        self, cluster: Cluster, selector: str, objects: Objects, mask: Callable[[str], str], grace_s: float
    ) -> None:
        self._cluster = cluster
        self._selector = selector
        self._objects = objects
        self._mask = mask
        self._grace_s = grace_s
        self._asked: dict[str, tuple[Object, int]] = {}
        """By uid: pods that were asked to end, as they were then, and the version of the record that tells of it."""
        self.untold: list[str] = []
        """Why it could not be written what some of them took."""

    def remove(self, pod: Object) -> str:
        """
        Remove a pod.

        One that has ended stays while it cannot be recorded what it took: nothing else would tell. One that runs goes
        all the same, for others may wait for its place.

        :returns: what was done, for people.
        :raises Refused: it must not be removed.
        """
        if ending.is_over(pod):
            _, trouble = self._close(pod)
            if trouble:
                return f"kept, since {trouble}"
            self._cluster.delete_pod(pod, 0)
            return "removed"
        self._cluster.delete_pod(pod, self._grace_s)
        # It is told again when it has ended, if this program lives to see that.
        version, trouble = self._close(pod)
        if version is not None:
            self._asked[pod["metadata"]["uid"]] = pod, version
        return f"removed, but {trouble}" if trouble else "removed"

    def await_ends(self) -> None:
        """
        Wait for those that were asked to end, for as long as they have for that, and write when that was.

        :raises Refused: they must not be listed.
        """
        until = time.monotonic() + self._grace_s + MARGIN_S
        while self._asked:
            there = {pod["metadata"]["uid"]: pod for pod in self._cluster.pods(self._selector)}
            late = time.monotonic() >= until
            for uid, (last, version) in list(self._asked.items()):
                pod = there.get(uid)
                if late or pod is None or ending.is_over(pod) or ending.terminated(pod):
                    del self._asked[uid]
                    _, trouble = self._close(pod or last, version)
                    if trouble:
                        sys.stdout.write(f"{last['metadata']['name']}: {trouble}\n")
            if self._asked:
                time.sleep(LOOK_S)

    def _close(self, pod: Object, again: int | None = None) -> tuple[int | None, str]:
        """
        Write what a pod took.

        :param again: version of the record that was written before.
        :returns: version of the one that is written, None if that is nobody's to do; and what went wrong.
        """
        from airloop_operators.runners.pod.closing import close

        try:
            written = close(self._objects, pod, self._mask, again=again)
        except (OSError, AirloopError) as no:
            trouble = f"what it took cannot be recorded: {self._mask(str(no))}"
            self.untold.append(trouble)
            return None, trouble
        return (None if written is None else int(written["sequence"])), ""


def _store(settings: Settings, pods: Pods) -> tuple[Objects, Callable[[str], str]]:
    """
    The artifact store, as a task's runner opens it, and what takes secrets out of a text.

    :raises BadConfiguration: its credentials are not there.
    """
    from airflow.sdk.exceptions import AirflowException

    from airloop.objects import open_objects
    from airloop.redact import Redactor
    from airloop_operators.secrets import fetch_secrets

    try:
        secrets, plain = fetch_secrets(settings.secrets)
    except AirflowException as cause:
        raise BadConfiguration(f"[airloop] secrets: {cause}", "run it where Airflow's connections are") from cause
    environment = {**settings.environment, **plain}
    named = [os.environ[name] for name in pods.secrets if os.environ.get(name)]
    mask = Redactor([*secrets.values(), *named], {**environment, **pods.environment})
    return open_objects(settings.artifacts, {**os.environ, **environment, **secrets}), mask


def known_tasks(tasks: Iterable[TaskKey]) -> dict[TaskKey, Known]:
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
