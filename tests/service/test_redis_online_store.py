"""Step materialize on a real Redis: what stock Feast reads from it, and what happens when Redis fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from airloop.cli.doctor import _online_store
from airloop.config import Config, RedisAddress
from airloop.errors import BadConfiguration, StoreFull, TryAgain, Unreachable
from airloop.features.online import OnlineTable, Watermark
from airloop.features.online_redis import OnlineRedis
from airloop.features.online_store import online_store_of
from airloop.upkeep.serving import unserve
from airloop.upkeep.subject import entity
from tests import shop as shops
from tests.ports import free_port
from tests.shop import DAY, HOUR, STORE, T0, RunStep, Shop

PACE = OnlineTable("shop_pace", "pace", ("speed", "trips"), "shop", ("driver",))


@pytest.fixture
def config(config: Config, tmp_path: Path, redis_url: str) -> Config:
    """The shop's repository as it is for SQLite; the configuration alone says Redis."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "views.py").write_text(shops.DEFINITIONS)
    (folder / "feature_store.yaml").write_text(STORE.format(project="shop", engine=shops.OURS))
    return replace(config, feature_repo=folder, online_store=RedisAddress(redis_url))


@pytest.fixture
def shop(warehouse: Any, config: Config, run_step: RunStep) -> Shop:
    return Shop(warehouse, config, run_step)


@pytest.fixture
def client(redis_url: str) -> Any:
    import redis

    with redis.Redis.from_url(redis_url) as opened:
        yield opened


def watermark(shop: Shop) -> Watermark | None:
    return online_store_of(shop.config).watermark(PACE)


