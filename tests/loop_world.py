"""Two loops as runs leave them behind: records, manifests, reports and the ledger, written through their own APIs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from airloop import usage
from airloop.config import Config
from airloop.contract import Interval, Receipt, RunInfo, attempt_id
from airloop.frame.logs import Redactor
from airloop.frame.manifest import publish_attempt, publish_manifest
from airloop.frame.step import manifest_folder
from airloop.warehouse.artifacts import ArtifactStore, sha256

QUIET = Redactor([])
MONTHS = [datetime(2013, m, 1, 5 if m < 4 else 4, tzinfo=UTC) for m in (1, 2, 3, 4)]
PAGE = b"<!doctype html><title>Report</title><h1>March 2013</h1><a href='index.html'>All</a><script>alert(1)</script>"


def month(number: int) -> Interval:
    """A New York month of 2013."""
    return Interval(MONTHS[number - 1], MONTHS[number])


@dataclass
class World:
    """Writes what steps would."""

    config: Config

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.artifacts)

    def task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        step: str,
        *,
        interval: Interval | None = None,
        minute: int = 0,
        made: Mapping[str, Any] | None = None,
        error: tuple[str, str] | None = None,
        reuse: tuple[str, str] | None = None,
    ) -> str:
        """
        One ended task; returns the manifest's name, empty if it failed.

        :param made: what its manifest holds beyond the usual.
        :param error: status and message, instead of a manifest.
        :param reuse: DAG and run whose task of the same id it reuses.
        """
        run = RunInfo(dag_id, run_id, task_id)
        at = datetime(2026, 11, 21, 21, minute, tzinfo=UTC).isoformat(timespec="milliseconds")
        key = sha256("/".join((*(reuse or (dag_id, run_id)), task_id)).encode())
        record: dict[str, Any] = {
            "step": step, "run": asdict(run), "interval": interval.as_json() if interval else None, "host": "here",
            "started_at": at, "finished_at": at, "seconds": {"run": 1.5}, "key": key, "arguments": {},
        }  # fmt: skip
        attempt = attempt_id(run, minute)
        if error is not None:
            record["error"] = {"class": "RejectedRows", "type": "RejectedRows", "message": error[1]}
            publish_attempt(self.store, Receipt(attempt, error[0], key), record, QUIET)
            return ""
        name = f"{manifest_folder(step, key)}/manifest.json"
        if reuse is not None:
            record["reused"] = {"made_at": at, "made_by": asdict(RunInfo(*reuse, task_id))}
            address, digest = self.store.uri(name), sha256(self.store.read_bytes(name))
        else:
            manifest = {
                "step": step, "key": key, "attempt": attempt, "run": asdict(run), "interval": record["interval"],
                "arguments": {"seed": 0}, "inputs": {}, "outputs": {}, "counts": {}, "metrics": {}, "details": {},
                "links": {}, "changed": True, "event": None,
                "code": {"fingerprint": "ab" * 32, "modules": {"airloop.steps": "cd" * 32}, "libraries": {}},
                "python": "3.11.7", "started_at": at, "finished_at": at, "seconds": {"run": 1.5},
                "resources": {"cpu_s": 1.0, "peak_rss_bytes": 2**27},
            } | dict(made or {})  # fmt: skip
            address, digest = publish_manifest(self.store, step, key, manifest, QUIET)
        status = "reused" if reuse is not None else "done"
        publish_attempt(self.store, Receipt(attempt, status, key, address, digest), record, QUIET)
        return name

    def month(self, number: int, outcome: str, *, version: int, challenger: float, champion: float | None) -> str:
        """A whole run of the loop ``delays``, its report and its row of the ledger; returns the run id."""
        dag_id, run_id, interval = "delays", f"backfill__2013-0{number}", month(number)
        page = f"reports/{dag_id}/2013-0{number}.html"
        folder = f"steps/validate/xx/{number}/docs"

        def task(task_id: str, step: str, minute: int, **made: Any) -> str:
            return self.task(dag_id, run_id, task_id, step, interval=interval, minute=number * 8 + minute, made=made)

        task("extract", "extract", 0, counts={"rows_in": 1000, "rows_new": 990, "rows_corrected": 10})
        self.store.publish_bytes(f"{folder}/index.html", b"<!doctype html><h1>Suite: passed</h1>")
        task(
            "validate", "validate", 1, counts={"rows_checked": 1000, "rows_quarantined": 7},
            links={"docs": self.store.uri(f"{folder}/index.html")},
        )  # fmt: skip
        task(
            "train", "train", 2, outputs={"model": {"kind": "model", "reference": f"model:/run/{number:032}"}},
            details={"mlflow": {"run_id": f"{number:032}", "experiment_id": "1"}},
        )  # fmt: skip
        previous = "none" if champion is None else "1"
        task(
            "gate", "evaluate", 3,
            inputs={
                "challenger": {"kind": "model", "reference": f"model:/run/{number:032}"},
                "champion": {"kind": "model", "reference": f"model:/delay/{previous}"},
            },
            metrics={"challenger_roc_auc": challenger},
            details={"decision": decision(outcome, challenger, champion)},
        )  # fmt: skip
        alias = "champion" if outcome == "promote" else "challenger"
        live = version if outcome == "promote" else 1
        self.promote(run_id, alias, version, None if champion is None else 1, interval.end, outcome, challenger)
        task(
            "register", "register", 4,
            outputs={
                "model": {"kind": "model", "reference": f"model:/delay/{version}"},
                "champion": {"kind": "", "reference": f"model:/delay/{live}"},
            },
            details={"state": "done", "entry": {"model": "delay", "previous": None if champion is None else 1}},
        )  # fmt: skip
        drifted = [{"column": "weather__temp", "outcome": "drifted"}, {"column": "hour", "outcome": "ok"}]
        task(
            "monitor", "detect_drift", 5,
            details={"drift": {"columns": drifted}, "freshness": [], "crossed": ["weather__temp: over 0.2"]},
        )  # fmt: skip
        self.store.publish_bytes(page, PAGE)
        self.store.publish_bytes(f"reports/{dag_id}/index.html", b"<!doctype html><h1>Delays</h1>")
        task(
            "report", "report", 6, arguments={"zone": "America/New_York", "loop": dag_id},
            links={"report": self.store.uri(page)},
        )  # fmt: skip
        return run_id

    def trained_as_pods(self) -> None:
        """February's training as its runner told it: a try that was evicted, one that ran, and a task that waits."""
        run = RunInfo("delays", "backfill__2013-02", "train")
        held = {"cpu": 4.0, "memory": 16 * 2**30, "nvidia.com/gpu": 1}
        pod = {"name": "train-0123", "namespace": "loops", "image": "airloop:1-cuda", "pods": 1}
        waits = [
            {
                "at": "2026-11-21T21:00:01.000+00:00",
                "for": "node",
                "reason": "0/3 nodes are available: 3 Insufficient <b>gpu",
            }
        ]
        events = [
            {"at": "2026-11-21T21:00:05Z", "type": "Warning", "reason": "FailedScheduling", "count": 7,
             "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"},
            {"at": "2026-11-21T21:01:00Z", "type": "Normal", "reason": "Pulled", "message": "it is here", "count": 1},
        ]  # fmt: skip

        def tell(attempt: str, status: str, error: str, began: str, **about: Any) -> None:
            usage.publish(
                self.store.objects,
                usage.document(
                    attempt=attempt, step="train", runner="pod", status=status, error=error, reserved=held,
                    started_at=f"2026-11-21T{began}:00.000+00:00",
                    finished_at=None if status == usage.OPEN else "2026-11-21T21:18:00.000+00:00", **about,
                ),
            )  # fmt: skip

        lost = pod | {
            "uid": "a", "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
            "node": "gpu-1", "over": True, "held_s": 240.0, "queue_s": 60.0, "waits": waits, "events": events,
        }  # fmt: skip
        done = pod | {
            "uid": "b", "phase": "Succeeded", "reason": "Completed", "exit_code": 0, "node": "gpu-2", "over": True,
            "image_id": "airloop@sha256:" + "ab" * 32, "held_s": 600.0, "queue_s": 0.0,
            "scheduled_at": "2026-11-21T21:08:00.000+00:00", "started_at": "2026-11-21T21:08:20.000+00:00",
        }  # fmt: skip
        used = {"size": "gpu", "pool": "gpu", "pods": 1, "lost_s": 0.0}
        tell(
            "aaaa0000", "try_again", "PodLost", "21:00", run=run,
            resources=used | {"pod_s": 240.0, "queue_s": 60.0}, pods=[lost],
        )  # fmt: skip
        tell(
            attempt_id(run, 18), "done", "", "21:08", run=RunInfo(run.dag_id, run.run_id, run.task_id, -1, 2),
            resources=used | {"pod_s": 600.0, "queue_s": 0.0}, pods=[done],
        )  # fmt: skip
        waiting = pod | {"uid": "c", "phase": "Pending", "over": False, "waits": waits, "events": events[:1]}
        tell(
            "bbbb0000", usage.OPEN, "", "21:30", run=RunInfo("delays", "backfill__2013-03", "train"),
            resources=used | {"pod_s": 0.0, "queue_s": 90.0}, pods=[waiting],
        )  # fmt: skip

    def promote(
        self, run_id: str, alias: str, version: int, previous: int | None, at: datetime, outcome: str, value: float
    ) -> None:
        """A closed row of the ledger."""
        from airloop.registry.ledger import Entry, Ledger
        from airloop.warehouse.catalog import Warehouse

        Ledger(Warehouse.open(self.config)).append(
            Entry(
                entry=f"{run_id}-{version}",
                seq=0,
                model="delay",
                alias=alias,
                version=version,
                previous=previous,
                state="done",
                moved=True,
                outcome=outcome,
                reason=f"roc_auc {value} says so",
                by="register",
                key=run_id,
                dag_id="delays",
                run_id=run_id,
                task_id="register",
                recorded_at=datetime(2026, 11, 21, 21, version, tzinfo=UTC),
                effective_at=at,
                evidence={"metric": "roc_auc", "challenger_metrics": {"roc_auc": value}},
            )
        )


