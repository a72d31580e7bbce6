"""
Whether the program of a control-plane container is well; the exit code says it: 0 or 1.

It looks at what process 1 is. A program that it does not know, such as a worker's single task, is well while it runs.
In a cluster the charts' own probes ask; this is for `docker run`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

WITHIN_S = 15
PAGES = {"api-server": (8080, "/api/v2/monitor/health"), "mlflow": (5000, "/health")}
"""By program: its default port, and the page that says how it is."""
JOBS = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob", "dag-processor": "DagProcessorJob"}


def check(command: list[str]) -> int:
    """
    :param command: program and arguments of process 1.
    :returns: 0 if it is well, else 1.
    """
    # ["/opt/…/python", "/opt/…/bin/airflow", "scheduler"], or what a program calls itself when it has started:
    # "airflow api_server -- host:0.0.0.0 port:8080".
    line = " ".join(command)
    words = {Path(word).name.replace("_", "-") for word in line.split()}
    for name, (port, page) in PAGES.items():
        if name in words:
            told = re.search(r"\bport[:= ](\d+)", line)
            return _answers(f"http://127.0.0.1:{told[1] if told else port}{page}")
    for name, job in JOBS.items():
        if name in words:
            asked = subprocess.run(["airflow", "jobs", "check", "--job-type", job, "--local"], check=False)
            return int(asked.returncode != 0)
    return 0


def _answers(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=WITHIN_S) as answer:
            return int(answer.status != 200)
    except OSError as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(check(Path("/proc/1/cmdline").read_text().split("\0")))
