from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.contract import Interval
from airloop.errors import BadArgument, BadInput, TryAgain
from airloop.sources import selection
from airloop.sources.files import SourceFile
from airloop.sources.selection import Selection, select
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Run = Callable[..., Selection]
HEADER = "id,at,value,note\n"
DATED: dict[str, Any] = {"interval_column": "at"}


@pytest.fixture
def run(resolved: Callable[..., tuple[SourceFile, ...]], tmp_path: Path) -> Run:
    def make(spec: SourceSpec, files: dict[str, str], interval: Interval | None = None, **options: Any) -> Selection:
        found = resolved(**files)
        options = {"known": {}, "rows_per_chunk": 1000, **options}
        selected = select(
            spec, found, interval, batch="k" * 64, workdir=tmp_path, memory_mb=256, threads=1, **options
        )  # fmt: skip
        selected.settle()
        return selected

    return make


def rows(selected: Selection) -> list[dict[str, Any]]:
    return pa.Table.from_batches(selected.batches(), selected.schema).to_pylist()


def ids(selected: Selection) -> list[int]:
    return [row["id"] for row in rows(selected)]


def test_rows_carry_where_they_are_from(spec: Make, run: Run) -> None:
    selected = run(spec(), {"a.csv": HEADER + "1,,,\n2,,,\n", "b.csv": HEADER + "3,,,\n"})
    assert [(r["id"], r["_source"], r["_row"]) for r in rows(selected)] == [
        (1, "a.csv", 1),
        (2, "a.csv", 2),
        (3, "b.csv", 1),
    ]
    assert {r["_batch"] for r in rows(selected)} == {"k" * 64}
    assert selected.rows == selected.counts.rows_in == 3


def test_an_interval_takes_its_rows_and_late_ones(spec: Make, run: Run, interval: Interval) -> None:
    text = HEADER + "".join(
        f"{i},{moment},,\n"
        for i, moment in enumerate(
            [
                "2012-11-30T00:00:00Z",  # too old
                "2012-12-31T23:00:00-05:00",  # late
                "2013-01-01T00:00:00-05:00",  # the first instant
                "2013-01-31T23:59:59.999999-05:00",  # the last one
                "2013-02-01T00:00:00-05:00",  # of the next interval
                "",  # of every run
            ]
        )
    )
    selected = run(spec(**DATED, lateness="10d"), {"a.csv": text}, interval)
    assert ids(selected) == [1, 2, 3, 5]
    counts = selected.counts
    assert (counts.rows_in, counts.rows_outside, counts.rows_late, counts.rows_undated) == (6, 2, 1, 1)
    assert [r["_row"] for r in rows(selected)] == [2, 3, 4, 6]
    assert ids(run(spec(**DATED, lateness="none"), {"a.csv": text}, interval)) == [2, 3, 5]
    assert ids(run(spec(**DATED), {"a.csv": text}, interval)) == [0, 1, 2, 3, 5]


def test_a_file_without_a_row_of_the_interval(spec: Make, run: Run, interval: Interval) -> None:
    selected = run(spec(**DATED), {"a.csv": HEADER + "1,2020-01-01T00:00:00Z,,\n"}, interval)
    assert rows(selected) == []
    assert (selected.rows, selected.counts.rows_outside) == (0, 1)
    assert rows(run(spec(**DATED), {"a.csv": HEADER}, interval)) == []


def test_dates_that_cannot_be_right(spec: Make, run: Run, interval: Interval) -> None:
    text = HEADER + "1,2013-01-05T00:00:00Z,,\n2,2013-12-31T00:00:00Z,,\n3,2014-01-01T00:00:00Z,,\n"
    with pytest.raises(
        BadInput, match=r"a\.csv: row 3: at 2014-01-01T00:00:00\+00:00 is after not_after 2014-01-01T00"
    ):
        run(spec(**DATED, not_after="2014-01-01T00:00:00Z"), {"a.csv": text}, interval)
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    text = HEADER + f"1,2013-01-05T00:00:00Z,,\n2,{tomorrow},,\n"
    with pytest.raises(BadInput, match=r"a\.csv: row 2: at .* is after now by 1d \(max_future\) or more; correct"):
        run(spec(**DATED), {"a.csv": text}, interval)
    assert ids(run(spec(**DATED, max_future="3d"), {"a.csv": text}, interval)) == [1]
    assert ids(run(spec(**DATED, max_future="all"), {"a.csv": text}, interval)) == [1]


