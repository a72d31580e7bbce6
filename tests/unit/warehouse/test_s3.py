"""A warehouse in a bucket: access, what is said when there is none, and what a connection gives away."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airloop.config import Config, S3Address
from airloop.errors import (
    AirloopError,
    BadArgument,
    BadConfiguration,
    NotFound,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    Unreachable,
    classify,
)
from airloop.warehouse import commit as committing
from airloop.warehouse import s3
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.read import connect
from airloop.warehouse.recall import files, recall
from airloop.warehouse.references import References
from airloop.warehouse.refs import TableRef
from airloop.warehouse.s3 import Access
from tests.places import IN_A_BUCKET, data_files, objects
from tests.s3_server import S3Server

NAME = "raw.a"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "it's/secret+x"}


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64())})


def ids(warehouse: Warehouse) -> list[int]:
    return sorted(warehouse.scan(TableRef(NAME)).read_all()["id"].to_pylist())


def write(config: Config, *which: int, key: str = "k1") -> Any:
    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, rows().schema, key=["id"])
    return warehouse.commit(NAME, rows(*which), key=key)


class TestAccess:
    def test_is_read_as_amazons_tools_read_it(self) -> None:
        access = Access.from_environment({**KEYS, "AWS_ENDPOINT_URL": "http://store:9000/", "AWS_REGION": "eu-west-1"})
        assert (access.endpoint, access.region, access.key, access.token) == (
            "http://store:9000", "eu-west-1", "AKIAEXAMPLE", "",
        )  # fmt: skip
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in repr(access)
        more = {"AWS_ENDPOINT_URL_S3": "https://s3", "AWS_ENDPOINT_URL": "http://other", "AWS_SESSION_TOKEN": "t"}
        access = Access.from_environment(KEYS | more)
        assert (access.endpoint, access.region, access.token) == ("https://s3", "us-east-1", "t")

    @pytest.mark.parametrize("address", ["store:9000", "ftp://store", "http://", "http://a:b@store", "http://store:x"])
    def test_an_address_that_is_none(self, address: str) -> None:
        with pytest.raises(BadConfiguration, match="AWS_ENDPOINT_URL_S3 is no address of a store") as caught:
            Access.from_environment(KEYS | {"AWS_ENDPOINT_URL_S3": address})
        assert "a:b" not in str(caught.value)

    def test_without_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3, "_identity", lambda: None)
        with pytest.raises(BadConfiguration, match="give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as secrets"):
            Access.from_environment({"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"})

    def test_the_identity_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not os.environ.get("CI"):
            pytest.importorskip("botocore")
        (tmp_path / "credentials").write_text(
            "[default]\naws_access_key_id=AKIAFILE\naws_secret_access_key=of-the-file\naws_session_token=ends\n"
        )
        for name in KEYS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        s3._session.cache_clear()
        try:
            access = Access.from_environment({})
        finally:
            s3._session.cache_clear()
        assert (access.key, access.secret, access.token) == ("AKIAFILE", "of-the-file", "ends")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("When creating key 'a': AWS Error NO_SUCH_BUCKET during PutObject operation: none", BadConfiguration),
        ("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: none", BadConfiguration),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation: none", BadConfiguration),
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken", BadConfiguration),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", StoreReadOnly),
        ("AWS Error UNKNOWN (HTTP status 507) during UploadPart operation: full", StoreFull),
        ("AWS Error UNKNOWN (HTTP status 403) during UploadPart operation: QuotaExceeded", StoreFull),
        ("AWS Error SLOW_DOWN during UploadPart operation: reduce your rate", Unreachable),
        ("AWS Error UNKNOWN (HTTP status 502) during GetObject operation: bad gateway", Unreachable),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Couldn't connect", Unreachable),
        ("[Errno 2] Path does not exist 'lake/raw/a.parquet'. Detail: [errno 2] No such file or directory", NotFound),
        ("AWS Error UNKNOWN (HTTP status 400) during GetObject operation: MalformedXML", None),
    ],
)
def test_what_arrow_says(text: str, kind: type[AirloopError] | None) -> None:
    found = classify(OSError(text))
    assert (type(found) if found is not None else None) == kind


@IN_A_BUCKET
class TestBucket:
    def test_nothing_is_in_the_folder(self, config: Config) -> None:
        write(config, 1, 2)
        assert not (config.home / "warehouse").exists()
        assert {path.split("/data/")[0].rpartition("/lake/")[2] for path in data_files(config)} == {"raw/a"}
        assert Warehouse.open(config).table(NAME).location() == f"{config.warehouse}/raw/a"

    def test_a_commit_whose_answer_is_lost_leaves_garbage_only(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(config, 1, key="k0")

        def broken(*_: Any) -> None:
            raise sqlite3.OperationalError("database is locked")

        with monkeypatch.context() as patched:
            patched.setattr(committing, "send", broken)
            with pytest.raises(StoreBusy):
                write(config, 2)
        warehouse = Warehouse.open(config)
        assert ids(warehouse) == [1]
        assert len(data_files(config)) == 2
        assert write(config, 2).changed
        assert ids(warehouse) == [1, 2]
        assert not write(config, 2).changed

    def test_what_a_table_needs_is_known_by_its_addresses(self, config: Config) -> None:
        write(config, 1, key="k0")
        write(config, 2)
        table = Warehouse.open(config).table(NAME)
        assert {path.removeprefix("s3://") for path in References(table).all()} == objects(config)
        snapshot = table.current_snapshot()
        assert snapshot is not None
        assert files(snapshot, table.io) == References(table).of([snapshot.snapshot_id])
        assert recall(table) == {}

    def test_old_metadata_goes(self, config: Config) -> None:
        warehouse = Warehouse.open(config)
        warehouse.ensure(NAME, rows().schema)
        with warehouse.table(NAME).transaction() as transaction:
            transaction.set_properties({"write.metadata.previous-versions-max": "2"})
        for i in range(6):
            warehouse.commit(NAME, rows(i), key=f"k{i}")
        assert sum(path.endswith(".metadata.json") for path in objects(config)) == 3
        assert ids(warehouse) == list(range(6))

    def test_sql_of_others_sees_no_secret_and_no_other_file(self, config: Config) -> None:
        write(config, 1)
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        with Warehouse.open(config).duckdb({"t": TableRef(NAME)}) as connection:
            assert connection.sql("FROM t").fetchall() == [(1,)]
            assert secret not in str(connection.sql("FROM duckdb_secrets()").fetchall())
            assert secret not in str(connection.sql("FROM duckdb_settings()").fetchall())
            with pytest.raises(duckdb.Error):
                connection.execute("SET allow_unredacted_secrets = true")

    def test_a_query_opens_its_inputs_only(
        self, config: Config, run_step: Callable[..., dict[str, Any]], interval: Any
    ) -> None:
        warehouse = Warehouse.open(config)
        for name in (NAME, "raw.b"):
            warehouse.ensure(name, rows().schema, key=["id"])
            warehouse.commit(name, rows(1, 2, 3), key="seed")
        call = {"inputs": {"a": str(TableRef(NAME, warehouse.head(NAME)))}, "table": "features.x", "key": ["id"]}
        run_step("sql", interval=interval, sql="SELECT id FROM a WHERE id > 1", **call)
        assert warehouse.scan(TableRef("features.x", branch="main")).read_all()["id"].to_pylist() == [2, 3]
        hidden = next(path for path in data_files(config) if "/raw/b/" in path)
        with pytest.raises(BadArgument, match=r"(?i)permission|disabled|not allowed"):
            run_step("sql", interval=interval, sql=f"SELECT id FROM read_parquet('s3://{hidden}')", **call)

    def test_the_doctor_tries_it(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        from airloop.cli.doctor import _bucket_of_tables as look

        (found,) = look(config)
        assert (found.state, found.found.startswith(str(config.warehouse))) == ("ok", True)
        assert objects(config) == set()
        with monkeypatch.context() as patched:
            patched.setattr(s3, "_extension", lambda: "/nowhere/httpfs.duckdb_extension")
            (found,) = look(config)
        assert (found.state, found.mend) == ("bad", s3.HOW_TO_INSTALL)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
        (found,) = look(config)
        assert found.state == "bad"
        assert "wrong-wrong-wrong" not in found.found + found.mend


@IN_A_BUCKET
class TestNoAccess:
    """Each kind of refusal, when writing and when reading, in our words; nothing in them is secret."""

    @pytest.fixture
    def told(self, config: Config) -> Callable[[Callable[[], Any]], AirloopError]:
        def run(work: Callable[[], Any]) -> AirloopError:
            with pytest.raises(AirloopError) as caught:
                work()
            shown = "".join(traceback.format_exception(caught.value))
            for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                assert not os.environ.get(name) or os.environ[name] not in shown
            return caught.value

        return run

    def test_refused_credentials(self, config: Config, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        write(config, 1)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
        assert isinstance(told(lambda: write(config, 2, key="k2")), BadConfiguration | StoreReadOnly)
        assert isinstance(told(lambda: ids(Warehouse.open(config))), BadConfiguration | StoreReadOnly)

    def test_no_such_bucket(self, config: Config, told: Any) -> None:
        elsewhere = replace(config, warehouse=S3Address("there-is-no-such-bucket", "lake"))
        found = told(lambda: write(elsewhere, 1))
        # SeaweedFS tells nobody but its administrator that there is none.
        assert isinstance(found, BadConfiguration | StoreReadOnly)
        assert "there-is-no-such-bucket" in found.found

    def test_the_file_is_gone(self, config: Config, told: Any, s3_server: S3Server) -> None:
        write(config, 1)
        (path,) = data_files(config)
        bucket, _, key = path.partition("/")
        with closing(s3_server.client()) as client:
            client.delete_object(Bucket=bucket, Key=key)
        assert isinstance(told(lambda: ids(Warehouse.open(config))), NotFound)

    def test_a_user_who_may_only_read(self, config: Config, told: Any, s3_server: S3Server) -> None:
        write(config, 1)
        with closing(s3_server.client()) as client:
            deny = {
                "Version": "2012-10-17",
                "Statement": [{
                    "Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject"],
                    "Resource": [f"arn:aws:s3:::{config.warehouse.bucket}/{config.warehouse.prefix}/*"],
                }],
            }  # fmt: skip
            client.put_bucket_policy(Bucket=config.warehouse.bucket, Policy=json.dumps(deny))
            try:
                found = told(lambda: write(config, 2, key="k2"))
            finally:
                client.delete_bucket_policy(Bucket=config.warehouse.bucket)
        assert isinstance(found, StoreReadOnly)
        assert ids(Warehouse.open(config)) == [1]

    def test_the_store_is_away(self, config: Config, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        write(config, 1)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed.getsockname()[1]}")
            assert isinstance(told(lambda: write(config, 2, key="k2")), Unreachable)
            assert isinstance(told(lambda: ids(Warehouse.open(config))), Unreachable)

    def test_without_the_extension(self, config: Config, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3, "_extension", lambda: "/nowhere/httpfs.duckdb_extension")
        found = told(lambda: connect(config))
        assert isinstance(found, BadConfiguration)
        assert found.advice == s3.HOW_TO_INSTALL
