"""
Files that cannot be used, brought as the flights loop brings them: extracted, validated, published.

Each is refused with what was found, where, and what to do; nothing that anybody reads has changed; and once the file
is mended the same task makes what it would have made had the bad file never been.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet
import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import AirloopError, BadInput, NotFound, RejectedRows, SchemaMismatch
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.fault.flights_loop import FLIGHTS

RunStep = Callable[..., dict[str, Any]]
SOURCE = (FLIGHTS / "sources" / "flights.yaml").read_text()
SUITE = (FLIGHTS / "suites" / "flights.json").read_text()
DECEMBER = Interval(datetime(2012, 12, 1, 5, tzinfo=UTC), datetime(2013, 1, 1, 5, tzinfo=UTC))
JANUARY = Interval(DECEMBER.end, datetime(2013, 2, 1, 5, tzinfo=UTC))
MARCH = Interval(datetime(2013, 3, 1, 5, tzinfo=UTC), datetime(2013, 4, 1, 4, tzinfo=UTC))
NOVEMBER = Interval(datetime(2013, 11, 1, 4, tzinfo=UTC), datetime(2013, 12, 1, 5, tzinfo=UTC))

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,"
    "origin,dest,air_time,distance,hour,minute,time_hour"
)
OLD = ["2012,12,31,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2012-12-31T10:00:00Z"]
"""Was published by the run before."""


def flight(number: int, *, day: int = 2, sched: int = 600, delay: str = "5", **changed: Any) -> str:
    """A row of the file."""
    row = dict(
        zip(
            HEADER.split(","),
            f"2013,1,{day},{sched + 5},{sched},{delay},830,819,11,UA,{number},N14228,EWR,IAH,227,1400,{sched // 100},"
            f"{sched % 100},2013-01-{day:02}T{sched // 100 + 5:02}:00:00Z".split(","),
            strict=True,
        )
    )
    return ",".join(str(v) for v in (row | changed).values())


ROWS = [flight(n) for n in range(1, 201)]


def text(rows: list[str], header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


GOOD = text(ROWS)


@dataclass
class Brought:
    """What both tasks said."""

    extract: dict[str, Any]
    validate: dict[str, Any]


class Drop:
    """A folder into which files are sent, and the two tasks that bring them into one table."""

    def __init__(self, folder: Path, table: str, run_step: RunStep) -> None:
        self.files = folder / table
        self.files.mkdir(parents=True)
        self.table = f"raw.{table}"
        self.config = Config.from_environment({"AIRLOOP_HOME": str(folder / "home"), "AIRLOOP_MEMORY_MB": "512"})
        self._run_step = run_step

    def send(self, content: str | bytes, name: str = "flights.csv") -> Path:
        path = self.files / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bring(
        self, name: str = "flights.csv", interval: Interval = JANUARY, *, source: str = SOURCE, share: float = 0.01
    ) -> Brought:
        extracted = self._run_step(
            "extract",
            interval=interval, config=self.config, source=source, files=str(self.files / name), table=self.table,
        )  # fmt: skip
        table = extracted["outputs"]["table"]["reference"]
        validated = self._run_step(
            "validate", interval=interval, config=self.config, table=table, suite=SUITE, max_quarantined_share=share
        )
        return Brought(extracted, validated)

    def rows(self, *columns: str, table: str = "") -> list[tuple[Any, ...]]:
        """Published rows, sorted; without what says who brought them."""
        warehouse = Warehouse.open(self.config)
        found = warehouse.scan(TableRef.parse(table or self.table)).read_all()
        wanted = columns or [c for c in found.column_names if c not in ("_batch", "_source", "_row")]
        return sorted((tuple(row.values()) for row in found.select(wanted).to_pylist()), key=repr)

    def quarantined(self, *columns: str) -> list[tuple[Any, ...]]:
        return self.rows(*columns, table=f"quarantine.{self.table.replace('.', '_')}")

    def seen(self) -> dict[str, Any]:
        """All that others read: published rows, and what is said to be done; not a table as declared, still empty."""
        warehouse = Warehouse.open(self.config)
        return {
            "tables": {
                name: (warehouse.head(name), warehouse.schema(name), sorted(warehouse.table(name).metadata.refs))
                for name in warehouse.tables()
                if warehouse.history(name)
            },
            "manifests": sorted(self.config.artifacts.rglob("manifest.json")),
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests of this module, each with a table of its own: what one broke, the others would see."""
    return tmp_path_factory.mktemp("bad-inputs")


