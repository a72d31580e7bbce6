"""
Whose tables a prefix of a bucket holds: what takes files away must not take those of another catalog.

A catalog on PostgreSQL has an identity, in a table of its own in that database. The first gc or erasure leaves it in
an object at the warehouse's prefix; from then on no other catalog's may work there. A SQLite catalog has none: it works
where no catalog has left its own. What it does not do: tell a catalog from a clone of its database.
"""

from __future__ import annotations

from contextlib import closing
from uuid import uuid4

from airloop import postgres
from airloop.config import Config, S3Address
from airloop.errors import BadConfiguration
from airloop.objects import Bulk

MARK = ".airloop-catalog"
"""Name of the object below the warehouse's prefix."""
SETTING = "AIRLOOP_CATALOG"
CREATE = (
    "CREATE TABLE IF NOT EXISTS airloop_catalog (one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL)"
)
GIVE = "INSERT INTO airloop_catalog (id) VALUES (%s) ON CONFLICT DO NOTHING"
ASK = "SELECT id FROM airloop_catalog"


def refuse_others(config: Config, *, dry_run: bool) -> None:
    """
    Make sure that the files below the warehouse's prefix are this catalog's.

    To be called by who is alone; see :func:`airloop.upkeep.gc.alone`.

    :param dry_run: leave no mark.
    :raises BadConfiguration: another catalog has left its mark.
    """
    if not isinstance(config.warehouse, S3Address):
        return
    bulk = Bulk(config.warehouse)
    own = _identity(config, make=not dry_run) if postgres.is_address(config.catalog) else ""
    there = bulk.read(MARK)
    if there is None and own and not dry_run and not bulk.publish(MARK, own.encode(), only_if_absent=True):
        there = bulk.read(MARK)
    if there is None:
        return
    other = there.decode(errors="replace").strip()
    if other != own:
        raise BadConfiguration(
            f"the tables in {config.warehouse} may be another catalog's: {MARK} there names catalog {other[:40]},"
            f" and this one is {own or 'none that has left a mark'}",
            "set AIRLOOP_CATALOG and AIRLOOP_WAREHOUSE as they are where loops run, and give each catalog a prefix of"
            f" its own, also a copy of one; if the other catalog is gone for good, remove {MARK}",
        )


def _identity(config: Config, *, make: bool) -> str:
    """The catalog's own; empty if it has none yet and is not to be given one."""
    from psycopg.errors import UndefinedTable

    with closing(postgres.connect(config.catalog, SETTING)) as connection, postgres.understood("asking whose tables"):
        if make:
            connection.execute(CREATE)
            connection.execute(GIVE, (uuid4().hex,))
        try:
            found = connection.execute(ASK).fetchone()
        except UndefinedTable:
            return ""
    return str(found[0]) if found else ""
