"""
Files below a prefix of a bucket, of Amazon's S3 or of a store that speaks its language.

A put has to be visible at once and whole, and to depend, where it is asked to, on the file's absence
(``If-None-Match: *``) or version (``If-Match``), also if several come at once. Amazon's S3 promises that; of SeaweedFS
4.48 was seen to hold it and 4.16 is known not to; ``airloop doctor`` tries any store.

Address, region and credentials come from the environment, under the names that all of Amazon's tools use:
``AWS_ENDPOINT_URL_S3`` (not for Amazon's own), ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_SESSION_TOKEN``; or from whatever else Amazon's library finds, such as the identity of a pod.

What it does not use: versions, locks and life cycles of the bucket. Rules that remove objects by age must leave the
prefix out; one that aborts uploads which were never completed is welcome, for a killed process leaves some.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from airloop.config import S3Address, without_password
from airloop.errors import AirloopError, BadConfiguration, StoreBusy, StoreFull, StoreReadOnly, Unreachable
from airloop.faults import point
from airloop.objects.base import ALL, Change, Listed, Stream, checked

ENDPOINT = "AWS_ENDPOINT_URL_S3"
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
VARIABLES = (*SECRETS, ENDPOINT, "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What is read of the environment here; Amazon's library reads more of this process's own."""
TRIES = 40
"""How often a change is tried again that others came before."""
WAIT_S = 1.0
"""Seconds between two tries at most."""
PIECE_BYTES = 1 << 20
AT_ONCE_BYTES = 8 << 20
"""Files that are larger go up in parts, and appear with the last."""
PUT = "airloop-put"
"""Name of the metadata that tells a put from all others."""

CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
"""Somebody else was writing the very file: nothing is decided."""
UNMET = frozenset({"PreconditionFailed", "412", "NoSuchKey", "404"})
"""The condition of a put does not hold; it may be gone since it was read."""
BAD_CREDENTIALS = frozenset(
    {
        "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
        "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
    }
)  # fmt: skip


