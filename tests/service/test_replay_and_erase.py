"""A small real loop: its past is rebuilt whatever became of the source; a person is erased, and the rest goes on."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from airloop.cli import main
from airloop.config import Config
from airloop.provenance.erasures import entries
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.recall import files, recall
from airloop.warehouse.references import References, folder
from airloop.warehouse.refs import TableRef
from tests.clinic_world import NEWCOMER, Clinic, open_clinic, people, write_csv


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    """January and February have run."""
    clinic = open_clinic(tmp_path_factory.mktemp("clinic") / "home")
    for month in (0, 1):
        clinic.run(month)
    return clinic


@pytest.fixture
def airloop(clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """The command line on the clinic's home: exit code, answer, errors."""
    monkeypatch.setenv("AIRLOOP_HOME", str(clinic.config.home))

    def run(*arguments: str) -> tuple[int, dict[str, object], str]:
        code = main(["--json", *arguments])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else {}, said.err

    return run


def state(config: Config) -> dict[str, object]:
    """All that a replay must not change: tables, artifacts, models, and the files below them."""
    with (
        closing(sqlite3.connect(config.home / "catalog.db")) as catalog,
        closing(sqlite3.connect(config.home / "mlflow.db")) as mlflow,
    ):
        return {
            "tables": catalog.execute("SELECT * FROM iceberg_tables ORDER BY 1, 2, 3").fetchall(),
            "runs": mlflow.execute("SELECT run_uuid, status FROM runs ORDER BY 1").fetchall(),
            "versions": mlflow.execute("SELECT * FROM model_versions ORDER BY 1, 2").fetchall(),
            "files": {
                str(path): path.stat().st_mtime_ns
                for root in (config.warehouse, config.artifacts, config.home / "mlflow")
                for path in root.rglob("*")
                if path.is_file()
            },
        }


def verdicts(answer: dict) -> dict[str, str]:
    return {task["task_id"]: task["verdict"] for task in answer["tasks"]}


def test_a_run_is_rebuilt_after_its_source_changed_and_expiry_was_tried(clinic: Clinic, airloop) -> None:
    rows = people()
    for row in rows:
        row["fever"] += 1
    write_csv(clinic.source, rows)
    code, said, _ = airloop("replay", "clinic/month-1", "--task", "extract")
    assert (code, said["verdict"], verdicts(said)) == (65, "nothing compared", {"extract": "taken"})
    assert "source files changed: visits.csv: sha256" in said["tasks"][0]["taken"]
    assert clinic.made["month-1", "extract"]["outputs"]["table"]["reference"] in said["tasks"][0]["taken"]

    clinic.source.unlink()
    # By another tool, which asks for nothing but branches and tags, and by our own.
    for name in ("raw.visits", "training.visits"):
        warehouse = Warehouse.open(clinic.config)
        before = len(warehouse.history(name))
        warehouse.table(name).maintenance.expire_snapshots().older_than(datetime.now(UTC)).commit()
        assert len(warehouse.history(name)) == 1 < before
    assert airloop("gc", "--grace", "0s", "--keep-days", "0")[0] == 0
    before = state(clinic.config)
    code, said, _ = airloop("replay", "month-2")
    assert code == 0, said
    assert verdicts(said) == {"examples": "equal", "train": "equal", "gate": "equal"}
    compared = {(t["task_id"], f["what"]) for t in said["tasks"] for f in t["findings"]}
    assert compared == {
        ("examples", "rows"), ("train", "model"), ("train", "metrics"), ("gate", "metrics"), ("gate", "decision"),
    }  # fmt: skip
    assert "every byte" in next(f["text"] for f in said["tasks"][1]["findings"] if f["what"] == "model")
    assert state(clinic.config) == before
    assert not list((clinic.config.home / "work").glob("replay-*")), "what was rebuilt is gone"


def test_what_differs_is_said_and_libraries_are_named(clinic: Clinic, airloop, tmp_path: Path) -> None:
    manifest = clinic.made["month-1", "examples"]
    store = ArtifactStore(clinic.config.artifacts)
    name = f"steps/sql/{manifest['key'][:2]}/{manifest['key']}/manifest.json"
    content = store.read_bytes(name)
    changed = json.loads(content)
    try:
        changed["code"]["libraries"]["duckdb"] = "1.4.0"
        store.publish_bytes(name, json.dumps(changed).encode())
        code, said, _ = airloop("replay", "month-1", "--task", "examples", "--into", str(tmp_path / "rebuilt"))
        assert (code, said["verdict"]) == (0, "equal under other libraries")
        assert said["tasks"][0]["changes"][0]["advice"] == "pip install duckdb==1.4.0"
        assert list((tmp_path / "rebuilt").rglob("*.parquet")), "what was rebuilt is kept"

        changed["arguments"]["sql"] = changed["arguments"]["sql"].replace("age,", "age + 1 AS age,")
        store.publish_bytes(name, json.dumps(changed).encode())
        code, said, _ = airloop("replay", "month-1", "--task", "examples")
        assert (code, said["verdict"]) == (65, "not equal")
        assert said["tasks"][0]["findings"][0]["text"] == "619 rows each, with other values in age"
    finally:
        store.publish_bytes(name, content)


