"""
Steps whose tables, catalog and artifacts are on a bucket and a PostgreSQL, killed at points that they reach there and
done again by another machine: everything ends as if nothing had happened, and a third machine that reads the tables all
the while sees nothing else.

``AIRLOOP_TEST_FAULT_SEED`` repeats a draw, ``AIRLOOP_TEST_SHARED_SAMPLE`` says how many points of each step it has.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from airloop import postgres
from airloop.config import Config, S3Address
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from tests.fault.compare import differences, seen_wrong
from tests.fault.flights_loop import Home, Outcome, filled, task
from tests.fault.home_state import Cache, content, ending, said, table_state
from tests.fault.watching import all_the_while
from tests.postgres_server import PostgresServer

SEED = int(os.environ.get("AIRLOOP_TEST_FAULT_SEED") or random.SystemRandom().randrange(10**6))
SAMPLE = int(os.environ.get("AIRLOOP_TEST_SHARED_SAMPLE") or 5)
SHARED = ("artifact:", "sql:postgresql:", "commit:", "publish:")
"""Points at writes to what machines share."""
LOOK_S = 0.05
"""Seconds between two looks of the reader."""
Points = dict[str, list[str]]
"""By task, in the order of the tasks and of the points."""


@dataclass
class Reader:
    """Reads ``main`` of every table there is again and again, as anybody may while steps run."""

    config: Config
    seen: dict[str, list[Any]] = field(default_factory=dict)
    """By table the contents that it had, one after the other, each once in a row; None: no rows were published yet."""
    looks: int = 0
    _cache: Cache = field(default_factory=dict)

    def look(self) -> None:
        if not self._catalog_is_there():
            return
        warehouse = Warehouse.open(self.config)
        for name in warehouse.tables():
            table = warehouse.table(name)
            main = table.metadata.current_snapshot_id
            found = content(self.config, table, main, self._cache)["content"] if main else None
            states = self.seen.setdefault(name, [])
            if states[-1:] != [found]:
                states.append(found)
        self.looks += 1

    def await_table(self) -> None:
        """Wait until it has seen a table, as it mostly has."""
        until = time.monotonic() + 240
        while not self.seen:
            assert time.monotonic() < until, "nobody looks"
            time.sleep(0.01)

    def _catalog_is_there(self) -> bool:
        """Who opens a new catalog makes its tables, which is the steps' part here."""
        with closing(postgres.connect(self.config.catalog, "AIRLOOP_CATALOG")) as connection:
            return connection.execute("SELECT to_regclass('iceberg_tables')").fetchone() != (None,)


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

    def walk(
        self, folder: Path, strikes: Mapping[str, str] | None = None, *, between: Callable[[], None] = lambda: None
    ) -> Points:
        """
        Bring the aircraft in and publish them.

        :param folder: for traces.
        :param strikes: by task the point at which it is killed, to be done by another machine.
        :param between: is called when rows have been brought in, and before they are published.
        :returns: every point that was reached by the attempts that ended well.
        """
        results: dict[str, Any] = {}
        reached: Points = {}
        home, other = self.machine("first"), self.machine("second")
        steps = {
            "extract": home.extraction("planes"),
            "validate": home.validation("planes", task("extract")),
        }
        for name, arguments in steps.items():
            call = filled(arguments, results)
            if strikes and name in strikes:
                struck = home.run(name, call, fault=f"kill@{strikes[name]}")
                assert struck.code == -SIGKILL, f"{strikes}: {name} does not reach it: {struck.code} {struck.log}"
                home, other = other, home
            trace = folder / f"{self.name}-{name}.trace"
            outcome = home.run(name, call, fault_trace=str(trace))
            assert outcome.code == 0, f"{strikes}: {name} ended with {outcome.code}: {outcome.log}"
            results[name] = self.result(outcome)
            reached[name] = trace.read_text().splitlines()
            if name == "extract":
                between()
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


def draw(points: Points) -> list[dict[str, str]]:
    """Points at random, one of each task at a time; of each task those of different kinds first."""
    drawn = {}
    for number, (name, reached) in enumerate(points.items()):
        shuffled = random.Random(SEED + number).sample(reached, len(reached))
        of_each_kind = list({point.partition(":")[0]: point for point in shuffled}.values())
        drawn[name] = [*of_each_kind, *(point for point in shuffled if point not in of_each_kind)][:SAMPLE]
    walks = range(max(map(len, drawn.values())))
    return [{name: some[walk] for name, some in drawn.items() if walk < len(some)} for walk in walks]


def test_killed_at_points_of_shared_stores_and_done_by_another_machine(
    make_place: Callable[[str], Place], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    undisturbed = make_place("undisturbed")
    reached = undisturbed.walk(tmp_path)
    points = {name: [point for point in its if point.startswith(SHARED)] for name, its in reached.items()}
    kinds = {point.partition(":")[0] for its in points.values() for point in its}
    assert kinds == {"artifact", "sql", "commit", "publish"}
    expected = undisturbed.state()
    walks = draw(points)
    failures, looks = [], 0
    for number, strikes in enumerate(walks):
        place = make_place(f"struck{number}")
        reader = Reader(place.config)
        with all_the_while(reader.look, every_s=LOOK_S):
            place.walk(tmp_path, strikes, between=reader.await_table)
        lost, doubled = differences(expected, place.state())
        if not (lost or doubled):
            assert reader.seen["raw.planes"][0] is None, "it looked while rows were there that nobody had published"
            lost = seen_wrong({}, expected, {"seen": reader.seen})
        looks += reader.looks
        if lost or doubled:
            failures.append(f"{strikes}: lost {lost}, doubled {doubled}")
    tried, there = sum(map(len, walks)), sum(map(len, points.values()))
    tell(
        f"points of shared stores tried {tried} of {there}, in {len(walks)} walks / walks that failed {len(failures)}"
        f" (the reader looked {looks:,} times); seed {SEED}"
    )
    assert not failures, "\n".join(failures)
