"""
The steps of a loop as operators, in the order of a loop.

Each is a named, typed list of its step's arguments; what they do stands in ``airloop.steps``, what all of them share
in :class:`~airloop_operators.base.StepOperator`. An argument that is not given takes the step's own default. Files
named ``*.yaml``, ``*.json`` or ``*.sql`` are read from beside the DAG file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from airloop_operators.base import StepOperator

Result = Any
"""A reference as text, or the ``output`` of the task that makes it."""


class ExtractOperator(StepOperator):
    """
    Bring an interval of files into an Iceberg table, on an audit branch that readers do not see.

    :param source: source specification: YAML file beside the DAG file, or a mapping. (templated)
    :param files: paths, globs, or ``package:NAME/path/in/package``. (templated)
    :param table: ``namespace.table``; default the specification's. (templated)
    """

    step_name: ClassVar[str] = "extract"
    step_arguments: ClassVar[tuple[str, ...]] = ("source", "files", "table")
    template_fields = (*StepOperator.template_fields, *step_arguments)
    template_ext = (".yaml", ".yml")

    def __init__(
        self,
        *,
        source: str | Mapping[str, Any],
        files: str | Sequence[str],
        table: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.files = files
        self.table = table


class ValidateOperator(StepOperator):
    """
    Check an audit branch's new rows with a Great Expectations suite; publish them only if they pass.

    :param table: the result of an extract task. (templated)
    :param suite: expectation suite: JSON or YAML file beside the DAG file, or a mapping. (templated)
    :param max_quarantined_share: share of the new rows, 0 to 1, that may be put into quarantine by rules marked for
        it while the rest is published. (templated)
    """

    step_name: ClassVar[str] = "validate"
    step_arguments: ClassVar[tuple[str, ...]] = ("table", "suite", "max_quarantined_share")
    template_fields = (*StepOperator.template_fields, *step_arguments)
    template_ext = (".json", ".yaml", ".yml")

    def __init__(
        self,
        *,
        table: Result,
        suite: str | Mapping[str, Any],
        max_quarantined_share: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.suite = suite
        self.max_quarantined_share = max_quarantined_share


class SqlOperator(StepOperator):
    """
    Compute a table from snapshots of others with one DuckDB ``SELECT``.

    :param sql: the statement, or a ``.sql`` file beside the DAG file; sees ``inputs`` as tables and the parameters
        ``$interval_start`` and ``$interval_end``. (templated)
    :param inputs: table by the name that the statement uses. (templated)
    :param table: ``namespace.table`` to write. (templated)
    :param key: columns that identify a row. (templated)
    :param mode: ``upsert`` by key, ``replace`` the whole table, or ``append``. (templated)
    :param partition_by: Iceberg partition of a new table: ``month(column)``, ``day(column)``, ``identity(column)``.
        (templated)
    """

    step_name: ClassVar[str] = "sql"
    step_arguments: ClassVar[tuple[str, ...]] = ("sql", "inputs", "table", "key", "mode", "partition_by")
    template_fields = (*StepOperator.template_fields, *step_arguments)
    template_ext = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"sql": "sql"}

    def __init__(
        self,
        *,
        sql: str,
        inputs: Mapping[str, Result],
        table: str,
        key: Sequence[str],
        mode: Literal["upsert", "replace", "append"] | None = None,
        partition_by: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sql = sql
        self.inputs = inputs
        self.table = table
        self.key = key
        self.mode = mode
        self.partition_by = partition_by


class BuildLabelsOperator(SqlOperator):
    """
    Compute labels: a :class:`SqlOperator` whose rows must say when each label became known.

    The statement must give ``event_time`` (time of prediction), ``arrival_time`` (when the label became known) and
    ``label``.

    :param sql: the statement, or a ``.sql`` file beside the DAG file. (templated)
    :param inputs: table by the name that the statement uses. (templated)
    :param table: ``namespace.table`` to write. (templated)
    :param key: columns that identify a labelled entity at a time. (templated)
    :param mode: ``upsert`` by key, ``replace`` the whole table, or ``append``. (templated)
    :param partition_by: Iceberg partition of a new table. (templated)
    """

    step_name: ClassVar[str] = "build_labels"


class MaterializeFeaturesOperator(StepOperator):
    """
    Fill the online store with the newest known value of each feature, switched for readers in one transaction.

    :param feature_service: name of the Feast feature service. (templated)
    :param tables: snapshots of the feature tables. (templated)
    """

    step_name: ClassVar[str] = "materialize"
    step_arguments: ClassVar[tuple[str, ...]] = ("feature_service", "tables")
    template_fields = (*StepOperator.template_fields, *step_arguments)

    def __init__(self, *, feature_service: str, tables: Sequence[Result], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature_service = feature_service
        self.tables = tables


class BuildTrainingSetOperator(StepOperator):
    """
    Join labels with features as they were known at prediction time; refuse any that arrived later.

    :param labels: the result of a labels task. (templated)
    :param feature_service: name of the Feast feature service. (templated)
    :param tables: snapshots of the feature tables. (templated)
    :param table: ``namespace.table`` to write; a snapshot of it is one training set. (templated)
    :param window: how far back from the interval's end examples are taken: ``90d``; default all. (templated)
    :param holdout: last part of the window that no model is trained on: ``7d``. (templated)
    :param validation: part before the hold-out, for early stopping: ``7d``. (templated)
    """

    step_name: ClassVar[str] = "build_training_set"
    step_arguments: ClassVar[tuple[str, ...]] = (
        "labels",
        "feature_service",
        "tables",
        "table",
        "window",
        "holdout",
        "validation",
    )
    template_fields = (*StepOperator.template_fields, *step_arguments)

    def __init__(
        self,
        *,
        labels: Result,
        feature_service: str,
        tables: Sequence[Result],
        table: str,
        window: str | None = None,
        holdout: str | None = None,
        validation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        self.feature_service = feature_service
        self.tables = tables
        self.table = table
        self.window = window
        self.holdout = holdout
        self.validation = validation


class BatchScoreOperator(StepOperator):
    """
    Score an interval's entities with a model, point in time, into a prediction table.

    :param model: ``delay@champion`` (as of the interval's start), ``delay@3``, or a result. (templated)
    :param entities: table with the entities, their time and their request-time features. (templated)
    :param feature_service: name of the Feast feature service. (templated)
    :param tables: snapshots of the feature tables. (templated)
    :param table: ``namespace.table`` of the predictions. (templated)
    """

    step_name: ClassVar[str] = "batch_score"
    step_arguments: ClassVar[tuple[str, ...]] = ("model", "entities", "feature_service", "tables", "table")
    template_fields = (*StepOperator.template_fields, *step_arguments)

    def __init__(
        self,
        *,
        model: Result,
        entities: Result,
        feature_service: str,
        tables: Sequence[Result],
        table: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.entities = entities
        self.feature_service = feature_service
        self.tables = tables
        self.table = table


class TrainOperator(StepOperator):
    """
    Train a challenger on a training set.

    :param examples: the result of a training-set task. (templated)
    :param trainer: ``xgboost``, ``lightgbm``, or the import path of a scikit-learn-compatible classifier. (templated)
    :param params: the trainer's parameters; unknown ones are refused. (templated)
    :param features: columns to train on; default all that the training set names. (templated)
    :param experiment: MLflow experiment; default the training set's table. (templated)
    :param seed: seed of every random choice. (templated)
    :param early_stopping_rounds: rounds without a better validation loss before training stops. (templated)
    :param imbalance: ``none`` or ``balanced`` class weights. (templated)
    """

    step_name: ClassVar[str] = "train"
    step_arguments: ClassVar[tuple[str, ...]] = (
        "examples",
        "trainer",
        "features",
        "experiment",
        "seed",
        "early_stopping_rounds",
        "imbalance",
    )
    template_fields = (*StepOperator.template_fields, *step_arguments, "trainer_params")

    def __init__(
        self,
        *,
        examples: Result,
        trainer: str | None = None,
        trainer_params: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
        experiment: str | None = None,
        seed: int | None = None,
        early_stopping_rounds: int | None = None,
        imbalance: Literal["none", "balanced"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.examples = examples
        self.trainer = trainer
        self.trainer_params = trainer_params
        self.features = features
        self.experiment = experiment
        self.seed = seed
        self.early_stopping_rounds = early_stopping_rounds
        self.imbalance = imbalance
