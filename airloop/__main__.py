"""``python -m airloop``: a step's process if the environment holds a call, else the command line."""

from __future__ import annotations

import os
import sys

from airloop.contract import ENV_CALL


def main() -> int:
    """:returns: the exit code."""
    if len(sys.argv) == 3 and sys.argv[1] == "run" and ENV_CALL in os.environ:
        from airloop import payload

        payload.run(sys.argv[2])
    from airloop.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
