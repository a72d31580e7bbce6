"""The chart: it lints and renders, every object is one that Kubernetes knows, and keeps the promises of its values."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from airloop.config import S3Address
from airloop.contract import Call
from airloop_operators.provider_info import OPTIONS
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.pod.case import MARGIN_S
from airloop_operators.runners.pod.profiles import PROFILES as PROFILES_OF_ACCELERATORS
from airloop_operators.runners.pod.sizes import Patience, Pods, Pool, SecretKey, Size, parse_pods, quantity
from airloop_operators.runners.pod.spec import make as make_pod
from airloop_operators.settings import PASSED_ON
from tests.helm import Chart, named, program
from tests.unit.operators.runners.pod.test_sizes import REFUSED

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "helm" / "airloop"
S3: dict[str, Any] = {
    "state": {"kind": "s3", "s3": {"warehouse": "s3://lake/warehouse", "artifacts": "s3://lake/artifacts"}},
    "catalog": {"address": "postgresql+psycopg://airloop@db.data.svc:5432/airloop"},
    "onlineStore": {"address": "redis://10.1.2.3:6380/0"},
    "mlflow": {"address": "http://mlflow.ml.svc:5000"},
    "networkPolicy": {"stores": {"s3": {"cidrs": ["52.216.0.0/15"]}}},
}
EXECUTORS = ["LocalExecutor", "KubernetesExecutor", "LocalExecutor,KubernetesExecutor"]
PROFILES = ["", "values-kind.yaml", "values-k3s-edge.yaml", "values-gpu.yaml", "s3", "sweep"]
SWEEP: dict[str, Any] = {
    "sweep": {"enabled": True, "fernetKey": {"secret": "airflow-fernet-key"}},
    "networkPolicy": {"stores": {"airflow": {"cidrs": ["10.9.0.0/16"], "port": 6432}}},
}
SWEPT = ["values-gpu.yaml", "sweep"]
"""Profiles that have the sweep, on S3 and on a claim."""
KUBERNETES = ["1.30", "1.36"]
# Over S3's values.
REST: dict[str, Any] = {
    "catalog": {"address": "rest+https://catalog.ice.svc/v1?warehouse=lake"},
    "feastRegistry": {"address": "postgresql+psycopg://airloop@db.data.svc:5432/feast"},
    "settings": {"locks": "postgresql+psycopg://airloop@db.data.svc:5433/airloop"},
    "pods": {"secrets": {"PYICEBERG_CATALOG__AIRLOOP__CREDENTIAL": {"secret": "ice", "key": "credential"}}},
}


@pytest.fixture(scope="session")
def chart() -> Chart:
    return Chart(program(), FOLDER)


@pytest.fixture
def options(tmp_path: Path) -> Any:
    """Helm's options for a profile, with more values over it."""

    def make(profile: str, more: dict[str, Any] | None = None) -> list[str]:
        by_name = {"s3": [S3], "rest": [S3, REST], "sweep": [SWEEP]}
        trees = [*by_name.get(profile, []), more or {}]
        chosen = ["--values", str(FOLDER / profile)] if profile.endswith(".yaml") else []
        for number, tree in enumerate(trees):
            file = tmp_path / f"values-{number}.json"
            file.write_text(json.dumps(tree))
            chosen += ["--values", str(file)]
        return chosen

    return make


