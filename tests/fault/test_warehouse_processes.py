"""Several processes on one warehouse, and processes that are ended at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config, S3Address
from airloop.warehouse.catalog import Commit, Warehouse
from airloop.warehouse.refs import TableRef
from tests.fault.forks import Fork, Forks
from tests.fault.warehouse_process import NAME, SCHEMA, rows
from tests.places import AND_BY_REST, EVERYWHERE, IN_A_BUCKET, data_files
from tests.s3_server import S3Server


def start(forks: Forks, config: Config, *actions: tuple[str, dict[str, Any]]) -> Fork:
    words = [word for name, arguments in actions for word in (name, json.dumps(arguments))]
    return forks.start(
        words,
        {
            **os.environ,
            "AIRLOOP_HOME": str(config.home),
            "AIRLOOP_WAREHOUSE": str(config.warehouse),
            "AIRLOOP_CATALOG": config.catalog,
            "AIRLOOP_LOCKS": config.locks,
            "AIRLOOP_THREADS": "1",
            "AIRLOOP_MEMORY_MB": "512",
        },
    )


def outcome(process: Fork) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def writing(keys: list[str], ids: list[list[int]], mode: str, go: Path | None = None) -> tuple[str, dict[str, Any]]:
    return "write", {"keys": keys, "ids": ids, "mode": mode, "go": str(go) if go else ""}


def at_once(forks: Forks, config: Config, go: Path, *actions: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Outcomes of processes that all wait for one file, which appears when they are up."""
    processes = [start(forks, config, ("shell", {"script": "true"}), action) for action in actions]
    for process in processes:
        assert process.stdout.readline(), process.communicate()[1]
    go.touch()
    return [outcome(process) for process in processes]


def write_here(config: Config, keys: list[str], ids: list[list[int]], mode: Any) -> list[Commit]:
    """What the helper does, in this process."""
    warehouse = Warehouse.open(config)
    warehouse.ensure(NAME, SCHEMA, key=["id"], partition_by="month(at)")
    pairs = enumerate(zip(keys, ids, strict=True))
    return [warehouse.commit(NAME, rows(which, float(n), key), key=key, mode=mode) for n, (key, which) in pairs]


def content(config: Config) -> list[tuple[int, str]]:
    found = Warehouse.open(config).scan(TableRef(NAME)).read_all().to_pylist()
    return sorted((r["id"], r["batch"]) for r in found)


@AND_BY_REST
def test_many_create_and_append_at_once(forks: Forks, config: Config, tmp_path: Path) -> None:
    go = tmp_path / "go"
    keys = [[f"w{w}-{n}" for n in range(4)] for w in range(6)]
    # Nothing is there yet: no folder, no catalog, no namespace, no table.
    found = at_once(
        forks,
        config,
        go,
        *(writing(mine, [[1000 * w + n] for n in range(4)], "append", go) for w, mine in enumerate(keys)),
    )
    assert found == [{"changed": [True] * 4, "adopted": [False] * 4}] * 6
    assert content(config) == [(1000 * w + n, keys[w][n]) for w in range(6) for n in range(4)]
    assert Counter(s.key for s in Warehouse.open(config).history(NAME)) == Counter(k for mine in keys for k in mine)


@AND_BY_REST
@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_the_same_keys_at_once(forks: Forks, config: Config, tmp_path: Path, mode: str) -> None:
    go = tmp_path / "go"
    keys = [f"k{n}" for n in range(5)]
    ids = [[10 * n, 10 * n + 1] for n in range(5)]
    outcomes = at_once(forks, config, go, *[writing(keys, ids, mode, go)] * 4)
    # Each key was committed by exactly one of them and adopted by the others.
    assert [sum(o["changed"][n] for o in outcomes) for n in range(5)] == [1] * 5
    assert [sum(o["adopted"][n] for o in outcomes) for n in range(5)] == [3] * 5
    assert sorted(s.key for s in Warehouse.open(config).history(NAME)) == keys
    assert content(config) == [(i, key) for key, which in zip(keys, ids, strict=True) for i in which]


def test_upserts_of_the_same_rows_at_once(forks: Forks, config: Config, tmp_path: Path) -> None:
    go = tmp_path / "go"
    shared = list(range(20))
    work = [
        writing([f"w{w}-{n}" for n in range(3)], [[*shared, 100 * (w + 1) + n] for n in range(3)], "upsert", go)
        for w in range(4)
    ]
    assert at_once(forks, config, go, *work) == [{"changed": [True] * 3, "adopted": [False] * 3}] * 4
    found = content(config)
    assert [i for i, _ in found] == sorted([*shared, *(100 * (w + 1) + n for w in range(4) for n in range(3))])
    assert len({batch for i, batch in found if i in shared}) == 1, "rows of one commit are there in part"


def test_publishing_at_once(forks: Forks, config: Config, tmp_path: Path) -> None:
    go = tmp_path / "go"
    work = [("publish", {"key": f"w{w}", "ids": [w, 10 + w], "go": str(go)}) for w in range(4)]
    assert all(found["attempts"] > 0 for found in at_once(forks, config, go, *work))
    assert content(config) == [(10 * t + w, f"w{w}") for t in range(2) for w in range(4)]
    assert set(Warehouse.open(config).table(NAME).metadata.refs) == {"main"}


