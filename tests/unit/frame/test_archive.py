"""The code archive: complete, by content, written once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import airloop
from airloop.config import Config
from airloop.errors import ContractBroken, NotFound
from airloop.features.refs import FeatureServiceRef
from airloop.frame.archive import _digest_of, archive, pack_name, prime, read_tree, tree_name, unpack
from airloop.steps import load
from airloop.warehouse.artifacts import ArtifactStore

OWN = "tests.unit.frame.steps_under_test"


@pytest.fixture
def store(config: Config) -> ArtifactStore:
    return ArtifactStore(config.artifacts)


def test_a_manifest_names_a_tree_that_holds_all_that_ran(
    store: ArtifactStore, run_step: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from tests.unit.frame.steps_under_test import count

    code = run_step(count, rows=2)["code"]
    files = read_tree(store, code["tree"])["files"]
    assert code["target"] == f"{OWN}:count"
    for module, digest in code["modules"].items():
        inner = "python/" + module.replace(".", "/")
        assert digest in (files.get(inner + ".py"), files.get(inner + "/__init__.py")), module
    package = Path(airloop.__file__).parent
    own = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.suffix in (".py", ".j2", ".css")}
    assert {f"python/airloop/{name}" for name in own} <= set(files)


def test_what_is_unpacked_runs_without_the_installed_package(
    store: ArtifactStore, config: Config, tmp_path: Path
) -> None:
    tree = archive(store, load("train"), {}, config)
    unpack(store, tree, tmp_path / "then")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import airloop.steps.train as t; print(t.__file__)"],
        env={"PYTHONPATH": str(tmp_path / "then" / "python"), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "then" / "python" / "airloop" / "steps" / "train.py")


def test_the_same_code_is_written_once(store: ArtifactStore, config: Config) -> None:
    tree = archive(store, load("sql"), {}, config)
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
    assert archive(store, load("sql"), {}, config) == tree
    assert archive(store, load("train"), {}, config) == tree
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == before


def test_a_change_makes_one_small_pack(store: ArtifactStore, config: Config, tmp_path: Path) -> None:
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text("project: p\n")
    config = replace(config, feature_repo=repo)
    arguments = {"service": FeatureServiceRef("delay")}
    first = read_tree(store, archive(store, load("train"), arguments, config))
    (repo / "views.py").write_text("x = 1\n")
    second = read_tree(store, archive(store, load("train"), arguments, config))
    assert second["packs"].pop("feature_repo") != first["packs"].pop("feature_repo")
    assert second["packs"] == first["packs"]
    assert "feature_repo/views.py" in second["files"]
    assert not any(place.startswith("feature_repo") for place in read_tree(
        store, archive(store, load("train"), {"examples": "no service"}, config))["files"])  # fmt: skip


def test_a_changed_or_lost_archive_is_refused(store: ArtifactStore, config: Config, tmp_path: Path) -> None:
    tree = archive(store, load("train"), {}, config)
    pack = store.path(pack_name(read_tree(store, tree)["packs"]["python/airloop"]))
    pack.unlink()
    with pytest.raises(NotFound, match="packs"):
        unpack(store, tree, tmp_path / "a")
    store.path(tree_name(tree)).write_text("{}")
    with pytest.raises(ContractBroken, match="was changed"):
        unpack(store, tree, tmp_path / "b")


def test_what_was_primed_is_not_read_again(store: ArtifactStore, config: Config) -> None:
    prime()
    read = _digest_of.cache_info().misses
    archive(store, load("train"), {}, config)
    assert _digest_of.cache_info().misses == read
