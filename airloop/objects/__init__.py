"""
Files that appear whole or not at all, by their names: in a local folder, or in a bucket of an S3-compatible store.

A name is relative, with forward slashes. In a folder a file appears by a rename, in a bucket by a put, which is
conditional where it must not replace what another wrote. Standard library only, until a bucket is used: runners and
payloads import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from airloop.config import S3Address
from airloop.objects.base import Change, Listed, Objects, Stream, checked
from airloop.objects.bucket import Bucket
from airloop.objects.bulk import Bulk, Upload
from airloop.objects.folder import Folder

__all__ = ["Bucket", "Bulk", "Change", "Folder", "Listed", "Objects", "Stream", "Upload", "checked", "open_objects"]


def open_objects(place: Path | S3Address, environment: Mapping[str, str] = os.environ) -> Objects:
    """
    The files at a place. Nothing is looked at before it is used.

    :param environment: holds credentials and address of an S3-compatible store, see :mod:`airloop.objects.bucket`.
    """
    return Bulk(place, environment) if isinstance(place, S3Address) else Folder(place)
