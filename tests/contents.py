"""All that a state consists of but records of attempts: two looks that are equal say that nothing was written."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.postgres_server import plain
from tests.profiles import Profile
from tests.s3_server import S3Server

RECORDS = re.compile(r"artifacts/(attempts|runs|intervals|usage)/|locks/")
"""What every attempt leaves: a record of how it ended, and the files by which attempts take turns."""


def of_home(home: Path) -> dict[str, Any]:
    """Every file below a home: digest and time of change; of a database what is in it."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        name = path.relative_to(home).as_posix()
        if RECORDS.match(name) or name.endswith((".db-wal", ".db-shm")):
            continue
        if path.read_bytes()[:15] == b"SQLite format 3":
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                found[name] = hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    return found


def of_stores(profile: Profile, s3: S3Server) -> dict[str, Any]:
    """
    Of each object digest, size and time, by its name; each table's rows with the transactions that wrote them, by
    ``DATABASE.table``; the whole value of each key of the online store, by ``online KEY``.
    """
    listed = {name: o for name, o in s3.objects(profile.place).items() if not RECORDS.match(name)}
    found: dict[str, Any] = {name: (o["ETag"], o["Size"], o["LastModified"]) for name, o in listed.items()}
    for database, address in profile.databases.items():
        found |= {f"{database}.{table}": rows for table, rows in _rows(address).items()}
    return found | _online(profile.secrets["AIRLOOP_ONLINE_STORE"])


def _rows(address: str) -> dict[str, list[tuple[str, str]]]:
    import psycopg

    with closing(psycopg.connect(plain(address))) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        # An update to the same value is a write as well: the row has another transaction then.
        read = 'SELECT t.xmin::text, t::text FROM "{}" AS t ORDER BY 2'
        return {name: connection.execute(read.format(name)).fetchall() for (name,) in names}


def _online(address: str) -> dict[str, bytes]:
    import redis

    with redis.Redis.from_url(address) as client:
        return {f"online {key!r}": client.dump(key) for key in client.scan_iter()}
