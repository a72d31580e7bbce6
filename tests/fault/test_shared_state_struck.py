"""
Steps whose tables, catalog and artifacts are on a bucket and a PostgreSQL, killed at points that they reach there and
done again by another machine: everything ends as if nothing had happened.

``AIRLOOP_TEST_FAULT_SEED`` repeats a draw, ``AIRLOOP_TEST_SHARED_SAMPLE`` sizes it.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from airloop.config import Config, S3Address
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from tests.fault.compare import differences
from tests.fault.flights_loop import Home, Outcome, filled, task
from tests.fault.home_state import ending, said, table_state
from tests.postgres_server import PostgresServer

SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_SHARED_SAMPLE") or 5)
SHARED = ("artifact:", "sql:postgresql:", "commit:", "publish:")
"""Points at writes to what machines share."""
Strike = tuple[str, str]
"""A task and the point at which it is killed."""


@dataclass
class Place:
    """Stores that machines share, empty at first."""

    name: str
    environment: dict[str, str]
    make_home: Callable[[str], Home]

    @property
    def config(self) -> Config:
        return Config.from_environment(self.machine("reader").environment)

    def machine(self, name: str) -> Home:
        """One that has nothing of its own but a scratch folder."""
        home = self.make_home(f"{self.name}-{name}")
        home.environment |= self.environment
        return home

    def walk(self, folder: Path, strike: Strike | None = None) -> list[Strike]:
        """
        Bring the aircraft in and publish them; the task of the strike is killed first and done by another machine.

        :param folder: for traces.
        :returns: every point that was reached by the attempts that ended well.
        """
        results: dict[str, Any] = {}
        reached = []
        first, second = self.machine("first"), self.machine("second")
        steps = {
            "extract": first.extraction("planes"),
            "validate": first.validation("planes", task("extract")),
        }
        for name, arguments in steps.items():
            call, home = filled(arguments, results), first
            if strike is not None and name == strike[0]:
                struck = home.run(name, call, fault=f"kill@{strike[1]}")
                assert struck.code == -SIGKILL, f"{strike} is not reached: {struck.code} {struck.log}"
                home = second
            trace = folder / f"{self.name}-{name}.trace"
            outcome = home.run(name, call, fault_trace=str(trace))
            assert outcome.code == 0, f"{strike}: {name} ended with {outcome.code}: {outcome.log}"
            results[name] = self.result(outcome)
            reached += [(name, point) for point in trace.read_text().splitlines()]
        return reached

    def result(self, outcome: Outcome) -> dict[str, str]:
        """What an operator hands to the next task."""
        assert outcome.receipt is not None
        store = ArtifactStore(self.config.artifacts)
        manifest = json.loads(store.read_bytes(store.name_of(outcome.receipt["manifest"])))
        return replace(outcome, manifest=manifest).result

    def state(self) -> dict[str, Any]:
        """Tables with every state that ``main`` has been in, and what manifests and records of tasks say."""
        config, warehouse = self.config, Warehouse.open(self.config)
        found: dict[str, Any] = {
            name: table_state(config, warehouse.table(name), {}, logs=True) for name in warehouse.tables()
        }
        store = ArtifactStore(config.artifacts)
        for name in store.names("steps"):
            if name.endswith("/manifest.json"):
                step, text = said(json.loads(store.read_bytes(name)))
                found.setdefault(f"said by {step}", []).append(text)
        records = {name: ending(json.loads(store.read_bytes(name))) for name in store.names("runs")}
        return {name: sorted(value) if isinstance(value, list) else value for name, value in found.items()} | records


@pytest.fixture
def make_place(
    make_home: Callable[..., Home], s3_bucket: S3Address, postgres_server: PostgresServer
) -> Iterator[Callable[[str], Place]]:
    with ExitStack() as stack:

        def make(name: str) -> Place:
            # A name that looks like an id is left out of what is compared.
            place = f"{s3_bucket}/{uuid.uuid4().hex}"
            own = {variable: value for variable, value in os.environ.items() if variable.startswith("AWS_")}
            own |= {
                "AIRLOOP_WAREHOUSE": f"{place}/lake",
                "AIRLOOP_ARTIFACTS": f"{place}/artifacts",
                "AIRLOOP_CATALOG": stack.enter_context(postgres_server.database()),
            }
            return Place(name, own, make_home)

        yield make


def draw_strikes(points: list[Strike]) -> list[Strike]:
    """Some at random, one of each kind first."""
    shuffled = random.Random(SEED).sample(points, len(points))
    of_each_kind = list({point.partition(":")[0]: (name, point) for name, point in shuffled}.values())
    return [*of_each_kind, *(strike for strike in shuffled if strike not in of_each_kind)][:SAMPLE]


def test_killed_at_points_of_shared_stores_and_done_by_another_machine(
    make_place: Callable[[str], Place], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    undisturbed = make_place("undisturbed")
    points = [strike for strike in undisturbed.walk(tmp_path) if strike[1].startswith(SHARED)]
    assert {point.partition(":")[0] for _, point in points} == {"artifact", "sql", "commit", "publish"}
    expected = undisturbed.state()
    strikes = draw_strikes(points)
    failures = []
    for number, strike in enumerate(strikes):
        place = make_place(f"struck{number}")
        place.walk(tmp_path, strike)
        lost, doubled = differences(expected, place.state())
        if lost or doubled:
            failures.append(f"{strike}: lost {lost}, doubled {doubled}")
    survived = len(strikes) - len(failures)
    tell(f"points of shared stores tried {len(strikes)} of {len(points)} / survived {survived}; seed {SEED}")
    assert not failures, "\n".join(failures)
