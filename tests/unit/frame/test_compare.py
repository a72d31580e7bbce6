"""What differs between two attempts, in words."""

from __future__ import annotations

from typing import Any

import pytest

from airloop.frame.compare import Difference, Side, differences, sentence

A, B = "a" * 64, "b" * 64


def side(key: str, *, keyless: tuple[str, ...] = (), inputs: tuple[str, ...] = (), **more: Any) -> Side:
    """One attempt; ``more``: arguments, modules, libraries."""
    code = {
        "fingerprint": f"{sorted(more.get('modules', {}).items())}{more.get('libraries')}{more.get('version')}",
        "modules": more.get("modules", {}),
        "libraries": more.get("libraries", {}),
    }
    record = {"key": key, "arguments": more.get("arguments", {}), "keyless": list(keyless)}
    return Side.of(record, {"code": code, "inputs": dict.fromkeys(inputs)})


def test_the_same_key_has_no_differences() -> None:
    assert differences(side("k", arguments={"a": 1}), side("k", arguments={"a": 2})) == []


def test_arguments_are_named_by_their_path() -> None:
    old = side("1", arguments={"limits": {"auc": 0.6, "psi": 0.2}, "names": ["a", "b"], "gone": 1})
    new = side("2", arguments={"limits": {"auc": 0.7, "psi": 0.2}, "names": ["a", "c"], "new": None})
    assert [str(d) for d in differences(old, new)] == [
        "argument gone: 1 → none",
        "argument limits.auc: 0.6 → 0.7",
        "argument names[1]: b → c",
    ]


def test_a_list_that_grew_is_shown_whole() -> None:
    (found,) = differences(side("1", arguments={"x": [1]}), side("2", arguments={"x": [1, 2]}))
    assert found == Difference("argument", "x", [1], [1, 2])


def test_arguments_outside_the_key_do_not_count() -> None:
    old, new = (side(k, keyless=("chunk",), arguments={"chunk": k, "rows": k}) for k in "12")
    assert [d.name for d in differences(old, new)] == ["rows"]


def test_inputs_are_told_from_arguments_and_come_first() -> None:
    old = side("1", inputs=("tables[0]",), arguments={"a": 1, "tables": ["raw.x@1"]})
    new = side("2", inputs=("tables[0]",), arguments={"a": 2, "tables": ["raw.x@2"]})
    assert sentence(differences(old, new)) == "input tables[0]: raw.x@1 → raw.x@2; argument a: 1 → 2"


def test_of_files_those_that_changed_are_named() -> None:
    old = side("1", inputs=("files",), arguments={"files": [["a.csv", A], ["b.csv", A]]})
    new = side("2", inputs=("files",), arguments={"files": [["a.csv", B], ["c.csv", A]]})
    assert [str(d) for d in differences(old, new)] == [
        f"input file a.csv: {A[:12]} → {B[:12]}",
        f"input file b.csv: {A[:12]} → none",
        f"input file c.csv: none → {A[:12]}",
    ]


def test_of_a_long_text_the_first_line_that_differs_is_shown() -> None:
    old, new = (side(k, arguments={"sql": f"SELECT a,\n  {k}\nFROM t"}) for k in "12")
    assert sentence(differences(old, new)) == "argument sql: line 2: 1 → 2"
    longer = side("3", arguments={"sql": "SELECT a,\n  2\nFROM t\nWHERE b"})
    assert sentence(differences(new, longer)) == "argument sql: line 4:  → WHERE b"


def test_code_libraries_and_version() -> None:
    old = side("1", modules={"m": A, "n": A, "o": A}, libraries={"duckdb": "1.2"})
    new = side("2", modules={"m": B, "n": B, "p": A}, libraries={"duckdb": "1.3"})
    assert sentence(differences(old, new)) == (
        "code removed: o; code added: p; library duckdb: 1.2 → 1.3; code changed: m, n"
    )
    raised = side("3", modules={"m": B, "n": B, "p": A}, libraries={"duckdb": "1.3"}, version=2)
    assert sentence(differences(new, raised)) == "the step's version was raised"


def test_an_interval_is_one_difference() -> None:
    january, february = ({"start": f"2013-0{m}-01", "end": f"2013-0{m + 1}-01"} for m in (1, 2))
    (found,) = differences(side("1", arguments={"interval": january}), side("2", arguments={"interval": february}))
    assert str(found) == "interval: 2013-01-01/2013-02-01 → 2013-02-01/2013-03-01"


def test_an_attempt_that_failed_knows_only_its_fingerprint() -> None:
    failed = Side.of({"key": "1", "arguments": {}, "code": {"fingerprint": "f"}}, None)
    assert "an attempt that failed does not say" in sentence(differences(failed, side("2", modules={"m": A})))


def test_nothing_but_the_key_differs() -> None:
    assert sentence(differences(side("1"), side("2"))) == "keys are made in another way now"


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_sentence_stays_short(number: int) -> None:
    old = side("1", arguments={f"a{i}": 0 for i in range(number)})
    new = side("2", arguments={f"a{i}": "x" * 500 for i in range(number)})
    text = sentence(differences(old, new))
    assert len(text) < 500
    assert ("and 5 more" in text) == (number == 9)
