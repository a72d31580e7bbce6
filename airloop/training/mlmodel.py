"""
A bundle in MLflow's model format, so that MLflow's own tools can show, load and serve it.

``mlflow.pyfunc.load_model(uri).predict(frame)`` takes the raw columns and returns probabilities; it needs ``airloop``
in its environment. The native flavour points at the library's own file, which takes encoded columns.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from airloop.training.models import Model, load_bundle
from airloop.training.tracking import quiet
from airloop.training.trainers import LightGBMTrainer, XGBoostTrainer

if TYPE_CHECKING:
    from airloop.warehouse.refs import TableRef


def column_types(model: Model) -> list[tuple[str, str]]:
    """
    MLflow's type of each feature. A whole number is ``long`` unless training had gaps in it: pandas makes a float
    column of one with gaps, and MLflow lets neither stand for the other.
    """
    types = {"number": "double", "boolean": "boolean", "category": "string"}
    return [
        (f.name, "long" if "int" in f.type and not model.reference["features"][f.name]["missing"] else types[f.kind])
        for f in model.features
    ]


def requirements(distributions: Sequence[str]) -> list[str]:
    """Pinned requirements of a process that uses the model; given to MLflow, which else infers them for 20 s."""
    return [f"{name}=={version(name)}" for name in sorted({"airloop", "numpy", "pyarrow", *distributions})]


def write_mlmodel(folder: Path, bundle: Path, model: Model) -> None:
    """
    Make ``folder`` an MLflow model with the bundle as its data.

    :param folder: does not exist yet.
    """
    with quiet():
        from mlflow.models import Model as MLModel
        from mlflow.models import ModelSignature
        from mlflow.pyfunc import add_to_model
        from mlflow.types import ColSpec, Schema

    shutil.copytree(bundle, folder / "data")
    described = MLModel(
        signature=ModelSignature(
            inputs=Schema([ColSpec(type_, name, required=False) for name, type_ in column_types(model)]),
            outputs=Schema([ColSpec("double", "score")]),
        ),
        metadata={"trainer": model.trainer, "target": model.target},
        model_size_bytes=sum(p.stat().st_size for p in bundle.iterdir()),
    )
    add_to_model(  # type: ignore[no-untyped-call]
        described, "airloop.training.mlmodel", data="data", python_env="python_env.yaml"
    )
    native = {
        "xgboost": {
            "data": f"data/{XGBoostTrainer.file}",
            "model_class": "xgboost.core.Booster",
            "model_format": "ubj",
        },
        "lightgbm": {"data": f"data/{LightGBMTrainer.file}", "model_class": "lightgbm.basic.Booster"},
    }
    if model.flavor in native:
        described.add_flavor(model.flavor, code=None, **native[model.flavor])
    described.save(str(folder / "MLmodel"))
    needs = [f"mlflow=={version('mlflow')}", *model.bundle["requirements"]]
    (folder / "requirements.txt").write_text("\n".join(needs) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: [pip, setuptools, wheel]\n"
        "dependencies: [-r requirements.txt]\n"
    )


def _load_pyfunc(path: str) -> _Scorer:
    """What MLflow calls, with the path of the bundle."""
    return _Scorer(load_bundle(Path(path), threads=0))


class _Scorer:
    """MLflow's idea of a model: ``predict`` on a pandas frame."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """A frame with the one column ``score``, indexed as the input."""
        import pandas as pd

        columns = {f.name: pa.array(frame[f.name], from_pandas=True) for f in self._model.features if f.name in frame}
        scores: np.ndarray[Any, Any] = self._model.predict(pa.table(columns))
        return pd.DataFrame({"score": scores}, index=frame.index)


def describe_dataset(table: TableRef, split: str, rows: int, model: Model) -> dict[str, str]:
    """One split of a training table as MLflow shows a data set: where from, which snapshot, which columns."""
    columns = [{"name": name, "type": type_, "required": False} for name, type_ in column_types(model)]
    return {
        "name": f"{table.name} {split}",
        "digest": str(table.snapshot),
        "source": json.dumps({"table": table.name, "snapshot": table.snapshot, "where": f"split = '{split}'"}),
        "schema": json.dumps({"mlflow_colspec": [*columns, {"name": model.target, "type": "long", "required": True}]}),
        "profile": json.dumps({"num_rows": rows, "num_elements": rows * (len(columns) + 1)}),
        "context": "training" if split == "train" else split,
    }
