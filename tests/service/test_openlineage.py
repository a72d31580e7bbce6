"""Events that Airflow's provider for OpenLineage sends while a whole loop runs, as a receiving server gets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import airloop_operators
from airloop.config import Config
from airloop.warehouse.catalog import Warehouse
from tests.fault.flights_loop import write_data

pytestmark = pytest.mark.timeout(1800)
REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = Path(__file__).parents[1] / "data" / "openlineage"
TASKS = 28
"""Tasks of the loop; each has an event for its start and one for its end."""


@dataclass
class Sent:
    """What the server got."""

    events: list[dict[str, Any]]
    config: Config
    data: Path
    state: str

    def of(self, task: str, kind: str = "COMPLETE") -> dict[str, Any]:
        """The one event of a task and kind."""
        (event,) = [e for e in self.events if (e["job"]["name"], e["eventType"]) == (f"lineage_loop.{task}", kind)]
        return event


@dataclass
class Receiver:
    """An OpenLineage server that keeps what it gets."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def serve(self) -> ThreadingHTTPServer:
        events = self.events

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/api/v1/lineage"
                events.append(json.loads(content))
                self.send_response(201)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing: events are what the tests look at."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, airflow_database: Path, run_folder: Path) -> Sent:
    """The loop, run once."""
    folder = tmp_path_factory.mktemp("openlineage")
    data = write_data(folder / "data", until_day=6)
    receiver = Receiver()
    server = receiver.serve()
    # An event that is answered late would be sent again.
    transport = {
        "type": "http",
        "url": f"http://127.0.0.1:{server.server_port}",
        "endpoint": "api/v1/lineage",
        "timeout": 120,
    }
    own = {
        "AIRLOOP_HOME": str(folder / "home"),
        "AIRLOOP_FEATURE_REPO": str(REPOSITORY / "feature_repo"),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "loops",
        "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "240",
        "XDG_RUNTIME_DIR": str(run_folder),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.lineage_loop", str(data), str(folder / "backups")],
        cwd=REPOSITORY, env=inherited | own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    state = done.stdout.rpartition("STATE ")[2].partition("\n")[0]
    return Sent(receiver.events, Config.from_environment(own), data, state)


def test_every_event_is_valid(sent: Sent) -> None:
    """By the schema of events, and each facet by the schema that it names itself."""
    registry: Registry[Any] = Registry()
    for file in sorted(SCHEMAS.rglob("*.json")):
        schema = json.loads(file.read_text())
        registry = registry.with_resource(schema["$id"], Resource.from_contents(schema))
    checked = 0
    for event in sent.events:
        _validate(event, event["schemaURL"], registry)
        for facet in _facets(event):
            _validate(facet, facet["_schemaURL"], registry)
            checked += 1
    assert checked > 10 * TASKS


def _validate(document: Any, schema: str, registry: Registry[Any]) -> None:
    checker = Draft202012Validator.FORMAT_CHECKER
    validator = Draft202012Validator({"$ref": schema}, registry=registry, format_checker=checker)
    errors = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(document)]
    assert not errors, (errors, document)


