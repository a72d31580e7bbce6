"""
Iceberg's file access for a local folder, in plain Python.

PyIceberg's own goes through ``pyarrow.dataset`` and with it pandas (0.8 s of imports), and leaves what it wrote in
the page cache: here a file is on disk before its name can enter the catalog.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import cast

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream


def local_path(location: str) -> str:
    """
    Path of a location, which is a path or ``file://`` and a path; nothing in it is escaped.

    A location in a bucket, ``s3://…``, is its own path: Arrow and DuckDB open it by that.
    """
    return location.removeprefix("file://")


class _SyncedFile(io.BufferedWriter):
    """A file that is on disk once it is closed without an error."""

    def __init__(self, path: str, mode: str) -> None:
        super().__init__(io.FileIO(path, mode), 1 << 16)
        self._failed = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = error is not None
        self.close()

    def close(self) -> None:
        try:
            if not self.closed and not self._failed:
                self.flush()
                os.fsync(self.fileno())
        finally:
            super().close()


class LocalFile(InputFile, OutputFile):
    """One local file."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._path = local_path(location)

    def __len__(self) -> int:
        return os.stat(self._path).st_size

    def exists(self) -> bool:
        return os.path.exists(self._path)

    def open(self, seekable: bool = True) -> InputStream:
        return cast(InputStream, open(self._path, "rb"))

    def create(self, overwrite: bool = False) -> OutputStream:
        mode = "w" if overwrite else "x"
        try:
            file = _SyncedFile(self._path, mode)
        except FileNotFoundError:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            file = _SyncedFile(self._path, mode)
        return cast(OutputStream, file)

    def to_input_file(self) -> LocalFile:
        return self


class LocalFileIO(FileIO):
    """All files of a warehouse below a local folder."""

    def new_input(self, location: str) -> LocalFile:
        return LocalFile(location)

    def new_output(self, location: str) -> LocalFile:
        return LocalFile(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        os.unlink(local_path(location if isinstance(location, str) else location.location))
