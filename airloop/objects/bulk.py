"""
What the care of a bucket needs beside files by name: all names as they come, removal by the thousand, uploads that were
never completed, and the store's clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from airloop.objects.base import Listed
from airloop.objects.bucket import Bucket, _changed_at, _code, _stamp

log = logging.getLogger("airloop.objects")

AT_A_TIME = 1_000
"""Files that one request may remove."""
CLOCK_STEP_S = 1.0
"""A store tells times in whole seconds: a file may be so much younger than it says."""
NO_BATCHES = frozenset({"NotImplemented", "MethodNotAllowed", "MissingContentMD5", "InvalidRequest"})
"""How stores answer that cannot remove several files at once, or ask for more than newer clients send."""
DENIED, BUSY, REFUSED = 403, 503, 400
"""Statuses that stand for what a store says of one file of a batch."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that was begun and not completed: its parts take space, and no listing of files shows them."""

    name: str
    """Of the file that it was to be."""
    id: str
    begun_at: float
    """Seconds since 1970 by the store's clock."""


class Bulk(Bucket):
    """All files below a prefix, as who cleans up sees them."""

    def walk(self, prefix: str = "") -> Iterator[Listed]:
        """
        Every file below a folder, in the store's order; no more than a page of names is held.

        :param prefix: the folder's name; empty: the whole place.
        """
        with self._understood():
            for page in self._all("list_objects_v2", prefix):
                for found in page.get("Contents", ()):
                    if not found["Key"].endswith("/"):
                        name = found["Key"][len(self._prefix) :]
                        yield Listed(name, found["Size"], _changed_at(found), _stamp(found))

    def remove_all(self, names: Sequence[str]) -> None:
        """Remove files by the thousand; those that are gone already are no matter."""
        for start in range(0, len(names), AT_A_TIME):
            self._remove(names[start : start + AT_A_TIME])

    def uploads(self) -> Iterator[Upload]:
        """Uploads that were not completed; none if the store cannot tell."""
        with self._understood() as errors:
            try:
                for page in self._all("list_multipart_uploads", ""):
                    for found in page.get("Uploads", ()):
                        name = found["Key"][len(self._prefix) :]
                        yield Upload(name, found["UploadId"], found["Initiated"].timestamp())
            except errors.ClientError as error:
                if _code(error) not in NO_BATCHES:
                    raise
                log.warning("%s cannot list uploads that were not completed: let the bucket abort them by age", self)

    def abort(self, upload: Upload) -> None:
        """Give an upload up, unless it is completed or gone already."""
        with self._understood() as errors:
            try:
                key = f"{self._prefix}{upload.name}"
                self._client().abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload.id)
            except errors.ClientError as error:
                if _code(error) not in ("NoSuchUpload", "NoSuchKey", "404"):
                    raise

    def clock_ahead_s(self) -> float:
        """Seconds by which the store's clock is ahead of ours, at least; it is the one that tells a file's age."""
        with self._understood():
            answer = self._client().list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            answered_at = time.time()
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(said).timestamp() - answered_at if said else 0.0

    def _all(self, request: str, prefix: str) -> Iterator[Any]:
        within = f"{self._key(prefix)}/" if prefix else self._prefix
        yield from self._client().get_paginator(request).paginate(Bucket=self._bucket, Prefix=within)

    def _remove(self, names: Sequence[str]) -> None:
        wanted = [{"Key": f"{self._prefix}{name}"} for name in names]
        with self._understood() as errors:
            try:
                answer = self._client().delete_objects(Bucket=self._bucket, Delete={"Objects": wanted, "Quiet": True})
            except errors.ClientError as error:
                if _code(error) not in NO_BATCHES:
                    raise
                for name in names:
                    self.remove(name)
                return
            # A batch may fail in part, and its answer is a success all the same.
            for failed in answer.get("Errors", ()):
                if failed.get("Code") not in ("NoSuchKey", "404"):
                    raise errors.ClientError({"Error": failed, "ResponseMetadata": _status(failed)}, "DeleteObjects")


def _status(failed: Any) -> dict[str, int]:
    code = str(failed.get("Code"))
    busy = code in ("InternalError", "ServiceUnavailable", "SlowDown")
    return {"HTTPStatusCode": DENIED if code == "AccessDenied" else BUSY if busy else REFUSED}
