"""What the README shows is what is there."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.warehouse.catalog import Warehouse

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_loop_in_the_readme_is_the_file_that_runs(name: str) -> None:
    block = re.search(r"```python\n(.*?)```", (REPOSITORY / name).read_text(), re.S)
    assert block is not None
    assert block[1].strip() == (REPOSITORY / "dags" / "rain.py").read_text().strip()
    said = re.search(r"(\d+) (?:lines after the imports|行)", (REPOSITORY / name).read_text())
    assert said is not None
    last_import = max(n.end_lineno or 0 for n in ast.parse(block[1]).body if isinstance(n, ast.ImportFrom))
    assert int(said[1]) == len([line for line in block[1].splitlines()[last_import:] if line.strip()])


def test_both_readmes_lead_to_the_same_places() -> None:
    found = [
        set(re.findall(r"\]\(([^)]+)\)|`(make [a-z]+)", (REPOSITORY / name).read_text()))
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert found[0] ^ found[1] == {("README.md", ""), ("README.zh-CN.md", "")}


def test_the_layers_that_contributors_read_are_those_that_are_held() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c["type"] == "layers"]
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r"`cli` >.*?`errors`", text, re.S)
    written = [re.findall(r"`(\w+)`", layer) for layer in line.split(">")]
    assert written == [re.findall(r"airloop\.(\w+)", layer) for layer in layers]


def test_the_step_and_the_operator_of_the_guide_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warehouse: Warehouse,
    run_step: Callable[..., dict[str, Any]],
) -> None:
    page = (REPOSITORY / "docs" / "how-to" / "write-a-loop.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (of_step,) = [b for b in blocks if "def newest(" in b]
    (of_operator,) = [b for b in blocks if "class NewestOperator(" in b]
    (tmp_path / "newest_of_the_guide.py").write_text(of_step)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = pa.table({"placed": [datetime(2026, 5, day, tzinfo=UTC) for day in (1, 3, 2)]})
    warehouse.ensure("raw.orders", rows.schema)
    table = str(warehouse.commit("raw.orders", rows, key="k").ref)
    made = run_step("newest_of_the_guide:newest", table=table, column="placed")
    assert made["details"]["newest"].startswith("2026-05-03")

    names: dict[str, Any] = {}
    exec(of_operator, names)
    operator = names["NewestOperator"](task_id="newest", table=table, column="placed")
    assert {"table", "column"} <= set(operator.template_fields)
    assert operator.call_arguments() == {"table": table, "column": "placed"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.M))
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        named = set(re.findall(r"(?:^\$ |`)make ([a-z]+)\b", page.read_text(), re.M))
        assert named <= targets, f"{page.name}: {named - targets}"
