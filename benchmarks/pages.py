"""The table of results in ``docs/benchmarks.md``, written from ``benchmarks/results/*.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "benchmarks.md"
BEGIN = "<!-- results: written by benchmarks/pages.py -->"
END = "<!-- end of results -->"

HEAD = ("work", "size", "ours", "peer", "peer's time", "ratio", "memory", "peer's", "target", "met")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as texts."""
    met = {True: "yes", False: "**missed**", None: ""}[row["met"]]
    target = row["target"]
    return (
        row["work"],
        row["size"],
        _seconds(row["ours_s"]),
        row["peer"],
        _seconds(row["peer_s"]),
        "" if row["ratio"] is None else f"{row['ratio']:g}",
        _memory(row["ours_mb"]),
        _memory(row["peer_mb"]),
        target,
        met,
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.3g} ms" if value < 0.1 else f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"


def _memory(value: float | None) -> str:
    return f"{value:,} MB" if value else ""


def rendered(results: Path = RESULTS) -> str:
    """All results: one table each, with its command and its machine."""
    parts = []
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if "rows" not in result:
            # Rates of error, not times: they have a page of their own.
            continue
        about = result["machine"]
        numeric = (2, 4, 5, 6, 7)
        used = [i for i in range(len(HEAD)) if any(cells(r)[i] for r in result["rows"])]
        lines = [
            f"### {path.stem}",
            "",
            f"`{result['command']}`, {result['measured']}: {about['processors']} processors, "
            f"{about['memory_gib']} GiB, Python {about['python']}, load {about['load_before']:g} before, "
            f"medians of {result['runs']}.",
            "",
            "| " + " | ".join(HEAD[i] for i in used) + " |",
            "|" + "|".join("---:" if i in numeric else "---" for i in used) + "|",
            *("| " + " | ".join(cells(r)[i] for i in used) + " |" for r in result["rows"]),
            "",
        ]
        lines += _where_time_goes(result.get("tasks") or {})
        notes = [f"- {r['work']}, {r['size']}: {r['note']}" for r in result["rows"] if r["note"]]
        parts.append("\n".join([*lines, *notes, ""] if notes else lines))
    return "\n".join(parts)


def _where_time_goes(tasks: dict[str, dict[str, float]]) -> list[str]:
    """The parts of each task's time, in seconds."""
    if not tasks:
        return []
    parts = ("queue_s", "airflow_s", "start_s", "payload_s", "total_s", "plain_s")
    heads = ("queue", "airflow", "start", "payload", "in all", "plain")
    return [
        "| task, s | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(heads),
        *(f"| {name} | " + " | ".join(f"{t[part]:.2f}" for part in parts) + " |" for name, t in tasks.items()),
        "",
    ]


def page(text: str, results: Path = RESULTS) -> str:
    """The page with the results of now between its marks."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{head}{BEGIN}\n\n{rendered(results)}\n{END}{tail}"


def write_page() -> None:
    """Bring the page up to date."""
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    write_page()
