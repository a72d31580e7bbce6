"""The contract between scheduler and payload."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from airloop.contract import (
    CALL_LIMIT,
    ENV_CALL,
    VERSION,
    Call,
    Interval,
    Receipt,
    RunInfo,
    attempt_id,
    log_line,
    parse_log_line,
)
from airloop.errors import BadArgument, BadInterval, ContractBroken

JANUARY = Interval(datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 2, 1, tzinfo=UTC))


def test_a_call_survives_the_environment() -> None:
    call = Call("extract", {"a": [1, {"b": None}]}, "0123456789", RunInfo("d", "r", "t", 2, 3), JANUARY, True)
    assert Call.from_environment({ENV_CALL: call.to_json()}) == call


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, "not set"),
        ({ENV_CALL: "{"}, "cannot be read"),
        ({ENV_CALL: "[]"}, "cannot be read"),
        ({ENV_CALL: json.dumps({"version": VERSION + 1})}, "contract version"),
    ],
)
def test_a_payload_without_its_contract_stops(environment: dict[str, str], found: str) -> None:
    with pytest.raises(ContractBroken, match=found):
        Call.from_environment(environment)


def test_arguments_that_do_not_fit_the_environment_are_refused_with_advice() -> None:
    with pytest.raises(BadArgument, match="put the data into a file"):
        Call("extract", {"source": "x" * CALL_LIMIT}).to_json()


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_arguments_must_be_json(value: object) -> None:
    with pytest.raises(BadArgument, match="not plain JSON"):
        Call("extract", {"x": value}).to_json()


def test_an_attempt_is_an_identity_and_no_path() -> None:
    with pytest.raises(BadArgument):
        Call("extract", {}, "../../etc/passwd")
    assert attempt_id("a", "bc") != attempt_id("ab", "c")


def test_an_interval_is_utc_inside() -> None:
    new_york = timezone(timedelta(hours=-5))
    interval = Interval(datetime(2013, 1, 1, tzinfo=new_york), datetime(2013, 2, 1, tzinfo=new_york))
    assert interval.start == datetime(2013, 1, 1, 5, tzinfo=UTC)
    assert interval.start.tzinfo is UTC
    assert Interval.parse(str(interval)) == Interval.parse(interval.as_json()) == interval


@pytest.mark.parametrize(
    "text", ["2013-01-01/2013-02-01", "2013-02-01T00:00Z/2013-01-01T00:00Z", "yesterday", "a/b/c", ""]
)
def test_a_bad_interval_says_what_is_expected(text: str) -> None:
    with pytest.raises(BadInterval):
        Interval.parse(text)


def test_a_receipt_is_small() -> None:
    receipt = Receipt("0123456789", "done", "ab" * 32, "file:///x/manifest.json", "cd" * 32)
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert len(receipt.to_json()) < 1024
    with pytest.raises(ContractBroken, match="shorter address"):
        Receipt("0123456789", "done", manifest="x" * 1024).to_json()


@pytest.mark.parametrize("text", ["", "null", "{}", '{"version": 99}', '{"version": 1, "attempt": "a", "x": 1}'])
def test_a_broken_receipt_is_named(text: str) -> None:
    with pytest.raises(ContractBroken):
        Receipt.from_json(text)


def test_log_lines_are_told_from_plain_output() -> None:
    assert parse_log_line(log_line("WARNING", "a.b", "line\nbreak")) == ("WARNING", "a.b", "line\nbreak")
    assert parse_log_line("hello") is None
    assert parse_log_line('{"airloop_log": 1, "level"') is None
