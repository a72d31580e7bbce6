"""From examples to a bundle: fit, save, load what was saved, and measure that."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airloop.domain.calibration import expected_calibration_error
from airloop.domain.metrics import all_metrics
from airloop.errors import BadInput
from airloop.training.examples import Examples
from airloop.training.mlmodel import requirements
from airloop.training.models import Model, load_bundle, write_bundle
from airloop.training.summary import summarise
from airloop.training.trainers import (
    Imbalance,
    Split,
    Task,
    Trainer,
    deflate,
    load_predictor,
    odds_factor,
    positive_weight,
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A bundle in a folder."""

    model: Model
    digest: str
    """Of the bundle's files, SHA-256, hex."""
    warnings: tuple[str, ...]


def train_bundle(
    folder: Path,
    examples: Examples,
    trainer: Trainer,
    *,
    parameters: Mapping[str, Any],
    target: str,
    source: str,
    seed: int,
    threads: int,
    early_stopping_rounds: int | None,
    imbalance: Imbalance,
) -> Trained:
    """
    Fit and save. The same arguments give the same predictions, and with the boosting trainers the same bytes.

    :param folder: empty; becomes the bundle.
    :param parameters: all of them, from :meth:`Trainer.read_parameters`.
    :param source: reference of the training table, for the record.
    :param threads: how fast, never what.
    :raises BadArgument: the parameters do not fit the data.
    """
    weight = positive_weight(examples.train.labels, imbalance)
    fitted = trainer.fit(
        Task(
            features=examples.features,
            train=examples.train,
            validation=examples.validation,
            parameters=parameters,
            seed=seed,
            threads=threads,
            early_stopping_rounds=early_stopping_rounds,
            positive_weight=weight,
        )
    )
    fitted.save(folder)
    bundle: dict[str, Any] = {
        "trainer": trainer.name,
        "flavor": fitted.flavor,
        "task": "binary",
        "target": target,
        "features": [f.as_json() for f in examples.features],
        "left_out": list(examples.left_out),
        "parameters": dict(parameters),
        "seed": seed,
        "early_stopping_rounds": early_stopping_rounds,
        "imbalance": imbalance,
        "positive_weight": weight,
        "best_iteration": fitted.best_iteration,
        "examples": source,
        "rows_train": len(examples.train),
        "rows_validation": len(examples.validation),
        "curves": fitted.curves,
        "importance": fitted.importance,
        "determinism": asdict(trainer.determinism),
        "trusted": fitted.trusted,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in (*trainer.requires, "numpy")},
        "requirements": requirements(trainer.requires),
    }
    predictor = load_predictor(fitted.flavor, folder, trainer=trainer.name, trusted=fitted.trusted, threads=threads)
    raw = {"train": predictor(examples.train.matrix), "validation": predictor(examples.validation.matrix)}
    bundle["odds_factor"] = odds_factor(raw["validation"], examples.validation.labels, weight)
    metrics: dict[str, float] = {}
    scores = {}
    for name, split in (("train", examples.train), ("validation", examples.validation)):
        scores[name] = deflate(raw[name], bundle["odds_factor"])
        metrics |= measure(name, split, scores[name], trainer.name)
    # Scores of rows that the model was fitted on are too sure of themselves to compare later ones with.
    unseen = scores["validation"] if len(examples.validation) else scores["train"]
    bundle["metrics"] = metrics
    bundle["reference"] = summarise(examples.train.matrix, examples.train.labels, examples.features, unseen)
    bundle["warnings"] = [*examples.warnings, *fitted.warnings]
    digest = write_bundle(folder, bundle)
    return Trained(load_bundle(folder, threads=threads, digest=digest), digest, tuple(bundle["warnings"]))


def measure(name: str, split: Split, scores: Any, trainer: str) -> dict[str, float]:
    """
    Metrics of one split, named ``<split>_<metric>``; those that its rows do not define are left out.

    :raises BadInput: a score is no probability.
    """
    if not len(split):
        return {}
    if not ((scores >= 0) & (scores <= 1)).all():
        raise BadInput(f"trainer {trainer} gives scores that are no probabilities (first: {scores[:3].tolist()})")
    found = all_metrics(split.labels, scores) | {
        "calibration_error": expected_calibration_error(split.labels, scores),
        "label_rate": float(split.labels.mean()),
        "mean_score": float(scores.mean()),
    }
    return {f"{name}_{metric}": value for metric, value in found.items()}
