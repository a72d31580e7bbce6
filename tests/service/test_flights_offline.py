"""
A month of ``dags/flights_offline.py`` in Airflow, with its scheduler and executor, on every profile of stores: what it
made, that all of it is reused, and what can be asked of it. Three times while it runs every payload is killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from airloop.cli import main
from airloop.config import Config
from airloop.features.read import OnlineReader
from airloop.features.repo import open_store
from airloop.frame import history
from airloop.training import tracking
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from demo import DAG_ID, Airflow
from stack import Stack
from tests import profiles
from tests.fault.home_state import LEFT_OUT
from tests.places import data_files
from tests.postgres_server import PostgresServer
from tests.s3_server import S3Server

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(1800)
JANUARY = "2013-02-02T00:00:00-05:00"
"""Logical date of a run by hand, which takes the newest interval that is complete; the other one is an hour later."""
AGAIN = "2013-02-02T01:00:00-05:00"
TASKS = 23
STRIKES = (8, 13, 18)
"""How many tasks are done when payloads are killed."""
ENTITIES = {
    "origin": ["EWR", "JFK", "LGA", "EWR"],
    "carrier": ["UA", "B6", "DL", "no such airline"],
    "dest": ["ORD", "BOS", "ATL", "SFO"],
    "tailnum": ["N14228", "N593JB", "N668DN", "N0"],
}
Ask = Callable[..., tuple[int, Any]]


@dataclass
class Loop:
    """The loop in an Airflow of its own, after its first run."""

    profile: profiles.Profile
    stack: Stack
    airflow: Airflow
    environment: dict[str, str]
    """Of somebody who looks at its state."""
    struck: list[int] = field(default_factory=list)
    """Process ids of the payloads that were killed."""
    first: dict[str, str] = field(default_factory=dict)
    """How each task of the first run ended, by the records."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """The records of all its attempts."""

    @property
    def config(self) -> Config:
        return Config.from_environment(self.environment)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.artifacts)

    def run(self, run_id: str, logical_date: str, *, strikes: Sequence[int] = ()) -> None:
        """Run January to its end, and kill its payloads when so many tasks are done."""
        left = list(strikes)
        body = {"dag_run_id": run_id, "logical_date": logical_date}
        self.airflow.call("POST", f"/api/v2/dags/{DAG_ID}/dagRuns", body)
        until = time.monotonic() + 1500
        while True:
            run = self.airflow.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}")
            if run["state"] in ("success", "failed"):
                break
            assert time.monotonic() < until, f"{run_id} does not end"
            if left and self.done(run_id) >= left[0] and (killed := self.kill_payloads()):
                self.struck += killed
                left.pop(0)
            time.sleep(0.1 if left else 0.5)
        assert run["state"] == "success", self.ends(run_id)

    def done(self, run_id: str) -> int:
        return sum(task["state"] == "success" for task in self.airflow.tasks(DAG_ID, run_id))

    def ends(self, run_id: str) -> dict[str, str]:
        """What the records of a run say of each task: how it ended, and why."""
        run = history.run(self.store, DAG_ID, run_id)
        errors = {name: (task.record.get("error") or {}).get("message", "") for name, task in run.tasks.items()}
        return {name: f"{task.status} {errors[name]}".strip() for name, task in run.tasks.items()}

    def kill_payloads(self) -> list[int]:
        """SIGKILL every step of this Airflow that runs; returns their process ids."""
        services = {service.pid for service in self.stack.services}
        killed = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # A child of its warm server, which was started with a socket below its home, or of one of its tasks.
                above = process.parents()
                ours = any(p.pid in services or str(self.stack.home) in " ".join(p.cmdline()) for p in above)
                if ours and (process.name() == "airloop-step" or process.cmdline()[-3:-1] == ["airloop", "run"]):
                    process.kill()
                    killed.append(process.pid)
        return killed

    def written(self) -> dict[str, Any]:
        """All that a run with nothing to do leaves as it is."""
        config, warehouse = self.config, Warehouse.open(self.config)
        mlflow = tracking.client(config)
        listed = [found for folder in ("steps", "reports", "code") for found in self.store.objects.listed(folder)]
        return {
            "tables": {name: warehouse.table(name).metadata_location for name in warehouse.tables()},
            "files": data_files(config),
            "artifacts": {(found.name, found.stamp) for found in listed},
            "runs": [r.info.run_id for e in mlflow.search_experiments() for r in mlflow.search_runs([e.experiment_id])],
            "versions": [(v.name, v.version, v.aliases) for v in mlflow.search_model_versions()],
            "online": OnlineReader(config).read("delay_v1", ENTITIES),
        }

    def contents(self) -> dict[str, tuple[int, int]]:
        """Of each table the number of rows, and the sum of their hashes, whatever their order."""
        warehouse, found = Warehouse.open(self.config), {}
        for name in warehouse.tables():
            kept = ", ".join(f'"{c}"' for c in warehouse.schema(name).names if c not in LEFT_OUT)
            sql = f'SELECT count(*), sum(hash(t)) FROM (SELECT {kept} FROM "table") AS t'
            with contextlib.closing(warehouse.duckdb({"table": TableRef(name, warehouse.head(name))})) as connection:
                row = connection.execute(sql).fetchone()
            assert row is not None
            found[name] = (row[0], row[1])
        return found


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def profile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[profiles.Profile]:
    if request.param == "embedded":
        yield profiles.EMBEDDED
        return
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    s3: S3Server = request.getfixturevalue("s3_server")
    bucket = request.getfixturevalue("s3_bucket_of_tests")
    with profiles.cluster(tmp_path_factory.mktemp("servers"), postgres, s3, bucket) as found:
        yield found


@pytest.fixture(scope="module")
def loop(profile: profiles.Profile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """January has run."""
    # One thread: sums come in the same order on every profile.
    stack = Stack(tmp_path_factory.mktemp("flights") / "home", settings={**profile.stack, "AIRLOOP_THREADS": "1"})
    environment = profile.reader(stack.home) | {"AIRLOOP_FEATURE_REPO": str(REPOSITORY / "feature_repo")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        try:
            airflow = profile.start(stack, DAG_ID)
            airflow.call("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": False})
            loop = Loop(profile, stack, airflow, environment)
            loop.run("first", JANUARY, strikes=STRIKES)
            loop.first = {name: end.partition(" ")[0] for name, end in loop.ends("first").items()}
            loop.attempts = [json.loads(loop.store.read_bytes(n)) for n in loop.store.names("attempts")]
            yield loop
        finally:
            stack.down()


@pytest.fixture
def airloop(loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The command line of somebody who looks at the loop's state: exit code and answer."""

    def ask(*arguments: str) -> tuple[int, Any]:
        for name, value in loop.environment.items():
            monkeypatch.setenv(name, value)
        code = main([*arguments, "--json"])
        said = capsys.readouterr()
        assert said.out, said.err
        return code, json.loads(said.out)

    return ask


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the first profile was seen to have; every other one has the same."""
    return {}


def same(seen: dict[str, Any], what: str, found: Any) -> None:
    assert found == seen.setdefault(what, found)


def test_every_task_is_done_though_payloads_were_killed(loop: Loop) -> None:
    assert len(loop.first) == TASKS
    lost = [a for a in loop.attempts if a["status"] == "try_again"]
    # One may have been killed after its manifest, which the next attempt found.
    assert 1 <= len(lost) <= len(loop.struck)
    assert {a["error"]["class"] for a in lost} == {"ProcessLost"}
    ends = Counter(loop.first.values())
    assert ends["done"] + ends["reused"] == TASKS
    assert ends["reused"] <= len(lost)


def test_what_it_made(loop: Loop, airloop: Ask, seen: dict[str, Any]) -> None:
    contents = loop.contents()
    assert contents["raw.flights"][0] > 25_000
    same(seen, "tables", contents)
    _, rows = airloop("sql", "SELECT count(*) AS n, count(DISTINCT flight_id) AS ids FROM labels.arrivals")
    assert rows[0]["n"] == rows[0]["ids"] == contents["labels.arrivals"][0]
    run = history.run(loop.store, DAG_ID, "first")
    metrics = {name: (history.manifest_of(loop.store, task) or {})["metrics"] for name, task in run.tasks.items()}
    assert metrics["gate"]["challenger_roc_auc"] > 0.6
    same(seen, "metrics", metrics)


def test_the_champion_is_promoted(loop: Loop, airloop: Ask, seen: dict[str, Any]) -> None:
    _, live = airloop("live")
    assert [(e["model"], e["alias"], e["version"], e["by"]) for e in live] == [
        ("delay", "champion", 1, f"{DAG_ID}/first")
    ]
    same(seen, "ledger", {k: live[0][k] for k in ("outcome", "state", "moved", "data until", "why")})
    _, models = airloop("models")
    assert [(m["model"], int(m["version"]), m["is"]) for m in models] == [("delay", 1, "champion")]
    assert tracking.client(loop.config).get_model_version_by_alias("delay", "champion").version in (1, "1")


def test_online_values_are_those_of_the_tables(loop: Loop, seen: dict[str, Any]) -> None:
    answer = OnlineReader(loop.config).read("delay_v1", ENTITIES)
    same(seen, "online", answer)
    assert answer["late_rate_7d"][-1] is None
    assert None not in answer["late_rate_7d"][:-1]
    stock = stock_answer(open_store(loop.config))
    assert {name: stock[name] for name in answer} == answer


def test_feast_itself_reads_the_same_values(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line and its feature server open the repository's own file."""
    from feast import FeatureStore

    config = loop.config
    monkeypatch.setenv("AIRLOOP_FEAST_REGISTRY", str(config.feast_registry))
    if isinstance(config.online_store, Path):
        file = "feature_store.yaml"
        monkeypatch.setenv("AIRLOOP_ONLINE_STORE", str(config.online_store))
    else:
        file = "feature_store.cluster.yaml"
        parts = urlsplit(config.online_store.url)
        password = unquote(parts.password or "")
        monkeypatch.setenv("FEAST_REDIS", f"{parts.hostname}:{parts.port},password={password},db=0")
    repo = REPOSITORY / "feature_repo"
    store = FeatureStore(repo_path=str(repo), fs_yaml_file=repo / file)
    assert stock_answer(store) == stock_answer(open_store(config))
    if (engine := getattr(store.registry, "write_engine", None)) is not None:
        # Feast closes nothing itself.
        engine.dispose()


