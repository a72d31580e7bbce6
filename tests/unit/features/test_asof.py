"""The point-in-time join against a brute force, on every path that it can take."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airloop.errors import BadArgument
from airloop.features.asof import ViewSpec, point_in_time_join

T0 = datetime(2013, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")
SPINE = pa.schema([("n", pa.int64()), ("k", pa.string()), ("event_time", TIME)])
VALUES = pa.schema(
    [("k", pa.string()), ("x", pa.float64()), ("y", pa.int64()), ("event_time", TIME), ("arrival_time", TIME)]
)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as opened:
        opened.execute("SET TimeZone = 'UTC'")
        yield opened


def at(minute: int | None) -> datetime | None:
    return None if minute is None else T0 + timedelta(minutes=minute)


def rows(schema: pa.Schema, values: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*values, strict=True)) if values else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def right_row(spine: dict[str, Any], values: list[dict[str, Any]], ttl: timedelta | None, arrival: bool) -> Any:
    """The rule as the module's documentation states it, in plain Python."""
    t = spine["event_time"]
    known = [
        v
        for v in values
        if t is not None
        and v["k"] is not None
        and v["k"] == spine["k"]
        and v["event_time"] is not None
        and v["event_time"] <= t
        and (not arrival or (v["arrival_time"] is not None and v["arrival_time"] <= t))
    ]
    if not known:
        return None

    def rank(v: dict[str, Any]) -> tuple[Any, ...]:
        features = tuple((v[f] is not None, v[f] or 0) for f in ("x", "y"))
        return (v["event_time"], v["arrival_time"] if arrival else None or T0, *features)

    best = max(known, key=rank)
    return best if ttl is None or best["event_time"] >= t - ttl else None


def check(
    connection: duckdb.DuckDBPyConnection,
    spine: list[tuple[Any, ...]],
    values: list[tuple[Any, ...]],
    *,
    ttl: timedelta | None = None,
    arrival: bool = True,
) -> None:
    left, right = rows(SPINE, spine), rows(VALUES, values)
    connection.register("spine", left)
    connection.register("v", right)
    spec = ViewSpec("v", "v", ("k",), ("x", "y"), ttl, arrival_time="arrival_time" if arrival else "")
    joined = point_in_time_join(connection, "spine", [spec], order_by=["n"]).to_arrow_table().to_pylist()
    expected = []
    for row in left.sort_by("n").to_pylist():
        best = right_row(row, right.to_pylist(), ttl, arrival)
        expected.append(
            {
                **row,
                "v__x": best and best["x"],
                "v__y": best and best["y"],
                "v__event_time": best and best["event_time"],
                "v__arrival_time": best and best["arrival_time" if arrival else "event_time"],
            }
        )
    assert joined == expected


