"""What the care of a bucket does to a real store: names as they come, removal in batches, uploads, its clock."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from airloop.config import S3Address
from airloop.errors import AirloopError, StoreReadOnly
from airloop.objects import Bulk, bulk
from tests.s3_server import S3Server

NAMES = ["a", "b c/ü+%20.txt", "d/x=1&y/<z>", "d/e/f", "other/x"]


@pytest.fixture
def place(s3_bucket: S3Address) -> Bulk:
    made = Bulk(s3_bucket)
    for name in NAMES:
        made.publish(name, name.encode())
    return made


def test_all_names_are_seen_and_those_of_a_folder(place: Bulk) -> None:
    assert sorted(file.name for file in place.walk()) == sorted(NAMES)
    assert sorted(file.name for file in place.walk("d")) == ["d/e/f", "d/x=1&y/<z>"]
    assert {file.name: file.bytes for file in place.walk("other")} == {"other/x": 7}
    assert list(place.walk("o")) == []


def test_files_go_in_batches(place: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "AT_A_TIME", 2)
    place.remove_all([*NAMES[:4], "never/was"])
    assert [file.name for file in place.walk()] == ["other/x"]


def test_a_store_without_batches(place: Bulk, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "NotImplemented", "Message": "no"}}, "DeleteObjects")

    monkeypatch.setattr(place._client(), "delete_objects", refuse)
    place.remove_all(NAMES[1:])
    assert [file.name for file in place.walk()] == ["a"]


@pytest.mark.parametrize(("code", "error"), [("AccessDenied", StoreReadOnly), ("InternalError", AirloopError)])
def test_a_batch_that_fails_in_part_is_an_error(
    place: Bulk, monkeypatch: pytest.MonkeyPatch, code: str, error: type[AirloopError]
) -> None:
    answer = {"Errors": [{"Key": "a", "Code": "NoSuchKey"}, {"Key": "b", "Code": code, "Message": "not yours"}]}
    monkeypatch.setattr(place._client(), "delete_objects", lambda **_: answer)
    with pytest.raises(error, match=f"{code}: not yours"):
        place.remove_all(["a", "b"])


def test_uploads_that_were_not_completed(place: Bulk, s3_bucket: S3Address, s3_server: S3Server) -> None:
    assert list(place.uploads()) == []
    with closing(s3_server.client()) as client:
        key = f"{s3_bucket.prefix}/half.parquet"
        begun = client.create_multipart_upload(Bucket=s3_bucket.bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=s3_bucket.bucket, Key=key, UploadId=begun, PartNumber=1, Body=b"x")
    found = list(place.uploads())
    assert [upload.name for upload in found] == ["half.parquet"]
    assert "half.parquet" not in {file.name for file in place.walk()}
    for _ in range(2):
        place.abort(found[0])
    assert list(place.uploads()) == []


def test_the_stores_clock_is_that_of_its_files(place: Bulk) -> None:
    # It runs on this machine; its answers' time is cut to whole seconds, and an answer may take a while.
    assert -60.0 <= place.clock_ahead_s() <= 0.0