def test_a_person_is_erased_everywhere_and_the_rest_goes_on(clinic: Clinic, airloop) -> None:
    config, warehouse = clinic.config, Warehouse.open(clinic.config)
    store = ArtifactStore(config.artifacts)
    store.publish_bytes("reports/visits.html", f"<p>Longest wait: {NEWCOMER}; {NEWCOMER}1 none</p>".encode())
    (config.home / "logs").mkdir()
    (config.home / "logs" / "task.log").write_text(f'{{"offender": "{NEWCOMER}"}}')
    # What a killed writer left behind is searched too.
    newest = max(folder(warehouse.table("training.visits")).rglob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    shutil.copy(newest, newest.with_name("staged.parquet"))
    others = rows_of(config, "raw.visits", f"person <> '{NEWCOMER}'")
    before = state(config)
    request = ("erase", "--entity", f"person={NEWCOMER}", "--reason", "asked by letter", "--by", "A. Clerk")

    code, planned, _ = airloop(*request, "--dry-run")
    assert code == 0
    assert state(config) == before, "a dry run changes nothing"
    code, done, _ = airloop(*request)
    assert code == 0, done
    for what in ("tables", "runs", "models", "redacted"):
        assert done[what] == planned[what], what

    assert done["tables"]["raw.visits"]["rows"] == 3
    assert set(done["tables"]) == {"raw.visits", "training.visits", "quarantine.raw_visits"}
    assert {run.rpartition("/")[0] for run in done["runs"]} == {"clinic/month-2"}
    assert "model:/back/2" in done["models"]
    assert "model:/back/1" not in done["models"]
    assert done["sources"] == ["visits.csv"]
    assert done["left"] == []
    assert rows_of(config, "raw.visits", "true") == others
    nowhere(config, NEWCOMER)
    assert store.read_bytes("reports/visits.html") == f"<p>Longest wait: [erased]; {NEWCOMER}1 none</p>".encode()
    recorded = [e for e in entries(warehouse) if e.state == "done"]
    assert [(e.asked_by, e.reason, e.columns) for e in recorded] == [("A. Clerk", "asked by letter", "person")]
    assert airloop(*request)[1]["erasure"] == "", "a second time there is nothing to do"
    assert len(entries(warehouse)) == 2

    # The past that the person was in is gone, the rest of it is not.
    code, _, error = airloop("replay", "month-2")
    assert code == 65
    assert "erased on" in error
    assert "asked for by A. Clerk: asked by letter" in error
    code, said, _ = airloop("replay", "month-1", "--task", "examples", "--task", "train")
    assert (code, said["verdict"]) == (0, "equal"), said

    # The loop goes on, from a source without the person; and an earlier interval that runs again brings nobody back.
    write_csv(clinic.source, [row for row in people() if row["person"] != NEWCOMER])
    clinic.run(2)
    clinic.run(1)
    nowhere(config, NEWCOMER)


def rows_of(config: Config, table: str, where: str) -> list:
    found = Warehouse.open(config).scan(TableRef(table), where=where).read_all().to_pylist()
    return sorted(found, key=lambda row: row["visit"])


def nowhere(config: Config, value: str) -> None:
    """The value is in no file below the home: not in bytes, not in rows, not in what manifests say of files."""
    warehouse, needle = Warehouse.open(config), value.encode()
    for path in config.home.rglob("*"):
        if path.is_file() and path.suffix not in (".parquet", ".avro"):
            assert needle not in path.read_bytes().replace(needle + b"1", b""), path
    for path in config.warehouse.rglob("*.parquet"):
        for row in duckdb.sql(f"SELECT CAST(t AS VARCHAR) FROM read_parquet('{path}') t").fetchall():
            assert value not in row[0], path
    named: set[str] = set()
    for name in warehouse.tables():
        table = warehouse.table(name)
        expired = recall(table).values()
        named |= References(table).all() | {path for snapshot in expired for path in files(snapshot, table.io)}
        for snapshot in (*table.metadata.snapshots, *expired):
            for manifest in snapshot.manifests(table.io):
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                    bounds = [
                        *(entry.data_file.lower_bounds or {}).values(),
                        *(entry.data_file.upper_bounds or {}).values(),
                    ]
                    assert not any(needle in bound for bound in bounds), (name, snapshot.snapshot_id)
    for path in config.warehouse.rglob("*.avro"):
        assert str(path) in named, f"{path} was left behind"
