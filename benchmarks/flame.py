"""
Where a piece of work spends its time, as a flame graph: ``--flames FOLDER`` of every benchmark.

The main thread's Python stack is looked at every few milliseconds from another thread. Time in native code counts for
the function that called it; other native threads are not seen.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any, Self

EVERY_S = 0.005
WIDTH, LINE = 1200, 17
LEAST = 0.002
"""Share of all samples below which a frame is not drawn."""


class Sampler:
    """Samples the main thread between ``with`` and its end."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        main = threading.main_thread().ident
        while not self._stop.wait(EVERY_S):
            frame = sys._current_frames().get(main or 0)
            if frame is not None:
                self._stacks[_names(frame)] += 1

    def svg(self, title: str) -> str:
        """The graph: wider is longer; what is called stands above its caller."""
        tree = _tree(self._stacks)
        depth = max((len(s) for s in self._stacks), default=0) + 2
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {depth * LINE}" font-family="monospace" '
            f'font-size="11"><title>{escape(title)}</title>'
        ]
        _draw(parts, title, tree, 0.0, 0, depth, max(tree["count"], 1))
        return "\n".join([*parts, "</svg>\n"])


def _names(frame: FrameType | None) -> tuple[str, ...]:
    """The stack, outermost first, without this benchmark's own frames."""
    found = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "?")
        if module not in ("runpy", "__main__", "benchmarks.common"):
            found.append(f"{module}:{frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(reversed([name for name in found if not name.startswith("importlib._bootstrap")]))


def _tree(stacks: Counter[tuple[str, ...]]) -> dict[str, Any]:
    root: dict[str, Any] = {"count": 0, "below": {}}
    for stack, count in stacks.items():
        node = root
        node["count"] += count
        for name in stack:
            node = node["below"].setdefault(name, {"count": 0, "below": {}})
            node["count"] += count
    return root


def _draw(
    parts: list[str], name: str, node: dict[str, Any], left: float, level: int, depth: int, all_of_it: int
) -> None:
    width = WIDTH * node["count"] / all_of_it
    top = (depth - level - 1) * LINE
    share = f"{100 * node['count'] / all_of_it:.1f}%"
    # Warm colours, the same for the same name in every graph.
    colour = f"hsl({sum(map(ord, name)) % 50},75%,65%)"
    fits = name[-int(width / 6.8) :] if width > 24 else ""
    parts.append(
        f'<g><title>{escape(name)} {share}</title><rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.5):.1f}" '
        f'height="{LINE - 1}" fill="{colour}"/><text x="{left + 3:.1f}" y="{top + 12}">{escape(fits)}</text></g>'
    )
    for below, child in sorted(node["below"].items(), key=lambda item: -item[1]["count"]):
        if child["count"] / all_of_it >= LEAST:
            _draw(parts, below, child, left, level + 1, depth, all_of_it)
            left += WIDTH * child["count"] / all_of_it


def draw(folder: str, work: str, arguments: dict[str, Any], sampler: Sampler) -> None:
    """Write the graph of one process's work."""
    # Of a path its last part tells two runs apart, unless it is a temporary folder's.
    values = [Path(str(v)).name for v in arguments.values() if isinstance(v, str | int)]
    values = [v for v in values if not v.startswith("airloop-")]
    name = "-".join([work.removeprefix("benchmarks.").replace(":", "-"), *values])
    path = Path(folder) / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sampler.svg(name))
