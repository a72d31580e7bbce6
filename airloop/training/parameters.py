"""Parameters of the built-in trainers: typed, with ranges, and an unknown one is an error that names its neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airloop.errors import BadArgument

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sign = Literal[-1, 0, 1]

RESERVED = {
    "seed": "use the step's own argument seed",
    "random_state": "use the step's own argument seed",
    "nthread": "threads come from AIRLOOP_THREADS",
    "num_threads": "threads come from AIRLOOP_THREADS",
    "n_jobs": "threads come from AIRLOOP_THREADS",
    "objective": "the trainer does binary classification with logistic loss",
    "early_stopping_rounds": "use the step's own argument early_stopping_rounds",
    "scale_pos_weight": "use the step's own argument imbalance='balanced', which keeps probabilities calibrated",
    "is_unbalance": "use the step's own argument imbalance='balanced', which keeps probabilities calibrated",
    "class_weight": "use the step's own argument imbalance='balanced', which keeps probabilities calibrated",
    "enable_categorical": "string columns are categories already",
}
"""Parameters that would work against what the step itself decides, and what to use instead."""


class Parameters(BaseModel):
    """Base: unknown names are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class XGBoostParameters(Parameters):
    """Parameters of the trainer ``xgboost``; named as in XGBoost's scikit-learn interface."""

    n_estimators: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Boosting rounds at most; early stopping ends it before."""
    learning_rate: Share = 0.1
    max_depth: Annotated[int, Field(ge=0, le=64)] = 6
    """0: no limit, for ``grow_policy="lossguide"``."""
    max_leaves: Annotated[int, Field(ge=0)] = 0
    grow_policy: Literal["depthwise", "lossguide"] = "depthwise"
    min_child_weight: NotNegative = 1.0
    gamma: NotNegative = 0.0
    max_delta_step: NotNegative = 0.0
    subsample: Share = 1.0
    colsample_bytree: Share = 1.0
    colsample_bylevel: Share = 1.0
    colsample_bynode: Share = 1.0
    reg_alpha: NotNegative = 0.0
    reg_lambda: NotNegative = 1.0
    max_bin: Annotated[int, Field(ge=2, le=65_536)] = 256
    max_cat_to_onehot: Annotated[int, Field(ge=1)] = 4
    max_cat_threshold: Annotated[int, Field(ge=1)] = 64
    monotone_constraints: dict[str, Sign] = {}
    """By feature: 1 the score may only rise with it, -1 only fall."""
    eval_metric: Literal["logloss", "auc", "aucpr", "error"] = "logloss"
    """What early stopping looks at."""


class LightGBMParameters(Parameters):
    """Parameters of the trainer ``lightgbm``; named as in LightGBM's scikit-learn interface."""

    n_estimators: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Boosting rounds at most; early stopping ends it before."""
    learning_rate: Share = 0.1
    num_leaves: Annotated[int, Field(ge=2, le=131_072)] = 31
    max_depth: Annotated[int, Field(ge=-1, le=64)] = -1
    min_child_samples: Annotated[int, Field(ge=0)] = 20
    min_child_weight: NotNegative = 1e-3
    min_split_gain: NotNegative = 0.0
    subsample: Share = 1.0
    subsample_freq: Annotated[int, Field(ge=0)] = 0
    colsample_bytree: Share = 1.0
    reg_alpha: NotNegative = 0.0
    reg_lambda: NotNegative = 0.0
    max_bin: Annotated[int, Field(ge=2, le=65_536)] = 255
    cat_smooth: NotNegative = 10.0
    cat_l2: NotNegative = 10.0
    monotone_constraints: dict[str, Sign] = {}
    """By feature: 1 the score may only rise with it, -1 only fall."""
    eval_metric: Literal["logloss", "auc", "average_precision", "error"] = "logloss"
    """What early stopping looks at."""


def read_parameters(model: type[Parameters], given: Mapping[str, Any], *, trainer: str) -> dict[str, Any]:
    """
    All parameters of a trainer: the given ones checked, the others at their defaults.

    :raises BadArgument: one is unknown (the text names the nearest known one), of the wrong type or out of range.
    """
    check_names(given, model.model_fields, trainer=trainer)
    try:
        return model.model_validate(dict(given)).model_dump()
    except ValidationError as cause:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}={fault['input']!r}: {fault['msg']}"
            for fault in cause.errors(include_url=False)
        )
        raise BadArgument(f"hyperparameters of trainer {trainer}: {faults}") from cause


def check_names(given: Iterable[str], known: Iterable[str], *, trainer: str) -> None:
    """
    :raises BadArgument: a name is not known; reserved ones come with what to use instead.
    """
    known = sorted(known)
    for name in given:
        if name in RESERVED:
            raise BadArgument(f"hyperparameters: {name} cannot be set here", RESERVED[name])
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise BadArgument(f"hyperparameters: trainer {trainer} has no parameter {name!r}", hint)


def constraints(by_feature: Mapping[str, int], features: Iterable[str], *, trainer: str) -> list[int]:
    """
    Monotone constraints in the model's feature order; 0 where none is given.

    :raises BadArgument: a constraint names no feature of the model.
    """
    names = list(features)
    for name in by_feature:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            raise BadArgument(
                f"monotone_constraints: trainer {trainer} gets no feature {name!r}",
                f"did you mean {near[0]!r}?" if near else "",
            )
    return [by_feature.get(name, 0) for name in names]