def us(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


def test_stock_feast_reads_what_the_step_wrote(shop: Shop) -> None:
    shop.put("pace", [(1, 1.5, 3, T0, T0), (2, None, -4, T0, T0 + HOUR), (3, float("nan"), None, T0, T0)])
    manifest = shop.run(T0 + DAY)
    assert manifest["counts"]["rows_written"] == 4
    assert shop.read(1, 2, 3, 4) == [(1.5, 3), (None, -4), (None, None), (None, None)]
    mark = watermark(shop)
    assert mark is not None
    assert (mark.until_us, mark.entities) == (us(T0 + DAY), 3)
    assert shop.run(T0 + DAY)["status"] == "reused"


def test_answers_are_those_of_feast_materialize(shop: Shop, client: Any) -> None:
    """The same rows through Feast's own engine, field by field; ours adds its mark and its watermark."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from airloop.features.repo import open_store

    shop.put("pace", [(d, d / 7, d * 1000 - 5, T0 + d * HOUR, T0 + d * HOUR) for d in range(-3, 30)])
    shop.run(T0 + 2 * DAY)
    store = open_store(shop.config)

    def content() -> dict[bytes, dict[bytes, bytes]]:
        found = {key: client.hgetall(key) for key in client.scan_iter() if b"airloop:" not in key}
        return {
            key: {name: value for name, value in fields.items() if not name.startswith(b"_airloop:")}
            for key, fields in found.items()
        }

    ours = content()
    client.flushall()
    settings = store.config.model_dump(by_alias=True, exclude_unset=True) | {"batch_engine": {"type": "local"}}
    stock = FeatureStore(config=RepoConfig(**settings))
    stock.materialize(T0 - 10 * DAY, T0 + 2 * DAY)
    assert content() == ours


def test_only_what_is_new_is_written_and_nothing_older(shop: Shop) -> None:
    first = shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0, T0)])
    shop.run(T0 + DAY)
    shop.put("pace", [(1, 9.0, 9, T0 + DAY + HOUR, T0 + DAY + HOUR)])
    newer = shop.run(T0 + 2 * DAY)
    assert newer["details"]["views"]["pace"]["rows_written"] == 1
    older = shop.run(T0 + DAY, pace=first, force=True)
    assert older["details"]["views"]["pace"]["rows_written"] == 0
    assert shop.read(1, 2) == [(9.0, 9), (2.0, 2)]
    mark = watermark(shop)
    assert mark is not None
    assert mark.until_us == us(T0 + 2 * DAY)


def test_a_value_that_outlived_its_time_goes_offline(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0 + 9 * DAY, T0 + 9 * DAY)])
    shop.run(T0 + 9 * DAY)
    assert shop.read(1, 2) == [(1.0, 1), (2.0, 2)]
    assert shop.run(T0 + 11 * DAY)["details"]["views"]["pace"]["rows_expired"] == 1
    assert shop.read(1, 2) == [(None, None), (2.0, 2)]


def test_a_push_that_is_newer_stays(shop: Shop) -> None:
    import pandas as pd

    from airloop.features.repo import open_store

    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    pushed = {"driver": [1], "speed": [7.0], "trips": [7], "event_time": [T0 + 40 * HOUR], "arrival_time": [T0]}
    open_store(shop.config).write_to_online_store("pace", pd.DataFrame(pushed))
    shop.put("pace", [(1, 2.0, 2, T0 + 30 * HOUR, T0 + 30 * HOUR)])
    shop.run(T0 + 2 * DAY)
    assert shop.read(1) == [(7.0, 7)]


def test_teardown_takes_the_watermark_with_it(shop: Shop, client: Any) -> None:
    from airloop.features.repo import open_store

    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    store = open_store(shop.config)
    store._get_provider().online_store.delete_table(store.config, store.get_feature_view("pace"))
    assert watermark(shop) is None
    assert shop.run(T0 + DAY)["status"] == "done"
    assert shop.read(1) == [(1.0, 1)]
    store.teardown()
    assert client.dbsize() == 0


def test_many_slices(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airloop.features.online_redis.ENTITIES_PER_SLICE", 7)
    shop.put("pace", [(d, float(d), d, T0 + d * HOUR / 10, T0 + 5 * HOUR) for d in range(50)])
    assert shop.run(T0 + DAY)["counts"]["rows_written"] == 51
    assert shop.read(0, 6, 7, 49) == [(float(d), d) for d in (0, 6, 7, 49)]
    shop.put("pace", [(d, -1.0, -1, T0 + DAY + HOUR, T0 + DAY + HOUR) for d in range(0, 50, 3)])
    shop.run(T0 + 10 * DAY + 3 * HOUR)
    assert shop.read(0, 1, 3, 40) == [(-1.0, -1), (None, None), (-1.0, -1), (40.0, 40)]


def test_interrupted_in_the_switch_the_next_run_completes(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entity has a verified value, old or new; the watermark is the old one."""
    monkeypatch.setattr("airloop.features.online_redis.ENTITIES_PER_SLICE", 2)
    shop.put("pace", [(d, 1.0, 1, T0, T0) for d in range(10)])
    shop.run(T0 + DAY)
    shop.put("pace", [(d, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR) for d in range(10)])
    monkeypatch.setattr("airloop.features.online_redis.point", _fail_at("materialize:in_switch"))
    with pytest.raises(Unreachable):
        shop.run(T0 + 2 * DAY)
    served = shop.read(*range(10))
    assert set(served) == {(1.0, 1), (2.0, 2)}
    mark = watermark(shop)
    assert mark is not None
    assert mark.until_us == us(T0 + DAY)
    monkeypatch.undo()
    shop.run(T0 + 2 * DAY)
    assert shop.read(*range(10)) == [(2.0, 2)] * 10


def _fail_at(place: str) -> Any:
    def fail(name: str) -> None:
        if name == place:
            raise ConnectionResetError(place)

    return fail


def test_a_lost_lease_writes_nothing_more(shop: Shop, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    shop.put("pace", [(1, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR)])

    def stolen(name: str) -> None:
        if name == "materialize:before_switch":
            client.set(b"airloop:lock:shop_pace", b"someone else")

    monkeypatch.setattr("airloop.features.online_redis.point", stolen)
    with pytest.raises(TimeoutError, match="another process took over"):
        shop.run(T0 + 2 * DAY)
    assert shop.read(1) == [(1.0, 1)]
    assert client.get(b"airloop:lock:shop_pace") == b"someone else"


def test_without_memory_old_values_are_served(shop: Shop, client: Any) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    shop.put("pace", [(d, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR) for d in range(5_000)])
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used + 500_000)
    with pytest.raises(StoreFull, match="has no memory left"):
        shop.run(T0 + 2 * DAY)
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreFull, match="has no memory left"):
        shop.run(T0 + 2 * DAY)
    client.config_set("maxmemory", 0)
    assert shop.read(1) == [(1.0, 1)]
    mark = watermark(shop)
    assert mark is not None
    assert mark.until_us == us(T0 + DAY)


