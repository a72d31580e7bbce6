"""
The bytes of a file's data, unpacked as they are read.

Nothing is unpacked to disk and member names are labels, never paths, so an archive cannot write anywhere. What
unpacks to far more than it should is refused while it is read. Damage is reported with the file and the place.
"""

from __future__ import annotations

import codecs
import fnmatch
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from airloop.errors import BadInput
from airloop.sources.files import SourceFile
from airloop.sources.spec import SourceSpec

MOST_RATIO = 300
"""Unpacked to packed bytes; text reaches 50, a stream of one repeated byte 1,030."""
_RATIO_FROM = 64 << 20
"""Unpacked bytes from which on the ratio counts: small files of one value are harmless."""
_MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"PAR1": "parquet"}
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True)
class Data:
    """One stream of rows: a file, or a member of an archive."""

    label: str
    """``flights.csv``, or ``flights.zip/2013/01.csv`` where a pattern chose members."""
    open: Callable[[], _Opened]
    path: Path
    """The file itself, for formats that are not read from front to back."""


class _Opened:
    """A context manager that gives the unpacked stream."""

    def __init__(self, stack: Callable[[ExitStack], BinaryIO]) -> None:
        self._make = stack
        self._stack = ExitStack()

    def __enter__(self) -> BinaryIO:
        with self._stack:
            stream = self._make(self._stack)
            self._stack = self._stack.pop_all()
        return stream

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def compression_of(file: SourceFile, spec: SourceSpec) -> str:
    """``none``, ``gzip`` or ``zip``."""
    if spec.compression != "auto":
        return spec.compression
    return {".gz": "gzip", ".zip": "zip"}.get(file.path.suffix.lower(), "none")


def data_of(file: SourceFile, spec: SourceSpec) -> list[Data]:
    """
    The streams of a file: one, or the members of an archive by name.

    :raises BadInput: the file is empty, is packed in another way than declared, or its archive is damaged, encrypted
        or without a fitting member.
    """
    packed = compression_of(file, spec)
    _check_magic(file, spec, packed)
    if packed == "zip":
        return _members(file, spec)

    def make(stack: ExitStack) -> BinaryIO:
        raw: IO[bytes] = stack.enter_context(file.path.open("rb"))
        if packed == "gzip":
            raw = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            return cast(BinaryIO, Guarded(raw, file.name, file.size, spec.max_unpacked_bytes))
        return cast(BinaryIO, Guarded(raw, file.name))

    return [Data(file.name, lambda: _Opened(make), file.path)]


def _check_magic(file: SourceFile, spec: SourceSpec, packed: str) -> None:
    if file.size == 0:
        raise BadInput(f"{file.name} is empty (0 bytes)", "a file without rows has at least its header; send it again")
    with file.path.open("rb") as raw:
        start = raw.read(4)
    found = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    expected = packed if packed != "none" else "parquet" if spec.format == "parquet" else ""
    if found == expected:
        return
    declared = f"{spec.format}, compression {packed}"
    if found:
        fix = f"declare format: {found}" if found == "parquet" else f"declare compression: {found}"
        raise BadInput(f"{file.name} is a {found} file, declared is {declared}", fix)
    raise BadInput(
        f"{file.name} is not a {expected} file; it starts with {start!r}",
        f"declared is {declared}; send the file again or correct the source",
    )


def _members(file: SourceFile, spec: SourceSpec) -> list[Data]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            infos = [i for i in archive.infolist() if not i.is_dir() and not _is_clutter(i.filename)]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as cause:
        if isinstance(cause, OSError) and cause.errno is not None:
            raise
        raise BadInput(f"{file.name} is a damaged or truncated zip file: {cause}", "send it again") from cause
    if spec.inner:
        infos = sorted((i for i in infos if fnmatch.fnmatchcase(i.filename, spec.inner)), key=lambda i: i.filename)
        if not infos:
            raise BadInput(f"{file.name} has no member that matches {spec.inner!r}", "correct `inner` of the source")
    elif len(infos) != 1:
        names = ", ".join(i.filename for i in infos[:5]) or "none"
        raise BadInput(f"{file.name} has {len(infos)} members, expected is one: {names}", "choose by `inner: PATTERN`")
    for info in infos:
        if info.flag_bits & 0x1:
            raise BadInput(f"{file.name}: member {info.filename} is encrypted", "send it without a password")
        _check_bomb(file.name, info.file_size, info.compress_size, spec.max_unpacked_bytes)
    # No member gives more than it declares. Members may share their bytes: they are held against the whole file.
    _check_bomb(file.name, sum(i.file_size for i in infos), file.size, spec.max_unpacked_bytes)
    return [
        Data(f"{file.name}/{i.filename}" if spec.inner else file.name, _opener(file, i, spec), file.path) for i in infos
    ]


def _opener(file: SourceFile, info: zipfile.ZipInfo, spec: SourceSpec) -> Callable[[], _Opened]:
    def make(stack: ExitStack) -> BinaryIO:
        archive = stack.enter_context(zipfile.ZipFile(file.path))
        try:
            member = stack.enter_context(archive.open(info))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as cause:
            raise BadInput(f"{file.name}: member {info.filename} cannot be opened: {cause}", "send it again") from cause
        return cast(BinaryIO, Guarded(member, file.name, info.compress_size, spec.max_unpacked_bytes))

    return lambda: _Opened(make)


