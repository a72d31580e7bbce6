"""A replay: what is chosen, what runs again, and what is said of the outcome."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Interval, RunInfo
from airloop.errors import BadArgument, ContractBroken, NotFound
from airloop.frame import key
from airloop.provenance import erasures
from airloop.provenance.environment import changes
from airloop.provenance.replay import Rebuilt, Replay, choose, replay
from airloop.provenance.runs import Task, find_run
from airloop.provenance.verdict import Finding, compare_figures, compare_models, compare_tables
from airloop.upkeep import gc
from airloop.upkeep.retention import Policy
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import offline_world as world
from tests.places import EVERYWHERE, data_files, table_files

OWN = '''
import pyarrow as pa
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef
from replayed_team.numbers import FACTOR

@step()
def scale(ctx: StepContext, *, table: TableRef, into: str) -> StepResult:
    """Multiply."""
    rows = ctx.warehouse.scan(table).read_all()
    rows = rows.set_column(1, "n", pa.array([n.as_py() * FACTOR for n in rows["n"]], pa.int64()))
    ctx.warehouse.ensure(into, rows.schema, key=("id",))
    return StepResult(outputs={"table": ctx.warehouse.commit(into, rows, key=ctx.key, mode="upsert").ref})
'''
ROWS = pa.table({"id": [1, 2], "n": [10, 20]})
LETTERS = '''
from pathlib import Path
from airloop.frame import StepContext, StepResult, step

@step()
def send(ctx: StepContext, *, box: str) -> StepResult:
    """Send a letter."""
    with Path(box).open("a") as file:
        file.write("a letter")
    return StepResult(metrics={"letters": 1.0})
'''
DECLARED = LETTERS.replace("@step()", '@step(effect="it sends a letter")')


def task(task_id: str, step: str, given: dict[str, str], made: dict[str, str]) -> Task:
    def described(refs: dict[str, str]) -> dict[str, Any]:
        kinds = {"model": "model", "table": "table", "examples": "table"}
        return {role: {"kind": kinds[role], "reference": ref} for role, ref in refs.items()}

    code = {"target": f"airloop.steps.{step}:{step}"}
    return Task(task_id, {}, {"step": step, "inputs": described(given), "outputs": described(made), "code": code})


LOOP = [
    task("extract", "extract", {}, {"table": "raw.a@1"}),
    task("validate", "validate", {"table": "raw.a@1"}, {"table": "raw.a@2"}),
    task("features", "sql", {"table": "raw.a@2"}, {"table": "features.a@3"}),
    task("examples", "build_training_set", {"table": "features.a@3"}, {"table": "training.a@4"}),
    task("train", "train", {"examples": "training.a@4"}, {"model": "model:/run/x", "examples": "training.a@4"}),
    task("gate", "evaluate", {"model": "model:/run/x", "examples": "training.a@4"}, {"model": "model:/run/x"}),
    task("register", "register", {"model": "model:/run/x"}, {"model": "model:/a/1"}),
    task("score", "batch_score", {"model": "model:/a/1"}, {"table": "predictions.a@5"}),
]


class TestChoice:
    def test_what_led_to_the_model(self) -> None:
        assert [t.task_id for t in choose(LOOP, [])] == ["examples", "train", "gate"]

    def test_what_was_asked_for(self) -> None:
        assert [t.task_id for t in choose(LOOP, ["score", "features"])] == ["features", "score"]
        with pytest.raises(NotFound, match="the run has no trian; it has extract"):
            choose(LOOP, ["trian"])
        with pytest.raises(NotFound, match="trained no model; name tasks: --task extract"):
            choose(LOOP[:3], [])

    def test_a_run_by_its_id(self, config: Config) -> None:
        store = ArtifactStore(config.artifacts)
        for name in ("a/x", "b/x", "b/y"):
            record = {"format": 1, "run": {"task_id": "t", "map_index": -1}, "started_at": "2013-02-01"}
            store.publish_bytes(f"runs/{name}/t.json", json.dumps(record).encode())
        named = [find_run(store, name) for name in ("y", "a/x")]
        assert [(run.dag_id, run.run_id) for run in named] == [("b", "y"), ("a", "x")]
        with pytest.raises(NotFound, match="2 loops have a run x; name one: a/x, b/x"):
            find_run(store, "x")
        with pytest.raises(NotFound, match="no run b/z is known; there is b/"):
            find_run(store, "b/z")


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one's own, with a step."""
    folder = tmp_path / "replayed_team"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "numbers.py").write_text("FACTOR = 2\n")
    (folder / "steps.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    key._package_folders.cache_clear()
    for name in [n for n in sys.modules if n.startswith("replayed_team")]:
        del sys.modules[name]


@pytest.fixture
def scaled(team: Path, warehouse: Warehouse, run_step: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a run of that step."""
    warehouse.ensure("raw.n", ROWS.schema, key=("id",))
    given = warehouse.commit("raw.n", ROWS, key="n").ref
    return run_step(
        "replayed_team.steps:scale", run=RunInfo("own", "run-1", "scale"), table=str(given), into="features.n"
    )


@EVERYWHERE
def test_the_old_code_runs_and_not_that_of_today(
    config: Config, scaled: dict[str, Any], team: Path, warehouse: Warehouse
) -> None:
    (team / "numbers.py").write_text("FACTOR = 3\n")
    warehouse.commit("features.n", pa.table({"id": [3], "n": [1]}), key="later")
    before = data_files(config)
    done = replay(config, "own/run-1", tasks=["scale"])
    assert (done.verdict, done.tasks[0].findings[0].text.partition(",")[0]) == ("equal", "2 rows of features.n")
    assert data_files(config) == before, "it writes nothing beside the originals"
    assert warehouse.count(TableRef("features.n")) == 3
    assert {path for path in table_files(config) if "/raw/n/" not in path and "/features/n/" not in path} == set()


def test_a_folder_with_something_in_it_is_refused(config: Config, scaled: dict[str, Any], team: Path) -> None:
    with pytest.raises(BadArgument, match="is not empty"):
        replay(config, "run-1", tasks=["scale"], into=team)


def test_a_task_that_fails_says_why(config: Config, scaled: dict[str, Any]) -> None:
    store = ArtifactStore(config.artifacts)
    name = f"steps/scale/{scaled['key'][:2]}/{scaled['key']}/manifest.json"
    changed = json.loads(store.read_bytes(name))
    changed["arguments"]["into"] = "no name"
    store.publish_bytes(name, json.dumps(changed).encode())
    done = replay(config, "run-1", tasks=["scale"], keep=True)
    assert (done.equal, done.verdict) == (False, "failed")
    assert "'no name' is not the name of a table" in done.tasks[0].failed
    assert (done.folder / "scale" / "log.txt").is_file()


@pytest.mark.parametrize("kind", ["manifest", "record"])
def test_a_run_of_a_newer_airloop_is_refused(config: Config, scaled: dict[str, Any], kind: str) -> None:
    store = ArtifactStore(config.artifacts)
    key = scaled["key"]
    name = f"steps/scale/{key[:2]}/{key}/manifest.json" if kind == "manifest" else next(iter(store.names("runs")))
    store.publish_bytes(name, json.dumps(json.loads(store.read_bytes(name)) | {"format": 2}).encode())
    with pytest.raises(ContractBroken, match=r"json is of format 2, .*; update airloop here"):
        replay(config, "run-1", tasks=["scale"])


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (LETTERS, LETTERS, ""),
        (DECLARED, DECLARED, "it sends a letter"),
        (DECLARED, LETTERS, "it sends a letter"),
        (DECLARED, None, "it sends a letter"),
        (LETTERS, DECLARED, "it sends a letter"),
        (LETTERS.replace("@step()", "@step(still_there=lambda ctx, made: True)"), None, "it has an effect outside"),
    ],
    ids=["not declared", "declared", "declared then", "declared then, and gone", "declared since", "looked after"],
)
def test_what_a_step_does_beside_its_results_is_not_done_again(
    config: Config, team: Path, tmp_path: Path, run_step: Callable[..., Any], then: str, now: str | None, said: str
) -> None:
    (team / "post.py").write_text(then)
    run_step("replayed_team.post:send", run=RunInfo("own", "run-1", "post"), box=str(tmp_path / "box"))
    if now is None:
        (team / "post.py").unlink()
    else:
        (team / "post.py").write_text(now)
    del sys.modules["replayed_team.post"]
    importlib.invalidate_caches()
    done = replay(config, "own/run-1", tasks=["post"])
    letters = (tmp_path / "box").read_text().count("a letter")
    if said:
        assert (letters, done.verdict, done.equal) == (1, "nothing compared", False)
        assert done.tasks[0].taken.startswith(f"not rebuilt, {said}")
    else:
        assert (letters, done.verdict) == (2, "equal")


@pytest.mark.parametrize("name", ["backup", "upkeep"])
def test_care_of_the_state_is_not_taken_again(
    config: Config, warehouse: Warehouse, tmp_path: Path, run_step: Callable[..., Any], interval: Interval, name: str
) -> None:
    warehouse.ensure("raw.n", ROWS.schema, key=("id",))
    warehouse.commit("raw.n", ROWS, key="n")
    vault = tmp_path / "vault"
    arguments = {"target": str(vault)} if name == "backup" else {}
    run_step(name, interval=interval, run=RunInfo("care", "night-1", "task"), **arguments)
    before = sorted(vault.rglob("*"))
    done = replay(config, "care/night-1", tasks=["task"])
    assert (done.verdict, done.tasks[0].verdict) == ("nothing compared", "taken")
    assert sorted(vault.rglob("*")) == before


def test_a_step_of_ones_own_may_have_the_name_of_one_of_ours(
    config: Config, team: Path, tmp_path: Path, run_step: Callable[..., Any]
) -> None:
    (team / "post.py").write_text(LETTERS.replace("def send", "def report"))
    run_step("replayed_team.post:report", run=RunInfo("own", "run-1", "post"), box=str(tmp_path / "box"))
    assert replay(config, "own/run-1", tasks=["post"]).verdict == "equal"


def test_what_is_gone_is_named_with_the_reason(config: Config, scaled: dict[str, Any], warehouse: Warehouse) -> None:
    ref = TableRef.parse(scaled["inputs"]["table"]["reference"])
    warehouse.commit("raw.n", ROWS, key="n2", mode="append")
    warehouse.table("raw.n").maintenance.expire_snapshots().by_id(ref.snapshot or 0).commit()
    assert replay(config, "run-1", tasks=["scale"]).equal, "its files are still there"
    gc.collect(config, Policy(keep_days=0), grace_s=0)
    with pytest.raises(NotFound, match=rf"raw.n@{ref.snapshot} of task scale \(expired or removed by another tool\)"):
        replay(config, "run-1", tasks=["scale"])
    intent = erasures.begin(warehouse, "x", columns=["id"], reason="a letter", asked_by="A. Clerk")
    erasures.finish(warehouse, intent, {"tables": {"raw.n": {"snapshots": [str(ref.snapshot)]}}})
    with pytest.raises(NotFound, match=r"erased on .* UTC, asked for by A. Clerk: a letter"):
        replay(config, "run-1", tasks=["scale"])


def test_a_training_set_of_features_is_rebuilt_from_the_definitions_of_then(
    config: Config, tmp_path: Path, run_step: Callable[..., dict[str, Any]]
) -> None:
    repo = world.write_repo(tmp_path / "feature_repo")
    config = world.with_repo(config, repo)
    refs = world.fill(Warehouse.open(config))
    month = Interval(world.at(0), world.at(24 * 30))
    run_step(
        "build_training_set", config=config, interval=month, run=RunInfo("small", "run-1", "examples"),
        labels=str(refs["labels.arrivals"]), feature_service="small_v1", table="training.small",
        tables=[str(refs["features.delays"]), str(refs["features.weather"])],
        max_feature_auc=1.0,  # every third flight is late, and the hour tells which
    )  # fmt: skip
    for file in repo.glob("*.py"):
        file.unlink()
    done = replay(config, "small/run-1", tasks=["examples"])
    assert done.verdict == "equal", done.tasks[0]


class TestVerdicts:
    def test_of_a_run(self, tmp_path: Path) -> None:
        tasks = [
            Rebuilt("a", "sql", taken="kept"),
            Rebuilt("b", "sql"),
            Rebuilt("c", "sql", [Finding("rows", True, "")]),
            Rebuilt("d", "sql", [Finding("rows", True, ""), Finding("metrics", False, "")]),
            Rebuilt("e", "sql", failed="why"),
        ]
        assert [t.verdict for t in tasks] == ["taken", "not compared", "equal", "not equal", "failed"]
        runs = [Replay("d", "r", tmp_path, tasks[:n]) for n in range(1, 6)]
        assert [r.verdict for r in runs] == ["nothing compared", "nothing compared", "equal", "not equal", "failed"]
        assert [r.equal for r in runs] == [False, False, True, False, False]

    def test_of_rows(self, config: Config, warehouse: Warehouse) -> None:
        def saved(name: str, rows: pa.Table) -> TableRef:
            warehouse.ensure(name, rows.schema)
            return warehouse.commit(name, rows, key=name).ref

        first = saved("a.a", ROWS)
        others = {
            "another order": saved("a.b", ROWS.take([1, 0])),
            "2 rows then, 1 now": saved("a.c", ROWS.slice(1)),
            "columns then: n int64; now: m int64": saved("a.d", ROWS.rename_columns(["id", "m"])),
            "other values in n": saved("a.e", pa.table({"id": [1, 2], "n": [10, 21]})),
            "other values in the way in which they are combined": saved("a.f", pa.table({"id": [1, 2], "n": [20, 10]})),
        }
        for text, ref in others.items():
            found = compare_tables(config, first, config, ref)
            assert text in found.text
            assert found.equal is (text == "another order")

    def test_of_figures(self) -> None:
        then = {"auc": 0.75, "curve": [0.1, {"x": 1}]}
        assert compare_figures("metrics", {}, {}, tolerance=0.0) is None
        same = compare_figures("metrics", then, json.loads(json.dumps(then)), tolerance=0.0)
        assert same == Finding("metrics", True, "3 figures")
        near = {"auc": 0.75 + 1e-12, "curve": [0.1, {"x": 1}]}
        exact = compare_figures("metrics", then, near, tolerance=0.0)
        assert exact is not None
        assert (exact.equal, exact.text) == (False, "auc 0.75 then, 0.750000000001 now")
        within = compare_figures("metrics", then, near, tolerance=1e-9)
        assert within is not None
        assert within.equal
        lost = compare_figures("metrics", then, {"auc": 0.75}, tolerance=1.0)
        assert lost is not None
        assert "curve[0] 0.1 then, None now" in lost.text

    def test_of_models(self, config: Config, warehouse: Warehouse, tmp_path: Path) -> None:
        from airloop.training.examples import feature_names, read_examples
        from airloop.training.fit import train_bundle
        from airloop.training.trainers import trainer_of
        from tests.training_rows import make_rows, save_rows

        ref = save_rows(warehouse, make_rows(600))
        data = read_examples(
            warehouse, ref, target="label", features=feature_names(warehouse, ref, target="label", named=None)
        )

        def bundle(name: str, trainer: str, seed: int, **given: Any) -> Path:
            folder = tmp_path / name
            folder.mkdir()
            chosen = trainer_of(trainer)
            train_bundle(
                folder, data, chosen, parameters=chosen.read_parameters(given), target="label", source=str(ref),
                seed=seed, threads=1, early_stopping_rounds=None, imbalance="none",
            )  # fmt: skip
            return folder

        def compared(old: Path, new: Path) -> Finding:
            stated = json.loads((old / "bundle.json").read_text())["determinism"]
            return compare_models(old, new, rows=ref, config=config, stated=stated)

        first = bundle("a", "xgboost", 0, n_estimators=5)
        assert compared(first, bundle("b", "xgboost", 0, n_estimators=5)).text.startswith("every byte, digest")
        other = compared(first, bundle("c", "xgboost", 1, n_estimators=5, subsample=0.5))
        assert not other.equal
        assert "model.ubj differ; predictions of 120 held-out rows differ by at most" in other.text
        assert "its trainer states equal bytes with any number of threads" in other.text
        moved = bundle("d", "xgboost", 0, n_estimators=5)
        content = json.loads((moved / "bundle.json").read_text())
        (moved / "bundle.json").write_text(json.dumps(content | {"python": "3.11.0"}))
        assert compared(first, moved).equal, "what it was made with is another question"
        (moved / "bundle.json").write_text(json.dumps(content | {"target": "late"}))
        assert compared(first, moved).text == "bundle.json differs in target"
        forest = "sklearn.ensemble.RandomForestClassifier"
        near = compared(bundle("e", forest, 0, n_estimators=5), bundle("f", forest, 0, n_estimators=5))
        assert near.equal
        assert not compared(tmp_path / "e", bundle("g", forest, 1, n_estimators=5)).equal

    def test_of_versions(self) -> None:
        manifest = {
            "python": "3.11.0",
            "code": {"libraries": {"numpy": np.__version__, "no-such-thing": "1.0"}},
            "arguments": {"trainer": {"name": "xgboost", "code": {}, "libraries": {"duckdb": "0.1"}}, "x": {"a": 1}},
        }
        found = {c.name: (c.now, c.advice) for c in changes(manifest)}
        assert found["no-such-thing"] == ("", "pip install no-such-thing==1.0")
        assert found["duckdb"][1] == "pip install duckdb==0.1"
        assert found["python"][1] == "use Python 3.11.0"
        assert "numpy" not in found
