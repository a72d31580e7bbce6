"""
Trainers: from encoded rows to a fitted model that saves itself in its library's own format.

``xgboost`` and ``lightgbm`` are here, everything with scikit-learn's interface is in
:mod:`airloop.training.estimators`. All are binary classifiers. A fitted model's scores are probabilities of label 1
in the population that the training rows come from: with ``imbalance="balanced"`` positives weigh ``w`` times as much
while fitting, which multiplies the odds by about ``w``; :func:`deflate` brings the scores back.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from airloop.errors import BadArgument, BadConfiguration, NotFound
from airloop.training.environment import prepare_environment
from airloop.training.parameters import (
    LightGBMParameters,
    XGBoostParameters,
    constraints,
    read_parameters,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airloop.training.features import FeatureSpec

Imbalance = Literal["none", "balanced"]
Predictor = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]
"""From an encoded matrix ``(n, features)`` to raw probabilities ``(n,)``."""

EARLY_STOPPING_ROUNDS = 30
"""Default patience of the boosting trainers."""


@dataclass(frozen=True, slots=True)
class Split:
    """Encoded rows of one split."""

    matrix: NDArray[np.float64]
    """Shape ``(n, features)``; missing is NaN."""
    labels: NDArray[np.float64]
    """0 or 1, shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to fit."""

    features: tuple[FeatureSpec, ...]
    train: Split
    validation: Split
    parameters: Mapping[str, Any]
    """As :meth:`Trainer.read_parameters` returned them."""
    seed: int
    threads: int
    early_stopping_rounds: int | None
    """None: the trainer's own default; 0: none."""
    positive_weight: float
    """Weight of a positive row, of a negative one it is 1."""

    def weights(self, split: Split) -> NDArray[np.float64] | None:
        """
        Weights of a split's rows, shape ``(n,)``; None if all are 1. Validation rows have them too: early stopping
        has to look at the loss that is being reduced.
        """
        return None if self.positive_weight == 1.0 else np.where(split.labels > 0.5, self.positive_weight, 1.0)


@dataclass(slots=True, kw_only=True)
class Fitted:
    """A fitted model in memory."""

    flavor: str
    save: Callable[[Path], None]
    """Writes the model's file into a folder."""
    best_iteration: int | None = None
    """Rounds that the model has; None if it has none."""
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """``{split: {metric: [value by round]}}``."""
    importance: dict[str, float] = field(default_factory=dict)
    """By feature, all of them; see the trainer for the measure."""
    trusted: list[str] = field(default_factory=list)
    """Types beyond the reader's own list that the model's file holds."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Determinism:
    """What a trainer promises of two fits to the same rows, parameters, seed and library versions."""

    equal: Literal["bytes", "predictions"]
    tolerance: float
    """Largest difference between two predictions for one row, in probability; 0 where the bytes are equal."""
    provided: str
    """Under which conditions, for people."""


class Trainer(ABC):
    """One way to fit."""

    determinism: Determinism

    name: str
    flavor: str
    requires: tuple[str, ...]
    """Distributions that a process which loads the model needs."""

    @abstractmethod
    def read_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, checked. :raises BadArgument: one is unknown, of the wrong type or out of range."""

    @abstractmethod
    def fit(self, task: Task) -> Fitted:
        """Fit. :raises BadArgument: the parameters do not fit the data."""


def trainer_of(name: str) -> Trainer:
    """
    The trainer of a name or of an estimator's import path.

    :raises BadArgument: neither.
    :raises BadConfiguration: its library is not installed.
    """
    prepare_environment()
    if name == "xgboost":
        return XGBoostTrainer()
    if name == "lightgbm":
        return LightGBMTrainer()
    if "." not in name and ":" not in name:
        raise BadArgument(
            f"there is no trainer {name!r}",
            "use xgboost, lightgbm or the import path of an estimator, e.g. sklearn.linear_model.LogisticRegression",
        )
    from airloop.training.estimators import EstimatorTrainer

    return EstimatorTrainer(name)


