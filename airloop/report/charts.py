"""
Charts as HTML with inline SVG: no script, no font, no request.

Colours come from the page's CSS classes, so that they follow its light and dark themes. Positions are percentages of
the chart's own width, so a chart fits any width while its text keeps its size. All text goes through ``Markup.format``,
which escapes it: names of columns, carriers and files come from data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from airloop.report.words import minus, number, signed

Points = Sequence[tuple[float, float]]
Axis = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart."""

    name: str
    points: Points
    style: str = "a"
    """CSS class of the series: ``a`` or ``b``; ``guide`` is a dashed line for comparison, without a name."""
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One named value."""

    name: str
    value: float
    style: str = "a"
    """``a``, ``warn`` or ``bad``."""
    group: str = ""
    """Set small before the name, such as the feature view."""
    text: str = ""
    """What is written for the value; default the value itself."""


@dataclass(frozen=True, slots=True)
class Span:
    """A confidence interval with its estimate."""

    name: str
    low: float
    estimate: float
    high: float
    style: str = "a"
    group: str = ""


@dataclass(frozen=True, slots=True)
class Ticks:
    """Where an axis is marked and what is written there."""

    at: Sequence[float]
    texts: Sequence[str] = field(default=())

    @property
    def pairs(self) -> list[tuple[float, str]]:
        return list(zip(self.at, self.texts or _tick_texts(self.at), strict=True))


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_range: Axis | None = None,
    y_range: Axis | None = None,
    x_ticks: Ticks | None = None,
    height: int = 216,
) -> Markup:
    """
    Lines in one frame; empty if there is no finite point.

    :param x_range: default the data's; the same for ``y_range``, which then gets some air.
    :param x_ticks: default round numbers.
    :param height: of the frame, px.
    """
    kept = [(line, [(a, b) for a, b in line.points if math.isfinite(a) and math.isfinite(b)]) for line in lines]
    xs = [a for _, points in kept for a, _ in points]
    ys = [b for _, points in kept for _, b in points]
    if not xs:
        return Markup("")
    x_axis = _axis(*(x_range or (min(xs), max(xs))))
    y_axis = _axis(*y_range) if y_range else _airy(min(ys), max(ys))
    x, y = _percent(x_axis), _percent(y_axis, down=True)
    parts = [_grid(x_ticks or Ticks(ticks(x_axis, 5)), Ticks(ticks(y_axis, 4)), x, y, height)]
    dots = []
    curves = []
    for line, points in kept:
        path = " ".join(f"{x(a):.2f},{y(b):.2f}" for a, b in points)
        curves.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, path))
        if line.dots:
            dots += [
                Markup('<circle class="dot {}" cx="{:.2f}%" cy="{:.2f}%" r="3.5"/>').format(line.style, x(a), y(b))
                for a, b in points
            ]
    # Only this inner frame is stretched; lines keep their width (vector-effect), dots and text stay outside of it.
    parts.append(
        Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>').format(Markup("").join(curves))
    )
    legend = _legend([(line.name, line.style) for line, points in kept if points and line.style != "guide"])
    return _figure(title, legend, _plot(title, [*parts, *dots], height, x_label, y_label))


def bars(title: str, values: Sequence[Bar], *, limit: float | None = None, most: float | None = None) -> Markup:
    """
    Horizontal bars, each with its name and value.

    :param limit: drawn as a line through all bars.
    :param most: where the axis ends; longer bars are cut there, and shown as cut. Default the largest value.
    """
    if not values:
        return Markup("")
    largest = max([v.value for v in values if math.isfinite(v.value)] + ([limit] if limit else []) + [1e-12])
    x = _percent((0.0, min(most, largest) if most else largest))
    guide = Markup("")
    if limit is not None:
        guide = Markup('<line class="limit" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%"/>').format(x(limit))
    rows = []
    for bar in values:
        width = x(bar.value) if math.isfinite(bar.value) else 0.0
        cut = Markup('<line class="cut" x1="94%" x2="95.5%" y1="100%" y2="0"/>') if width > 100 else Markup("")
        track = Markup(
            '<rect class="bar {}" width="{:.2f}%" y="50%" height="12" transform="translate(0 -6)" rx="2"/>{}{}'
        ).format(bar.style, max(0.4, min(100.0, width)), cut, guide)
        rows.append(_row(bar.group, bar.name, track, bar.text or number(bar.value), bar.style))
    return _figure(title, Markup(""), _rows("bars", rows))


def spans(
    title: str,
    values: Sequence[Span],
    *,
    digits: int = 4,
    zero: str = "no difference",
    tolerated: tuple[float, str] | None = None,
) -> Markup:
    """
    Confidence intervals below each other (a forest plot), with their figures.

    :param zero: what the line at 0 means, for the legend.
    :param tolerated: a second, dashed line, and what it means.
    """
    if not values:
        return Markup("")
    limits = [0.0, *([tolerated[0]] if tolerated else [])]
    low, high = min([v.low for v in values] + limits), max([v.high for v in values] + limits)
    pad = (high - low or 1.0) * 0.04
    axis = _axis(low - pad, high + pad)
    x = _percent(axis)
    marks = Ticks(ticks(axis, 3))
    guides = Markup("").join(
        [_vertical("grid", x(tick)) for tick in marks.at]
        + [_vertical("zero", x(0.0))]
        + ([_vertical("limit", x(tolerated[0]))] if tolerated else [])
    )
    rows = []
    for span in values:
        track = Markup(
            '{}<line class="span {}" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>'
            '<circle class="dot {}" cx="{:.2f}%" cy="50%" r="4"/>'
        ).format(guides, span.style, x(span.low), x(span.high), span.style, x(span.estimate))
        text = Markup("<b>{}</b> <small>{} … {}</small>").format(
            signed(span.estimate, digits), signed(span.low, digits), signed(span.high, digits)
        )
        rows.append(_row(span.group, span.name, track, text, span.style))
    texts = Markup("").join(
        Markup('<text class="tick" x="{:.2f}%" y="14" text-anchor="{}">{}</text>').format(x(at), _anchor(x(at)), text)
        for at, text in zip(marks.at, _tick_texts(marks.at, sign=True), strict=True)
    )
    rows.append(
        Markup('<li class="scale"><span class="track"><svg aria-hidden="true">{}</svg></span></li>').format(texts)
    )
    names = [(zero, "zero"), *([(tolerated[1], "limit")] if tolerated else [])]
    return _figure(title, _legend(names), _rows("spans" if any(v.name for v in values) else "spans one", rows))


def histogram(
    title: str,
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[float], str]],
    *,
    x_label: str,
    height: int = 216,
) -> Markup:
    """
    Counts per bin, each series as a share of its own total, drawn over each other.

    :param edges: one more than each series has counts.
    :param series: name, counts, CSS class.
    """
    totals = [(name, counts, sum(counts), style) for name, counts, style in series]
    if len(edges) < 2 or not any(total for _, _, total, _ in totals):
        return Markup("")
    shares = [(name, [c / total for c in counts], style) for name, counts, total, style in totals if total]
    x_axis, y_axis = (edges[0], edges[-1]), (0.0, 1.08 * max(s for _, values, _ in shares for s in values))
    x, y = _percent(x_axis), _percent(y_axis, down=True)
    marks = Ticks(ticks(y_axis, 4))
    percents = Ticks(marks.at, [f"{text}%" for text in _tick_texts([100 * at for at in marks.at])])
    parts = [_grid(Ticks(ticks(x_axis, 5)), percents, x, y, height)]
    for _, values, style in shares:
        for low, high, share in zip(edges, edges[1:], values, strict=False):
            parts.append(
                Markup('<rect class="area {}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%"/>').format(
                    style, x(low), y(share), x(high) - x(low), 100 - y(share)
                )
            )
    legend = _legend([(name, style) for name, _, style in shares])
    return _figure(title, legend, _plot(title, parts, height, x_label, "share of rows"))


def columns(
    title: str, note: str, bins: Sequence[tuple[str, float, float]], *, names: tuple[str, str], height: int = 84
) -> Markup:
    """
    Two shares side by side for each bin: a small chart of how a distribution moved.

    :param bins: name, share before, share now.
    :param names: of the two, for readers of the bars' titles.
    """
    if not bins:
        return Markup("")
    most = max(max(a, b) for _, a, b in bins) or 1.0
    slot = 100 / len(bins)
    parts = []
    for i, (name, before, now) in enumerate(bins):
        hint = f"{name}: {before:.1%} {names[0]}, {now:.1%} {names[1]}"
        rects = Markup("").join(
            Markup('<rect class="column {}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%"/>').format(
                style, slot * (i + start), 100 - 100 * share / most, slot * 0.38, 100 * share / most
            )
            for style, start, share in (("b", 0.1, before), ("a", 0.5, now))
        )
        parts.append(Markup("<g><title>{}</title>{}</g>").format(hint, rects))
    svg = Markup('<svg height="{}" role="img" aria-label="{}">{}</svg>').format(height, title, Markup("").join(parts))
    ends = Markup('<div class="ends"><span>{}</span><span>{}</span></div>').format(bins[0][0], bins[-1][0])
    return Markup(
        '<figure class="chart small"><figcaption>{}<small>{}</small></figcaption>'
        '<div class="columns">{}</div>{}</figure>'
    ).format(title, note, svg, ends)


def ticks(axis: Axis, about: int) -> list[float]:
    """Round numbers inside an axis, about so many."""
    low, high = axis
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9)), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, decimals) for i in range(first, last + 1)]


def _tick_texts(at: Sequence[float], *, sign: bool = False) -> list[str]:
    """All with the same number of decimals: as many as tell them apart."""
    step = min((b - a for a, b in pairwise(at)), default=abs(at[0]) if at else 1.0) or 1.0
    decimals = next((d for d in range(12) if abs(step * 10**d - round(step * 10**d)) < 1e-6 * step * 10**d), 12)
    if max((abs(v) for v in at), default=0) >= 1e6 or decimals > 6:
        return [minus(f"{v:.3g}") for v in at]
    if sign:
        return [signed(v, decimals) if v else "0" for v in at]
    return [minus(f"{v:,.{decimals}f}") for v in at]


def _axis(low: float, high: float) -> Axis:
    """The same, or with some width if it has none."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    pad = abs(low) * 0.1 or 0.5
    return low - pad, high + pad


