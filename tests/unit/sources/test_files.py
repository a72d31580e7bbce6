from __future__ import annotations

import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airloop.config import Config
from airloop.errors import BadInput, NotFound, TryAgain
from airloop.reference import Scope
from airloop.sources import files as sources
from airloop.sources.files import DigestCache, FileSet


@pytest.fixture
def scope(config: Config) -> Scope:
    return Scope(config)


def names(files: FileSet) -> list[str]:
    return [file.name for file in files.files]


def test_the_place_of_a_file_is_not_part_of_the_key(tmp_path: Path, scope: Scope) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("id\n1\n")
    here = FileSet.parse(tmp_path / "here" / "a.csv").resolve(scope)
    there = FileSet.parse(str(tmp_path / "there" / "*.csv")).resolve(scope)
    assert here.canonical() == there.canonical()
    assert str(tmp_path) not in str(here) + str(here.canonical())


def test_a_changed_byte_changes_the_key(tmp_path: Path, scope: Scope) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    before = FileSet.parse(str(file)).resolve(scope)
    file.write_text("id\n2\n")
    assert FileSet.parse(str(file)).resolve(scope).canonical() != before.canonical()


def test_a_glob_gives_files_by_name_with_its_varying_part(tmp_path: Path, scope: Scope) -> None:
    for month in ("2013-02", "2013-01"):
        (tmp_path / month).mkdir()
        (tmp_path / month / "flights.csv").write_text(f"id\n{month}\n")
    files = FileSet.parse(f"{tmp_path}/*/flights.csv").resolve(scope)
    assert names(files) == ["2013-01/flights.csv", "2013-02/flights.csv"]
    assert names(FileSet.parse(f"{tmp_path}/**").resolve(scope))[0] == "2013-01/flights.csv"


def test_paths_keep_their_order_and_count_once(tmp_path: Path, scope: Scope) -> None:
    for name in ("a.csv", "b.csv", "c[1].csv"):
        (tmp_path / name).write_text(name)
    given = [f"{tmp_path}/b.csv", f"{tmp_path}/c[1].csv", f"{tmp_path}/?.csv"]
    assert names(FileSet.parse(given).resolve(scope)) == ["b.csv", "c[1].csv", "a.csv"]


def test_two_files_of_one_name_are_refused(tmp_path: Path, scope: Scope) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text(folder)
    with pytest.raises(BadInput, match=r"are both named a\.csv.*by one glob"):
        FileSet.parse([f"{tmp_path}/x/a.csv", f"{tmp_path}/y/a.csv"]).resolve(scope)


