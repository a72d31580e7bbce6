"""
MLflow, with bounded waiting, one safe creation of its database, and errors that say whether a retry helps.

Runs are found again by the tag ``airloop.key``: an attempt that finds a finished run with its key adopts it, a run
that a killed attempt left behind is marked as killed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airloop.config import Config, without_password
from airloop.errors import AirloopError, BadConfiguration, NotFound, StoreBusy, Unreachable, classify
from airloop.faults import point
from airloop.training.environment import prepare_environment
from airloop.warehouse.mounts import refuse_network

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("airloop.training")

KEY_TAG = "airloop.key"
BUNDLE_TAG = "airloop.bundle"
MODEL_NAME = "model"
"""Name of the logged model of a training run."""
CONNECT_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 120.0
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
"""Of addresses: a server, or a database that is used without one."""

_clients: dict[str, MlflowClient] = {}
"""By address: a client opens its database once."""


def client(config: Config) -> MlflowClient:
    """
    A client of the configured MLflow. An SQLite database is created at first use, by one process at a time.

    :raises Unreachable: the server does not answer, or a database does not.
    :raises BadConfiguration: the address is none that MLflow knows, or the server refuses us.
    """
    address = config.mlflow
    if address in _clients:
        return _clients[address]
    if urlsplit(address).scheme.partition("+")[0] not in SCHEMES:
        raise BadConfiguration(
            f"AIRLOOP_MLFLOW={without_password(address)!r} is no address of MLflow that Airloop can use",
            f"give one that starts with {', '.join(f'{s}:' for s in SCHEMES)}",
        )
    prepare_environment()
    if is_server(address):
        _knock(address)
    with guarded(config):
        from mlflow import MlflowClient

        if is_server(address):
            return _clients.setdefault(address, MlflowClient(address, address))
        # Imported outside the lock: it takes most of the time.
        with quiet():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        with _locked(config), quiet():
            file = _sqlite_file(address)
            if file is not None:
                refuse_network(file, "MLflow's database")
            if file is not None and (not file.exists() or not file.stat().st_size):
                _create(SqlAlchemyStore, file, _artifact_root(config))
            made = MlflowClient(address, address)
            # Makes the registry look at the database too, while nobody else does.
            made.search_registered_models(max_results=1)
            return _clients.setdefault(address, made)


def _create(store: Any, file: Path, artifacts: str) -> None:
    """
    Make MLflow's database whole or not at all: half of its hundreds of migrations is a database nobody can use.

    :param store: MLflow's class of such stores. Its client would give the default experiment a folder below the
        current one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f"{file.name}.part-*"):
        left.unlink()
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    store(f"sqlite:///{part}", artifacts).engine.dispose()
    part.replace(file)


@contextmanager
def guarded(config: Config) -> Iterator[None]:
    """
    Turn errors of MLflow into ours.

    :raises Unreachable: no answer in time, or the server failed.
    :raises StoreBusy: its SQLite database stayed locked.
    :raises NotFound: what was asked for is not there.
    :raises BadConfiguration: the server refuses our credentials, or the address is not understood.
    """
    try:
        with quiet():
            yield
    except AirloopError:
        raise
    except Exception as cause:
        error = _translate(cause, config)
        if error is None:
            raise
        # The cause's text may hold the address with its password.
        raise error from (cause if without_password(config.mlflow) == config.mlflow else None)


@contextmanager
def sent_once() -> Iterator[None]:
    """
    Within the block MLflow's client does not send a request again whose answer it did not get.

    What makes something new each time would make it twice; the step's next attempt finds what was made, or ends it.
    """
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ[name]
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ[name] = before


def is_server(address: str) -> bool:
    return urlsplit(address).scheme in ("http", "https")


