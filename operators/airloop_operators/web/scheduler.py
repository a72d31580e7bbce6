"""What Airflow knows about the runs of a loop: states, and how a DAG is called and scheduled."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DagFacts:
    """A DAG as Airflow's own list shows it."""

    name: str
    schedule: str
    paused: bool


def dag_facts(dag_ids: Collection[str]) -> dict[str, DagFacts]:
    """By DAG id; a DAG that Airflow does not know any more is left out."""
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = session.scalars(select(DagModel).where(DagModel.dag_id.in_(dag_ids)))
        return {
            dag.dag_id: DagFacts(dag.dag_display_name, dag.timetable_summary or "", bool(dag.is_paused))
            for dag in found
        }


def run_states(dag_id: str, run_ids: Collection[str] = (), *, newest: int = 0) -> dict[str, str]:
    """
    State by run id: ``queued``, ``running``, ``success`` or ``failed``.

    :param run_ids: the runs that are asked for.
    :param newest: also this many of the newest of all.
    """
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    known = select(DagRun.run_id, DagRun.state).where(DagRun.dag_id == dag_id)
    with create_session() as session:
        found = {r: str(s) for r, s in session.execute(known.where(DagRun.run_id.in_(run_ids)))} if run_ids else {}
        if newest:
            latest = known.order_by(DagRun.run_after.desc(), DagRun.id.desc()).limit(newest)
            found |= {r: str(s) for r, s in session.execute(latest)}
        return found
