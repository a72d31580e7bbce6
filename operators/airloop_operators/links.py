"""Buttons on a task's page in the Airflow UI: its manifest, its report, its MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator


class _StepLink(BaseOperatorLink):
    """A link that the operator set down while it ran; no link if it set none."""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        links: dict[str, str] = getattr(operator, "step_links", {})
        return links.get(self.name, "")


class ManifestLink(_StepLink):
    """What the step made, of what, and why it was reused or not."""

    name = "Manifest"


class ReportLink(_StepLink):
    """The page for people that the step made: a loop's report, Great Expectations' Data Docs."""

    name = "Report"


class MlflowRunLink(_StepLink):
    """The run in the MLflow UI."""

    name = "MLflow run"
