"""Rows leave a table and its whole history; every other row, and every snapshot that never held them, stays."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airloop.config import Config
from airloop.upkeep.forget import Found, Rows, find, forget
from airloop.upkeep.subject import Subject, elsewhere, entity, of_rows, types_of
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.recall import files, recall
from airloop.warehouse.references import References, folder
from airloop.warehouse.refs import TableRef

NAME = "raw.visits"
SCHEMA = pa.schema([("visit", pa.int64()), ("person", pa.string()), ("n", pa.int64())])
ANNA = Rows("person = 'anna-0'", ("anna-0",))
PEOPLE = ["anna-0", "berta-0", "cleo-0"]


def rows(*visits: tuple[int, str, int]) -> pa.Table:
    return pa.table([list(c) for c in zip(*visits, strict=True)] if visits else [[], [], []], schema=SCHEMA)


def take_out(config: Config, warehouse: Warehouse, which: Rows = ANNA, name: str = NAME) -> Found:
    return forget(config, lambda: warehouse.table(name), which, key="erase:x", before=lambda found, files: None)


def held(warehouse: Warehouse, ref: TableRef) -> list[tuple]:
    return [tuple(row.values()) for row in warehouse.scan(ref).read_all().to_pylist()]


def files_of(warehouse: Warehouse) -> set[str]:
    return {str(p) for p in folder(warehouse.table(NAME)).rglob("*") if p.suffix in (".parquet", ".avro")}


@pytest.fixture
def table(warehouse: Warehouse) -> Warehouse:
    warehouse.ensure(NAME, SCHEMA, key=("visit",))
    return warehouse


def test_history_branches_and_tags(config: Config, table: Warehouse) -> None:
    clean = table.commit(NAME, rows((1, "berta-0", 1)), key="a").ref
    table.commit(NAME, rows((2, "anna-0", 2), (3, "cleo-0", 3)), key="b")
    table.branch(NAME, "audit-1")
    table.commit(NAME, rows((4, "anna-0", 4)), key="c", branch="audit-1")
    tagged = table.commit(NAME, rows((5, "berta-0", 5)), key="d").snapshot
    table.table(NAME).manage_snapshots().create_tag(tagged, "report").commit()
    table.commit(NAME, rows((6, "cleo-0", 6)), key="e")
    table.branch(NAME, "clean", at=clean.snapshot)

    found = take_out(config, table)

    assert (found.rows, len(found.snapshots), found.branches) == (1, 4, ["audit-1", "main"])
    assert held(table, clean) == [(1, "berta-0", 1)]
    assert sorted(held(table, TableRef(NAME))) == [
        (1, "berta-0", 1),
        (3, "cleo-0", 3),
        (5, "berta-0", 5),
        (6, "cleo-0", 6),
    ]
    assert sorted(held(table, TableRef(NAME, branch="audit-1"))) == [(1, "berta-0", 1), (3, "cleo-0", 3)]
    assert sorted(table.table(NAME).metadata.refs) == ["audit-1", "clean", "main"]
    assert table.descends(NAME, table.head(NAME), clean.snapshot), "ancestry goes through what was erased"
    assert {s.id: s.rows_total for s in table.history(NAME)}[table.head(NAME)] == table.count(TableRef(NAME)) == 4
    assert files_of(table) <= References(table.table(NAME)).all(), "no file is left behind"
    assert not find(config, table.table(NAME), ANNA)
    again = table.commit(NAME, rows((2, "anna-0", 2), (3, "cleo-0", 3)), key="b")
    assert (again.adopted, again.snapshot) == (True, table.head(NAME)), "the same step again brings nobody back"
    assert take_out(config, table).snapshots == []


def test_a_row_that_was_deleted_or_replaced_before_leaves_its_history(config: Config, table: Warehouse) -> None:
    table.commit(NAME, rows((1, "anna-0", 1), (2, "cleo-0", 2)), key="a")
    table.delete(NAME, "visit = 1", key="b")
    after = table.commit(NAME, rows((3, "berta-0", 3)), key="c").ref

    found = take_out(config, table)

    assert found.rows == 0
    # The deletion's own snapshot still described the file; the one after it says nothing of it.
    assert len(found.snapshots) == 2
    assert sorted(held(table, after)) == [(2, "cleo-0", 2), (3, "berta-0", 3)]
    assert table.head(NAME) == after.snapshot


def test_the_last_row_may_go(config: Config, table: Warehouse) -> None:
    table.commit(NAME, rows((1, "anna-0", 1)), key="a")
    take_out(config, table)
    assert held(table, TableRef(NAME)) == []
    table.commit(NAME, rows((2, "cleo-0", 2)), key="b")
    assert held(table, TableRef(NAME)) == [(2, "cleo-0", 2)]


def test_loose_files_are_searched_and_broken_ones_go(config: Config, table: Warehouse) -> None:
    import pyarrow.parquet as pq

    table.commit(NAME, rows((1, "cleo-0", 1)), key="a")
    data = next(folder(table.table(NAME)).rglob("*.parquet")).parent
    with_ids = pq.read_schema(next(data.glob("*.parquet")))
    pq.write_table(rows((7, "anna-0", 7)).cast(with_ids), data / "loose.parquet")
    pq.write_table(rows((7, "cleo-0", 7)).cast(with_ids), data / "innocent.parquet")
    (data / "torn.parquet").write_bytes(b"PAR1anna-0")
    head = table.head(NAME)

    found = take_out(config, table)

    assert sorted(Path(f).name for f in found.files) == ["loose.parquet", "torn.parquet"]
    assert {p.name for p in data.glob("*.parquet")} >= {"innocent.parquet"}
    assert not (data / "loose.parquet").exists()
    assert table.head(NAME) == head


@given(st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_whatever_the_history(seed: int) -> None:
    import tempfile

    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder_:
        config = Config.from_environment({"AIRLOOP_HOME": folder_, "AIRLOOP_MEMORY_MB": "256", "AIRLOOP_THREADS": "1"})
        warehouse = Warehouse.open(config)
        warehouse.ensure(NAME, SCHEMA, key=("visit",), partition_by=draw.choice(["", "identity(person)"]))
        for step in range(draw.randint(1, 6)):
            drawn = {draw.randint(0, 9): draw.choice(PEOPLE) for _ in range(draw.randint(1, 4))}
            mode = draw.choice(["upsert", "upsert", "replace"])
            branch = draw.choice(["main", "main", "audit"])
            warehouse.commit(
                NAME, rows(*((v, p, step) for v, p in drawn.items())), key=str(step), mode=mode, branch=branch
            )
            if draw.random() < 0.3:
                warehouse.delete(NAME, f"visit = {draw.randint(0, 9)}", key=f"delete {step}")
        refs = list(warehouse.table(NAME).metadata.refs)
        before = {s.id: held(warehouse, TableRef(NAME, s.id)) for s in warehouse.history(NAME)}
        heads = {ref: held(warehouse, TableRef(NAME, branch=ref)) for ref in refs}

        take_out(config, warehouse)

        for snapshot in warehouse.history(NAME):
            now = held(warehouse, TableRef(NAME, snapshot.id))
            assert all(person != "anna-0" for _, person, _ in now)
            assert before.get(snapshot.id, now) == now, "a snapshot that stays is what it was"
        for ref in refs:
            wanted = [row for row in heads[ref] if row[1] != "anna-0"]
            assert sorted(held(warehouse, TableRef(NAME, branch=ref))) == sorted(wanted)
        kept = {s for s, content in before.items() if all(person != "anna-0" for _, person, _ in content)}
        assert {s.id for s in warehouse.history(NAME)} >= {s for s in kept if s in _untold(before, kept)}
        assert files_of(warehouse) <= References(warehouse.table(NAME)).all()
        assert not find(config, warehouse.table(NAME), ANNA)


def _untold(before: dict[int, list], kept: set[int]) -> set[int]:
    """Snapshots at a time when the person had never been there yet: those must stay."""
    found = set()
    for snapshot in before:
        if snapshot not in kept:
            break
        found.add(snapshot)
    return found


class TestSubject:
    def test_a_table_is_asked_by_name_or_by_its_own_name(self, table: Warehouse) -> None:
        subject = entity(["person=anna-0", "person=o'hara"])
        found = subject.rows(types_of(table.table(NAME)), {})
        assert found is not None
        assert found.texts == ("anna-0", "o'hara")
        assert "'o''hara'" in found.where
        assert subject.rows(types_of(table.table(NAME)), {"person": "who"}) is None
        assert entity(["name=anna-0"]).rows(types_of(table.table(NAME)), {"name": "person"}) is not None

    def test_numbers_match_whatever_their_type(self, config: Config, warehouse: Warehouse) -> None:
        for name, type_ in (("a.int", pa.int64()), ("a.float", pa.float64()), ("a.text", pa.string())):
            warehouse.ensure(name, pa.schema([("id", type_)]))
            warehouse.commit(name, pa.table({"id": pa.array([7, 17]).cast(type_)}), key=name)
            which = entity(["id=7"]).rows(types_of(warehouse.table(name)), {})
            assert which is not None
            take_out(config, warehouse, which, name)
            assert [row["id"] for row in warehouse.scan(TableRef(name)).read_all().to_pylist()] in ([17], ["17"])

    def test_rows_of_a_table_are_told_by_its_key_in_all_of_its_history(self, config: Config, table: Warehouse) -> None:
        table.commit(NAME, rows((1, "anna-0", 1), (2, "cleo-0", 2)), key="a")
        table.delete(NAME, "visit = 1", key="b")
        assert of_rows(config, table.table(NAME), ["visit"], "person = 'anna-0'") == Subject(("visit",), (("1",),))

    @pytest.mark.parametrize("texts", [["person"], ["=x"], ["person="], ["a=1", "b=2"]])
    def test_what_is_no_entity_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(ValueError, match="--entity column=value"):
            entity(texts)

    def test_a_value_under_another_name_is_pointed_out(self, config: Config, table: Warehouse) -> None:
        table.ensure("raw.other", pa.schema([("who", pa.string()), ("n", pa.int64())]))
        table.commit("raw.other", pa.table({"who": ["anna-0"], "n": [1]}), key="o")
        assert elsewhere(config, table.table("raw.other"), ["anna-0"]) == ["who"]
        assert elsewhere(config, table.table("raw.other"), ["anna-1"]) == []


def test_what_another_tool_expired_goes_too_and_the_clean_part_of_it_stays(config: Config, table: Warehouse) -> None:
    clean = table.commit(NAME, rows((1, "berta-0", 1)), key="a").snapshot
    dirty = table.commit(NAME, rows((2, "anna-0", 2)), key="b").snapshot
    table.commit(NAME, rows((3, "cleo-0", 3)), key="c", mode="replace")
    table.table(NAME).maintenance.expire_snapshots().by_ids([clean, dirty]).commit()

    found = take_out(config, table)

    assert (found.recalled, found.rows) == ([dirty], 0)
    assert set(recall(table.table(NAME))) == {clean}
    named = References(table.table(NAME)).all() | files(recall(table.table(NAME))[clean], table.table(NAME).io)
    assert files_of(table) <= named
