"""What a task hands to Airflow: a result of references and counts, and links for its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airloop_operators.runners.base import RunOutcome
    from airloop_operators.settings import Settings

PAGES = "/airloop"
"""Where the Airflow plugin serves manifests and reports."""


def result_of(outcome: RunOutcome) -> dict[str, Any]:
    """The XCom of a task: step, key, status, address of the manifest, interval, counts, and each output's reference."""
    receipt, manifest = outcome.receipt, outcome.manifest
    if receipt is None or manifest is None:
        raise RuntimeError("a successful outcome has a receipt and a manifest")
    return {
        **{role: output["reference"] for role, output in manifest["outputs"].items()},
        "step": manifest["step"],
        "key": receipt.key,
        "status": receipt.status,
        "manifest": receipt.manifest,
        "interval": manifest["interval"],
        "counts": manifest["counts"],
    }


def links_of(outcome: RunOutcome, settings: Settings) -> dict[str, str]:
    """Address by the name of an extra link; only those that there are."""
    links: dict[str, str] = {}
    root = settings.artifacts.as_uri() + "/"
    if outcome.receipt is not None and outcome.receipt.manifest.startswith(root):
        links["Manifest"] = f"{PAGES}/artifacts/{outcome.receipt.manifest.removeprefix(root)}"
    made: Mapping[str, str] = (outcome.manifest or {}).get("links") or {}
    for name in ("report", "docs"):
        if made.get(name, "").startswith(root):
            links["Report"] = f"{PAGES}/artifacts/{made[name].removeprefix(root)}"
            break
    run = (outcome.manifest or {}).get("details", {}).get("mlflow") or {}
    if settings.mlflow_ui and run.get("run_id"):
        links["MLflow run"] = f"{settings.mlflow_ui}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
    return links
