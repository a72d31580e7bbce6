"""Commits: append, upsert, replace, delete, once and only once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airloop.config import Config
from airloop.errors import BadArgument, BadInput, CommitConflict, NotFound
from airloop.warehouse import commit as committing
from airloop.warehouse.catalog import Commit, Warehouse
from airloop.warehouse.read import live_files
from airloop.warehouse.refs import TableRef
from tests.places import AND_BY_REST, EVERYWHERE, data_files

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("x", pa.float64()),
        pa.field("_batch", pa.string()),
    ]
)
NAME = "raw.a"


def month(i: int) -> datetime:
    return datetime(2013, 1 + i % 3, 1, tzinfo=UTC)


def rows(ids: list[int | None], x: float | None = 1.0, batch: str = "b1") -> pa.Table:
    data = [{"id": i, "at": month(i or 0), "x": x, "_batch": batch} for i in ids]
    return pa.Table.from_pylist(data, SCHEMA)


@pytest.fixture(params=["", "month(at)"], ids=["whole", "monthly"])
def table(request: pytest.FixtureRequest, warehouse: Warehouse) -> str:
    warehouse.ensure(NAME, SCHEMA, key=["id"], partition_by=request.param)
    return NAME


def content(warehouse: Warehouse, ref: TableRef | None = None) -> dict[Any, tuple[Any, Any]]:
    found = warehouse.scan(ref or TableRef(NAME)).read_all().to_pylist()
    assert len({r["id"] for r in found}) == len(found), "a key is there twice"
    return {r["id"]: (r["x"], r["_batch"]) for r in found}


def counts(commit: Commit) -> tuple[bool, int, int, int]:
    return commit.changed, commit.added, commit.updated, commit.deleted


@AND_BY_REST
def test_append(warehouse: Warehouse, table: str) -> None:
    done = warehouse.commit(table, rows([1, 2, 3]), key="k1", properties={"run": "r1"})
    assert counts(done) == (True, 3, 0, 0)
    assert warehouse.head(table) == done.snapshot
    assert warehouse.count(done.ref) == 3
    (info,) = warehouse.history(table)
    assert (info.id, info.parent, info.operation, info.key) == (done.snapshot, None, "append", "k1")
    assert (info.rows_added, info.rows_total, info.summary["run"]) == (3, 3, "r1")
    assert abs((datetime.now(UTC) - info.committed_at).total_seconds()) < 60


@AND_BY_REST
def test_the_same_key_commits_once(warehouse: Warehouse, table: str) -> None:
    done = warehouse.commit(table, rows([1, 2, 3]), key="k1")

    def never() -> Iterator[pa.RecordBatch]:
        raise AssertionError("rows were read although the key is there")
        yield

    again = warehouse.commit(table, never(), key="k1")
    assert again == replace(done, changed=False, adopted=True)
    assert len(warehouse.history(table)) == 1
    assert warehouse.find_key(table, "k1") == done.snapshot
    assert warehouse.find_key(table, "k2") is None


@AND_BY_REST
def test_a_key_on_another_branch_is_adopted(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows([1]), key="k1")
    audit = warehouse.commit(table, rows([2]), key="k2", branch="audit")
    warehouse.drop_branch(table, "audit")
    again = warehouse.commit(table, rows([2]), key="k2", branch="audit")
    assert again.adopted
    assert again.snapshot == audit.snapshot
    assert sorted(content(warehouse, again.ref)) == [1, 2]


@AND_BY_REST
def test_upsert(warehouse: Warehouse, config: Config, table: str) -> None:
    warehouse.commit(table, rows([1, 2, 3]), key="k1")
    changed = pa.concat_tables([rows([3, 4], 1.0, "b2"), rows([2], 9.0, "b2")])
    done = warehouse.commit(table, changed, key="k2", mode="upsert")
    assert counts(done) == (True, 1, 1, 0)
    # The identical row keeps its metadata, the changed one has the new.
    assert content(warehouse) == {1: (1.0, "b1"), 2: (9.0, "b2"), 3: (1.0, "b1"), 4: (1.0, "b2")}
    before = data_files(config)
    same = warehouse.commit(table, rows([1, 3], 1.0, "b3"), key="k3", mode="upsert")
    assert counts(same) == (False, 0, 0, 0)
    assert same.snapshot == done.snapshot
    assert not same.adopted
    assert data_files(config) == before, "files of a commit that was none are left"


@EVERYWHERE
def test_upsert_rewrites_only_files_with_changed_rows(config: Config) -> None:
    warehouse = Warehouse.open(replace(config, rows_per_chunk=10))
    warehouse.ensure(NAME, SCHEMA, key=["id"])
    first = warehouse.commit(NAME, rows(list(range(50))), key="k1")
    before = [f.path for f in live_files(warehouse.table(NAME), first.snapshot)]
    done = warehouse.commit(NAME, rows([15, 33, 34, 35], 2.0), key="k2", mode="upsert")
    after = {f.path for f in live_files(warehouse.table(NAME), done.snapshot)}
    assert [p in after for p in before] == [True, False, True, False, True]
    assert content(warehouse) == {i: (2.0 if i in (15, 33, 34, 35) else 1.0, "b1") for i in range(50)}
    # The old snapshot is what it was.
    assert {x for x, _ in content(warehouse, first.ref).values()} == {1.0}


@EVERYWHERE
def test_null_and_nan_are_values(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, pa.concat_tables([rows([None], math.nan), rows([1], None)]), key="k1")
    same = warehouse.commit(table, rows([None], math.nan, "b2"), key="k2", mode="upsert")
    assert not same.changed
    done = warehouse.commit(table, rows([None, 1], 5.0, "b2"), key="k3", mode="upsert")
    assert counts(done) == (True, 0, 2, 0)
    assert content(warehouse) == {None: (5.0, "b2"), 1: (5.0, "b2")}


def test_nan_in_the_key(warehouse: Warehouse) -> None:
    schema = pa.schema([("x", pa.float64()), ("v", pa.int64())])
    warehouse.ensure("raw.n", schema, key=["x"])
    warehouse.commit("raw.n", pa.table({"x": [math.nan, 1.0], "v": [1, 1]}, schema), key="1")
    done = warehouse.commit("raw.n", pa.table({"x": [math.nan, 2.0], "v": [2, 2]}, schema), key="2", mode="upsert")
    assert counts(done) == (True, 1, 1, 0)


@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
def test_a_key_twice_in_the_rows(warehouse: Warehouse, config: Config, table: str, mode: Any) -> None:
    with pytest.raises(BadInput, match=r"5 of 7 rows for raw.a share 2 keys \(id\); first: id=8, 3 times"):
        warehouse.commit(table, rows([1, 2, 7, 8, 8, 8, 7]), key="k1", mode=mode, on=["id"])
    assert warehouse.head(table) == 0
    assert data_files(config) == set()


def test_upsert_mends_a_key_that_the_table_holds_twice(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows([1, 2]), key="k1")
    warehouse.commit(table, rows([1, 3]), key="k2")
    done = warehouse.commit(table, rows([1], 1.0, "b3"), key="k3", mode="upsert")
    assert counts(done) == (True, 0, 1, 0)
    assert content(warehouse) == {1: (1.0, "b3"), 2: (1.0, "b1"), 3: (1.0, "b1")}


@EVERYWHERE
def test_upsert_moves_a_row_to_another_partition(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows([1, 2]), key="k1")
    moved = pa.Table.from_pylist([{"id": 1, "at": datetime(2014, 5, 1, tzinfo=UTC), "x": 1.0, "_batch": "b2"}], SCHEMA)
    done = warehouse.commit(table, moved, key="k2", mode="upsert")
    assert counts(done) == (True, 0, 1, 0)
    assert content(warehouse) == {1: (1.0, "b2"), 2: (1.0, "b1")}


def test_upsert_by_several_columns(warehouse: Warehouse) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.date32()), ("v", pa.int64())])
    warehouse.ensure("raw.m", schema)
    day = [datetime(2013, 1, d, tzinfo=UTC).date() for d in (1, 2)]
    old = pa.table({"a": ["x", "x", "y", None], "b": [day[0], day[1], day[0], day[0]], "v": [1, 1, 1, 1]}, schema)
    warehouse.commit("raw.m", old, key="1")
    new = pa.table({"a": ["x", "y", None], "b": [day[1], day[1], day[0]], "v": [2, 2, 2]}, schema)
    done = warehouse.commit("raw.m", new, key="2", mode="upsert", on=["a", "b"])
    assert counts(done) == (True, 1, 2, 0)


def test_upsert_needs_a_key(warehouse: Warehouse) -> None:
    warehouse.ensure("raw.k", SCHEMA)
    with pytest.raises(BadArgument, match="needs `on`"):
        warehouse.commit("raw.k", rows([1]), key="1", mode="upsert")
    with pytest.raises(BadArgument, match="no column nope"):
        warehouse.commit("raw.k", rows([1]), key="1", mode="upsert", on=["nope"])


@AND_BY_REST
def test_replace_all(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows([1, 2, 3]), key="k1")
    done = warehouse.commit(table, rows([3, 4], 2.0), key="k2", mode="replace")
    assert counts(done) == (True, 2, 0, 3)
    assert len(warehouse.history(table)) == 2, "one snapshot, not a delete and an append"
    assert sorted(content(warehouse)) == [3, 4]
    emptied = warehouse.commit(table, [], key="k3", mode="replace")
    assert counts(emptied) == (True, 0, 0, 2)
    assert warehouse.count(TableRef(table)) == 0
    assert not warehouse.commit(table, [], key="k4", mode="replace").changed


@EVERYWHERE
def test_replace_where(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows(list(range(9))), key="k1")
    done = warehouse.commit(table, rows([5, 11], 2.0), key="k2", mode="replace", replace_where="id >= 5")
    assert counts(done) == (True, 2, 0, 4)
    assert content(warehouse) == {**dict.fromkeys(range(5), (1.0, "b1")), 5: (2.0, "b1"), 11: (2.0, "b1")}


def test_replace_where_refuses_rows_outside(warehouse: Warehouse, config: Config, table: str) -> None:
    warehouse.commit(table, rows([1, 2]), key="k1")
    before = data_files(config)
    with pytest.raises(BadInput, match=r"2 of 3 rows for raw\.a are not among those to replace"):
        warehouse.commit(table, rows([1, 6, None]), key="k2", mode="replace", replace_where="id < 5")
    assert data_files(config) == before
    with pytest.raises(BadArgument, match="does not go with mode append"):
        warehouse.commit(table, rows([1]), key="k2", replace_where="id < 5")


@EVERYWHERE
def test_replace_by_the_same_rows_changes_nothing(warehouse: Warehouse, config: Config, table: str) -> None:
    first = warehouse.commit(table, rows([1, 2, 3], math.nan), key="k1")
    before = data_files(config)
    same = warehouse.commit(table, rows([3, 1, 2], math.nan, "b2"), key="k2", mode="replace")
    assert not same.changed
    assert same.snapshot == first.snapshot
    part = warehouse.commit(table, rows([2], math.nan), key="k3", mode="replace", replace_where="id = 2")
    assert not part.changed
    assert data_files(config) == before
    # As many rows, another multiplicity.
    assert warehouse.commit(table, rows([3, 1, 1], math.nan), key="k4", mode="replace").changed


@AND_BY_REST
def test_delete(warehouse: Warehouse, config: Config, table: str) -> None:
    assert not warehouse.delete(table, "id > 3", key="k0").changed
    warehouse.commit(table, rows([*range(6), None]), key="k1")
    done = warehouse.delete(table, "id > 3", key="k2")
    assert counts(done) == (True, 0, 0, 2)
    # NULL > 3 is not true.
    assert set(content(warehouse)) == {0, 1, 2, 3, None}
    assert warehouse.delete(table, "id > 3", key="k2").adopted
    assert not warehouse.delete(table, "id > 3", key="k3").changed
    with pytest.raises(BadArgument, match="SQL: "):
        warehouse.delete(table, "nope > 3", key="k4")
    assert counts(warehouse.delete(table, "true", key="k5"))[3] == 5


@EVERYWHERE
def test_nothing_to_append(warehouse: Warehouse, table: str) -> None:
    done = warehouse.commit(table, [], key="k1")
    assert counts(done) == (False, 0, 0, 0)
    assert done.snapshot == 0
    assert done.ref == TableRef(table, 0)
    assert content(warehouse, done.ref) == {}


@AND_BY_REST
def test_rows_that_fail_half_way(warehouse: Warehouse, config: Config, table: str) -> None:
    def half() -> Iterator[pa.RecordBatch]:
        yield from rows(list(range(1000))).to_batches()
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        warehouse.commit(table, half(), key="k1")
    assert warehouse.head(table) == 0
    assert data_files(config) == set()


@EVERYWHERE
@pytest.mark.parametrize("fault", ["raise@commit:before", "full@commit:before"])
def test_a_failure_before_the_commit_leaves_nothing(
    warehouse: Warehouse, config: Config, table: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airloop import faults

    warehouse.commit(table, rows([1, 2]), key="k1")
    before = data_files(config)
    monkeypatch.setattr(faults, "_reached", type(faults._reached)())
    monkeypatch.setenv("AIRLOOP_FAULT", fault)
    with pytest.raises((RuntimeError, OSError)):
        warehouse.commit(table, rows([2, 3], 7.0), key="k2", mode="upsert")
    monkeypatch.delenv("AIRLOOP_FAULT")
    assert data_files(config) == before
    assert counts(warehouse.commit(table, rows([2, 3], 7.0), key="k2", mode="upsert")) == (True, 1, 1, 0)


def test_arguments(warehouse: Warehouse, table: str) -> None:
    with pytest.raises(NotFound, match=r"no table raw\.nope"):
        warehouse.commit("raw.nope", rows([1]), key="k")
    with pytest.raises(BadArgument, match="mode 'merge'"):
        warehouse.commit(table, rows([1]), key="k", mode="merge")  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="needs a key"):
        warehouse.commit(table, rows([1]), key="")
    with pytest.raises(BadArgument, match="name of a branch"):
        warehouse.commit(table, rows([1]), key="k", branch="123")


class Rival:
    """Loads the table and lets another writer in between, as often as it is told."""

    def __init__(self, warehouse: Warehouse, times: int) -> None:
        self.warehouse = warehouse
        self.times = times
        self.send = committing.send

    def __call__(self, table: Any, updates: Any, requirements: Any) -> None:
        if self.times:
            self.times -= 1
            i = 1000 + self.times
            fresh = self.warehouse.table(NAME)
            times, self.times = self.times, 0
            committing._commit_once(fresh, lambda: fresh, f"rival{i}", "main", {}, self.plan(fresh, i))
            self.times = times
        self.send(table, updates, requirements)

    def plan(self, table: Any, i: int) -> Any:
        from airloop.warehouse.files import DataFileWriter
        from airloop.warehouse.plan import Plan

        writer = DataFileWriter(table, rows_per_file=100)
        writer.write(rows([i], 3.0, "rival"))
        return Plan(add=writer.close(), added=1)


@EVERYWHERE
@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
def test_conflicts_are_worked_out_again(
    warehouse: Warehouse, table: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.commit(table, rows([1, 2]), key="k1")
    monkeypatch.setattr(committing, "send", Rival(warehouse, 3))
    where = "id < 10" if mode == "replace" else None
    done = warehouse.commit(table, rows([2, 3] if mode == "upsert" else [3]), key="k2", mode=mode, replace_where=where)
    assert done.changed
    expected = {1000, 1001, 1002, 3} | ({1, 2} if mode != "replace" else set())
    assert set(content(warehouse)) == expected
    assert done.added == 1
    assert done.deleted == (2 if mode == "replace" else 0)


def test_giving_up(warehouse: Warehouse, config: Config, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "TRIES", 3)
    monkeypatch.setattr(committing, "send", Rival(warehouse, 100))
    with pytest.raises(CommitConflict, match="other writers won 3 times"):
        warehouse.commit(table, rows([1]), key="k1")
    assert warehouse.find_key(table, "k1") is None
    assert len(data_files(config)) == 3, "only the rivals' files are left"


@EVERYWHERE
def test_rows_come_in_the_same_order_every_time(warehouse: Warehouse) -> None:
    found = []
    for name in (f"raw.t{n}" for n in range(5)):
        warehouse.ensure(name, SCHEMA, key=["id"])
        warehouse.commit(name, rows([5, 1, 4, 2]), key="k1")
        warehouse.commit(name, rows([9, 4, 0], 2.0), key="k2", mode="upsert")
        warehouse.commit(name, rows([3, 6], 2.0), key="k3", mode="replace", replace_where="id IN (2, 3, 6)")
        found.append(warehouse.scan(TableRef(name), columns=["id"]).read_all()["id"].to_pylist())
    # Oldest commit first; in each, what was kept of rewritten files, then what came.
    assert found == [[9, 4, 0, 5, 1, 3, 6]] * 5


@EVERYWHERE
def test_pyiceberg_reads_what_we_write(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows(list(range(6))), key="k1")
    warehouse.commit(table, rows([2, 3, 7], 2.0), key="k2", mode="upsert")
    found = warehouse.table(table).scan("x > 1.5").to_arrow()
    assert sorted(found["id"].to_pylist()) == [2, 3, 7]
    assert len(warehouse.table(table).scan().to_arrow()) == 7


UNJUDGED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
COUNTER = itertools.count()
OPERATION = st.tuples(
    st.sampled_from(["append", "upsert", "replace", "replace_where", "delete"]),
    st.dictionaries(st.integers(0, 12), st.integers(0, 2), max_size=8),
    st.integers(0, 12),
)


@settings(max_examples=12, deadline=None, suppress_health_check=UNJUDGED)
@given(operations=st.lists(OPERATION, min_size=1, max_size=6), monthly=st.booleans())
def test_any_sequence_is_what_a_dict_would_be(
    config: Config, operations: list[tuple[str, dict[int, int], int]], monthly: bool
) -> None:
    home = config.home.parent / f"home-{next(COUNTER)}"
    warehouse = Warehouse.open(Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_ROWS_PER_CHUNK": "4"}))
    warehouse.ensure(NAME, SCHEMA, key=["id"], partition_by="month(at)" if monthly else "")
    model: dict[int, tuple[float, str]] = {}
    for n, (operation, values, cut) in enumerate(operations):
        batch = f"b{n}"
        key = f"k{n}"
        before = dict(model)
        if operation == "append":
            values = {i: v for i, v in values.items() if i not in model}
            model |= {i: (float(v), batch) for i, v in values.items()}
        elif operation == "upsert":
            model |= {i: (float(v), batch) for i, v in values.items() if i not in model or model[i][0] != v}
        elif operation == "replace":
            new = {i: (float(v), batch) for i, v in values.items()}
            if {i: v[0] for i, v in new.items()} != {i: v[0] for i, v in model.items()}:
                model = new
        elif operation == "replace_where":
            values = {i: v for i, v in values.items() if i < cut}
            if values != {i: v[0] for i, v in model.items() if i < cut}:
                model = {i: v for i, v in model.items() if i >= cut}
                model |= {i: (float(v), batch) for i, v in values.items()}
        given_rows = pa.concat_tables([SCHEMA.empty_table(), *(rows([i], float(v), batch) for i, v in values.items())])
        if operation == "delete":
            model = {i: v for i, v in model.items() if i >= cut}
            done = warehouse.delete(NAME, f"id < {cut}", key=key)
        elif operation == "replace_where":
            done = warehouse.commit(NAME, given_rows, key=key, mode="replace", replace_where=f"id < {cut}")
        else:
            done = warehouse.commit(NAME, given_rows, key=key, mode=operation)  # type: ignore[arg-type]
        assert content(warehouse) == model
        assert done.changed == (before != model)
        assert warehouse.count(done.ref) == len(model)
        assert len(model) - len(before) == done.added - done.deleted