def experiment_id(config: Config, name: str) -> str:
    """
    Id of an experiment, which is created if need be.

    :raises BadConfiguration: it was deleted in MLflow.
    """
    mlflow = client(config)
    with guarded(config):
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            from mlflow.exceptions import MlflowException

            folder = None
            if not is_server(config.mlflow):
                folder = f"{_artifact_root(config)}/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
            try:
                return str(mlflow.create_experiment(name, artifact_location=folder))
            except MlflowException as cause:
                if cause.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = mlflow.get_experiment_by_name(name)
                if found is None:
                    raise
    if found.lifecycle_stage != "active":
        raise BadConfiguration(
            f"MLflow experiment {name!r} is deleted", "restore it with `mlflow experiments restore` or use another name"
        )
    return str(found.experiment_id)


def finished_run(config: Config, experiment: str, key: str) -> Run | None:
    """The latest finished run of a key, if there is one."""
    mlflow = client(config)
    with guarded(config):
        found = mlflow.search_runs(
            [experiment],
            f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    return found[0] if found else None


def end_leftovers(config: Config, experiment: str, key: str) -> int:
    """
    Mark runs that killed attempts at this key left running as killed; the frame lets one attempt run at a time.

    :returns: how many there were.
    """
    mlflow = client(config)
    with guarded(config):
        left = mlflow.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'RUNNING'")
        for run in left:
            mlflow.set_terminated(run.info.run_id, "KILLED")
    return len(left)


def log_run(
    config: Config,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    metrics: Mapping[str, float],
    datasets: Sequence[Mapping[str, str]],
    model: Path,
) -> tuple[str, str]:
    """
    Log a finished training as one run with one logged model.

    :param experiment: its id.
    :param tags: with :data:`KEY_TAG`.
    :param curves: ``{split: {metric: [value by step]}}``; logged as ``split_metric``.
    :param datasets: ``name``, ``digest``, ``source``, ``schema``, ``profile`` and ``context`` of each.
    :param model: folder in MLflow's model format.
    :returns: ids of the run and of the logged model.
    """
    mlflow = client(config)
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, LoggedModelStatus, Metric, Param

    with guarded(config):
        with sent_once():
            run_id: str = mlflow.create_run(experiment, tags=dict(tags), run_name=name).info.run_id
        point("mlflow:run")
        now = time.time_ns() // 1_000_000
        points = [
            Metric(f"{split}_{metric}", value, now, step)
            for split, by_metric in curves.items()
            for metric, values in by_metric.items()
            for step, value in enumerate(values, start=1)
        ]
        points += [Metric(metric, value, now, 0) for metric, value in metrics.items()]
        params = [Param(str(k), v if isinstance(v, str) else json.dumps(v)) for k, v in parameters.items()]
        for start in range(0, max(len(params), 1), 100):
            mlflow.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(points), 1000):
            mlflow.log_batch(run_id, metrics=points[start : start + 1000])
        mlflow.log_inputs(
            run_id,
            datasets=[
                DatasetInput(
                    Dataset(d["name"], d["digest"], "iceberg", d["source"], d["schema"], d["profile"]),
                    [InputTag("mlflow.data.context", d["context"])],
                )
                for d in datasets
            ],
        )
        with sent_once():
            logged = mlflow.create_logged_model(experiment, name=MODEL_NAME, source_run_id=run_id, tags=dict(tags))
        mlflow.log_model_artifacts(logged.model_id, str(model))
        with sent_once():
            # Told twice, MLflow's server says that it knows: an error.
            mlflow.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        mlflow.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        point("mlflow:logged")
        mlflow.set_terminated(run_id, "FINISHED")
    return run_id, str(logged.model_id)


def logged_model_id(config: Config, run_id: str) -> str:
    """
    Id of the model that a training run logged.

    :raises NotFound: there is no such run, or it logged no model.
    """
    mlflow = client(config)
    with guarded(config):
        run = mlflow.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs or run.info.lifecycle_stage != "active":
        raise NotFound(f"MLflow run {run_id} has no logged model or is deleted", "train again")
    return str(outputs[0].model_id)


def logged_model_uri(config: Config, run_id: str) -> str:
    """Address of the model that a training run logged, as the source of a registered version."""
    return f"models:/{logged_model_id(config, run_id)}"


