"""gc: what goes, what stays and why; a key is spent once, whatever has expired."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop import postgres, usage
from airloop.config import Config
from airloop.contract import Call, RunInfo
from airloop.errors import NotFound, StoreBusy, Unreachable
from airloop.frame import StepContext, StepResult, step
from airloop.frame import running as frame_running
from airloop.objects import Bulk, open_objects
from airloop.records import run_record_path
from airloop.upkeep import gc
from airloop.upkeep.orphans import Orphans
from airloop.upkeep.retention import Policy, protected
from airloop.warehouse import commit, expire, tree
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.references import References
from airloop.warehouse.refs import TableRef
from tests.places import ALONE_AND_TOGETHER, EVERYWHERE, IN_A_CLUSTER, table_files
from tests.postgres_server import PostgresServer
from tests.s3_server import S3Server
from tests.unit.upkeep.conftest import ANY_AGE, TABLE, rows

NOTHING_KEPT = Policy(keep_days=0)
KEPT = Policy(keep_days=30)


@step()
def look(ctx: StepContext, *, table: TableRef) -> StepResult:
    """Name a table."""
    return StepResult(counts={"rows": ctx.warehouse.count(table)})


def test_files_of_killed_writers_go_once_they_are_old(
    config: Config, warehouse: Warehouse, history: list[int], age: Callable[[Path], None]
) -> None:
    folder = config.warehouse / "shop" / "orders"
    old, young = folder / "data" / "0-left.parquet", folder / "data" / "0-now.parquet"
    for path in (old, young):
        path.write_bytes(b"x" * 100)
    age(folder)
    young.touch()
    assert gc.collect(config, dry_run=True).files == {"data": 1}
    assert old.exists()
    found = gc.collect(config)
    assert (found.files, found.bytes, found.waiting) == ({"data": 1}, {"data": 100}, 1)
    assert not old.exists()
    assert young.exists()
    assert warehouse.count(TableRef(TABLE)) == 6
    assert gc.collect(config).files == {}


def test_files_of_a_dropped_table_go_a_grace_period_after_it_was_seen(
    config: Config, warehouse: Warehouse, history: list[int], age: Callable[[Path], None]
) -> None:
    warehouse.ensure("shop.kept", rows([1]).schema)
    warehouse.commit("shop.kept", rows([1]), key="k")
    others = config.warehouse / "shop" / "others" / "data" / "0.parquet"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"x")
    folder, notes = config.warehouse / "shop" / "orders", config.home / "locks" / "tables"
    files = [p for p in folder.rglob("*") if p.is_file()]
    metadata = warehouse.table(TABLE).metadata_location
    warehouse._catalog.drop_table(TABLE)
    age(config.warehouse)

    assert gc.collect(config, dry_run=True).waiting == len(files)
    assert not (notes / f"{TABLE}.dropped").exists()
    found = gc.collect(config)
    assert (found.files, found.waiting) == ({}, len(files)), "a reader may hold it, or it was dropped by mistake"

    warehouse._catalog.register_table(TABLE, metadata)
    gc.collect(config)
    assert not (notes / f"{TABLE}.dropped").exists()
    assert warehouse.count(TableRef(TABLE)) == 6
    warehouse._catalog.drop_table(TABLE)
    gc.collect(config)
    age(notes / f"{TABLE}.dropped")
    young = folder / "metadata" / "new.metadata.json"
    young.write_text("{}")
    found = gc.collect(config)
    assert (sum(found.files.values()), found.waiting) == (len(files), 1), "the table may be about to be made again"
    assert [p for p in folder.rglob("*") if p.is_file()] == [young]
    assert others.exists(), "this home never wrote it"
    assert warehouse.count(TableRef("shop.kept")) == 1


def test_another_catalog_makes_no_table_a_dropped_one(
    config: Config, warehouse: Warehouse, history: list[int], age: Callable[[Path], None]
) -> None:
    other = replace(config, catalog=f"sqlite:///{config.home / 'other.db'}")
    age(config.warehouse)
    for _ in range(2):
        found = gc.collect(other, grace_s=0)
        assert (found.files, found.waiting) == ({}, 0)
    assert warehouse.count(TableRef(TABLE)) == 6


@pytest.mark.parametrize(("name", "place"), [("artifacts.steps", "artifacts"), ("shop.orders", "shop/orders/made")])
def test_artifacts_in_the_folder_of_a_table_are_none_of_its_files(
    config: Config, run_step: Callable[..., dict[str, Any]], name: str, place: str
) -> None:
    config = replace(config, artifacts=config.warehouse.joinpath(*place.split("/")))
    warehouse = Warehouse.open(config)
    warehouse.ensure(name, rows([1]).schema)
    warehouse.ensure("shop.kept", rows([1]).schema)
    warehouse.commit("shop.kept", rows([1]), key="k")
    asked = {"table": "shop.kept@main", "run": RunInfo("shop", "r", "look")}
    run_step(look, config=config, **asked)
    before = {p for p in config.artifacts.rglob("*/manifest.json") if p.is_file()}
    assert before
    for dropped in (False, True):
        if dropped:
            warehouse._catalog.drop_table(name)
            gc.collect(config, KEPT, grace_s=ANY_AGE)
        gc.collect(config, KEPT, grace_s=ANY_AGE)
        assert all(path.is_file() for path in before)
        assert run_step(look, config=config, **asked)["status"] == "reused"


def test_nothing_young_expires(config: Config, history: list[int]) -> None:
    assert gc.collect(config, NOTHING_KEPT).snapshots == []


@ALONE_AND_TOGETHER
def test_what_nothing_names_expires_and_its_files_wait(
    config: Config, warehouse: Warehouse, history: list[int]
) -> None:
    found = gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert found.snapshots == [f"{TABLE}@{s}" for s in sorted(history[:-1])]
    assert [s.id for s in warehouse.history(TABLE)] == history[-1:]
    with pytest.raises(NotFound, match="expired"):
        warehouse.resolve(TableRef(TABLE, history[0]))
    assert warehouse.count(TableRef(TABLE)) == 6
    # Their files are as old as the expiry.
    before = table_files(config)
    waiting = gc.collect(config)
    assert (waiting.files, waiting.waiting) == ({}, len(before - References(warehouse.table(TABLE)).all()))
    assert table_files(config) == before
    assert gc.collect(config, grace_s=ANY_AGE).files["metadata"] > 0
    assert table_files(config) == References(warehouse.table(TABLE)).all()
    assert warehouse.scan(TableRef(TABLE)).read_all().num_rows == 6


@ALONE_AND_TOGETHER
def test_what_a_step_named_stays_with_its_reason(
    config: Config, warehouse: Warehouse, history: list[int], run_step: Callable[..., dict[str, object]]
) -> None:
    run_step(look, table=f"{TABLE}@{history[2]}", run=RunInfo("shop", "2013-01", "look"))
    reasons = protected(config)[TABLE]
    assert set(reasons) == {history[2], history[5]}
    assert reasons[history[2]][0].startswith("run shop/2013-01, replayable until ")
    assert reasons[history[5]] == ["branch main"]
    gc.collect(config, grace_s=0)
    assert [s.id for s in warehouse.history(TABLE)] == [history[2], history[5]]
    assert warehouse.count(TableRef(TABLE, history[2])) == 3


@EVERYWHERE
def test_ancestry_and_keys_outlive_snapshots(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    head = history[-1]
    assert all(warehouse.descends(TABLE, head, old) for old in history)
    again = warehouse.commit(TABLE, rows([3], amount=9.0), key="key-3")
    assert (again.snapshot, again.changed, again.adopted) == (head, False, True)
    corrected = warehouse.commit(TABLE, rows([3], amount=9.0), key="key-3", mode="upsert", on=["id"])
    assert (corrected.snapshot, corrected.adopted) == (head, True)
    assert warehouse.count(TableRef(TABLE)) == 6
    new = warehouse.commit(TABLE, rows([6]), key="key-6").snapshot
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert [s.id for s in warehouse.history(TABLE)] == [new]
    assert warehouse.descends(TABLE, new, history[0])
    assert not warehouse.descends(TABLE, history[0], new)


def test_a_replacement_that_expired_is_made_again(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    first = warehouse.commit(TABLE, rows([1, 2]), key="small", mode="replace").snapshot
    warehouse.commit(TABLE, rows([7]), key="large", mode="replace")
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    again = warehouse.commit(TABLE, rows([1, 2]), key="small", mode="replace")
    assert again.changed
    assert again.snapshot != first
    assert warehouse.count(again.ref) == 2


def test_what_expired_on_a_refused_branch_is_brought_again(
    config: Config, warehouse: Warehouse, history: list[int]
) -> None:
    warehouse.commit(TABLE, rows([8]), key="refused", branch="audit-0123456789ab")
    found = gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert found.branches == [f"{TABLE}@audit-0123456789ab"]
    assert warehouse.commit(TABLE, rows([8]), key="refused", branch="audit-ba9876543210").changed
    assert warehouse.count(TableRef(TABLE)) == 6


def test_a_branch_that_is_young_stays(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    warehouse.commit(TABLE, rows([8]), key="batch", branch="audit-00ff00ff00ff-clean-1")
    assert gc.collect(config).branches == []
    assert "audit-00ff00ff00ff-clean-1" in warehouse.table(TABLE).metadata.refs


def test_what_a_running_attempt_names_or_may_read_stays(
    config: Config, warehouse: Warehouse, history: list[int], age: Callable[[Path], None]
) -> None:
    call = Call("look", {"table": {"table": f"{TABLE}@{history[1]}", "step": "x", "key": "y"}}, "ab" * 8)
    with frame_running.Announced(config, call) as announced:
        announced.resolved()
        gc.collect(config, NOTHING_KEPT, grace_s=0)
        # The attempt began after these were committed, and names one of them.
        assert history[1] in {s.id for s in warehouse.history(TABLE)}
        left = config.warehouse / "shop" / "orders" / "data" / "0-staged.parquet"
        left.write_bytes(b"x")
        assert gc.collect(config, NOTHING_KEPT, grace_s=0).waiting > 0
        assert left.exists()
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert history[1] not in {s.id for s in warehouse.history(TABLE)}
    assert not list((config.home / "locks" / "running").iterdir())


def test_attempts_wait_while_gc_decides(config: Config, history: list[int]) -> None:
    entered = threading.Event()

    def attempt() -> None:
        with frame_running.Announced(config, Call("look", {}, "cd" * 8)):
            entered.set()

    with frame_running.closed(config):
        thread = threading.Thread(target=attempt)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    thread.join()


def test_what_ended_while_gc_decides_is_still_known(config: Config) -> None:
    with frame_running.deciding(config):
        with frame_running.Announced(config, Call("look", {"table": "a.b@7"}, "cd" * 8)):
            pass
        with frame_running.closed(config):
            assert [(a.arguments, a.alive) for a in frame_running.attempts(config)] == [('{"table": "a.b@7"}', False)]
    with frame_running.deciding(config), frame_running.closed(config):
        assert frame_running.attempts(config) == []


@EVERYWHERE
def test_a_commit_between_decision_and_expiry_wins(
    config: Config, warehouse: Warehouse, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = expire.send
    branched = []

    def branch_first(*arguments: object) -> None:
        if not branched:
            branched.append(warehouse.branch(TABLE, "kept", at=history[0]))
        real(*arguments)

    monkeypatch.setattr(expire, "send", branch_first)
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert warehouse.head(TABLE, "kept") == history[0]
    assert warehouse.count(TableRef(TABLE, branch="kept")) == 1


def test_leftovers_of_killed_steps_go(
    config: Config, history: list[int], age: Callable[[Path], None], run_step: Callable[..., dict[str, object]]
) -> None:
    made = run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))
    half = config.artifacts / "steps" / "look" / "00" / ("00" * 32) / "docs" / "index.html"
    part = config.artifacts / "runs" / ".part-abc"
    work = config.home / "work" / "look-0123"
    for path in (half, part, work / "rows"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    first = gc.collect(config)
    assert not {"unfinished artifacts", "working folders"} & set(first.files)
    age(config.home)
    second = gc.collect(config)
    assert second.files["unfinished artifacts"] == 2
    assert second.files["working folders"] == 1
    assert not (half.exists())
    assert not (part.exists())
    assert not (work.exists())
    assert run_step(look, table=f"{TABLE}@main", run=RunInfo("shop", "r", "look"))["status"] == "reused"
    assert made["key"]


def test_only_one_at_a_time(config: Config, history: list[int]) -> None:
    with gc.alone(config), pytest.raises(StoreBusy, match="another gc"), gc.alone(config, timeout_s=0):
        pass


def test_references_name_every_file_that_is_there(config: Config, warehouse: Warehouse, history: list[int]) -> None:
    folder = config.warehouse / "shop" / "orders"
    there = {str(p) for p in folder.rglob("*") if p.is_file()}
    assert References(warehouse.table(TABLE)).all() == there


def test_other_engines_may_not_expire(warehouse: Warehouse, history: list[int]) -> None:
    assert warehouse.table(TABLE).properties["gc.enabled"] == "false"


def test_the_report_is_json(config: Config, history: list[int]) -> None:
    found = gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert json.loads(json.dumps(found.as_json()))["stayed"] == {TABLE: {"branch": 1}}
    assert next(iter(gc.describe(found, dry_run=False))) == "0 audit branches, 5 snapshots went"


@step()
def bring(ctx: StepContext, *, first: int) -> StepResult:
    """Bring ten rows, two of them known already, and count what is there."""
    made = ctx.warehouse.commit(TABLE, rows(range(first, first + 10), float(first)), key=ctx.key, mode="upsert")
    return StepResult(outputs={"table": made.ref}, counts={"rows": ctx.warehouse.count(made.ref)})


@ALONE_AND_TOGETHER
def test_loops_run_meanwhile(
    config: Config, warehouse: Warehouse, history: list[int], run_step: Callable[..., dict[str, Any]]
) -> None:
    """Steps write while gc without any grace and compaction go round: no error, no row lost, every result there."""
    ended = threading.Event()
    made: list[dict[str, Any]] = []
    errors: list[BaseException] = []

    # Each round is a dozen requests and connections there.
    times = 8 if isinstance(config.warehouse, Path) else 4

    def loop() -> None:
        try:
            for i in range(times):
                made.append(run_step(bring, first=8 * i, run=RunInfo("shop", f"{i}", "bring")))
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=loop)
    thread.start()
    rounds = 0
    while not ended.is_set() or not rounds:
        gc.collect(config, grace_s=0)
        warehouse.compact(TABLE)
        rounds += 1
    thread.join()
    assert errors == []
    gc.collect(config, grace_s=0)
    assert [m["counts"]["rows"] for m in made] == [10 + 8 * i for i in range(times)]
    for manifest in made:
        ref = TableRef.parse(manifest["outputs"]["table"]["reference"])
        assert warehouse.scan(ref).read_all().num_rows == manifest["counts"]["rows"]
    assert run_step(bring, first=0, run=RunInfo("shop", "again", "bring"))["status"] == "reused"


def test_what_attempts_took_stays_as_long_as_they_do(
    config: Config, warehouse: Warehouse, history: list[int], run_step: Callable[..., dict[str, object]],
    age: Callable[[Path], None],
) -> None:  # fmt: skip
    run = RunInfo("shop", "2013-01", "look")
    made = run_step(look, table=f"{TABLE}@{history[2]}", run=run)
    reused = run_step(look, table=f"{TABLE}@{history[2]}", run=run)
    assert reused["status"] == "reused"
    newest = json.loads((config.artifacts / run_record_path(run)).read_text())["attempt"]
    assert newest != made["attempt"]
    objects = open_objects(config.artifacts)
    attempts = {"maker": str(made["attempt"]), "newest": newest, "failed": "aaaa0000", "young": "bbbb0000"}
    for attempt in attempts.values():
        usage.publish(
            objects, usage.document(attempt=attempt, step="look", run=run, runner="local", started_at="2013-01-01")
        )
    age(config.artifacts / "usage")
    (config.artifacts / usage.usage_path(run, attempts["young"])).touch()
    assert gc.collect(config, grace_s=0).files.get("records of use") is None, "a run may be looked at for 30 days"
    assert gc.collect(config, NOTHING_KEPT, grace_s=3600).files["records of use"] == 1
    left = {one["attempt"] for one in usage.of_task(objects, run)}
    assert left == set(attempts.values()) - {"aaaa0000"}


# --- state that pods share


def put(config: Config, name: str, content: bytes = b"x" * 100) -> str:
    """A file beside those that the table names; returns its path."""
    Bulk(config.warehouse).publish(name, content)
    return f"{config.warehouse}/{name}"


@ALONE_AND_TOGETHER
def test_a_file_that_is_committed_after_it_was_seen_stays(
    config: Config, warehouse: Warehouse, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = commit.send

    def send_once_seen(*arguments: Any) -> None:
        """All files of the commit are there, and count as old; it is done between gc's look and its decision."""
        monkeypatch.setattr(commit, "send", send)
        monkeypatch.setattr(gc, "point", lambda name: send(*arguments) if name == "gc:listed" else None)
        gc.collect(config, KEPT, grace_s=ANY_AGE)

    monkeypatch.setattr(commit, "send", send_once_seen)
    warehouse.commit(TABLE, rows([6]), key="key-6")
    assert warehouse.scan(TableRef(TABLE)).read_all().num_rows == 7
    assert References(warehouse.table(TABLE)).all() <= table_files(config)


