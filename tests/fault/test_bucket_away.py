"""A store that goes away while a table is written, and comes back."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from airloop.config import Config, S3Address
from airloop.errors import Unreachable
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import IN_A_BUCKET

NAME = "raw.a"


class Wire:
    """Stands between a client and a store, and can be cut: then nobody is let through, and who was is thrown out."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._there = (str(parts.hostname), parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.cut = threading.Event()
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def sever(self) -> None:
        self.cut.set()
        for pair in list(self._pairs):
            self._throw_out(pair)

    @staticmethod
    def _throw_out(pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sever()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.cut.is_set():
                    near.close()
                    continue
                far = socket.create_connection(self._there)
                self._pairs.append((near, far))
                if self.cut.is_set():
                    # It was cut while this one was let through.
                    self._throw_out((near, far))
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    @staticmethod
    def _carry(near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError), near, far, selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready.select():
                    content = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not content:
                        return
                    key.data.sendall(content)


@pytest.fixture
def wire(s3_bucket: S3Address, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    made = Wire(os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.address)
    yield made
    made.close()


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"id": pa.array(range(first, first + count), pa.int64())})


@IN_A_BUCKET
def test_cut_while_writing(config: Config, wire: Wire) -> None:
    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, rows(0, 0).schema, key=["id"])
    warehouse.commit(NAME, rows(0, 3), key="k0")

    def until_cut() -> Iterator[pa.Table]:
        yield rows(10, 5)
        wire.sever()
        yield rows(20, 5)

    with pytest.raises(Unreachable, match=rf"writing {NAME}: .*does not answer"):
        warehouse.commit(NAME, until_cut(), key="k1")
    with pytest.raises(Unreachable):
        warehouse.scan(TableRef(NAME)).read_all()
    wire.cut.clear()
    assert warehouse.scan(TableRef(NAME)).read_all()["id"].to_pylist() == [0, 1, 2]
    assert warehouse.commit(NAME, [rows(10, 5), rows(20, 5)], key="k1").changed
    assert warehouse.count(TableRef(NAME)) == 13


@IN_A_BUCKET
def test_cut_while_reading(config: Config, wire: Wire) -> None:
    warehouse = Warehouse.open(replace(config, rows_per_chunk=100_000))
    warehouse.ensure(NAME, rows(0, 0).schema)
    # More than DuckDB reads ahead of who takes the rows.
    warehouse.commit(NAME, rows(0, 4_000_000), key="k")
    reader = warehouse.scan(TableRef(NAME))
    assert reader.read_next_batch().num_rows
    wire.sever()
    with pytest.raises(Unreachable, match=rf"reading {NAME}: .*does not answer"):
        reader.read_all()
    wire.cut.clear()
    assert warehouse.scan(TableRef(NAME)).read_all().num_rows == 4_000_000