def download_model(config: Config, model_id: str, into: Path) -> Path:
    """
    Folder with the files of a logged model; those on a local disk are left where they are.

    :param into: an empty folder for those that have to be fetched.
    :raises NotFound: the model or its files are gone.
    """
    mlflow = client(config)
    with guarded(config):
        location = mlflow.get_logged_model(model_id).artifact_location
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path) if parts.scheme else location)
        else:
            from mlflow.artifacts import download_artifacts

            # A models:/ address would be looked up in the process's own tracking server, not in ours.
            folder = Path(download_artifacts(location, dst_path=str(into), tracking_uri=config.mlflow))
    if not folder.is_dir():
        raise NotFound(f"the files of MLflow model {model_id} are gone from {folder}", "train it again with force")
    return folder


def run_address(config: Config, experiment: str, run_id: str) -> str:
    """Address of a run for people: a page of the server, or the path within any MLflow UI on this database."""
    base = without_password(config.mlflow).rstrip("/") if is_server(config.mlflow) else ""
    return f"{base}/#/experiments/{experiment}/runs/{run_id}"


def _translate(cause: Exception, config: Config) -> AirloopError | None:
    address = without_password(config.mlflow)
    known = classify(cause)
    if isinstance(known, Unreachable) or type(cause).__module__.startswith("requests."):
        return _unreachable(address, type(cause).__name__)
    if known is not None:
        return type(known)(f"MLflow at {address}: {known.found}", known.advice)
    if isinstance(getattr(cause, "orig", None), sqlite3.DatabaseError):
        return BadConfiguration(f"MLflow's database {address} cannot be used: {cause.orig}", "move it away")  # type: ignore[attr-defined]
    if type(cause).__module__.startswith("sqlalchemy."):
        return _unreachable(address, type(cause).__name__)
    from mlflow.exceptions import MlflowException

    if not isinstance(cause, MlflowException):
        return None
    if "out-of-date database schema" in str(cause.message):
        return BadConfiguration(
            f"MLflow's database {address} is of another version", f"back it up, then: mlflow db upgrade {address}"
        )
    code = cause.error_code
    text = str(cause.message).replace(config.mlflow, address).splitlines()[0][:500]
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
        return NotFound(f"MLflow at {address}: {text}")
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return BadConfiguration(f"MLflow at {address} refuses: {text}", "check the credentials in AIRLOOP_MLFLOW")
    if code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"):
        return _unreachable(address, text)
    return None


def _unreachable(address: str, why: str) -> Unreachable:
    return Unreachable(f"MLflow at {address} does not answer ({why})", "is it running? see `airloop doctor`")


def _knock(address: str) -> None:
    """A refused or silent host is known after seconds; MLflow's own client would retry first."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as cause:
        raise _unreachable(without_password(address), str(cause)) from cause


def _locked(config: Config) -> Any:
    from filelock import FileLock, Timeout

    @contextmanager
    def hold() -> Iterator[None]:
        folder = config.home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "mlflow.lock", timeout=LOCK_TIMEOUT_S)
        try:
            lock.acquire()
        except Timeout as cause:
            raise StoreBusy(f"{lock.lock_file} was held for {LOCK_TIMEOUT_S:.0f} s", "run the task again") from cause
        try:
            yield
        finally:
            lock.release()

    return hold()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings that MLflow causes itself, when it is imported and when it opens a database."""
    with warnings.catch_warnings():
        # SQLAlchemy 2.1 deprecates a loader strategy that MLflow 3.17 uses.
        warnings.filterwarnings("ignore", message=".*``noload`` loader strategy is deprecated")
        # MLflow's own chat classes have fields without a type.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
        yield


def _sqlite_file(address: str) -> Path | None:
    return Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:///") else None


def _artifact_root(config: Config) -> str:
    root = config.mlflow_artifacts.rstrip("/")
    return root if urlsplit(root).scheme else Path(root).resolve().as_uri()
