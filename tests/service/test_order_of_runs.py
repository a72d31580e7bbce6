"""
A year by Airflow's own scheduler and executor: eleven months backfilled at once, and two live runs of the twelfth
meanwhile. Everything ends as if the months had been run one after another. (With state on servers:
``test_year_on_servers.py``.)
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.year_in_airflow import one_by_one, year_in_airflow
from tests.year_world import MONTHS, write_world


@pytest.mark.timeout(1800)
def test_a_backfill_at_once_and_a_live_run_end_as_if_one_by_one(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    write_world(world)
    # The months one by one run while Airflow starts.
    with (
        one_by_one(tmp_path / "one-by-one", world, MONTHS) as expected,
        year_in_airflow(tmp_path / "home", world) as loop,
    ):
        loop.end_together(MONTHS, at_once=4, within_s=1500)
        found, wanted = loop.year.state(), expected()
    assert found.keys() == wanted.keys()
    assert [e["outcome"] for e in wanted["ledger"]].count("promote") > 2, "a year in which something happens"
    for part in wanted:
        assert found[part] == wanted[part], part