def test_redis_away_is_tried_again(shop: Shop, tmp_path: Path) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    away = replace(shop.config, online_store=RedisAddress(f"unix://{tmp_path}/nobody"))
    with pytest.raises(Unreachable, match="nobody/0 does not answer") as raised:
        shop.run(T0 + DAY, config=away)
    assert raised.value.exit_code == 75


def test_a_wrong_password_is_named_without_it(shop: Shop, client: Any) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    client.acl_setuser("reader", enabled=True, passwords=["+right, really=1"], categories=["+@all"], keys=["*"])
    options = client.connection_pool.connection_kwargs
    path = options.get("path")
    address = f"unix://{{}}@{path}" if path else f"redis://{{}}@{options['host']}:{options['port']}/{options['db']}"
    try:
        wrong = replace(shop.config, online_store=RedisAddress(address.format("reader:se%2Ccret")))
        with pytest.raises(BadConfiguration, match="refused the user or password") as raised:
            shop.run(T0 + DAY, config=wrong)
        assert "cret" not in str(raised.value) + repr(wrong) + str(wrong.describe())
        right = replace(shop.config, online_store=RedisAddress(address.format("reader:right%2C%20really%3D1")))
        assert shop.run(T0 + DAY, config=right)["counts"]["rows_written"] == 2
    finally:
        client.acl_deluser("reader")


def test_a_redis_that_forgot_its_scripts_is_tried_again(
    shop: Shop, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that took the place of another in the middle."""
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    send = OnlineRedis._send

    def forgotten(self: OnlineRedis, calls: Iterator[list[Any]], *, at_once: bool) -> list[Any]:
        listed = list(calls)
        client.script_flush()
        return send(self, iter(listed), at_once=at_once)

    with monkeypatch.context() as patched:
        patched.setattr(OnlineRedis, "_send", forgotten)
        with pytest.raises(TryAgain, match=r"has forgotten a script .*; run the task again") as raised:
            shop.run(T0 + DAY)
    assert (raised.value.exit_code, watermark(shop)) == (75, None)
    shop.run(T0 + DAY)
    assert shop.read(1) == [(1.0, 1)]


@pytest.fixture
def cluster_node(tmp_path: Path) -> Iterator[Any]:
    """A Redis with cluster mode on, which serves no key yet."""
    import redis

    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        assert not os.environ.get("CI"), "the tests need a redis-server"
        pytest.skip("no redis-server is installed")
    command = [program, "--port", str(free_port()), "--cluster-port", str(free_port()), "--cluster-enabled", "yes"]
    command += ["--unixsocket", str(tmp_path / "socket"), "--dir", str(tmp_path), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            with redis.Redis(unix_socket_path=str(tmp_path / "socket")) as client:
                until = time.monotonic() + 240
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        assert time.monotonic() < until
                        time.sleep(0.02)
                yield client
        finally:
            server.terminate()


def test_a_redis_cluster_is_named_and_nothing_is_written(shop: Shop, cluster_node: Any) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0, T0)])
    path = cluster_node.connection_pool.connection_kwargs["path"]
    config = replace(shop.config, online_store=RedisAddress(f"unix://{path}"))
    said = r"is a node of a Redis Cluster \(.*; name a Redis with cluster mode off in AIRLOOP_ONLINE_STORE"
    with pytest.raises(BadConfiguration, match=said):
        shop.run(T0 + DAY, config=config)
    cluster_node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    until = time.monotonic() + 240
    while cluster_node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(BadConfiguration, match=said):
        shop.run(T0 + DAY, config=config)
    with pytest.raises(BadConfiguration, match=said):
        shop.run(T0 + DAY, config=replace(config, online_store=RedisAddress(f"unix://{path}?db=1")))
    with pytest.raises(BadConfiguration, match=said):
        unserve(config, entity(["driver=1"]), {}, remove=True)
    assert cluster_node.dbsize() == 0
    (found,) = _online_store(config)
    assert (found.state, found.mend) == ("bad", "name a Redis with cluster mode off in AIRLOOP_ONLINE_STORE")
