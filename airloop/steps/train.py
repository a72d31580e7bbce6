"""Train a candidate model on a snapshot of a training table, and log it in MLflow."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from airloop.frame import StepContext, StepResult, step
from airloop.frame.key import is_installed, reach
from airloop.registry.refs import ModelRef
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.training.models import Model

LIBRARIES = {"xgboost": ("xgboost-cpu", "xgboost"), "lightgbm": ("lightgbm",), "sklearn": ("scikit-learn",)}


class TrainerChoice(BaseModel):
    """
    A trainer and the code behind its name, so that changing an estimator of one's own changes the step's key:
    ``xgboost``, ``lightgbm``, or the import path of an estimator, ``package.module.Class``.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    code: dict[str, str] = {}
    """SHA-256 by module, of an estimator outside the installed packages and of what it imports beside itself."""
    libraries: dict[str, str] = {}
    """Version by distribution, of an installed one."""

    def __repr__(self) -> str:
        return repr(self.name)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip()
        top = name.replace(":", ".").partition(".")[0]
        if name and "." not in name and ":" not in name and name not in ("xgboost", "lightgbm"):
            raise ValueError(f"no trainer {name!r}: xgboost, lightgbm or an estimator's import path")
        if not top.isidentifier():
            raise ValueError(f"{value!r} is neither xgboost, lightgbm nor an import path")
        if name in LIBRARIES or top == "sklearn":
            return {"name": name, "libraries": _versions(LIBRARIES[top])}
        module = name.rpartition(":" if ":" in name else ".")[0]
        if is_installed(top):
            return {"name": name, "libraries": _versions(packages_distributions().get(top, []))}
        return {"name": name, "code": reach(module)}


def _versions(distributions: Any) -> dict[str, str]:
    found = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # one of several that may provide the library; the trainer itself says if none is there
    return found


