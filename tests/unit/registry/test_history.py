"""
What was champion at any time, through random histories: promotions by runs of any interval, roll-backs by hand, kept
champions, processes killed in the middle, several at once. Held against a model of one list.

Many histories run on a ledger in memory, with the registry's own rules and recovery; a few on the real Iceberg table
and a real MLflow, with several threads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airloop.config import Config
from airloop.errors import NotFound, StaleRun
from airloop.registry import models
from airloop.registry.ledger import Entry, Ledger
from airloop.registry.models import Registry, promote
from airloop.registry.refs import CHALLENGER, CHAMPION, ModelRef
from airloop.training import tracking
from airloop.warehouse.catalog import Warehouse

VERSIONS = (1, 2, 3)
MONTHS = [datetime(2013, number, 1, tzinfo=UTC) for number in range(1, 7)]


class Killed(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Step:
    """One thing that happens to a model."""

    what: str
    """``promote`` or ``keep``, by the run of an interval; ``rollback``, by a person; ``again``, an earlier run."""
    version: int
    month: int
    killed: str = ""
    """Name of the point at which the process dies."""


points = st.sampled_from(["", "", "", "promote:intent", "promote:alias"])
decisions = st.builds(
    Step, st.sampled_from(["promote", "promote", "keep", "rollback", "again"]), st.sampled_from(VERSIONS),
    st.integers(0, len(MONTHS) - 1), points,
)  # fmt: skip


@dataclass
class Reference:
    """The same rules in the plainest words: moves of an alias, in order, none going back in data time."""

    moves: dict[str, list[tuple[int, datetime, int]]] = field(default_factory=dict)
    """By alias: (moment, data time, version); a moment is a count of what has happened."""
    moment: int = 0

    def live(self, alias: str) -> tuple[int, datetime, int] | None:
        return (self.moves.get(alias) or [None])[-1]

    def decide(self, alias: str, version: int, effective: datetime) -> bool:
        """Whether the alias moves."""
        live = self.live(alias)
        if live is not None and effective < live[1]:
            return False
        self.moves.setdefault(alias, []).append((self.moment, effective, version))
        return True

    def at_moment(self, alias: str, moment: int) -> int | None:
        return next((v for m, _, v in reversed(self.moves.get(alias, [])) if m <= moment), None)

    def at_data_time(self, alias: str, time: datetime) -> int | None:
        return next((v for _, e, v in reversed(self.moves.get(alias, [])) if e <= time), None)


class InMemory(Ledger):
    """The ledger without its table."""

    def __init__(self) -> None:
        self.rows: list[Entry] = []

    def entries(self, model: str | None = None, *, key: str | None = None) -> list[Entry]:
        found = [e for e in self.rows if model in (None, e.model) and key in (None, e.key)]
        return sorted(found, key=lambda e: (e.model, e.seq))

    def append(self, entry: Entry) -> Entry:
        entry = replace(entry, seq=1 + max((e.seq for e in self.entries(entry.model)), default=0))
        if not any((e.entry, e.state) == (entry.entry, entry.state) for e in self.rows):
            self.rows.append(entry)
        return entry


class Aliases:
    """As much of MLflow as aliases need."""

    def __init__(self) -> None:
        self.aliases: dict[str, int] = {}

    def get_model_version(self, name: str, version: str) -> Any:
        return SimpleNamespace(run_id=f"run-{version}")

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id, experiment_id="1"))

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases=dict(self.aliases))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = int(version)


@dataclass
class History:
    """A model whose history is made, and its reference."""

    config: Config
    registry: Registry
    model: str
    kill: Callable[[str], None]
    """Say at which point the next process dies."""
    reference: Reference = field(default_factory=Reference)
    pending: tuple[str, int, datetime] | None = None
    """Alias, version and data time of an intent that a killed process left."""
    pending_key: str = ""
    """Key of the run that it was; empty if it was a person."""
    clock: list[datetime] = field(default_factory=list)
    """A time of the wall clock after each moment."""
    keys: list[tuple[str, Step]] = field(default_factory=list)

    def play(self, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            if step.what == "rollback":
                self.roll_back(step)
            elif step.what == "again" and self.keys:
                key, first = self.keys[step.month % len(self.keys)]
                self.decide(first, key)
            else:
                key = f"run-{number}"
                self.keys.append((key, step))
                self.decide(step, key)
            self.tick()

    def decide(self, step: Step, key: str) -> None:
        """What step ``register`` does."""
        promoted = step.what != "keep"
        alias = CHAMPION if promoted else CHALLENGER
        known = self.registry.known(self.model, key, alias) is not None

        def do() -> Entry | None:
            with self.registry.locked(self.model):
                live = self.registry.ledger.champion_at(self.model)
                move = promoted or live is None or live.version != step.version
                return self.registry.decide(entry(self.model, key, step), move=move)

        done = self.dying(do, step.killed)
        live = self.reference.live(CHAMPION)
        moves = promoted or live is None or live[2] != step.version
        if known or not moves or (self.pending_key == key):
            self.pending_key = ""
            return
        self.expect(alias, step, done, key)

    def roll_back(self, step: Step) -> None:
        def do() -> Entry | None:
            try:
                return promote(
                    self.config, self.model, step.version, reason="slow", by="ana", effective_at=MONTHS[step.month]
                )
            except StaleRun:
                return None

        self.expect(CHAMPION, step, self.dying(do, step.killed), "")

    def expect(self, alias: str, step: Step, done: Any, key: str) -> None:
        effective = MONTHS[step.month]
        if done is DIED:
            live = self.reference.live(alias)
            if live is None or effective >= live[1]:
                self.pending, self.pending_key = (alias, step.version, effective), key
            return
        moved = self.reference.decide(alias, step.version, effective)
        assert (done is not None and done.moved and done.state == "done") == moved, (done, step)

    def dying(self, do: Callable[[], Entry | None], point: str) -> Any:
        """Do it, perhaps not to the end. Whoever comes first to the lock completes what the last one left."""
        self.kill(point)
        pending, self.pending = self.pending, None
        if pending is not None:
            alias, version, effective = pending
            assert self.reference.decide(alias, version, effective)
        try:
            return do()
        except Killed:
            return DIED
        finally:
            self.kill("")

    def tick(self) -> None:
        self.clock.append(datetime.now(UTC))
        self.reference.moment += 1
        time.sleep(1e-5)

    def check(self) -> None:
        """Every question about the past has the reference's answer."""
        ledger = self.registry.ledger
        for alias in (CHAMPION, CHALLENGER):

            def version(at: datetime | None, clock: Any, alias: str = alias) -> int | None:
                found = ledger.champion_at(self.model, alias, at, clock=clock)
                return found.version if found else None

            for moment, at in enumerate(self.clock):
                assert version(at, "wall") == self.reference.at_moment(alias, moment), (alias, moment)
            for at in (*MONTHS, MONTHS[0] - timedelta(days=1), *(m + timedelta(days=3) for m in MONTHS)):
                assert version(at, "data") == self.reference.at_data_time(alias, at), (alias, at)
            now = self.reference.live(alias)
            assert version(None, "wall") == version(None, "data") == (now[2] if now else None)
        entries = ledger.entries(self.model)
        assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
        assert len({(e.entry, e.state) for e in entries}) == len(entries)

    def settle(self) -> dict[str, int]:
        """Let somebody come by the lock, and what the aliases should name then."""
        self.dying(self.come_by, "")
        self.tick()
        assert self.registry.ledger.open_intents(self.model) == []
        return {alias: moves[-1][2] for alias, moves in self.reference.moves.items()}

    def come_by(self) -> None:
        with self.registry.locked(self.model):
            pass


