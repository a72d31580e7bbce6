"""
Airloop in Airflow's UI: the page Loops, and the tab Loop of a DAG.

Thin on purpose: every process of Airflow runs this file. The pages are :mod:`airloop_operators.web`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airloop_operators.web import serve

# Airflow's UI may live below a path.
BELOW = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


class AirloopPlugin(AirflowPlugin):
    """Loops, what they have live and why, their runs and reports."""

    name = "airloop"
    fastapi_apps = [{"name": "Airloop", "app": serve, "url_prefix": "/airloop"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Loops",
            "href": f"{BELOW}/airloop/",
            "url_route": "airloop",
            "destination": "nav",
            "nav_top_level": True,
            "icon": f"{BELOW}/airloop/static/loop.svg",
        },
        {
            "name": "Loop",
            "href": f"{BELOW}/airloop/loops/{{DAG_ID}}",
            "url_route": "airloop_loop",
            "destination": "dag",
            "icon": f"{BELOW}/airloop/static/loop.svg",
        },
    ]