@pytest.fixture
def make_drop(folder: Path, run_step: RunStep) -> Callable[..., Drop]:
    """A table that holds what the run of December brought."""

    def make(*, empty: bool = False) -> Drop:
        drop = Drop(folder, f"t{len(list(folder.iterdir()))}", run_step)
        if not empty:
            drop.send(text(OLD), "december.csv")
            drop.bring("december.csv", DECEMBER)
        return drop

    return make


@pytest.fixture
def drop(make_drop: Callable[..., Drop]) -> Drop:
    return make_drop()


def zipped(content: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flights.csv", content)
    return packed.getvalue()


def as_parquet(content: str, **changed: list[float]) -> bytes:
    table = arrow_csv.read_csv(io.BytesIO(content.encode()))
    doubles = {"dep_delay", "arr_delay", "air_time", "distance"}
    narrow = {pa.int64(): pa.int32(), pa.timestamp("s", tz="UTC"): pa.timestamp("us", tz="UTC")}
    table = table.cast(
        pa.schema([(f.name, pa.float64() if f.name in doubles else narrow.get(f.type, f.type)) for f in table.schema])
    )
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def other(row: str, **changed: str) -> str:
    """A row with other values."""
    return ",".join((dict(zip(HEADER.split(","), row.split(","), strict=True)) | changed).values())


PARQUET = SOURCE.replace("format: csv\n", "format: parquet\n").replace('csv: {"null": ["NA", ""]}\n', "")
LOST = text([r.rpartition(",")[0] for r in ROWS], HEADER.rpartition(",")[0])
LOST_KEY = text([r.partition(",")[2] for r in ROWS], HEADER.partition(",")[2])

BAD: dict[str, tuple[str, str | bytes | None, type[AirloopError], list[str]]] = {
    "missing": (
        "flights.csv",
        None,
        NotFound,
        ["there is no file", "flights.csv", "the folder .* is there, the file is not"],
    ),
    "missing, another name is there": ("flights.csv.gz", None, NotFound, ["flights.csv.gz"]),
    "no file fits the pattern": ("2013-*.csv", None, NotFound, [r"no file matches .*2013-\*.csv", "check the pattern"]),
    "empty": ("flights.csv", b"", BadInput, [r"flights.csv is empty \(0 bytes\)", "send it again"]),
    "only empty lines": ("flights.csv", b"\n\n\n", BadInput, ["flights.csv holds only empty lines", "header"]),
    "cut in a row": (
        "flights.csv",
        GOOD[:-60],
        BadInput,
        ["flights.csv: row 200 has 8 fields, expected are 19", "the row is cut off", "send the file again"],
    ),
    "cut in a value": ("flights.csv", GOOD[:-8], BadInput, ["flights.csv: row 200, column time_hour", "an instant"]),
    "cut in the header": (
        "flights.csv",
        HEADER[:60],
        SchemaMismatch,
        ["lost column 'arr_delay'", "lost column 'time_hour'"],
    ),
    "gzip, cut": (
        "flights.csv.gz",
        gzip.compress(GOOD.encode())[:-40],
        BadInput,
        ["flights.csv.gz is damaged or truncated", "send it again"],
    ),
    "gzip, a bit turned": (
        "flights.csv.gz",
        gzip.compress(GOOD.encode())[:-6] + b"xxxxxx",
        BadInput,
        ["flights.csv.gz is damaged"],
    ),
    "zip, cut": (
        "flights.csv.zip",
        zipped(GOOD)[:-40],
        BadInput,
        ["flights.csv.zip is a damaged or truncated zip", "send it again"],
    ),
    "parquet, cut": ("flights.parquet", as_parquet(GOOD)[:-40], BadInput, ["flights.parquet"]),
    "no parquet at all": (
        "flights.parquet",
        GOOD,
        BadInput,
        ["flights.parquet is not a parquet file", "declared is parquet"],
    ),
    "another encoding": (
        "flights.csv",
        GOOD.encode().replace(b"IAH", b"I\xc4H", 1),
        BadInput,
        [r"byte \d+", r"row 1, column dest", "encoding: cp1252"],
    ),
    "UTF-16": (
        "flights.csv",
        GOOD.encode("utf-16"),
        BadInput,
        ["flights.csv is UTF-16, declared is utf-8", "declare encoding: utf-16"],
    ),
    "another delimiter": (
        "flights.csv",
        GOOD.replace(",", ";"),
        BadInput,
        ["one column found where 19 are expected", "delimiter: ';'"],
    ),
    "a quote that is never closed": (
        "flights.csv",
        GOOD.replace("N14228", '"N14228', 1),
        BadInput,
        ["flights.csv: row 1 has 12 fields, expected are 19", "a quote in it is never closed"],
    ),
    "one key, two contents": (
        "flights.csv",
        text([*ROWS, other(ROWS[4], dep_delay="6")]),
        BadInput,
        ["rows 5, 201 have the same key", "flight='5'", "keep one of them"],
    ),
    "NaN": (
        "flights.csv",
        text([*ROWS[:9], other(ROWS[9], dep_delay="nan")]),
        BadInput,
        ["row 10, column dep_delay", "(?i)nan"],
    ),
    "infinity": (
        "flights.csv",
        text([*ROWS[:9], other(ROWS[9], air_time="-inf")]),
        BadInput,
        ["row 10, column air_time", "inf"],
    ),
    "NaN in Parquet": (
        "flights.parquet",
        as_parquet(GOOD, dep_delay=[float("nan")] + [5.0] * 199),
        BadInput,
        ["row 1, column dep_delay", "nan"],
    ),
    "a number that is too large": (
        "flights.csv",
        text([*ROWS, flight(3_000_000_000)]),
        BadInput,
        ["row 201, column flight", "out of range"],
    ),
    "a value of another type": (
        "flights.csv",
        text([*ROWS, flight(201, delay="late")]),
        BadInput,
        ["row 201, column dep_delay: 'late' is not a number"],
    ),
    "another type": (
        "flights.csv",
        GOOD.replace(",UA,", ",UA,A"),
        SchemaMismatch,
        ["column flight changed its type: declared int, found string"],
    ),
    "another type in Parquet": (
        "flights.parquet",
        as_parquet(GOOD, flight=[0.5] * 200),
        SchemaMismatch,
        ["flight", "int", "double"],
    ),
    "a lost column": ("flights.csv", LOST_KEY, SchemaMismatch, [r"lost column 'year' \(int\)"]),
    "a lost column that may be NULL": (
        "flights.csv",
        LOST,
        SchemaMismatch,
        [r"lost column 'time_hour' \(timestamptz\)", "optional"],
    ),
    "a column twice": (
        "flights.csv",
        GOOD.replace("minute", "hour", 1),
        BadInput,
        ["the header names 'hour' more than once"],
    ),
    "no value where one is required": (
        "flights.csv",
        text([*ROWS, other(ROWS[0], carrier="NA", flight="201")]),
        BadInput,
        ["row 201 has no value for carrier"],
    ),
    "of the future": (
        "flights.csv",
        text([*ROWS, other(flight(201), year="2014", time_hour="2014-01-02T11:00:00Z")]),
        BadInput,
        ["row 201: sched_dep 2014-01-02T11:00:00", "after not_after 2014-01-01", "correct the file"],
    ),
}
"""Name of the file, what is in it, the error, and what it must say."""


def content_of(name: str) -> str | bytes:
    """The good file, packed as its name says."""
    packed = {".gz": gzip.compress(GOOD.encode()), ".zip": zipped(GOOD), ".parquet": as_parquet(GOOD)}
    return packed.get(Path(name).suffix, GOOD)


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple[Any, ...]]:
    """What the good file makes where nothing ever went wrong; filled by the first test."""
    return []


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_and_mended(
    case: str, make_drop: Callable[..., Drop], undisturbed: list[tuple[Any, ...]]
) -> None:
    if not undisturbed:
        never = make_drop(empty=True)
        never.send(GOOD)
        never.bring()
        undisturbed += never.rows()
    name, content, error, says = BAD[case]
    drop = make_drop(empty=True)
    source = PARQUET if name.endswith(".parquet") else SOURCE
    before = drop.seen()
    if content is not None:
        drop.send(content, name)

    with pytest.raises(error) as caught:
        drop.bring(name, source=source)

    assert type(caught.value) is error
    assert caught.value.exit_code == 65
    for expected in says:
        assert caught.match(expected)
    assert caught.value.advice
    assert drop.seen() == before

    name = "2013-01.csv" if "*" in name else name
    drop.send(content_of(name), name)
    brought = drop.bring(name, source=source)
    assert brought.extract["counts"]["rows_new"] == brought.validate["counts"]["rows_published"] == 200
    assert drop.rows() == undisturbed