def _airy(low: float, high: float) -> Axis:
    low, high = _axis(low, high)
    pad = (high - low) * 0.06
    # A quantity that is never negative does not get an axis that is.
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def _percent(axis: Axis, *, down: bool = False) -> Callable[[float], float]:
    low, high = axis
    factor = 100 / (high - low)
    if down:
        return lambda value: 100 - (value - low) * factor
    return lambda value: (value - low) * factor


def _anchor(at: float) -> str:
    """Texts near the ends stay inside."""
    return "start" if at < 4 else "end" if at > 96 else "middle"


def _vertical(style: str, at: float) -> Markup:
    return Markup('<line class="{0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="0" y2="100%"/>').format(style, at)


def _grid(
    x_ticks: Ticks, y_ticks: Ticks, x: Callable[[float], float], y: Callable[[float], float], height: int
) -> Markup:
    parts = []
    for at, text in y_ticks.pairs:
        parts.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
                '<text class="tick" x="-8" y="{1:.1f}" text-anchor="end">{2}</text>'
            ).format(y(at), y(at) * height / 100 + 4, text)
        )
    parts.append(Markup('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>'))
    for at, text in x_ticks.pairs:
        parts.append(
            Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>').format(
                x(at), height + 17, _anchor(x(at)), text
            )
        )
    return Markup("").join(parts)


