"""
Wakes a deferred task up. Runs in Airflow's triggerer, many in one process, over the provider's asynchronous hook.

It judges nothing. Whatever it says, and if it says nothing, the task looks at its pod and asks for the manifest.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airloop.redact import Redactor
from airloop_operators.deferral import COMES_BACK, event_of
from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.cluster import PASSING, REQUEST_S, Refused
from airloop_operators.runners.pod.ending import About, Object
from airloop_operators.runners.pod.left import Left, why_wake

SETTLE_S = 10.0
"""
Seconds for which a task is deferred at least. Airflow 3.3 fails a task that it has queued again before its executor has
told it that the worker, which left it, has ended: it takes it for one that was killed. On a busy machine that was told
five seconds after the deferral.
"""
LOOK_S = 120.0
"""Seconds after which a pod is looked at though nothing was told of it."""
PAUSE_S = (0.5, 15.0)
"""Seconds between two requests to an API server that does not answer: at first, and at most."""
KILL_S = 60.0
"""Seconds for asking an API server that is away to end a pod."""


class PodTrigger(BaseTrigger):
    """
    Waits until a pod has ended, is gone or is being deleted, or something is due.

    :param deferral: what the task knows, which it is given back (:class:`airloop_operators.deferral.Deferral`).
    :param pause_s: seconds to rest first, after trouble.
    """

    def __init__(self, deferral: Mapping[str, Any], pause_s: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's triggers have no types
        self.deferral = dict(deferral)
        self.pause_s = pause_s
        self._said = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow keeps."""
        return f"{__name__}.{type(self).__qualname__}", {"deferral": self.deferral, "pause_s": self.pause_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, whatever happens: a trigger without one would fail its task."""
        settled_at = time.monotonic() + SETTLE_S
        try:
            await asyncio.sleep(self.pause_s)
            left, why = await self._wait(Left.of(self.deferral["state"]))
            event = event_of({**self.deferral, "state": left.as_json()}, why)
        except Exception as error:  # noqa: BLE001  the task has to look, whatever is wrong here
            event = event_of(self.deferral, _masked(f"{type(error).__name__}: {error}")[:500], trouble=True)
        await asyncio.sleep(max(0.0, settled_at - time.monotonic()))
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]  # as above

    async def on_kill(self) -> None:
        """
        End the pod of a task that was marked as failed or successful, or cleared, or whose run was.

        Airflow asks for it too where another triggerer took the trigger over, or has woken the task up meanwhile. Then
        the pod stays, also if it is its next try that is on its way: that ends what the one before has left, or
        :mod:`airloop_operators.sweep` does. Airflow 3.3 tells a trigger its task's state, which is the same in both
        cases, but not its try: it may ask for it (``GetPreviousTI``), and cannot read the answer.
        """
        killing = asyncio.create_task(self._kill(Left.of(self.deferral["state"])))
        _killing.add(killing)
        killing.add_done_callback(_killing.discard)
        # Airflow 3.3 cancels this method again each second that it takes.
        await asyncio.shield(killing)

    async def _kill(self, left: Left) -> None:
        if not left.uid:
            return
        try:
            state = await self._state_of_task()
            if state in COMES_BACK:
                self.log.info("pod %s/%s stays: its task is %s", left.namespace, left.pod, state)
                return
            self.log.info("ending pod %s/%s: its task is %s", left.namespace, left.pod, state or "cleared")
            await _end(left)
        except Exception:
            # Airflow would say no more of it than that a trigger failed.
            self.log.exception("pod %s/%s could not be ended; a next try of its task ends it", left.namespace, left.pod)

    async def _state_of_task(self) -> str | None:
        """None: cleared."""
        from airflow.sdk.execution_time import task_runner
        from airflow.sdk.execution_time.comms import GetTaskStates

        ti: Any = self.task_instance
        asked = GetTaskStates(dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index)
        supervisor: Any = task_runner.SUPERVISOR_COMMS
        states = (await supervisor.asend(asked)).task_states.get(ti.run_id) or {}
        # A task or run that was deleted is not there.
        state = states.get(ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}", "removed")
        return None if state is None else str(getattr(state, "value", state))

    async def _wait(self, left: Left) -> tuple[Left, str]:
        """The pod as it was last seen, and why its task has to look at it."""
        heard_at, pause_s = time.monotonic(), PAUSE_S[0]
        known = False
        while True:
            began = time.monotonic()
            try:
                if left.uid:
                    async with (
                        _hook(left).get_conn() as connection,
                        aclosing(self._looks(_api(connection), left)) as looks,
                    ):
                        async for seen, why in looks:
                            left, heard_at, pause_s, known = seen, time.monotonic(), PAUSE_S[0], True
                            if why:
                                return left, f"pod {left.namespace}/{left.pod} {why}"
                else:
                    why, due = why_wake(left, None, time.time())
                    if why:
                        return left, f"pod {left.namespace}/{left.pod} {why}"
                    await asyncio.sleep(max(0.0, due - time.time()))
            except _passing() as trouble:
                # A token that has run out is renewed; one that never worked is not.
                refused = isinstance(trouble, Refused) and trouble.status not in PASSING
                if refused and not (known and getattr(trouble, "status", 0) == 401):
                    raise
                if time.monotonic() - heard_at >= left.api_s:
                    raise
                self.log.debug("the API server does not answer: %s", trouble)
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_S[1], pause_s * 2)
            # A watch that is ended at once must not be asked for at once again.
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))

    async def _looks(self, api: Any, left: Left) -> AsyncGenerator[tuple[Left, str]]:
        """What is known of the pod, and why its task has to look at it, until it has or for a while."""
        only = f"metadata.name={left.pod}"
        listed = json.loads(await _ask(api.list_namespaced_pod, left, field_selector=only))
        pod = next(iter(listed["items"]), None)
        why, due = why_wake(left, pod, time.time())
        if why or pod is None:
            yield left, why
            return
        left = left.seen(pod, listed["metadata"]["resourceVersion"])
        self._say(left, pod)
        yield left, ""
        ends_at = min(due, time.time() + LOOK_S)
        seconds = max(1, math.ceil(ends_at - time.time()))
        stream = await api.list_namespaced_pod(
            namespace=left.namespace, field_selector=only, resource_version=left.version, watch=True,
            timeout_seconds=seconds, _preload_content=False, _request_timeout=(REQUEST_S[0], seconds + 5.0),
        )  # fmt: skip
        try:
            if not 200 <= stream.status < 300:
                raise _refused(stream.status, await stream.read())
            async with aclosing(_lines(stream)) as told:
                async for line in told:
                    event = json.loads(line)
                    if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
                        return  # a version that is too old, say: it is looked at anew
                    pod = event["object"]
                    why, due = why_wake(left, None if event["type"] == "DELETED" else pod, time.time())
                    if not why:
                        left = left.seen(pod)
                        self._say(left, pod)
                    yield left, why
                    if why or due < ends_at:
                        return
        finally:
            _cut(stream)

    def _say(self, left: Left, pod: Object) -> None:
        why = ending.waiting(pod, [], About(step="", pod=left.pod, size="", memory=""))
        now = "runs" if why is None else _masked(f"waits for {why.what}: {why.reason}")
        if now != self._said:
            self._said = now
            self.log.info("pod %s/%s %s", left.namespace, left.pod, now)


def _masked(text: str) -> str:
    """The cluster's words without passwords of addresses; a trigger knows no secrets that it could look for."""
    return Redactor(environment={"said": text})(text)


_killing: set[asyncio.Task[None]] = set()
"""An event loop keeps weak references only."""


async def _end(left: Left) -> None:
    """Ask a pod to end, this very one."""
    options = {"gracePeriodSeconds": round(left.grace_s), "preconditions": {"uid": left.uid}}
    until = time.monotonic() + KILL_S
    while True:
        try:
            async with _hook(left).get_conn() as connection:
                await _ask(_api(connection).delete_namespaced_pod, left, name=left.pod, body=options)
            return
        except _passing() as no:
            status = no.status if isinstance(no, Refused) else 503
            # It is gone, or another has its name.
            if status in (404, 409):
                return
            if status not in PASSING or time.monotonic() >= until:
                raise
        await asyncio.sleep(1)


def _hook(left: Left) -> Any:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook

    # What the connection says, as for the worker: nothing of the environment is mixed in.
    return AsyncKubernetesHook(conn_id=left.connection, in_cluster=left.in_cluster or None)


def _api(connection: Any) -> Any:
    from kubernetes_asyncio.client import CoreV1Api

    return CoreV1Api(connection)


async def _ask(call: Callable[..., Any], left: Left, **given: Any) -> bytes:
    """:raises Refused: the answer is no."""
    answer = await call(namespace=left.namespace, _preload_content=False, _request_timeout=REQUEST_S, **given)
    try:
        content: bytes = await answer.read()
    finally:
        answer.release()
    if not 200 <= answer.status < 300:
        raise _refused(answer.status, content)
    return content


def _refused(status: int, content: bytes) -> Refused:
    try:
        said = json.loads(content)
        return Refused(status, str(said.get("reason") or ""), str(said.get("message") or ""))
    except (ValueError, AttributeError):
        return Refused(status, "", content[:500].decode(errors="replace"))


def _cut(stream: Any) -> None:
    """End a watch at once: over TLS its connection would stay open until the server has said goodbye, too."""
    connection = stream.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    stream.close()


async def _lines(stream: Any) -> AsyncGenerator[bytes]:
    """Complete lines of an answer as they come; a pod's line may be longer than what is read at once."""
    left = b""
    async for chunk in stream.content.iter_any():
        *complete, left = (left + chunk).split(b"\n")
        for line in complete:
            yield line


def _passing() -> tuple[type[Exception], ...]:
    """What may pass: a server that is away, a stream that is cut, half an answer, and some answers."""
    from aiohttp import ClientError

    return (ClientError, OSError, ValueError, Refused)