class Bucket:
    """Files below a prefix of a bucket. Threads may share it; so may a process and those that it forks."""

    def __init__(self, place: S3Address, environment: Mapping[str, str] = os.environ) -> None:
        self._bucket = place.bucket
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._settings = tuple((name, environment[name]) for name in VARIABLES if environment.get(name))
        self.address = str(place)

    def __str__(self) -> str:
        return self.address

    def uri(self, name: str) -> str:
        return f"{self.address}/{quote(str(checked(name)))}"

    def name_of(self, uri: str) -> str:
        root = f"{self.address}/"
        return unquote(uri.removeprefix(root)) if uri.startswith(root) else ""

    def read(self, name: str) -> bytes | None:
        found = self._get(name)
        return None if found is None else found[0]

    def stream(self, name: str) -> Stream | None:
        found = self._ask(name, "get_object")
        if found is None:
            return None

        def pieces() -> Iterator[bytes]:
            with closing(found["Body"]) as body, self._understood():
                yield from body.iter_chunks(PIECE_BYTES)

        return Stream(found["ContentLength"], pieces())

    def look(self, name: str) -> Listed | None:
        found = self._ask(name, "head_object")
        if found is None:
            return None
        return Listed(str(checked(name)), found["ContentLength"], _changed_at(found), _stamp(found))

    def local(self, name: str, scratch: Path) -> Path | None:
        if self._download(name, scratch / PurePosixPath(name).name):
            return scratch / PurePosixPath(name).name
        found = list(self.listed(name))
        for file in found:
            self._download(file.name, scratch / PurePosixPath(file.name).relative_to(checked(name)))
        return scratch if found else None

    def publish(self, name: str, content: bytes, *, only_if_absent: bool = False) -> bool:
        return self._put(name, content, {"IfNoneMatch": "*"} if only_if_absent else {})

    def publish_path(self, name: str, source: Path) -> None:
        if source.is_file():
            self._upload(name, source)
            return
        before = {found.name for found in self.listed(name)}
        for path, inner in _files_in(source):
            self._upload(f"{checked(name)}/{inner}", path)
            before.discard(f"{checked(name)}/{inner}")
        for left in sorted(before):
            self.remove(left)

    def change(self, name: str, to: Change) -> None:
        for attempt in range(TRIES):
            found = self._get(name)
            content = to(None if found is None else found[0])
            if content is None:
                return
            if self._put(name, content, {"IfNoneMatch": "*"} if found is None else {"IfMatch": found[1]}):
                return
            _wait(attempt)
        raise self._contended(name)

    def listed(self, prefix: str, pattern: str = ALL) -> Iterator[Listed]:
        within = f"{checked(prefix)}/"
        wanted = re.compile(".*" if pattern == ALL else "[^/]*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
        files = []
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                name = found["Key"][len(self._prefix) :]
                # A name that ends so is no file, but what other tools make to show a folder.
                if not name.endswith("/") and wanted.fullmatch(name, len(within)):
                    files.append(Listed(name, found["Size"], _changed_at(found), _stamp(found)))
        # Amazon's S3 lists names in their order, others folder by folder.
        yield from sorted(files, key=lambda file: file.name)

    def folders(self, prefix: str) -> list[str]:
        found = []
        for page in self._pages(prefix, Delimiter="/"):
            found += [part["Prefix"].rstrip("/").rpartition("/")[2] for part in page.get("CommonPrefixes", ())]
        return sorted(found)

    def changed(self, prefix: str) -> dict[str, Listed]:
        within: dict[str, list[Listed]] = {}
        for file in self.listed(prefix, "*/*"):
            within.setdefault(file.name.split("/")[-2], []).append(file)
        return {
            name: Listed(
                f"{checked(prefix)}/{name}",
                sum(file.bytes for file in files),
                max(file.changed_at for file in files),
                # Not by time: two records may come within the second that it is told to.
                hashlib.sha256("".join(f"{file.name} {file.stamp}\n" for file in files).encode()).hexdigest(),
            )
            for name, files in within.items()
        }

    def remove(self, name: str) -> None:
        with self._understood():
            self._client().delete_object(Bucket=self._bucket, Key=self._key(name))

    # --- requests

    def _ask(self, name: str, how: str) -> Any:
        """The answer to a request for a file; None if there is none."""
        with self._understood() as errors:
            try:
                return getattr(self._client(), how)(Bucket=self._bucket, Key=self._key(name))
            except errors.ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise

    def _get(self, name: str) -> tuple[bytes, str] | None:
        found = self._ask(name, "get_object")
        if found is None:
            return None
        with closing(found["Body"]) as body, self._understood():
            return body.read(), found["ETag"]

    def _put(self, name: str, content: bytes, condition: Mapping[str, str]) -> bool:
        """:returns: False if the condition does not hold."""
        mark = uuid.uuid4().hex
        point(f"artifact:before:{PurePosixPath(name).name}")
        for attempt in range(TRIES):
            with self._understood() as errors:
                try:
                    self._client().put_object(
                        Bucket=self._bucket, Key=self._key(name), Body=content, Metadata={PUT: mark}, **condition
                    )
                    break
                except errors.ClientError as error:
                    if not condition or _code(error) not in CONFLICT | UNMET:
                        raise
                    code = _code(error)
            if code in UNMET:
                # One whose answer was lost is sent again by Amazon's library, and then finds itself.
                there = self._ask(name, "head_object")
                if there is None or there.get("Metadata", {}).get(PUT) != mark:
                    return False
                break
            _wait(attempt)
        else:
            raise self._contended(name)
        point(f"artifact:after:{PurePosixPath(name).name}")
        return True

    def _upload(self, name: str, path: Path) -> None:
        if path.stat().st_size <= AT_ONCE_BYTES:
            self._put(name, path.read_bytes(), {})
            return
        point(f"artifact:before:{PurePosixPath(name).name}")
        with self._understood(), path.open("rb") as file:
            self._client().upload_fileobj(file, self._bucket, self._key(name))
        point(f"artifact:after:{PurePosixPath(name).name}")

    def _download(self, name: str, target: Path) -> bool:
        found = self.stream(name)
        if found is None:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.writelines(found.pieces)
        return True

    def _pages(self, prefix: str, **more: str) -> Iterator[Any]:
        with self._understood():
            pages = self._client().get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=f"{self._key(prefix)}/", **more)

    def _key(self, name: str) -> str:
        return f"{self._prefix}{checked(name)}"

    def _client(self) -> Any:
        # A forked child must not talk over its parent's connections.
        return _connected(os.getpid(), self._settings)

    # --- errors

    @contextmanager
    def _understood(self) -> Iterator[Any]:
        """Errors of the store in our words, without its credentials."""
        try:
            import boto3  # noqa: F401 - what it is made of may be here without it
            from botocore import exceptions
        except ImportError as cause:
            raise BadConfiguration(
                f"{self.address} is in a bucket, and {cause.name} is not installed", "pip install 'airloop[s3]'"
            ) from cause
        try:
            yield exceptions
        except exceptions.ClientError as cause:
            raise self._refusal(cause) from cause
        except (
            exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError
        ) as cause:  # fmt: skip
            raise BadConfiguration(
                f"there are no credentials for {self.address}: {self._masked(cause)}",
                "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to a task as its secrets",
            ) from cause
        except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError) as cause:
            raise Unreachable(
                f"{self.address} does not answer at {self._endpoint}: {self._masked(cause)}",
                f"start it or correct {ENDPOINT}; the task can be run again",
            ) from cause
        except exceptions.BotoCoreError as cause:
            raise BadConfiguration(
                f"{self.address} cannot be used: {type(cause).__name__}: {self._masked(cause)}", "see `airloop doctor`"
            ) from cause

    def _refusal(self, error: Any) -> AirloopError:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = self._masked(error.response.get("Error", {}).get("Message") or code)
        if code == "NoSuchBucket":
            return BadConfiguration(
                f"there is no bucket {self._bucket} at {self._endpoint}", "make it, or name another"
            )
        if code in BAD_CREDENTIALS:
            return BadConfiguration(
                f"{self.address} does not accept the credentials: {code}: {said}",
                "correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or this machine's clock",
            )
        if status in (401, 403):
            return StoreReadOnly(
                f"no access to {self.address}: {code}: {said}", "allow this user to list, get, put and delete below it"
            )
        if status == 507 or code in ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"):
            return StoreFull(
                f"{self.address} is full: {said}", "free space or raise its quota, then run the task again"
            )
        if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling"):
            return Unreachable(f"{self.address} is out of order: {code}: {said}", "run the task again")
        return BadConfiguration(f"{self.address} refuses a request: {code}: {said}", f"see {ENDPOINT} and AWS_REGION")

    def _contended(self, name: str) -> StoreBusy:
        return StoreBusy(f"others kept changing {self.uri(name)}, {TRIES} times in a row", "run the task again")

    @property
    def _endpoint(self) -> str:
        return without_password(_endpoint(dict(self._settings)) or "Amazon's address")

    def _masked(self, text: object) -> str:
        shown = str(text)
        address = urlsplit(_endpoint(dict(self._settings)) or "")
        for secret in (*(value for name, value in self._settings if name in SECRETS), address.password):
            shown = shown.replace(secret, "***") if secret else shown
        return shown


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _changed_at(found: Any) -> float:
    return float(found["LastModified"].timestamp())