def test_a_file_in_a_package_is_found_without_importing_it(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "airloop_test_data"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "rows.csv").write_text("id\n1\n")
    monkeypatch.syspath_prepend(tmp_path)
    files = FileSet.parse("package:airloop_test_data/data/rows.csv").resolve(scope)
    assert names(files) == ["rows.csv"]
    assert names(FileSet.parse("package:airloop_test_data/data/*").resolve(scope)) == ["rows.csv"]
    assert "airloop_test_data" not in sys.modules
    with pytest.raises(NotFound, match=r"there is no file .*row\.csv"):
        FileSet.parse("package:airloop_test_data/data/row.csv").resolve(scope)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("package:nobody_has_this/data/x.csv", NotFound, "package nobody_has_this is not installed; install it: pip"),
        ("package:pyarrow", BadInput, "does not name a file in a package"),
        ("package:pyarrow/../x.csv", BadInput, "does not name a file in a package"),
        ("package:pyarrow//etc/passwd", BadInput, "does not name a file in a package"),
    ],
)
def test_package_addresses_that_do_not_work(scope: Scope, address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FileSet.parse(address).resolve(scope)


@pytest.mark.parametrize("value", [[], "", [""], 5, {"a": 1}, ["a.csv", 3], "a\x00b"])
def test_what_is_no_file_set(value: object) -> None:
    with pytest.raises(ValueError, match=r"path|files"):
        FileSet.parse(value)


def test_missing_files_are_named(tmp_path: Path, scope: Scope) -> None:
    (tmp_path / "flights.csv.gz").write_text("x")
    with pytest.raises(NotFound, match=r"there is no file .*flights\.csv; did you mean flights\.csv\.gz"):
        FileSet.parse(f"{tmp_path}/flights.csv").resolve(scope)
    with pytest.raises(NotFound, match=r"the folder .*nowhere is not there either"):
        FileSet.parse(f"{tmp_path}/nowhere/flights.csv").resolve(scope)
    with pytest.raises(NotFound, match=r"no file matches .*\*\.parquet"):
        FileSet.parse(f"{tmp_path}/*.parquet").resolve(scope)
    with pytest.raises(NotFound, match="no file matches"):
        FileSet.parse(f"{tmp_path}/nowhere/*.parquet").resolve(scope)


def test_folders_and_pipes_are_refused(tmp_path: Path, scope: Scope) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=r"is a folder; name the files in it"):
        FileSet.parse(str(tmp_path)).resolve(scope)
    with pytest.raises(BadInput, match=r"pipe is not a regular file"):
        FileSet.parse(f"{tmp_path}/pipe").resolve(scope)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, scope: Scope) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("id\n1\n")
    file.chmod(0)
    scope.config.home.mkdir(parents=True)
    uid = os.geteuid()
    if uid == 0:  # root may read everything
        scope.config.home.chmod(0o777)
        os.seteuid(65534)
    try:
        with pytest.raises(BadInput, match=r"secret\.csv cannot be read: permission denied; give the user with id"):
            FileSet.parse(str(file)).resolve(scope)
    finally:
        if uid == 0:
            os.seteuid(0)


def test_digests_are_cached_until_the_file_changes(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SETTLED_S", 3600.0)
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    database = scope.config.home / "file-digests.db"
    first = FileSet.parse(str(file)).resolve(scope)
    # Changed within the hour, it may change again within the same tick of the clock: not remembered.
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM digests").fetchone() == (0,)
    connection.close()
    cache = DigestCache(database)
    stamp = (*first.files[0].stamp[:1], *(t - 4000 * 10**9 for t in first.files[0].stamp[1:3]))
    cache._remember(file, (*stamp, *first.files[0].stamp[3:]), "made up")
    assert cache._remembered(file, (*stamp, *first.files[0].stamp[3:])) == "made up"
    assert FileSet.parse(str(file)).resolve(scope) == first


def test_a_remembered_digest_is_used(tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60)
    resolved = FileSet.parse(str(file)).resolve(scope)
    with sqlite3.connect(scope.config.home / "file-digests.db") as connection:
        connection.execute("UPDATE digests SET sha256 = 'remembered'")
    connection.close()
    assert FileSet.parse(str(file)).resolve(scope).files[0].sha256 == "remembered"
    file.write_text("id\n2\n")
    # Not within the tick of the clock in which it was made.
    os.utime(file, (real() + 1, real() + 1))
    assert FileSet.parse(str(file)).resolve(scope).files[0].sha256 not in ("remembered", resolved.files[0].sha256)


def test_the_cache_can_be_shared(tmp_path: Path, scope: Scope) -> None:
    paths = [tmp_path / f"{i}.csv" for i in range(8)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: FileSet.parse(f"{tmp_path}/*.csv").resolve(scope), range(16)))
    assert len({str(f) for f in found}) == 1


def test_a_file_that_changes_while_it_is_read_is_tried_again(tmp_path: Path, scope: Scope) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    resolved = FileSet.parse(str(file)).resolve(scope).files[0]
    resolved.check_unchanged()
    file.write_text("id\n1\n2\n")
    with pytest.raises(TryAgain, match=r"a\.csv changed while it was read"):
        resolved.check_unchanged()
    file.unlink()
    with pytest.raises(TryAgain, match=r"a\.csv went away"):
        resolved.check_unchanged()