def test_a_commit_is_never_seen_in_part(forks: Forks, config: Config, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    size = 3000
    write_here(config, ["k"], [list(range(size))], "append")
    watcher = start(forks, config, ("shell", {"script": "true"}), ("watch", {"until": str(stop), "size": size}))
    assert watcher.stdout.readline(), watcher.communicate()[1]
    until = time.monotonic() + 240
    while not stop.with_suffix(".looked").exists():
        assert not watcher.ended(), watcher.communicate()[1]
        assert time.monotonic() < until, "nobody looks"
        time.sleep(0.01)
    write_here(config, [f"k{n}" for n in range(12)], [list(range(size))] * 12, "replace")
    stop.touch()
    seen = outcome(watcher)
    assert seen["broken"] == []
    assert seen["looks"] > 0


@EVERYWHERE
@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
@pytest.mark.parametrize("moment", ["commit:before", "commit:after"])
def test_killed_around_the_commit(forks: Forks, config: Config, mode: str, moment: str) -> None:
    work: dict[str, Any] = {"keys": ["k1"], "ids": [[3, 4] if mode == "append" else [2, 3]], "mode": mode}
    victim = start(
        forks, config, writing(["k0"], [[1, 2]], "append"), ("fault", {"fault": f"kill@{moment}:1"}), writing(**work)
    )
    err = victim.communicate()[1]
    assert victim.returncode == -signal.SIGKILL, err
    landed = moment == "commit:after"
    assert (Warehouse.open(config).find_key(NAME, "k1") is not None) == landed
    (again,) = write_here(config, **work)
    assert (again.changed, again.adopted) == (not landed, landed)
    assert [s.key for s in Warehouse.open(config).history(NAME)] == ["k0", "k1"]
    assert (
        content(config)
        == {
            "append": [(1, "k0"), (2, "k0"), (3, "k1"), (4, "k1")],
            "upsert": [(1, "k0"), (2, "k1"), (3, "k1")],
            "replace": [(2, "k1"), (3, "k1")],
        }[mode]
    )


@pytest.mark.parametrize("moment", ["publish:before", "publish:after"])
def test_killed_around_publishing(forks: Forks, config: Config, moment: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    work = ("publish", {"key": "k1", "ids": [2, 3], "go": str(go)})
    victim = start(forks, config, writing(["k0"], [[1]], "append"), ("fault", {"fault": f"kill@{moment}"}), work)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert [i for i, _ in content(config)] == ([1] if moment == "publish:before" else [1, 2, 3])
    assert outcome(start(forks, config, work)) == {"attempts": 1}
    assert [i for i, _ in content(config)] == [1, 2, 3]
    assert set(Warehouse.open(config).table(NAME).metadata.refs) == {"main"}


@EVERYWHERE
def test_killed_at_any_moment(forks: Forks, config: Config) -> None:
    write_here(config, ["k"], [[0]], "append")
    keys, ids = [f"k{n}" for n in range(20)], [[1 + n] for n in range(20)]
    for seconds in (0.05, 0.2, 0.4):
        victim = start(forks, config, ("shell", {"script": "true"}), writing(keys, ids, "upsert"))
        victim.stdout.readline()
        time.sleep(seconds)
        victim.kill()
        victim.communicate()
        found = [i for i, _ in content(config)]
        assert len(found) == len(set(found))
    write_here(config, keys, ids, "upsert")
    assert [i for i, _ in content(config)] == list(range(21))


@pytest.mark.parametrize(
    ("config", "partition_by"),
    [("folder", ""), ("folder", "month(at)"), ("bucket", ""), ("bucket", "month(at)")],
    indirect=["config"],
)
def test_five_million_rows_in_bounded_memory(
    forks: Forks, config: Config, partition_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLOOP_ROWS_PER_CHUNK", "250000")
    done = outcome(start(forks, config, ("append_big", {"count": 5_000_000, "partition_by": partition_by})))
    assert done["rows"] == 5_000_001
    # All rows at once would be 200 MB in Arrow, twice that while they are brought into shape. A chunk is written while
    # the next one is made.
    allowed = 200
    if partition_by and not isinstance(config.warehouse, Path):
        # Of each of the twelve months' files, what is no part of 10 MB yet.
        allowed += 120
    assert done["peak_mb"] < allowed, done


@IN_A_BUCKET
def test_killed_while_a_file_goes_up(
    forks: Forks, config: Config, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One file of some 40 MB, sent in parts.
    monkeypatch.setenv("AIRLOOP_ROWS_PER_CHUNK", "5000000")
    work = ("append_big", {"count": 4_000_000})
    assert isinstance(config.warehouse, S3Address)
    victim = start(forks, config, work)
    with closing(s3_server.client()) as client:
        until = time.monotonic() + 240
        # It stands still while somebody looks: what is seen is so when it is killed.
        while not (victim.pause() or _going_up(client, config.warehouse)):
            victim.go_on()
            assert not victim.ended(), victim.communicate()[1]
            assert time.monotonic() < until, "nothing goes up"
            time.sleep(0.05)
        victim.kill()
        victim.communicate()
        assert _going_up(client, config.warehouse)
    assert content(config) == [(-1, "warm")]
    assert len(data_files(config)) == 1, "a file is seen that was never finished"
    assert outcome(start(forks, config, work))["rows"] == 4_000_001
    (_, made) = Warehouse.open(config).history(NAME)
    assert (made.key, made.rows_added) == ("big", 4_000_000)


def _going_up(client: Any, place: S3Address) -> list[str]:
    """Files of which the store has parts, and which nobody sees."""
    found = client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", ())
    return [upload["Key"] for upload in found if upload["Key"].startswith(f"{place.prefix}/")]
