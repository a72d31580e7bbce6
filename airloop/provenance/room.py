"""Where a replay works: for each task a home of its own, beside the original and never in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from airloop.config import Config, S3Address
from airloop.contract import ENV_CALL, ENV_LOG_FORMAT, ENV_RECEIPT, Call, Interval, Receipt, RunInfo
from airloop.errors import ContractBroken, NotFound
from airloop.frame.archive import FEATURES, PYTHON, unpack
from airloop.provenance.fork import fork, snapshots_of
from airloop.records import REDO, parse
from airloop.registry.refs import DecisionRef, ModelRef
from airloop.warehouse import tree
from airloop.warehouse.artifacts import ArtifactStore, sha256
from airloop.warehouse.commit import KEY, MODE
from airloop.warehouse.refs import TableRef
from airloop.warehouse.tree import REPLAYS

if TYPE_CHECKING:
    from airloop.provenance.runs import Task

LINES = 15
"""Of a failed task's log that are shown."""
ASK = "import sys; from airloop.steps import load; print(load(sys.argv[1]).acts)"


class Room:
    """The scratch state of one replay."""

    def __init__(self, config: Config, folder: Path) -> None:
        """
        :param folder: empty; everything that is made comes there, but for tables whose originals are in a bucket: they
            read the originals' files in place, and come below a prefix of their own there.
        """
        self.config = config
        self.folder = folder
        self._prefix = f"{config.warehouse}/{REPLAYS}/{uuid4().hex}" if isinstance(config.warehouse, S3Address) else ""
        self.tolerance = 0.0
        """The widest that a trainer of this replay states."""
        self._models: dict[str, str] = {}
        """The replay's own models, by the reference of the original."""

    def clear(self) -> None:
        """Remove what was made in a bucket; the folder is its owner's."""
        if self._prefix:
            tree.remove([file.path for file in tree.below(self._prefix)])

    def config_of(self, task: Task) -> Config:
        """The configuration that a task runs with."""
        return Config.from_environment(self._settings(task))

    def acts(self, task: Task) -> str:
        """What the task's step, by the code of then, says that it does beside its results; empty: nothing."""
        command = [sys.executable, "-P", "-c", ASK, task.call_name]
        asked = subprocess.run(
            command, env=self._environment(task), cwd=self.folder, capture_output=True, text=True, check=False
        )
        # What cannot be loaded cannot be run either; its log says why.
        return asked.stdout.strip() if asked.returncode == 0 else ""

    def run(self, task: Task) -> dict[str, Any] | str:
        """
        Run a task again.

        :returns: its new manifest; or, if it did not get to an end, why.
        :raises NotFound: something that it needs is not there.
        """
        config = self.config_of(task)
        self._fork_tables(task, config)
        arguments = _replaced(task.manifest["arguments"], self._replacements(task, config))
        interval = task.record.get("interval")
        call = Call(
            step=task.call_name,
            arguments=arguments,
            run=RunInfo(**task.record["run"]),
            interval=Interval.parse(interval) if interval else None,
        )
        receipt_path = config.home / "receipt.json"
        environment = self._environment(task) | {
            ENV_CALL: call.to_json(),
            ENV_RECEIPT: str(receipt_path),
            ENV_LOG_FORMAT: "text",
        }
        log_path = config.home / "log.txt"
        with log_path.open("wb") as log:
            done = subprocess.run(
                # -P: neither the current folder nor the installed package comes before the archived one.
                [sys.executable, "-P", "-m", "airloop", "run", call.step],
                env=environment, cwd=config.home, stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode:
            lines = log_path.read_text(errors="replace").splitlines()[-LINES:]
            return f"exit code {done.returncode}: " + "\n".join(lines)
        made = _manifest(Receipt.from_json(receipt_path.read_text()))
        if made["code"]["modules"] != task.manifest["code"]["modules"]:
            raise ContractBroken(
                f"the code that ran for {task.task_id} is not that of the run",
                "is PYTHONSAFEPATH or a .pth file at work?",
            )
        self._models |= zip(task.made("model").values(), _models(made), strict=False)
        return made

    def original(self, ref: TableRef) -> Config:
        """The configuration with which what a run had made can be read: the replay's, if another tool expired it."""
        from airloop.reference import Scope
        from airloop.warehouse.catalog import Warehouse

        if ref.exists(Scope(self.config)):
            return self.config
        home = self.folder / "then" / str(ref.snapshot)
        then = Config.from_environment({"AIRLOOP_HOME": str(home), **self._tables(home.name)})
        at = ref.snapshot or 0
        if not Warehouse.open(then).exists(ref.name):
            fork(Warehouse.open(self.config).table(ref.name), then, snapshots=[at], main=0, as_of=at)
        return then

    def bundle(self, config: Config, manifest: Mapping[str, Any]) -> Path:
        """
        Folder of the model that a training made.

        :raises NotFound: it is gone.
        """
        address = str(manifest["links"].get("bundle", ""))
        # The store may have moved since; what is below its root has not.
        name = "steps" + unquote(urlsplit(address).path).rpartition("/steps")[2]
        store = ArtifactStore(config.artifacts)
        path = store.objects.local(name, self.folder / "bundles" / str(manifest["key"])) if address else None
        if path is None or not path.is_dir():
            raise NotFound(
                f"the model of step {manifest['step']} is gone from {store}/{name}", "restore it from a backup"
            )
        return path

    def _environment(self, task: Task) -> dict[str, str]:
        """Of a process that runs the task's code."""
        others = {n: v for n, v in os.environ.items() if not n.startswith("AIRLOOP_")}
        return others | self._settings(task) | {"PYTHONPATH": str(self._code(task) / PYTHON)}

    def _settings(self, task: Task) -> dict[str, str]:
        home = self.folder / quote(task.task_id, safe="")
        home.mkdir(exist_ok=True)
        return {
            "AIRLOOP_HOME": str(home),
            "AIRLOOP_MLFLOW": f"sqlite:///{self.folder / 'mlflow.db'}",
            "AIRLOOP_MLFLOW_ARTIFACTS": str(self.folder / "mlflow"),
            "AIRLOOP_FEATURE_REPO": str(self._tree(task) / FEATURES),
            "AIRLOOP_THREADS": str(task.manifest.get("threads", self.config.threads)),
            "AIRLOOP_MEMORY_MB": str(self.config.memory_mb),
            "AIRLOOP_ROWS_PER_CHUNK": str(self.config.rows_per_chunk),
            **self._tables(task.task_id),
        }

    def _tables(self, name: str) -> dict[str, str]:
        """Where the tables of one task's home are, if not in it."""
        # The name may be any text.
        return {"AIRLOOP_WAREHOUSE": f"{self._prefix}/{sha256(name.encode())[:12]}"} if self._prefix else {}

    def _tree(self, task: Task) -> Path:
        return self.folder / "code" / str(task.manifest["code"]["tree"])

    def _code(self, task: Task) -> Path:
        place = self._tree(task)
        if not place.exists():
            unpack(ArtifactStore(self.config.artifacts), place.name, place)
        return place

    # --- inputs

    def _fork_tables(self, task: Task, config: Config) -> None:
        from airloop.warehouse.catalog import Warehouse

        warehouse = Warehouse.open(self.config)
        given: dict[str, list[int]] = {}
        for text in task.inputs("table"):
            ref = TableRef.parse(text)
            given.setdefault(ref.name, []).append(ref.snapshot or 0)
        made = {ref.name: ref.snapshot or 0 for ref in map(TableRef.parse, task.made("table").values())}
        for name in sorted({*given, *made}):
            table = warehouse.table(name)
            at = made.get(name, 0)
            snapshots = [s for s in given.get(name, []) if s]
            base = self._base(task, name, at) if at else 0
            fork(table, config, snapshots=snapshots, main=base, as_of=at or max(snapshots, default=0))

    def _base(self, task: Task, name: str, made: int) -> int:
        """What a table's ``main`` was when the task began to write ``made``."""
        from airloop.warehouse.catalog import Warehouse
        from airloop.warehouse.expired import parents

        table = Warehouse.open(self.config).table(name)
        snapshot = snapshots_of(table, [made])[made]
        properties = snapshot.summary.additional_properties if snapshot.summary else {}
        if properties.get(KEY, "").partition(":")[0] != task.manifest["key"]:
            # It found the rows there already.
            return made
        parent = snapshot.parent_snapshot_id or parents(table).get(made, 0)
        if parent not in {0, *snapshots_of(table, [parent])}:
            if properties.get(MODE) == "replace":
                # Nothing of what it wrote on was kept.
                return 0
            raise NotFound(
                f"{name} has no snapshot {parent}, which task {task.task_id} wrote on", "it has expired, or was erased"
            )
        return parent

    def _replacements(self, task: Task, config: Config) -> dict[str, str]:
        """References that mean something else here, by the path of the argument."""
        found = {}
        for path, given in task.manifest["inputs"].items():
            reference = str(given["reference"])
            if given["kind"] == "model":
                found[path] = self._model(ModelRef.parse(reference))
            elif given["kind"] == "decision":
                name = DecisionRef.parse(reference).name
                content = ArtifactStore(self.config.artifacts).read_bytes(name)
                ArtifactStore(config.artifacts).publish_bytes(name, content)
                found[path] = reference
            elif given["kind"] not in ("table", "feature_service"):
                raise NotFound(f"{path} of task {task.task_id} is {reference}, which is not kept", "leave the task out")
        return found

    def _model(self, ref: ModelRef) -> str:
        """A model that a task was given: the rebuilt one, or a copy of the original in the replay's MLflow."""
        from airloop.training import tracking

        if ref.absent:
            return str(ref)
        if str(ref) in self._models:
            return self._models[str(ref)]
        run_id = ref.run_id
        client = tracking.client(self.config)
        with tracking.guarded(self.config):
            run_id = run_id or str(client.get_model_version(ref.name, str(ref.version)).run_id)
            tags = client.get_run(run_id).data.tags
        scratch = Config.from_environment(
            {
                "AIRLOOP_HOME": str(self.folder),
                "AIRLOOP_MLFLOW": f"sqlite:///{self.folder / 'mlflow.db'}",
                "AIRLOOP_MLFLOW_ARTIFACTS": str(self.folder / "mlflow"),
            }
        )
        model_id = tracking.logged_model_id(self.config, run_id)
        files = tracking.download_model(self.config, model_id, self.folder / "brought" / run_id)
        copied, _ = tracking.log_run(
            scratch,
            experiment=tracking.experiment_id(scratch, "given"),
            name=str(ref),
            tags={name: tags[name] for name in (tracking.KEY_TAG, tracking.BUNDLE_TAG) if name in tags},
            parameters={},
            curves={},
            metrics={},
            datasets=[],
            model=files,
        )
        self._models[str(ref)] = f"model:/run/{copied}"
        return self._models[str(ref)]


def _replaced(value: Any, new: Mapping[str, str], path: str = "") -> Any:
    """The same arguments with those at some paths replaced."""
    if path in new:
        return new[path]
    if isinstance(value, Mapping):
        return {k: _replaced(v, new, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, new, f"{path}[{i}]") for i, v in enumerate(value)]
    return value


def _manifest(receipt: Receipt) -> dict[str, Any]:
    return parse(Path(unquote(urlsplit(receipt.manifest).path)).read_bytes(), f"manifest {receipt.manifest}", REDO)


def _models(manifest: Mapping[str, Any]) -> list[str]:
    given = {i["reference"] for i in manifest["inputs"].values()}
    made = (o for o in manifest["outputs"].values() if o["kind"] == "model")
    return [o["reference"] for o in made if o["reference"] not in given]
