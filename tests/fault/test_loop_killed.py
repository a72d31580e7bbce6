"""Every task of the loop is killed at every point, one after the other, and ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGKILL

import pytest

from airloop.contract import Interval
from tests.fault.conftest import Prepared
from tests.fault.flights_loop import FIRST, SECOND, Home, filled

COMMIT = ["commit:before", "commit:after"]
POINTS = {
    "extract": ["run", "extract:staged", *COMMIT],
    "validate": [
        "run", "validate:checked", "validate:verdict", "publish:before", "publish:after", "validate:published",
    ],
    "sql": ["run", *COMMIT],
    "build_labels": ["run", *COMMIT],
    "materialize": ["run", "materialize:staged", "materialize:before_switch", "materialize:after_switch"],
    "build_training_set": ["run", "joined", *COMMIT],
    "train": ["run", "train:fitted", "mlflow:run", "mlflow:logged"],
    "evaluate": ["run"],
    # Killed after the intent: the next attempt completes it first, which is one more commit.
    "register": ["run", "register:before", "register:after", "commit:before", "promote:intent", *COMMIT],
    "batch_score": ["run", *COMMIT],
    "detect_drift": ["run", *COMMIT],
    "report": ["run", "artifact:before:index.html"],
}  # fmt: skip
"""Where each step is killed, in the order in which it gets there; then at its manifest and at its receipt."""

REUSED = {"planes.extract": ["receipt"], "planes.validate": ["receipt"], "aircraft": ["receipt"]}
"""Tasks whose second run finds all as it was."""


@pytest.mark.parametrize("interval", [FIRST, SECOND], ids=["first", "second"])
def test_killed_everywhere_and_run_again(
    interval: Interval, prepared: Prepared, make_home: Callable[..., Home]
) -> None:
    home = make_home() if interval is FIRST else prepared.back_to_first()
    undisturbed = prepared.after_first if interval is FIRST else prepared.after_second
    results: dict[str, dict[str, str]] = {}
    for task, (step, arguments) in home.tasks().items():
        call = filled(arguments, results)
        points = [*POINTS[step], "manifest", "receipt"]
        if interval is SECOND:
            points = REUSED.get(task, points)
        if interval is FIRST and step == "batch_score":
            points = ["run", "manifest", "receipt"]  # no champion yet, so nothing to write
        for point in points:
            outcome = home.run(step, call, interval, fault=f"kill@{point}")
            assert outcome.code == -SIGKILL, f"{task} at {point}: {outcome.log}"
        outcome = home.run(step, call, interval)
        assert outcome.code == 0, f"{task}: {outcome.log}"
        # The last attempt was killed when its manifest was published.
        assert outcome.status == "reused"
        results[task] = outcome.result
    assert home.state() == undisturbed
    assert not list((home.folder / "work").iterdir()), "working folders of killed attempts are left"
