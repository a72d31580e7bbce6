"""The plugin as Airflow loads it, in every one of its processes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import AIRFLOW_HOME, REPOSITORY

LOAD = f"""
import json, sys
import airflow.plugins_manager as manager, airflow.configuration
from airflow._shared.plugins_manager import _load_plugins_from_plugin_directory as load
before = set(sys.modules)
plugins, errors = load({str(REPOSITORY / "plugins")!r})
print(json.dumps([
    [p.name for p in plugins], errors, sorted({{m.partition(".")[0] for m in set(sys.modules) - before}}),
    [m for m in sys.modules if m.startswith("airloop")], [dict(v) for p in plugins for v in p.external_views],
    [a["url_prefix"] for p in plugins for a in p.fastapi_apps],
]))
"""


def _load(**environment: str) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={"PATH": "/usr/bin:/bin", "AIRFLOW_HOME": str(AIRFLOW_HOME), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_loading_it_costs_next_to_nothing_and_breaks_nothing() -> None:
    names, errors, brought, own, views, prefixes = _load()
    assert (names, errors, prefixes) == (["airloop"], {}, ["/airloop"])
    assert isinstance(own, list)
    assert not [m for m in own if m.startswith("airloop_operators.web.") or m.partition(".")[0] == "airloop"]
    assert isinstance(brought, list)
    assert set(brought) <= {"airloop_operators", "airloop_plugin"}, "libraries that every process would pay for"
    assert isinstance(views, list)
    assert [(v["destination"], v["url_route"], v["href"]) for v in views] == [
        ("nav", "airloop", "/airloop/"),
        ("dag", "airloop_loop", "/airloop/loops/{DAG_ID}"),
    ]


def test_below_a_path_its_addresses_start_there() -> None:
    views = _load(AIRFLOW__API__BASE_URL="https://example.org/airflow")[4]
    assert isinstance(views, list)
    assert {v["href"].split("/loops")[0] for v in views} == {"/airflow/airloop/", "/airflow/airloop"}
