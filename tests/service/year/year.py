"""The loop of ``tests/year_world.py`` as a DAG."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, CronDataIntervalTimetable

from airloop_operators import (
    EvaluateOperator,
    ExtractOperator,
    MaterializeFeaturesOperator,
    RegisterModelOperator,
    SqlOperator,
    TrainOperator,
    ValidateOperator,
)
from tests import year_world as year

with DAG(
    year.DAG_ID,
    schedule=CronDataIntervalTimetable("@monthly", timezone="UTC"),
    start_date=datetime(2013, 1, 1, tzinfo=UTC),
    end_date=datetime(2014, 2, 1, tzinfo=UTC),  # so that nothing is live by itself
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=1)},
):
    files = str(Path(os.environ["AIRLOOP_TEST_YEAR"]) / "readings.csv")
    rows = ExtractOperator(task_id="extract", source=year.SOURCE, files=files)
    good = ValidateOperator(task_id="validate", table=rows.output, suite=year.SUITE, max_quarantined_share=0.1).output
    lags = SqlOperator(task_id="lags", sql=year.LAGS, inputs={"readings": good}, **year.LAGS_TABLE).output
    MaterializeFeaturesOperator(task_id="online", feature_service=year.SERVICE, tables=[lags])
    examples = SqlOperator(
        task_id="examples", sql=year.EXAMPLES, inputs={"readings": good, "lags": lags}, **year.EXAMPLES_TABLE
    ).output
    model = TrainOperator(task_id="train", examples=examples, **year.TRAINING)
    gate = EvaluateOperator(
        task_id="gate",
        challenger=model.output,
        champion=f"{year.MODEL}@champion",
        examples=examples,
        **year.GATE,
    )
    RegisterModelOperator(task_id="register", gate=gate.output, name=year.MODEL)