@pytest.fixture
def settled(config: Config, history: list[int]) -> None:
    """Six rows in a table of which nothing is left that could go."""
    gc.collect(config, NOTHING_KEPT, grace_s=ANY_AGE)


@IN_A_CLUSTER
@pytest.mark.usefixtures("settled")
def test_what_killed_writers_left_in_a_bucket_goes_once_it_is_old(
    config: Config, warehouse: Warehouse, s3_server: S3Server
) -> None:
    named = References(warehouse.table(TABLE)).all()
    left = put(config, "shop/orders/data/0-left é+%20.parquet")
    others = put(config, "shop/others/data/0.parquet")
    bucket = {"Bucket": config.warehouse.bucket}
    with closing(s3_server.client()) as client:
        for name in ("shop/orders/data/0-half.parquet", "shop/others/0-half.parquet"):
            client.create_multipart_upload(**bucket, Key=f"{config.warehouse.prefix}/{name}")
        young = gc.collect(config, KEPT)
        assert (young.files, young.waiting) == ({}, 1)
        said = gc.collect(config, KEPT, grace_s=ANY_AGE, dry_run=True)
        assert said.files == {"data": 1, "unfinished uploads": 1}
        assert table_files(config) == named | {left, others}
        found = gc.collect(config, KEPT, grace_s=ANY_AGE)
        assert (found.files, found.bytes["data"], found.waiting) == (said.files, 100, 0)
        uploads = client.list_multipart_uploads(**bucket, Prefix=config.warehouse.prefix).get("Uploads", [])
        assert [upload["Key"].rpartition("/")[2] for upload in uploads] == ["0-half.parquet"], "nobody knows whose"
    assert table_files(config) == named | {others}
    assert gc.collect(config, KEPT, grace_s=ANY_AGE).files == {}
    assert warehouse.scan(TableRef(TABLE)).read_all().num_rows == 6