DIED = object()


def entry(model: str, key: str, step: Step) -> Entry:
    return Entry(
        entry=key, seq=0, model=model, alias=CHAMPION if step.what != "keep" else CHALLENGER, version=step.version,
        previous=None, state="intent", moved=True, outcome="promote" if step.what != "keep" else "keep",
        reason="better", by="register", key=key, recorded_at=datetime.now(UTC), effective_at=MONTHS[step.month],
    )  # fmt: skip


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    dying = [""]

    def point(name: str) -> bool:
        if name == dying[0]:
            raise Killed(name)
        return False

    monkeypatch.setattr(models, "point", point)
    return lambda name: dying.__setitem__(0, name)


@pytest.fixture
def in_memory(
    config: Config, kill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[History, Aliases]]:
    """A model with an empty past, in memory."""

    def make() -> tuple[History, Aliases]:
        ledger, aliases = InMemory(), Aliases()
        monkeypatch.setattr(models, "Ledger", lambda warehouse: ledger)
        monkeypatch.setattr(Registry, "_client", lambda registry: aliases)
        monkeypatch.setattr(Warehouse, "open", lambda config: None)
        return History(config, Registry(config, None), "delay", kill), aliases  # type: ignore[arg-type]

    return make


UNJUDGED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=150, deadline=None, suppress_health_check=UNJUDGED)
@given(steps=st.lists(decisions, max_size=25))
def test_any_history_in_memory(in_memory: Callable[[], tuple[History, Aliases]], steps: list[Step]) -> None:
    history, aliases = in_memory()
    history.play(steps)
    history.check()
    wanted = history.settle()
    history.check()
    assert aliases.aliases == wanted