minutes = st.integers(0, 12)
keys = st.sampled_from(["a", "b", None])
some_rows = st.lists(
    st.tuples(
        keys,
        st.sampled_from([None, 0.5, 1.5]),
        st.sampled_from([None, 1, 2]),
        st.one_of(st.none(), minutes),
        st.one_of(st.none(), minutes),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(
    spine=st.lists(st.tuples(keys, st.one_of(st.none(), minutes)), max_size=8),
    values=some_rows,
    ttl=st.sampled_from([None, timedelta(minutes=2), timedelta(minutes=5)]),
    arrival=st.booleans(),
)
def test_equals_brute_force(spine: Any, values: Any, ttl: timedelta | None, arrival: bool) -> None:
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        check(
            connection,
            [(n, k, at(t)) for n, (k, t) in enumerate(spine)],
            [(k, x, y, at(e), at(r)) for k, x, y, e, r in values],
            ttl=ttl,
            arrival=arrival,
        )


@pytest.mark.parametrize("lag", ["constant", "early", "random"])
@pytest.mark.parametrize("ttl", [None, timedelta(minutes=90)])
def test_equals_brute_force_on_more_rows(connection: Any, lag: str, ttl: timedelta | None) -> None:
    """More rows than a few, in no order, with keys that no value has."""
    chance = random.Random(7)
    lags = {"constant": lambda: 30, "early": lambda: -20, "random": lambda: chance.randint(-60, 600)}
    values = []
    for key in "abcdefgh":
        for e in chance.sample(range(2_000), 60):
            values.append((key, chance.random(), e, at(e), at(e + lags[lag]())))
    if lag == "random":
        values += chance.sample(values, 50)
    chance.shuffle(values)
    spine = [(n, chance.choice(["a", "b", "c", "h", "z", None]), at(chance.randint(-10, 2_500))) for n in range(200)]
    check(connection, spine, values, ttl=ttl)


@pytest.mark.parametrize("double", [False, True])
def test_rows_are_compared_in_passes(connection: Any, monkeypatch: pytest.MonkeyPatch, double: bool) -> None:
    """Two rows of one key and time are found whichever pass they fall into."""
    monkeypatch.setattr("airloop.warehouse.distinct.ROWS_PER_PASS", 7)
    values = [(key, 1.0, e, at(e), at(e + 1)) for key in "abc" for e in range(0, 40, 2)]
    values += [("b", 2.0, 8, at(8), at(9))] if double else []
    check(connection, [(n, "abc"[n % 3], at(n)) for n in range(45)], values)


def test_values_that_were_always_known_have_no_lag(connection: Any) -> None:
    """The difference of two infinite times is NULL."""
    connection.execute(
        "CREATE TABLE v AS SELECT k, i::DOUBLE AS x, '-infinity'::TIMESTAMPTZ AS event_time,"
        " '-infinity'::TIMESTAMPTZ AS arrival_time FROM (VALUES ('a', 1), ('b', 2)) t(k, i)"
    )
    connection.register("spine", rows(SPINE, [(1, "a", at(5)), (2, "b", at(0)), (3, "c", at(5))]))
    joined = point_in_time_join(
        connection, "spine", [ViewSpec("v", "v", ("k",), ("x",))], evidence=False, order_by=["n"]
    )
    assert [row[-1] for row in joined.fetchall()] == [1.0, 2.0, None]


def test_late_value_is_not_seen_before_it_arrived(connection: Any) -> None:
    values = [("a", 1.0, 1, at(0), at(1)), ("a", 9.0, 9, at(5), at(50))]
    check(connection, [(0, "a", at(10)), (1, "a", at(49)), (2, "a", at(50))], values)


def test_late_correction_of_an_older_value_does_not_hide_a_newer_one(connection: Any) -> None:
    values = [("a", 1.0, 1, at(0), at(1)), ("a", 2.0, 2, at(5), at(6)), ("a", 1.5, 1, at(0), at(20))]
    check(connection, [(n, "a", at(t)) for n, t in enumerate((0, 1, 4, 5, 6, 19, 20, 30))], values)


def test_ties_do_not_depend_on_the_order_of_rows(connection: Any) -> None:
    values = [("a", x, y, at(0), at(1)) for x, y in [(1.0, 5), (2.0, None), (2.0, 3), (None, 9)]]
    for order in range(4):
        check(connection, [(0, "a", at(3))], values[order:] + values[:order])


def test_duplicate_entity_rows_and_order_are_kept(connection: Any) -> None:
    connection.register("spine", rows(SPINE, [(n, "a", at(5)) for n in (3, 1, 2, 2)]))
    connection.register("v", rows(VALUES, [("a", 1.0, 1, at(0), at(1))]))
    joined = point_in_time_join(connection, "spine", [ViewSpec("v", "v", ("k",), ("x",))], order_by=["n"])
    assert [row[0] for row in joined.fetchall()] == [1, 2, 2, 3]


def test_row_without_a_time_gets_no_value(connection: Any) -> None:
    """To DuckDB's ASOF operator NULL is later than every time."""
    check(connection, [(0, "a", None), (1, "a", at(3))], [("a", 1.0, 1, at(0), at(1))])


def test_value_is_used_exactly_as_long_as_it_lives(connection: Any) -> None:
    values = [("a", 1.0, 1, at(0), at(0))]
    check(connection, [(0, "a", at(5)), (1, "a", at(6))], values, ttl=timedelta(minutes=5))


def test_several_views_other_key_names_and_short_names(connection: Any) -> None:
    connection.register("spine", rows(SPINE, [(0, "a", at(5))]))
    connection.register("v", rows(VALUES, [("a", 1.0, 1, at(0), at(1))]))
    connection.execute(
        "CREATE SCHEMA f; CREATE TABLE f.w AS SELECT k AS other, y AS z, event_time, arrival_time FROM v"
    )
    views = [ViewSpec("v", "v", ("k",), ("x",)), ViewSpec("w", "f.w", ("other",), ("z",), spine_keys=("k",))]
    joined = point_in_time_join(connection, "spine", views, full_names=False, evidence=False)
    assert joined.columns == ["n", "k", "event_time", "x", "z"]
    assert joined.fetchall() == [(0, "a", at(5), 1.0, 1)]


def test_view_without_keys_gives_one_value_to_everybody(connection: Any) -> None:
    connection.register("spine", rows(SPINE, [(0, "a", at(5)), (1, None, at(5)), (2, "b", at(0))]))
    connection.register("v", rows(VALUES, [("q", 1.0, 1, at(0), at(1)), ("r", 2.0, 1, at(2), at(3))]))
    joined = point_in_time_join(connection, "spine", [ViewSpec("v", "v", (), ("x",))], order_by=["n"])
    assert [row[3] for row in joined.fetchall()] == [2.0, 2.0, None]


def test_missing_column_is_named(connection: Any) -> None:
    connection.register("spine", rows(SPINE, []))
    connection.register("v", rows(VALUES, []))
    with pytest.raises(BadArgument, match="v has no column nope"):
        point_in_time_join(connection, "spine", [ViewSpec("v", "v", ("k",), ("nope",))])
    with pytest.raises(BadArgument, match="spine has no column carrier"):
        point_in_time_join(connection, "spine", [ViewSpec("v", "v", ("k",), ("x",), spine_keys=("carrier",))])


def test_two_columns_of_one_name_are_refused(connection: Any) -> None:
    connection.register("spine", rows(SPINE, []))
    connection.register("v", rows(VALUES, []))
    views = [ViewSpec("v", "v", ("k",), ("x",)), ViewSpec("w", "v", ("k",), ("x",))]
    with pytest.raises(BadArgument, match="two columns named x"):
        point_in_time_join(connection, "spine", views, full_names=False)
