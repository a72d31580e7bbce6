"""
Airflow's KubernetesExecutor, with PostgreSQL as Airflow's database: each task in a pod of its own, made of the template
that people are given, on a cluster in little. Steps run in their task's pod and in pods of their own, for which tasks
wait in their pods or deferred; the scheduler and pods of tasks are lost meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from airloop.frame import history
from airloop.warehouse.artifacts import ArtifactStore
from airloop_operators.runners.pod import ending, names
from demo import Airflow
from stack import Stack
from tests.cluster.world import IMAGE
from tests.small_cluster import SmallCluster, node

REPOSITORY = Path(__file__).resolve().parents[2]

if not os.environ.get("CI"):
    pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")

TEMPLATE = REPOSITORY / "helm" / "airloop" / "worker-pod.yaml"
STEPS = """
import time
from pathlib import Path
from airloop.frame import StepContext, StepResult, step

@step()
def wait_for(ctx: StepContext, *, file: str, task: str) -> StepResult:
    print("waiting", flush=True)
    while not Path(file).exists():
        time.sleep(0.05)
    return StepResult(counts={"rows": 1})
"""
LOOP = """
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from airloop_operators import StepOperator

def wait(task, file=__file__, **more):
    StepOperator(task_id=task, step="loop_steps:wait_for", arguments={"task": task, "file": str(file)}, **more)

with DAG("pods", schedule=None, catchup=False):
    wait("here", runner="local")
    wait("there")
    wait("beside", executor="LocalExecutor")
    go = Path(__file__).with_name("go")
    for task in ("lost", "asked"):
        wait(task, go, retries=1, retry_delay=timedelta(seconds=1))
    for task in ("marked", "cleared"):
        wait(task, go, deferrable=True)