def _facets(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "_schemaURL" in value:
            yield value
        for part in value.values():
            yield from _facets(part)
    elif isinstance(value, list):
        for part in value:
            yield from _facets(part)


def test_every_task_is_told_of_when_it_starts_and_when_it_ends(sent: Sent) -> None:
    assert sent.state == "failed"  # one of its tasks is to fail
    tasks = [e for e in sent.events if e["job"]["facets"]["jobType"]["jobType"] == "TASK"]
    starts = {e["run"]["runId"]: e["job"]["name"] for e in tasks if e["eventType"] == "START"}
    ends = {e["run"]["runId"]: e["job"]["name"] for e in tasks if e["eventType"] in ("COMPLETE", "FAIL")}
    assert starts == ends
    assert len(starts) == TASKS
    assert {e["job"]["namespace"] for e in tasks} == {"loops"}
    (run,) = {e["run"]["facets"]["parent"]["run"]["runId"] for e in tasks}
    assert run in {e["run"]["runId"] for e in sent.events if e["job"]["name"] == "lineage_loop"}


def test_every_operator_is_among_them(sent: Sent) -> None:
    ended = [e for e in sent.events if e["eventType"] == "COMPLETE" and "airloop" in e["run"]["facets"]]
    told = {e["run"]["facets"]["airloop"]["step"] for e in ended}
    operators = [getattr(airloop_operators, name) for name in airloop_operators.__all__]
    assert told == {o.step_name for o in operators if o.step_name} | {"steps_for_tests:write_rows"}


def test_every_output_leads_to_the_inputs_of_the_next_task(sent: Sent) -> None:
    """One graph: what a task read is what a task wrote, in the same version."""
    ended = [e for e in sent.events if e["eventType"] == "COMPLETE"]
    written = {_identity(d) for e in ended for d in e["outputs"]}
    read = {_identity(d) for e in ended for d in e["inputs"]}
    outside = {identity for identity in read - written if identity[0] != "feast"}
    assert {name for _, name, _ in outside} == {
        str(sent.data / f"{name}.csv") for name in ("flights", "weather", "planes")
    }


def _identity(dataset: dict[str, Any]) -> tuple[str, str, str]:
    version = dataset["facets"].get("version", {}).get("datasetVersion", "")
    return dataset["namespace"], dataset["name"], version


def test_a_table_is_named_by_its_place_and_described(sent: Sent) -> None:
    warehouse = Warehouse.open(sent.config)
    (table,) = sent.of("labels")["outputs"]
    assert (table["namespace"], f"file://{table['name']}") == ("file", warehouse.table("labels.arrivals").location())
    facets = table["facets"]
    assert facets["version"]["datasetVersion"] == str(warehouse.head("labels.arrivals"))
    assert [f["name"] for f in facets["schema"]["fields"]] == warehouse.schema("labels.arrivals").names
    (link,) = facets["symlinks"]["identifiers"]
    assert (link["name"], link["namespace"]) == ("labels.arrivals", sent.config.warehouse.as_uri())
    history = warehouse.history("labels.arrivals")
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == history[-1].rows_total
    assert table["outputFacets"]["outputStatistics"]["size"] > 0
    assert sent.of("labels")["job"]["facets"]["sql"]["query"].startswith("-- Did the flight arrive")


def test_a_step_of_a_team_names_what_it_wrote_and_upkeep_names_nothing(sent: Sent) -> None:
    (table,) = sent.of("own")["outputs"]
    assert f"file://{table['name']}" == Warehouse.open(sent.config).table("raw.own").location()
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert sent.of("own")["inputs"] == []
    for task in ("upkeep", "backup"):
        assert (sent.of(task)["inputs"], sent.of(task)["outputs"]) == ([], [])


def test_the_parity_gate_names_the_service_that_was_materialised(sent: Sent) -> None:
    (given,) = sent.of("parity")["inputs"]
    online = sent.of("materialize")["outputs"]
    assert _identity(given)[:2] == ("feast", "delay_v1")
    assert _identity(given)[2] in {_identity(d)[2] for d in online}


def test_the_data_gate_says_what_it_asserted(sent: Sent) -> None:
    (table,) = sent.of("validate_flights")["inputs"]
    assertions = table["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert len(assertions) > 10
    assert all(a["success"] for a in assertions if a["severity"] == "error")
    assert {"expect_column_values_to_be_in_set"} <= {a["assertion"] for a in assertions}


def test_a_model_is_a_dataset(sent: Sent) -> None:
    (trained,) = sent.of("train")["outputs"]
    registered = sent.of("register")["outputs"][0]
    assert (trained["namespace"], trained["facets"]["datasetType"]["datasetType"]) == ("mlflow", "MODEL")
    assert (registered["namespace"], registered["name"]) == ("mlflow", "delay")
    assert registered["facets"]["version"]["datasetVersion"] == "1"
    assert _identity(trained) in {_identity(d) for d in sent.of("register")["inputs"]}
    assert _identity(registered) in {_identity(d) for d in sent.of("score")["inputs"]}


def test_a_reused_step_says_so_and_names_the_same_outputs(sent: Sent) -> None:
    first, again = sent.of("extract_planes"), sent.of("extract_again")
    assert again["run"]["facets"]["airloop"]["reused"] is True
    assert first["run"]["facets"]["airloop"]["reused"] is False
    assert again["run"]["facets"]["airloop"]["key"] == first["run"]["facets"]["airloop"]["key"]
    assert again["run"]["facets"]["airloop"]["madeBy"]["task_id"] == "extract_planes"
    assert [_identity(d) for d in again["outputs"]] == [_identity(d) for d in first["outputs"]]


def test_a_failed_step_names_what_it_was_given_and_made_nothing(sent: Sent) -> None:
    event = sent.of("broken", "FAIL")
    facet = event["run"]["facets"]["airloop"]
    assert (facet["status"], facet["error"]) == ("rejected", "BadArgument")
    assert [d["name"].rpartition("/")[2] for d in event["inputs"]] == ["flights"]
    assert event["outputs"] == []
    assert "no_such_column" in event["run"]["facets"]["errorMessage"]["message"]
