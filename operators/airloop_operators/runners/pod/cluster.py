"""
The few things that are asked of an API server, as plain JSON, with patience for one that is away for a while.

Over the client that Airflow's own Kubernetes hook makes: what the connection says holds here, too.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from airloop.errors import AirloopError, BadConfiguration, InfrastructureFailure
from airloop_operators.runners.pod.ending import Object

log = logging.getLogger("airloop.runner")

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers of a server that is overloaded, starting or between two leaders."""
REQUEST_S = (5.0, 30.0)
"""Seconds to connect, and between two pieces of an answer."""
LONGEST_PAUSE_S = 10.0


class Refused(Exception):
    """The API server said no, and would again."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        super().__init__(f"{status} {reason}: {message}")

    @property
    def exists(self) -> bool:
        """There is one of the name already."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def quota(self) -> bool:
        """A quota of the namespace is used up for now; or it was changed while it was looked at."""
        kept_out = "exceeded quota" in self.message or "status unknown for quota" in self.message
        return (self.status == 403 and kept_out) or (self.status == 409 and self.reason == "Conflict")


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


class Away(InfrastructureFailure):
    """The API server did not answer for longer than it was waited for."""


class Cluster:
    """
    A namespace.

    :param api: ``kubernetes.client.CoreV1Api``.
    :param patience_s: seconds for which a server that is away is asked again.
    :param abandoned: whether to give up at once.
    :param redact: takes secrets out of what the server says.
    :param known: whether it is known to accept who asks: then a token that it refuses has run out, and is renewed.
    """

    def __init__(
        self,
        api: Any,
        namespace: str,
        *,
        patience_s: float,
        abandoned: Callable[[], bool] = lambda: False,
        redact: Callable[[str], str] = str,
        known: bool = False,
    ) -> None:
        self._api = api
        self.namespace = namespace
        self._patience_s = patience_s
        self._abandoned = abandoned
        self._redact = redact
        self._known = known
        """It has answered before, and so accepted who asks."""

    def create_pod(self, pod: Mapping[str, Any]) -> Object:
        """:raises Refused: it is there already, a quota is used up, or something is wrong with it."""
        return self._ask(self._api.create_namespaced_pod, body=pod)

    def create_secret(self, secret: Mapping[str, Any]) -> None:
        """:raises Refused: as for a pod."""
        self._ask(self._api.create_namespaced_secret, body=secret)

    def pod(self, name: str) -> Object | None:
        """A pod as it is; None: there is none."""
        try:
            return self._ask(self._api.read_namespaced_pod, name=name)
        except Refused as no:
            if no.status == 404:
                return None
            raise

    def look(self, name: str) -> tuple[Object | None, str]:
        """A pod as it is, or None; and the version of the cluster's objects as of which that holds."""
        found = self._ask(self._api.list_namespaced_pod, field_selector=f"metadata.name={name}")
        return next(iter(found.get("items") or []), None), str((found.get("metadata") or {}).get("resourceVersion", ""))

    def pods(self, selector: str) -> list[Object]:
        """Pods with some labels."""
        return list(self._ask(self._api.list_namespaced_pod, label_selector=selector).get("items") or [])

    def events(self, pod: Object) -> list[Object]:
        """What the cluster tells of a pod; nothing if it must not be read: events explain, and decide nothing."""
        about = pod["metadata"]
        fields = f"involvedObject.name={about['name']},involvedObject.uid={about.get('uid', '')}"
        try:
            return list(self._ask(self._api.list_namespaced_event, field_selector=fields).get("items") or [])
        except (Refused, Away) as no:
            log.debug("events of pod %s: %s", about["name"], no)
            return []

    def changes(self, pod: Object, within_s: float, since: str = "") -> Iterator[tuple[Object, bool]]:
        """
        A pod each time that it changes, and whether it is gone; ends after a while, or when the stream is cut.

        What was missed is in :meth:`look`.

        :param since: version from which on; default the pod's own, of which a cluster knows for some minutes.
        """
        about = pod["metadata"]
        seconds = max(1, round(within_s))
        try:
            stream = self._api.list_namespaced_pod(
                namespace=self.namespace,
                field_selector=f"metadata.name={about['name']}",
                resource_version=since or about.get("resourceVersion"),
                watch=True,
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(REQUEST_S[0], seconds + 5.0),
            )
        except _failures():
            return
        try:
            for line in lines(stream):
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    yield event["object"], event["type"] == "DELETED"
                elif event["type"] == "ERROR":
                    return  # the version is too old
        except _failures():
            return
        finally:
            stream.close()
            stream.release_conn()

    def log(self, name: str, container: str, *, follow: bool, since_s: int | None) -> Iterator[bytes]:
        """
        Complete lines of a container's log, each after the time at which it was written; the last may be cut.

        :param since_s: only of so many last seconds, by the node's clock; None: all that is kept.
        :raises Refused: there is no log, or not yet.
        """
        more = {} if since_s is None else {"since_seconds": since_s}
        stream = self._once(
            self._api.read_namespaced_pod_log, name=name, container=container, follow=follow, timestamps=True, **more
        )
        try:
            rest = yield from lines(stream)
            if rest and not follow:
                yield rest
        finally:
            stream.close()
            stream.release_conn()

    def delete_pod(self, pod: Object, grace_s: float) -> None:
        """Ask a pod to end, this very one; one that is not there is fine."""
        about = pod["metadata"]
        options = {"gracePeriodSeconds": round(grace_s), "preconditions": {"uid": about["uid"]}}
        self._delete(self._api.delete_namespaced_pod, about["name"], options)

    def delete_by_name(self, name: str, grace_s: float) -> None:
        """Ask a pod to end that may not have been seen yet."""
        self._delete(self._api.delete_namespaced_pod, name, {"gracePeriodSeconds": round(grace_s)})

    def delete_secret(self, name: str) -> None:
        """Remove a Secret, if it is there."""
        self._delete(self._api.delete_namespaced_secret, name, {})

    def _delete(self, call: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
        try:
            self._ask(call, name=name, body=options)
        except Refused as no:
            # 409: another pod has the name now.
            if no.status not in (404, 409):
                raise

    def _ask(self, call: Callable[..., Any], **given: Any) -> dict[str, Any]:
        """
        :raises Refused: the answer is no.
        :raises Away: there is none.
        :raises Abandoned: nobody waits for it.
        """
        since = time.monotonic()
        pause_s, said = 0.25, False
        while True:
            if self._abandoned():
                raise Abandoned
            try:
                answer: dict[str, Any] = json.loads(self._once(call, **given).data)
                if said:
                    log.info("the API server answers again")
                self._known = True
                return answer
            except Refused as no:
                # A token that has run out is renewed; one that never worked is not.
                if no.status not in PASSING and not (no.status == 401 and self._known):
                    raise
                trouble = str(no)
            except _failures() as error:
                trouble = f"{type(error).__name__}: {error}"
            away_s = time.monotonic() - since
            if away_s >= self._patience_s:
                raise Away(f"the API server has not answered for {away_s:,.0f} s: {self._redact(trouble)}")
            if not said:
                log.warning("the API server does not answer, asking again: %s", self._redact(trouble))
                said = True
            rest(pause_s, self._abandoned)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _once(self, call: Callable[..., Any], **given: Any) -> Any:
        from kubernetes.client.exceptions import ApiException

        try:
            return call(namespace=self.namespace, _preload_content=False, _request_timeout=REQUEST_S, **given)
        except ApiException as error:
            raise self._refused(error) from None  # its text is the whole answer, with headers

    def _refused(self, error: Any) -> Refused:
        try:
            said = json.loads(error.body or "")
            reason, message = str(said.get("reason") or ""), str(said.get("message") or "")
        except (ValueError, AttributeError):
            reason, message = str(error.reason or ""), str(error.body or "")[:500]
        return Refused(int(error.status or 0), reason, self._redact(message))


def refusal(no: Refused, what: str) -> AirloopError:
    """The error of a task whose request was refused."""
    if no.status in (401, 403):
        return BadConfiguration(
            f"the API server forbids {what}: {no.message}",
            "give the Airflow connection's user, or the worker's service account, the right to it",
        )
    if no.status == 404:
        return BadConfiguration(f"{what}: {no.message}", "make the namespace, or correct it in [airloop] sizes")
    return BadConfiguration(f"the API server refuses {what}: {no}", "correct [airloop] sizes")


def rest(seconds: float, abandoned: Callable[[], bool]) -> None:
    """Sleep, but not longer than somebody waits, which a plain flag says: signal handlers can have no locks."""
    until = time.monotonic() + seconds
    while not abandoned() and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(0.1, left_s))


def lines(stream: Any) -> Generator[bytes, None, bytes]:
    """Complete lines of an answer as they come; returns what came without a line's end."""
    left = b""
    for chunk in stream.stream(1 << 16, decode_content=False):
        *complete, left = (left + chunk).split(b"\n")
        yield from complete
    return left


def _failures() -> tuple[type[Exception], ...]:
    """What a server that is away, a stream that is cut, or half an answer is seen by."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, ApiException, ValueError)