def test_derived_columns_may_use_each_other(spec: Make, run: Run) -> None:
    derive = {
        "double_value": {"type": "double", "sql": "value * 2 -- twice"},
        "text": {"type": "string", "sql": "'v' || double_value::INT"},
    }
    selected = run(spec(derive=derive), {"a.csv": HEADER + "1,,1.5,\n2,,,\n"})
    assert [(r["double_value"], r["text"]) for r in rows(selected)] == [(3.0, "v3"), (None, None)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("valu * 2", r"derived column x cannot be computed: Binder Error.*valu.*the columns are id, at, value, note"),
        ("value *", r"derived column x cannot be computed: Parser Error"),
        ("(SELECT max(id) FROM read_csv('/etc/passwd'))", r"derived column x cannot be computed: .*disabled"),
    ],
)
def test_expressions_that_do_not_work(spec: Make, run: Run, sql: str, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        run(spec(derive={"x": {"type": "double", "sql": sql}}), {"a.csv": HEADER + "1,,1,\n"})


def test_rows_for_which_an_expression_fails(spec: Make, run: Run) -> None:
    files = {"a.csv": HEADER + "1,,1,5\n2,,,\n3,,0,x\n"}
    with pytest.raises(BadInput, match=r"a\.csv: a derived column .*rows 1 and following: Conversion Error.*TRY_CAST"):
        run(spec(derive={"x": {"type": "long", "sql": "note"}}), files)
    with pytest.raises(BadInput, match=r"a\.csv: row 2 has no value for x, which is required"):
        run(spec(derive={"x": {"type": "double", "sql": "value", "nullable": False}}), files)
    with pytest.raises(BadInput, match=r"a\.csv: row 3, column x: inf is not a finite number"):
        run(spec(derive={"x": {"type": "double", "sql": "1 / value"}}), files)


def test_local_times_are_converted(spec: Make, run: Run) -> None:
    columns = {"id": "long", "at": {"type": "timestamptz", "zone": "America/New_York"}}
    day = Interval(datetime(2013, 3, 10, 5, tzinfo=UTC), datetime(2013, 3, 11, 4, tzinfo=UTC))
    text = "id,at\n1,2013-03-10 01:59:00\n2,2013-03-10 02:30:00\n3,2013-03-10 03:00:00\n4,2013-03-11 00:00:00\n"
    selected = run(spec(columns=columns, **DATED), {"a.csv": text}, day)
    assert [(r["id"], r["at"]) for r in rows(selected)] == [
        (1, datetime(2013, 3, 10, 6, 59, tzinfo=UTC)),
        (2, None),  # clocks went from 02:00 to 03:00
        (3, datetime(2013, 3, 10, 7, tzinfo=UTC)),
    ]
    required = {"id": "long", "at": {"type": "timestamptz", "zone": "America/New_York", "nullable": False}}
    with pytest.raises(BadInput, match=r"row 2 has no value for at, which is required"):
        run(spec(columns=required, **DATED), {"a.csv": text}, day)


def test_identical_rows_count_once(spec: Make, run: Run) -> None:
    selected = run(spec(), {"a.csv": HEADER + "1,,1,x\n2,,,\n1,,1,x\n1,,1,x\n", "b.csv": HEADER + "2,,,\n3,,,\n"})
    assert [(r["id"], r["_source"], r["_row"]) for r in rows(selected)] == [
        (1, "a.csv", 1),
        (2, "b.csv", 1),
        (3, "b.csv", 2),
    ]
    assert (selected.counts.rows_duplicate, selected.counts.rows_superseded, selected.rows) == (3, 0, 3)


def test_a_later_file_supersedes(spec: Make, run: Run) -> None:
    files = {"a.csv": HEADER + "1,,1,old\n2,,,\n", "b.csv": HEADER + "1,,1,new\n"}
    selected = run(spec(), files)
    assert [(r["id"], r["note"]) for r in rows(selected)] == [(2, None), (1, "new")]
    assert (selected.counts.rows_duplicate, selected.counts.rows_superseded) == (0, 1)


def test_rows_of_one_file_that_contradict_each_other(spec: Make, run: Run) -> None:
    with pytest.raises(
        BadInput, match=r"a\.csv: rows 1, 3 have the same key \(id='1'\) and differ; 1 more keys are like it"
    ):
        run(spec(), {"a.csv": HEADER + "1,,1,x\n2,,,\n1,,1,y\n2,,,z\n"})
    text = HEADER + "1,2013-01-05T00:00:00Z,1,x\n1,2013-01-05T00:00:00Z,1,\n"
    with pytest.raises(BadInput, match=r"a\.csv: rows 1, 2 have the same key \(id='1', at='2013-01-05"):
        run(spec(key=["id", "at"]), {"a.csv": text})


def test_contradictions_outside_the_interval_do_not_matter(spec: Make, run: Run, interval: Interval) -> None:
    text = HEADER + "1,2013-01-05T00:00:00Z,1,x\n2,2013-03-01T00:00:00Z,1,x\n2,2013-03-01T00:00:00Z,1,y\n"
    assert ids(run(spec(**DATED), {"a.csv": text}, interval)) == [1]


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_chunks_do_not_show(
    spec: Make, run: Run, interval: Interval, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "CHUNK", 50)
    start = datetime(2012, 12, 31, tzinfo=UTC)
    lines = [f"{i},{(start + timedelta(hours=i)).isoformat()},{i}.5,n{i}\n" for i in range(120)]
    seen: list[int] = []
    selected = run(
        spec(**DATED, lateness="none"),
        {"a.csv": HEADER + "".join(lines), "b.csv": HEADER + lines[60]},
        interval,
        rows_per_chunk=chunk,
        progress=seen.append,
    )
    assert ids(selected) == [i for i in range(29, 120) if i != 60] + [60]
    assert [r["_row"] for r in rows(selected)][:-1] == [i + 1 for i in range(29, 120) if i != 60]
    assert sum(seen) == 121


def test_a_file_that_changes_meanwhile_is_tried_again(
    spec: Make, resolved: Callable[..., tuple[SourceFile, ...]], tmp_path: Path
) -> None:
    found = resolved(**{"a.csv": HEADER + "1,,,\n"})
    found[0].path.write_text(HEADER + "1,,,\n2,,,\n")
    with pytest.raises(TryAgain, match=r"a\.csv changed while it was read"):
        select(
            spec(), found, None, batch="k", known={}, workdir=tmp_path, rows_per_chunk=10, memory_mb=256, threads=1
        )  # fmt: skip


def test_duckdb_is_started_only_where_something_is_computed(
    spec: Make, run: Run, interval: Interval, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("airloop.sources.derive.add_functions", started.append)
    files = {"a.csv": HEADER + "1,2013-01-05T00:00:00Z,1.5,a\n"}
    assert ids(run(spec(**DATED), files, interval)) == [1]
    assert started == []
    twice = {"twice": {"type": "double", "sql": "2 * value"}}
    assert [row["twice"] for row in rows(run(spec(**DATED, derive=twice), files, interval))] == [3.0]
    assert len(started) == 1


def test_memory_does_not_grow_with_the_file(spec: Make, run: Run, interval: Interval) -> None:
    lines = "".join(f"{i},2013-01-05T00:00:00Z,{i}.5,{'x' * 50}\n" for i in range(300_000))
    files = {"a.csv": HEADER + lines}
    del lines
    peak = 0

    def watch(count: int) -> None:
        nonlocal peak
        peak = max(peak, pa.total_allocated_bytes())

    selected = run(spec(**DATED), files, interval, rows_per_chunk=10_000, progress=watch)
    assert selected.rows == 300_000
    assert peak < 64 << 20
