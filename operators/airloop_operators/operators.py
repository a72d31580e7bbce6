"""
The steps of a loop as operators, in the order of a loop.

Each is a named, typed list of its step's arguments; what they do stands in ``airloop.steps``, what all of them share
in :class:`~airloop_operators.base.StepOperator`. An argument that is not given takes the step's own default. Files
named ``*.yaml``, ``*.json`` or ``*.sql`` are read from beside the DAG file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airloop_operators.base import StepOperator, declared

if TYPE_CHECKING:
    from airloop_operators.turn import Order

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
    step_reads: ClassVar[tuple[str, ...]] = ()
    template_ext = (".yaml", ".yml")

    @declared
    def __init__(
        self,
        *,
        source: str | Mapping[str, Any],
        files: str | Sequence[str],
        table: str | None = None,
        **kwargs: Any,
    ) -> None: ...


class ValidateOperator(StepOperator):
    """
    Check an audit branch's new rows with a Great Expectations suite; publish them only if they pass.

    :param table: the result of an extract task. (templated)
    :param suite: expectation suite: JSON or YAML file beside the DAG file, or a mapping. (templated)
    :param max_quarantined_share: share of the rows that came, 0 to 1, that rules marked for it may put into
        quarantine while the rest is published. (templated)
    """

    step_name: ClassVar[str] = "validate"
    step_reads: ClassVar[tuple[str, ...]] = ("table",)
    template_ext = (".json", ".yaml", ".yml")

    @declared
    def __init__(
        self,
        *,
        table: Result,
        suite: str | Mapping[str, Any],
        max_quarantined_share: float | None = None,
        **kwargs: Any,
    ) -> None: ...


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
    :param known: by input, its column that says when a row became known; SQL that looks ahead of it is refused.
        (templated)
    """

    step_name: ClassVar[str] = "sql"
    step_reads: ClassVar[tuple[str, ...]] = ("inputs",)
    template_ext = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"sql": "sql"}

    @declared
    def __init__(
        self,
        *,
        sql: str,
        inputs: Mapping[str, Result],
        table: str,
        key: Sequence[str],
        mode: Literal["upsert", "replace", "append"] | None = None,
        partition_by: str | None = None,
        known: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None: ...


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
    :param known: by input, its column that says when a row became known; a label that was another when it arrived is
        refused. (templated)
    """

    step_name: ClassVar[str] = "build_labels"


class MaterializeFeaturesOperator(StepOperator):
    """
    Put the newest known value of each feature online; readers see old values until the new ones are checked.

    :param feature_service: name of the Feast feature service. (templated)
    :param tables: snapshots of the feature tables. (templated)
    :param feature_views: only these of the service's views; default all. (templated)
    """

    step_name: ClassVar[str] = "materialize"
    step_reads: ClassVar[tuple[str, ...]] = ("tables",)

    @declared
    def __init__(
        self,
        *,
        feature_service: str,
        tables: Sequence[Result],
        feature_views: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None: ...


class CheckParityOperator(StepOperator):
    """
    Compare a sample of the values served online with what training would be given; a single difference stops the run.

    :param feature_service: the result of a materialize task, or the service's name. (templated)
    :param feature_views: only these of the service's views; default all. (templated)
    :param find_share: share of a view's keys that must not differ unseen; 0 compares every key. (templated)
    :param confidence: chance that such a share is seen. (templated)
    :param seed: of the sample. (templated)
    """

    step_name: ClassVar[str] = "check_parity"
    step_reads: ClassVar[tuple[str, ...]] = ("feature_service",)

    @declared
    def __init__(
        self,
        *,
        feature_service: Result,
        feature_views: Sequence[str] | None = None,
        find_share: float | None = None,
        confidence: float | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None: ...


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
    :param label_column: column of the labels with the answer. (templated)
    :param time_column: column of the labels with the time of prediction. (templated)
    :param known_column: column of the labels that says when a label became known. (templated)
    :param max_feature_auc: a feature that alone ranks the labels better than this is refused. (templated)
    :param allow: features that are kept although they seem to give the label away. (templated)
    """

    step_name: ClassVar[str] = "build_training_set"
    step_reads: ClassVar[tuple[str, ...]] = ("labels", "tables")

    @declared
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
        label_column: str | None = None,
        time_column: str | None = None,
        known_column: str | None = None,
        max_feature_auc: float | None = None,
        allow: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None: ...


class BatchScoreOperator(StepOperator):
    """
    Score an interval's entities with a model, point in time, into a prediction table.

    :param model: ``delay@champion`` (as of the interval's start), ``delay@3``, or a result. (templated)
    :param entities: table with the entities, their time and their request-time features. (templated)
    :param feature_service: name of the Feast feature service. (templated)
    :param tables: snapshots of the feature tables. (templated)
    :param table: ``namespace.table`` of the predictions. (templated)
    :param time_column: column of the entities with the time of prediction. (templated)
    """

    step_name: ClassVar[str] = "batch_score"
    step_reads: ClassVar[tuple[str, ...]] = ("model", "entities", "tables")

    @declared
    def __init__(
        self,
        *,
        model: Result,
        entities: Result,
        feature_service: str,
        tables: Sequence[Result],
        table: str,
        time_column: str | None = None,
        **kwargs: Any,
    ) -> None: ...


class TrainOperator(StepOperator):
    """
    Train a challenger on a training set.

    :param examples: the result of a training-set task. (templated)
    :param trainer: ``xgboost``, ``lightgbm``, or the import path of a scikit-learn-compatible classifier. (templated)
    :param hyperparameters: the trainer's parameters; unknown ones are refused. (templated)
    :param target: column with the answer. (templated)
    :param features: columns to train on; default all that the training set names. (templated)
    :param experiment: MLflow experiment; default the training set's table. (templated)
    :param seed: seed of every random choice. (templated)
    :param early_stopping_rounds: rounds without a better validation loss before training stops. (templated)
    :param imbalance: ``none`` or ``balanced`` class weights. (templated)
    """

    step_name: ClassVar[str] = "train"
    step_reads: ClassVar[tuple[str, ...]] = ("examples",)
    own_order: ClassVar[Order] = "none"

    @declared
    def __init__(
        self,
        *,
        examples: Result,
        trainer: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
        experiment: str | None = None,
        seed: int | None = None,
        early_stopping_rounds: int | None = None,
        imbalance: Literal["none", "balanced"] | None = None,
        target: str | None = None,
        **kwargs: Any,
    ) -> None: ...


class EvaluateOperator(StepOperator):
    """
    Compare challenger and champion on the same held-out rows; the decision, with its reasons, is data.

    :param challenger: the result of a train task. (templated)
    :param champion: ``delay@champion``: who was champion just before the interval's end. (templated)
    :param examples: the result of the training-set task; its hold-out is what both are measured on. (templated)
    :param metric: ``roc_auc``, ``average_precision``, ``log_loss``, ``brier`` or ``accuracy``. (templated)
    :param confidence: confidence of the paired bootstrap interval, 0 to 1. (templated)
    :param min_gain: the interval's lower end must be above this gain of the metric. (templated)
    :param slices: columns by whose values the models are compared too. (templated)
    :param slice_tolerance: loss of the metric that a slice may take. (templated)
    :param floors: least value by metric that a challenger must reach at all. (templated)
    :param max_calibration_error: largest expected calibration error, 0 to 1. (templated)
    :param min_rows: fewer held-out rows decide nothing. (templated)
    :param min_slice_rows: smaller slices are reported as too few, never as fine. (templated)
    :param cluster: rows that are resampled together: ``day``, ``hour``, a column, or empty for single rows. (templated)
    :param resamples: bootstrap resamples. (templated)
    :param seed: of the resamples. (templated)
    :param on_reject: ``keep`` the champion, or ``fail`` the task when the challenger breaks a floor. (templated)
    """

    step_name: ClassVar[str] = "evaluate"
    step_reads: ClassVar[tuple[str, ...]] = ("challenger", "champion", "examples")

    @declared
    def __init__(
        self,
        *,
        challenger: Result,
        champion: Result,
        examples: Result,
        metric: str | None = None,
        confidence: float | None = None,
        min_gain: float | None = None,
        slices: Sequence[str] | None = None,
        slice_tolerance: float | None = None,
        floors: Mapping[str, float] | None = None,
        max_calibration_error: float | None = None,
        min_rows: int | None = None,
        min_slice_rows: int | None = None,
        cluster: str | None = None,
        resamples: int | None = None,
        seed: int | None = None,
        on_reject: Literal["keep", "fail"] | None = None,
        **kwargs: Any,
    ) -> None: ...


class RegisterModelOperator(StepOperator):
    """
    Register the challenger and, if the gate says so, make it champion; every change stands in the ledger.

    :param gate: the result of an evaluate task: its decision, and the model it was made on. (templated)
    :param name: registered model. (templated)
    :param alias: alias that a promotion moves. (templated)
    :param model: the model, if not the gate's own. (templated)
    :param any_champion: accept a promotion over another model than the one that the gate compared with. (templated)
    """

    step_name: ClassVar[str] = "register"
    step_reads: ClassVar[tuple[str, ...]] = ("gate", "model")
    event_only: ClassVar[bool] = True

    @declared
    def __init__(
        self,
        *,
        gate: Result,
        name: str,
        alias: str | None = None,
        model: Result = None,
        any_champion: bool | None = None,
        **kwargs: Any,
    ) -> None: ...

    def call_arguments(self) -> dict[str, Any]:
        """The gate's result names both the decision and the model that it was made on."""
        given = super().call_arguments()
        given.setdefault("model", given["gate"])
        return given


class DetectDriftOperator(StepOperator):
    """
    Hold an interval's features and predictions against the model's training data; measure quality as labels arrive.

    :param model: whose training data is the reference: ``delay@champion``. (templated)
    :param current: table with the interval's features. (templated)
    :param predictions: the result of a batch-score task. (templated)
    :param labels: the result of a labels task. (templated)
    :param watch: tables whose freshness is reported. (templated)
    :param table: ``namespace.table`` of the drift figures. (templated)
    :param quality_table: ``namespace.table`` of the quality figures. (templated)
    :param psi_limit: population stability index that counts as a shift, if it is significant too. (templated)
    :param false_alarm_rate: chance of a false alarm over all features together, 0 to 1. (templated)
    :param cluster: rows that are not independent: those of a ``day``, an ``hour``, or none. (templated)
    :param min_rows: fewer rows decide nothing. (templated)
    :param metric: of the quality. (templated)
    :param max_quality_drop: loss of the metric against training that raises an alarm. (templated)
    :param max_age: how old the newest row of a watched table may be at the interval's end: ``2d``. (templated)
    :param ignore: features that are not compared, such as the calendar's. (templated)
    """

    step_name: ClassVar[str] = "detect_drift"
    step_reads: ClassVar[tuple[str, ...]] = ("model", "current", "predictions", "labels", "watch")
    event_only: ClassVar[bool] = True

    @declared
    def __init__(
        self,
        *,
        model: Result,
        current: Result,
        predictions: Result = None,
        labels: Result = None,
        watch: Sequence[Result] | None = None,
        table: str | None = None,
        quality_table: str | None = None,
        psi_limit: float | None = None,
        false_alarm_rate: float | None = None,
        cluster: Literal["day", "hour", ""] | None = None,
        min_rows: int | None = None,
        metric: str | None = None,
        max_quality_drop: float | None = None,
        max_age: str | None = None,
        ignore: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None: ...


class ReportOperator(StepOperator):
    """
    Write the run's page: one self-contained HTML file from the manifests of its tasks, and the loop's index.

    :param tasks: results by task id; a task that was skipped may be None. (templated)
    :param loop: name of the loop, the folder of its pages; default the DAG's id. (templated)
    :param title: heading; default the loop's name. (templated)
    :param zone: IANA time zone in which intervals are written; default the DAG's. (templated)
    """

    step_name: ClassVar[str] = "report"
    step_reads: ClassVar[tuple[str, ...]] = ("tasks",)
    own_order: ClassVar[Order] = "none"

    @declared
    def __init__(
        self,
        *,
        tasks: Mapping[str, Result],
        loop: str | None = None,
        title: str | None = None,
        zone: str | None = None,
        **kwargs: Any,
    ) -> None: ...

    def call_arguments(self) -> dict[str, Any]:
        """A loop is called what its DAG is called, and tells time as it does."""
        given = super().call_arguments()
        given.setdefault("loop", self.dag_id)
        timezone = self.dag.timezone
        given.setdefault("zone", str(getattr(timezone, "name", None) or getattr(timezone, "key", None) or "UTC"))
        return given


class UpkeepOperator(StepOperator):
    """
    Compact all tables, then take away what nobody needs; loops may run meanwhile.

    :param keep_days: days for which runs can be replayed whose model is not registered, default 30. (templated)
    :param grace_hours: how old a file must be that nothing names, default 24. (templated)
    """

    step_name: ClassVar[str] = "upkeep"
    step_reads: ClassVar[tuple[str, ...]] = ()
    own_order: ClassVar[Order] = "none"

    @declared
    def __init__(self, *, keep_days: float | None = None, grace_hours: float | None = None, **kwargs: Any) -> None: ...


class BackupOperator(StepOperator):
    """
    Make a consistent point of everything in a folder of backups; loops may run meanwhile.

    :param target: the folder, outside the home, better on another disk. (templated)
    """

    step_name: ClassVar[str] = "backup"
    step_reads: ClassVar[tuple[str, ...]] = ()
    own_order: ClassVar[Order] = "none"

    @declared
    def __init__(self, *, target: str, **kwargs: Any) -> None: ...