def test_a_row_of_bad_files_leaves_what_is_published(drop: Drop, undisturbed: list[tuple[Any, ...]]) -> None:
    before = drop.seen()
    old = drop.rows()
    for name, content, error, _ in BAD.values():
        if content is not None:
            drop.send(content, name)
            with pytest.raises(error):
                drop.bring(name, source=PARQUET if name.endswith(".parquet") else SOURCE)
            (drop.files / name).unlink()
    assert drop.seen() == before
    drop.send(GOOD)
    assert drop.bring().extract["counts"]["rows_new"] == 200
    assert drop.rows() == sorted([*undisturbed, *old], key=repr)


def test_rows_that_are_the_same_count_once_and_are_counted(
    make_drop: Callable[..., Drop], undisturbed: list[tuple[Any, ...]]
) -> None:
    drop = make_drop(empty=True)
    drop.send(text([*ROWS, ROWS[3], ROWS[3]]))
    assert drop.bring().extract["counts"]["rows_duplicate"] == 2
    assert drop.rows() == undisturbed


NO_INSTANT = "expect_column_values_to_not_be_null(sched_dep)"
IMPOSSIBLE: dict[str, tuple[Interval, str, list[str], dict[str, str]]] = {
    "no time of day": (
        JANUARY,
        other(flight(900), sched_dep_time="2560"),
        [NO_INSTANT, "expect_column_values_to_be_between(sched_dep_time"],
        {"sched_dep_time": "600"},
    ),
    "a minute that is none": (
        JANUARY,
        other(flight(900), sched_dep_time="675"),
        [NO_INSTANT],
        {"sched_dep_time": "600"},
    ),
    "no day": (
        JANUARY,
        other(flight(900), day="32"),
        [NO_INSTANT, "expect_column_values_to_be_between(day"],
        {"day": "31"},
    ),
    "the hour that the clocks skipped": (
        MARCH,
        other(flight(900), month="3", day="10", sched_dep_time="230"),
        [NO_INSTANT],
        {"sched_dep_time": "330"},
    ),
}
"""Interval, row, the rules that it breaks, and what would be right."""


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_time_that_never_was_is_kept_back_with_its_rule(case: str, make_drop: Callable[..., Drop]) -> None:
    interval, bad, rules, right = IMPOSSIBLE[case]
    drop, undisturbed = make_drop(), make_drop()
    month = "1" if interval is JANUARY else "3"
    rows = [other(row, month=month) for row in ROWS]
    before = drop.rows()
    drop.send(text([*rows, bad]))

    with pytest.raises(RejectedRows) as caught:
        drop.bring(interval=interval, share=0.0)
    assert caught.value.exit_code == 65
    assert caught.match(r"1 of 201 rows .* break expect_column_values_to_not_be_null\(sched_dep\)")
    assert caught.match("first: flights.csv row 201: sched_dep = null")
    assert caught.match("quarantine.raw_t")
    assert drop.rows() == before
    kept_back = drop.quarantined("flight", "_source", "_row", "_rules")
    assert [row[:3] for row in kept_back] == [(900, "flights.csv", 201)]
    assert [r for r in rules if not any(found.startswith(r) for found in kept_back[0][3])] == []

    # Few of them may be kept back while the others go on.
    brought = drop.bring(interval=interval)
    assert brought.validate["counts"]["rows_quarantined"] == 1
    assert brought.validate["counts"]["rows_published"] == 200
    undisturbed.send(text(rows))
    undisturbed.bring(interval=interval)
    assert drop.rows() == undisturbed.rows()

    # The mended row is published, and leaves the quarantine.
    mended = other(bad, **right)
    for place in (drop, undisturbed):
        place.send(text([*rows, mended]))
        place.bring(interval=interval)
    assert len(drop.rows()) == 202
    assert drop.rows() == undisturbed.rows()
    # A row whose key was wrong cannot be told to be the same one.
    assert [row[0] for row in drop.quarantined("flight")] == ([900] if "day" in right else [])