"""
SECRETS = {"airloop-s3": ("access_key_id", "secret_access_key"), "airloop-postgresql": ("password",)}
"""Which the template names; here all state is in a folder."""
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
RUN = "/api/v2/dags/pods/dagRuns/r"
STRUCK = ("lost", "asked")
DEFERRED = ("marked", "cleared")


class ExecutorStack(Stack):
    def lose_scheduler(self) -> None:
        """SIGKILL, for it and all that it has started."""
        import psycopg

        (service,) = (service for service in self.services if service.name == "scheduler")
        os.killpg(service.pid, signal.SIGKILL)
        until(lambda: not service.alive(), "the scheduler is gone")
        # The next one would take it for dead by itself, half a minute later.
        with closing(psycopg.connect(self.settings[DATABASE].replace("+psycopg", ""), autocommit=True)) as connection:
            connection.execute("UPDATE job SET state = 'failed' WHERE job_type = 'SchedulerJob'")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SmallCluster]:
    """With what the chart makes and what it wants to be there."""
    image = yaml.safe_load(TEMPLATE.read_text())["spec"]["containers"][0]["image"]
    steps, home = tmp_path / "steps", tmp_path / "home"
    steps.mkdir()
    (steps / "loop_steps.py").write_text(STEPS)
    sizes = {
        "namespace": "loops",
        "images": {"cpu": IMAGE},
        "environment": {"PYTHONPATH": str(steps)},
        "volumes": [{"claim": "state", "path": str(home)}],
        "patience": {"grace_s": 5},
    }
    settings = {
        "AIRFLOW__AIRLOOP__RUNNER": "pod",
        "AIRFLOW__AIRLOOP__SIZES": "/etc/airloop/sizes.yaml",
        "AIRFLOW__AIRLOOP__HOME": str(home),
        "AIRFLOW__AIRLOOP__WARM": "False",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # As :class:`stack.Stack` has it.
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "60",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
        "PYTHONPATH": str(steps),
    }
    with SmallCluster(tmp_path / "pods", [node("node-1")], [IMAGE, image]) as found:
        for name, data in {"airloop-sizes": {"sizes.yaml": json.dumps(sizes)}, "airloop-settings": settings}.items():
            found.objects["configmaps"][name] = {"metadata": {"name": name}, "data": data}
        of_no_use = base64.b64encode(b"of no use").decode()
        for name, keys in SECRETS.items():
            found.secrets[name] = {"metadata": {"name": name}, "data": dict.fromkeys(keys, of_no_use)}
        yield found


@pytest.fixture
def stack(cluster: SmallCluster, tmp_path: Path, postgres_url: str) -> Iterator[ExecutorStack]:
    dags, home = tmp_path / "dags", tmp_path / "home"
    dags.mkdir()
    (dags / "pods.py").write_text(LOOP)
    (tmp_path / "sizes.yaml").write_text(cluster.objects["configmaps"]["airloop-sizes"]["data"]["sizes.yaml"])
    kubeconfig = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": kubeconfig}}
    found = ExecutorStack(home, dags=dags)
    # Where multiprocessing has its sockets, whose paths have to be short, and clients what they have found out.
    with TemporaryDirectory(prefix="airloop-") as short:
        found.settings = {
            "TMPDIR": short,
            "AIRFLOW__CORE__EXECUTOR": "KubernetesExecutor,LocalExecutor",
            DATABASE: postgres_url,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": postgres_url,
            "AIRFLOW__KUBERNETES_EXECUTOR__IN_CLUSTER": "False",
            "AIRFLOW__KUBERNETES_EXECUTOR__CONFIG_FILE": kubeconfig,
            "AIRFLOW__KUBERNETES_EXECUTOR__NAMESPACE": "loops",
            "AIRFLOW__KUBERNETES_EXECUTOR__POD_TEMPLATE_FILE": str(tmp_path / "worker-pod.yaml"),
            "AIRFLOW__KUBERNETES_EXECUTOR__WORKER_PODS_CREATION_BATCH_SIZE": "8",
            "AIRFLOW__AIRLOOP__RUNNER": "pod",
            "AIRFLOW__AIRLOOP__SIZES": str(tmp_path / "sizes.yaml"),
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
        }
        try:
            found.up(everything=False)
            found.start("triggerer")
            (tmp_path / "worker-pod.yaml").write_text(template(found, connection))
            yield found
        finally:
            # Asked to end, it waits for its watcher, which does not heed being asked.
            if found.running("scheduler"):
                found.lose_scheduler()
            found.down()


def template(stack: Stack, connection: dict[str, Any]) -> str:
    """The template as it is given, but for where Airflow, its DAGs and the cluster are."""
    pod = yaml.safe_load(TEMPLATE.read_text())
    (container,) = pod["spec"]["containers"]
    here = {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{stack.airflow_url}/execution/",
        "AIRFLOW__CORE__DAGS_FOLDER": str(stack.dags),
        # A worker in a cluster uses its service account.
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
    }
    kept = [entry for entry in container["env"] if entry["name"] not in here]
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in here.items())]
    return yaml.safe_dump(pod)


def until(what: Callable[[], Any], expected: str, within_s: float = 400) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {expected}"
        time.sleep(0.2)
    return found


class Loop:
    """The run, and what it did to the cluster."""

    def __init__(self, stack: Stack, cluster: SmallCluster) -> None:
        self._cluster = cluster
        self.airflow = Airflow(stack)
        self.airflow.wait_for_dag("pods")
        self.airflow.call("PATCH", "/api/v2/dags/pods", {"is_paused": False})
        self.airflow.call("POST", "/api/v2/dags/pods/dagRuns", {"dag_run_id": "r", "logical_date": None})

    def tries(self, state: str) -> dict[str, int]:
        """Tasks in a state, and which try that is."""
        return {t["task_id"]: t["try_number"] for t in self.airflow.tasks("pods", "r") if t["state"] == state}

    def pods(self, label: str, task: str) -> list[dict[str, Any]]:
        """
        A task's pods as they were made, the first one first.

        :param label: by which pods of a kind name their task.
        """
        made = (pod for _, kind, pod, _ in list(self._cluster.history) if kind == "ADDED")
        return [pod for pod in made if pod["metadata"]["labels"].get(label) == task]

    def workers(self, task: str) -> list[dict[str, Any]]:
        return self.pods("task_id", task)

    def steps(self, task: str) -> list[dict[str, Any]]:
        return self.pods(f"{names.PREFIX}task", task)

    def waits(self, task: str, number: int) -> bool:
        """Whether a task's step waits in its pod of that number, from 1."""
        pods = self.steps(task)
        assert len(pods) <= number
        if len(pods) < number:
            return False
        return any("waiting" in line for line in self.log(pods[-1:]))

    def log(self, pods: list[dict[str, Any]]) -> list[str]:
        """All lines that some pods have written."""
        return [line for pod in pods for _, line in self._cluster.handles[pod["metadata"]["name"]].log]

    def is_there(self, pod: dict[str, Any]) -> bool:
        return pod["metadata"]["name"] in self._cluster.pods

    def delete(self, pod: dict[str, Any], grace_s: float) -> None:
        self._cluster.handles[pod["metadata"]["name"]].delete(grace_s)

    def when(self, pod: dict[str, Any], what: Callable[[dict[str, Any]], bool]) -> int:
        """Version of the cluster's objects since which something is so of a pod."""
        return next(
            at
            for at, _, now, _ in list(self._cluster.history)
            if now["metadata"]["uid"] == pod["metadata"]["uid"] and what(now)
        )


