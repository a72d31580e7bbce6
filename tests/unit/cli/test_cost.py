"""``airloop cost``: what people and scripts see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airloop.cli import main
from tests.cost_world import training_costs
from tests.lineage_world import LineageWorld

Run = Callable[..., tuple[int, str, str]]
PRICES = """
currency: EUR
default: {cpu_hour: 0.04, gib_hour: 0.005}
pools: {gpu: {cpu_hour: 0.04, gib_hour: 0.005, accelerator_hour: 2.5}}
"""


@pytest.fixture
def cost(lineage_world: LineageWorld, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output, standard error of the command."""
    training_costs(lineage_world)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["--home", str(lineage_world.config.home), "cost", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES)
    monkeypatch.setenv("AIRLOOP_PRICES", str(file))
    return file


def document(told: tuple[int, str, str]) -> dict[str, Any]:
    assert told[0] == 0, told[2]
    found: dict[str, Any] = json.loads(told[1])
    return found


def test_a_run_by_step(cost: Run) -> None:
    code, out, _ = cost("--run", "small/1")
    assert code == 0
    lines = out.splitlines()
    assert re.split(r" {2,}", lines[0])[:3] == ["step", "attempts", "pods"]
    (train,) = [line for line in lines if line.startswith("train")]
    assert "nvidia.com/gpu" in train
    assert re.split(r"\s+", train)[1:4] == ["5", "6", "3.75"]
    assert any(line.startswith("all") for line in lines)
    assert "EUR" not in out


def test_scripts_get_seconds_hours_and_pools(cost: Run) -> None:
    found = document(cost("--run", "small/1", "--json"))
    (train,) = [row for row in found["rows"] if row["step"] == "train"]
    assert (train["attempts"], train["pods"], train["seconds"]) == (5, 6, 13_500.0)
    assert train["wasted_s"] == 900 + 1800 + 360 + 3600
    assert train["hours"]["nvidia.com/gpu"] == 3.75
    assert found["pools"]["gpu"]["hours"]["memory"] == 15.0
    assert found["total"]["attempts"] == sum(row["attempts"] for row in found["rows"])


def test_money_by_the_prices_of_the_configuration(cost: Run, prices: Path) -> None:
    found = document(cost("--model", "small/1", "--by", "pool", "--json"))
    pools = {row["pool"]: row for row in found["rows"]}
    # 1.75 hours of 2 processors, 4 GiB and a GPU.
    assert pools["gpu"]["cost"] == "4.550000"
    assert pools["gpu"]["currency"] == "EUR"
    _, out, _ = cost("--model", "small/1", "--by", "pool")
    assert "4.55" in out
    assert "EUR wasted" in out


def test_a_model_by_version_and_all_of_them_once(cost: Run) -> None:
    code, out, _ = cost("--model", "small")
    assert code == 0
    assert [line.split(" ")[0] for line in out.splitlines()[:4]] == ["model", "small/1", "small/2", "all"]
    assert "What several versions rest on is in each of them, and once in all." in out
    found = document(cost("--by", "model", "--json"))
    assert {row["model"] for row in found["rows"]} == {"small/1", "small/2", "no model"}


def test_a_loop_by_run_and_since_when(cost: Run) -> None:
    assert {row["run"] for row in document(cost("--dag", "small", "--by", "run", "--json"))["rows"]} == {
        "small/1", "small/2",
    }  # fmt: skip
    everything = document(cost("--json"))["total"]["attempts"]
    late = document(cost("--since", "2090-01-01T00:00+00:00", "--by", "day", "--json"))
    assert [row["day"] for row in late["rows"]] == ["2099-01-01"]
    assert late["total"]["attempts"] == 1 < everything


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "small/9"], "no run small/9 is known"),
        (["--dag", "smal"], "nothing of DAG smal is known\n       there is small"),
        (["--model", "large"], "no version of large"),
        (["--model", "small@champion"], "is no model"),
        (["--since", "yesterday"], "is no time"),
        (["--since", "2013-01-01"], "has no time zone"),
        (["--prices", "/none.yaml"], "/none.yaml cannot be read"),
    ],
)
def test_what_cannot_be_answered_is_refused(cost: Run, arguments: list[str], says: str) -> None:
    code, out, err = cost(*arguments)
    assert (code, out) == (65, "")
    assert says in err


def test_one_question_at_a_time(cost: Run) -> None:
    with pytest.raises(SystemExit) as left:
        cost("--run", "small/1", "--dag", "small")
    assert left.value.code == 2


def test_an_empty_home_has_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path), "cost"]) == 0
    assert capsys.readouterr().out == "Nothing that has run is known here.\n"


def test_why_says_what_a_task_took(cost: Run, lineage_world: LineageWorld, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(lineage_world.config.home)]
    assert main([*home, "why", "small/1", "train"]) == 0
    assert "took 5 attempts, 13,500 s, 6,660 s of them in vain" in capsys.readouterr().out
    assert main([*home, "why", "small/1", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["took"]["seconds"] == 13_500
    assert main([*home, "why", "small/1", "labels"]) == 0
    assert "took" not in capsys.readouterr().out