def _is_clutter(name: str) -> bool:
    """Members that packers add on their own."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")


def _check_bomb(name: str, unpacked: int, packed: int, most: int) -> None:
    if unpacked > most:
        raise BadInput(
            f"{name} unpacks to more than {most:,} bytes", "raise max_unpacked_bytes of the source if that is right"
        )
    if unpacked > _RATIO_FROM and unpacked > MOST_RATIO * max(packed, 1):
        raise BadInput(
            f"{name} unpacks to more than {MOST_RATIO} times its {packed:,} bytes, as a decompression bomb does",
            "if the data are really that uniform, send them unpacked",
        )


class _Stream(io.RawIOBase):
    """A stream whose reads are as long as was asked for unless it ends: Arrow takes a short one for the end."""

    def _some(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self._some(1 << 20), b""))
        content = self._some(size)
        if len(content) == size or not content:
            return content
        parts = [content]
        missing = size - len(content)
        while missing and (content := self._some(missing)):
            parts.append(content)
            missing -= len(content)
        return b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class Guarded(_Stream):
    """A stream that turns damage into :class:`BadInput` and ends a decompression bomb."""

    def __init__(self, raw: IO[bytes], name: str, packed: int | None = None, most: int = 0) -> None:
        super().__init__()
        self._raw = raw
        self._name = name
        self._packed = packed
        self._most = most
        self._position = 0

    def _some(self, size: int) -> bytes:
        try:
            content = self._raw.read(size)
        except (EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError) as cause:
            # gzip and bzip2 say of damage that it is an OSError, but without a number.
            if isinstance(cause, OSError) and cause.errno is not None:
                raise
            raise BadInput(
                f"{self._name} is damaged or truncated: {cause} (after {self._position:,} unpacked bytes)",
                "send it again",
            ) from cause
        self._position += len(content)
        if self._packed is not None:
            _check_bomb(self._name, self._position, self._packed, self._most)
        return content


class Recoded(_Stream):
    """A stream of UTF-8 made of one in another encoding."""

    def __init__(self, raw: BinaryIO, name: str, encoding: str) -> None:
        super().__init__()
        self._raw = raw
        self._name = name
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._position = 0
        self._rest = b""
        self._ended = False

    def _some(self, size: int) -> bytes:
        while not self._rest and not self._ended:
            chunk = self._raw.read(1 << 20)
            pending = len(self._decoder.getstate()[0])
            try:
                self._rest = self._decoder.decode(chunk, final=not chunk).encode()
            except UnicodeDecodeError as cause:
                raise undecodable(self._name, self._encoding, self._position - pending + cause.start) from cause
            self._position += len(chunk)
            self._ended = not chunk
        content, self._rest = self._rest[:size], self._rest[size:]
        return content


class Joined(_Stream):
    """Bytes that were read ahead, then the stream they came from."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        super().__init__()
        self._start = start
        self._rest = rest

    def _some(self, size: int) -> bytes:
        if not self._start:
            return self._rest.read(size)
        content, self._start = self._start[:size], self._start[size:]
        return content


class Counted(_Stream):
    """A stream that counts a mark as it passes by, but for marks after an escape."""

    def __init__(self, raw: BinaryIO, mark: bytes, escape: bytes) -> None:
        super().__init__()
        self._raw = raw
        self._mark = mark
        self._escaped = escape + mark
        self.found = 0

    def _some(self, size: int) -> bytes:
        content = self._raw.read(size)
        if self._mark:
            self.found += content.count(self._mark)
            if self._escaped != self._mark:
                self.found -= content.count(self._escaped)
        return content


def undecodable(name: str, encoding: str, offset: int, where: str = "") -> BadInput:
    """The error for bytes that are no text in the declared encoding."""
    return BadInput(
        f"{name}: byte {offset:,} (from 0){where} is not {encoding}",
        "declare the file's encoding (csv: {encoding: cp1252}…) or send it as UTF-8",
    )


@contextmanager
def as_utf8(data: Data, encoding: str) -> Iterator[BinaryIO]:
    """
    The stream as UTF-8, without checking it if that is what it is declared to be.

    :raises BadInput: a byte order mark says that it is something else.
    """
    with data.open() as raw:
        start = raw.read(4)
        for bom, kind in _BOMS.items():
            if start.startswith(bom) and not encoding.startswith(kind):
                raise BadInput(f"{data.label} is {kind.upper()}, declared is {encoding}", f"declare encoding: {kind}")
        joined = Joined(start, raw)
        if encoding == "utf-8" or start.startswith(codecs.BOM_UTF8):
            if start.startswith(codecs.BOM_UTF8):
                joined = Joined(start[3:], raw)
            yield cast(BinaryIO, joined)
        else:
            yield cast(BinaryIO, Recoded(cast(BinaryIO, joined), data.label, encoding))