@pytest.fixture
def real(
    config: Config, warehouse: Warehouse, kill: Callable[[str], None], candidate: Callable[..., str]
) -> Callable[[], History]:
    """A model with three versions and an empty past, on Iceberg and MLflow."""
    runs = [candidate(f"k{version}") for version in VERSIONS]
    numbers = itertools.count()

    def make() -> History:
        history = History(config, Registry(config, warehouse), f"delay{next(numbers)}", kill)
        with history.registry.locked(history.model):
            for run_id in runs:
                history.registry.register(history.model, ModelRef(run_id=run_id))
        return history

    return make


def aliases_in_mlflow(history: History) -> dict[str, int]:
    try:
        found = tracking.client(history.config).get_registered_model(history.model).aliases
    except NotFound:
        return {}
    return {alias: int(version) for alias, version in found.items()}


@settings(max_examples=4, deadline=None, suppress_health_check=UNJUDGED)
@given(steps=st.lists(decisions, min_size=4, max_size=7))
def test_a_history_on_the_real_ledger(real: Callable[[], History], steps: list[Step]) -> None:
    history = real()
    history.play(steps)
    history.check()
    wanted = history.settle()
    history.check()
    assert aliases_in_mlflow(history) == wanted


@settings(max_examples=3, deadline=None, suppress_health_check=UNJUDGED)
@given(steps=st.lists(decisions, min_size=4, max_size=6))
def test_several_at_once_are_as_if_one_after_another(real: Callable[[], History], steps: list[Step]) -> None:
    history = real()
    runs = [Step("promote", s.version, s.month) for s in steps]

    def decide(number: int) -> Entry:
        # Each as its own process would: with a warehouse and a registry that it has opened itself.
        registry = Registry(history.config, Warehouse.open(history.config))
        with registry.locked(history.model):
            return registry.decide(entry(history.model, f"run-{number}", runs[number]), move=True)

    with ThreadPoolExecutor(len(runs)) as pool:
        done = {e.entry: e for e in pool.map(decide, range(len(runs)))}
    assert len(done) == len(runs)
    # The ledger says in which order they came; in that order the reference must say the same of each.
    for one in sorted(done.values(), key=lambda e: e.seq):
        moved = history.reference.decide(CHAMPION, one.version, one.effective_at)
        assert (one.state == "done") == moved
        history.clock.append(one.recorded_at)
        history.reference.moment += 1
    history.check()
    assert aliases_in_mlflow(history) == history.settle()
