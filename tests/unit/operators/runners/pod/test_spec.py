"""The pod of an attempt: what it asks for, what it must not have, and where its secrets are."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airloop.contract import Call, RunInfo
from airloop.errors import BadConfiguration
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod import names
from airloop_operators.runners.pod.queues import admission
from airloop_operators.runners.pod.sizes import Patience, Pods, Pool, Size, Volume
from airloop_operators.runners.pod.spec import Made, make

LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")

ADDRESSES = {
    "AIRLOOP_WAREHOUSE": "s3://lake/warehouse",
    "AIRLOOP_CATALOG": "postgresql+psycopg://db/iceberg",
    "AIRLOOP_ARTIFACTS": "s3://lake/artifacts",
    "AIRLOOP_MLFLOW": "http://mlflow:5000",
    "AIRLOOP_ONLINE_STORE": "redis://redis:6379",
    "AIRLOOP_FEAST_REGISTRY": "postgresql+psycopg://db/feast",
}


def made_of(request: RunRequest, pods: Pods) -> Made:
    return make(request, pods, namespace="loops", spawned_at="2013-01-01T00:00:00.000+00:00")


def container(made: Made) -> dict[str, Any]:
    (found,) = made.pod["spec"]["containers"]
    return dict(found)


def plain(made: Made) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(made)["env"] if "value" in entry}


def references(made: Made) -> dict[str, tuple[str, str]]:
    found = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container(made)["env"] if "valueFrom" in e}
    return {name: (ref["name"], ref["key"]) for name, ref in found.items()}


def test_the_payload_gets_what_the_contract_says(request_of: RunRequest, pods: Pods) -> None:
    made = made_of(request_of, pods)
    assert container(made)["command"] == ["python", "-m", "airloop", "run", "train"]
    assert container(made)["image"] == "airloop:1-cpu"
    environment = plain(made)
    assert Call.from_environment(environment) == request_of.call
    assert environment["AIRLOOP_RECEIPT"] == container(made)["terminationMessagePath"] == "/dev/termination-log"
    assert container(made)["terminationMessagePolicy"] == "File"
    assert environment["AIRLOOP_LOG_FORMAT"] == "json"
    assert environment["USER"] == "airloop", "getpass finds a name, whoever the user is"
    assert environment["AIRLOOP_SPAWNED_AT"] == "2013-01-01T00:00:00.000+00:00"
    assert environment["LEVEL"] == "3"
    assert environment["AIRLOOP_THREADS"] == "1"
    assert environment["AIRLOOP_MEMORY_MB"] == "512"


def test_a_pod_is_safe_by_default(request_of: RunRequest, pods: Pods) -> None:
    made = made_of(request_of, pods)
    spec = made.pod["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(made)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for field in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert field not in spec
    writable = {mount["mountPath"] for mount in container(made)["volumeMounts"]}
    assert {"/tmp", "/airloop"} <= writable


def test_secrets_are_only_named(request_of: RunRequest, pods: Pods) -> None:
    made = made_of(request_of, pods)
    text = json.dumps(made.pod)
    assert "open/sesame" not in text
    assert "pa55-of-catalog" not in text
    assert references(made) == {
        "TOKEN": (made.name, "TOKEN"),
        # An address with a password in it is a secret, though nobody said so.
        "AIRLOOP_CATALOG": (made.name, "AIRLOOP_CATALOG"),
        "AWS_SECRET_ACCESS_KEY": ("airloop-s3", "secret_key"),
    }
    assert made.secret is not None
    data = {name: base64.b64decode(value).decode() for name, value in made.secret["data"].items()}
    assert data == {"TOKEN": "open/sesame-4711", "AIRLOOP_CATALOG": request_of.environment["AIRLOOP_CATALOG"]}
    assert plain(made)["AIRLOOP_SECRETS"] == "TOKEN,AWS_SECRET_ACCESS_KEY"
    assert "open/sesame" not in repr(made)


def test_a_call_that_has_a_secret_in_it_is_hidden_whole(request_of: RunRequest, pods: Pods) -> None:
    call = replace(request_of.call, arguments={"query": "with open/sesame-4711"})
    made = made_of(replace(request_of, call=call), pods)
    assert "sesame" not in json.dumps(made.pod)
    assert references(made)["AIRLOOP_CALL"] == (made.name, "AIRLOOP_CALL")


def test_without_secrets_there_is_no_secret(request_of: RunRequest, pods: Pods) -> None:
    request = replace(request_of, secrets={}, environment={"AIRLOOP_HOME": request_of.environment["AIRLOOP_HOME"]})
    assert made_of(request, replace(pods, secrets={})).secret is None


def test_a_tasks_own_secret_comes_before_the_configured(request_of: RunRequest, pods: Pods) -> None:
    made = made_of(replace(request_of, secrets={"AWS_SECRET_ACCESS_KEY": "of-the-task"}), pods)
    assert references(made)["AWS_SECRET_ACCESS_KEY"] == (made.name, "AWS_SECRET_ACCESS_KEY")
    assert [e["name"] for e in container(made)["env"]].count("AWS_SECRET_ACCESS_KEY") == 1


def test_a_pool_brings_the_pod_to_its_nodes(request_of: RunRequest, pods: Pods) -> None:
    made = made_of(replace(request_of, size="gpu"), pods)
    spec = made.pod["spec"]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [{"key": "pool", "value": "gpu", "effect": "NoSchedule"}]
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert spec["priorityClassName"] == "training"
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["schedulerName"] == "volcano"
    assert made.pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made.pod["metadata"]["annotations"]["note"] == "gpu"
    assert container(made)["image"] == "airloop:1-cuda"
    limits = {"cpu": "8", "memory": "32Gi", "example.com/gpu": "2"}
    assert container(made)["resources"] == {"limits": limits, "requests": limits}
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in spec["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container(made)["volumeMounts"]
    environment = plain(made)
    assert environment["NCCL_DEBUG"] == "WARN"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert environment["AIRLOOP_COLLECTIVE"] == "nccl"


@pytest.mark.parametrize(
    ("pool", "labels", "annotations", "scheduler"),
    [
        (Pool(gang="kueue", queue="team"), {"kueue.x-k8s.io/queue-name": "team"}, {}, None),
        (Pool(gang="volcano", queue="team"), {}, {"scheduling.volcano.sh/queue-name": "team"}, "volcano"),
        (Pool(gang="volcano"), {}, {}, "volcano"),
        (Pool(), {}, {}, None),
    ],
    ids=["kueue", "volcano", "volcano's default queue", "no queue"],
)
def test_a_queue_admits_it(
    request_of: RunRequest, pods: Pods, pool: Pool, labels: Any, annotations: Any, scheduler: str | None
) -> None:
    size = Size(pool="p")
    made = made_of(request_of, replace(pods, sizes={"small": size}, pools={"p": pool}))
    about = made.pod["metadata"]
    assert dict(about["labels"].items() - names.labels(request_of.call, pods.instance).items()) == labels
    assert dict(about["annotations"].items() - names.in_full(request_of.call).items()) == annotations
    assert made.pod["spec"].get("schedulerName") == scheduler


def test_several_ranks_are_admitted_together(request_of: RunRequest, pods: Pods) -> None:
    kueue = admission("kueue", "team", group="train-0123", ranks=4)
    assert kueue.labels["kueue.x-k8s.io/pod-group-name"] == "train-0123"
    assert kueue.annotations == {"kueue.x-k8s.io/pod-group-total-count": "4"}
    volcano = admission("volcano", "", group="train-0123", ranks=4)
    assert volcano.annotations == {"scheduling.k8s.io/group-name": "train-0123"}


def test_files_of_a_config_map_are_read_and_keep_nothing(request_of: RunRequest, pods: Pods) -> None:
    code = Volume(config_map="steps", path="/etc/airloop/steps")
    made = made_of(request_of, replace(pods, volumes=[*pods.volumes, code]))
    assert {"name": "volume-1", "configMap": {"name": "steps"}} in made.pod["spec"]["volumes"]
    mount = {"name": "volume-1", "mountPath": "/etc/airloop/steps", "readOnly": True}
    assert mount in container(made)["volumeMounts"]
    request = replace(request_of, environment={**request_of.environment, "AIRLOOP_MLFLOW": "/etc/airloop/steps/mlflow"})
    with pytest.raises(BadConfiguration, match="a folder of this machine that pods do not have"):
        made_of(request, replace(pods, volumes=[*pods.volumes, code]))


def test_a_size_asks_for_less_than_its_limits_and_a_task_for_more(request_of: RunRequest, pods: Pods) -> None:
    assert container(made_of(request_of, pods))["resources"] == {
        "limits": {"cpu": "1", "memory": "1Gi"},
        "requests": {"cpu": "100m", "memory": "1Gi"},
    }
    made = made_of(replace(request_of, memory_mb=3000, cpus=2.5), pods)
    limits = {"cpu": "2.5", "memory": "3000Mi"}
    assert container(made)["resources"] == {"limits": limits, "requests": limits}
    assert made.memory_bytes == 3000 << 20


@pytest.mark.parametrize(
    ("timeout_s", "run_s", "deadline_s"),
    [
        (100.5, 60.0, 121),
        (None, Patience().run_s, 7 * 24 * 3600),
        (None, 60.2, 61),
        (None, math.inf, None),
        (1e12, 60.0, 2**31 - 1),
    ],
    ids=["of its task", "default", "configured", "none", "for ever"],
)
def test_a_pod_whose_worker_is_gone_ends_by_itself(
    request_of: RunRequest, pods: Pods, timeout_s: float | None, run_s: float, deadline_s: int | None
) -> None:
    made = made_of(replace(request_of, timeout_s=timeout_s), replace(pods, patience=Patience(run_s=run_s)))
    assert made.pod["spec"].get("activeDeadlineSeconds") == deadline_s


class TestState:
    """What a step makes must outlive its pod."""

    @pytest.fixture
    def request_of(self, request_of: RunRequest) -> RunRequest:
        artifacts: Any = ADDRESSES["AIRLOOP_ARTIFACTS"]
        return replace(request_of, artifacts=artifacts)

    def test_at_addresses_needs_no_volume(self, request_of: RunRequest, pods: Pods) -> None:
        environment = {"AIRLOOP_HOME": "/home/airflow/.airloop", **ADDRESSES}
        request = replace(request_of, environment=environment)
        made = made_of(request, replace(pods, volumes=()))
        assert plain(made)["AIRLOOP_HOME"] == "/airloop", "the worker's own folder is nothing to a pod"

    @pytest.mark.parametrize("name", sorted(ADDRESSES.keys() - {"AIRLOOP_ARTIFACTS"}))
    def test_that_is_nowhere_is_refused(self, request_of: RunRequest, pods: Pods, name: str) -> None:
        environment = {key: value for key, value in ADDRESSES.items() if key != name}
        request = replace(request_of, environment=environment)
        with pytest.raises(BadConfiguration, match=f"{name} is "):
            made_of(request, replace(pods, volumes=()))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AIRLOOP_WAREHOUSE", "/srv/warehouse"),
            ("AIRLOOP_CATALOG", "sqlite:////srv/catalog.db"),
            ("AIRLOOP_MLFLOW", "file:///srv/mlflow"),
            ("AIRLOOP_ONLINE_STORE", "unix:///run/redis.sock"),
            ("AIRLOOP_WAREHOUSE", "/airloop/../srv"),
        ],
    )
    def test_in_a_folder_of_the_worker_is_refused(
        self, request_of: RunRequest, pods: Pods, name: str, value: str
    ) -> None:
        request = replace(request_of, environment={**ADDRESSES, name: value})
        with pytest.raises(BadConfiguration, match="a folder of this machine that pods do not have"):
            made_of(request, replace(pods, volumes=()))
        shared = replace(pods, volumes=[Volume(claim="c", path="/srv"), Volume(claim="r", path="/run")])
        if "/../" not in value:
            assert plain(made_of(request, shared))[name] == value

    def test_locks_of_one_machine_are_refused_without_a_shared_home(self, request_of: RunRequest, pods: Pods) -> None:
        request = replace(request_of, environment={**ADDRESSES, "AIRLOOP_LOCKS": "local", "AIRLOOP_HOME": "/srv/home"})
        with pytest.raises(BadConfiguration, match="AIRLOOP_LOCKS is local: files below AIRLOOP_HOME"):
            made_of(request, replace(pods, volumes=()))
        made_of(request, replace(pods, volumes=[Volume(claim="c", path="/srv")]))

    def test_of_the_manifests_is_where_the_runner_looks(self, request_of: RunRequest, pods: Pods) -> None:
        other = replace(request_of, environment={**ADDRESSES, "AIRLOOP_ARTIFACTS": "s3://elsewhere"})
        assert plain(made_of(other, replace(pods, volumes=())))["AIRLOOP_ARTIFACTS"] == "s3://lake/artifacts"

    def test_may_be_thrown_away_on_purpose(self, request_of: RunRequest, pods: Pods) -> None:
        environment = {**ADDRESSES, "AIRLOOP_ONLINE_STORE": "/airloop/online.db"}
        made_of(replace(request_of, environment=environment), replace(pods, volumes=()))

    def test_may_be_named_by_a_secret(self, request_of: RunRequest, pods: Pods) -> None:
        environment = {key: value for key, value in ADDRESSES.items() if key != "AIRLOOP_CATALOG"}
        secret = replace(pods, volumes=(), secrets={"AIRLOOP_CATALOG": pods.secrets["AWS_SECRET_ACCESS_KEY"]})
        made = made_of(replace(request_of, environment=environment), secret)
        assert references(made)["AIRLOOP_CATALOG"] == ("airloop-s3", "secret_key")


class TestNames:
    """No two attempts share a name, and no two texts a label."""

    def test_a_name_is_the_attempts_whoever_asks(self, request_of: RunRequest, pods: Pods) -> None:
        assert made_of(request_of, pods).name == made_of(request_of, pods).name == "train-0123456789abcdef0123"

    def test_two_long_tasks_and_two_runs_have_two_names(self, request_of: RunRequest, pods: Pods) -> None:
        found = set()
        for n, task in enumerate(("t" * 100 + "a", "t" * 100 + "b")):
            for m, run in enumerate(("r" * 80 + "1", "r" * 80 + "2")):
                call = replace(request_of.call, attempt=f"{n}{m}" * 10, run=RunInfo("d", run, task))
                pod = made_of(replace(request_of, call=call), pods).pod["metadata"]
                assert len(pod["name"]) <= 63
                assert NAME.fullmatch(pod["name"])
                labels = pod["labels"]
                found.add((pod["name"], labels["airloop/task"], labels["airloop/run"]))
                assert pod["annotations"]["airloop/task-id"] == task
        assert len({name for name, _, _ in found}) == 4
        assert len({task for _, task, _ in found}) == 2
        assert len({run for _, _, run in found}) == 2

    @given(st.text(max_size=100))
    def test_a_label_is_one(self, text: str) -> None:
        value = names.label_value(text)
        assert len(value) <= 63
        assert LABEL.fullmatch(value)
        assert bool(value) == bool(text)

    @given(st.text(max_size=80), st.text(max_size=80))
    def test_two_texts_have_two_labels(self, one: str, other: str) -> None:
        for text in (other, names.label_value(one)):
            assert (names.label_value(one) == names.label_value(text)) == (one == text)

    @given(st.text(max_size=100), st.sampled_from(["0" * 8, "0123456789abcdef0123", "f" * 64]))
    def test_a_name_is_one(self, task: str, attempt: str) -> None:
        name = names.pod_name(Call("train", {}, attempt, RunInfo("d", "r", task)))
        assert len(name) <= 63
        assert NAME.fullmatch(name)

    def test_tries_of_a_task_are_known_as_such(self, request_of: RunRequest) -> None:
        first = request_of.call
        second = replace(first, attempt="ab" * 10, run=replace(first.run, try_number=2))
        mapped = replace(first, run=replace(first.run, map_index=0))
        whose = [names.labels(call, "airloop")[names.TASK_INSTANCE] for call in (first, second, mapped)]
        assert whose[0] == whose[1] != whose[2]
        assert names.labels(first, "other")[names.TASK_INSTANCE] != whose[0]
        assert names.is_of({"labels": names.labels(first, "airloop")}, first, "airloop")
        assert not names.is_of({"labels": names.labels(second, "airloop")}, first, "airloop")
        assert not names.is_of({}, first, "airloop")


def test_a_volume_is_mounted_where_it_is_known(request_of: RunRequest, pods: Pods, state: Path) -> None:
    made = made_of(request_of, replace(pods, sizes={"small": Size(scratch="10Gi")}))
    assert {"name": "volume-0", "mountPath": str(state), "readOnly": False} in container(made)["volumeMounts"]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}} in made.pod["spec"]["volumes"]
    assert plain(made)["AIRLOOP_HOME"] == str(state)
    assert plain(made)["AIRLOOP_ARTIFACTS"] == str(state / "artifacts")
