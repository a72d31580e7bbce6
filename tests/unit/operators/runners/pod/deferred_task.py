"""A deferrable task as Airflow starts it again and again, and pods for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.serde import deserialize, serialize

from airloop_operators import StepOperator
from tests.api_server import ApiServer, ScriptedPod
from tests.unit.operators.test_turn import a_run

SECRET = "open/sesame-4711"


class Events(list[str]):
    """Stands for the outlet events of a task."""

    def __getitem__(self, alias: Any) -> Any:
        assert isinstance(alias, AssetAlias)
        return self

    def add(self, asset: Asset, extra: dict[str, Any]) -> None:
        self.append(extra["key"])


@dataclass
class Task:
    """One try of a deferrable task: each start is of a new operator, and what lies between went through a database."""

    arguments: dict[str, Any] = field(default_factory=dict)
    number: int = 1
    kept: list[str] = field(default_factory=list)
    """What Airflow keeps in its database, as JSON."""
    events: Events = field(default_factory=Events)
    began: Any = None

    def operator(self) -> StepOperator:
        with DAG("loop", schedule=None):
            usual: dict[str, Any] = {"runner": "pod", "deferrable": True, "infrastructure_retry_delay": 0}
            self.last = StepOperator(task_id="t", step="one", **{**usual, **self.arguments})
        return self.last

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(
            id=f"id-{self.number}", dag_id="loop", run_id="r2", task_id="t", map_index=-1, try_number=self.number,
            start_date=self.began, context_carrier=None,
        )  # fmt: skip
        return {"ti": ti, "dag_run": a_run(2), "outlet_events": self.events}

    def start(self) -> Any:
        """What it returns, or the trigger that it is deferred with."""
        return self._kept(lambda: self.operator().execute(self.context))

    def resume(self, event: Any, method: str = "resume") -> Any:
        """The same, with a trigger's event."""
        event = deserialize(json.loads(self._keep(serialize(event))))
        kwargs = {"event": event} if method == "resume" else event
        return self._kept(lambda: self.operator().resume_execution(method, kwargs, self.context))

    def start_again(self, server: ApiServer) -> Any:
        """The trigger of its second pod, which runs."""
        found = self.start()
        while len(server.created) < 2:
            found = self.resume(wake(found))
        running(server)
        return found

    def end(self) -> dict[str, Any]:
        """What it returns, however often it is deferred."""
        found = self.start()
        while not isinstance(found, dict):
            found = self.resume(wake(found))
        return found

    def _kept(self, begin: Callable[[], Any]) -> Any:
        try:
            return begin()
        except TaskDeferred as deferred:
            from airflow.sdk._shared.module_loading import import_string

            classpath, kwargs = deferred.trigger.serialize()
            found = import_string(classpath)(**deserialize(json.loads(self._keep(serialize(kwargs)))))
            found.task_instance = self.context["ti"]
            found.timeout = deferred.timeout
            return found

    def _keep(self, value: Any) -> str:
        self.kept.append(json.dumps(value))
        return self.kept[-1]


def wake(trigger: Any, within_s: float = 120) -> Any:
    """A trigger's event."""

    async def first() -> Any:
        return (await anext(aiter(trigger.run()))).payload

    return asyncio.run(asyncio.wait_for(first(), within_s))


def an_hour_later(trigger: Any) -> Any:
    """The trigger as it would be if an hour had passed since: all that is dated is dated back."""
    state = trigger.deferral["state"]
    dated = {n: state[n] - 3600 for n in ("began_at", "made_at", "until", "wake_at") if state[n] is not None}
    until = trigger.deferral["until"]
    trigger.deferral |= {"state": {**state, **dated}, "until": None if until is None else until - 3600}
    return trigger


def sizes(
    tmp_path: Path,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: Mapping[str, Any] | None = None,
    **patience: float,
) -> None:
    """Configure pods. :param more: in the place of the usual. :param patience: seconds, in the place of little."""
    document = {
        "namespace": "loops",
        "images": {"cpu": "airloop:1"},
        "volumes": [{"claim": "state", "path": str(state)}],
        "patience": {"schedule_s": 60, "start_s": 60, "api_s": 60, "grace_s": 1, "lost_s": 1, **patience},
        **(more or {}),
    }
    (tmp_path / "sizes.yaml").write_text(json.dumps(document))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.yaml"))


def success(pod: ScriptedPod) -> None:
    pod.run()
    pod.say("first", "second")
    pod.succeed()


def slow(pod: ScriptedPod) -> None:
    """It ends when it is told to."""
    pod.run()
    pod.say("first")
    go(pod).wait(120)
    pod.say("second")
    pod.succeed()


def go(pod: ScriptedPod) -> threading.Event:
    """What tells slow pods to end."""
    found: threading.Event = vars(pod.server).setdefault("go", threading.Event())
    return found


def running(server: ApiServer) -> None:
    """Wait until the only pod runs."""
    until = time.monotonic() + 60
    while [p["status"]["phase"] for p in list(server.pods.values())] != ["Running"]:
        assert time.monotonic() < until, server.pods
        time.sleep(0.02)


def gone(server: ApiServer) -> None:
    """Wait until no pod is there: one that is asked to end has its grace."""
    until = time.monotonic() + 60
    while server.pods and time.monotonic() < until:
        time.sleep(0.02)
    # What goes with the last one has gone, too.
    with server.lock:
        assert server.pods == {}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """By payloads."""
    return [r.getMessage() for r in caplog.records if r.name == "payload"]
