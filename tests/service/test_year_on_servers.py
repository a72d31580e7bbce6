"""
The year in little with all state on servers: a bucket, PostgreSQL, Redis, and an MLflow of its own. Runs that are under
way at once in Airflow, all of it again, and a backup that is laid into other stores after these were lost.

What holds for state in one folder (``test_order_of_runs.py``, ``test_rerun.py``, ``test_backup.py``) holds there too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.registry.ledger import Ledger
from airloop.registry.lookup import registered
from airloop.upkeep.backup import backup
from airloop.upkeep.gc import collect
from airloop.upkeep.points import Point
from airloop.upkeep.restore import restore
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from tests import contents, profiles
from tests.postgres_server import PostgresServer
from tests.profiles import Profile
from tests.s3_server import S3Server
from tests.service.year_in_airflow import one_by_one, year_in_airflow
from tests.year_world import MODEL, Year, month, write_world

pytestmark = pytest.mark.timeout(1800)
REPOSITORY = Path(__file__).resolve().parents[2]
LAST = 3
"""Month of the live runs; those before it are backfilled."""
NEXT = LAST + 1
"""Month that runs while a backup is made."""
IN_HALVES = """
import os, sys, time
from pathlib import Path
from tests.year_world import Year, month
home, world, go_on = map(Path, sys.argv[1:4])
year, interval = Year.at(home, world, os.environ), month(int(sys.argv[4]))
year.run(interval, ("extract", "validate", "lags", "online", "examples"))
while not go_on.exists():
    time.sleep(0.05)
year.run(interval)
"""


@dataclass(frozen=True)
class Ran:
    """The first months, after they ran in Airflow."""

    servers: Profile
    year: Year
    """As another machine sees it."""
    machine: Path
    """Home of the one on which it ran."""
    world: Path
    one_by_one: dict[str, Any]
    """The state after the same months one by one, in a folder."""


@pytest.fixture(scope="module")
def servers(
    postgres_server: PostgresServer,
    s3_server: S3Server,
    s3_bucket_of_tests: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Profile]:
    folder = tmp_path_factory.mktemp("servers")
    with (
        profiles.cluster(folder, postgres_server, s3_server, s3_bucket_of_tests) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment(found).items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def ran(servers: Profile, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Backfilled at once, with two live runs of the last month meanwhile; Airflow has ended."""
    world, folder = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("year")
    write_world(world, NEXT)
    with (
        one_by_one(folder / "one-by-one", world, LAST) as expected,
        year_in_airflow(folder / "home", world, servers) as loop,
    ):
        loop.end_together(LAST, at_once=LAST - 1, within_s=1500)
        return Ran(servers, loop.year, folder / "home", world, expected())


def environment(profile: Profile) -> dict[str, str]:
    """Of whoever works on the state."""
    return {**profile.settings, **profile.secrets}


def test_runs_at_once_end_as_if_one_by_one_in_a_folder(ran: Ran) -> None:
    found, wanted = ran.year.state(), ran.one_by_one
    assert found.keys() == wanted.keys()
    assert [e["outcome"] for e in wanted["ledger"]].count("promote") > 1
    for part in wanted:
        assert found[part] == wanted[part], part
    databases = ("catalog.db", "mlflow.db", "online.db", "feast-registry.db")
    left = [p for p in ran.machine.rglob("*") if p.suffix in (".parquet", ".avro") or p.name in databases]
    assert left == [], "state that another machine does not see"


def test_all_of_it_again_writes_nothing(ran: Ran, s3_server: S3Server) -> None:
    before = contents.of_stores(ran.servers, s3_server)
    for there in ("airloop.iceberg_tables", "airloop.airloop_features", "mlflow.runs", "mlflow.model_versions"):
        assert before[there], there
    assert {name.partition("/")[0] for name in before if "/" in name} >= {"artifacts", "warehouse", "mlflow"}
    assert [name for name in before if name.startswith("online ")]
    # The older intervals come last.
    for number in range(LAST, 0, -1):
        statuses = ran.year.run(month(number), run_id="by-hand")
        assert statuses == dict.fromkeys(statuses, "reused"), number
    after = contents.of_stores(ran.servers, s3_server)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == []


def test_restored_into_other_stores_it_goes_on_like_the_one_that_was_lost(
    ran: Ran, postgres_server: PostgresServer, s3_server: S3Server, s3_bucket_of_tests: str, tmp_path: Path
) -> None:
    """The last one: it takes away what the others look at."""
    first, lost = ran.year, ran.servers
    point = during(ran, lambda: backup(first.config, tmp_path / "vault")[0], tmp_path)
    assert {note.partition(" ")[0] for note in point.notes} == {"MLflow", "Feast's", "the"}
    store = ArtifactStore(first.config.artifacts)
    assert set(manifests(store)) > {n.removeprefix("artifacts/") for n in point.files if n.endswith("/manifest.json")}
    undisturbed = first.state()

    def fill_mlflow(database: str, files: str) -> None:
        """The database, then the files, after the point was made."""
        postgres_server.copy(lost.databases["mlflow"], database)
        s3_server.copy(f"{lost.place}/mlflow", files)

    servers = tmp_path / "servers"
    servers.mkdir()
    with profiles.cluster(servers, postgres_server, s3_server, s3_bucket_of_tests, fill_mlflow=fill_mlflow) as found:
        lose(lost, postgres_server, s3_server)
        second = Year.at(tmp_path / "the second", ran.world, environment(found))
        restore(tmp_path / "vault", second.config.home, config=second.config)
        assert naming(lost.place, s3_server, found.place) == []
        found.wait()
        # MLflow's copy is younger than the point: it knows of a model that the ledger does not.
        assert len(registered(second.config)) == NEXT
        assert versions(second.config) == list(range(1, NEXT))

        again = second.run(month(LAST))
        # Redis was not in it: values are online again once they are asked for.
        assert again == {**dict.fromkeys(second.calls(), "reused"), "online": "done"}
        assert second.run(month(NEXT))["extract"] == "reused"
        assert counted(second.state()) == counted(undisturbed)
        collect(second.config, grace_s=-60)
        assert counted(second.state()) == counted(undisturbed)
        assert second.run(month(NEXT)) == dict.fromkeys(second.calls(), "reused")


def during(ran: Ran, work: Callable[[], Point], folder: Path) -> Point:
    """
    Do something while another machine runs the next month, from when its rows are validated; then await its end.

    Its model is trained only after that, however long it takes.
    """
    store, file, go_on = ArtifactStore(ran.year.config.artifacts), folder / "month.log", folder / "go-on"
    validated = len(manifests(store, "validate"))
    command = [sys.executable, "-W", "ignore", "-c", IN_HALVES, folder / "a machine", ran.world, go_on, str(NEXT)]
    variables = os.environ | environment(ran.servers)
    with (
        file.open("wb") as log,
        subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log) as process,
    ):
        try:
            while len(manifests(store, "validate")) == validated:
                assert process.poll() is None, file.read_text()[-3000:]
                time.sleep(0.05)
            result = work()
            assert process.poll() is None, file.read_text()[-3000:]
            go_on.touch()
            assert process.wait(1500) == 0, file.read_text()[-3000:]
        finally:
            process.kill()
    return result


def manifests(store: ArtifactStore, step: str = "") -> list[str]:
    return [name for name in store.names(f"steps/{step}".rstrip("/")) if name.endswith("/manifest.json")]


def naming(lost: str, s3: S3Server, place: str) -> list[str]:
    """Every JSON below a place that names the lost one."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    names = [name for name in s3.objects(place) if name.endswith(".json")]
    assert names
    with closing(s3.client()) as client:
        texts = {n: client.get_object(Bucket=bucket, Key=f"{prefix}/{n}")["Body"].read() for n in names}
    return [name for name, text in texts.items() if lost.encode() in text]


def lose(profile: Profile, postgres: PostgresServer, s3: S3Server) -> None:
    """Take all state of a profile away."""
    import redis

    for address in profile.databases.values():
        postgres.drop(address)
    s3.remove(profile.place)
    with redis.Redis.from_url(profile.secrets["AIRLOOP_ONLINE_STORE"]) as client:
        client.flushall()


def versions(config: Config) -> list[int]:
    """Every version that the ledger speaks of."""
    return sorted({e.version for e in Ledger(Warehouse.open(config)).entries(MODEL)})


def counted(state: dict[str, Any]) -> dict[str, Any]:
    """
    A state whose versions are counted as the ledger knows them.

    What was trained between the point and MLflow's copy is trained again, and then is the next version but one.
    """
    rank = {v: n for n, v in enumerate(sorted({e["version"] for e in state["ledger"]}), 1)}
    ledger = [e | {"version": rank[e["version"]], "previous": rank.get(e["previous"])} for e in state["ledger"]]
    named = {alias: rank.get(v, f"{v}, which the ledger does not know") for alias, v in state["aliases"].items()}
    return state | {"ledger": ledger, "aliases": named}
