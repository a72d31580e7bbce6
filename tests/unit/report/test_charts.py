"""Charts: escaped text, round ticks, finite coordinates, nothing without data."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markupsafe import Markup

from airloop.report.charts import Bar, Line, Span, Ticks, bars, columns, histogram, line_chart, spans, ticks
from airloop.report.words import number, signed

HOSTILE = "<script>alert('x')</script>\"&"


def parsed(chart: Markup) -> ElementTree.Element:
    """The chart as XML: it is well-formed."""
    return ElementTree.fromstring(f"<chart>{chart}</chart>")


def numbers_of(chart: Markup) -> list[float]:
    """All coordinates of the chart."""
    texts = []
    for element in parsed(chart).iter():
        texts += [element.get(name, "") for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "points")]
    return [float(n) for text in texts for n in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?|nan|inf", text)]


@pytest.mark.parametrize(
    "chart",
    [
        line_chart(HOSTILE, [Line(HOSTILE, [(0, 1), (1, 2)], dots=True)], x_label=HOSTILE, y_label=HOSTILE),
        bars(HOSTILE, [Bar(HOSTILE, 1.0, group=HOSTILE, text=HOSTILE)], limit=0.5),
        spans(HOSTILE, [Span(HOSTILE, -1, 0, 1, group=HOSTILE)], zero=HOSTILE, tolerated=(-0.5, HOSTILE)),
        histogram(HOSTILE, [0, 1, 2], [(HOSTILE, [1, 2], "a")], x_label=HOSTILE),
        columns(HOSTILE, HOSTILE, [(HOSTILE, 0.5, 0.5)], names=(HOSTILE, HOSTILE)),
    ],
    ids=["line", "bars", "spans", "histogram", "columns"],
)
def test_text_from_data_is_escaped(chart: Markup) -> None:
    assert "<script" not in chart
    texts = [*parsed(chart).itertext(), *(e.get("aria-label", "") for e in parsed(chart).iter())]
    assert sum(HOSTILE in text for text in texts) >= 2


@pytest.mark.parametrize(
    ("axis", "about", "expected"),
    [
        ((0, 1), 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((0, 84), 5, [0, 20, 40, 60, 80]),
        ((-0.017, 0.066), 3, [0, 0.05]),
        ((0.6821, 0.7371), 4, [0.7, 0.72]),
        ((1e-9, 3e-9), 4, [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9]),
        ((0, 1000), 1, [0, 1000]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(axis: tuple[float, float], about: int, expected: list[float]) -> None:
    assert ticks(axis, about) == pytest.approx(expected)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_few_and_inside(low: float, width: float, about: int) -> None:
    # No chart has a narrower axis: it gets wider first.
    assume(width > 1e-9 * abs(low))
    found = ticks((low, low + width), about)
    assert len(found) <= 2 * about + 2
    slack = 1e-6 * width + 1e-12 * abs(low)
    assert all(low - slack <= t <= low + width + slack for t in found)
    assert len(set(found)) == len(found)


def test_ticks_of_one_axis_have_the_same_decimals() -> None:
    chart = line_chart("t", [Line("a", [(0, 0), (1, 1)])], x_label="", y_label="", y_range=(0, 1), x_range=(0, 0.25))
    texts = [t.text or "" for t in parsed(chart).iter("text")]
    assert texts[:5] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert texts[5:] == ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25"]


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e300, 1e-300, 5e15])
def test_a_line_of_one_value_has_an_axis(value: float) -> None:
    chart = line_chart("t", [Line("a", [(1.0, value), (2.0, value)], dots=True)], x_label="", y_label="")
    assert all(math.isfinite(n) for n in numbers_of(chart))
    assert 0 <= float(next(parsed(chart).iter("circle")).get("cy", "").rstrip("%")) <= 100


def test_points_that_are_not_finite_are_left_out() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    chart = line_chart("t", [Line("a", points, dots=True)], x_label="", y_label="")
    assert len(list(parsed(chart).iter("circle"))) == 2
    assert all(math.isfinite(n) for n in numbers_of(chart))


def test_without_data_there_is_no_chart() -> None:
    assert line_chart("t", [], x_label="", y_label="") == ""
    assert line_chart("t", [Line("a", [(0.0, math.nan)])], x_label="", y_label="") == ""
    assert bars("t", []) == spans("t", []) == columns("t", "", [], names=("", "")) == ""
    assert histogram("t", [0, 1], [("none", [0], "a")], x_label="") == ""
    assert histogram("t", [], [], x_label="") == ""


def test_a_class_without_rows_is_left_out_of_the_histogram() -> None:
    chart = histogram("t", [0, 1, 2], [("negative", [3, 1], "b"), ("positive", [0, 0], "a")], x_label="")
    assert "negative" in chart
    assert "positive" not in chart
    shares = [float(r.get("height", "").rstrip("%")) for r in parsed(chart).iter("rect")]
    assert shares[0] == pytest.approx(3 * shares[1], rel=0.01)


def test_bars_beyond_the_axis_are_cut_and_say_so() -> None:
    chart = bars("t", [Bar("long", 9.0, "bad"), Bar("short", 0.5)], limit=0.2, most=1.0)
    long, short = (float(r.get("width", "").rstrip("%")) for r in parsed(chart).iter("rect"))
    assert (long, short) == (100, 50)
    assert chart.count('class="cut"') == 1
    assert ">9<" in chart


def test_bars_of_zero_and_nan_do_not_break_the_chart() -> None:
    chart = bars("t", [Bar("zero", 0.0), Bar("nan", math.nan)])
    assert all(math.isfinite(n) for n in numbers_of(chart))
    assert "\N{EN DASH}" in chart


def test_an_interval_lies_where_its_figures_say() -> None:
    chart = spans("t", [Span("s", -0.01, 0.02, 0.05)])
    line = next(e for e in parsed(chart).iter("line") if e.get("class") == "span a")
    zero = next(e for e in parsed(chart).iter("line") if e.get("class") == "zero")
    low, high, at = (float(x.rstrip("%")) for x in (line.get("x1", ""), line.get("x2", ""), zero.get("x1", "")))
    assert 0 < low < at < high < 100
    assert (at - low) / (high - low) == pytest.approx(1 / 6, abs=0.01)
    assert "+0.0200" in chart
    assert "\N{MINUS SIGN}0.0100 … +0.0500" in chart


def test_named_ticks_are_written_as_given() -> None:
    chart = line_chart("t", [Line("a", [(0, 0), (1, 1)])], x_label="", y_label="", x_ticks=Ticks([0.0], ["Jan 2013"]))
    assert "Jan 2013" in chart


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.250"), (2.209, "2.21"), (-1234.5, "\N{MINUS SIGN}1,234"), (math.nan, "\N{EN DASH}")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.02185, "+0.0219"), (-0.01, "\N{MINUS SIGN}0.0100"), (0.0, "0.0000"), (-0.00001, "0.0000")]
)
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text
