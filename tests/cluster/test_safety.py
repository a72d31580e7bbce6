"""What pods may not do, and where secrets must not be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from airloop.contract import attempt_record_path
from airloop.errors import TryAgain
from tests.cluster.world import World

TOKEN = "open/sesame-4711 of the tests"
PASSWORD = "pa55-of-an-address"


def test_no_secret_is_anywhere(world: World) -> None:
    request = replace(
        world.request("tell", name="TOKEN"),
        secrets={"TOKEN": TOKEN},
        environment={"UPSTREAM": f"postgresql://loop:{PASSWORD}@db.example/iceberg"},
    )
    with world.underway(request) as attempt:
        pod = attempt.pod(lambda pod: True, "is there")
        outcome = attempt.outcome()
    assert isinstance(outcome.error, TryAgain)
    assert any("the secret is ***" in line for line in world.heard), "it was said, and masked"
    record = request.objects.read(attempt_record_path(request.call.attempt)) or b""
    seen = {
        "the pod": json.dumps(pod),
        "its events": json.dumps(world.events(pod)),
        "the log": "\n".join(world.heard),
        "the error": str(outcome.error),
        "the record": record.decode(),
        "the outcome": repr(outcome),
    }
    for where, text in seen.items():
        for hidden in (TOKEN, PASSWORD, "sesame", *([] if not world.real else [world.here["AWS_SECRET_ACCESS_KEY"]])):
            assert hidden not in text, where
    names = {entry["name"] for entry in pod["spec"]["containers"][0]["env"] if "valueFrom" in entry}
    assert {"TOKEN", "UPSTREAM", *world.secrets} <= names


@pytest.mark.real
def test_the_attempts_secret_goes_with_its_pod(world: World) -> None:
    request = replace(world.request("count"), secrets={"TOKEN": TOKEN})
    with world.underway(request) as attempt:
        attempt.pod(lambda pod: True, "is there")
        outcome = attempt.outcome()
        name = attempt.name
    assert outcome.error is None, outcome.error

    def gone() -> bool:
        found = world.core.list_namespaced_secret(world.namespace, field_selector=f"metadata.name={name}")
        return not found.items

    world.until(gone, f"Secret {name} is removed by the cluster")


@pytest.mark.real
def test_a_pod_may_do_little(world: World) -> None:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    paths = ["/", "/etc", "/opt", "/usr", "/var/lib", "/tmp", "/airloop", "/dev/shm", account, f"{account}/token"]
    pods = world.pods()
    outcome = world.run(world.request("look", paths=paths), pods)
    assert outcome.error is None, outcome.error
    assert outcome.manifest is not None
    found = outcome.manifest["details"]
    assert (found["uid"], found["gid"]) == (pods.user, pods.user)
    assert found["capabilities"] == 0
    assert found["no_new_privileges"] == 1
    assert found["seccomp"] == 2, "a filter"
    assert set(found["writable"]) - {"/dev/shm"} == {"/tmp", "/airloop"}
    assert account not in found["readable"], "no token of a service account"
