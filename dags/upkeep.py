"""Care of the state, every night: few large files, nothing that nobody needs, and, with a folder named, a backup."""

import os
from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable

from airloop_operators import BackupOperator, UpkeepOperator

nightly = CronDataIntervalTimetable("0 3 * * *", timezone="UTC")
with DAG("upkeep", schedule=nightly, start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, doc_md=__doc__):
    cared = UpkeepOperator(task_id="upkeep")
    if target := os.environ.get("AIRLOOP_BACKUPS"):
        cared >> BackupOperator(task_id="backup", target=target)
