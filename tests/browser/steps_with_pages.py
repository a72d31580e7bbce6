"""A step of a team that publishes a page and logs to MLflow, and one that does neither."""

from __future__ import annotations

from airloop.frame import StepContext, StepResult, step


@step()
def tell(ctx: StepContext) -> StepResult:
    """Publish a page that would like to do more than it may."""
    name = f"reports/told/{ctx.key[:12]}.html"
    page = b"<!doctype html><h1>Told</h1><img src=x onerror=alert(1)><script>document.title='ran'; alert(1)</script>"
    ctx.artifacts.publish_bytes(name, page)
    return StepResult(
        counts={"rows": 3},
        links={"report": ctx.artifacts.uri(name)},
        details={"summary": "three rows were told", "mlflow": {"run_id": "abc", "experiment_id": "5"}},
    )


@step()
def plain(ctx: StepContext) -> StepResult:
    """Make a figure."""
    return StepResult(counts={"rows": 1})
