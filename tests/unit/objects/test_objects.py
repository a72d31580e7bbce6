"""Files by name, in a folder and in a bucket: one behaviour."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airloop.errors import BadArgument
from airloop.objects import Objects

NAMES = [
    "a",
    "steps/train/ab/abcd/manifest.json",
    "runs/a%2Fb/scheduled__2013-01-01T00:00:00+00:00/t.3.json",
    "runs/每周重新训练/a b,c=d@e/Überprüfung №1.json",
    "runs/a+b/%~0123/50% off.json",
    "x" * 255,
]


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Do a piece of work in forked processes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(n,)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * count


@pytest.mark.parametrize("name", NAMES)
def test_what_is_published_is_read_by_the_same_name(objects: Objects, name: str) -> None:
    assert (objects.read(name), objects.look(name), objects.stream(name)) == (None, None, None)
    assert objects.publish(name, b"one")
    assert objects.read(name) == b"one"
    found = objects.look(name)
    assert found is not None
    assert (found.name, found.bytes) == (name, 3)
    assert abs(found.changed_at - time.time()) < 60
    assert objects.name_of(objects.uri(name)) == name
    assert [f.name for f in objects.listed(name.partition("/")[0])] == ([name] if "/" in name else [])


def test_a_file_is_replaced_removed_and_is_another_then(objects: Objects) -> None:
    objects.publish("f", b"one")
    first = objects.look("f")
    objects.publish("f", b"two!")
    second = objects.look("f")
    assert first is not None
    assert second is not None
    assert first.stamp != second.stamp
    for _ in range(2):
        objects.remove("f")
        assert objects.read("f") is None


def test_a_file_in_pieces_is_the_same(objects: Objects) -> None:
    content = os.urandom((2 << 20) + 17)
    objects.publish("f", content)
    stream = objects.stream("f")
    assert stream is not None
    assert stream.length == len(content)
    pieces = list(stream.pieces)
    assert len(pieces) == 3
    assert b"".join(pieces) == content


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b"])
def test_names_that_leave_the_place_are_refused(objects: Objects, name: str) -> None:
    acts: list[Callable[[], object]] = [
        lambda: objects.read(name), lambda: objects.look(name), lambda: objects.stream(name), lambda: objects.uri(name),
        lambda: objects.publish(name, b""), lambda: objects.remove(name), lambda: objects.folders(name),
        lambda: list(objects.listed(name)), lambda: objects.change(name, lambda _: b""),
        lambda: objects.publish_path(name, Path(__file__)), lambda: objects.local(name, Path("nowhere")),
    ]  # fmt: skip
    for act in acts:
        with pytest.raises(BadArgument, match="not a relative path inside the store"):
            act()


def test_an_address_elsewhere_has_no_name_here(objects: Objects) -> None:
    assert objects.name_of("") == ""
    assert objects.name_of(objects.address) == ""
    assert objects.name_of(objects.address + "-other/f") == ""
    assert objects.name_of("http://127.0.0.1/f") == ""


def test_a_folder_is_no_file(objects: Objects) -> None:
    objects.publish("a/b/c", b"")
    for name in ("a", "a/b"):
        assert (objects.read(name), objects.look(name), objects.stream(name)) == (None, None, None)


def test_only_if_absent_leaves_what_is_there(objects: Objects) -> None:
    assert objects.publish("f", b"one", only_if_absent=True)
    assert not objects.publish("f", b"two", only_if_absent=True)
    assert not objects.publish("f", b"one", only_if_absent=True)
    assert objects.read("f") == b"one"


def test_of_many_that_publish_only_if_absent_one_does(objects: Objects) -> None:
    def work(n: int) -> None:
        for name in range(10):
            if objects.publish(f"taken/{name}", str(n).encode(), only_if_absent=True):
                objects.publish(f"won/{name}/{n}", b"")

    # The parent has talked already: its children must not go on over its connections.
    assert objects.folders("won") == []
    at_once(4, work)
    for name in range(10):
        taken = objects.read(f"taken/{name}")
        assert taken is not None
        assert [f.name for f in objects.listed(f"won/{name}")] == [f"won/{name}/{taken.decode()}"]


def test_of_many_changes_at_once_none_is_lost(objects: Objects) -> None:
    def work(n: int) -> None:
        for _ in range(10):
            objects.change("counts/f", lambda there: b"%d" % (int(there or b"0") + 1))

    assert objects.read("counts/f") is None
    at_once(6, work)
    assert objects.read("counts/f") == b"60"


def test_a_change_that_wants_nothing_changes_nothing(objects: Objects) -> None:
    objects.change("f", lambda there: None)
    assert objects.read("f") is None
    objects.publish("f", b"one")
    before = objects.look("f")
    objects.change("f", lambda there: None)
    assert objects.look("f") == before


def test_a_change_that_fails_changes_nothing_and_holds_nobody_up(objects: Objects) -> None:
    objects.publish("a/f", b"one")

    def fail(there: bytes | None) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        objects.change("a/f", fail)
    objects.change("a/f", lambda there: (there or b"") + b" two")
    assert objects.read("a/f") == b"one two"


def test_files_are_listed_in_the_order_of_their_names(objects: Objects) -> None:
    names = ["r/a-b/x", "r/a/b/c", "r/a/x", "r/a.b", "r/é/x"]
    for name in (*names, "rest", "r2/x"):
        objects.publish(name, name.encode())
    found = list(objects.listed("r"))
    assert [f.name for f in found] == sorted(names)
    assert {f.name: f.bytes for f in found} == {name: len(name.encode()) for name in names}
    assert objects.folders("r") == ["a", "a-b", "é"]
    assert objects.folders("nothing") == []
    assert list(objects.listed("nothing")) == []


def test_a_pattern_stands_for_components(objects: Objects) -> None:
    for name in ("s/t/ab/abc/manifest.json", "s/t/ab/abc/docs/manifest.json", "s/t/ab/manifest.json", "s/t/x.y/b/c"):
        objects.publish(name, b"")
    assert [f.name for f in objects.listed("s", "*/*/*/manifest.json")] == ["s/t/ab/abc/manifest.json"]
    assert [f.name for f in objects.listed("s/t", "*/*.json")] == ["s/t/ab/manifest.json"]
    assert [f.name for f in objects.listed("s/t", "x.*/*/*")] == ["s/t/x.y/b/c"]


def test_a_folder_is_another_once_a_file_right_in_it_is(objects: Objects) -> None:
    objects.publish("runs/d/one/a.json", b"1")
    objects.publish("runs/d/two/a.json", b"1")
    before = objects.changed("runs/d")
    assert list(before) == ["one", "two"]
    assert before["one"].name == "runs/d/one"
    assert objects.changed("runs/d") == before
    objects.publish("runs/d/two/a.json", b"2")
    after = objects.changed("runs/d")
    assert after["one"] == before["one"]
    assert after["two"].stamp != before["two"].stamp
    assert after["two"].changed_at >= before["two"].changed_at
    assert objects.changed("nothing") == {}


def test_a_folder_is_published_replaced_and_brought_back(objects: Objects, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "a").write_bytes(b"one")
    (source / "deep" / "er" / "large").write_bytes(os.urandom((9 << 20) + 1))
    objects.publish_path("steps/s/model", source)
    assert [f.name for f in objects.listed("steps")] == ["steps/s/model/a", "steps/s/model/deep/er/large"]
    (source / "a").unlink()
    (source / "b").write_bytes(b"two")
    objects.publish_path("steps/s/model", source)
    assert [f.name for f in objects.listed("steps")] == ["steps/s/model/b", "steps/s/model/deep/er/large"]
    found = objects.local("steps/s/model", tmp_path / "scratch")
    assert found is not None
    assert {p.relative_to(found): p.read_bytes() for p in found.rglob("*") if p.is_file()} == {
        p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()
    }
    file = objects.local("steps/s/model/b", tmp_path / "scratch2")
    assert file is not None
    assert file.read_bytes() == b"two"
    assert objects.local("steps/s/none", tmp_path / "scratch3") is None


def test_a_single_file_is_published_as_a_path(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    objects.publish_path("a/g", tmp_path / "f")
    assert objects.read("a/g") == b"content"
