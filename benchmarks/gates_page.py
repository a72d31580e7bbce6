"""The tables and the chart of docs/explain/gates.md, from ``benchmarks/results/gates.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY
from benchmarks.worlds import LEAKS

DOCS = REPOSITORY / "docs" / "explain" / "gates.md"
CHART = REPOSITORY / "docs" / "images" / "power.svg"


def publish(results: dict[str, Any]) -> None:
    """Put the tables into docs/explain/gates.md, each between two comments that name it, and draw the power curve."""
    text = DOCS.read_text()
    for name, lines in tables(results).items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{lines}\n\n{end}{after}"
    DOCS.write_text(text)
    if "promotion" in results:
        CHART.write_text(power_chart(results["promotion"]["power"]))


def tables(results: dict[str, Any]) -> dict[str, str]:
    found = {}
    if "promotion" in results:
        found["same quality"] = _markdown(
            ["rows", "days", "world", "promoted", "95 % interval"],
            [[f"{r['rows']:,}", r["days"], _world(r), f"{r['hits']} of {r['trials']:,}", _interval(r)]
             for r in results["promotion"]["same"]],
        )  # fmt: skip
        found["power"] = _grid(results["promotion"]["power"], "margin", lambda m: f"+{m:g}")
    if "drift" in results:
        found["undrifted"] = _markdown(
            ["window", "false alarms", "95 % interval"],
            [[_window(r), f"{r['hits']} of {r['trials']:,}", _interval(r)] for r in results["drift"]["undrifted"]],
        )
        found["alike"] = _by_days(results["drift"]["alike"], "the day's share", "{alike:.0%}", "{hits} of {trials}")
        found["shifts"] = _grid(results["drift"]["power"], "shift", str)
        found["shifts of days"] = _by_days(
            results["drift"]["power_alike"], "shift, the day's share", "{shift}, {alike:.0%}", "{rate:.0%}"
        )
    if "leakage" in results:
        clean = results["leakage"]["clean"]
        found["clean"] = f"Clean sets refused: {clean['hits']} of {clean['trials']:,} ({_interval(clean)})."
        planted = results["leakage"]["planted"]
        names = dict.fromkeys(r["leak"] for r in planted)
        found["planted"] = _markdown(
            ["planted", "what it is", "found, 20 to 399 rows of the rarer class", "found, 400 or more"],
            [[name, LEAKS[name], *(_of(r) for r in planted if r["leak"] == name)] for name in names],
        )
    if "trained" in results:
        found["trained"] = _markdown(
            ["champion", "true gain, mean and standard deviation", "promoted", "of these not truly better"],
            [
                [name, f"{r['gain_mean']:+.4f} ± {r['gain_sd']:.4f}", _of(r), r["not_better"]]
                for name, r in results["trained"].items()
            ],
        )
    return found


def _of(row: dict[str, Any]) -> str:
    return f"{row['hits']} of {row['trials']}"


def _interval(row: dict[str, Any]) -> str:
    return f"{row['low']:.1%} … {row['high']:.1%}"


def _world(row: dict[str, Any]) -> str:
    said = [row["policy"].get("metric", "")]
    said += [f"correlation {row['correlation']:g}"] if "correlation" in row else []
    said += ["half of a model's own noise is its day's"] if row.get("day_share") == 0.5 else []
    said += ["single rows as clusters"] if row["clusters"] == "row" else []
    return "; ".join(filter(None, said)) or "as above"


def _window(row: dict[str, Any]) -> str:
    said = f"{row['rows']:,} rows"
    said += f" against {row['reference_rows']:,}" if "reference_rows" in row else ""
    said += f" of {row['days']} days" if "days" in row else ""
    said += f", the day's share {row['alike']:.0%}" if "alike" in row else ""
    said += f", **and a day is like the one before (correlation {row['lasting']:g})**" if "lasting" in row else ""
    said += ", no limit to the index" if "psi_limit" in row else ""
    return said + ("" if row.get("clustered", True) else ", **and the gate is not told the days**")


def _by_days(rows: list[dict[str, Any]], heading: str, name: str, cell: str) -> str:
    """A line for each ``name``, a column for each number of days; both are formats of a result."""
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda r: float(r["days"])):
        lines.setdefault(name.format(**row), []).append(cell.format(**row))
    order = dict.fromkeys(name.format(**row) for row in rows)
    spans = sorted({r["days"] for r in rows})
    return _markdown([heading, *(f"{days} days" for days in spans)], [[n, *lines[n]] for n in order])


def _grid(rows: list[dict[str, Any]], by: str, text: Callable[[Any], str]) -> str:
    sizes = sorted({r["rows"] for r in rows})
    names = dict.fromkeys(r[by] for r in rows)
    rates = {(r[by], r["rows"]): f"{r['rate']:.0%}" for r in rows}
    return _markdown(
        [by, *(f"{size:,} rows" for size in sizes)], [[text(n), *(rates[n, size] for size in sizes)] for n in names]
    )


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def power_chart(rows: list[dict[str, Any]]) -> str:
    """Share of promotions over held-out rows, a line for each margin, as an SVG of its own."""
    left, top, width, height = 52, 16, 520, 240
    sizes = sorted({r["rows"] for r in rows})
    margins = sorted({r["margin"] for r in rows})

    def x(size: int) -> float:
        return left + width * np.log(size / sizes[0]) / np.log(sizes[-1] / sizes[0])

    def y(rate: float) -> float:
        return top + height * (1 - rate)

    parts = []
    for rate in (0, 0.25, 0.5, 0.75, 0.95, 1):
        dash = ' stroke-dasharray="4 3"' if rate == 0.95 else ""
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y(rate):.1f}" y2="{y(rate):.1f}"{dash}/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.0%}</text>')
    for size in sizes:
        parts.append(f'<text x="{x(size):.1f}" y="{top + height + 20}" text-anchor="middle">{size:,}</text>')
    for number, margin in enumerate(margins):
        points = [(x(r["rows"]), y(r["rate"])) for r in sorted(rows, key=lambda r: r["rows"]) if r["margin"] == margin]
        shade = 25 + 50 * number / max(1, len(margins) - 1)
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="hsl(175 65% {shade:.0f}%)" stroke-width="2"/>')
        # Named where the line is half way up, beside it.
        a, b = min(points, key=lambda p: abs(p[1] - y(0.5)))
        parts.append(f'<text x="{a + 8:.1f}" y="{b + 14:.1f}" fill="hsl(175 65% {shade:.0f}%)">+{margin:g}</text>')
    style = "text{font:12px sans-serif;fill:#808080}.grid{stroke:#80808055}"
    label = (
        f'<text x="{left + width / 2}" y="{top + height + 42}" text-anchor="middle">held-out rows, of 28 days</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {top + height + 52}" role="img">'
        f"<title>Share of promotions by held-out rows and true gain in ROC AUC</title><style>{style}</style>"
        f"{''.join(parts)}{label}</svg>\n"
    )