def decision(outcome: str, challenger: float, champion: float | None) -> dict[str, Any]:
    """What a gate keeps of its decision."""
    gain = 0.0 if champion is None else challenger - champion
    return {
        "outcome": outcome, "reasons": [f"roc_auc {challenger} against {champion}"], "metric": "roc_auc", "rows": 600,
        "positives": 100, "clusters": 7, "challenger_metrics": {"roc_auc": challenger},
        "champion_metrics": None if champion is None else {"roc_auc": champion},
        "difference": None if champion is None else {
            "estimate": gain, "low": gain - 0.02, "high": gain + 0.02, "confidence": 0.95
        },
        "slices": [], "floors": [], "calibration": {}, "policy": {"min_gain": 0.0, "cluster": "day"},
    }  # fmt: skip


def populate(config: Config) -> World:
    """
    ``delays``: promoted in January, champion kept in February, failed in March after a reuse. ``secret``: a run that
    made one table and nothing else, and a task of it that ``delays`` reused.
    """
    world = World(config)
    world.month(1, "promote", version=1, challenger=0.68, champion=None)
    world.month(2, "keep", version=2, challenger=0.71, champion=0.70)
    world.trained_as_pods()
    table = {"outputs": {"table": {"kind": "table", "reference": "raw.planes@7"}}}
    world.task("secret", "manual__1", "planes", "extract", made=table)
    world.task(
        "secret", "manual__1", "hidden", "sql", made={"arguments": {"sql": "select '<script>alert(1)</script>'"}}
    )
    run = ("delays", "backfill__2013-03")
    world.task(*run, "planes", "extract", interval=month(3), minute=40, reuse=("secret", "manual__1"))
    world.task(
        *run, "validate", "validate", interval=month(3), minute=41,
        error=("rejected", "raw.flights: 214 of 1,000 rows break <b>between</b>"),
    )  # fmt: skip
    return world