class XGBoostTrainer(Trainer):
    """Gradient boosted trees of XGBoost, histogram method. Importance: mean gain of the splits on a feature."""

    # Sums of gradients are added up in one order, whatever the threads: seen equal with 1 to 8 of them.
    determinism = Determinism("bytes", 0.0, "any number of threads, one kind of processor")
    name = "xgboost"
    flavor = "xgboost"
    file = "model.ubj"

    def __init__(self) -> None:
        self.requires = (installed("xgboost-cpu", "xgboost", need="trainer xgboost"),)

    def read_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return read_parameters(XGBoostParameters, given, trainer=self.name)

    def fit(self, task: Task) -> Fitted:
        xgboost = import_xgboost()
        chosen = dict(task.parameters)
        rounds, metric = chosen.pop("n_estimators"), chosen.pop("eval_metric")
        monotone = constraints(chosen.pop("monotone_constraints"), (f.name for f in task.features), trainer=self.name)
        settings = chosen | {
            "objective": "binary:logistic",
            "tree_method": "hist",
            # The last one is what early stopping looks at.
            "eval_metric": list(dict.fromkeys(["logloss", metric])),
            "seed": task.seed,
            "nthread": task.threads,
        }
        if any(monotone):
            settings["monotone_constraints"] = tuple(monotone)
        described: dict[str, Any] = {
            "feature_names": plain_names(task.features),
            "feature_types": ["c" if f.kind == "category" else "q" for f in task.features],
            "enable_categorical": True,
            "nthread": task.threads,
        }
        train = xgboost.QuantileDMatrix(
            task.train.matrix,
            task.train.labels,
            weight=task.weights(task.train),
            max_bin=chosen["max_bin"],
            **described,
        )
        watched = [(train, "train")]
        stop = EARLY_STOPPING_ROUNDS if task.early_stopping_rounds is None else task.early_stopping_rounds
        if len(task.validation):
            validation = xgboost.QuantileDMatrix(
                task.validation.matrix,
                task.validation.labels,
                weight=task.weights(task.validation),
                ref=train,
                max_bin=chosen["max_bin"],
                **described,
            )
            watched.append((validation, "validation"))
        else:
            stop = 0
        curves: dict[str, dict[str, list[float]]] = {}
        booster = xgboost.train(
            settings,
            train,
            num_boost_round=rounds,
            evals=watched,
            evals_result=curves,
            early_stopping_rounds=stop or None,
            verbose_eval=False,
        )
        used = booster.best_iteration + 1 if stop else booster.num_boosted_rounds()
        if used < booster.num_boosted_rounds():
            # Whoever loads the file gets the model that was measured, not the rounds after it.
            booster = booster[:used]
        gains = booster.get_score(importance_type="gain")
        return Fitted(
            flavor=self.flavor,
            save=lambda folder: booster.save_model(folder / self.file),
            best_iteration=used,
            curves={split: {m: [float(v) for v in values] for m, values in by.items()} for split, by in curves.items()},
            importance={
                f.name: float(gains.get(n, 0.0)) for f, n in zip(task.features, described["feature_names"], strict=True)
            },
        )

    @classmethod
    def load(cls, folder: Path, threads: int) -> Predictor:
        booster = import_xgboost().Booster(model_file=folder / cls.file)
        booster.set_param({"nthread": threads})

        def predict(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
            if not len(matrix):
                return np.empty(0)
            return np.asarray(booster.inplace_predict(matrix, validate_features=False), dtype=np.float64)

        return predict


class LightGBMTrainer(Trainer):
    """Gradient boosted trees of LightGBM, deterministic mode. Importance: mean gain of the splits on a feature."""

    determinism = Determinism("bytes", 0.0, "any number of threads, one kind of processor")
    name = "lightgbm"
    flavor = "lightgbm"
    file = "model.txt"

    def __init__(self) -> None:
        self.requires = (installed("lightgbm", need="trainer lightgbm", extra="lightgbm"),)

    def read_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return read_parameters(LightGBMParameters, given, trainer=self.name)

    def fit(self, task: Task) -> Fitted:
        lightgbm = import_lightgbm()
        chosen = dict(task.parameters)
        rounds, metric = chosen.pop("n_estimators"), chosen.pop("eval_metric")
        monotone = constraints(chosen.pop("monotone_constraints"), (f.name for f in task.features), trainer=self.name)
        names = {"logloss": "binary_logloss", "error": "binary_error"}
        settings = chosen | {
            "objective": "binary",
            "metric": list(dict.fromkeys([names.get(metric, metric), "binary_logloss"])),
            "seed": task.seed,
            "deterministic": True,
            # Chosen by a timing otherwise, which would make two runs differ.
            "force_row_wise": True,
            "num_threads": task.threads,
            "verbosity": -1,
        }
        if any(monotone):
            settings["monotone_constraints"] = monotone
        described: dict[str, Any] = {
            "feature_name": plain_names(task.features),
            "categorical_feature": [i for i, f in enumerate(task.features) if f.kind == "category"],
            "params": {"verbosity": -1, "max_bin": chosen["max_bin"]},
        }
        train = lightgbm.Dataset(task.train.matrix, task.train.labels, weight=task.weights(task.train), **described)
        watched, watched_names = [train], ["train"]
        stop = EARLY_STOPPING_ROUNDS if task.early_stopping_rounds is None else task.early_stopping_rounds
        if len(task.validation):
            watched.append(
                lightgbm.Dataset(
                    task.validation.matrix,
                    task.validation.labels,
                    weight=task.weights(task.validation),
                    reference=train,
                    **described,
                )
            )
            watched_names.append("validation")
        else:
            stop = 0
        curves: dict[str, dict[str, list[float]]] = {}
        callbacks = [lightgbm.record_evaluation(curves)]
        if stop:
            callbacks.append(lightgbm.early_stopping(stop, first_metric_only=True, verbose=False))
        booster = lightgbm.train(
            settings, train, num_boost_round=rounds, valid_sets=watched, valid_names=watched_names, callbacks=callbacks
        )
        used = booster.best_iteration if stop and booster.best_iteration > 0 else booster.current_iteration()
        gains = booster.feature_importance("gain", iteration=used)
        splits = booster.feature_importance("split", iteration=used)
        known = {full: short for short, full in names.items()}
        return Fitted(
            flavor=self.flavor,
            save=lambda folder: booster.save_model(folder / self.file, num_iteration=used),
            best_iteration=int(used),
            curves={
                split: {known.get(m, m): [float(v) for v in values] for m, values in by.items()}
                for split, by in curves.items()
            },
            importance={
                f.name: float(g / n) if n else 0.0 for f, g, n in zip(task.features, gains, splits, strict=True)
            },
        )

    @classmethod
    def load(cls, folder: Path, threads: int) -> Predictor:
        booster = import_lightgbm().Booster(model_file=folder / cls.file)

        def predict(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
            if not len(matrix):
                return np.empty(0)
            return np.asarray(booster.predict(matrix, num_threads=threads), dtype=np.float64)

        return predict


def load_predictor(flavor: str, folder: Path, *, trainer: str, trusted: Sequence[str], threads: int) -> Predictor:
    """
    Read a saved model.

    :param trusted: types beyond the reader's own list that the bundle names; checked before they are trusted.
    :raises NotFound: the flavour is not known here.
    """
    prepare_environment()
    if flavor == "xgboost":
        return XGBoostTrainer.load(folder, threads)
    if flavor == "lightgbm":
        return LightGBMTrainer.load(folder, threads)
    if flavor == "sklearn":
        from airloop.training.estimators import EstimatorTrainer

        return EstimatorTrainer.load(folder, trainer=trainer, trusted=trusted)
    raise NotFound(f"a model of flavour {flavor!r} cannot be read here", "is this airloop older than the model?")


def positive_weight(labels: NDArray[np.float64], imbalance: Imbalance) -> float:
    """Weight of a positive row: 1, or with ``balanced`` the number of negatives by that of positives."""
    positives = float(labels.sum())
    return (len(labels) - positives) / positives if imbalance == "balanced" else 1.0


def deflate(scores: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Probabilities whose odds are those of ``scores`` divided by ``factor``: ``p / (p + factor (1 - p))``."""
    return scores if factor == 1.0 else scores / (scores + factor * (1 - scores))


def odds_factor(scores: NDArray[np.float64], labels: NDArray[np.float64], weight: float) -> float:
    """
    By how much a model fitted with positives of a certain weight overstates the odds.

    In theory by the weight (Elkan, The Foundations of Cost-Sensitive Learning, 2001, theorem 2). In practice by less
    where trees end in pure leaves or boosting overfits, so the factor is the one with which the mean score of rows
    that the model was not fitted on is their rate of positives.

    :param scores: of validation rows, shape ``(n,)``; without both classes among them, theory has to do.
    :param weight: of positives while fitting.
    """
    rate = float(labels.mean()) if len(labels) else 0.0
    if weight == 1.0 or not 0 < rate < 1:
        return weight
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if deflate(scores, float(np.exp(middle))).mean() > rate:
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def installed(*distributions: str, need: str, extra: str = "") -> str:
    """
    The first of the distributions that is installed.

    :raises BadConfiguration: none is.
    """
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    what = f"'airloop[{extra}]'" if extra else distributions[0]
    raise BadConfiguration(f"{need} needs {distributions[0]}, which is not installed", f"pip install {what}")


def import_xgboost() -> Any:
    """XGBoost."""
    return importlib.import_module("xgboost")


def import_lightgbm() -> Any:
    """LightGBM. :raises BadConfiguration: it is not installed."""
    installed("lightgbm", need="trainer lightgbm", extra="lightgbm")
    return importlib.import_module("lightgbm")


def plain_names(features: Sequence[FeatureSpec]) -> list[str]:
    """Names that every library's model file can hold, in feature order, all distinct."""
    names = [re.sub(r"[^A-Za-z0-9_]", "_", f.name) for f in features]
    return names if len(set(names)) == len(names) else [f"f{i}_{n}" for i, n in enumerate(names)]
