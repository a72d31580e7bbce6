"""
Iceberg's file access for a bucket, by Arrow.

PyIceberg's own makes a new client for each table that is loaded, asks for a file before it writes it, imports pandas,
and sends parts in the background, where they wait in memory for a slow store. Here a process has one client, and a
file is sent in parts as it is written; it appears once it is closed, or not at all. Names are never used twice.
"""

from __future__ import annotations

import os
from typing import cast

from pyarrow.fs import FileType, S3FileSystem
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from airloop.warehouse.localio import LocalFile, LocalFileIO
from airloop.warehouse.s3 import Access, filesystem

SCHEME = "s3://"


class S3File(InputFile, OutputFile):
    """One file in a bucket."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        # Nothing in it is escaped.
        self._path = location.removeprefix(SCHEME)

    def __len__(self) -> int:
        found = _client().get_file_info(self._path)
        if found.type == FileType.NotFound:
            raise FileNotFoundError(f"{self.location} is not there")
        return cast(int, found.size)

    def exists(self) -> bool:
        return bool(_client().get_file_info(self._path).type == FileType.File)

    def open(self, seekable: bool = True) -> InputStream:
        return cast(InputStream, _client().open_input_file(self._path))

    def create(self, overwrite: bool = False) -> OutputStream:
        return cast(OutputStream, _client().open_output_stream(self._path))

    def to_input_file(self) -> S3File:
        return self


class BucketFileIO(FileIO):
    """All files of a warehouse in a bucket; tables from before it was there stay in their folder."""

    def new_input(self, location: str) -> S3File | LocalFile:
        return S3File(location) if location.startswith(SCHEME) else LocalFile(location)

    def new_output(self, location: str) -> S3File | LocalFile:
        return S3File(location) if location.startswith(SCHEME) else LocalFile(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        place = location if isinstance(location, str) else location.location
        if place.startswith(SCHEME):
            remove(place)
        else:
            LocalFileIO().delete(place)


def remove(location: str) -> None:
    """:raises FileNotFoundError: it is not there."""
    _client().delete_file(location.removeprefix(SCHEME))


def _client() -> S3FileSystem:
    return filesystem(Access.from_environment(), os.getpid())