def _plot(title: str, parts: Sequence[Markup], height: int, x_label: str, y_label: str) -> Markup:
    return Markup(
        '<div class="label">{}</div><div class="plot"><svg height="{}" role="img" aria-label="{}">{}</svg></div>'
        '<div class="label right">{}</div>'
    ).format(y_label, height, title, Markup("").join(parts), x_label)


def _row(group: str, name: str, track: Markup, value: str | Markup, style: str) -> Markup:
    before = Markup("<small>{}</small> ").format(group) if group else Markup("")
    return Markup(
        '<li><span class="name" title="{}">{}{}</span><span class="track"><svg aria-hidden="true">{}</svg></span>'
        '<span class="value {}">{}</span></li>'
    ).format(" ".join(filter(None, (group, name))), before, name, track, style, value)


def _rows(style: str, rows: Sequence[Markup]) -> Markup:
    return Markup('<ol class="rows {}">{}</ol>').format(style, Markup("").join(rows))


def _figure(title: str, legend: Markup, body: Markup) -> Markup:
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}{}</figure>').format(title, legend, body)


def _legend(names: Sequence[tuple[str, str]]) -> Markup:
    if not names:
        return Markup("")
    items = Markup("").join(Markup('<span><i class="key {}"></i>{}</span>').format(s, name) for name, s in names)
    return Markup('<div class="legend">{}</div>').format(items)
