"""
A whole small loop in Airflow, with a step that is reused and one that fails. Started by ``test_openlineage.py``.

    python -m tests.service.lineage_loop DATA BACKUPS
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import DAG, CronDataIntervalTimetable

from airloop_operators import (
    BackupOperator,
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
    StepOperator,
    TrainOperator,
    UpkeepOperator,
    ValidateOperator,
)

REPOSITORY = Path(__file__).resolve().parents[2]
FLIGHTS = REPOSITORY / "dags" / "flights"
SERVICE = "delay_v1"
FEATURES = {
    "weather": ("weather", ["origin"]),
    "carrier_delays": ("flights", ["carrier"]),
    "origin_delays": ("flights", ["origin"]),
    "route_delays": ("flights", ["origin", "dest"]),
    "previous_leg": ("flights", ["tailnum"]),
    "aircraft": ("planes", ["tailnum"]),
}


def text(name: str) -> str:
    """A file of the flights' loop, as an argument."""
    return (FLIGHTS / name).read_text()


def make_dag(data: Path, backups: Path) -> DAG:
    """The loop of ``dags/flights_offline.py`` on four days, with small limits; then a team's own step, and upkeep."""
    with DAG(
        "lineage_loop",
        schedule=CronDataIntervalTimetable("@monthly", timezone="UTC"),
        start_date=datetime(2013, 1, 1, tzinfo=UTC),
        default_args={"retries": 0, "interval": "2013-01-01T05:00:00+00:00/2013-01-05T05:00:00+00:00"},
    ) as dag:
        raw = {}
        for name in ("flights", "weather", "planes"):
            rows = ExtractOperator(
                task_id=f"extract_{name}", source=text(f"sources/{name}.yaml"), files=str(data / f"{name}.csv")
            )
            raw[name] = ValidateOperator(
                task_id=f"validate_{name}", table=rows.output, suite=text(f"suites/{name}.json"),
                max_quarantined_share=0.01,
            )  # fmt: skip
        again = ExtractOperator(
            task_id="extract_again", source=text("sources/planes.yaml"), files=str(data / "planes.csv")
        )
        raw["planes"] >> again
        features = [
            SqlOperator(
                task_id=name, sql=text(f"sql/{name}.sql"), inputs={source: raw[source].output},
                table=f"features.{name}", key=[*keys, "event_time"],
            ).output
            for name, (source, keys) in FEATURES.items()
        ]  # fmt: skip
        online = MaterializeFeaturesOperator(task_id="materialize", feature_service=SERVICE, tables=features)
        parity = CheckParityOperator(task_id="parity", feature_service=online.output)
        flights = {"flights": raw["flights"].output}
        labels = BuildLabelsOperator(
            task_id="labels", sql=text("sql/labels.sql"), inputs=flights, table="labels.arrivals", key=["flight_id"]
        )
        schedule = SqlOperator(
            task_id="schedule",
            sql=text("sql/schedule.sql"),
            inputs=flights,
            table="entities.flights",
            key=["flight_id"],
        )
        SqlOperator(
            task_id="broken", sql="SELECT no_such_column FROM flights", inputs=flights, table="features.broken",
            key=["flight"],
        )  # fmt: skip
        examples = BuildTrainingSetOperator(
            task_id="examples", labels=labels.output, feature_service=SERVICE, tables=features, table="training.delay",
            holdout="1d", validation="1d",
        )  # fmt: skip
        model = TrainOperator(
            task_id="train", examples=examples.output, trainer="xgboost", hyperparameters={"n_estimators": 5},
            experiment="flights",
        )  # fmt: skip
        gate = EvaluateOperator(
            task_id="gate", challenger=model.output, champion="delay@champion", examples=examples.output, min_rows=100,
            cluster="hour", resamples=200,
        )  # fmt: skip
        registered = RegisterModelOperator(task_id="register", gate=gate.output, name="delay")
        scores = BatchScoreOperator(
            task_id="score", model=registered.output, entities=schedule.output, feature_service=SERVICE,
            tables=features, table="predictions.delay",
        )  # fmt: skip
        monitor = DetectDriftOperator(
            task_id="monitor", model=registered.output, current=examples.output, predictions=scores.output,
            labels=labels.output, ignore=["month"],
        )  # fmt: skip
        report = ReportOperator(task_id="report", tasks={"train": model.output, "gate": gate.output})
        own = StepOperator(
            task_id="own", step="steps_for_tests:write_rows", arguments={"table": "raw.own", "rows": 3},
            environment={"PYTHONPATH": str(REPOSITORY / "tests")},
        )  # fmt: skip
        kept = UpkeepOperator(task_id="upkeep")
        [parity, again, monitor, report, own] >> kept >> BackupOperator(task_id="backup", target=str(backups))
    return dag


def main() -> None:
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
    from airflow.utils.session import create_session

    dag = make_dag(Path(sys.argv[1]), Path(sys.argv[2]))
    with create_session() as session:
        if session.get(DagBundleModel, "tests") is None:
            session.add(DagBundleModel(name="tests"))
            session.commit()
        lazy = LazyDeserializedDAG(data=DagSerialization.to_dict(dag))
        SerializedDAG.bulk_write_to_db("tests", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="tests", session=session)
    ended = dag.test(logical_date=datetime(2013, 2, 1, tzinfo=UTC))
    print(f"STATE {ended.state}")


if __name__ == "__main__":
    main()
