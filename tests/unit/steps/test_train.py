"""Training through the frame: MLflow, idempotence, adoption, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.errors import BadArgument, BadInput, SchemaMismatch, Unreachable
from airloop.training import tracking
from airloop.training.models import load_model
from airloop.warehouse.catalog import Warehouse
from tests.training_rows import FEATURES, make_rows, replaced, save_rows

Run = Callable[..., dict[str, Any]]
SMALL = {"n_estimators": 20, "max_depth": 3}


def manifest_file(config: Config, manifest: dict[str, Any]) -> Path:
    (found,) = config.artifacts.glob(f"steps/train/*/{manifest['key']}/manifest.json")
    return found


def test_a_run_holds_data_parameters_curves_metrics_and_the_model(
    run_step: Run, warehouse: Warehouse, config: Config
) -> None:
    examples = save_rows(warehouse, make_rows())
    done = run_step("train", examples=str(examples), hyperparameters=SMALL, seed=7)
    assert done["counts"]["rows_train"] == 900
    assert done["counts"]["rows_validation"] == 300
    assert done["counts"]["features"] == 5
    assert done["metrics"]["validation_roc_auc"] > 0.75
    assert done["outputs"]["examples"]["reference"] == str(examples)
    details = done["details"]
    assert next(iter(details["importance"])) in ("hour", "distance", "carrier", "wet")
    run_id = details["mlflow"]["run_id"]
    assert done["outputs"]["model"] == {"kind": "model", "reference": f"model:/run/{run_id}"}
    assert run_id in done["links"]["mlflow"]

    mlflow = tracking.client(config)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["airloop.key"] == done["key"]
    assert run.data.tags["airloop.examples"] == str(examples)
    assert run.data.params["max_depth"] == "3"
    assert run.data.params["seed"] == "7"
    assert run.data.metrics["validation_roc_auc"] == done["metrics"]["validation_roc_auc"]
    curve = mlflow.get_metric_history(run_id, "validation_logloss")
    assert [p.value for p in curve] == details["curves"]["validation"]["logloss"]
    assert [p.step for p in curve] == list(range(1, len(curve) + 1))
    inputs = {i.dataset.name: i.dataset for i in run.inputs.dataset_inputs}
    assert set(inputs) == {"training.delay train", "training.delay validation"}
    assert inputs["training.delay train"].digest == str(examples.snapshot)
    assert json.loads(inputs["training.delay train"].profile)["num_rows"] == 900

    folder = tracking.download_model(config, tracking.logged_model_id(config, run_id), Path())
    assert {p.name for p in folder.iterdir()} >= {"MLmodel", "data", "requirements.txt"}
    assert "xgboost-cpu==" in (folder / "requirements.txt").read_text()
    assert sorted(p.name for p in (folder / "data").iterdir()) == ["bundle.json", "model.ubj"]
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".joblib")]


def test_mlflow_itself_loads_and_scores_the_logged_model(run_step: Run, warehouse: Warehouse, config: Config) -> None:
    rows = make_rows()
    done = run_step("train", examples=str(save_rows(warehouse, rows)), hyperparameters=SMALL)
    ours = load_model(config, done["outputs"]["model"]["reference"])
    run_id = done["details"]["mlflow"]["run_id"]
    folder = tracking.download_model(config, tracking.logged_model_id(config, run_id), Path())
    from mlflow import pyfunc

    stock = pyfunc.load_model(str(folder))
    frame = rows.select(list(FEATURES)).to_pandas()
    np.testing.assert_array_equal(stock.predict(frame)["score"].to_numpy(), ours.predict(rows))
    assert stock.metadata.signature.inputs.input_names() == list(FEATURES)
    assert stock.metadata.flavors["xgboost"]["data"] == "data/model.ubj"


def test_training_twice_gives_equal_predictions_and_one_run(
    run_step: Run, warehouse: Warehouse, config: Config
) -> None:
    rows = make_rows()
    examples = str(save_rows(warehouse, rows))
    arguments = {"examples": examples, "hyperparameters": SMALL | {"subsample": 0.7, "colsample_bytree": 0.7}}
    first = run_step("train", **arguments)
    assert run_step("train", **arguments)["status"] == "reused"
    again = run_step("train", **arguments, force=True)
    assert again["status"] == "done"
    # Byte for byte the same model: the run that is there stays, nothing downstream is redone.
    assert again["outputs"] == first["outputs"]
    # The same without MLflow's memory of the first.
    other = replace(config, mlflow=f"sqlite:///{config.home / 'other.db'}", artifacts=config.home / "other")
    third = run_step("train", **arguments, config=other)
    assert third["outputs"] != first["outputs"]
    scores = [
        load_model(c, m["outputs"]["model"]["reference"]).predict(rows) for c, m in ((config, first), (other, third))
    ]
    np.testing.assert_array_equal(*scores)
    different = run_step("train", **arguments, seed=1)
    assert different["key"] != first["key"]


def test_a_lost_manifest_adopts_the_finished_run_and_a_killed_attempts_run_is_ended(
    run_step: Run, warehouse: Warehouse, config: Config
) -> None:
    arguments = {"examples": str(save_rows(warehouse, make_rows())), "hyperparameters": SMALL}
    first = run_step("train", **arguments)
    experiment, run_id = (first["details"]["mlflow"][n] for n in ("experiment_id", "run_id"))
    manifest_file(config, first).unlink()
    adopted = run_step("train", **arguments)
    assert adopted["status"] == "done"
    for part in ("outputs", "counts", "metrics", "details", "links"):
        assert adopted[part] == first[part]

    # The same key, but its run was still running when its process died.
    manifest_file(config, first).unlink()
    mlflow = tracking.client(config)
    mlflow.update_run(run_id, "RUNNING")
    second = run_step("train", **arguments)
    assert second["details"]["mlflow"]["run_id"] != run_id
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert len(mlflow.search_runs([experiment], "attributes.status = 'FINISHED'")) == 1


def test_a_deleted_run_is_trained_again(run_step: Run, warehouse: Warehouse, config: Config) -> None:
    arguments = {"examples": str(save_rows(warehouse, make_rows())), "hyperparameters": SMALL}
    first = run_step("train", **arguments)
    tracking.client(config).delete_run(first["details"]["mlflow"]["run_id"])
    second = run_step("train", **arguments)
    assert second["status"] == "done"
    assert second["outputs"]["model"] != first["outputs"]["model"]


def test_the_holdout_is_never_read(run_step: Run, warehouse: Warehouse, config: Config) -> None:
    rows = make_rows()
    held_out = np.array(rows["split"].to_pylist()) == "holdout"
    spoiled = replaced(rows, "distance", np.where(held_out, np.inf, rows["distance"].to_numpy()))
    spoiled = replaced(spoiled, "label", np.where(held_out, 7, spoiled["label"].to_numpy()))
    for name, table in (("training.clean", rows), ("training.spoiled", spoiled)):
        save_rows(warehouse, table, name=name)
    clean, other = (
        run_step("train", examples=f"training.{n}", hyperparameters=SMALL, experiment="x") for n in ("clean", "spoiled")
    )
    assert clean["metrics"] == other["metrics"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: replaced(t, "label", [None] * 3 + t["label"].to_pylist()[3:]), "3 of 900 have no label"),
        (lambda t: replaced(t, "label", np.r_[np.nan, t["label"].to_numpy()[1:]]), "1 of 900 have no label"),
        (lambda t: replaced(t, "label", np.zeros(t.num_rows, int)), "all 900 training rows .* have label=0"),
        (lambda t: replaced(t, "label", np.arange(t.num_rows)), "neither 0 nor 1 .*no regression"),
        (lambda t: replaced(t, "label", ["late"] * t.num_rows), "target label has type string"),
        (lambda t: replaced(t, "split", ["validation"] * t.num_rows), "has no training rows"),
        (lambda t: t.slice(0, 0), "has no training rows"),
        (lambda t: replaced(t, "distance", np.r_[np.inf, t["distance"].to_numpy()[1:]]), "infinite values of distance"),
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(
    run_step: Run, warehouse: Warehouse, spoil: Callable[[pa.Table], pa.Table], says: str
) -> None:
    examples = save_rows(warehouse, spoil(make_rows()))
    with pytest.raises(BadInput, match=says):
        run_step("train", examples=str(examples))


def test_features_and_target_are_checked(run_step: Run, warehouse: Warehouse) -> None:
    save_rows(warehouse, make_rows(), features=None)
    examples = "training.delay"
    with pytest.raises(BadArgument, match="does not say which columns are features"):
        run_step("train", examples=examples)
    with pytest.raises(BadArgument, match=r"no column 'distanse'.*did you mean 'distance'"):
        run_step("train", examples=examples, features=["distanse"])
    with pytest.raises(BadArgument, match="target label is among the features"):
        run_step("train", examples=examples, features=["distance", "label"])
    with pytest.raises(BadArgument, match=r"feature event_time .* has type timestamp"):
        run_step("train", examples=examples, features=["event_time"])
    with pytest.raises(SchemaMismatch, match="no column 'late'"):
        run_step("train", examples=examples, target="late", features=["distance"])
    done = run_step("train", examples=examples, features=["hour", "distance"], hyperparameters=SMALL)
    assert done["details"]["features"] == ["hour", "distance"]


def test_a_feature_without_values_is_left_out_with_a_warning(
    run_step: Run, warehouse: Warehouse, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows()
    examples = save_rows(warehouse, replaced(rows, "visib", pa.nulls(rows.num_rows, pa.float64())))
    done = run_step("train", examples=str(examples), hyperparameters=SMALL)
    assert done["details"]["left_out"] == ["visib"]
    assert "feature visib has no value in the 900 training rows" in caplog.text
    assert load_model(config, done["outputs"]["model"]["reference"]).feature_names == FEATURES[:4]


def test_without_validation_rows_there_is_no_early_stopping(run_step: Run, warehouse: Warehouse) -> None:
    rows = make_rows()
    train_only = replaced(rows, "split", ["train"] * rows.num_rows)
    done = run_step("train", examples=str(save_rows(warehouse, train_only)), hyperparameters=SMALL)
    assert done["details"]["best_iteration"] == 20
    assert not [m for m in done["metrics"] if m.startswith("validation")]


def test_an_estimators_own_code_is_part_of_the_key(
    run_step: Run, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "our_estimators.py"
    module.write_text(
        "from sklearn.linear_model import LogisticRegression\n\n\nclass Careful(LogisticRegression):\n    '''Ours.'''\n"
    )
    arguments = {"examples": str(save_rows(warehouse, make_rows())), "trainer": "our_estimators.Careful"}
    first = run_step("train", **arguments, hyperparameters={"C": 0.5})
    assert first["details"]["trainer"] == "our_estimators.Careful"
    assert run_step("train", **arguments, hyperparameters={"C": 0.5})["status"] == "reused"
    module.write_text(module.read_text() + "\n# another day\n")
    second = run_step("train", **arguments, hyperparameters={"C": 0.5})
    assert second["status"] == "done"
    assert second["key"] != first["key"]


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ("xgbost", "no trainer 'xgbost'"),
        ("sklearn.linear_model.LinearRegression", "is a regressor"),
        ("sklearn.svm.LinearSVC", "has no predict_proba"),
        ("sklearn.nothing.Here", "no module sklearn.nothing"),
        ("sklearn.linear_model.Here", "has no Here"),
        ("os.system", "standard library"),
    ],
)
def test_what_is_no_classifier_is_refused(run_step: Run, warehouse: Warehouse, trainer: str, says: str) -> None:
    examples = str(save_rows(warehouse, make_rows(200)))
    with pytest.raises((BadArgument, LookupError), match=says):
        run_step("train", examples=examples, trainer=trainer)


def test_an_mlflow_that_does_not_answer_is_said_without_its_password_and_before_the_work(
    run_step: Run, warehouse: Warehouse, config: Config
) -> None:
    examples = str(save_rows(warehouse, make_rows(200)))
    away = replace(config, mlflow="http://me:hunter2@127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"MLflow at http://me:\*\*\*@127.0.0.1:9 does not answer") as caught:
        run_step("train", examples=examples, config=away)
    assert "hunter2" not in repr(caught.value)
    assert caught.value.exit_code == 75
