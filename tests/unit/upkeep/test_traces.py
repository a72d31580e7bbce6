"""Values in files that are no tables: whole words are redacted, what would break is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airloop.config import Config
from airloop.upkeep.subject import entity
from airloop.upkeep.traces import search


def write(config: Config, name: str, content: str | bytes) -> Path:
    path = config.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_whole_words_in_every_form(config: Config) -> None:
    name = "O'Hara & Söhne"
    manifest = write(config, "artifacts/steps/x/manifest.json", json.dumps({"offender": name, "other": "Hara"}))
    page = write(config, "artifacts/reports/r.html", "<p>O&#x27;Hara &amp; Söhne, O'Hara &amp; Söhne</p>")
    link = write(config, "logs/l.log", "GET /who/O%27Hara%20%26%20S%C3%B6hne HTTP/1.1\n")
    other = write(config, "logs/m.log", "XO'Hara & Söhne1\n")
    mode = page.stat().st_mode

    found = search(config, [name], redact=True)

    assert sorted(found.redacted) == ["artifacts/reports/r.html", "artifacts/steps/x/manifest.json", "logs/l.log"]
    assert found.left == []
    assert json.loads(manifest.read_text()) == {"offender": "[erased]", "other": "Hara"}
    assert page.read_text() == "<p>[erased], [erased]</p>"
    assert page.stat().st_mode == mode
    assert link.read_text() == "GET /who/[erased] HTTP/1.1\n"
    assert other.read_text() == "XO'Hara & Söhne1\n"
    assert search(config, [name], redact=True).redacted == []


def test_what_would_break_is_named_and_left(config: Config) -> None:
    places = ["mlflow.db", "artifacts/steps/train/k/bundle/bundle.json", "mlflow/1/models/m/data/bundle.json", "x.json"]
    for place in places[:-1]:
        write(config, place, "person-7")
    write(config, "x.json", b"\xff\xfe person-7")
    found = search(config, ["person-7"], redact=True)
    assert sorted(found.left) == sorted(places)
    assert (config.home / "mlflow.db").read_text() == "person-7"


def test_a_look_changes_nothing_and_tables_are_not_looked_at(config: Config) -> None:
    page = write(config, "artifacts/r.html", "person-7")
    write(config, "warehouse/raw/t/data/x.parquet", "person-7")
    write(config, "erasures/ab.json", "person-7")
    found = search(config, ["person-7"], redact=False)
    assert (found.redacted, found.left) == (["artifacts/r.html"], [])
    assert page.read_text() == "person-7"


@pytest.mark.parametrize(
    ("value", "told"), [("person-7", True), ("anna", True), ("123456", True), ("42", False), ("ab", False)]
)
def test_short_values_are_not_looked_for(value: str, told: bool) -> None:
    assert bool(entity([f"person={value}"]).texts()) is told
