"""Two catalogs on one prefix of a bucket: only the one whose mark is there takes files away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from airloop.config import Config, S3Address
from airloop.errors import BadConfiguration
from airloop.objects import Bulk
from airloop.upkeep import gc
from airloop.upkeep.backup import backup
from airloop.upkeep.erase import Request, erase
from airloop.upkeep.owner import MARK
from airloop.upkeep.restore import restore
from airloop.upkeep.subject import entity
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import IN_A_BUCKET, IN_A_CLUSTER, table_files
from tests.postgres_server import PostgresServer
from tests.unit.upkeep.conftest import ANY_AGE, TABLE, rows

ANNA = Request(entity(["id=1"]), "asked", "A. Clerk")


@IN_A_CLUSTER
def test_another_catalogs_files_are_left_alone(
    config: Config, warehouse: Warehouse, history: list[int], postgres_server: PostgresServer, tmp_path: Path
) -> None:
    bulk = Bulk(config.warehouse)
    gc.collect(config, dry_run=True)
    assert bulk.read(MARK) is None
    gc.collect(config)
    mark = bulk.read(MARK)
    before = table_files(config)
    with postgres_server.database() as address:
        other = replace(config, catalog=address)
        # It has the same table by name, so all files there that it does not name look like orphans.
        Warehouse.open(other).ensure(TABLE, rows([1]).schema)
        its_own = table_files(config) - before
        for dry_run in (True, False):
            with pytest.raises(BadConfiguration, match=r"may be another catalog's: .*a prefix of its own"):
                gc.collect(other, grace_s=ANY_AGE, dry_run=dry_run)
            with pytest.raises(BadConfiguration, match="may be another catalog's"):
                erase(other, ANNA, dry_run=dry_run)
        with pytest.raises(BadConfiguration, match="none that has left a mark"):
            gc.collect(replace(config, catalog=f"sqlite:///{tmp_path / 'catalog.db'}"))
        assert table_files(config) == before | its_own
        # A database of its own, below a prefix of its own.
        place = S3Address(config.warehouse.bucket, f"{config.warehouse.prefix}-2")
    gc.collect(config, grace_s=ANY_AGE)
    assert bulk.read(MARK) == mark
    assert warehouse.scan(TableRef(TABLE)).read_all().num_rows == 6

    # A point has no mark, also one that lies among what is copied.
    wide = replace(config, artifacts=S3Address(config.warehouse.bucket, config.warehouse.prefix.rpartition("/")[0]))
    made, _ = backup(wide, tmp_path / "vault")
    assert not [name for name in made.files if name.endswith(MARK)]
    with postgres_server.database() as address:
        new = replace(
            config, home=tmp_path / "new", catalog=address, warehouse=place, artifacts=tmp_path / "new" / "artifacts"
        )
        restore(tmp_path / "vault", new.home, config=new)
        gc.collect(new)
        assert Bulk(place).read(MARK) not in (None, mark)


@IN_A_BUCKET
def test_a_catalog_without_identity_leaves_no_mark(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    gc.collect(config)
    assert Bulk(config.warehouse).read(MARK) is None
    Bulk(config.warehouse).publish(MARK, b"0123")
    with pytest.raises(BadConfiguration, match="names catalog 0123"):
        gc.collect(config)
