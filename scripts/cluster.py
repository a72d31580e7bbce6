"""
The offline loop as pods, on a cluster of one machine: `make cluster`.

Images are built and loaded into kind, the chart is installed, and one job runs a month of flights_offline by
`airflow dags test`; each of its steps is a pod. Nothing is asked of a registry but the images' bases.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "helm" / "airloop"
JOB = Path(__file__).with_name("cluster_loop.yaml")
NAME = "airloop"
"""Of the kind cluster, the namespace and the release."""
IMAGES = ("airloop/control:kind", "airloop/payload:kind")
WITHIN_S = 3600
LOOK_S = 2.0
"""Seconds after which a job knows of its container's end."""

PROGRAMS = {
    "docker": "install Docker with buildx, and start it: https://docs.docker.com/engine/install/",
    "kind": "install kind: https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "kubectl": "install kubectl: https://kubernetes.io/docs/tasks/tools/",
    "helm": "install Helm 3.10 or newer: https://helm.sh/docs/intro/install/",
}


class ClusterError(Exception):
    """The cluster cannot be had, or the loop on it did not end well; the message says why and what to do."""


def check_programs() -> None:
    """:raises ClusterError: something that is needed is not there."""
    missing = [f"{name} is missing: {what}" for name, what in PROGRAMS.items() if shutil.which(name) is None]
    if missing:
        without = "Without a cluster, `make demo` runs the same loop as local processes."
        raise ClusterError("\n".join(["make cluster needs more than is here.", *missing, without]))
    for command, what in (
        (["docker", "info"], "docker is installed, and its server does not answer: {}\nstart it, then try again"),
        (
            ["docker", "buildx", "version"],
            "docker has no buildx: {}\ninstall it: https://docs.docker.com/build/install-buildx/",
        ),
    ):
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            said = (asked.stderr.strip() or "it gave no reason").splitlines()[-1]
            raise ClusterError(what.format(said))


def logical_date(month: date) -> date:
    """
    What `airflow dags test` is told for a month to be its run's data interval.

    It takes the last interval that had ended by then; the second day is after the month's end in any time zone.
    """
    return (month.replace(day=28) + timedelta(days=5)).replace(day=2)


def up(month: date) -> None:
    """
    Make what is not there yet, and run the loop.

    :param month: a day of a month of 2013.
    :raises ClusterError: something did not come up, or the loop failed.
    """
    check_programs()
    _run("docker", "buildx", "bake", "--file", "docker-bake.hcl", "kind")
    if NAME not in _read("kind", "get", "clusters").split():
        _run("kind", "create", "cluster", "--name", NAME, "--wait", "180s")
    else:
        # Another's kube config, or one from which it was taken out, does not know it.
        _run("kind", "export", "kubeconfig", "--name", NAME)
    _run("kind", "load", "docker-image", "--name", NAME, *IMAGES)
    # Not --wait: a claim is bound by the first pod that uses it, and that is the loop's.
    values = str(CHART / "values-kind.yaml")
    where = ["--kube-context", f"kind-{NAME}", "--namespace", NAME]
    _run("helm", "upgrade", "--install", NAME, str(CHART), *where, "--create-namespace", "--values", values)
    # In the foreground: a loop that was broken off must not go on beside the new one.
    _kubectl("delete", "job", "airloop-loop", "--ignore-not-found", "--wait", "--cascade=foreground")
    manifest = JOB.read_text().replace("LOGICAL_DATE", logical_date(month).isoformat())
    _run("kubectl", *_where(), "apply", "--filename", "-", told=manifest)
    _follow()


def down() -> None:
    """Remove the cluster with all that is on it. :raises ClusterError: it cannot be removed."""
    check_programs()
    _run("kind", "delete", "cluster", "--name", NAME)


def _follow() -> None:
    """Show the loop's log until its job has ended. :raises ClusterError: it failed, or never ends."""
    begun = time.monotonic()
    shown: list[str] = []
    said = ""
    while True:
        # The log ends when its container does, or when the connection is lost; then only what is new is of interest.
        logs = ["kubectl", *_where(), "logs", "--follow", *shown, "job/airloop-loop"]
        asked = subprocess.run(logs, stderr=subprocess.PIPE, text=True, check=False)
        if asked.returncode == 0:
            shown = ["--tail", "1"]
        elif asked.stderr != said:
            # Why there is none yet: its image, its volume.
            said = asked.stderr
            print(said.strip(), file=sys.stderr, flush=True)
        time.sleep(LOOK_S)
        states = "jsonpath={.status.succeeded}/{.status.failed}"
        done = _read("kubectl", *_where(), "get", "job", "airloop-loop", "--output", states)
        succeeded, _, failed = done.partition("/")
        if succeeded:
            _kubectl("get", "pods", "--selector", "app.kubernetes.io/component=step", "--output", "wide")
            return
        if failed:
            _kubectl("get", "pods", "--output", "wide")
            raise ClusterError(f"the loop failed; its log is above, and: kubectl {' '.join(_where())} describe pods")
        if time.monotonic() - begun > WITHIN_S:
            raise ClusterError(f"the loop has not ended after {WITHIN_S} s: kubectl {' '.join(_where())} describe pods")


def _where() -> list[str]:
    return ["--context", f"kind-{NAME}", "--namespace", NAME]


def _kubectl(*arguments: str) -> None:
    _run("kubectl", *_where(), *arguments)


def _run(*command: str, told: str | None = None) -> None:
    print(f"$ {' '.join(command)}", flush=True)
    code = subprocess.run(command, cwd=REPOSITORY, input=told, text=True, check=False).returncode
    if code:
        raise ClusterError(f"`{' '.join(command)}` ended with {code}; its output is above")


def _read(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="up", choices=["up", "down"])
    parser.add_argument(
        "--month",
        type=date.fromisoformat,
        default=date(2013, 1, 1),
        help="a day of a month of 2013; default 2013-01-01",
    )
    arguments = parser.parse_args()
    if arguments.month.year != 2013:
        parser.error(f"argument --month: the flights are of 2013, not of {arguments.month.year}")
    try:
        if arguments.what == "down":
            down()
        else:
            up(arguments.month)
            print(f"The cluster stays: `kubectl {' '.join(_where())} get pods`; `make cluster ARGS=down` removes it.")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the cluster stays: `make cluster ARGS=down` removes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