@IN_A_CLUSTER
def test_old_files_of_what_expired_stay_as_long_as_its_note_is_young(
    config: Config, warehouse: Warehouse, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect(config, NOTHING_KEPT, grace_s=0)
    before = table_files(config)
    put(config, "shop/orders/data/0-left.parquet")
    # Nothing in a bucket can be made older than it is.
    monkeypatch.setattr(Orphans, "_is_young", lambda self, file: expire.NOTE.search(file.path) is not None)
    found = gc.collect(config)
    resting = before - References(warehouse.table(TABLE)).all()
    assert (found.files, found.waiting) == ({"data": 1}, len(resting))
    assert table_files(config) == before
    assert len(resting) == len(history), "the lists of manifests of all but the head, and the note"


@IN_A_CLUSTER
@pytest.mark.usefixtures("settled")
def test_ages_are_told_by_the_stores_clock(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    left = put(config, "shop/orders/data/0-left.parquet")
    monkeypatch.setattr(Bulk, "clock_ahead_s", lambda self: 90_000.0)
    assert gc.collect(config, KEPT).files == {"data": 1}
    assert left not in table_files(config)
    put(config, "shop/orders/data/0-left.parquet")
    monkeypatch.setattr(Bulk, "clock_ahead_s", lambda self: -90_000.0)
    assert gc.collect(config, KEPT, grace_s=0).files == {}


@IN_A_CLUSTER
@pytest.mark.usefixtures("settled")
def test_the_tables_of_a_replay_stay_or_go_together(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, killed = f"{tree.REPLAYS}/{'a' * 32}", f"{tree.REPLAYS}/{'b' * 32}"
    stay = {put(config, f"{under_way}/raw/t/data/{name}") for name in ("0-old.parquet", "1-young.parquet")}
    go = {put(config, f"{killed}/raw/t/{name}") for name in ("data/0-old.parquet", "metadata/1-old.json")}
    # Nothing in a bucket can be made older than it is.
    monkeypatch.setattr(Orphans, "_is_young", lambda self, file: "-young" in file.path)
    before = table_files(config)
    assert gc.collect(config, KEPT, dry_run=True).files == {"working folders": 2}
    assert gc.collect(config, KEPT).files == {"working folders": 2}
    assert table_files(config) == before - go
    assert stay <= before


@IN_A_CLUSTER
@pytest.mark.usefixtures("settled")
def test_uploads_of_other_tools_in_the_bucket_go_on(config: Config, s3_server: S3Server) -> None:
    prefix = config.artifacts.prefix
    with closing(s3_server.client()) as client:
        for name in ("steps/look/0-half", "backups/dump.sql"):
            client.create_multipart_upload(Bucket=config.artifacts.bucket, Key=f"{prefix}/{name}")
        assert gc.collect(config, KEPT, grace_s=ANY_AGE).files == {"unfinished uploads": 1}
        left = client.list_multipart_uploads(Bucket=config.artifacts.bucket, Prefix=prefix).get("Uploads", [])
        assert [upload["Key"] for upload in left] == [f"{prefix}/backups/dump.sql"]


@pytest.mark.parametrize(("config", "apart_s"), [("cluster", 0.0), ("folder", gc.CLOCKS_S)], indirect=["config"])
def test_clocks_may_differ_where_locks_are_shared(
    config: Config, warehouse: Warehouse, postgres_url: str, monkeypatch: pytest.MonkeyPatch, apart_s: float
) -> None:
    """Wherever the catalog is: locks say whether attempts may run on other machines."""
    config = replace(config, locks=postgres_url if apart_s else "local")
    cutoffs = []
    monkeypatch.setattr(gc, "refuse_another_store", lambda warehouse, told, cutoff: cutoffs.append(cutoff))
    with frame_running.Announced(config, Call("look", {}, "ab" * 8)) as announced:
        announced.resolved()
        (attempt,) = frame_running.attempts(config)
        gc.collect(config, grace_s=0)
    # The server tells how long ago it began.
    assert cutoffs == [pytest.approx(attempt.started_at - apart_s, abs=10.0)]


@IN_A_CLUSTER
@pytest.mark.usefixtures("settled")
def test_a_dropped_table_is_known_if_a_gc_saw_it(
    config: Config, warehouse: Warehouse, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.ensure("shop.kept", rows([1]).schema)
    warehouse.commit("shop.kept", rows([1]), key="k")
    gc.collect(config, KEPT)
    files = {path for path in table_files(config) if "/shop/orders/" in path}
    metadata = warehouse.table(TABLE).metadata_location
    warehouse._catalog.drop_table(TABLE)
    with postgres_server.database() as address:
        other = replace(config, catalog=address)
        Warehouse.open(other).ensure("shop.other", rows([1]).schema)
        with monkeypatch.context() as unmarked:
            unmarked.setattr(gc, "refuse_others", lambda *_, **__: None)
            assert gc.collect(other, KEPT, grace_s=ANY_AGE).files == {}, "it never had such a table"

    found = gc.collect(config, KEPT)
    assert (found.files, found.waiting) == ({}, len(files)), "a reader may hold it, or it was dropped by mistake"
    warehouse._catalog.register_table(TABLE, metadata)
    assert gc.collect(config, KEPT).waiting == 0
    assert warehouse.count(TableRef(TABLE)) == 6
    warehouse._catalog.drop_table(TABLE)
    gc.collect(config, KEPT)
    assert sum(gc.collect(config, KEPT, grace_s=ANY_AGE).files.values()) == len(files)
    assert not files & table_files(config)
    assert warehouse.scan(TableRef("shop.kept")).read_all().num_rows == 1


@IN_A_CLUSTER
def test_leftovers_of_killed_steps_go_from_a_bucket(
    config: Config, history: list[int], run_step: Callable[..., dict[str, Any]]
) -> None:
    asked = {"table": f"{TABLE}@main", "run": RunInfo("shop", "r", "look")}
    made = run_step(look, **asked)
    store = ArtifactStore(config.artifacts)
    half = [f"steps/look/00/{'00' * 32}/docs/index.html", f"steps/look/00/{'00' * 32}/a.json"]
    old = [f"attempts/ab/{'ab' * 8}.json", f"code/trees/{'cd' * 32}.json", f"code/packs/{'ef' * 32}.zip"]
    for name in (*half, *old):
        store.publish_bytes(name, b'{"packs": {}}')
    before = set(store.names("steps")) | set(store.names("code")) | set(store.names("attempts"))
    assert not {"unfinished artifacts", "attempts' records", "code"} & set(gc.collect(config, KEPT).files)
    found = gc.collect(config, Policy(keep_days=-1), grace_s=ANY_AGE)
    assert {k: n for k, n in found.files.items() if k not in ("data", "metadata")} == {
        "unfinished artifacts": 2, "attempts' records": 1, "code": 2,
    }  # fmt: skip
    after = set(store.names("steps")) | set(store.names("code")) | set(store.names("attempts"))
    assert after == before - {*half, *old}
    assert run_step(look, **asked)["status"] == "reused"
    assert made["key"]


@IN_A_CLUSTER
def test_nothing_expires_once_the_server_forgot_who_runs(
    config: Config, warehouse: Warehouse, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is restarted frees the locks by which ended attempts stay known."""

    def restarted(*_: object) -> None:
        with closing(postgres.connect(config.catalog, "AIRLOOP_CATALOG")) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    monkeypatch.setattr(expire, "_make_young", restarted)
    with pytest.raises(Unreachable, match="lock gate was lost"):
        gc.collect(config, NOTHING_KEPT, grace_s=0)
    assert [s.id for s in warehouse.history(TABLE)] == history
