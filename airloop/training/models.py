"""
Models as files: a bundle is a folder with the model in its library's own format and ``bundle.json``, which says all
that is needed to use it: features in order, categories, target, versions, the reference for drift, how it was made.

MLflow keeps the bundle as the ``data`` folder of a logged model, so a model is found by MLflow's ids and needs
nothing else. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from airloop.config import Config
from airloop.errors import BadArgument, BadInput, NotFound
from airloop.training.features import FeatureSpec, encode
from airloop.training.trainers import Predictor, deflate, load_predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airloop.reference import Reference

BUNDLE_FORMAT = 1
BUNDLE_FILE = "bundle.json"
ROWS_PER_PREDICTION = 100_000
"""Rows encoded at a time, so that scoring a large table needs little memory."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can score."""

    uri: str
    """``model:/run/<run id>`` or ``model:/<name>/<version>``; empty for a bundle read from a folder."""
    run_id: str
    """MLflow run that made it."""
    key: str
    """Key of the training step."""
    bundle: Mapping[str, Any]
    """All of ``bundle.json``."""
    features: tuple[FeatureSpec, ...]
    _predictor: Predictor

    @property
    def trainer(self) -> str:
        return str(self.bundle["trainer"])

    @property
    def flavor(self) -> str:
        return str(self.bundle["flavor"])

    @property
    def target(self) -> str:
        return str(self.bundle["target"])

    @property
    def task(self) -> str:
        """``binary``: a score is the probability that the target is 1."""
        return str(self.bundle["task"])

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def reference(self) -> Mapping[str, Any]:
        """How features and scores were distributed at training; see :func:`airloop.training.summary.summarise`."""
        found: Mapping[str, Any] = self.bundle["reference"]
        return found

    def predict(self, rows: pa.Table | pa.RecordBatch) -> NDArray[np.float64]:
        """
        Probabilities, shape ``(n,)``. Columns may be in any order, others are ignored; NULL, NaN and categories that
        training has not seen are missing values.

        :raises SchemaMismatch: features are missing or of another kind; the text names all of them.
        :raises BadInput: a feature is infinite.
        """
        where = f"rows for {self.uri or 'the model'}"
        if not rows.num_rows:
            encode(rows, self.features, where=where)
            return np.empty(0)
        return np.concatenate(
            [
                self.predict_encoded(encode(rows.slice(start, ROWS_PER_PREDICTION), self.features, where=where))
                for start in range(0, rows.num_rows, ROWS_PER_PREDICTION)
            ]
        )

    def predict_encoded(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities for rows that :func:`airloop.training.features.encode` made, shape ``(n,)``."""
        return deflate(self._predictor(matrix), float(self.bundle["odds_factor"]))


def load_model(config: Config, ref: Reference | str) -> Model:
    """
    Load a model through MLflow.

    :param ref: ``model:/run/<run id>`` or ``model:/<name>/<version>``.
    :raises NotFound: there is no such run, version or file, or the reference says that there is no model.
    :raises BadInput: a file differs from what was logged.
    :raises Unreachable: MLflow does not answer.
    """
    from airloop.training import tracking

    uri = str(ref)
    name, _, version = uri.removeprefix("model:/").partition("/")
    if not uri.startswith("model:/") or not name or not version:
        raise BadArgument(f"{uri!r} is no resolved model", "expected model:/run/<run id> or model:/<name>/<version>")
    if version == "none":
        raise NotFound(f"{uri}: there is no such model yet")
    mlflow = tracking.client(config)
    run_id = version
    if name != "run":
        with tracking.guarded(config):
            run_id = str(mlflow.get_model_version(name, version).run_id or "")
        if not run_id:
            raise NotFound(f"{uri} was not trained by Airloop: its version names no run")
    with tracking.guarded(config):
        tags = mlflow.get_run(run_id).data.tags
    with tempfile.TemporaryDirectory(prefix="model-", dir=_temporary(config)) as scratch:
        folder = tracking.download_model(config, tracking.logged_model_id(config, run_id), Path(scratch))
        model = load_bundle(
            folder / "data", threads=config.cpu_threads(), digest=tags.get(tracking.BUNDLE_TAG, ""), uri=uri
        )
    return Model(uri, run_id, tags.get(tracking.KEY_TAG, ""), model.bundle, model.features, model._predictor)


def load_bundle(folder: Path, *, threads: int, digest: str = "", uri: str = "") -> Model:
    """
    Load a bundle from a folder.

    :param digest: what :func:`bundle_digest` must give; empty: not checked.
    :raises NotFound: there is no bundle.
    :raises BadInput: it differs from its digest, or was made by a newer version.
    """
    try:
        text = (folder / BUNDLE_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise NotFound(
            f"{uri or folder}: {folder} has no {BUNDLE_FILE}", "was the model trained by Airloop?"
        ) from cause
    bundle = json.loads(text)
    if bundle["format"] != BUNDLE_FORMAT:
        raise BadInput(f"{uri or folder}: bundle format {bundle['format']} is not {BUNDLE_FORMAT}", "update airloop")
    if digest and bundle_digest(folder) != digest:
        raise BadInput(f"{uri or folder}: the files in {folder} are not those that were logged", "train it again")
    features = tuple(FeatureSpec.from_json(f) for f in bundle["features"])
    predictor = load_predictor(
        bundle["flavor"], folder, trainer=bundle["trainer"], trusted=bundle["trusted"], threads=threads
    )
    return Model(uri, "", "", bundle, features, predictor)


def write_bundle(folder: Path, bundle: Mapping[str, Any]) -> str:
    """
    Complete a folder that holds a saved model.

    :returns: the bundle's digest.
    """
    text = json.dumps({"format": BUNDLE_FORMAT, **bundle}, indent=1, allow_nan=False)
    (folder / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")
    return bundle_digest(folder)


def bundle_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files in a folder, hex."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\x00{content}\n".encode())
    return total.hexdigest()


def _temporary(config: Config) -> Path:
    folder = config.home / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