def stock_answer(store: Any) -> dict[str, Any]:
    """What Feast's own reader says."""
    rows = [dict(zip(ENTITIES, values, strict=True)) for values in zip(*ENTITIES.values(), strict=True)]
    found = store.get_online_features(features=store.get_feature_service("delay_v1"), entity_rows=rows)
    answer: dict[str, Any] = found.to_dict()
    return answer


def test_lineage_leads_from_the_champion_to_files(airloop: Ask, seen: dict[str, Any]) -> None:
    code, found = airloop("lineage", "delay@champion")
    assert (code, found["start"]) == (0, "model:/delay/1")
    tables = {node["facts"]["table"] for node in found["nodes"] if node["kind"] == "table"}
    assert {"training.delay", "labels.arrivals", "features.weather", "raw.flights", "raw.planes"} <= tables
    assert "flights.csv.zip" in json.dumps(found["nodes"])
    same(seen, "lineage", sorted(tables))


def test_the_report_is_a_page(loop: Loop) -> None:
    task = history.run(loop.store, DAG_ID, "first").tasks["report"]
    manifest = history.manifest_of(loop.store, task)
    assert manifest is not None
    page = loop.store.read_bytes(loop.store.name_of(manifest["links"]["report"])).decode()
    assert page.lower().startswith("<!doctype html")
    assert "January 2013" in page
    assert "Where this model comes from" in page
    assert re.search(r"rests on 3 source files and \d+ tables", page)
    assert "flights.csv.zip" in page
    assert loop.store.exists(f"reports/{DAG_ID}/index.html")


