"""An attempt whose announcement the server has forgotten: upkeep takes it for dead, so nothing of it takes effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from airloop import locks, postgres
from airloop.config import Config
from airloop.errors import Unreachable
from airloop.frame import StepContext, StepResult, running, step
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import data_files, table_files

TABLE = "raw.a"
SCHEMA = pa.schema([pa.field("id", pa.int64())])
LOSE = """
    SELECT pg_terminate_backend(pid, 60000)
    FROM pg_locks JOIN airloop_running ON lock = (classid::bigint << 32) | objid::bigint
    WHERE locktype = 'advisory' AND pid <> pg_backend_pid()
"""
"""
What also happens to it when the server recovers from a crash, or another one takes its place. It waits until the
connection is gone, and its locks with it.
"""


def lose_once(config: Config) -> None:
    mark = config.home / "lost"
    if not mark.exists():
        mark.touch()
        with closing(postgres.connect(config.catalog, "AIRLOOP_CATALOG")) as connection:
            assert connection.execute(LOSE).fetchall() == [(True,)]


@step()
def write(ctx: StepContext, *, lost: str) -> StepResult:
    """Commit on a branch, publish and compact; the first time the announcement is lost right before one of them."""
    done = None
    for number in range(5):
        if (number, lost) == (0, "commit"):
            lose_once(ctx.config)
        rows = pa.table({"id": [number]}, schema=SCHEMA)
        done = ctx.warehouse.commit(TABLE, rows, key=f"{ctx.key}:{number}", branch="audit")
    if lost == "publish":
        lose_once(ctx.config)
    assert done is not None
    ctx.warehouse.publish(TABLE, done.snapshot, drop_branch="audit")
    if lost == "compact":
        lose_once(ctx.config)
    ctx.warehouse.compact(TABLE)
    if lost == "manifest":
        lose_once(ctx.config)
    return StepResult(outputs={"table": TableRef(TABLE, done.snapshot)})


@pytest.fixture
def config(config: Config, postgres_url: str) -> Config:
    return replace(config, catalog=postgres_url)


@pytest.mark.parametrize("lost", ["commit", "publish", "compact", "manifest"])
def test_nothing_takes_effect_and_the_next_try_does_it(
    config: Config, warehouse: Warehouse, run_step: Callable[..., dict[str, Any]], lost: str
) -> None:
    warehouse.ensure(TABLE, SCHEMA)
    with pytest.raises(Unreachable, match=r"not done, since lock running/\w+ was lost: .*; run the task again"):
        run_step(write, lost=lost)
    assert list(config.artifacts.rglob("manifest.json")) == []
    history = warehouse.history(TABLE)
    assert len(history) == {"commit": 0, "publish": 5, "compact": 5, "manifest": 6}[lost]
    assert bool(warehouse.head(TABLE)) == (lost in ("compact", "manifest"))
    assert len(data_files(config)) == len(history), "what was written and not committed is gone"
    assert len([file for file in table_files(config) if "/snap-" in file]) == len(history)
    with running.closed(config):
        assert not any(attempt.alive for attempt in running.attempts(config))
    assert locks._needed == [], "what is over asks for nothing"

    assert run_step(write, lost=lost)["status"] == "done"
    assert sorted(row["id"] for row in warehouse.scan(TableRef(TABLE)).read_all().to_pylist()) == [0, 1, 2, 3, 4]
    assert json.loads(next(config.artifacts.rglob("manifest.json")).read_bytes())["outputs"]["table"]
