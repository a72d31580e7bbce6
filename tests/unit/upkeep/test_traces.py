"""Values in files that are no tables: whole words are redacted, what would break is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from airloop.config import Config, S3Address
from airloop.objects import Bulk
from airloop.upkeep.subject import entity
from airloop.upkeep.traces import search
from tests.places import IN_A_CLUSTER


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


@IN_A_CLUSTER
@pytest.mark.parametrize("nested", [("", "lake"), ("lake", "")])
def test_tables_below_the_artifacts_are_no_artifacts(config: Config, nested: tuple[str, str]) -> None:
    bucket, prefix = config.warehouse.bucket, config.warehouse.prefix
    artifacts, warehouse = (S3Address(bucket, f"{prefix}/x/{name}".rstrip("/")) for name in nested)
    config = replace(config, artifacts=artifacts, warehouse=warehouse)
    Bulk(config.warehouse).publish("raw/visits/metadata/1.json", b'{"person": "anna-0"}')
    Bulk(config.artifacts).publish("logs/x.log", b"anna-0\n")
    found = search(config, ["anna-0"], redact=True)
    assert (found.redacted, found.left) == ([f"{config.artifacts}/logs/x.log"], [])
    assert Bulk(config.warehouse).read("raw/visits/metadata/1.json") == b'{"person": "anna-0"}'


NUMBER = "336776"
MANIFEST = {
    "format": 1,
    "step": "delay_gate",
    "key": "0" * 64,
    "run": {"dag_id": "delay_gate", "run_id": "scheduled__2013-01-01", "task_id": "t", "map_index": -1},
    "arguments": {"table": "delay_gate.people", "at": "delay_gate.people@336776", "sql": "-- of delay_gate, 336776"},
    "inputs": {"table": {"kind": "table", "reference": "delay_gate.people@336776"}},
    "counts": {"rows_in": 336776},
    "metrics": {"auc": 0.336776},
    "event": {"table": "delay_gate.people@336776"},
    "reused": {"made_by": {"dag_id": "delay_gate"}},
    "details": {
        "entry": {"dag_id": "delay_gate", "reason": "delay_gate"},
        "rows": 336776,
        "share": 0.336776,
        "customer": 336776,
        "customers": {"customer": [336776.0, 7]},
        "first": {"customer": "336776", "nested": '{"customer": 336776, "rows": 336776}'},
        "says": "delay_gate; 336776 and 336776.0, not 0.336776, 336776.5 or 1336776",
        "offenders": {"partial_unexpected_list": [336776, "336776"]},
    },
    "finished_at": "2013-01-01T00:00:00.336776+00:00",
}


@pytest.mark.parametrize("place", ["steps/delay_gate/00/0000/manifest.json", "runs/d/r/t.json", "attempts/00/0.json"])
def test_a_manifest_stays_one(config: Config, place: str) -> None:
    path = write(config, f"artifacts/{place}", json.dumps(MANIFEST, indent=1) + "\n")
    found = search(config, [NUMBER, "delay_gate"], columns=["customer"], redact=True)
    shown = f"artifacts/{place}"
    assert (found.redacted, found.left, found.kept) == ([shown], [], [shown])
    assert path.read_text().startswith('{\n "format": 1,\n "step": "delay_gate"')
    now = json.loads(path.read_text())
    assert now["arguments"] == {**MANIFEST["arguments"], "sql": "-- of [erased], [erased]"}
    assert now["details"] == {
        "entry": {"dag_id": "delay_gate", "reason": "[erased]"},
        "rows": 336776,
        "share": 0.336776,
        "customer": None,
        "customers": {"customer": [None, 7]},
        "first": {"customer": "[erased]", "nested": '{"customer": null, "rows": 336776}'},
        "says": "[erased]; [erased] and [erased], not 0.336776, 336776.5 or 1336776",
        "offenders": {"partial_unexpected_list": [None, "[erased]"]},
    }
    assert {n: v for n, v in now.items() if n not in ("arguments", "details")} == {
        n: v for n, v in MANIFEST.items() if n not in ("arguments", "details")
    }
    again = search(config, [NUMBER, "delay_gate"], columns=["customer"], redact=True)
    assert (again.redacted, again.kept) == ([], [shown]), "what stays is still said"


def test_a_manifest_of_another_format_is_left_as_it_is(config: Config) -> None:
    newer = json.dumps(MANIFEST | {"format": 2})
    path = write(config, "artifacts/steps/delay_gate/00/0000/manifest.json", newer)
    found = search(config, [NUMBER, "delay_gate"], columns=["customer"], redact=True)
    assert (found.redacted, found.left) == ([], ["artifacts/steps/delay_gate/00/0000/manifest.json"])
    assert path.read_text() == newer


@pytest.mark.parametrize("content", ['{"a": 336776}', '{"a": 0.336776}', '{"t": "2013-01-01T00:00:00.336776Z"}'])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_number_that_is_the_same_by_chance(config: Config, content: str, suffix: str) -> None:
    path = write(config, f"artifacts/x.{suffix}", content)
    found = search(config, [NUMBER], columns=["customer"], redact=True)
    assert (found.redacted, found.left) == ([], [])
    assert found.kept == ([f"artifacts/x.{suffix}"] if content == '{"a": 336776}' else [])
    assert path.read_text() == content


def test_lines_of_documents(config: Config) -> None:
    lines = ['{"customer":336776,"n":[1,336776]}', '{"ö":"336776"}', "torn {336776", ""]
    path = write(config, "logs/x.jsonl", "\n".join(lines))
    search(config, [NUMBER], columns=["customer"], redact=True)
    assert path.read_text() == '{"customer":null,"n":[1,336776]}\n{"ö":"[erased]"}\ntorn {[erased]\n'


def test_pages_stay_readable(config: Config) -> None:
    page = write(
        config,
        "artifacts/reports/r.html",
        '<style>p {color: #336776}</style><p title="person-7" id="336776">336776, 0.336776</p>'
        '<script type="application/json">{"customer": 336776, "who": "person-7 </p>"}</script>'
        "<script>let rows = 336776, who = 'person-7'</script>",
    )
    found = search(config, [NUMBER, "person-7"], columns=["customer"], redact=True)
    assert found.kept == found.redacted == ["artifacts/reports/r.html"]
    assert page.read_text() == (
        '<style>p {color: #336776}</style><p title="[erased]" id="336776">[erased], 0.336776</p>'
        '<script type="application/json">{"customer": null, "who": "[erased] <\\/p>"}</script>'
        "<script>let rows = 336776, who = '[erased]'</script>"
    )


def test_names_in_a_document_are_said(config: Config) -> None:
    path = write(config, "artifacts/x.json", '{"person-7": {"n": 1}}')
    found = search(config, ["person-7"], redact=True)
    assert (found.redacted, found.kept) == ([], ["artifacts/x.json"])
    assert path.read_text() == '{"person-7": {"n": 1}}'


def test_what_would_break_is_named_and_left(config: Config) -> None:
    places = ["mlflow.db", "artifacts/steps/train/k/bundle/bundle.json", "mlflow/1/models/m/data/bundle.json"]
    places += ["artifacts/code/trees/0.json", "artifacts/steps/evaluate/k/decision.json", "torn.json", "x.json"]
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
