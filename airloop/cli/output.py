"""How the command line speaks: tables and sentences for people, JSON for scripts, colours only on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from airloop.errors import AirloopError

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


class Output:
    """Where a command's answer goes."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, if this is a terminal."""
        return f"\033[{_COLOURS[colour]}m{text}\033[0m" if self._colour else text

    def say(self, text: str = "") -> None:
        """A line for people; scripts do not see it."""
        if not self.as_json:
            print(text)

    def data(self, value: Any) -> None:
        """The answer for scripts; people do not see it."""
        if self.as_json:
            print(json.dumps(value, indent=1, default=str, allow_nan=False))

    def rows(self, rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
        """A table for people, a list of objects for scripts."""
        if self.as_json:
            self.data(list(rows))
            return
        if not rows:
            print(empty)
            return
        names = list(rows[0])
        cells = [[_cell(row.get(name)) for name in names] for row in rows]
        right = [all(isinstance(row.get(n), int | float | type(None)) for row in rows) for n in names]
        widths = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]
        # The last column takes what is left of the line.
        width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
        used = sum(widths[:-1]) + 2 * (len(widths) - 1)
        widths[-1] = max(12, min(widths[-1], width - used))

        def line(parts: Sequence[str]) -> str:
            fitted = [p if len(p) <= w else p[: w - 1] + "…" for p, w in zip(parts, widths, strict=True)]
            return "  ".join(
                p.rjust(w) if r else p.ljust(w) for p, w, r in zip(fitted, widths, right, strict=True)
            ).rstrip()

        print(self.paint(line(names), "bold"))
        for parts in cells:
            print(line(parts))

    def error(self, error: AirloopError) -> None:
        """An error on one screen: what was found, then what to do."""
        if self.as_json:
            document = {"error": type(error).__name__, "found": error.found, "advice": error.advice}
            print(json.dumps(document | {"exit_code": error.exit_code}), file=sys.stderr)
            return
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        head = "\033[31merror:\033[0m" if colour else "error:"
        print(f"{head} {error.found}", file=sys.stderr)
        if error.advice:
            print(f"       {error.advice}", file=sys.stderr)

    def unexpected(self, error: Exception) -> None:
        """An error that nobody expected: where it happened, on one screen; all of it with ``AIRLOOP_DEBUG=1``."""
        frames = traceback.format_exception(error)
        if self.as_json:
            found = f"{type(error).__name__}: {error}"
            print(json.dumps({"error": "unexpected", "found": found, "exit_code": 1}), file=sys.stderr)
            return
        lines = "".join(frames).splitlines()
        if len(lines) > 20 and not os.environ.get("AIRLOOP_DEBUG"):
            lines = ["… (AIRLOOP_DEBUG=1 shows all of it)", *lines[-18:]]
        print("\n".join(lines), file=sys.stderr)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ")
