"""How the report writes times, ages and names."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from airloop.contract import Interval
from airloop.domain import metrics
from airloop.report import words

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ((2013, 2, 1), (2013, 3, 1), "February 2013"),
        ((2013, 12, 1), (2014, 1, 1), "December 2013"),
        ((2013, 3, 10), (2013, 3, 11), "2013-03-10"),  # 23 hours: the clocks go forward
        ((2013, 2, 1), (2013, 2, 8), "2013-02-01 to 2013-02-08"),
        ((2013, 2, 1), (2013, 4, 1), "2013-02-01 to 2013-04-01"),
        ((2013, 2, 1, 6), (2013, 2, 1, 7), "2013-02-01 06:00 to 2013-02-01 07:00"),
    ],
)
def test_intervals_are_written_in_the_loops_zone(start: tuple[int, ...], end: tuple[int, ...], text: str) -> None:
    interval = Interval(datetime(*start, tzinfo=NEW_YORK), datetime(*end, tzinfo=NEW_YORK))  # type: ignore[misc,arg-type]
    assert words.interval(interval, "America/New_York") == text


def test_no_interval() -> None:
    assert words.interval(None, "UTC") == "no interval"


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0.0167, "1 min"), (0.999, "1 h"), (4.75, "4 h 45 min"), (50.0, "2 d 2 h"), (59 * 24 + 5, "59 d"),
        (8766 * 4, "4.0 years"), (None, words.NOTHING),
    ],
)  # fmt: skip
def test_ages(hours: float | None, text: str) -> None:
    assert words.age(hours) == text


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("model:/delay/3", "delay version 3"), ("model:/delay/none", ""), ("", ""),
        ("model:/run/290c487892474fe6a3edcd6c20cdd445", "candidate 290c48789247"),
    ],
)  # fmt: skip
def test_versions(reference: str, text: str) -> None:
    assert words.version(reference) == text


def test_metrics_are_those_of_the_gate() -> None:
    assert set(words.METRICS) == {*metrics.METRICS, "ece"}
    for name, metric in metrics.METRICS.items():
        assert words.higher_is_better(name) == metric.higher_is_better


def test_metrics_in_a_sentence() -> None:
    assert words.metric_name("log_loss", in_text=True) == "log loss"
    assert words.metric_name("roc_auc", in_text=True) == "ROC AUC"
    assert words.metric_name("own", in_text=True) == "own"