def pod_specs(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Specifications of the pods that objects make."""
    specs = [o["spec"]["jobTemplate"]["spec"] if o["kind"] == "CronJob" else o.get("spec", {}) for o in objects]
    return [spec["template"]["spec"] for spec in specs if "template" in spec]


def pods_file(objects: list[dict[str, Any]]) -> dict[str, Any]:
    text = named(objects, "ConfigMap", "airloop-sizes")["data"]["sizes.yaml"]
    document: dict[str, Any] = yaml.safe_load(text)
    return document


@pytest.mark.parametrize("profile", PROFILES)
def test_it_lints(chart: Chart, options: Any, profile: str) -> None:
    done = chart.lint(*options(profile))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_every_object_is_one_that_kubernetes_knows(chart: Chart, options: Any, profile: str) -> None:
    import kubernetes_validate

    objects = chart.objects(*options(profile))
    assert {o["kind"] for o in objects} >= {"ConfigMap", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"}
    for item in objects:
        for version in KUBERNETES:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_job_of_make_cluster_is_one_that_kubernetes_knows_and_uses_what_the_chart_makes(
    chart: Chart, options: Any
) -> None:
    import kubernetes_validate

    (job,) = yaml.safe_load_all((REPOSITORY / "scripts" / "cluster_loop.yaml").read_text())
    for version in KUBERNETES:
        kubernetes_validate.validate(job, version, strict=True)
    objects = chart.objects(*options("values-kind.yaml"))
    spec = job["spec"]["template"]["spec"]
    named(objects, "ServiceAccount", spec["serviceAccountName"])
    (container,) = spec["containers"]
    named(objects, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])
    volumes = {v["name"]: v for v in spec["volumes"]}
    named(objects, "ConfigMap", volumes["pods"]["configMap"]["name"])
    named(objects, "PersistentVolumeClaim", volumes["state"]["persistentVolumeClaim"]["claimName"])
    assert container["image"] == yaml.safe_load((FOLDER / "values-kind.yaml").read_text())["images"]["control"]
    (mounted,) = pods_file(objects)["volumes"]
    assert mounted["path"] in [m["mountPath"] for m in container["volumeMounts"]]
    assert pods_file(objects)["user"] == spec["securityContext"]["runAsUser"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_rights_are_these_and_no_more(chart: Chart, options: Any, profile: str, executor: str) -> None:
    objects = chart.objects(*options(profile, {"airflow": {"executor": executor}}))
    given = {
        o["metadata"]["name"]: {
            (resource, verb) for rule in o["rules"] for resource in rule["resources"] for verb in rule["verbs"]
        }
        for o in objects
        if o["kind"] == "Role"
    }
    follow = {("pods", "get"), ("pods", "list"), ("pods", "watch"), ("pods", "delete"), ("pods/log", "get")}
    expected = {
        "airloop-runner": follow
        | {("pods", "create"), ("events", "list"), ("secrets", "create"), ("secrets", "delete")},
        "airloop-triggerer": {("pods", "list"), ("pods", "watch"), ("pods", "delete")},
    }
    if "KubernetesExecutor" in executor:
        expected["airloop-executor"] = follow | {("pods", "create"), ("pods", "patch")}
    if profile in SWEPT:
        expected["airloop-sweep"] = {("pods", "list"), ("pods", "delete")}
    assert given == expected
    assert not [o for o in objects if o["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for role in (o for o in objects if o["kind"] == "Role"):
        assert all(rule["apiGroups"] == [""] for rule in role["rules"])
    bound = {
        o["roleRef"]["name"]: [(s["name"], s["namespace"]) for s in o["subjects"]]
        for o in objects
        if o["kind"] == "RoleBinding"
    }
    run_tasks = {"LocalExecutor": "airloop-scheduler", "KubernetesExecutor": "airloop-worker"}
    expected_bound = {
        "airloop-runner": [(run_tasks[one], "loops") for one in executor.split(",")],
        "airloop-triggerer": [("airloop-triggerer", "loops")],
    }
    if "KubernetesExecutor" in executor:
        expected_bound["airloop-executor"] = [("airloop-scheduler", "loops")]
    if profile in SWEPT:
        expected_bound["airloop-sweep"] = [("airloop-sweep", "loops")]
    assert bound == expected_bound


def test_rights_are_in_the_namespace_of_the_pods(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("s3", {"steps": {"namespace": "steps"}}))
    where = {(o["kind"], o["metadata"]["name"]): o["metadata"].get("namespace") for o in objects}
    for kind, name in (
        ("Role", "airloop-runner"),
        ("RoleBinding", "airloop-runner"),
        ("Role", "airloop-triggerer"),
        ("ServiceAccount", "airloop-step"),
        ("NetworkPolicy", "airloop-steps"),
    ):
        assert where[kind, name] == "steps"
    assert where["ServiceAccount", "airloop-worker"] is None
    assert pods_file(objects)["namespace"] == "steps"
    assert not [o for o in chart.objects(*options("s3", {"rbac": {"create": False}})) if "Role" in o["kind"]]


def test_steps_have_no_token_and_no_rights(chart: Chart, options: Any) -> None:
    for profile in PROFILES:
        objects = chart.objects(*options(profile))
        account = named(objects, "ServiceAccount", "airloop-step")
        assert account["automountServiceAccountToken"] is False
        subjects = [s["name"] for o in objects if o["kind"] == "RoleBinding" for s in o["subjects"]]
        assert "airloop-step" not in subjects
        file = pods_file(objects)
        assert (file["service_account"], file["service_account_token"]) == ("airloop-step", False)


def test_workload_identity_reaches_all_who_read_stores(chart: Chart, options: Any) -> None:
    def given(role: str) -> dict[str, str]:
        return {"eks.amazonaws.com/role-arn": f"arn:aws:iam::1:role/{role}"}

    exchange = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}
    more = {
        "state": {"s3": {"credentials": {"secret": ""}}},
        "steps": {"serviceAccount": {"annotations": given("steps"), "token": True}},
        "airflow": {"serviceAccount": {"annotations": given("airflow")}},
        "mlflow": {"serviceAccount": {"annotations": given("mlflow"), "token": True}},
        "networkPolicy": {"egress": [exchange]},
    }
    objects = chart.objects(*options("values-gpu.yaml", more))
    roles = dict.fromkeys(("scheduler", "worker", "triggerer", "sweep"), "airflow")
    roles |= {"step": "steps", "mlflow": "mlflow"}
    for name, role in roles.items():
        account = named(objects, "ServiceAccount", f"airloop-{name}")
        assert account["metadata"]["annotations"] == given(role)
        assert account["automountServiceAccountToken"] is True
    for name in ("steps", "mlflow", "sweep"):
        assert named(objects, "NetworkPolicy", f"airloop-{name}")["spec"]["egress"][-1] == exchange
    server = named(objects, "Deployment", "airloop-mlflow")["spec"]["template"]["spec"]
    assert server["automountServiceAccountToken"] is True
    assert not re.search("AWS_(SECRET_)?ACCESS_KEY", yaml.safe_dump_all(objects))
    plain = chart.objects(*options("values-gpu.yaml"))
    assert not [o for o in plain if o["kind"] == "ServiceAccount" and "annotations" in o["metadata"]]


def test_the_policy_of_secrets_is_for_those_who_make_them(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("s3", {"rbac": {"secretPolicy": True}, "steps": {"namespace": "steps"}}))
    policy = named(objects, "ValidatingAdmissionPolicy", "airloop-loops-secrets")["spec"]
    (condition,) = policy["matchConditions"]
    assert condition["expression"].endswith("== 'system:serviceaccount:loops:airloop-scheduler'")
    made, removed = [v["expression"] for v in policy["validations"]]
    label = "labels['airloop/instance'] == 'airloop'"
    assert f"object.metadata.{label}" in made
    assert "object.type == 'Opaque'" in made
    assert f"oldObject.metadata.{label}" in removed
    binding = named(objects, "ValidatingAdmissionPolicyBinding", "airloop-loops-secrets")["spec"]
    assert binding["validationActions"] == ["Deny"]
    assert binding["matchResources"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "steps"}}
    assert not [o for o in chart.objects(*options("s3")) if o["kind"].startswith("Validating")]
    both = {"rbac": {"secretPolicy": True}, "airflow": {"executor": EXECUTORS[-1]}}
    policy = named(chart.objects(*options("s3", both)), "ValidatingAdmissionPolicy", "airloop-loops-secrets")["spec"]
    accounts = [f"'system:serviceaccount:loops:airloop-{name}'" for name in ("scheduler", "worker")]
    alternatives = [f"request.userInfo.username == {account}" for account in accounts]
    assert policy["matchConditions"][0]["expression"] == " || ".join(alternatives)


@pytest.mark.parametrize("profile", PROFILES)
def test_containers_are_not_root_and_write_only_to_volumes(chart: Chart, options: Any, profile: str) -> None:
    more = {"mlflow": {"database": {"upgrade": True}}}
    objects = chart.objects(*options(profile, more))
    specs = pod_specs(objects)
    (job,) = yaml.safe_load_all((REPOSITORY / "scripts" / "cluster_loop.yaml").read_text())
    specs.append(job["spec"]["template"]["spec"])
    for spec in specs:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] >= 10000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
        assert all(set(v) & {"emptyDir", "configMap", "persistentVolumeClaim"} for v in spec["volumes"])
    with_token = [spec for spec in specs if spec.get("automountServiceAccountToken") is not False]
    assert [spec["serviceAccountName"] for spec in with_token] == [
        *(["airloop-sweep"] if profile in SWEPT else []), "airloop-scheduler"
    ], "those that speak to the API server"  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_secrets_are_named_and_never_held(chart: Chart, options: Any, profile: str) -> None:
    objects = chart.objects(*options(profile))
    assert not [o for o in objects if o["kind"] == "Secret"]
    text = yaml.safe_dump_all(objects)
    assert not re.search(r"://[^/@\s]*:[^/@\s]+@", text)
    for spec in pod_specs(objects):
        for container in spec["containers"]:
            for variable in container["env"]:
                if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY|SQL_ALCHEMY_CONN|FERNET", variable["name"]):
                    assert set(variable) == {"name", "valueFrom"}
    for settings in (named(objects, "ConfigMap", "airloop-settings")["data"], pods_file(objects)["environment"]):
        assert not [name for name in settings if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name)]


def test_the_secrets_of_stores_reach_pods_by_reference(chart: Chart, options: Any) -> None:
    more = {
        "onlineStore": {"address": "", "from": {"secret": "redis", "key": "url"}},
        "networkPolicy": {"stores": {"redis": {"podLabels": {"app": "redis"}, "port": 6379}}},
        "pods": {"secrets": {"HF_KEY": {"secret": "hub", "key": "key"}}},
    }
    assert pods_file(chart.objects(*options("s3", more)))["secrets"] == {
        "AWS_ACCESS_KEY_ID": {"secret": "airloop-s3", "key": "access_key_id"},
        "AWS_SECRET_ACCESS_KEY": {"secret": "airloop-s3", "key": "secret_access_key"},
        "PGPASSWORD": {"secret": "airloop-postgresql", "key": "password"},
        "AIRLOOP_ONLINE_STORE": {"secret": "redis", "key": "url"},
        "HF_KEY": {"secret": "hub", "key": "key"},
    }


def test_nothing_reaches_a_step_and_it_reaches_what_is_configured(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("s3", {"steps": {"namespace": "steps"}}))
    spec = named(objects, "NetworkPolicy", "airloop-steps")["spec"]
    assert spec["podSelector"] == {
        "matchLabels": {
            "app.kubernetes.io/name": "airloop",
            "app.kubernetes.io/component": "step",
            "airloop/instance": "airloop",
        }
    }
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == []

    def namespace(name: str) -> dict[str, Any]:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    reached = [([*rule["to"]], [(p["protocol"], p["port"]) for p in rule["ports"]]) for rule in spec["egress"]]
    assert reached == [
        ([namespace("kube-system")], [("UDP", 53), ("TCP", 53)]),
        ([{"ipBlock": {"cidr": "52.216.0.0/15"}}], [("TCP", 443)]),
        ([namespace("data")], [("TCP", 5432)]),
        ([{"ipBlock": {"cidr": "10.1.2.3/32"}}], [("TCP", 6380)]),
        ([namespace("ml")], [("TCP", 5000)]),
    ]


def test_a_rest_catalog_is_told_and_reached_beside_the_postgresql_of_locks(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("rest"))
    told = named(objects, "ConfigMap", "airloop-settings")["data"]
    assert told["AIRFLOW__AIRLOOP__CATALOG"] == REST["catalog"]["address"]
    assert told["AIRFLOW__AIRLOOP__LOCKS"] == REST["settings"]["locks"]
    assert told["AIRLOOP_FEAST_REGISTRY"] == REST["feastRegistry"]["address"]
    assert pods_file(objects)["secrets"].items() > REST["pods"]["secrets"].items()

    def reached(more: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
        policy = named(chart.objects(*options("rest", more)), "NetworkPolicy", "airloop-steps")
        # After names and S3, before Redis and MLflow.
        return [(rule["to"][0], rule["ports"][0]["port"]) for rule in policy["spec"]["egress"][2:-2]]

    ice, data = ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": n}}} for n in ("ice", "data"))
    assert reached({}) == [(ice, 443), (data, 5432), (data, 5433)]
    elsewhere = {"networkPolicy": {"stores": {"catalog": {"cidrs": ["192.0.2.0/24"], "port": 8181}}}}
    assert reached(elsewhere)[0] == ({"ipBlock": {"cidr": "192.0.2.0/24"}}, 8181)


def test_steps_on_a_volume_reach_names_only(chart: Chart, options: Any) -> None:
    spec = named(chart.objects(*options("")), "NetworkPolicy", "airloop-steps")["spec"]
    assert [[p["port"] for p in rule["ports"]] for rule in spec["egress"]] == [[53, 53]]
    more = {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}
    wider = named(chart.objects(*options("", {"networkPolicy": more})), "NetworkPolicy", "airloop-steps")["spec"]
    assert wider["egress"] == [*spec["egress"], *more["egress"]]
    objects = chart.objects(*options("", {"networkPolicy": {"enabled": False}}))
    assert not [o for o in objects if o["kind"] == "NetworkPolicy"]


def test_names_are_asked_of_a_cache_on_the_node_where_there_is_one(chart: Chart, options: Any) -> None:
    more = {"networkPolicy": {"dns": {"cidrs": ["169.254.20.10/32"]}}}
    objects = chart.objects(*options("values-gpu.yaml", more))
    for name in ("airloop-steps", "airloop-mlflow", "airloop-sweep"):
        rule = named(objects, "NetworkPolicy", name)["spec"]["egress"][0]
        assert rule["to"] == [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
            {"ipBlock": {"cidr": "169.254.20.10/32"}},
        ]
        assert [p["port"] for p in rule["ports"]] == [53, 53]


@pytest.mark.parametrize("profile", SWEPT)
def test_the_sweep_gets_what_it_needs_to_know_who_follows_a_pod(
    chart: Chart, options: Any, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airloop_operators import sweep

    objects = chart.objects(*options(profile, {"sweep": {"keepHours": 1.5}}))
    job = named(objects, "CronJob", "airloop-sweep")["spec"]
    assert (job["schedule"], job["concurrencyPolicy"]) == ("17 * * * *", "Forbid")
    spec = job["jobTemplate"]["spec"]["template"]["spec"]
    named(objects, "ServiceAccount", spec["serviceAccountName"])
    (container,) = spec["containers"]
    (settings,) = container["envFrom"]
    named(objects, "ConfigMap", settings["configMapRef"]["name"])
    volumes = {v["name"]: v for v in spec["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert volumes["airloop"]["configMap"]["name"] == "airloop-sizes"
    assert mounts["airloop"] == AIRFLOW["volumeMounts"][0]["mountPath"]
    told = {v["name"]: v.get("value") or v["valueFrom"]["secretKeyRef"] for v in container["env"]}
    database = {"name": AIRFLOW["data"]["metadataSecretName"], "key": "connection"}
    assert told.pop("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN") == database
    assert told.pop("AIRFLOW_HOME").startswith(mounts["tmp"])
    if profile == "sweep":
        # The artifact store is on the volume, where pods have it and for whom they write it.
        (state,) = pods_file(objects)["volumes"]
        assert volumes["state"]["persistentVolumeClaim"]["claimName"] == state["claim"]
        assert mounts["state"] == state["path"]
        assert spec["securityContext"]["fsGroup"] == pods_file(objects)["user"]
        assert told == {"AIRFLOW__CORE__FERNET_KEY": {"name": "airflow-fernet-key", "key": "fernet-key"}}
    else:
        assert "state" not in volumes
        assert set(told) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    asked: list[dict[str, Any]] = []

    def asked_for(**given: Any) -> bool:
        asked.append(given)
        return True

    monkeypatch.setattr(sweep, "_sweep", asked_for)
    assert container["args"][:3] == ["python", "-m", sweep.__name__]
    assert sweep.main(container["args"][3:]) == 0
    assert asked == [{"apply": True, "unknown": False, "keep_s": 5400}]
    more = chart.objects(*options(profile, {"sweep": {"unknown": True}}))
    args = pod_specs([named(more, "CronJob", "airloop-sweep")])[0]["containers"][0]["args"]
    assert args == [*container["args"][:-1], "--keep-hours=24", "--unknown"]


def test_nothing_reaches_the_sweep_and_it_reaches_what_it_asks(chart: Chart, options: Any) -> None:
    def reached(profile: str, more: dict[str, Any] | None = None) -> list[tuple[Any, list[int]]]:
        objects = chart.objects(*options(profile, more))
        policy = named(objects, "NetworkPolicy", "airloop-sweep")["spec"]
        job = named(objects, "CronJob", "airloop-sweep")["spec"]["jobTemplate"]["spec"]
        selected = policy["podSelector"]["matchLabels"].items()
        assert selected <= job["template"]["metadata"]["labels"].items()
        for item in (o for o in objects if o["kind"] == "Deployment"):
            assert not selected <= item["spec"]["template"]["metadata"]["labels"].items()
        assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
        # After names.
        return [(rule.get("to"), [p["port"] for p in rule["ports"]]) for rule in policy["egress"][1:]]

    database = [{"ipBlock": {"cidr": "10.9.0.0/16"}}]
    assert reached("sweep") == [(None, [443, 6443]), (database, [6432])]
    narrow = {"networkPolicy": {"apiServer": {"cidrs": ["192.0.2.1/32"], "ports": [6443]}}}
    assert reached("sweep", narrow)[0] == ([{"ipBlock": {"cidr": "192.0.2.1/32"}}], [6443])
    data = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}}}
    (_, (to_airflow, ports), to_s3) = reached("values-gpu.yaml")
    assert (to_airflow, ports) == ([{**data, "podSelector": {"matchLabels": {}}}], [5432])
    assert to_s3 == ([data], [9000])


def test_without_the_sweep_nothing_of_it_is_there(chart: Chart, options: Any) -> None:
    for profile in set(PROFILES) - set(SWEPT):
        objects = chart.objects(*options(profile))
        assert not [o for o in objects if o["kind"] == "CronJob" or "sweep" in o["metadata"]["name"]]


@pytest.mark.parametrize(
    "schedule", ["*/15 * * * *", "0 3 * * 1-5", "5,35 0-6/2 1 JAN,jul Sun", "@daily", "0 0 1 1 *"]
)  # fmt: skip
def test_the_sweep_comes_when_cron_says(chart: Chart, options: Any, schedule: str) -> None:
    objects = chart.objects(*options("sweep", {"sweep": {"schedule": schedule}}))
    assert named(objects, "CronJob", "airloop-sweep")["spec"]["schedule"] == schedule


def test_mlflow_is_reached_by_steps_and_airflow_under_its_own_name(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("values-gpu.yaml"))
    policy = named(objects, "NetworkPolicy", "airloop-mlflow")["spec"]
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    steps = named(objects, "NetworkPolicy", "airloop-steps")["spec"]
    assert policy["ingress"][0]["from"] == [
        {"podSelector": {}},
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "airloop-steps"}},
            "podSelector": steps["podSelector"],
        },
    ]
    address = named(objects, "ConfigMap", "airloop-settings")["data"]["AIRFLOW__AIRLOOP__MLFLOW"]
    service = named(objects, "Service", "airloop-mlflow")
    assert address == "http://airloop-mlflow.loops.svc:5000"
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["port"] == 5000
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (hosts,) = [v["value"] for v in container["env"] if v["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    right = ["airloop-mlflow.loops.svc:5000", "airloop-mlflow:5000", "airloop-mlflow.loops.svc.cluster.local:5000"]
    program = f"""
from mlflow.server.security_utils import is_allowed_host_header
print([is_allowed_host_header({hosts.split(",")}, host) for host in {[*right, "evil.example.com"]}])
"""
    asked = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert asked.stdout.split("\n")[-2] == "[True, True, True, False]"


def test_the_tables_of_mlflow_are_made_before_its_servers_start_if_asked(chart: Chart, options: Any) -> None:
    import kubernetes_validate

    assert not [o for o in chart.objects(*options("values-gpu.yaml")) if o["kind"] == "Job"]
    objects = chart.objects(*options("values-gpu.yaml", {"mlflow": {"database": {"upgrade": True}}}))
    job = named(objects, "Job", "airloop-mlflow-upgrade")
    for version in KUBERNETES:
        kubernetes_validate.validate(job, version, strict=True)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]
    # It is no server: the service must not lead to it.
    service = named(objects, "Service", "airloop-mlflow")["spec"]["selector"]
    assert not service.items() <= pod["metadata"]["labels"].items()
    (upgrade,) = pod["spec"]["containers"]
    (server,) = named(objects, "Deployment", "airloop-mlflow")["spec"]["template"]["spec"]["containers"]
    assert upgrade["image"] == server["image"]
    assert upgrade["args"] == ["mlflow", "db", "upgrade", "$(MLFLOW_BACKEND_STORE_URI)"]
    assert {v["name"] for v in upgrade["env"]} >= {"MLFLOW_BACKEND_STORE_URI", "PGPASSWORD"}
    assert [v for v in upgrade["env"] if v not in server["env"]] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_the_pod_runner_reads_its_file(chart: Chart, options: Any, profile: str) -> None:
    file = pods_file(chart.objects(*options(profile)))
    pods = parse_pods(file, origin="sizes.yaml")
    for size in pods.sizes:
        assert pods.place(size).image
    schema = json.loads((FOLDER / "values.schema.json").read_text())["properties"]["pods"]["properties"]
    for kind, given in (
        (Size, schema["sizes"]["additionalProperties"]["properties"]),
        (Pool, schema["pools"]["additionalProperties"]["properties"]),
        (Patience, schema["patience"]["properties"]),
        (SecretKey, schema["secrets"]["additionalProperties"]["properties"]),
    ):
        assert set(given) == {f.name for f in dataclasses.fields(kind)}
    made = {"namespace", "instance", "images", "pull_policy", "pull_secrets", "origin"}
    made |= {"service_account", "service_account_token"}
    assert set(schema) | made == {f.name for f in dataclasses.fields(Pods)}
    accelerators = schema["pools"]["additionalProperties"]["properties"]["accelerator"]["enum"]
    assert accelerators == list(PROFILES_OF_ACCELERATORS)
    known = {
        name: {"variant": its.variant, "resource": its.resource, "most": its.most, "backends": list(its.backends)}
        for name, its in PROFILES_OF_ACCELERATORS.items()
    }
    told = {name: {k: v for k, v in its.items() if v} for name, its in known.items()}
    assert yaml.safe_load((FOLDER / "accelerators.yaml").read_text()) == told


@pytest.mark.parametrize("profile", [*PROFILES, "rest"])
def test_a_pod_of_the_runner_is_whole_with_what_the_chart_tells(chart: Chart, options: Any, profile: str) -> None:
    import kubernetes_validate

    objects = chart.objects(*options(profile))
    told = named(objects, "ConfigMap", "airloop-settings")["data"]
    # As the settings of an operator read them.
    given = {f"AIRLOOP_{n.upper()}": told.get(f"AIRFLOW__AIRLOOP__{n.upper()}") for n in PASSED_ON}
    environment = {name: value for name, value in given.items() if value}
    at = environment.get("AIRLOOP_ARTIFACTS", "/var/lib/airloop/artifacts")
    pods = parse_pods(pods_file(objects), origin="sizes.yaml")
    for size in pods.sizes:
        call = Call("extract", {}, "0123456789abcdef")
        artifacts: Any = S3Address.parse(at) or Path(at)
        request = RunRequest(call=call, artifacts=artifacts, environment=environment, size=size)
        made = make_pod(request, pods, namespace=pods.namespace, spawned_at="2026-01-01T00:00:00+00:00")
        for version in KUBERNETES:
            kubernetes_validate.validate(made.pod, version, strict=True)
        assert made.secret is None, "the chart tells nothing that has to be hidden"
        assert made.pod["spec"]["serviceAccountName"] == "airloop-step"
        assert made.pod["spec"]["automountServiceAccountToken"] is False
        policy = named(objects, "NetworkPolicy", "airloop-steps")["spec"]["podSelector"]["matchLabels"]
        assert policy.items() <= made.pod["metadata"]["labels"].items()


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_are_options_that_airloop_has(chart: Chart, options: Any, profile: str) -> None:
    data = named(chart.objects(*options(profile)), "ConfigMap", "airloop-settings")["data"]
    found = {n.removeprefix("AIRFLOW__AIRLOOP__").lower() for n in data if n.startswith("AIRFLOW__AIRLOOP__")}
    assert found <= set(OPTIONS)
    assert data["AIRFLOW__AIRLOOP__RUNNER"] == "pod"


def test_settings_tell_airflow_where_state_is(chart: Chart, options: Any) -> None:
    more = {
        "settings": {"memory_mb": 1048576, "runner": "local"},
        "state": {"s3": {"endpoint": "http://minio.data.svc:9000"}},
    }
    assert named(chart.objects(*options("s3", more)), "ConfigMap", "airloop-settings")["data"] == {
        "AIRFLOW__AIRLOOP__RUNNER": "local",
        "AIRFLOW__AIRLOOP__SIZES": "/etc/airloop/sizes.yaml",
        "AIRFLOW__AIRLOOP__WAREHOUSE": "s3://lake/warehouse",
        "AIRFLOW__AIRLOOP__ARTIFACTS": "s3://lake/artifacts",
        "AIRFLOW__AIRLOOP__CATALOG": "postgresql+psycopg://airloop@db.data.svc:5432/airloop",
        "AIRFLOW__AIRLOOP__MLFLOW": "http://mlflow.ml.svc:5000",
        "AIRFLOW__AIRLOOP__MEMORY_MB": "1048576",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://minio.data.svc:9000",
        "AIRLOOP_FEAST_REGISTRY": "postgresql+psycopg://airloop@db.data.svc:5432/airloop",
        "AIRLOOP_ONLINE_STORE": "redis://10.1.2.3:6380/0",
    }


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_warm_process_where_a_tasks_pod_ends_with_it(chart: Chart, options: Any, executor: str) -> None:
    objects = chart.objects(*options("", {"airflow": {"executor": executor}}))
    told = named(objects, "ConfigMap", "airloop-settings")["data"]
    assert told.get("AIRFLOW__AIRLOOP__WARM") == ("False" if executor == "KubernetesExecutor" else None)
    other = chart.objects(*options("", {"airflow": {"executor": executor}, "settings": {"warm": True}}))
    assert named(other, "ConfigMap", "airloop-settings")["data"]["AIRFLOW__AIRLOOP__WARM"] == "true"


def test_a_claim_is_made_kept_and_mounted(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options(""))
    claim = named(objects, "PersistentVolumeClaim", "airloop-state")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    file = pods_file(objects)
    assert file["volumes"] == [{"claim": "airloop-state", "path": "/var/lib/airloop"}]
    assert file["environment"]["AIRLOOP_HOME"] == "/var/lib/airloop"
    assert named(objects, "ConfigMap", "airloop-settings")["data"]["AIRFLOW__AIRLOOP__HOME"] == "/var/lib/airloop"
    existing = chart.objects(*options("", {"state": {"claim": {"existing": "loops-disk"}}}))
    assert not [o for o in existing if o["kind"] == "PersistentVolumeClaim"]
    assert pods_file(existing)["volumes"] == [{"claim": "loops-disk", "path": "/var/lib/airloop"}]


def test_quota_and_priority_classes(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("values-k3s-edge.yaml"))
    quota = named(objects, "ResourceQuota", "airloop")["spec"]
    assert quota["scopeSelector"]["matchExpressions"] == [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["airloop-step"]}
    ]
    assert named(objects, "PriorityClass", "airloop-step")["preemptionPolicy"] == "Never"
    file = pods_file(objects)
    used = {file["pools"][size["pool"]]["priority_class"] for size in file["sizes"].values()}
    assert used == {"airloop-step"}
    memory = {name: size["memory"] for name, size in file["sizes"].items()}
    assert memory["large"] == quota["hard"]["limits.memory"], "the largest size would never start"
    assert not [o for o in chart.objects(*options("")) if o["kind"] in ("ResourceQuota", "PriorityClass")]


WRONG: list[tuple[str, dict[str, Any], list[str]]] = [
    ("", {"state": {"kind": "nfs"}}, ["state.kind", '"claim", "s3"']),
    ("", {"state": {"kindd": "s3"}}, ["state", "kindd", "not allowed"]),
    ("", {"airflow": {"executor": "CeleryExecutor"}}, ["airflow.executor", '"LocalExecutor", "KubernetesExecutor"']),
    ("", {"images": {"pullPolicy": "Sometimes"}}, ["images.pullPolicy", '"Always", "IfNotPresent", "Never"']),
    ("", {"images": {"control": "Airloop:latest!"}}, ["images.control", "Airloop:latest!", "registry.example.com"]),
    ("", {"images": {"payload": {"cpu": ""}}}, ["images.payload.cpu is empty", "registry.example.com"]),
    ("", {"mlflow": {"replicas": "two"}}, ["mlflow.replicas", "integer", "string"]),
    ("", {"rbac": {"create": "yes"}}, ["rbac.create", "boolean", "string"]),
    ("", {"settings": {"warehouse": "s3://x/y"}}, ["settings.warehouse", "set state, catalog, mlflow or pods instead"]),
    ("", {"state": {"claim": {"path": "state"}}}, ["state.claim.path", '"state"', "/var/lib/airloop"]),
    ("", {"state": {"claim": {"accessMode": "ReadOnlyMany"}}}, ["state.claim.accessMode", "ReadWriteOnce"]),
    ("", {"steps": {"namespace": "elsewhere"}}, ["steps.namespace", "elsewhere", "leave steps.namespace empty"]),
    ("", {"mlflow": {"deploy": True}}, ["mlflow.deploy", "state.kind s3 only"]),
    ("", {"fullnameOverride": "Air_Loop"}, ['fullnameOverride is "Air_Loop"', "like airloop"]),
    ("s3", {"state": {"s3": {"warehouse": ""}}}, ["state.s3.warehouse is empty", "s3://bucket/prefix"]),
    ("s3", {"state": {"s3": {"artifacts": "gs://x/y"}}}, ["state.s3.artifacts", "gs://x/y", "s3://bucket/prefix"]),
    ("s3", {"state": {"s3": {"endpoint": "minio:9000"}}}, ["state.s3.endpoint", "http://minio.data.svc:9000"]),
    ("s3", {"catalog": {"address": ""}}, ["catalog.address is empty", "postgresql+psycopg://"]),
    ("s3", {"catalog": {"address": "sqlite:////tmp/x.db"}}, ["catalog.address", "sqlite:////tmp/x.db"]),
    (
        "s3",
        {"catalog": {"address": "postgresql+psycopg://a:hunter2@db.data.svc"}},
        ["catalog.address holds a password"],
    ),
    ("s3", {"catalog": {"address": "postgresql+psycopg://db.data.svc/x?password=hunter2"}}, ["holds a password"]),
    (
        "s3",
        {"catalog": {"address": "postgresql+psycopg://airloop@db.data.svc:5432"}},
        ["catalog.address", ":5432/airloop"],
    ),
    ("rest", {"settings": {"locks": ""}}, ["settings.locks is empty", "postgresql+psycopg://"]),
    ("rest", {"settings": {"locks": "local"}}, ['settings.locks is "local"', "postgresql+psycopg://"]),
    ("rest", {"feastRegistry": {"address": ""}}, ["feastRegistry.address is empty", "postgresql+psycopg://"]),
    ("rest", {"catalog": {"address": "rest+ftp://catalog.ice.svc"}}, ["catalog.address", "rest+https://"]),
    ("rest", {"catalog": {"address": "rest+https://a:hunter2@catalog.ice.svc"}}, ["catalog.address holds a password"]),
    ("s3", {"settings": {"locks": "postgresql+psycopg://a:hunter2@db/x"}}, ["settings.locks holds a password"]),
    ("s3", {"onlineStore": {"address": "redis://:hunter2@r.data.svc:6379"}}, ["onlineStore.address holds a password"]),
    ("s3", {"onlineStore": {"address": "memcached://x"}}, ["onlineStore.address", "redis://redis.data.svc:6379/0"]),
    ("s3", {"onlineStore": {"address": ""}}, ["there is no online store", "onlineStore.from.secret"]),
    ("s3", {"onlineStore": {"from": {"secret": "redis"}}}, ["onlineStore.address and onlineStore.from.secret"]),
    ("s3", {"mlflow": {"address": ""}}, ["there is no MLflow", "mlflow.deploy: true"]),
    ("s3", {"mlflow": {"deploy": True}}, ["mlflow.address and mlflow.deploy are both set"]),
    ("s3", {"mlflow": {"address": "", "deploy": True}}, ["mlflow.database.address is empty", "postgresql+psycopg://"]),
    (
        "s3",
        {"networkPolicy": {"stores": {"s3": {"cidrs": []}}}},
        ["where s3 is", "s3.us-east-1.amazonaws.com", "cidrs"],
    ),
    (
        "s3",
        {"onlineStore": {"address": "", "from": {"secret": "cache"}}},
        ["where redis is", "its address is in Secret cache, which Helm does not read", "stores.redis"],
    ),
    ("s3", {"mlflow": {"address": "https://ml.example.com"}}, ["where mlflow is", "ml.example.com", "stores.mlflow"]),
    ("", {"networkPolicy": {"stores": {"kafka": {}}}}, ["networkPolicy.stores", "kafka", "not allowed"]),
    ("", {"networkPolicy": {"stores": {"s3": {"cidrs": ["everywhere"]}}}}, ["s3.cidrs[0]", "10.0.0.0/24"]),
    ("", {"pods": {"default": "tiny"}}, ["pods.default", '"tiny"', "large, small"]),
    ("", {"pods": {"sizes": {"small": {"pool": "gpu"}}}}, ["pods.sizes.small.pool", '"gpu"', "pods.pools has: none"]),
    ("", {"pods": {"sizes": {"small": {"gpus": 1}}}}, ["pods.sizes.small", "gpus", "not allowed"]),
    ("", {"pods": {"sizes": {"small": {"accelerators": -1}}}}, ["pods.sizes.small.accelerators", "0"]),
    ("", {"pods": {"pools": {"g": {"accelerator": "voodoo"}}}}, ["pods.pools.g.accelerator", '"nvidia"']),
    ("", {"pods": {"pools": {"g": {"accelerator": "nvidia"}}}}, ["images.payload.cuda", "images.payload has: cpu"]),
    ("", {"pods": {"user": 0}}, ["pods.user", "1"]),
    ("", {"pods": {"environment": {"HF_TOKEN": "hf_1"}}}, ["pods.environment.HF_TOKEN", "pods.secrets"]),
    ("", {"pods": {"environment": {"AIRLOOP_HOME": "/x"}}}, ["pods.environment.AIRLOOP_HOME", "set state"]),
    ("", {"pods": {"secrets": {"A": {"secret": "s"}}}}, ["pods.secrets.A", "key"]),
    ("", {"pods": {"patience": {"grace_s": 0}}}, ["pods.patience.grace_s", "0"]),
    ("", {"priorityClasses": [{"name": "x"}]}, ["priorityClasses.0", "value"]),
    ("", {"priorityClasses": [{"name": "X", "value": 1}]}, ['priorityClasses[0].name is "X"', "airloop-batch"]),
    ("s3", {"steps": {"namespace": "my_steps"}}, ['steps.namespace is "my_steps"', "loops-steps"]),
    ("", {"pods": {"volumes": [{"claim": "c", "path": "data"}]}}, ['pods.volumes[0].path is "data"', "/srv/data"]),
    ("", {"settings": {"runer": "pod"}}, ["settings", "runer", '"runner", "home", "warehouse"']),
    ("", {"state": {"claim": {"size": "20 Gigs"}}}, ['state.claim.size is "20 Gigs"', "4Gi"]),
    ("", {"pods": {"sizes": {"small": {"memory": "2GB"}}}}, ['pods.sizes.small.memory is "2GB"', "4Gi"]),
    ("", {"quota": {"hard": {"pods": "many"}}}, ['quota.hard.pods is "many"', "500m"]),
    ("", {"quota": {"hard": {"pods": ["1"]}}}, ["quota.hard.pods", "array"]),
    ("", {"mlflow": {"resources": {"limits": {"memory": "2 Gi"}}}}, ['mlflow.resources.limits.memory is "2 Gi"']),
    ("", {"networkPolicy": {"stores": {"s3": {"cidrs": ["999.1.1.1/77"]}}}}, ["s3.cidrs[0]", "10.0.0.0/24"]),
    ("", {"networkPolicy": {"dns": {"cidrs": ["169.254.20.10"]}}}, ["networkPolicy.dns.cidrs[0]", "10.0.0.0/24"]),
    ("", {"networkPolicy": {"egress": [{"too": 1}]}}, ["networkPolicy.egress.0", "too", "not allowed"]),
    ("", {"networkPolicy": {"apiServer": {"cidrs": ["master"]}}}, ["networkPolicy.apiServer.cidrs[0]", "10.0.0.0/24"]),
    ("", {"networkPolicy": {"apiServer": {"ports": [0]}}}, ["networkPolicy.apiServer.ports.0", "1"]),
    ("", {"sweep": {"enabled": True}}, ["where airflow is", "networkPolicy.stores.airflow"]),
    ("sweep", {"sweep": {"schedule": ""}}, ["sweep.schedule is empty", "17 * * * *"]),
    ("sweep", {"sweep": {"schedule": "hourly"}}, ['sweep.schedule is "hourly"', "@daily"]),
    ("sweep", {"sweep": {"schedule": "17 * * *"}}, ['sweep.schedule is "17 * * *"', "17 * * * *"]),
    ("", {"sweep": {"shedule": "@daily"}}, ["sweep", "shedule", "not allowed"]),
    ("", {"sweep": {"keepHours": -1}}, ["sweep.keepHours", "0"]),
    ("", {"sweep": {"unknown": "yes"}}, ["sweep.unknown", "boolean", "string"]),
    ("", {"sweep": {"resources": {"limits": {"memory": "1 Gi"}}}}, ['sweep.resources.limits.memory is "1 Gi"']),
    ("sweep", {"sweep": {"database": {"secret": ""}}}, ["sweep.database.secret is empty", "airloop-airflow-database"]),
    (
        "sweep",
        {"sweep": {"database": {"secret": "postgresql://a:hunter2@db/airflow"}}},
        ["sweep.database.secret holds an address", "airloop-airflow-database"],
    ),
    ("", {"pods": {"pools": {"g": {"tolerations": [{"taint": "x"}]}}}}, ["tolerations.0", "taint", "not allowed"]),
    ("", {"pods": {"pools": {"g": {"tolerations": [{"effect": "No"}]}}}}, ["tolerations.0.effect", '"NoSchedule"']),
    ("", {"pods": {"pools": {"g": {"affinity": {"node": {}}}}}}, ["affinity", "node", "not allowed"]),
]


@pytest.mark.parametrize(("profile", "more", "said"), WRONG, ids=lambda v: json.dumps(v) if isinstance(v, dict) else "")
def test_a_wrong_value_is_refused_with_its_name_and_what_would_be_right(
    chart: Chart, options: Any, profile: str, more: dict[str, Any], said: list[str]
) -> None:
    message = chart.refused(*options(profile, more))
    # Newer ones write state.kind as '/state/kind', and other quotes.
    normal = message.replace("'", '"').replace("/", ".")
    for part in said:
        assert part in message or part in normal
    assert "hunter2" not in message
    assert "hf_1" not in message


# Helm lays values over the defaults, so a size that is not given is there all the same.
REFUSED_PODS = [document for document, _ in REFUSED if document != {"sizes": {"big": {}}}]


@pytest.mark.parametrize("document", REFUSED_PODS, ids=json.dumps)
def test_what_the_pod_runner_refuses_the_chart_refuses_too(
    chart: Chart, options: Any, document: dict[str, Any]
) -> None:
    images = {profile.variant: f"airloop:{profile.variant}" for profile in PROFILES_OF_ACCELERATORS.values()}
    message = chart.refused(*options("", {"images": {"payload": images}, "pods": document}))
    assert "pods" in message
    assert any(name in message for name in [*document, "default"]), message


def test_amounts_and_ranges_are_taken_however_they_are_written(chart: Chart, options: Any) -> None:
    small = {"cpu": 2, "memory": 4294967296, "requests": {"cpu": ".5", "memory": "512Mi"}, "shared_memory": "1.5Gi"}
    more = {
        "pods": {"sizes": {"small": {**small, "scratch": "10G"}}},
        "quota": {"hard": {"pods": 0, "limits.memory": "1Ti"}},
        "networkPolicy": {"stores": {"s3": {"cidrs": ["10.0.0.0/8", "255.255.255.255/32", "::1/128", "fd00::/8"]}}},
    }
    size = parse_pods(pods_file(chart.objects(*options("s3", more))), origin="sizes.yaml").sizes["small"]
    assert [quantity(size.cpu), quantity(size.memory)] == [2, 4 << 30]


def open_places(schema: dict[str, Any], at: str = "") -> set[str]:
    """Where a schema takes anything."""
    kinds = schema.get("type", [])
    if "properties" in schema or "additionalProperties" in schema or kinds == "object":
        inside = {**schema.get("properties", {}), "*": schema.get("additionalProperties", {})}
        below = [open_places(its, f"{at}.{name}".lstrip(".")) for name, its in inside.items() if its is not False]
        return set[str]().union(*below)
    if kinds == "array":
        return open_places(schema.get("items", {}), f"{at}.*")
    return set() if kinds or {"enum", "anyOf"} & set(schema) else {at}


def test_no_value_is_taken_whatever_it_is() -> None:
    """But what Kubernetes' own objects have inside, and what helm gives to all charts."""
    schema = json.loads((FOLDER / "values.schema.json").read_text())
    kubernetes = {
        f"{at}.*"
        for at in (
            "pods.pools.*.affinity.nodeAffinity",
            "pods.pools.*.affinity.podAffinity",
            "pods.pools.*.affinity.podAntiAffinity",
            "networkPolicy.egress.*.to.*.ipBlock",
            "networkPolicy.egress.*.to.*.namespaceSelector",
            "networkPolicy.egress.*.to.*.podSelector",
        )
    }
    assert open_places(schema) == kubernetes | {"global.*"}
    assert schema["properties"]["settings"]["propertyNames"]["enum"] == list(OPTIONS)


# --- the official Airflow chart ------------------------------------------------------------------------------------

AIRFLOW = yaml.safe_load((FOLDER / "airflow-values.yaml").read_text())
CLAIM = yaml.safe_load((FOLDER / "airflow-values-claim.yaml").read_text())
IN_PODS = yaml.safe_load((FOLDER / "airflow-values-kubernetes.yaml").read_text())
# As its own values document them, and its release notes up to 1.22: what is used here, no more. `*`: anything below.
DOCUMENTED = [
    "airflowVersion", "allowPodLaunching", "apiServer.startupProbe.failureThreshold", "config.core.*",
    "config.kubernetes_executor.*", "createUserJob.enabled",
    "dagProcessor.livenessProbe.*", "dagProcessor.logGroomerSidecar.enabled",
    "dagProcessor.serviceAccount.automountServiceAccountToken",
    "data.metadataSecretName", "defaultAirflowRepository", "defaultAirflowTag", "executor", "extraEnvFrom", "gid",
    "logs.persistence.enabled",
    "postgresql.enabled", "scheduler.livenessProbe.*", "scheduler.logGroomerSidecar.enabled",
    "scheduler.serviceAccount.create", "scheduler.serviceAccount.name", "scheduler.startupProbe.*", "secret",
    "securityContexts.containers.*", "securityContexts.pod.*",
    "statsd.enabled", "triggerer.env", "triggerer.livenessProbe.*", "triggerer.logGroomerSidecar.enabled",
    "triggerer.persistence.enabled", "triggerer.serviceAccount.create", "triggerer.serviceAccount.name",
    "uid", "volumeMounts", "volumes", "workers.celery.persistence.size",
    "workers.kubernetes.serviceAccount.create", "workers.kubernetes.serviceAccount.name", "workers.resources.*",
    "workers.serviceAccount.create", "workers.serviceAccount.name",
]  # fmt: skip


def leaves(tree: Any, above: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [above]
    return [leaf for key, value in tree.items() for leaf in leaves(value, f"{above}.{key}".lstrip("."))]


def merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As helm lays one file of values over another."""
    both = {key: merged(below[key], value) if isinstance(value, dict) else value for key, value in over.items()}
    return {**below, **both}


def test_values_for_airflow_are_keys_that_its_chart_documents() -> None:
    for leaf in [*leaves(AIRFLOW), *leaves(CLAIM), *leaves(IN_PODS)]:
        assert any(leaf == key or (key.endswith("*") and leaf.startswith(key[:-1])) for key in DOCUMENTED), leaf


def test_values_for_airflow_name_what_the_chart_makes(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options("s3", {"airflow": {"executor": AIRFLOW["executor"]}}))
    defaults = yaml.safe_load((FOLDER / "values.yaml").read_text())
    assert AIRFLOW["executor"] == defaults["airflow"]["executor"]
    assert f"{AIRFLOW['defaultAirflowRepository']}:{AIRFLOW['defaultAirflowTag']}" == defaults["images"]["control"]
    workers = AIRFLOW["workers"]
    for account in (AIRFLOW["scheduler"], AIRFLOW["triggerer"], workers, workers["kubernetes"]):
        named(objects, "ServiceAccount", account["serviceAccount"]["name"])
    (settings,) = yaml.safe_load(AIRFLOW["extraEnvFrom"])
    named(objects, "ConfigMap", settings["configMapRef"]["name"])
    named(objects, "ConfigMap", AIRFLOW["volumes"][0]["configMap"]["name"])
    sizes = named(objects, "ConfigMap", "airloop-settings")["data"]["AIRFLOW__AIRLOOP__SIZES"]
    assert sizes.startswith(AIRFLOW["volumeMounts"][0]["mountPath"])
    given = {s["envName"]: {"secret": s["secretName"], "key": s["secretKey"]} for s in AIRFLOW["secret"]}
    assert given == pods_file(objects)["secrets"]
    # As a claim's files are theirs too.
    assert AIRFLOW["securityContexts"]["pod"]["runAsUser"] == AIRFLOW["uid"]


def test_the_api_server_asks_a_triggerer_without_a_volume_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Airflow reads it; its own default is a name, which DNS has for the pods of a StatefulSet only."""
    from airflow.configuration import conf
    from airflow.utils import net

    (variable,) = AIRFLOW["triggerer"]["env"]
    assert AIRFLOW["triggerer"]["persistence"]["enabled"] is False
    assert conf.getimport("core", "hostname_callable") is net.getfqdn
    monkeypatch.setenv(variable["name"], variable["value"])
    assert conf.getimport("core", "hostname_callable") is net.get_host_ip_address


def test_values_for_airflow_on_a_volume_mount_it_where_pods_have_it(chart: Chart, options: Any) -> None:
    objects = chart.objects(*options(""))
    (state,) = [v for v in CLAIM["volumes"] if "persistentVolumeClaim" in v]
    paths = {m["name"]: m["mountPath"] for m in CLAIM["volumeMounts"]}
    (mounted,) = pods_file(objects)["volumes"]
    assert state["persistentVolumeClaim"]["claimName"] == mounted["claim"]
    assert paths[state["name"]] == mounted["path"]
    assert pods_file(objects)["user"] == AIRFLOW["uid"]
    assert (CLAIM["secret"], pods_file(objects)["secrets"]) == ([], {})


def test_pods_of_tasks_get_what_the_chart_makes(chart: Chart, options: Any) -> None:
    """The template that people are given, beside the values for the official chart, which makes one of its own."""
    import kubernetes_validate

    executor = {"airflow": {"executor": IN_PODS["executor"]}}
    objects = chart.objects(*options("s3", executor))
    template = yaml.safe_load((FOLDER / "worker-pod.yaml").read_text())
    for version in KUBERNETES:
        kubernetes_validate.validate(template, version, strict=True)
    spec = template["spec"]
    (container,) = spec["containers"]
    assert (container["name"], "command" in container, "args" in container) == ("base", False, False)
    assert container["image"] == yaml.safe_load((FOLDER / "values.yaml").read_text())["images"]["control"]
    (bound,) = named(objects, "RoleBinding", "airloop-runner")["subjects"]
    assert spec["serviceAccountName"] == bound["name"] == AIRFLOW["workers"]["serviceAccount"]["name"]
    assert container["envFrom"] == yaml.safe_load(AIRFLOW["extraEnvFrom"])
    volumes = {v["name"]: v for v in spec["volumes"]}
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    assert [volumes["airloop"], mounts["airloop"]] == [*AIRFLOW["volumes"], *AIRFLOW["volumeMounts"]]
    refs = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
    given = {s["envName"]: {"name": s["secretName"], "key": s["secretKey"]} for s in AIRFLOW["secret"]}
    assert refs == given
    plain = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    assert plain["AIRFLOW_HOME"] == mounts["airflow"]["mountPath"]
    assert spec["securityContext"]["runAsUser"] == AIRFLOW["uid"]
    assert container["securityContext"] == {**AIRFLOW["securityContexts"]["containers"], "readOnlyRootFilesystem": True}
    grace_s = parse_pods(pods_file(objects), origin="sizes.yaml").patience.grace_s
    assert spec["terminationGracePeriodSeconds"] > 2 * (grace_s + MARGIN_S)


@pytest.fixture
def together(tmp_path: Path) -> Path:
    """The chart of both, with a stand-in for Airflow's that tells which values reached it."""
    folder = tmp_path / "airloop-with-airflow"
    shutil.copytree(REPOSITORY / "helm" / "airloop-with-airflow", folder)
    shutil.copytree(FOLDER, folder / "charts" / "airloop")
    stand_in = folder / "charts" / "airflow"
    (stand_in / "templates").mkdir(parents=True)
    (stand_in / "Chart.yaml").write_text("{apiVersion: v2, name: airflow, version: 1.22.0}")
    (stand_in / "templates" / "told.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: told}\ndata: {values: {{ .Values | toJson | quote }}}\n"
    )
    return folder


def test_both_charts_as_one_release(chart: Chart, together: Path) -> None:
    both = Chart(chart.helm, together, release="loops")
    assert both.lint().returncode == 0, both.lint().stdout
    objects = both.objects()
    named(objects, "ConfigMap", "airloop-settings")
    told = json.loads(named(objects, "ConfigMap", "told")["data"]["values"])
    assert {key: value for key, value in told.items() if key not in ("enabled", "global")} == merged(AIRFLOW, CLAIM)
    # The two parts of its defaults fit each other: state is on a claim, and Airflow has that.
    claim = named(objects, "PersistentVolumeClaim", "airloop-state")["metadata"]["name"]
    assert [v["persistentVolumeClaim"]["claimName"] for v in told["volumes"] if "persistentVolumeClaim" in v] == [claim]
    assert (told["secret"], pods_file(objects)["secrets"]) == ([], {})
    alone = both.objects("--set", "airflow.enabled=false")
    assert not [o for o in alone if o["metadata"]["name"] == "told"]
    named(alone, "ConfigMap", "airloop-settings")


@pytest.fixture
def next_steps(chart: Chart, options: Any, tmp_path: Path) -> Any:
    """What is said when a release of these values is installed; `helm template` leaves it out."""
    folder = tmp_path / "notes"
    shutil.copytree(FOLDER, folder)
    (folder / "templates" / "told.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: told}\n"
        'data: {text: {{ include (print $.Template.BasePath "/NOTES.txt") . | quote }}}\n'
    )

    def ask(profile: str, more: dict[str, Any] | None = None, release: str = "airloop") -> str:
        objects = Chart(chart.helm, folder, release=release).objects(*options(profile, more))
        text: str = named(objects, "ConfigMap", "told")["data"]["text"]
        return text

    return ask


ON_A_CLAIM = "-f airflow-values.yaml -f airflow-values-claim.yaml"
OF_A_PORT = "registry.example.com:5000/airloop/control"
DIGEST = "0a" * 32


@pytest.mark.parametrize(
    ("profile", "more", "files", "also"),
    [
        ("", {}, ON_A_CLAIM, []),
        ("values-k3s-edge.yaml", {}, ON_A_CLAIM, []),
        ("s3", {}, "-f airflow-values.yaml", []),
        ("values-gpu.yaml", {},
         "-f airflow-values.yaml -f airflow-values-kubernetes.yaml --set-string "
         "'defaultAirflowRepository=registry.example.com/airloop/control,defaultAirflowTag=0.1.0,imagePullSecrets={registry}'",
         ["looked up in airloop-steps"]),
        ("values-kind.yaml", {},
         f"{ON_A_CLAIM} --set-string 'defaultAirflowRepository=airloop/control,defaultAirflowTag=kind,"
         "images.airflow.pullPolicy=Never,images.pod_template.pullPolicy=Never'", []),
        ("", {"images": {"pullSecrets": ["one", "two"]}},
         f"{ON_A_CLAIM} --set-string 'imagePullSecrets={{one,two}}'", []),
        ("", {"images": {"control": f"{OF_A_PORT}:2@sha256:{DIGEST}"}},
         f"{ON_A_CLAIM} --set-string 'defaultAirflowRepository={OF_A_PORT}:2@sha256,defaultAirflowTag={DIGEST}'", []),
        ("", {"images": {"control": OF_A_PORT}},
         f"{ON_A_CLAIM} --set-string 'defaultAirflowRepository={OF_A_PORT},defaultAirflowTag=latest'", []),
        ("", {"airflow": {"executor": EXECUTORS[-1]}},
         ON_A_CLAIM + r" -f airflow-values-kubernetes.yaml --set 'executor=LocalExecutor\,KubernetesExecutor'", []),
        ("", {"state": {"claim": {"existing": "disk"}}}, ON_A_CLAIM, ["claimName disk and mountPath /var/lib/airloop"]),
        ("", {"state": {"claim": {"path": "/srv/a"}}}, ON_A_CLAIM, ["claimName airloop-state and mountPath /srv/a"]),
        ("s3", {"state": {"s3": {"credentials": {"secret": ""}}}}, "-f airflow-values.yaml", [
            "give\nsecret:\n  - {envName: PGPASSWORD, secretName: airloop-postgresql, secretKey: password}",
        ]),
        ("s3", {"state": {"s3": {"credentials": {"secret": ""}}}, "catalog": {"password": {"secret": ""}}},
         "-f airflow-values.yaml", ["give\nsecret: []"]),
    ],
)  # fmt: skip
def test_the_next_command_is_the_one_that_fits_the_values(
    next_steps: Any, profile: str, more: dict[str, Any], files: str, also: list[str]
) -> None:
    text = next_steps(profile, more)
    (command,) = [line.strip() for line in text.splitlines() if "apache-airflow/airflow" in line]
    assert command == f"helm upgrade --install airflow apache-airflow/airflow --version 1.22.0 -n loops {files}"
    assert [part for part in also if part not in text] == []
    # Nothing is to be changed in files that fit.
    assert ("in it, give" in text) == any("give" in part or "claimName" in part for part in also)
    assert "change the names" not in text


def test_another_name_is_told_to_those_who_write_it_out(next_steps: Any) -> None:
    assert "here it is loops-airloop: change the names in them" in next_steps("", release="loops")