@step(libraries=("numpy", "pyarrow"))
def train(
    ctx: StepContext,
    *,
    examples: TableRef,
    trainer: TrainerChoice = TrainerChoice.model_validate("xgboost"),  # noqa: B008
    hyperparameters: dict[str, Any] = {},
    target: str = "label",
    features: list[str] | None = None,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0,
    early_stopping_rounds: Annotated[int | None, Field(ge=0)] = None,
    imbalance: Literal["none", "balanced"] = "none",
    experiment: str = "",
) -> StepResult:
    """Train a candidate model on the rows of split ``train``, stop early on those of ``validation``.

    The rows of split ``holdout`` are the gate's and never read. The same snapshot, arguments and code give equal
    predictions. One MLflow run holds parameters, curves, metrics, the data's snapshot and the model.

    :param examples: the training table, with the columns ``split`` and the target.
    :param trainer: ``xgboost``, ``lightgbm``, or the import path of a classifier with scikit-learn's interface.
    :param hyperparameters: parameters of the trainer; checked, an unknown one is an error.
    :param target: column with the answer, 0 or 1 or boolean.
    :param features: columns to learn from, in this order; default those that the training table's builder recorded.
    :param seed: of everything that is drawn at random.
    :param early_stopping_rounds: rounds without improvement on the validation rows after which boosting ends; 0:
        never; default 30 for boosting trainers. An estimator decides that by its own hyperparameters.
    :param imbalance: ``balanced`` weighs both classes alike while fitting and brings the scores back to the rate of
        the training rows, so that they stay probabilities; ``none`` leaves the rows as they are.
    :param experiment: MLflow experiment; default the training table's name.
    """
    from airloop.training import tracking
    from airloop.training.examples import feature_names, read_examples
    from airloop.training.fit import train_bundle
    from airloop.training.mlmodel import describe_dataset, write_mlmodel
    from airloop.training.models import load_model
    from airloop.training.trainers import trainer_of

    chosen = trainer_of(trainer.name)
    parameters = chosen.read_parameters(hyperparameters)
    names = feature_names(ctx.warehouse, examples, target=target, named=features)
    data = read_examples(ctx.warehouse, examples, target=target, features=names)
    experiment_name = experiment or examples.name.rpartition(".")[2]
    # Before the work: an MLflow that does not answer costs seconds, not a training.
    experiment_id = tracking.experiment_id(ctx.config, experiment_name)
    earlier = tracking.finished_run(ctx.config, experiment_id, ctx.key)
    if earlier is not None and not ctx.call.force:
        run_id = earlier.info.run_id
        ctx.log.info("Adopted MLflow run %s: an earlier attempt at this key finished it", run_id)
        return _result(ctx, load_model(ctx.config, f"model:/run/{run_id}"), examples, experiment_id)
    killed = tracking.end_leftovers(ctx.config, experiment_id, ctx.key)
    if killed:
        ctx.log.warning("Marked %d MLflow run(s) of killed attempts as KILLED", killed)

    ctx.log.info(
        "Training %s on %s rows with %d features, %s validation rows, %.1f%% positive",
        chosen.name, f"{len(data.train):,}", len(data.features), f"{len(data.validation):,}",
        100 * data.train.labels.mean(),
    )  # fmt: skip
    bundle = ctx.workdir / "bundle"
    bundle.mkdir()
    trained = train_bundle(
        bundle,
        data,
        chosen,
        parameters=parameters,
        target=target,
        source=str(examples),
        seed=seed,
        threads=ctx.config.cpu_threads(),
        early_stopping_rounds=early_stopping_rounds,
        imbalance=imbalance,
    )
    for warning in trained.warnings:
        ctx.log.warning("%s", warning)
    if not len(data.validation):
        ctx.log.warning("%s has no validation rows: no early stopping, nothing measured on unseen rows", examples)
    ctx.point("train:fitted")
    ctx.publish("bundle", bundle)
    if earlier is not None and earlier.data.tags.get(tracking.BUNDLE_TAG) == trained.digest:
        ctx.log.info("The model is byte for byte that of MLflow run %s, which stays", earlier.info.run_id)
        return _result(ctx, load_model(ctx.config, f"model:/run/{earlier.info.run_id}"), examples, experiment_id)
    folder = ctx.workdir / "model"
    write_mlmodel(folder, bundle, trained.model)
    run = ctx.call.run
    run_id, _ = tracking.log_run(
        ctx.config,
        experiment=experiment_id,
        name=f"{chosen.name.rpartition('.')[2]} {run.run_id or ctx.key[:12]}",
        tags={
            tracking.KEY_TAG: ctx.key,
            tracking.BUNDLE_TAG: trained.digest,
            "airloop.step": ctx.call.step,
            "airloop.dag_id": run.dag_id,
            "airloop.run_id": run.run_id,
            "airloop.task_id": run.task_id,
            "airloop.interval": str(ctx.call.interval or ""),
            "airloop.examples": str(examples),
        },
        parameters={
            **parameters,
            "trainer": chosen.name,
            "seed": seed,
            "imbalance": imbalance,
            "early_stopping_rounds": early_stopping_rounds,
            "best_iteration": trained.model.bundle["best_iteration"],
        },
        curves=trained.model.bundle["curves"],
        metrics=trained.model.bundle["metrics"],
        datasets=[
            describe_dataset(examples, split, rows, trained.model)
            for split, rows in (("train", len(data.train)), ("validation", len(data.validation)))
        ],
        model=folder,
    )
    return _result(ctx, load_model(ctx.config, f"model:/run/{run_id}"), examples, experiment_id)


def _result(ctx: StepContext, model: Model, examples: TableRef, experiment_id: str) -> StepResult:
    """What an attempt hands over, whether it trained or adopted."""
    from airloop.training import tracking

    bundle = model.bundle
    return StepResult(
        outputs={"model": ModelRef.parse(model.uri), "examples": examples},
        counts={
            "rows_train": bundle["rows_train"],
            "rows_validation": bundle["rows_validation"],
            "features": len(bundle["features"]),
            **({"iterations": bundle["best_iteration"]} if bundle["best_iteration"] is not None else {}),
        },
        metrics=dict(bundle["metrics"]),
        details={
            "trainer": bundle["trainer"],
            "parameters": bundle["parameters"],
            "best_iteration": bundle["best_iteration"],
            "importance": dict(sorted(bundle["importance"].items(), key=lambda item: -item[1])),
            "curves": bundle["curves"],
            "reference": bundle["reference"],
            "features": [f["name"] for f in bundle["features"]],
            "left_out": bundle["left_out"],
            "positive_weight": bundle["positive_weight"],
            "libraries": bundle["libraries"],
            # Bundles of an earlier airloop say nothing of it.
            "determinism": bundle.get("determinism"),
            "warnings": bundle["warnings"],
            "mlflow": {"run_id": model.run_id, "experiment_id": experiment_id},
        },
        links={
            "mlflow": tracking.run_address(ctx.config, experiment_id, model.run_id),
            "bundle": ctx.artifacts.uri(f"{ctx.folder}/bundle"),
        },
    )
