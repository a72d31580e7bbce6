"""Step materialize, killed at each of its points."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime

import pytest

from airloop.contract import Call, Interval
from tests.shop import DAY, HOUR, T0, Shop, config, shop

__all__ = ["config", "shop"]  # fixtures


def run_killed(shop: Shop, end: datetime, fault: str) -> int:
    """The step in a process of its own, with a fault; its exit code."""
    call = Call(
        "materialize",
        {"feature_service": "drivers", "tables": ["features.pace", "features.route"]},
        attempt="ab" * 10, interval=Interval(end - DAY, end),
    )  # fmt: skip
    code = (
        "import sys; from airloop.config import Config; from airloop.contract import Call\n"
        "from airloop.frame.execute import execute; from airloop.frame.logs import Redactor\n"
        "from airloop.steps import load\n"
        "config = Config.from_environment()\n"
        "receipt, error = execute(load('materialize'), Call.from_environment(), config, Redactor([]))\n"
        "sys.exit(error.exit_code if error else 0)"
    )
    names = ("home", "feature_repo", "memory_mb")
    environment = {f"AIRLOOP_{n.upper()}": str(getattr(shop.config, n)) for n in names}
    environment |= {"AIRLOOP_CALL": call.to_json(), "AIRLOOP_FAULT": fault}
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, timeout=800).returncode


@pytest.mark.parametrize(
    ("place", "served"),
    [
        ("materialize:staged", (1.0, 1)),
        ("materialize:before_switch", (1.0, 1)),
        ("materialize:after_switch", (2.0, 2)),
    ],
)
def test_killed_at_any_point_serves_old_or_new_and_the_next_run_completes(
    shop: Shop, place: str, served: tuple[float, int]
) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    shop.put("pace", [(1, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR), (2, 5.0, 5, T0 + DAY, T0 + DAY)])
    assert run_killed(shop, T0 + 2 * DAY, f"kill@{place}") == -9
    assert shop.read(1) == [served]
    assert shop.watermark() == (T0 + DAY if served[1] == 1 else T0 + 2 * DAY)
    manifest = shop.run(T0 + 2 * DAY)
    assert manifest["status"] == "done"
    assert shop.read(1, 2) == [(2.0, 2), (5.0, 5)]
    assert not list(shop.config.online_store.parent.glob("*.staging-*"))
