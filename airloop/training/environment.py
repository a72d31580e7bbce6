"""Settings that the training libraries read once, when they are imported."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Its defaults retry for minutes; the scheduler's own retries are better at waiting.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # MLflow looks for a git repository around the process by starting git.
    "GIT_PYTHON_REFRESH": "quiet",
    # Threads of OpenMP give the processor up while they wait: it is shared with the loop's other tasks. Spinning cost
    # five times the processor time, seen with XGBoost on two busy cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""They hold unless the environment says otherwise."""


def prepare_environment() -> None:
    """Set :data:`ENVIRONMENT` where nothing is set; before MLflow, XGBoost or scikit-learn is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
