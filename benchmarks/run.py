"""
Run all benchmarks, or those that are named, one after another.

    python -m benchmarks.run [--check] [--quick] [NAME …] [-- OPTIONS OF EACH]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.common import REPOSITORY

NAMES = ("parse", "validate", "extract", "upsert", "join", "materialize", "online", "thousand", "loop")
"""In this order. How often the gates are wrong is measured by benchmarks/gates.py, which has a page of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default all")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="small and once, to see that they work")
    given, rest = sys.argv[1:], []
    if "--" in given:
        at = given.index("--")
        given, rest = given[:at], given[at + 1 :]
    arguments = parser.parse_args(given)
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    flags = ["--check"] * arguments.check + ["--quick"] * arguments.quick
    bad = []
    for name in arguments.names or NAMES:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, *rest]
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
            bad.append(name)
    if bad:
        print(f"missed or failed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
