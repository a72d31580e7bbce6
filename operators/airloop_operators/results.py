"""What a task hands to Airflow: a result of references and counts, and links for its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airloop.objects import open_objects

if TYPE_CHECKING:
    from airloop_operators.runners.base import RunOutcome
    from airloop_operators.settings import Settings

PAGES = "/airloop"
"""Where the Airflow plugin serves its pages."""

INSIDE = "/plugin/airloop"
"""Where Airflow's UI shows them, as the ``url_route`` of the plugin's view says; the page's own path follows."""


def result_of(outcome: RunOutcome) -> dict[str, Any]:
    """The XCom of a task: step, key, status, address of the manifest, interval, counts, and each output's reference."""
    receipt, manifest = outcome.receipt, outcome.manifest
    if receipt is None or manifest is None:
        raise RuntimeError("a successful outcome has a receipt and a manifest")
    # Roles have other names: see RESERVED_ROLES in airloop.contract.
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
    # What follows the root in a file's address is percent-encoded already.
    links: dict[str, str] = {}
    root = f"{open_objects(settings.artifacts).address}/"
    if outcome.receipt is not None and outcome.receipt.manifest.startswith(root):
        links["Manifest"] = _page(
            f"manifest?path={outcome.receipt.manifest.removeprefix(root)}&attempt={outcome.receipt.attempt}"
        )
    made: Mapping[str, str] = (outcome.manifest or {}).get("links") or {}
    for name in ("report", "docs"):
        if made.get(name, "").startswith(root):
            links["Report"] = _page(f"view/{made[name].removeprefix(root)}")
            break
    run = (outcome.manifest or {}).get("details", {}).get("mlflow") or {}
    if run.get("run_id"):
        # Leads on to where MLflow's UI is when the button is pressed, which may not be where it is now.
        links["MLflow run"] = f"{_below()}{PAGES}/mlflow/{run['experiment_id']}/{run['run_id']}"
    return links


def pods_page(ti: Any) -> str:
    """The page of a task's pods. :param ti: the task instance, or its key."""
    index = -1 if ti.map_index is None else ti.map_index
    named = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": index}
    return _page(f"pods?{urlencode(named, quote_via=quote)}")


def _page(path: str) -> str:
    """A page of the plugin inside Airflow's UI."""
    return f"{_below()}{INSIDE}{_below()}{PAGES}/{path}"


def _below() -> str:
    """The path below which Airflow's UI lives; empty if it is at the root."""
    from airflow.sdk.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback=None) or "").path.rstrip("/")
