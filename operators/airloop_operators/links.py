"""Buttons on a task's page in the Airflow UI: its manifest, its report, its MLflow run, its pod."""

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


class PodLink(BaseOperatorLink):
    """Where its pods run or ran, what they wait for, and what the cluster said of them; none for a local run."""

    name = "Pod"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        from airloop_operators.results import pods_page
        from airloop_operators.settings import Settings

        runner = getattr(operator, "runner", None) or Settings.read().runner
        return pods_page(ti_key) if runner == "pod" else ""

    def show(self, operator: BaseOperator, ti: Any) -> None:
        """Show the button while the task runs: Airflow itself asks for it when the task has ended."""
        try:
            link = self.get_link(operator, ti_key=ti)
            if link:
                ti.xcom_push(key=self.xcom_key, value=link)
        except Exception as trouble:  # noqa: BLE001  a button is not worth a task
            operator.log.warning("the button %s cannot be shown yet: %s", self.name, trouble)
