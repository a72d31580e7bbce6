"""Trainers: what they refuse, what they save, and that their scores are probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from airloop.errors import BadArgument, BadConfiguration, BadInput, NotFound
from airloop.training import trainers
from airloop.training.examples import Examples, read_labels
from airloop.training.features import encode, learn_features
from airloop.training.fit import Trained, train_bundle
from airloop.training.models import bundle_digest, load_bundle
from airloop.training.trainers import Split, odds_factor, trainer_of
from tests.training_rows import FEATURES, make_rows

BOOSTERS = ("xgboost", "lightgbm")
ESTIMATORS = (
    "sklearn.linear_model.LogisticRegression",
    "sklearn.ensemble:RandomForestClassifier",
    "sklearn.ensemble.HistGradientBoostingClassifier",
    "sklearn.naive_bayes.GaussianNB",
)
SMALL: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 40, "max_depth": 3},
    "lightgbm": {"n_estimators": 40, "num_leaves": 7},
    "sklearn.ensemble:RandomForestClassifier": {"n_estimators": 20, "min_samples_leaf": 5},
    "sklearn.ensemble.HistGradientBoostingClassifier": {"max_iter": 20},
}


def examples_of(rows: pa.Table) -> Examples:
    parts = {name: rows.filter(pc.equal(rows["split"], name)) for name in ("train", "validation")}
    specs, left_out, warnings = learn_features(parts["train"], FEATURES)
    splits = {
        name: Split(encode(part, specs, where=name), read_labels(part, "label", where=name))
        for name, part in parts.items()
    }
    return Examples(specs, left_out, splits["train"], splits["validation"], warnings)


def train(folder: Path, name: str, *, rows: pa.Table | None = None, **changed: Any) -> Trained:
    folder.mkdir()
    trainer = trainer_of(name)
    options: dict[str, Any] = {
        "target": "label",
        "source": "training.delay@1",
        "seed": 3,
        "threads": 1,
        "early_stopping_rounds": None,
        "imbalance": "none",
    }
    hyperparameters = changed.pop("hyperparameters", SMALL.get(name, {}))
    parameters = trainer.read_parameters(hyperparameters)
    return train_bundle(folder, examples_of(rows or make_rows()), trainer, parameters=parameters, **options | changed)


@pytest.mark.parametrize("imbalance", ["none", "balanced"])
@pytest.mark.parametrize("name", [*BOOSTERS, *ESTIMATORS])
def test_a_saved_model_scores_as_measured_the_same_each_time(tmp_path: Path, name: str, imbalance: str) -> None:
    rows = make_rows()
    # Two threads and one give the same model.
    made = [train(tmp_path / str(n), name, imbalance=imbalance, threads=n) for n in (1, 2)]
    scores = made[0].model.predict(rows)
    np.testing.assert_array_equal(scores, made[1].model.predict(rows))
    assert made[0].model.bundle["metrics"] == made[1].model.bundle["metrics"]
    assert scores.shape == (rows.num_rows,)
    assert ((scores >= 0) & (scores <= 1)).all()
    metrics = made[0].model.bundle["metrics"]
    assert metrics["validation_roc_auc"] > 0.75
    # Weighing the classes alike must not spoil the probabilities.
    assert metrics["validation_mean_score"] == pytest.approx(metrics["validation_label_rate"], abs=0.05)
    assert not [p for p in (tmp_path / "1").iterdir() if p.suffix in (".pkl", ".pickle", ".joblib")]
    assert made[0].model.predict(rows.slice(0, 0)).shape == (0,)


@pytest.mark.parametrize("name", BOOSTERS)
def test_boosters_stop_early_and_save_the_rounds_that_were_measured(tmp_path: Path, name: str) -> None:
    hyperparameters = SMALL[name] | {"n_estimators": 400, "learning_rate": 0.5}
    stopped = train(tmp_path / "stopped", name, hyperparameters=hyperparameters, early_stopping_rounds=5)
    bundle = stopped.model.bundle
    curve = bundle["curves"]["validation"]["logloss"]
    assert bundle["best_iteration"] == int(np.argmin(curve)) + 1
    assert len(curve) == bundle["best_iteration"] + 5 < 400
    assert bundle["metrics"]["validation_log_loss"] == pytest.approx(min(curve), rel=1e-4)
    never = train(
        tmp_path / "never", name, hyperparameters=hyperparameters | {"n_estimators": 60}, early_stopping_rounds=0
    )
    assert never.model.bundle["best_iteration"] == 60
    again = train(tmp_path / "again", name, hyperparameters=hyperparameters, early_stopping_rounds=5)
    assert again.digest == stopped.digest, "the same bytes"


@pytest.mark.parametrize("name", BOOSTERS)
def test_monotone_constraints_hold(tmp_path: Path, name: str) -> None:
    rows = make_rows()
    made = train(tmp_path / "model", name, hyperparameters=SMALL[name] | {"monotone_constraints": {"distance": -1}})
    distance = rows.schema.get_field_index("distance")
    scores = [
        made.model.predict(rows.set_column(distance, "distance", pa.array(np.full(rows.num_rows, v))))
        for v in (-1.0, 0.0, 1.0)
    ]
    assert (scores[0] >= scores[1]).all()
    assert (scores[1] >= scores[2]).all()
    with pytest.raises(BadArgument, match=r"no feature 'distanse'.*did you mean 'distance'"):
        train(tmp_path / "other", name, hyperparameters={"monotone_constraints": {"distanse": -1}})


def test_the_importance_names_every_feature(tmp_path: Path) -> None:
    for name in (*BOOSTERS, "sklearn.linear_model.LogisticRegression", "sklearn.ensemble:RandomForestClassifier"):
        importance = train(tmp_path / name, name).model.bundle["importance"]
        assert set(importance) == set(FEATURES)
        assert importance["distance"] > importance["visib"], f"{name}: visib means nothing"


@pytest.mark.parametrize(
    ("name", "hyperparameters", "says"),
    [
        ("xgboost", {"max_dept": 3}, r"no parameter 'max_dept'.*did you mean 'max_depth'"),
        ("xgboost", {"learning_rate": 2}, r"learning_rate=2: Input should be less than or equal to 1"),
        ("xgboost", {"max_depth": "deep"}, r"max_depth='deep': Input should be a valid integer"),
        ("xgboost", {"subsample": float("nan")}, r"subsample=nan"),
        ("xgboost", {"seed": 1}, r"seed cannot be set here.*the step's own argument seed"),
        ("xgboost", {"scale_pos_weight": 3}, r"imbalance='balanced'"),
        ("lightgbm", {"num_leafs": 3}, r"did you mean 'num_leaves'"),
        ("lightgbm", {"num_leaves": 1}, r"num_leaves=1: Input should be greater than or equal to 2"),
        ("sklearn.linear_model.LogisticRegression", {"CC": 3}, r"has no parameter 'CC'"),
        ("sklearn.linear_model.LogisticRegression", {"random_state": 3}, r"random_state cannot be set here"),
        ("sklearn.linear_model.LogisticRegression", {"C": -1.0}, r"The 'C' parameter .* must be a float in the range"),
        ("sklearn.linear_model.LogisticRegression", {"solver": "magic"}, r"The 'solver' parameter"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_says_what_is_right(
    tmp_path: Path, name: str, hyperparameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadArgument, match=says):
        train(tmp_path / "model", name, hyperparameters=hyperparameters)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("xgbost", BadArgument, "no trainer 'xgbost'"),
        ("sklearn.linear_model.LinearRegression", BadArgument, "is a regressor"),
        ("sklearn.svm.LinearSVC", BadArgument, "has no predict_proba"),
        ("sklearn.metrics.roc_auc_score", BadArgument, "is no estimator class"),
        ("sklearn.nothing.Here", NotFound, r"no module sklearn\.nothing"),
        ("sklearn.linear_model.Here", NotFound, "has no Here"),
        ("nowhere_at_all.Here", NotFound, "no module nowhere_at_all"),
        ("os.system", BadArgument, "standard library"),
    ],
)
def test_what_is_no_classifier_is_refused(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        trainer_of(name)


def test_what_an_estimator_cannot_do_is_said(tmp_path: Path) -> None:
    neighbours = "sklearn.neighbors.KNeighborsClassifier"
    with pytest.raises(BadArgument, match="neither class_weight nor sample_weight"):
        train(tmp_path / "a", neighbours, imbalance="balanced")
    with pytest.raises(BadArgument, match="early_stopping_rounds is not for trainer"):
        train(tmp_path / "b", neighbours, early_stopping_rounds=10)


def test_an_estimators_own_warnings_reach_people(tmp_path: Path) -> None:
    made = train(tmp_path / "model", "sklearn.linear_model.LogisticRegression", hyperparameters={"max_iter": 1})
    assert any("ConvergenceWarning" in w for w in made.warnings)


def test_lightgbm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def absent(name: str) -> str:
        if name == "lightgbm":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(trainers, "version", absent)
    with pytest.raises(
        BadConfiguration, match=r"needs lightgbm, which is not installed; pip install 'airloop\[lightgbm\]'"
    ):
        trainer_of("lightgbm")


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    made = train(tmp_path / "model", "xgboost")
    bundle = tmp_path / "model" / "bundle.json"
    assert bundle_digest(tmp_path / "model") == made.digest
    bundle.write_text(bundle.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(BadInput, match="not those that were logged"):
        load_bundle(tmp_path / "model", threads=1, digest=made.digest)
    with pytest.raises(NotFound, match=r"has no bundle\.json"):
        load_bundle(tmp_path / "nothing", threads=1)


def test_a_model_that_asks_for_foreign_types_is_not_read(tmp_path: Path) -> None:
    train(tmp_path / "model", "sklearn.linear_model.LogisticRegression")
    path = tmp_path / "model" / "bundle.json"
    bundle = json.loads(path.read_text())
    path.write_text(json.dumps(bundle | {"trusted": ["subprocess.Popen"]}))
    with pytest.raises(BadInput, match=r"asks to trust subprocess\.Popen"):
        load_bundle(tmp_path / "model", threads=1)
    path.write_text(json.dumps(bundle | {"trusted": []}))
    with pytest.raises(BadInput, match="holds types that it does not name"):
        load_bundle(tmp_path / "model", threads=1)
    path.write_text(json.dumps(bundle | {"flavor": "torch"}))
    with pytest.raises(NotFound, match="flavour 'torch' cannot be read here"):
        load_bundle(tmp_path / "model", threads=1)


def test_the_odds_are_brought_back_to_the_rate() -> None:
    draw = np.random.default_rng(0)
    truth = draw.uniform(0.05, 0.6, 20_000)
    labels = (draw.random(20_000) < truth).astype(float)
    inflated = 3 * truth / (3 * truth + 1 - truth)
    assert odds_factor(inflated, labels, 3.0) == pytest.approx(3, rel=0.05)
    assert odds_factor(inflated, np.zeros(20_000), 3.0) == 3.0, "one class only: theory has to do"
    assert odds_factor(np.empty(0), np.empty(0), 3.0) == 3.0
    assert odds_factor(truth, labels, 1.0) == 1.0