def test_an_hour_that_was_twice_is_taken_for_the_first(drop: Drop) -> None:
    """New York, 3 November: 01:30 was at 05:30 and again at 06:30 UTC."""
    row = other(flight(1), month="11", day="3", sched_dep_time="130", hour="1", minute="30")
    later = other(flight(2), month="11", day="3", sched_dep_time="230", hour="2", minute="30")
    drop.send(text([row, later]))
    assert drop.bring(interval=NOVEMBER).validate["counts"]["rows_published"] == 2
    found = dict(drop.rows("flight", "sched_dep"))
    assert found[1] == datetime(2013, 11, 3, 5, 30, tzinfo=UTC)
    assert found[2] == datetime(2013, 11, 3, 7, 30, tzinfo=UTC)


def test_a_new_column_is_accepted_and_reported(drop: Drop) -> None:
    drop.send(text([f"{row},{n % 7}" for n, row in enumerate(ROWS)], HEADER + ",gate"))
    brought = drop.bring()
    assert brought.extract["details"]["evolution"] == [
        "flights.csv: column gate (long) is not declared; kept as a nullable column",
        "added column gate (long)",
    ]
    assert brought.validate["counts"]["rows_published"] == 200
    gates = dict(drop.rows("flight", "gate"))
    assert gates[1545] is None, "a row of before"
    assert [gates[n + 1] for n in range(200)] == [n % 7 for n in range(200)]


