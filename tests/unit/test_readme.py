"""What the README shows is what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_loop_in_the_readme_is_the_file_that_runs(name: str) -> None:
    block = re.search(r"```python\n(.*?)```", (REPOSITORY / name).read_text(), re.S)
    assert block is not None
    assert block[1].strip() == (REPOSITORY / "dags" / "rain.py").read_text().strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.M))
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md"]:
        named = set(re.findall(r"(?:^\$ |`)make ([a-z]+)\b", page.read_text(), re.M))
        assert named <= targets, f"{page.name}: {named - targets}"
