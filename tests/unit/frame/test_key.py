"""The content key: what changes it and what does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from airloop.errors import BadArgument, BadConfiguration
from airloop.frame import Step, key, step
from airloop.frame.key import canonical, code_of, key_of, reach

MAIN = """
from airloop.frame import step, StepResult
from fp_package.helper import double

@step()
def main(ctx, *, x: int):
    "Doc."
    def lazily():
        from fp_package import late
    return StepResult(counts={"x": double(x)})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fp_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "main.py").write_text(MAIN)
    (folder / "helper.py").write_text("from . import deep\ndef double(x): return 2 * x\n")
    (folder / "deep.py").write_text("A = 1\n")
    (folder / "late.py").write_text("B = 1\n")
    (folder / "other.py").write_text("C = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    key._package_folders.cache_clear()
    for name in [n for n in sys.modules if n.startswith("fp_package")]:
        del sys.modules[name]


def _fingerprint() -> str:
    importlib.invalidate_caches()
    return code_of(importlib.import_module("fp_package.main").main).fingerprint


def test_reach_follows_imports_at_any_depth_and_lazy_ones(package: Path) -> None:
    assert {n for n in reach("fp_package.main") if n.startswith("fp_package")} == {
        "fp_package", "fp_package.main", "fp_package.helper", "fp_package.deep", "fp_package.late",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["main.py", "helper.py", "deep.py", "late.py"])
def test_a_line_of_code_that_is_reached_changes_the_key(package: Path, name: str) -> None:
    before = _fingerprint()
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert _fingerprint() != before


def test_modules_beside_a_step_count_as_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fp_flat.py").write_text("import fp_beside\nimport json, numpy\n")
    (tmp_path / "fp_beside.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert set(reach("fp_flat")) == {"fp_flat", "fp_beside"}


def test_a_folder_beside_a_module_of_its_name_is_no_code(package: Path) -> None:
    """Python imports the module, and nothing from the folder."""
    (package / "helper").mkdir()
    (package / "helper" / "double.py").write_text("D = 1\n")
    assert "fp_package.helper" in reach("fp_package.main")
    assert "fp_package.helper.double" not in reach("fp_package.main")


def test_code_that_is_not_reached_changes_nothing(package: Path) -> None:
    before = _fingerprint()
    (package / "other.py").write_text("C = 2\n")
    assert _fingerprint() == before


def test_the_frame_is_not_part_of_a_key() -> None:
    assert not [n for n in reach("airloop.steps.extract") if n.startswith("airloop.frame")]
    assert "airloop.warehouse.commit" in reach("airloop.steps.extract")


def test_finding_sources_imports_nothing() -> None:
    import subprocess

    code = (
        "import sys; from airloop.frame.key import reach; reach('airloop.steps.train'); print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_declared_library_that_is_missing_is_named() -> None:
    def function(ctx: object) -> None: ...

    with pytest.raises(BadConfiguration, match="pip install no-such-library"):
        code_of(Step("x", function, ("no-such-library",), None, 1))


def test_the_order_of_a_mapping_does_not_matter(package: Path) -> None:
    main = importlib.import_module("fp_package.main").main
    code = code_of(main)
    assert canonical({"b": 1, "a": (1, 2)}) == {"a": [1, 2], "b": 1}
    assert key_of(main, {"x": 1}, code) == key_of(main, {"x": 1}, code) != key_of(main, {"x": 2}, code)


def test_values_without_meaning_in_a_key_are_refused() -> None:
    with pytest.raises(BadArgument):
        canonical(object())


def test_steps_are_made_by_the_decorator() -> None:
    @step(version=2)
    def one(ctx: object) -> None: ...

    assert (one.name, one.version) == ("one", 2)