def test_a_lost_column_that_was_declared_optional_is_accepted(drop: Drop) -> None:
    drop.send(LOST)
    source = SOURCE.replace("time_hour: {type: timestamptz,", "time_hour: {type: timestamptz, optional: true,")
    assert source != SOURCE
    assert drop.bring(source=source).validate["counts"]["rows_published"] == 200
    assert {hour for number, hour in drop.rows("flight", "time_hour") if number != 1545} == {None}


def test_of_two_files_the_bad_one_is_named_and_neither_is_brought(drop: Drop) -> None:
    drop.send(text(ROWS[:100]), "2013-01-a.csv")
    drop.send(text([*ROWS[100:], "2013,1"]), "2013-01-b.csv")
    before = drop.seen()
    with pytest.raises(BadInput, match=r"2013-01-b\.csv: row 101 has 2 fields"):
        drop.bring("2013-01-*.csv")
    assert drop.seen() == before


def test_only_a_header_is_an_interval_without_rows(drop: Drop, caplog: pytest.LogCaptureFixture) -> None:
    drop.send(HEADER + "\n")
    before = drop.rows()
    brought = drop.bring()
    assert brought.extract["counts"]["rows_in"] == 0
    assert not brought.extract["changed"]
    assert brought.validate["status"] == "reused"
    assert "flights: the files hold no row of 2013-01-01" in caplog.text
    assert drop.rows() == before


def test_what_was_kept_back_does_not_come_back_with_other_rules(drop: Drop, run_step: RunStep) -> None:
    """The audited snapshot still holds the row; validated again, by another suite, it is judged again."""
    drop.send(text([*ROWS, other(flight(900), sched_dep_time="2560"), other(flight(901), arr_time="2500")]))
    first = drop.bring()
    audited = first.extract["outputs"]["table"]["reference"]
    assert [row[0] for row in drop.quarantined("flight")] == [900, 901]
    # Meanwhile a later file corrects a row of the first one.
    drop.send(text([other(ROWS[0], dep_delay="77")]), "later.csv")
    drop.bring("later.csv")
    wider = SUITE.replace('"column": "arr_time", "min_value": 0, "max_value": 2400', '"column": "arr_time"')
    assert wider != SUITE
    arguments = {"table": audited, "max_quarantined_share": 0.01}
    wider = wider.replace('"kwargs": {"column": "arr_time"}', '"kwargs": {"column": "arr_time", "max_value": 2500}')

    again = run_step("validate", interval=JANUARY, config=drop.config, suite=wider, **arguments)

    published = drop.rows("flight", table=again["outputs"]["table"]["reference"])
    assert {900, 901} & {n for (n,) in published} == {901}
    assert drop.rows("flight") == published
    assert dict(drop.rows("flight", "dep_delay"))[1] == 77.0
    assert [row[0] for row in drop.quarantined("flight")] == [900]
    assert again["counts"] == {"rows_checked": 201, "rows_quarantined": 1, "rows_published": 200, "expectations": 26}