def test_the_doctor_finds_nothing_to_mend(loop: Loop, airloop: Ask) -> None:
    code, findings = airloop("doctor")
    assert (code, [f for f in findings if f["state"] == "bad"]) == (0, [])
    tables = next(f for f in findings if f["what"] == "tables")
    assert int(tables["found"].split()[0]) == len(Warehouse.open(loop.config).tables())
    for secret in loop.profile.hidden:
        assert secret not in json.dumps(findings)


def test_training_set_model_and_gate_are_rebuilt(airloop: Ask) -> None:
    code, found = airloop("replay", f"{DAG_ID}/first")
    assert (code, found["verdict"]) == (0, "equal"), found
    compared = {task["task_id"]: {f["what"] for f in task["findings"]} for task in found["tasks"]}
    assert compared == {"examples": {"rows"}, "train": {"model", "metrics"}, "gate": {"metrics", "decision"}}
    assert {task["verdict"] for task in found["tasks"]} == {"equal"}


def test_a_second_run_reuses_all_of_it_and_writes_nothing(loop: Loop, airloop: Ask) -> None:
    before = loop.written()
    loop.run("again", AGAIN)
    assert loop.ends("again") == dict.fromkeys(loop.first, "reused")
    assert loop.written() == before
    code, why = airloop("why", f"{DAG_ID}/again")
    assert code == 0
    assert {w["task"]: w["made_by"] for w in why} == {task: f"{DAG_ID}/first/{task}" for task in loop.first}


def test_no_secret_is_anywhere(loop: Loop) -> None:
    """Neither in logs, rendered fields, results and all else of Airflow's database, nor in artifacts."""
    texts = {str(path): path.read_text(errors="replace") for path in loop.stack.home.rglob("*.log")}
    assert len(texts) >= 2 * TASKS
    texts |= {
        name: loop.store.read_bytes(name).decode(errors="replace")
        for folder in ("attempts", "runs", "steps", "reports")
        for name in loop.store.names(folder)
        if name.endswith((".json", ".html"))
    }
    if "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" in loop.profile.airflow:
        texts |= database(loop.profile.airflow["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        assert "airloop_postgres" in texts["connection"]
        assert "delay_v1" in texts["rendered_task_instance_fields"]
    for secret in loop.profile.hidden:
        assert [place for place, text in texts.items() if secret in text or secret.encode().hex() in text] == []


def database(address: str) -> dict[str, str]:
    """All rows of each table of a PostgreSQL, as text."""
    import psycopg

    with contextlib.closing(psycopg.connect(address.replace("+psycopg", ""))) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        return {
            name: "\n".join(row for (row,) in connection.execute(f'SELECT t::text FROM "{name}" AS t').fetchall())
            for (name,) in names
        }