def _stamp(found: Any) -> str:
    return f"{found['ETag']} {_changed_at(found)}"


def _wait(attempt: int) -> None:
    """Let others go first; not all for the same time."""
    time.sleep(random.uniform(0, min(WAIT_S, 0.01 * 2**attempt)))


def _files_in(source: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a local folder, with its name below it; links are what they lead to."""
    for path in sorted(source.iterdir()):
        if path.is_dir():
            yield from ((file, f"{path.name}/{name}") for file, name in _files_in(path))
        else:
            yield path, path.name


def _endpoint(settings: Mapping[str, str]) -> str | None:
    return settings.get(ENDPOINT) or settings.get("AWS_ENDPOINT_URL")


@lru_cache(maxsize=16)
def _connected(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """
    A client for a store, kept for all that use it: to make one takes a tenth of a second.

    :param process: this one's id.
    """
    from boto3.session import Session
    from botocore.config import Config

    given = dict(settings)
    address = _endpoint(given)
    how = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 4},
        # Others than Amazon do not find a bucket by the name of a host.
        s3={"addressing_style": "path"} if address else {},
        # Checksums as trailers, which newer libraries send unasked, are refused by older stores.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    missing = [name for name in SECRETS[:2] if name not in given]
    if len(missing) == 1:
        raise BadConfiguration(f"there are no credentials: {missing[0]} is not set", "give both, or none of them")
    session = Session(
        aws_access_key_id=given.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=given.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=given.get("AWS_SESSION_TOKEN"),
    )
    region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or session.region_name or "us-east-1"
    try:
        return session.client("s3", endpoint_url=address, region_name=region, config=how)
    except ValueError as cause:
        raise BadConfiguration(
            f"{ENDPOINT} is {without_password(address or '')}, no address of a server", "give http://host:port"
        ) from cause
