"""What goes wrong with a bucket: which error it is, what it says, and what is there afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airloop.config import Config, S3Address, place_of
from airloop.errors import AirloopError, BadConfiguration, StoreBusy, StoreReadOnly, Unreachable
from airloop.objects import Bucket, open_objects
from airloop.objects import bucket as module
from tests import s3_server as s3_servers
from tests.s3_server import Lossy, S3Server


@pytest.fixture
def lossy(s3_server: S3Server) -> Iterator[Lossy]:
    way = Lossy(s3_server.endpoint)
    yield way
    way.close()


@pytest.fixture
def own_server(s3_server: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    """One that a test may end."""
    if not s3_server.command:
        pytest.skip("the store that was given must not be ended")
    (tmp_path / "s3").mkdir()
    with s3_servers.running(tmp_path / "s3") as server:
        server.make_bucket("bucket")
        yield server


ACTS: list[Callable[[Bucket], object]] = [
    lambda b: b.read("f"), lambda b: b.publish("f", b"x"), lambda b: b.publish("f", b"x", only_if_absent=True),
    lambda b: list(b.listed("f")), lambda b: b.folders("f"), lambda b: b.change("f", lambda _: b"x"),
    lambda b: b.stream("f"), lambda b: b.publish_path("f", Path(__file__)),
]  # fmt: skip


def refused(bucket: Bucket, kind: type[AirloopError], said: str, *secrets: str) -> None:
    for act in ACTS:
        with pytest.raises(kind, match=said) as caught:
            act(bucket)
        assert type(caught.value) is kind
        assert not any(secret in str(caught.value) for secret in secrets)


def test_wrong_credentials_are_a_matter_of_configuration(s3_bucket: S3Address, s3_server: S3Server) -> None:
    for wrong in ({"AWS_ACCESS_KEY_ID": "somebody-else"}, {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}):
        environment = {**s3_server.environment, **wrong}
        bucket = Bucket(s3_bucket, environment)
        refused(bucket, BadConfiguration, "does not accept the credentials", *wrong.values(), s3_server.secret)


def test_no_credentials_are_said_to_be_missing(s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refused(Bucket(s3_bucket), BadConfiguration, "there are no credentials")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(Bucket(s3_bucket), BadConfiguration, "there are no credentials")


def test_credentials_are_taken_from_what_is_given(
    s3_bucket: S3Address, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_server.environment:
        monkeypatch.delenv(name)
    bucket = Bucket(s3_bucket, s3_server.environment)
    assert bucket.publish("f", b"x")
    assert s3_server.secret not in repr(vars(bucket)["address"])


def test_a_bucket_that_is_not_there_is_named(s3_bucket: S3Address) -> None:
    bucket = Bucket(S3Address("no-such-bucket-here", "p"))
    for act in (lambda: bucket.read("f"), lambda: bucket.folders("f"), lambda: list(bucket.listed("f"))):
        with pytest.raises(BadConfiguration, match="there is no bucket no-such-bucket-here at http://"):
            act()


def test_without_access_it_is_said_what_to_allow(s3_bucket: S3Address, s3_server: S3Server) -> None:
    if not s3_server.command:
        pytest.skip("the user that was given may do everything")
    bucket = Bucket(S3Address("no-such-bucket-here", "p"))
    for only_if_absent in (False, True):
        with pytest.raises(StoreReadOnly, match=r"no access to s3://.*; allow this user to list, get, put and delete"):
            bucket.publish("f", b"x", only_if_absent=only_if_absent)


def test_a_server_that_is_away_may_come_back(s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://somebody:sesame@127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"does not answer at http://somebody:\*\*\*@127.0.0.1:1") as caught:
        Bucket(s3_bucket).read("f")
    assert "sesame" not in str(caught.value)
    assert caught.value.exit_code == 75


def test_an_address_of_no_server_is_a_matter_of_configuration(
    s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "here and there")
    refused(Bucket(s3_bucket), BadConfiguration, "AWS_ENDPOINT_URL_S3 is here and there, no address of a server")


def test_a_server_that_is_killed_in_the_middle_loses_nothing(own_server: S3Server) -> None:
    bucket = Bucket(S3Address("bucket", "p"), own_server.environment)
    bucket.publish("f", b"one")

    def kill(there: bytes | None) -> bytes:
        own_server.kill()
        return b"two"

    with pytest.raises(Unreachable):
        bucket.change("f", kill)
    own_server.start()
    assert bucket.read("f") == b"one"
    bucket.change("f", lambda there: (there or b"") + b" three")
    assert bucket.read("f") == b"one three"


def test_a_put_whose_answer_was_lost_is_known_as_our_own(
    s3_bucket: S3Address, s3_server: S3Server, lossy: Lossy
) -> None:
    bucket = Bucket(s3_bucket, {**s3_server.environment, "AWS_ENDPOINT_URL_S3": lossy.endpoint})
    assert bucket.read("f") is None
    lossy.to_lose = 1
    assert bucket.publish("f", b"one", only_if_absent=True)
    assert not bucket.publish("f", b"one", only_if_absent=True)
    calls = []

    def count(there: bytes | None) -> bytes:
        calls.append(there)
        lossy.to_lose = 1
        return (there or b"") + b" two"

    bucket.change("f", count)
    assert lossy.to_lose == 0
    assert bucket.read("f") == b"one two"
    assert calls == [b"one"]


def test_a_change_that_others_keep_overtaking_gives_up(s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 3)
    bucket, tries = Bucket(s3_bucket), []

    def overtaken(there: bytes | None) -> bytes:
        tries.append(there)
        bucket.publish("f", b"%d" % len(tries))
        return b"ours"

    with pytest.raises(StoreBusy, match="others kept changing s3://"):
        bucket.change("f", overtaken)
    assert tries == [None, b"1", b"2"]
    assert bucket.read("f") == b"3"


@pytest.mark.parametrize(("when", "left"), [("before", None), ("after", b"one")])
def test_a_process_that_is_killed_at_a_put_leaves_all_or_nothing(
    s3_bucket: S3Address, when: str, left: bytes | None
) -> None:
    program = (
        "from airloop.config import S3Address; from airloop.objects import open_objects\n"
        f"open_objects({s3_bucket!r}).publish('a/f', b'one')"
    )
    environment = {**os.environ, "AIRLOOP_FAULT": f"kill@artifact:{when}:f"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert open_objects(s3_bucket).read("a/f") == left


def test_more_files_than_an_answer_holds_are_all_listed(s3_bucket: S3Address) -> None:
    objects = open_objects(s3_bucket)
    for n in range(1_050):
        objects.publish(f"many/{n % 3}/{n:04}", b"")
    assert sum(1 for _ in objects.listed("many")) == 1_050
    assert objects.folders("many") == ["0", "1", "2"]


def test_boto_is_not_imported_before_a_bucket_is_used() -> None:
    program = (
        "import sys; import airloop.records; from airloop.config import S3Address; from airloop.objects import *\n"
        "open_objects(S3Address('bucket', '')).uri('f')\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('boto3', 'botocore')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(BadConfiguration, match=r"s3://bucket is in a bucket, and boto3 .*pip install 'airloop\[s3\]'"):
        Bucket(S3Address("bucket", "")).read("f")


def test_a_setting_is_a_folder_or_a_place_in_a_bucket(tmp_path: Path) -> None:
    assert place_of("s3://bucket/a/b/") == S3Address("bucket", "a/b")
    assert place_of(str(tmp_path)) == tmp_path
    assert place_of("") is None
    config = Config.from_environment({"AIRLOOP_HOME": str(tmp_path), "AIRLOOP_ARTIFACTS": "s3://bucket/a"})
    assert config.describe()["artifacts"] == "s3://bucket/a"
    with pytest.raises(BadConfiguration, match="is no address of files"):
        place_of("http://bucket/a")
