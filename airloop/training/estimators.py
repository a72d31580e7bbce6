"""
Any binary classifier with scikit-learn's interface, by import path.

The estimator sees numbers without gaps, made by a pipeline that is saved with it:

- an estimator that takes NaN (histogram gradient boosting) gets the encoded matrix as it is;
- trees and ensembles of trees get gaps filled, medians for numbers and -1 for categories, which stay codes;
- every other one gets numbers with gaps filled by the median and scaled to mean 0 and variance 1, booleans alike
  unscaled, and categories one-hot; a category that training has not seen is all zeros.

Saved by skops, never by pickle. Reading trusts the types of scikit-learn, NumPy and SciPy and those of the
estimator's own package, nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from airloop.errors import BadArgument, BadInput, NotFound
from airloop.training.parameters import check_names
from airloop.training.trainers import Determinism, Fitted, Predictor, Task, Trainer, installed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airloop.training.features import FeatureSpec

TRUSTED_PACKAGES = ("sklearn", "numpy", "scipy")


class EstimatorTrainer(Trainer):
    """
    Fits an estimator class. Importance: the estimator's ``feature_importances_``, or the mean absolute coefficient
    on prepared features; of a one-hot feature the sum. Early stopping is the estimator's own business.
    """

    # A file holds the time at which it was written; sums over threads may differ in the last digits.
    determinism = Determinism("predictions", 1e-9, "the same number of threads, one kind of processor")
    flavor = "sklearn"
    file = "model.skops"

    def __init__(self, path: str) -> None:
        self.name = path
        self.cls = import_estimator(path)
        self.requires = (
            installed("scikit-learn", need=f"trainer {path}"),
            installed("skops", need=f"trainer {path}"),
        )

    def read_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        taken = {
            name: parameter
            for name, parameter in inspect.signature(self.cls.__init__).parameters.items()
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        check_names(given, taken, trainer=self.name)
        missing = [n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in given]
        if missing:
            raise BadArgument(f"hyperparameters: trainer {self.name} needs {', '.join(missing)}")
        return dict(given)

    def fit(self, task: Task) -> Fitted:
        from sklearn.pipeline import Pipeline

        if task.early_stopping_rounds:
            raise BadArgument(
                f"early_stopping_rounds is not for trainer {self.name}",
                "leave it out; the estimator's own hyperparameters decide when it stops",
            )
        estimator, weighted = self._estimator(task)
        pipeline = Pipeline([("prepare", preparation(task.features, estimator)), ("estimate", estimator)])
        fit_arguments: dict[str, Any] = {}
        if task.positive_weight != 1.0 and not weighted:
            if "sample_weight" not in inspect.signature(estimator.fit).parameters:
                raise BadArgument(
                    f"trainer {self.name} takes neither class_weight nor sample_weight", "use imbalance='none'"
                )
            fit_arguments["estimate__sample_weight"] = task.weights(task.train)
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                pipeline.fit(task.train.matrix, task.train.labels.astype(np.int64), **fit_arguments)
            except ValueError as cause:
                # scikit-learn checks parameters only now; its error names parameter, range and value.
                if type(cause).__name__ == "InvalidParameterError":
                    raise BadArgument(f"hyperparameters of trainer {self.name}: {cause}") from cause
                raise
        if "n_jobs" in estimator.get_params(deep=False):
            # Forests add up their trees' votes in whatever order threads end: the last digits would vary.
            estimator.set_params(n_jobs=None)
        trusted = untrusted_types(pipeline, self.name)
        return Fitted(
            flavor=self.flavor,
            save=lambda folder: _dump(pipeline, folder / self.file),
            importance=_importance(pipeline, task.features),
            trusted=trusted,
            warnings=sorted({f"{w.category.__name__}: {w.message}" for w in raised}),
        )

    def _estimator(self, task: Task) -> tuple[Any, bool]:
        """The estimator, and whether it weighs the classes itself."""
        taken = inspect.signature(self.cls.__init__).parameters
        settings = dict(task.parameters)
        if "random_state" in taken:
            settings["random_state"] = task.seed
        if "n_jobs" in taken and not self._ignores_n_jobs():
            settings["n_jobs"] = task.threads
        weighted = "class_weight" in taken and task.positive_weight != 1.0
        if weighted:
            settings["class_weight"] = {0: 1.0, 1: task.positive_weight}
        try:
            estimator = self.cls(**settings)
        except (TypeError, ValueError) as cause:
            raise BadArgument(f"hyperparameters of trainer {self.name}: {cause}") from cause
        return estimator, weighted

    def _ignores_n_jobs(self) -> bool:
        # Deprecated and without effect there since scikit-learn 1.8; setting it warns.
        return self.cls.__module__.startswith("sklearn.linear_model._logistic")

    @classmethod
    def load(cls, folder: Path, *, trainer: str, trusted: Sequence[str]) -> Predictor:
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException

        owner = import_estimator(trainer)
        allowed = {*TRUSTED_PACKAGES, owner.__module__.partition(".")[0]}
        refused = sorted(t for t in trusted if t.partition(".")[0] not in allowed)
        if refused:
            raise BadInput(
                f"the model of trainer {trainer} asks to trust {', '.join(refused)}",
                "only types of scikit-learn, NumPy, SciPy and the estimator's own package are trusted",
            )
        try:
            pipeline = skops.io.load(folder / cls.file, trusted=list(trusted))
        except UntrustedTypesFoundException as cause:
            raise BadInput(f"the model of trainer {trainer} holds types that it does not name: {cause}") from cause
        positive = list(pipeline.classes_).index(1)

        def predict(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
            if not len(matrix):
                return np.empty(0)
            return np.asarray(pipeline.predict_proba(matrix)[:, positive], dtype=np.float64)

        return predict


def import_estimator(path: str) -> type[Any]:
    """
    The class at ``package.module.Class`` or ``package.module:Class``.

    :raises BadArgument: it is no binary classifier with scikit-learn's interface.
    :raises NotFound: nothing is there.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise BadArgument(f"trainer {path!r} is in the standard library, which has no estimator")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as cause:
        top = module_name.partition(".")[0]
        if cause.name is None or cause.name.partition(".")[0] != top:
            raise
        raise NotFound(
            f"trainer {path!r}: there is no module {cause.name}", "is the package installed here?"
        ) from cause
    except AttributeError as cause:
        raise NotFound(f"trainer {path!r}: module {module_name} has no {name}") from cause
    if not isinstance(found, type) or not callable(getattr(found, "fit", None)):
        raise BadArgument(f"trainer {path!r} is no estimator class", "give a class with fit and predict_proba")
    if getattr(found, "_estimator_type", None) == "regressor" or any(
        c.__name__ == "RegressorMixin" for c in found.__mro__
    ):
        raise BadArgument(f"trainer {path!r} is a regressor", "only binary classification is supported so far")
    if not hasattr(found, "predict_proba"):
        raise BadArgument(
            f"trainer {path!r} has no predict_proba",
            "the gate needs probabilities; wrap it in a class that calibrates it",
        )
    return found


