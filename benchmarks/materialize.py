"""
Rows put online, into SQLite and Redis: Airloop's engine, Feast's own, and the store's bare writes of the same bytes.

    python -m benchmarks.materialize [--sizes 1000000] [--store redis] [--runs 3] [--check] [--quick]

Three features of each of so many entities, into an empty store. Ours has verification, watermark and switch in it; they
are shown apart. The bare writes are the very bytes that Feast would write: into SQLite by one ``executemany`` in one
transaction, into Redis by ready-made pipelined commands. Feast's own answers online must be the same from all.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import online_world as world
from benchmarks.common import Measured, finish, middle, own_process, parser_for, row, settled

ROWS_PER_PIPELINE = 5_000


def ours(folder: str, online: str, rows: int) -> dict[str, Any]:
    """What step ``materialize`` asks of the engine, and where the time goes."""
    from feast.infra.common.materialization_job import MaterializationTask

    from airloop.features import engine
    from airloop.features.repo import open_store
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    config = world.config_of(Path(folder), online)
    store = open_store(config)
    warehouse = Warehouse.open(config)
    task = MaterializationTask(
        project=store.project, feature_view=store.get_feature_view("pace"), start_time=world.START, end_time=world.END
    )
    source = TableRef("features.pace", warehouse.head("features.pace"))
    request = engine.Request(warehouse, source, "ab" * 32, _us(world.START), _us(world.END))
    batch_engine = store._get_provider().batch_engine
    kind = type(engine.FeastView.of(store.config, task).store)
    with _phases(engine, kind) as spent:
        began = time.perf_counter()
        job = batch_engine.materialize(store.registry, task, request=request)[0]
        seconds = time.perf_counter() - began
    if job.error():
        raise job.error()
    if job.result.written != rows:
        raise RuntimeError(f"{job.result.written:,} of {rows:,} rows were written")
    phases = {name: round(value, 3) for name, value in spent.items()}
    phases["read"] = round(seconds - sum(spent.values()), 3)
    return {"seconds": seconds, "phases": phases, "answers": world.answers(store, rows)}


@contextmanager
def _phases(engine: Any, store: type) -> Iterator[dict[str, float]]:
    """Seconds by phase while the block runs; what remains is reading."""
    from airloop.features.staging import Staging

    spent: dict[str, float] = {}
    replaced: list[tuple[Any, str, Any]] = []

    def watch(owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - began

        replaced.append((owner, name, original))
        setattr(owner, name, timed)

    watch(engine, "encode", "encode")
    watch(Staging, "add", "stage")
    watch(Staging, "verify", "verify")
    watch(store, "switch", "switch")
    try:
        yield spent
    finally:
        for owner, name, original in replaced:
            setattr(owner, name, original)


def stock(folder: str, online: str, rows: int) -> dict[str, Any]:
    """``feast materialize``."""
    store = world.stock_store(Path(folder), online)
    began = time.perf_counter()
    store.materialize(world.START, world.END, disable_event_timestamp=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "answers": world.answers(store, rows)}


def bare(folder: str, online: str, rows: int) -> dict[str, Any]:
    """The bytes that are in a store that ours filled, written again into an empty one."""
    seconds = _bare_redis(online) if "://" in online else _bare_sqlite(online)
    return {"seconds": seconds, "answers": world.answers(world.stock_store(Path(folder), online), rows)}


def _bare_sqlite(path: str) -> float:
    """The rows of a copy of the file, into Feast's table and index as they are when they are new."""
    filled = sqlite3.connect(f"{path}.filled")
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = 'bench_pace' AND sql IS NOT NULL ORDER BY type DESC"
    statements = [row[0] for row in filled.execute(made)]
    columns = "entity_key, feature_name, value, value_text, event_ts, created_ts"
    rows = filled.execute(f"SELECT {columns} FROM bench_pace").fetchall()
    filled.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    for statement in statements:
        connection.execute(statement)
    began = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany(f"INSERT INTO bench_pace ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


def _bare_redis(url: str) -> float:
    import redis

    client: Any = redis.Redis.from_url(url)
    commands: list[bytes] = []
    for key in client.scan_iter(match="*bench", count=5_000):
        if b"airloop:" not in key:
            commands.append(key)
    packed, waiting = [], []
    for at in range(0, len(commands), ROWS_PER_PIPELINE):
        keys = commands[at : at + ROWS_PER_PIPELINE]
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            found = pipe.execute()
        parts = []
        for key, fields in zip(keys, found, strict=True):
            feasts = [x for name, value in fields.items() if not name.startswith(b"_airloop") for x in (name, value)]
            whole = [b"HSET", key, *feasts]
            parts.append(b"*%d\r\n" % len(whole) + b"".join(b"$%d\r\n%s\r\n" % (len(x), x) for x in whole))
        packed.append(b"".join(parts))
        waiting.append(len(keys))
    client.flushdb()
    connection = client.connection_pool.get_connection()
    began = time.perf_counter()
    for number, block in enumerate(packed):
        connection.send_packed_command([block])
        # The answers of the block before are read while this one is being written.
        for _ in range(waiting[number - 1] if number else 0):
            connection.read_response()
    for _ in range(waiting[-1]):
        connection.read_response()
    return time.perf_counter() - began


def _us(moment: Any) -> int:
    return int(moment.timestamp() * 1_000_000)


def compare(folder: Path, size: int, kind: str, redis: str, runs: int) -> list[dict[str, Any]]:
    """
    All three into one kind of store.

    :raises SystemExit: Feast answers differently from them.
    """
    online = str(folder / "online.db") if kind == "sqlite" else redis

    def measured(what: str, *, empty: bool = True) -> Callable[[], Measured]:
        def measure() -> Measured:
            if empty:
                _empty(online)
            found = own_process(f"benchmarks.materialize:{what}", folder=str(folder), online=online, rows=size)
            answers.add(found.more["answers"])
            return found

        return measure

    def again() -> Measured:
        """From what ours left, aside of the clock."""
        if kind == "sqlite":
            _empty(online, keep="filled")
        else:
            _empty(online)
            own_process("benchmarks.materialize:ours", folder=str(folder), online=online, rows=size)
        return measured("bare", empty=False)()

    answers: set[str] = set()
    ours_ = middle(runs, measured("ours"))
    if kind == "sqlite":
        with sqlite3.connect(online) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        shutil.copy(online, f"{online}.filled")
    limit = middle(runs, again)
    feast = middle(runs, measured("stock"))
    if len(answers) != 1:
        raise SystemExit(f"{kind}: Feast's online answers differ")
    times = 5 if kind == "sqlite" else 12
    apart = ", ".join(f"{phase} {value:.2f} s" for phase, value in ours_.more["phases"].items())
    where, shown = {"sqlite": "SQLite", "redis": "Redis"}[kind], f"{size:,} entities"
    return [
        row(f"materialize into {where}", shown, ours_, feast, peer="feast materialize", limit_s=feast.seconds / times,
            limit_mb=600, target=f"{times} times as fast, under 600 MB",
            note=f"{size / ours_.seconds:,.0f} rows/s; {apart}"),
        row(f"materialize into {where}", shown, ours_, limit, peer="bare writes of the same bytes",
            target="at most 1.5 times", limit_s=1.5 * limit.seconds, note=f"{size / limit.seconds:,.0f} rows/s"),
    ]  # fmt: skip


def _empty(online: str, keep: str = "") -> None:
    if "://" in online:
        import redis

        with redis.Redis.from_url(online) as client:
            client.flushall()
        return
    path = Path(online)
    for found in path.parent.glob(f"{path.name}*"):
        if not keep or not found.name.endswith(keep):
            found.unlink()


def main() -> int:
    parser = parser_for(__doc__, runs=3)
    parser.add_argument("--sizes", help="rows, comma-separated; default 1,000,000")
    parser.add_argument("--store", choices=("sqlite", "redis"), action="append", help="default: both")
    arguments = settled(parser.parse_args())
    sizes = [int(size) for size in (arguments.sizes or ("20000" if arguments.quick else "1000000")).split(",")]
    rows = []
    with world.redis_server() as redis:
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="airloop-bench-") as folder:
                world.make(Path(folder), size)
                for kind in arguments.store or ("sqlite", "redis"):
                    rows += compare(Path(folder), size, kind, redis, arguments.runs)
    return finish("materialize", arguments, rows)


if __name__ == "__main__":
    raise SystemExit(main())
