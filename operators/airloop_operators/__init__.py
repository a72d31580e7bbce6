"""
Airflow operators of Airloop.

Importing this package costs what ``airflow.sdk`` costs: no data or ML library is imported, here or when a DAG file is
parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airloop_operators.base import StepOperator
    from airloop_operators.operators import (
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
        TrainOperator,
        UpkeepOperator,
        ValidateOperator,
    )

__all__ = [
    "BackupOperator",
    "BatchScoreOperator",
    "BuildLabelsOperator",
    "BuildTrainingSetOperator",
    "CheckParityOperator",
    "DetectDriftOperator",
    "EvaluateOperator",
    "ExtractOperator",
    "MaterializeFeaturesOperator",
    "RegisterModelOperator",
    "ReportOperator",
    "SqlOperator",
    "StepOperator",
    "TrainOperator",
    "UpkeepOperator",
    "ValidateOperator",
]


def __getattr__(name: str) -> Any:
    # Airflow imports this package to read provider_info, before airflow.sdk can be imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from airloop_operators import base, operators

    globals()[name] = found = getattr(base if name == "StepOperator" else operators, name)
    return found
