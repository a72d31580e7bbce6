from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from airloop.errors import BadInput
from airloop.sources import streams
from airloop.sources.files import SourceFile
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Read = Callable[..., pa.Table]
ROWS = "id,value\n" + "".join(f"{i},{i}.5\n" for i in range(1, 2001))


@pytest.fixture
def source(spec: Make) -> Callable[..., SourceSpec]:
    return lambda **changed: spec(columns={"id": "long", "value": "double"}, **changed)


def zipped(members: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv.gz", gzip.compress(ROWS.encode())),
        ("in.csv.gz", gzip.compress(ROWS[:5000].encode()) + gzip.compress(ROWS[5000:].encode())),
        ("in.zip", zipped({"in.csv": ROWS})),
        ("in.zip", zipped({"data/": "", "data/in.csv": ROWS, "__MACOSX/._in.csv": "x", "data/.DS_Store": "x"})),
        ("in.ZIP", zipped({"../../escaped.csv": ROWS}, zipfile.ZIP_STORED)),
    ],
)
def test_packed_files(source: Make, read: Read, tmp_path: Path, name: str, content: bytes) -> None:
    before = set(tmp_path.rglob("*"))
    table = read(source(), content, name)
    assert table.num_rows == 2000
    assert table.column("value").to_pylist()[-1] == 2000.5
    made = {p.name for p in set(tmp_path.rglob("*")) - before}
    assert made == {"in", "home", "file-digests.db", name}
    assert not (tmp_path.parent / "escaped.csv").exists()


def test_compression_may_be_declared(source: Make, read: Read) -> None:
    assert read(source(compression="gzip"), gzip.compress(ROWS.encode()), "in.csv").num_rows == 2000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv.gz", gzip.compress(ROWS.encode())[:-2000], r"in\.csv\.gz is damaged or truncated: .*unpacked bytes"),
        ("in.csv.gz", gzip.compress(ROWS.encode()) + b"garbage", r"in\.csv\.gz is damaged or truncated"),
        ("in.csv.gz", ROWS.encode(), r"in\.csv\.gz is not a gzip file; it starts with b'id,v'"),
        ("in.zip", zipped({"in.csv": ROWS})[:-30], r"in\.zip is a damaged or truncated zip file"),
        ("in.zip", zipped({"in.csv": ROWS})[:200], r"in\.zip is a damaged or truncated zip file"),
        ("in.zip", zipped({"a.csv": ROWS, "b.csv": ROWS}), r"in\.zip has 2 members, expected is one: a\.csv, b\.csv"),
        ("in.zip", zipped({}), r"in\.zip has 0 members"),
    ],
)
def test_damaged_packages(source: Make, read: Read, name: str, content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(source(), content, name)


def test_a_member_whose_bytes_are_wrong(source: Make, read: Read) -> None:
    content = bytearray(zipped({"in.csv": ROWS}, zipfile.ZIP_STORED))
    at = content.index(b"1999.5")
    content[at] = ord("7")
    with pytest.raises(BadInput, match=r"in\.zip is damaged or truncated: Bad CRC-32"):
        read(source(), bytes(content), "in.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_anywhere_in_a_member(source: Make, read: Read, method: int) -> None:
    content = zipped({"in.csv": ROWS}, method)
    packed = zipfile.ZipFile(io.BytesIO(content)).getinfo("in.csv").compress_size
    start = content.index(b"in.csv") + len("in.csv")
    refused = 0
    for at in (0, 3, 4, 5, packed // 2, packed - 4):
        damaged = bytearray(content)
        damaged[start + at : start + at + 4] = b"\xff\x00\xff\x00"
        try:
            # Some bytes of LZMA's own mean nothing for the rows.
            assert read(source(), bytes(damaged), "in.zip").num_rows == 2000
        except BadInput:
            refused += 1
    assert refused > 3


def test_an_error_of_the_disk_is_no_damage() -> None:
    class Failing(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        streams.Guarded(Failing(), "in.zip").read(1)


def test_an_encrypted_member(source: Make, read: Read) -> None:
    content = bytearray(zipped({"in.csv": ROWS}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BadInput, match=r"in\.zip: member in\.csv is encrypted"):
        read(source(), bytes(content), "in.zip")


def test_members_chosen_by_pattern(source: Make, read: Read) -> None:
    content = zipped({"b.csv": "id,value\n2,2\n", "a.csv": "id,value\n1,1\n", "readme.txt": "x"})
    assert read(source(inner="*.csv"), content, "in.zip").column("id").to_pylist() == [1, 2]
    with pytest.raises(BadInput, match=r"has no member that matches '\*\.tsv'"):
        read(source(inner="*.tsv"), content, "in.zip")


@pytest.mark.parametrize("name", ["in.csv.gz", "in.zip"])
def test_bombs_are_refused(source: Make, read: Read, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = b"id,value\n" + b"1,1\n" * 1_000_000
    content = gzip.compress(text) if name.endswith(".gz") else zipped({"in.csv": text})
    with pytest.raises(BadInput, match="unpacks to more than 1,000,000 bytes; raise max_unpacked_bytes"):
        read(source(max_unpacked_bytes=1_000_000), content, name)
    monkeypatch.setattr(streams, "_RATIO_FROM", 1 << 20)
    with pytest.raises(BadInput, match=r"unpacks to more than 300 times its [\d,]+ bytes"):
        read(source(), content, name)


def test_members_of_an_archive_are_limited_together(
    source: Make, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    text = "id,value\n" + "1,1\n" * 100_000
    content = zipped({f"{n}.csv": text for n in range(4)})
    with pytest.raises(BadInput, match="unpacks to more than 1,000,000 bytes"):
        read(source(inner="*.csv", max_unpacked_bytes=1_000_000), content, "in.zip")
    assert read(source(inner="[01].csv", max_unpacked_bytes=1_000_000), content, "in.zip").num_rows == 200_000
    # Members that share their bytes: each is harmless by itself.
    directory = content.index(b"PK\x01\x02")
    shared, at = bytearray(content), directory
    for _ in range(4):
        shared[at + 42 : at + 46] = bytes(4)
        shared[at + 46] = ord("0")
        at = shared.find(b"PK\x01\x02", at + 1)
    del shared[content.index(b"PK\x03\x04", 1) : directory]
    end = shared.index(b"PK\x05\x06")
    shared[end + 16 : end + 20] = shared.index(b"PK\x01\x02").to_bytes(4, "little")
    monkeypatch.setattr(streams, "_RATIO_FROM", 1 << 20)
    with pytest.raises(BadInput, match=r"unpacks to more than 300 times its [\d,]+ bytes"):
        read(source(inner="*.csv"), bytes(shared), "in.zip")


def test_a_stream_is_as_long_as_asked_for() -> None:
    stream = streams.Joined(b"ab", io.BytesIO(b"cdefgh"))
    assert stream.read(4) == b"abcd"
    assert stream.read(10) == b"efgh"
    assert stream.read(10) == b""


def test_characters_cut_by_a_block(source: Make) -> None:
    raw = io.BytesIO(("ä" * 700_000).encode("utf-16-le"))
    assert streams.Recoded(raw, "x", "utf-16-le").read() == ("ä" * 700_000).encode()


def test_only_files_with_content_are_opened(source: Make, resolved: Callable[..., tuple[SourceFile, ...]]) -> None:
    (file,) = resolved(**{"in.csv.gz": b""})
    with pytest.raises(BadInput, match=r"in\.csv\.gz is empty \(0 bytes\)"):
        streams.data_of(file, source())