def preparation(features: Sequence[FeatureSpec], estimator: Any) -> Any:
    """The unfitted preparation of the encoded matrix that suits an estimator; see the module's text."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    by_kind = {
        kind: [i for i, f in enumerate(features) if f.kind == kind] for kind in ("number", "boolean", "category")
    }
    if _takes_nan(estimator):
        return "passthrough"
    no_category = SimpleImputer(strategy="constant", fill_value=-1.0)
    if _is_tree(estimator):
        return ColumnTransformer(
            [
                ("numbers", SimpleImputer(strategy="median"), by_kind["number"]),
                ("booleans", SimpleImputer(strategy="most_frequent"), by_kind["boolean"]),
                ("categories", no_category, by_kind["category"]),
            ]
        )
    codes = [np.arange(len(features[i].categories), dtype=np.float64) for i in by_kind["category"]]
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), by_kind["number"]),
            ("booleans", SimpleImputer(strategy="most_frequent"), by_kind["boolean"]),
            (
                "categories",
                make_pipeline(
                    no_category, OneHotEncoder(categories=codes, handle_unknown="ignore", sparse_output=False)
                ),
                by_kind["category"],
            ),
        ]
    )


def untrusted_types(model: Any, trainer: str) -> list[str]:
    """
    Types in a model that a reader has to be told to trust.

    :raises BadArgument: one belongs neither to scikit-learn, NumPy, SciPy nor to the estimator's own package.
    """
    import skops.io

    found = sorted(skops.io.get_untrusted_types(data=skops.io.dumps(model)))
    allowed = {*TRUSTED_PACKAGES, type(model[-1]).__module__.partition(".")[0]}
    foreign = [t for t in found if t.partition(".")[0] not in allowed]
    if foreign:
        raise BadArgument(
            f"trainer {trainer} keeps {', '.join(foreign)}, which a saved model may not hold",
            "keep arrays, numbers and estimators of scikit-learn or of the estimator's own package",
        )
    return found


def _dump(model: Any, path: Path) -> None:
    import skops.io

    skops.io.dump(model, path)


def _takes_nan(estimator: Any) -> bool:
    from sklearn.utils import get_tags

    # A forest takes NaN in training columns that had some, but only there.
    return bool(get_tags(estimator).input_tags.allow_nan) and not _is_tree(estimator)


def _is_tree(estimator: Any) -> bool:
    from sklearn.ensemble import BaseEnsemble, HistGradientBoostingClassifier
    from sklearn.tree import BaseDecisionTree

    if isinstance(estimator, HistGradientBoostingClassifier):
        return False
    if isinstance(estimator, BaseDecisionTree):
        return True
    base = getattr(estimator, "estimator", None)
    return isinstance(estimator, BaseEnsemble) and (base is None or isinstance(base, BaseDecisionTree))


def _importance(pipeline: Any, features: Sequence[FeatureSpec]) -> dict[str, float]:
    estimator, prepare = pipeline[-1], pipeline[0]
    weights = getattr(estimator, "feature_importances_", None)
    if weights is None and hasattr(estimator, "coef_"):
        weights = np.abs(np.atleast_2d(estimator.coef_)).mean(axis=0)
    if weights is None:
        return {}
    totals = dict.fromkeys((f.name for f in features), 0.0)
    if prepare == "passthrough":
        origin = list(range(len(features)))
    else:
        origin = []
        for name, transformer, columns in prepare.transformers_:
            one_hot = transformer[-1] if name == "categories" and hasattr(transformer, "steps") else None
            for place, column in enumerate(columns):
                origin += [column] * (len(one_hot.categories_[place]) if one_hot is not None else 1)
    if len(origin) != len(weights):
        return {}
    for column, weight in zip(origin, weights, strict=True):
        totals[features[column].name] += float(weight)
    return totals