def version(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["resourceVersion"])


@pytest.mark.timeout(1800)
def test_tasks_in_pods_of_their_own(cluster: SmallCluster, stack: ExecutorStack) -> None:
    loop = Loop(stack, cluster)
    until(lambda: loop.tries("success").keys() >= {"here", "there", "beside"}, "three tasks are done")
    until(lambda: all(loop.waits(task, 1) for task in (*STRUCK, *DEFERRED)), "the other tasks' steps wait")

    def left(number: int, *tasks: str) -> bool:
        """Whether tasks are deferred in so manieth a try, and nobody but their steps has a pod."""
        here = loop.tries("deferred") == dict.fromkeys(tasks, number)
        return here and not any(loop.is_there(pod) for task in tasks for pod in loop.workers(task))

    until(lambda: left(1, *DEFERRED), "two tasks have given their own pods back")

    def log() -> str:
        return json.dumps(loop.airflow.call("GET", f"{RUN}/taskInstances/lost/logs/1"))

    until(lambda: "Found logs through kube API" in log(), "the log of a task that runs is read from its pod")
    until(lambda: "waiting" in log(), "what its step says is in it")

    # Another scheduler takes the pods of tasks over.
    first = {t: loop.workers(t)[0]["metadata"] for t in STRUCK}
    stack.lose_scheduler()
    stack.start("scheduler")

    def owners() -> set[str]:
        return {cluster.pods[about["name"]]["metadata"]["labels"]["airflow-worker"] for about in first.values()}

    before = {about["labels"]["airflow-worker"] for about in first.values()}
    until(lambda: not owners() & before, "the pods are another scheduler's")

    # One task's pod goes without a word, as with its node; the other's is asked to end.
    loop.delete(loop.workers("lost")[0], grace_s=0)
    loop.delete(loop.workers("asked")[0], grace_s=30)
    # The scheduler's loss was nothing to the deferred tasks; now one of them is marked as failed, and one cleared.
    assert all(loop.is_there(loop.steps(task)[0]) for task in DEFERRED)
    loop.airflow.call("PATCH", f"{RUN}/taskInstances/marked", {"new_state": "failed"})
    loop.airflow.call(
        "POST", "/api/v2/dags/pods/clearTaskInstances",
        {"dag_run_id": "r", "task_ids": ["cleared"], "dry_run": False, "only_failed": False},
    )  # fmt: skip
    until(lambda: not loop.is_there(loop.steps("marked")[0]), "the step of the task that is marked has no pod")
    until(lambda: all(loop.waits(task, 2) for task in (*STRUCK, "cleared")), "the others wait in their second tries")
    until(lambda: left(2, "cleared"), "the task that was cleared is deferred again")
    (stack.dags / "go").touch()
    until(lambda: loop.airflow.call("GET", RUN)["state"] not in ("queued", "running"), "the run ends")

    assert loop.tries("success") == {"here": 1, "there": 1, "beside": 1, "lost": 2, "asked": 2, "cleared": 2}
    assert loop.tries("failed") == {"marked": 1}
    records = history.run(ArtifactStore(stack.home / "artifacts"), "pods", "r").tasks
    done = {name: task.record for name, task in records.items() if task.status in ("done", "reused")}
    assert {name: record["run"]["try_number"] for name, record in done.items()} == loop.tries("success")
    made = {task: (len(loop.workers(task)), len(loop.steps(task))) for task in (*done, "marked")}
    assert made == {
        "here": (1, 0), "there": (1, 1), "beside": (0, 1), "lost": (2, 2), "asked": (2, 2), "marked": (1, 1),
        "cleared": (3, 2),
    }  # fmt: skip
    # Whom nobody could ask, the next try has ended; who was asked has ended the step, too, before there was a next try.
    asked_to_end = {task: loop.when(loop.steps(task)[0], ending.is_going) for task in (*STRUCK, *DEFERRED)}
    assert version(loop.workers("lost")[1]) < asked_to_end["lost"] < version(loop.steps("lost")[1])
    assert asked_to_end["asked"] < version(loop.workers("asked")[1])
    # Its step went on without a pod of the task; one that was made when the step had ended read what the step had said.
    workers, step = loop.workers("cleared"), loop.steps("cleared")[1]
    assert loop.when(workers[0], ending.is_over) < asked_to_end["cleared"] < version(step)
    assert loop.when(workers[1], ending.is_over) < loop.when(step, ending.is_over) < version(workers[2])
    assert sum("waiting" in line for line in loop.log(workers[1:])) == 1
    until(lambda: not cluster.pods, "the executor has removed the pods of tasks")
    assert not list(stack.airflow_home.glob("*.db")), "Airflow's database is PostgreSQL"
