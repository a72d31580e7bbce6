"""The registry on a real MLflow: one version a model, aliases that follow the ledger, whatever is killed or raced."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import ENV_FAULT
from airloop.errors import BadArgument, NotFound, StaleRun, StoreBusy, Unreachable
from airloop.reference import Scope
from airloop.registry import lookup, models
from airloop.registry.ledger import Entry, Ledger
from airloop.registry.models import Registry, promote, versions
from airloop.registry.refs import ModelRef
from airloop.training import tracking
from airloop.warehouse.catalog import Warehouse

FEBRUARY, MARCH, APRIL = (datetime(2013, month, 1, 5, tzinfo=UTC) for month in (2, 3, 4))


@pytest.fixture
def registry(config: Config, warehouse: Warehouse) -> Registry:
    return Registry(config, warehouse)


def decision(version: int, effective: datetime, *, key: str = "", alias: str = "champion") -> Entry:
    key = key or f"register-{version}-{effective:%m}"
    return Entry(
        entry=key, seq=0, model="delay", alias=alias, version=version, previous=None, state="intent", moved=True,
        outcome="promote", reason="better", by="register", key=key, recorded_at=datetime.now(UTC),
        effective_at=effective,
    )  # fmt: skip


def alias_in_mlflow(config: Config, alias: str = "champion") -> int | None:
    aliases = tracking.client(config).get_registered_model("delay").aliases
    return int(aliases[alias]) if alias in aliases else None


def register(registry: Registry, run_id: str, **kwargs: Any) -> models.Registered:
    with registry.locked("delay"):
        return registry.register("delay", ModelRef(run_id=run_id), **kwargs)


def test_the_same_model_is_one_version(registry: Registry, config: Config, candidate: Callable[..., str]) -> None:
    first = candidate("k1")
    made = register(registry, first, tags={"airloop.decision": "promote"}, description="why")
    assert (made.version, made.created) == (1, True)
    again = register(registry, first)
    assert (again.version, again.created) == (1, False)
    same_key = register(registry, candidate("k1"))
    assert (same_key.version, same_key.run_id, same_key.created) == (1, first, False)
    assert register(registry, candidate("k2")).version == 2
    assert [(r["version"], r["description"], r["tags"]["airloop.key"]) for r in versions(config, "delay")] == [
        (2, "", "k2"),
        (1, "why", "k1"),
    ]
    with registry.locked("delay"):
        assert registry.register("delay", ModelRef("delay", version=2)).version == 2
        with pytest.raises(BadArgument, match="is not a version of delay"):
            registry.register("delay", ModelRef("other", version=2))
        with pytest.raises(NotFound):
            registry.register("delay", ModelRef("delay", version=9))
        with pytest.raises(NotFound):
            registry.register("delay", ModelRef(run_id="0" * 32))


def test_a_deleted_run_is_not_taken_for_the_same(
    registry: Registry, config: Config, candidate: Callable[..., str]
) -> None:
    first = candidate("k1")
    register(registry, first)
    tracking.client(config).delete_run(first)
    assert register(registry, candidate("k1")).version == 2


def _race(config: Config, run_id: str) -> int:
    return register(Registry(config, Warehouse.open(config)), run_id).version


def test_eight_at_once_make_one_version(config: Config, candidate: Callable[..., str]) -> None:
    run_id = candidate("k1")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _race(config, run_id), range(8)))
    assert found == [1] * 8
    assert len(versions(config, "delay")) == 1


def test_alias_follows_the_ledger(registry: Registry, config: Config, candidate: Callable[..., str]) -> None:
    for key in ("k1", "k2"):
        register(registry, candidate(key))
    with registry.locked("delay"):
        first = registry.decide(decision(1, FEBRUARY), move=True)
        second = registry.decide(decision(2, MARCH), move=True)
    assert (first.previous, second.previous) == (None, 1)
    assert (first.state, second.state) == ("done", "done")
    assert alias_in_mlflow(config) == 2
    assert [(e.seq, e.state, e.version) for e in registry.ledger.entries()] == [
        (1, "intent", 1), (2, "done", 1), (3, "intent", 2), (4, "done", 2),
    ]  # fmt: skip
    with registry.locked("delay"):
        assert registry.decide(decision(2, MARCH), move=True) == second
    assert len(registry.ledger.entries()) == 4
    assert [r["aliases"] for r in versions(config)] == [["champion"], []]


def test_an_older_interval_never_moves_it(registry: Registry, config: Config, candidate: Callable[..., str]) -> None:
    for key in ("k1", "k2"):
        register(registry, candidate(key))
    with registry.locked("delay"):
        registry.decide(decision(1, APRIL), move=True)
        late = registry.decide(decision(2, MARCH), move=True)
        assert registry.decide(decision(2, MARCH), move=True) == late
    assert (late.state, late.moved) == ("superseded", False)
    assert "not moved: champion is version 1 since data time 2013-04-01T05:00:00+00:00" in late.reason
    assert alias_in_mlflow(config) == 1


def test_the_same_interval_again_replaces_its_own(registry: Registry, candidate: Callable[..., str]) -> None:
    for key in ("k1", "k2"):
        register(registry, candidate(key))
    with registry.locked("delay"):
        registry.decide(decision(1, MARCH), move=True)
        assert registry.decide(decision(2, MARCH), move=True).state == "done"


def test_a_decision_that_moves_nothing_is_kept(
    registry: Registry, config: Config, candidate: Callable[..., str]
) -> None:
    register(registry, candidate())
    with registry.locked("delay"):
        entry = registry.decide(decision(1, MARCH), move=False)
    assert (entry.state, entry.moved) == ("done", False)
    assert alias_in_mlflow(config) is None
    assert registry.ledger.live() == []


@pytest.mark.parametrize("where", ["promote:intent", "promote:alias"])
def test_killed_half_way_is_completed_by_the_next(
    registry: Registry, config: Config, candidate: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    register(registry, candidate())
    monkeypatch.setenv(ENV_FAULT, f"raise@{where}")
    monkeypatch.setattr("airloop.faults._reached", __import__("collections").Counter())
    with pytest.raises(RuntimeError, match="injected"), registry.locked("delay"):
        registry.decide(decision(1, MARCH), move=True)
    monkeypatch.delenv(ENV_FAULT)
    assert registry.ledger.champion_at("delay") is None
    assert alias_in_mlflow(config) == (None if where == "promote:intent" else 1)
    with registry.locked("delay"):
        live = registry.ledger.champion_at("delay")
        assert live is not None
        assert registry.decide(decision(1, MARCH), move=True) == live
    assert alias_in_mlflow(config) == 1
    assert [e.state for e in registry.ledger.entries()] == ["intent", "done"]


def test_an_intent_for_a_version_that_is_gone_is_abandoned(
    registry: Registry, config: Config, candidate: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = candidate()
    register(registry, run_id)
    monkeypatch.setenv(ENV_FAULT, "raise@promote:intent")
    monkeypatch.setattr("airloop.faults._reached", __import__("collections").Counter())
    with pytest.raises(RuntimeError, match="injected"), registry.locked("delay"):
        registry.decide(decision(1, MARCH, key="r"), move=True)
    monkeypatch.delenv(ENV_FAULT)
    tracking.client(config).delete_model_version("delay", "1")
    with registry.locked("delay"):
        made = registry.register("delay", ModelRef(run_id=run_id))
        entry = registry.decide(decision(made.version, MARCH, key="r"), move=True)
    assert entry.state == "done"
    assert [e.state for e in registry.ledger.entries()] == ["intent", "abandoned", "intent", "done"]
    assert alias_in_mlflow(config) == made.version == 2


def test_an_alias_moved_by_hand_in_mlflow_is_put_back(
    registry: Registry, config: Config, candidate: Callable[..., str]
) -> None:
    for key in ("k1", "k2"):
        register(registry, candidate(key))
    with registry.locked("delay"):
        registry.decide(decision(1, MARCH), move=True)
    tracking.client(config).set_registered_model_alias("delay", "champion", "2")
    with registry.locked("delay"):
        assert alias_in_mlflow(config) == 1
    tracking.client(config).delete_model_version("delay", "1")
    with registry.locked("delay"):
        assert alias_in_mlflow(config) is None


def test_promotion_by_hand_and_rollback(registry: Registry, config: Config, candidate: Callable[..., str]) -> None:
    for key in ("k1", "k2"):
        register(registry, candidate(key))
    with registry.locked("delay"):
        registry.decide(decision(1, FEBRUARY), move=True)
        registry.decide(decision(2, MARCH), move=True)
    before = datetime.now(UTC)
    with pytest.raises(StaleRun, match="was not moved"):
        promote(config, "delay", 1, reason="too old", by="ana", effective_at=FEBRUARY)
    entry = promote(config, "delay", 1, reason="2 is slow", by="ana")
    assert (entry.previous, entry.outcome, entry.by) == (2, "manual", "ana")
    assert alias_in_mlflow(config) == 1
    ledger = Ledger(Warehouse.open(config))
    then, now = ledger.champion_at("delay", at=before), ledger.champion_at("delay")
    assert then is not None
    assert now is not None
    assert (then.version, now.version) == (2, 1)
    assert ledger.champion_at("delay", at=MARCH, clock="data").version == 2  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        promote(config, "delay", 9, reason="x", by="ana")
    with pytest.raises(BadArgument, match="reason and a name"):
        promote(config, "delay", 1, reason=" ", by="ana")


def test_only_one_writer_at_a_time(
    registry: Registry, config: Config, candidate: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate()
    monkeypatch.setattr(models, "LOCK_TIMEOUT_S", 0.2)
    with registry.locked("delay"):
        with (
            pytest.raises(StoreBusy, match="model delay was locked"),
            Registry(config, registry.ledger.warehouse).locked("delay"),
        ):
            raise AssertionError
        with registry.locked("other"):
            assert True
    with pytest.raises(BadArgument, match="not the name of a model"), registry.locked("../x"):
        raise AssertionError


def test_unreachable_server_is_named_soon(config: Config, warehouse: Warehouse) -> None:
    import dataclasses

    nobody = dataclasses.replace(config, mlflow="http://ana:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(Unreachable) as caught, Registry(nobody, warehouse).locked("delay"):
        raise AssertionError
    assert time.monotonic() - started < 60
    assert "secret" not in str(caught.value)
    with pytest.raises(Unreachable):
        ModelRef.parse("model:/delay/3").resolve(Scope(nobody))


def test_lookup_agrees_with_mlflow(
    registry: Registry, config: Config, candidate: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The direct look into SQLite says what MLflow's client says, for everything that can happen to a model."""
    kept, deleted, fileless = candidate("k1"), candidate("k2"), candidate("k3")
    for run_id in (kept, deleted, fileless):
        register(registry, run_id)
    client = tracking.client(config)
    client.delete_run(deleted)
    client.delete_model_version("delay", "2")
    import shutil

    shutil.rmtree(
        client.get_logged_model(tracking.logged_model_id(config, fileless)).artifact_location.removeprefix("file://")
    )

    def answers() -> list[Any]:
        return [
            *(lookup.run_exists(config, run_id) for run_id in (kept, deleted, fileless, "0" * 32)),
            *(lookup.version_run(config, "delay", version) for version in (1, 2, 3, 4)),
            lookup.version_run(config, "other", 1),
        ]

    direct = answers()
    assert direct == [True, False, False, False, kept, None, fileless, None, None]
    monkeypatch.setattr(lookup, "_VERSION", "SELECT run_id FROM another_schema WHERE ? = ?")
    monkeypatch.setattr(lookup, "_RUN", "SELECT place FROM another_schema WHERE ?")
    assert answers() == direct
