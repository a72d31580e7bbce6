"""
Charts as inline SVG: no script, no font, no request. Colours come from the page's CSS classes, so that they follow
its light and dark themes. Every chart has a title for screen readers and a viewBox, and so fits any width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 38
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart."""

    name: str
    points: Points
    style: str = "a"
    """CSS class of the series: ``a``, ``b``, or ``guide`` for a dashed grey line."""
    dots: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines in one frame; ranges default to the data's."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return ""
    x_axis, y_axis = _axis(*(x_range or (min(xs), max(xs)))), _axis(*(y_range or (min(ys), max(ys))))
    x, y = _scale(x_axis, LEFT, WIDTH - RIGHT), _scale(y_axis, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x, y, x_label, y_label)]
    for line in lines:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if line.dots:
            parts += [f'<circle class="dot {line.style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in line.points]
    return _svg(title, parts, HEIGHT) + _legend([(n.name, n.style) for n in lines if n.name])


def bars(title: str, values: Sequence[tuple[str, float]], *, limit: float | None = None, unit: str = "") -> str:
    """Horizontal bars, named at their left; those above ``limit`` are marked, and the limit is drawn."""
    if not values:
        return ""
    row, label = 22, 170
    height = row * len(values) + 10
    most = max([v for _, v in values] + ([limit] if limit else []) + [1e-12])
    x = _scale((0, most), label, WIDTH - 52)
    parts = []
    for i, (name, value) in enumerate(values):
        top = 5 + i * row
        style = "bad" if limit is not None and value > limit else "a"
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(f'<text class="tick" x="{label - 6}" y="{top + 14}" text-anchor="end">{escape(shown)}</text>')
        parts.append(
            f'<rect class="bar {style}" x="{label}" y="{top + 3}" width="{max(1.0, x(value) - label):.1f}" '
            f'height="{row - 7}" rx="2"/>'
        )
        parts.append(f'<text class="tick" x="{x(value) + 5:.1f}" y="{top + 14}">{_number(value)}{escape(unit)}</text>')
    if limit is not None:
        parts.append(f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="2" y2="{height - 2}"/>')
    return _svg(title, parts, height)


@dataclass(frozen=True, slots=True)
class Span:
    """A confidence interval with its estimate."""

    name: str
    low: float
    estimate: float
    high: float
    style: str = "a"


def spans(title: str, values: Sequence[Span], *, marks: Sequence[tuple[float, str]] = ((0.0, ""),)) -> str:
    """
    Confidence intervals below each other (a forest plot).

    :param marks: vertical guides, with a name or without.
    """
    if not values:
        return ""
    row, label, top_px = 24, 150, 8
    height = top_px + row * len(values) + 26
    low = min([v.low for v in values] + [m for m, _ in marks])
    high = max([v.high for v in values] + [m for m, _ in marks])
    pad = (high - low or 1.0) * 0.06
    axis = _axis(low - pad, high + pad)
    x = _scale(axis, label, WIDTH - RIGHT)
    bottom = top_px + row * len(values)
    parts = []
    for tick in _ticks(axis, 4):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top_px}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_signed(tick)}</text>')
    for mark, name in marks:
        parts.append(f'<line class="limit" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top_px}" y2="{bottom}"/>')
        if name:
            parts.append(f'<text class="tick" x="{x(mark):.1f}" y="{top_px - 1}" text-anchor="middle">{escape(name)}</text>')
    for i, span in enumerate(values):
        y = top_px + row * i + row / 2
        parts.append(f'<text class="tick" x="{label - 8}" y="{y + 4}" text-anchor="end">{escape(span.name)}</text>')
        parts.append(f'<line class="line {span.style}" x1="{x(span.low):.1f}" x2="{x(span.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {span.style}" cx="{x(span.estimate):.1f}" cy="{y}" r="4"/>')
    return _svg(title, parts, height)


def histogram(title: str, edges: Sequence[float], series: Sequence[tuple[str, Sequence[float], str]], x_label: str) -> str:
    """Counts per bin, each series as a share of its own total, drawn over each other."""
    shares = [(n, [c / (sum(counts) or 1) for c in counts], style) for n, counts, style in series]
    most = max((s for _, values, _ in shares for s in values), default=0) or 1.0
    x_axis, y_axis = (edges[0], edges[-1]), _axis(0, most)
    x, y = _scale(x_axis, LEFT, WIDTH - RIGHT), _scale(y_axis, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x, y, x_label, "share of rows")]
    for _, values, style in shares:
        for low, high, share in zip(edges, edges[1:], values, strict=False):
            parts.append(
                f'<rect class="area {style}" x="{x(low):.1f}" y="{y(share):.1f}" '
                f'width="{x(high) - x(low):.1f}" height="{y(0) - y(share):.1f}"/>'
            )
    return _svg(title, parts, HEIGHT) + _legend([(n, style) for n, _, style in shares])


def _svg(title: str, parts: Sequence[str], height: float) -> str:
    name = escape(title, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _legend(names: Sequence[tuple[str, str]]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(f'<span><i class="key {style}"></i>{escape(name)}</span>' for name, style in names)
    return f'<div class="legend">{items}</div>'


def _frame(
    x_axis: tuple[float, float],
    y_axis: tuple[float, float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> str:
    parts = []
    for tick in _ticks(y_axis, 5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(x_axis, 5):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _axis(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    return low - 0.5, high + 0.5


def _scale(axis: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    low, high = axis
    factor = (end - start) / (high - low)
    return lambda value: start + (value - low) * factor


def _ticks(axis: tuple[float, float], about: int) -> list[float]:
    """Round numbers inside the axis, about so many."""
    low, high = axis
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"
